"""`vehclass store`: making a store, asking whether it is whole, and moving results to another."""

from typing import TYPE_CHECKING, Annotated

import typer

from vehclass.cli import options, show
from vehclass.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from vehclass.stores.copying import Copied

app = typer.Typer(help="Make a store, ask whether it is whole, or move results to another.", no_args_is_help=True)


@app.command("init")
def init(store: options.Store = None, as_json: options.Json = False, verbose: options.Verbose = False) -> None:
    """Make a store, or bring its schema up to date; results that are there stay.

    Makes the file, the tables of a SQL database, or the database and containers of a Cosmos DB account, where this
    identity may; otherwise says what to ask an administrator for.

    Example: vehclass store init --store sqlite:///results.db
    """
    from vehclass.stores import open_store

    settings = options.given(store=store)
    results = open_store(settings.store, create=True, options=options.store_options(settings))
    try:
        report = results.check()
    finally:
        results.close()
    if as_json:
        show.print_json(report)
        return
    count = report["outcomes"]
    held = f"{count:,} result{'' if count == 1 else 's'}"
    show.say(f"{results.url} is ready, at schema version {report['schema_version']}, with {held}.")
    for right in report["missing_rights"]:
        show.note(f"This identity may not {right}, which a run needs.")


@app.command("check")
def check(store: options.Store = None, as_json: options.Json = False, verbose: options.Verbose = False) -> None:
    """Ask a store whether it can be reached, is whole, lets this identity write, and how much is in it.

    Exit code 1 when it is damaged or a right is missing.

    Example: vehclass store check
    """
    with options.existing_store(options.given(store=store)) as results:
        report = results.check()
    if as_json:
        show.print_json(report)
    else:
        show.table(None, ("", "store"), [(key.replace("_", " "), _shown(value)) for key, value in report.items()])
    if report["integrity"] != "ok" or report["missing_rights"]:
        raise typer.Exit(int(ExitCode.FAILED))


def _shown(value: object) -> object:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return f"{value:,}" if isinstance(value, int) else value


@app.command("copy")
def copy_results(
    source: Annotated[str, typer.Option("--from", help="The store to copy from.", show_default=False)],
    target: Annotated[
        str, typer.Option("--to", help="The store to copy to; made where it is not there.", show_default=False)
    ],
    max_ru: Annotated[
        float | None,
        typer.Option("--max-ru", help="Request units a second that it may take of a Cosmos DB.", show_default=False),
    ] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Copy all results and runs from one store to another, and read them back.

    What is there already is not written again, so a copy that was stopped goes on when it is repeated. Where the
    second store has a later result for the same image and model, that stays.

    Example: vehclass store copy --from sqlite:///vehclass.db --to mssql://server.database.windows.net/results
    """
    from vehclass.stores import open_store
    from vehclass.stores.copying import Copied, copy

    settings = options.given(max_ru=max_ru)
    services = options.store_options(settings)
    old = open_store(source, options=services)
    try:
        if source == target:
            raise UsageError(reason="--from and --to name the same store.")
        new = open_store(target, create=True, options=services)
        try:
            if old.url == new.url:
                raise UsageError(reason="--from and --to name the same store.")
            with show.status(quiet=as_json, lines=True) as tell:

                def say(done: Copied) -> None:
                    tell(f"Copying: {done.outcomes:,} results looked at, {done.written:,} written")

                done = copy(old, new, say)
            cost = {"from": old.cost(), "to": new.cost()}
        finally:
            new.close()
    finally:
        old.close()
    if as_json:
        show.print_json({"from": old.url, "to": new.url, **_report(done), "store_cost": cost})
        return
    runs = f"{done.runs:,} run{'' if done.runs == 1 else 's'}"
    show.say(f"{done.outcomes:,} results and {runs} of {old.url} are in {new.url}.")
    newer = f", {done.newer_kept:,} are newer there and stay" if done.newer_kept else ""
    show.say(f"{done.written:,} were copied, {done.there_before:,} were there before{newer}.")
    for url, spent in ((old.url, cost["from"]), (new.url, cost["to"])):
        if spent:
            show.say(f"{spent['request_units']:,.0f} request units of {url}.")
    show.say(f"Read back: the checksums of both agree ({_hex(done.checksum_to)}).")


def _report(done: "Copied") -> dict[str, object]:
    numbers = {"outcomes": done.outcomes, "copied": done.written, "there_before": done.there_before}
    more = {"newer_kept": done.newer_kept, "runs": done.runs, "verified": done.verified}
    return {**numbers, **more, "checksum_from": _hex(done.checksum_from), "checksum_to": _hex(done.checksum_to)}


def _hex(checksum: int) -> str:
    return f"{checksum % 2**128:032x}"
