"""`vehclass results`: what the models said, listed, shown and exported."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vehclass.cli import options, show
from vehclass.errors import UsageError
from vehclass.records import ResultFilter, iso

app = typer.Typer(help="What the models said of each image.", no_args_is_help=True)

Run = Annotated[str | None, typer.Option("--run", help="Only of this run.", show_default=False)]
Task = Annotated[str | None, typer.Option(help="Only this task, such as condition.", show_default=False)]
Label = Annotated[str | None, typer.Option(help="Only this label, such as damaged.", show_default=False)]
OfModel = Annotated[
    str | None, typer.Option("--model", help="Only of this model: NAME, VERSION or NAME@VERSION.", show_default=False)
]
AtLeast = Annotated[float, typer.Option("--min-probability", min=0, max=1, help="Only with at least this probability.")]
AtMost = Annotated[float, typer.Option("--max-probability", min=0, max=1, help="Only with at most this probability.")]
Review = Annotated[
    bool | None,
    typer.Option(
        "--needs-review/--sure", help="Only what a person should look at, or only the rest.", show_default=False
    ),
]
Since = Annotated[
    str | None, typer.Option(help="Only classified since a date (2026-11-01) or an age (24h, 7d).", show_default=False)
]
Until = Annotated[str | None, typer.Option(help="Only classified before a date or an age.", show_default=False)]


def _filter(
    run: str | None,
    model: str | None,
    task: str | None,
    label: str | None,
    low: float,
    high: float,
    review: bool | None,
    since: str | None,
    until: str | None,
) -> ResultFilter:
    start, end = options.moment(since, "--since"), options.moment(until, "--until")
    return ResultFilter(
        run_id=run,
        model=model,
        task=task,
        label=label,
        min_probability=low,
        max_probability=high,
        needs_review=review,
        since=iso(start) if start else None,
        until_time=iso(end) if end else None,
    )


def _refuse_for_failures(what: str, wanted: ResultFilter) -> None:
    """A failed image has no task, label or probability to choose it by."""
    unset = (None, None, 0.0, 1.0, None)
    chosen = (wanted.task, wanted.label, wanted.min_probability, wanted.max_probability, wanted.needs_review)
    if what == "failures" and chosen != unset:
        raise UsageError(
            reason="Failures have no task, label or probability; choose them by --run, --model, --since or --until."
        )


@app.command("list")
def list_results(
    store: options.Store = None,
    failures: Annotated[bool, typer.Option("--failures", help="List the images that failed instead.")] = False,
    run: Run = None,
    model: OfModel = None,
    task: Task = None,
    label: Label = None,
    min_probability: AtLeast = 0.0,
    max_probability: AtMost = 1.0,
    needs_review: Review = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest images first.")] = 20,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """List predictions, or failures, the newest images first.

    Example: vehclass results list --task condition --label damaged --min-probability 0.8
    """
    with options.existing_store(options.given(store=store)) as results:
        wanted = _filter(run, model, task, label, min_probability, max_probability, needs_review, since, until)
        what = "failures" if failures else "predictions"
        _refuse_for_failures(what, wanted)
        rows = results.first_results(what, wanted, limit)
        if as_json:
            show.print_json(rows)
            return
        if not rows:
            known = [
                (model.key, task.name, ", ".join(task.labels)) for model in results.models() for task in model.tasks
            ]
            if failures or not known:
                show.say("No image failed like that." if failures else "There are no results in the store yet.")
            else:
                show.say("Nothing in the store is like that. These labels are in it:")
                show.table(None, ("model", "task", "labels"), known)
            return
        if failures:
            show.table(
                None,
                ("name", "stage", "code", "why", "attempts", "when (UTC)"),
                [
                    (row["name"], row["stage"], row["code"], row["message"], row["attempts"], _when(row["failed_at"]))
                    for row in rows
                ],
            )
        else:
            show.table(
                None,
                ("name", "task", "label", "probability", "", "when (UTC)"),
                [
                    (
                        row["name"],
                        row["task"],
                        row["label"],
                        f"{row['probability']:.3f}",
                        "to review" if row["needs_review"] else "",
                        _when(row["classified_at"]),
                    )
                    for row in rows
                ],
                right=("probability",),
            )
        if len(rows) == limit:
            show.note(f"The newest {limit}; see more with --limit, or all with `vehclass results export`.")


def _when(moment: str) -> str:
    """A time to the minute, as a table has room for it."""
    return moment[:16].replace("T", " ")


@app.command("show")
def show_result(
    name: Annotated[str, typer.Argument(help="An image's name in its container.", show_default=False)],
    store: options.Store = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Show all that is known of one image: every probability of every model, or why it failed.

    Example: vehclass results show photos/000017.jpg
    """
    with options.existing_store(options.given(store=store)) as results:
        wanted = ResultFilter(name=name)
        rows = list(results.results("probabilities", wanted))
        tops = list(results.results("predictions", wanted))
        failures = list(results.results("failures", wanted))
        if not (rows or failures):
            raise UsageError(reason=f"Nothing is known of an image called {name}. See `vehclass results list`.")
        if as_json:
            show.print_json({"predictions": tops, "probabilities": rows, "failures": failures})
            return
        facts: dict[str, Any] = (tops or failures)[0]
        show.say(f"{show.plain(name)} of {facts['source']}")
        if tops:
            show.say(f"{facts['width']} x {facts['height']} pixels, sha256 {facts['sha256']}")
            chosen = {(row["model"], row["task"], row["label"]) for row in tops}
            show.table(
                None,
                ("model", "task", "label", "probability", ""),
                [
                    (
                        row["model"],
                        row["task"],
                        row["label"],
                        f"{row['probability']:.4f}",
                        "<" if (row["model"], row["task"], row["label"]) in chosen else "",
                    )
                    for row in rows
                ],
                right=("probability",),
            )
        for row in failures:
            show.say(
                f"{row['model']}: {row['stage']} failed, {row['code']}: {row['message']} (attempts: {row['attempts']})"
            )


@app.command("export")
def export(
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The file to write; standard output without it.", show_default=False),
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="csv, jsonl or parquet. (default: by the file's ending)", show_default=False)
    ] = None,
    what: Annotated[str, typer.Option(help="predictions, probabilities (a row a label) or failures.")] = "predictions",
    store: options.Store = None,
    run: Run = None,
    model: OfModel = None,
    task: Task = None,
    label: Label = None,
    min_probability: AtLeast = 0.0,
    max_probability: AtMost = 1.0,
    needs_review: Review = None,
    since: Since = None,
    until: Until = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Export results as CSV, JSON Lines or Parquet, in bounded memory however many there are.

    In CSV, text that a spreadsheet would run as a formula gets an apostrophe before it.

    Example: vehclass results export --out results.parquet --since 24h
    """
    from vehclass import exports

    if what not in exports.COLUMNS:
        raise UsageError(reason=f"{what!r} cannot be exported; choose one of {', '.join(exports.COLUMNS)} with --what.")
    kind = exports.format_of(out, format or ("jsonl" if as_json and out is None else None))
    with options.existing_store(options.given(store=store)) as results:
        wanted = _filter(run, model, task, label, min_probability, max_probability, needs_review, since, until)
        _refuse_for_failures(what, wanted)
        count = exports.write(results.results(what, wanted), what, kind, out)
        if out is not None:
            if as_json:
                show.print_json({"rows": count, "path": str(out), "format": kind})
            else:
                show.say(f"{count:,} {what} written to {out}.")


@app.command("delete")
def delete(
    store: options.Store = None,
    image: Annotated[
        str | None, typer.Option(help="The image of this name, in every container.", show_default=False)
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(help="Images last looked at before a date (2026-11-01) or an age (90d).", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Delete all that the store holds of an image, or of images last looked at long ago, by whichever model.

    A photo that is still in its container is new again to the next run: delete it there first.

    Example: vehclass results delete --older-than 90d
    """
    before = options.moment(older_than, "--older-than")
    if image is None and before is None:
        raise UsageError(reason="Say what to delete, with --image or --older-than.")
    with options.existing_store(options.given(store=store)) as results:
        what = " and ".join(
            ([f"named {show.plain(image)}"] if image is not None else [])
            + ([f"last looked at before {iso(before)}"] if before else [])
        )
        if not yes and not as_json and not typer.confirm(f"Delete all results of images {what} from {results.url}?"):
            raise typer.Abort
        with show.status(quiet=as_json) as tell:
            deleted = 0
            for count in results.delete(name=image, before=iso(before) if before else None):
                deleted += count
                tell(f"{deleted:,} deleted ...")
        if as_json:
            show.print_json({"deleted": deleted, "store": results.url})
        else:
            show.say(f"{deleted:,} deleted.")
