"""`vehclass model`: what is known of a model."""

from pathlib import Path
from typing import Annotated

import typer

from vehclass.cli import options, show
from vehclass.cli.train import show_metrics

app = typer.Typer(help="What is known of a model.", no_args_is_help=True)


@app.command("show")
def show_model(
    path: Annotated[Path, typer.Argument(help="A model folder.", show_default=False)],
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Show a model's tasks, labels, accuracy and files, after checking that none was changed.

    Example: vehclass model show models/sample
    """
    from vehclass.model.folder import open_model

    folder = open_model(path)
    info = folder.info
    if as_json:
        show.print_json({"path": str(path), **info.facts})
        return
    facts = info.facts
    show.say(
        f"{info.key}, made {info.created_at[:19]} UTC; {facts.get('backbone')} at {info.input_size[0]}x{info.input_size[1]} pixels; every file is as it was made."
    )
    rows = [
        (task.name, ", ".join(task.labels), f"{task.threshold:.3f}", f"{task.temperature:.3f}") for task in info.tasks
    ]
    show.table(None, ("task", "labels", "threshold", "temperature"), rows, right=("threshold", "temperature"))
    if facts.get("metrics"):
        show_metrics(facts)
    sizes = [
        (name, show.size((path / name).stat().st_size), digest[:16]) for name, digest in sorted(folder.files.items())
    ]
    show.table(None, ("file", "size", "sha256"), sizes, right=("size",))
