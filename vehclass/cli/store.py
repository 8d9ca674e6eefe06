"""`vehclass store`: making a store, and asking whether it is whole."""

import typer

from vehclass.cli import options, show
from vehclass.errors import ExitCode

app = typer.Typer(help="Make a store, or ask whether it is whole.", no_args_is_help=True)


@app.command("init")
def init(store: options.Store = None, as_json: options.Json = False, verbose: options.Verbose = False) -> None:
    """Make a store, or bring its schema up to date; results that are there stay.

    Example: vehclass store init --store sqlite:///results.db
    """
    from vehclass.stores import open_store

    settings = options.given(store=store)
    results = open_store(settings.store, create=True, busy_seconds=settings.store_wait)
    report = results.check()
    if as_json:
        show.print_json(report)
    else:
        show.say(
            f"{results.url} is ready, at schema version {report['schema_version']}, with {report['images']:,} images."
        )


@app.command("check")
def check(store: options.Store = None, as_json: options.Json = False, verbose: options.Verbose = False) -> None:
    """Ask a store whether it is whole, and how much is in it; exit code 1 when it is not.

    Example: vehclass store check
    """
    results = options.existing_store(options.given(store=store))
    report = results.check()
    if as_json:
        show.print_json(report)
    else:
        show.table(
            None,
            ("", "store"),
            [
                (key.replace("_", " "), f"{value:,}" if isinstance(value, int) else value)
                for key, value in report.items()
            ],
        )
    if report["integrity"] != "ok":
        raise typer.Exit(int(ExitCode.FAILED))
