"""`vehclass schedule`: the main job by itself, at its times, for years."""

import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.core import TyperGroup

from vehclass.cli import logs, options, show, telling, without_secrets
from vehclass.errors import ExitCode, ServiceUnreachable, UsageError
from vehclass.notices import Notice
from vehclass.settings import Settings, schedules

if TYPE_CHECKING:
    from vehclass.schedule.night import Job, Night
    from vehclass.stores import Store

WORDS: Final = "vehclass.words"  # what stands after the two hyphens
SHOWN_TIMES: Final = 5  # of each schedule, by --list
OWN: Final = ("name", "at", "cron", "every", "timezone", "grace")  # the rest of a [[schedule]] are options of the job


class _Group(TyperGroup):
    """Commands, or options of another command after two hyphens."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # of the click within typer
        if "--" in args:
            hyphens = args.index("--")
            ctx.meta[WORDS] = args[hyphens + 1 :]
            args = args[:hyphens]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Group,
    invoke_without_command=True,
    subcommand_metavar="[-- OPTIONS OF classify-batch]",
)


@app.callback()
def schedule(
    context: typer.Context,
    at: Annotated[
        list[str] | None, typer.Option(help="A clock time, such as 23:00; may be repeated.", show_default=False)
    ] = None,
    cron: Annotated[
        list[str] | None,
        typer.Option(help="A cron expression of five fields, such as '0 23 * * 1-5'.", show_default=False),
    ] = None,
    every: Annotated[
        str | None, typer.Option(help="A steady pace, such as 15m or 6h, counted in UTC.", show_default=False)
    ] = None,
    timezone: Annotated[
        str | None,
        typer.Option(help="Whose clock, such as Europe/London. (default: this machine's)", show_default=False),
    ] = None,
    grace: Annotated[
        str, typer.Option(help="How late it may still begin, and how long it is tried again, such as 90m.")
    ] = "4h",
    name: Annotated[
        str | None,
        typer.Option(
            help="The schedule's name in its store. (default: the container's) Without a time: only this one of vehclass.toml.",
            show_default=False,
        ),
    ] = None,
    run_now: Annotated[bool, typer.Option("--run-now", help="Run at the start, too.")] = False,
    list_times: Annotated[
        bool, typer.Option("--list", help="Show the next times, here and in UTC, and do nothing else.")
    ] = False,
    log_format: options.LogFormat = logs.Format.auto,
    as_json: Annotated[bool, typer.Option("--json", help="With --list: print one JSON document for machines.")] = False,
    verbose: options.Verbose = False,
) -> None:
    """Classify what is new by itself, every night, until it is stopped.

    Give a time and, after two hyphens, the options of `vehclass classify-batch`; or nothing, and every `[[schedule]]`
    of vehclass.toml is kept. Each run is a process of its own. Of several schedulers with one store, one runs.

    Example: vehclass schedule --at 23:00 --timezone Europe/London -- --container uploads --model models/sample
    """
    if context.invoked_subcommand:
        return
    logs.set_up(log_format, verbose=verbose)
    words = context.meta.get(WORDS)
    given = {"at": at, "cron": cron, "every": every, "timezone": timezone, "grace": grace, "name": name}
    jobs = _jobs(given, words)
    if list_times:
        _list(jobs, as_json=as_json)
        return
    if as_json:
        raise UsageError(reason="--json goes with --list; a schedule writes JSON lines with --log-format json.")
    for job in jobs:
        _check(job.words)
    _keep(jobs, log_format, run_now=run_now)


@app.command("status")
def status(
    store: options.Store = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Show the schedules of a store: when each is next due, how it ended last, whether its scheduler is alive.

    Example: vehclass schedule status --store sqlite:///results.db

    Exit codes: 0 all is well, 1 a scheduler is silent, or a last run did not end well.
    """
    with options.existing_store(options.given(store=store)) as results:
        rows = [_state(row) for row in results.schedules()]
        where = results.url
    if as_json:
        show.print_json(rows)
    elif rows:
        show.table(
            None,
            ("schedule", "times", "next", "last", "ended", "scheduler"),
            [
                (row["name"], row["times"], row["next_due_at"], row["ended_due_at"], _ending(row), _alive(row))
                for row in rows
            ],
            whole=("schedule",),
        )
    else:
        show.say(f"No schedule was ever kept with {where}. Start one: vehclass schedule --at 23:00 -- --container ...")
    if any(not row["alive"] or not row["good"] for row in rows):
        raise typer.Exit(ExitCode.FAILED)


def _state(row: dict[str, Any]) -> dict[str, Any]:
    """A schedule's row, with what follows from it."""
    from vehclass.schedule.keeper import SILENT_SECONDS

    last = json.loads(row["last"]) if row["last"] else None
    good = last is None or last["exit_code"] in (ExitCode.DONE, ExitCode.SOME_IMAGES_FAILED)
    return {**row, "last": last, "alive": row["silent_seconds"] < SILENT_SECONDS, "good": good}


def _ending(row: dict[str, Any]) -> str:
    if row["last"] is None:
        return ""
    done = sum(run.get("classified", 0) + run.get("failed", 0) for run in row["last"]["runs"])
    return f"{row['last']['message']}" if not row["good"] else f"well, {done:,} images"


def _alive(row: dict[str, Any]) -> str:
    host = str(row["holder"]).split(" ")[0]
    return f"alive on {host}" if row["alive"] else f"silent for {show.duration(row['silent_seconds'])}, was on {host}"


def _jobs(given: dict[str, Any], words: list[str] | None) -> "list[Job]":
    """The jobs of the command line, or those of vehclass.toml."""
    timed = any(given[one] for one in ("at", "cron", "every"))
    if timed and not words:
        raise UsageError(
            reason="Say what to run: two hyphens, then the options of `vehclass classify-batch`, such as -- --container uploads --model models/sample."
        )
    if words and not timed:
        raise UsageError(reason="Say when with one of --at 23:00, --cron '0 23 * * *' and --every 15m.")
    if words:
        return [_job(given, words)]
    found = [
        _job(
            {"grace": given["grace"], **{one: table[one] for one in OWN if one in table}},
            _as_words({one: value for one, value in table.items() if one not in OWN}),
        )
        for table in schedules()
        if given["name"] in (None, table.get("name"))
    ]
    if not found:
        raise UsageError(
            reason="There is no [[schedule]] in vehclass.toml"
            + (f" named {given['name']!r}" if given["name"] else "")
            + ". Write one, or say when and what: vehclass schedule --at 23:00 -- --container uploads --model models/sample"
        )
    twice = {job.name for job in found if [one.name for one in found].count(job.name) > 1}
    if twice:
        raise UsageError(
            reason=f"Two schedules in vehclass.toml are named {min(twice)!r}; give each a name of its own."
        )
    return found


def _job(given: dict[str, Any], words: list[str]) -> "Job":
    """A job of what was given for its times, and the words of what it runs."""
    from vehclass.schedule.night import Job
    from vehclass.schedule.times import parse

    params = _parsed(words)
    every, grace = options.seconds(given.get("every"), "--every"), options.seconds(given["grace"], "--grace")
    times = parse(_several(given.get("at")), _several(given.get("cron")), every, given.get("timezone"))
    named = given.get("name") or params["container"].split("?")[0].rstrip("/").rpartition("/")[2] or "schedule"
    if len(named) > 200 or not named.isprintable():
        raise UsageError(reason=f"--name is {named[:50]!r}...; at most 200 printable characters are.")
    settings = _settings(params)
    kept = tuple(word for word in words if word != "--json")
    command = show.plain(without_secrets(" ".join(kept)))
    return Job(named, times, kept, command, timedelta(seconds=grace or 0), partial(_opened, settings))


def _several(value: str | Sequence[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _as_words(table: dict[str, Any]) -> list[str]:
    """The entries of a [[schedule]] as options of the job."""
    words: list[str] = []
    for name, value in table.items():
        option = f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            words += [option] if one is True else [] if one is False else [option, str(one)]
    return words


def _parsed(words: list[str]) -> dict[str, Any]:
    """The options that `classify-batch` would understand these words as; raises UsageError where it would not."""
    from vehclass.cli.app import app as everything

    command = typer.main.get_command(everything).commands["classify-batch"]  # type: ignore[attr-defined]  # a group
    try:
        params: dict[str, Any] = command.make_context("classify-batch", list(words)).params
    except Exception as error:
        if not hasattr(error, "format_message"):  # of typer's parser, whose classes are not ours to name
            raise
        raise UsageError(reason=f"What is to be run is not understood: {error.format_message()}") from error
    if params["dry_run"]:
        raise UsageError(reason="--dry-run does nothing, so there is nothing to schedule.")
    return params


def _settings(params: dict[str, Any]) -> Settings:
    names = (
        "store",
        "batch_size",
        "runtime",
        "precision",
        "threads",
        "max_failure_rate",
        "image_timeout",
        "max_ru",
        "notify",
    )
    models = params["model"] or [None]
    return options.given(model=models[0], **{name: params[name] for name in names})


@contextmanager
def _opened(settings: Settings) -> "Iterator[Store]":
    """The store of a job, made where it is not there yet."""
    from vehclass.stores import open_store

    found = open_store(settings.store, create=True, options=options.store_options(settings))
    try:
        yield found
    finally:
        found.close()


def _check(words: Sequence[str]) -> None:
    """Stops before any waiting where tonight's run would not begin; a service that is away now may be back by then."""
    from vehclass.sources import open_source

    params = _parsed(list(words))
    settings = _settings(params)
    try:
        for model in params["model"] or [settings.model]:
            options.model_folder(replace(settings, model=model))
        open_source(params["container"], options.blob_options(settings)).check()
        with _opened(settings):
            pass
    except ServiceUnreachable as error:
        show.note(f"{error} The schedule is kept all the same.")


def _list(jobs: "list[Job]", *, as_json: bool) -> None:
    rows = []
    for job in jobs:
        due: datetime | None = datetime.now(UTC)
        for _ in range(SHOWN_TIMES):
            due = job.times.after(due) if due else None
            if due:
                rows.append((job, due))
    if as_json:
        show.print_json(
            [
                {
                    "schedule": job.name,
                    "times": str(job.times),
                    "command": job.command,
                    "local": due.astimezone(job.times.zone).isoformat(),
                    "utc": due.isoformat().replace("+00:00", "Z"),
                }
                for job, due in rows
            ]
        )
        return
    show.table(
        None,
        ("schedule", "times", "there", "UTC"),
        [
            (job.name, job.times, f"{due.astimezone(job.times.zone):%a %Y-%m-%d %H:%M %z}", f"{due:%Y-%m-%d %H:%M}")
            for job, due in rows
        ],
        whole=("there", "UTC"),
    )


def _keep(jobs: "list[Job]", log_format: logs.Format, *, run_now: bool) -> None:
    from vehclass.schedule.child import run_child
    from vehclass.schedule.keeper import Keeper

    for job in jobs:
        due = job.times.after(datetime.now(UTC))
        when = f"{due.astimezone(job.times.zone):%a %Y-%m-%d %H:%M %z}, {due:%H:%M} UTC" if due else "never"
        show.note(f"{job.name}: {job.times}, next on {when}: classify-batch {job.command}")
    watched = threading.Event()
    # How a run ended is told here, since one that crashed can no longer do so.
    child = partial(run_child, more=("--log-format", log_format.value, "--notify", "never"))
    settings = {job.name: _settings(_parsed(list(job.words))) for job in jobs}
    options_of = {name: telling.notice_options(one) for name, one in settings.items()}

    def tell(night: "Night") -> None:
        telling.tell(settings[night.job], options_of[night.job], _notice(night))

    with _stopped_by_signals(watched) as number:
        Keeper(jobs, child, tell, watched).keep(run_now=run_now)
    if number():
        show.note("The schedule has ended; what was finished is saved.")
        raise typer.Exit(128 + number())


def _notice(night: "Night") -> Notice:
    """Says in the log how a night ended; returns what is to be told of it."""
    import logging

    record, ended = night.as_record(), night.ended
    if ended.code in telling.GOOD:
        runs = ended.document.get("runs") or [ended.document]
        notice = telling.success(night.job, runs, schedule=night.job, night=record)
    else:
        notice = telling.failure(night.job, ended.said, ended.code, schedule=night.job, night=record)
    done = sum(run.get("classified", 0) for run in record["runs"])
    failed = sum(run.get("failed", 0) for run in record["runs"])
    text = f"ended well: {done:,} classified, {failed:,} failed" if notice.good else f"ended badly: {ended.said}"
    logging.getLogger(__name__).log(
        logging.INFO if notice.good else logging.ERROR, "%s", text, extra={"schedule": night.job, "night": record}
    )
    return notice


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[Callable[[], int]]:
    """Ctrl-C and SIGTERM end the schedule after the run that is at it; yields which signal that was, 0 for none."""
    seen: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: seen[0] if seen else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
