"""Puts the commands together."""

from typing import Annotated

import typer

from vehclass import __version__
from vehclass.cli import (
    classify,
    classify_batch,
    data,
    doctor,
    evaluate,
    model,
    results,
    runs,
    schedule,
    status,
    store,
    train,
)

app = typer.Typer(
    help="Turns a container of vehicle photos into rows in a database.",
    epilog="Start with: vehclass classify-batch --container PHOTOS --model models/sample",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vehclass {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command("classify-batch", rich_help_panel="Work")(classify_batch.classify_batch)
app.add_typer(schedule.app, name="schedule", rich_help_panel="Work")
app.command("classify", rich_help_panel="Work")(classify.classify)
app.command("train", rich_help_panel="Work")(train.train)
app.command("evaluate", rich_help_panel="Look")(evaluate.evaluate)
app.add_typer(data.app, name="data", rich_help_panel="Look")
app.add_typer(results.app, name="results", rich_help_panel="Look")
app.command("status", rich_help_panel="Look")(status.status)
app.add_typer(runs.app, name="runs", rich_help_panel="Look")
app.add_typer(model.app, name="model", rich_help_panel="Look")
app.add_typer(store.app, name="store", rich_help_panel="Look after")
app.command("doctor", rich_help_panel="Look after")(doctor.doctor)
