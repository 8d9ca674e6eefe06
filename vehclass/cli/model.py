"""`vehclass model`: what is known of a model, and where models are handed around."""

from pathlib import Path
from typing import Annotated

import typer

from vehclass.cli import options, registry, show
from vehclass.cli.export import export
from vehclass.cli.train import show_metrics

app = typer.Typer(help="Look at models, hand them around.", no_args_is_help=True)
app.command("export")(export)
app.command("push")(registry.push)
app.command("pull")(registry.pull)
app.command("list")(registry.list_models)
app.command("promote")(registry.promote)
app.command("rollback")(registry.rollback)
app.command("history")(registry.history)


@app.command("sign")
def sign_model(
    folder: Annotated[Path, typer.Argument(help="A model folder.", show_default=False)],
    key: Annotated[Path, typer.Option("--key", help="A private key of an elliptic curve (PEM).", show_default=False)],
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Sign a model folder, so that others can tell who made it.

    Writes model.sig into the folder, in the form of the OpenSSF's model signing; `vehclass model push` takes it along. Where
    VEHCLASS_MODEL_KEY names the public key, models without such a signature are refused. Needs pip install 'vehclass[signing]'.

    Example: vehclass model sign models/mine --key key.pem
    """
    from vehclass.model.folder import DOCUMENTS, open_model
    from vehclass.model.signature import sign

    options.given()
    model = open_model(folder)
    try:
        written = sign(folder, key, None, DOCUMENTS)
    except TypeError:  # the key has a password
        password = typer.prompt(f"Password of {key}", hide_input=True, err=True)
        written = sign(folder, key, password, DOCUMENTS)
    if as_json:
        show.print_json({"model": model.info.key, "signature": str(written)})
    else:
        show.say(f"{model.info.key} is signed: {written}")


@app.command("show")
def show_model(
    model: Annotated[str, typer.Argument(help="A model folder, or NAME or NAME@VERSION.", show_default=False)],
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Show a model's tasks, labels, accuracy and files, after checking that none was changed.

    Example: vehclass model show models/sample
    """
    folder = options.model_folder(options.given(model=model))
    path, info = folder.path, folder.info
    if as_json:
        show.print_json({"path": str(path), **info.facts})
        return
    facts = info.facts
    show.say(
        f"{info.key}, made {info.created_at[:19]} UTC; {facts.get('backbone')} at {info.input_size[0]}x{info.input_size[1]} pixels; every file is as it was made."
    )
    rows = [
        (task.name, ", ".join(task.labels), _range(task.thresholds), f"{task.temperature:.3f}") for task in info.tasks
    ]
    show.table(None, ("task", "labels", "threshold", "temperature"), rows, right=("threshold", "temperature"))
    if facts.get("metrics"):
        show_metrics(facts)
    sizes = [
        (name, show.size((path / name).stat().st_size), digest[:16]) for name, digest in sorted(folder.files.items())
    ]
    show.table(None, ("file", "size", "sha256"), sizes, right=("size",))


def _range(numbers: tuple[float, ...]) -> str:
    """The least and the greatest of some numbers; one where they are the same."""
    least, greatest = f"{min(numbers):.3f}", f"{max(numbers):.3f}"
    return least if least == greatest else f"{least}-{greatest}"
