"""`vehclass status`: is it well? For people, and for monitoring by its exit code."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from vehclass.cli import options, show
from vehclass.errors import ExitCode, UsageError
from vehclass.settings import Settings

if TYPE_CHECKING:
    from vehclass.records import ModelInfo
    from vehclass.stores import Store

RUNS: Final = 1_000  # the latest, that are looked at
SILENT: Final = timedelta(seconds=120)  # without a heartbeat, and a run is not at work any more


def status(
    store: options.Store = None,
    container: Annotated[
        str | None,
        typer.Option(
            "--container", "-c", help="List this, too, and count what waits to be classified.", show_default=False
        ),
    ] = None,
    model: options.Models = None,
    max_age: Annotated[
        str, typer.Option(help="How long ago the last good run may have ended, such as 26h or 20m.")
    ] = "26h",
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Say whether it is well: when each container's last good run ended, whether one is at work, what waits.

    Example: vehclass status --store sqlite:///results.db --max-age 26h

    Exit codes: 0 all is well, 1 a container's last good run is too long ago, or there never was one.
    """
    settings = options.given(model=model[0] if model else None, store=store)
    age = timedelta(seconds=options.seconds(max_age, "--max-age") or 0)
    with options.existing_store(settings) as results:
        runs = results.runs(limit=RUNS)
        works = [_work(group, age) for group in _groups(runs)]
        if container is not None:
            works = _with_waiting(works, _waiting(settings, container, model or [settings.model], results))
        where = results.url
    if as_json:
        show.print_json(works)
    elif works:
        _table(works)
    else:
        show.say(f"No run was ever made into {where}.")
    if not works or not all(one["good"] for one in works):
        raise typer.Exit(ExitCode.FAILED)


def _groups(runs: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The runs, the latest first, by source and by the model's name: a new version takes the place of the old one."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["source"], run["model"].partition("@")[0]), []).append(run)
    return list(groups.values())


def _work(runs: list[dict[str, Any]], age: timedelta) -> dict[str, Any]:
    """What a container's runs with a model say, the latest first."""
    last, present = runs[0], datetime.now(UTC)
    good = next((run for run in runs if run["exit_code"] in (ExitCode.DONE, ExitCode.SOME_IMAGES_FAILED)), None)
    at_work = last["status"] == "running" and present - datetime.fromisoformat(last["heartbeat_at"]) < SILENT
    ended = good["finished_at"] if good else None
    return {
        "source": last["source"],
        "model": last["model"],
        "last_good": ended,
        "last_run": last["run_id"],
        "last_status": "running" if at_work else "died" if last["status"] == "running" else last["status"],
        "last_message": last["message"],
        "running": last["run_id"] if at_work else None,
        "running_on": last["host"] if at_work else None,
        "waiting": None,
        "oldest_waiting": None,
        "good": ended is not None and present - datetime.fromisoformat(ended) <= age,
    }


@dataclass(slots=True)
class _Known:
    """A model of which no more is asked than which it is."""

    info: "ModelInfo"
    batch_size: int = 1

    def classify(self, pixels: Any) -> Any:
        """Nobody asks."""
        raise NotImplementedError


def _waiting(
    settings: Settings, container: str, models: Sequence[str | None], results: "Store"
) -> dict[tuple[str, str], dict[str, Any]]:
    """What is new in a container, by source and the model's name."""
    from vehclass.batch.batches import one_by_one
    from vehclass.batch.pipeline import Hands, Job, Watch, count_new
    from vehclass.imaging import decode
    from vehclass.sources import open_source

    if models == [None]:
        raise UsageError(reason="--container needs to know the model: name it with --model or VEHCLASS_MODEL.")
    source = open_source(container, options.blob_options(settings))
    source.check()
    found = {}
    for one in models:
        info, watch = options.model_folder(replace(settings, model=one)).info, Watch()
        count_new(Job(), Hands(source, one_by_one(decode), (_Known(info),), results), watch)
        oldest = watch.progress.oldest_left()
        found[source.url, info.name] = {
            "model": info.key,
            "waiting": watch.progress.new,
            "oldest_waiting": oldest.isoformat(timespec="seconds") if oldest else None,
        }
    return found


def _with_waiting(works: list[dict[str, Any]], waiting: dict[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """The works that what waits belongs to; one that never was begun is not well."""
    nothing = dict.fromkeys(("last_good", "last_run", "last_message", "running", "running_on"))
    found = []
    for (source, name), told in waiting.items():
        never = {"source": source, **nothing, "last_status": "never run", "good": False}
        of_it = (one for one in works if (one["source"], one["model"].partition("@")[0]) == (source, name))
        found.append({**next(of_it, never), **told})
    return found


def _table(works: list[dict[str, Any]]) -> None:
    show.table(
        None,
        ("container", "model", "last good run", "last run", "now", "waiting", ""),
        [
            (
                one["source"].rstrip("/").rpartition("/")[2],
                one["model"].partition("@")[0],
                one["last_good"] or "never",
                one["last_status"],
                f"at work on {one['running_on']}" if one["running"] else "nobody at work",
                "" if one["waiting"] is None else f"{one['waiting']:,}",
                "well" if one["good"] else "NOT WELL",
            )
            for one in works
        ],
        right=("waiting",),
        whole=("last good run",),
    )
