"""`vehclass classify-batch`: the main job."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vehclass.cli import options, show
from vehclass.errors import Interrupted, StoreNotFound, UsageError
from vehclass.settings import Settings

if TYPE_CHECKING:
    from vehclass.batch.pipeline import Hands, Job, Watch
    from vehclass.batch.runs import Finished
    from vehclass.model.precision import Choice
    from vehclass.stores import Store


@dataclass(frozen=True, slots=True)
class Wired:
    """What a run works with, its store as one that can be read from, too, and what it runs on."""

    hands: "Hands"
    store: "Store"
    device: str
    precision: "Choice"


WORTH_A_PROFILE = 500  # images, from which on the start no longer counts for much
STOP_SECONDS = 19.0  # after a signal; what has not been saved by then stays new for the next run


def classify_batch(
    container: options.Container,
    model: options.Model = None,
    store: options.Store = None,
    prefix: Annotated[
        list[str] | None,
        typer.Option(
            help="Only names that begin so, below the prefix of a container's URL, if it has one; may be repeated, and is then listed side by side.",
            show_default=False,
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(help="Only names like this, such as '*.jpg'; may be repeated.", show_default=False),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Only images modified since a date (2026-11-01) or an age (24h, 7d).", show_default=False),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many new images.", show_default=False)] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try quarantined images again, too.")] = False,
    full: Annotated[
        bool,
        typer.Option("--full", help="Ask the store about every name, also where an earlier run was done with them."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how much is new and how long it would take; write nothing.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a forward pass takes. (default: auto)", show_default=False)
    ] = None,
    runtime: options.Runtime = None,
    precision: options.Precision = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads that decode and classify. (default: one a core)", show_default=False)
    ] = None,
    require_gpu: Annotated[
        bool, typer.Option("--require-gpu", help="Stop with exit code 2 when no GPU can be used.")
    ] = False,
    max_failure_rate: Annotated[
        float | None,
        typer.Option(
            help="Stop with exit code 1 when more than this share fails, from 100 images on. (default: 0.5)",
            show_default=False,
        ),
    ] = None,
    max_ru: Annotated[
        float | None,
        typer.Option(
            "--max-ru", help="Request units a second that the run may take of a Cosmos DB.", show_default=False
        ),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show where the time went, stage by stage; --json has it always.")
    ] = False,
    top_k: Annotated[int, typer.Option(min=1, help="How many labels a task the summary shows.")] = 10,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Classify the new images of a container and write the results to a store.

    New is what this model has no result for, at the content that is there now. A run that was stopped, or
    killed, goes on when the same command is run again.

    Example: vehclass classify-batch --container uploads --model models/sample

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but some images failed, 4 another run is at it,
    5 a service cannot be reached, 130 or 143 stopped by a signal.
    """
    began = time.monotonic()
    settings = options.given(
        model=model,
        store=store,
        batch_size=batch_size,
        runtime=runtime,
        precision=precision,
        threads=threads,
        max_failure_rate=max_failure_rate,
        max_ru=max_ru,
    )
    from vehclass.batch.pipeline import Job, Watch

    job = Job(
        prefixes=_apart(prefix or [""]),
        include=tuple(include or ()),
        since=options.moment(since, "--since"),
        limit=limit,
        retry_failed=retry_failed,
        full=full,
        max_failure_rate=settings.max_failure_rate,
        max_attempts=settings.max_attempts,
        max_bytes=settings.max_bytes,
        lanes=settings.threads or options.cores(),
    )
    with _hands(settings, container, job, require_gpu=require_gpu, writing=not dry_run) as wired:
        hands = wired.hands
        if dry_run:
            _dry_run(job, hands, as_json=as_json)
            return
        from vehclass.batch import runs

        asked = {
            "container": hands.source.url,
            "prefix": job.prefixes,
            "include": job.include,
            "since": since,
            "limit": limit,
        }
        chosen = {"used": wired.precision.name, "why": wired.precision.why}
        record = json.dumps(
            {**asked, "retry_failed": retry_failed, "full": full, **_settings_of_a_run(settings), "precision": chosen}
        )
        watch = Watch()
        with show.watching(quiet=as_json) as tell, _stopped_by_signals(watch, quiet=as_json):
            watch.tell = tell
            finished = runs.run(job, hands, watch, command="classify-batch", settings=record)
        spent = watch.profile.summary(job.lanes, options.cores())
        if as_json:
            show.print_json(_as_document(wired, watch, finished, time.monotonic() - began, spent))
        else:
            _summary(wired, watch, finished, time.monotonic() - began, top_k, spent)
            if profile:
                _profile_table(spent)
    raise typer.Exit(int(finished.exit_code))


def _apart(prefixes: list[str]) -> tuple[str, ...]:
    """The prefixes without those that begin with another, whose names that one has already."""
    kept: list[str] = []
    for prefix in sorted(prefixes):
        if not kept or not prefix.startswith(kept[-1]):
            kept.append(prefix)
    return tuple(kept)


@contextmanager
def _hands(settings: Settings, container: str, job: "Job", *, require_gpu: bool, writing: bool) -> "Iterator[Wired]":
    """Source, model and store, each checked before any work: the source first, since it asks the least."""
    from vehclass import imaging
    from vehclass.batch.pipeline import Hands
    from vehclass.model.classifier import Classifier
    from vehclass.sources import open_source
    from vehclass.stores import open_store

    if require_gpu and settings.runtime == "openvino":
        raise UsageError(reason="--require-gpu goes with --runtime keras or auto: OpenVINO runs on the CPU here.")
    folder = options.model_folder(settings)
    source = open_source(container, options.blob_options(settings))
    source.check()
    try:
        results = open_store(settings.store, create=writing, options=options.store_options(settings))
    except StoreNotFound:
        results = open_store("sqlite:///:memory:", create=True)  # a dry run on nothing: an empty store in memory
    classifier = Classifier.open(
        folder,
        kind=settings.runtime,
        batch_size=settings.batch_size,
        threads=job.lanes,
        require_gpu=require_gpu,
        precision=settings.precision,
    )
    decode = partial(
        imaging.decode, size=folder.info.input_size, formats=settings.image_formats, max_pixels=settings.max_pixels
    )
    try:
        runtime = classifier.runtime
        yield Wired(Hands(source, decode, classifier, results), results, runtime.device, runtime.precision)
    finally:
        results.close()


def _settings_of_a_run(settings: Settings) -> dict[str, object]:
    """What a run's record keeps of the settings: all but secrets and defaults."""
    return {
        str(one["setting"]): one["value"]
        for one in settings.shown()
        if one["origin"] != "default" and one["value"] != "(set)"
    }


@contextmanager
def _stopped_by_signals(watch: "Watch", *, quiet: bool) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run after what is in hand; twice, or when that takes too long, at once.

    Leaving at once is safe: what was saved is saved, and a batch is saved whole or not at all.
    """
    import os
    import threading

    def stop(number: int, frame: FrameType | None) -> None:
        if watch.stop.is_set():
            os._exit(128 + number)
        watch.signal = signal.Signals(number)
        watch.stop.set()
        last = threading.Timer(STOP_SECONDS, os._exit, (128 + number,))
        last.daemon = True
        last.start()
        if not quiet:
            os.write(2, b"\nvehclass: stopping; finishing what is in hand ...\n")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _dry_run(job: "Job", hands: "Hands", *, as_json: bool) -> None:
    from vehclass.batch.pipeline import Watch, count_new, outcomes_of

    watch = Watch()
    with _stopped_by_signals(watch, quiet=as_json):
        first = count_new(job, hands, watch)
        began = time.monotonic()
        tried = sum(len(outcomes) for outcomes in outcomes_of(job, hands, iter(first), watch))
        seconds = time.monotonic() - began
    if watch.stop.is_set():
        raise Interrupted(watch.signal)
    progress = watch.progress
    estimate = progress.new * seconds / tried if tried else 0.0
    if as_json:
        show.print_json(
            {
                "dry_run": True,
                "source": hands.source.url,
                "model": hands.classifier.info.key,
                "store": hands.store.url,
                "listed": progress.listed,
                "new": progress.new,
                "bytes": progress.bytes_new,
                "estimated_seconds": round(estimate, 1),
                "tried": tried,
            }
        )
        return
    show.say(
        f"{progress.new:,} of {progress.listed:,} images are new to {hands.classifier.info.key}: {show.size(progress.bytes_new)}."
    )
    if tried:
        show.say(
            f"That would take about {show.duration(estimate)}, at {tried / seconds:,.0f} images/s as tried on {tried} of them."
        )
    show.say("Nothing was written.")


def _as_document(
    wired: Wired, watch: "Watch", finished: "Finished", seconds: float, profile: dict[str, Any]
) -> dict[str, Any]:
    hands, counts = wired.hands, finished.counts
    return {
        "run_id": finished.run_id,
        "exit_code": int(finished.exit_code),
        "source": hands.source.url,
        "model": hands.classifier.info.key,
        "store": hands.store.url,
        "device": wired.device,
        "precision": {"used": wired.precision.name, "why": wired.precision.why},
        "listed": watch.progress.listed,
        "asked": watch.progress.asked,
        "new": watch.progress.new,
        "classified": counts.classified,
        "failed": counts.failed,
        "quarantined": counts.quarantined,
        "needs_review": counts.needs_review,
        "seconds": round(seconds, 2),
        "profile": profile,
        "store_cost": wired.store.cost(),
        "summary": wired.store.run_summary(finished.run_id),
        "failures": wired.store.failure_codes(finished.run_id),
    }


def _summary(
    wired: Wired, watch: "Watch", finished: "Finished", seconds: float, top_k: int, profile: dict[str, Any]
) -> None:
    hands, counts, progress = wired.hands, finished.counts, watch.progress
    if not counts.done:
        model, source = hands.classifier.info.key, hands.source.url
        if progress.listed:
            show.say(f"Nothing is new: {model} has looked at all {progress.listed:,} images of {source} before.")
        else:
            show.say(
                f"There is nothing to look at: no file in {source} is what --prefix, --include and --since ask for."
            )
        return
    labels = _top_labels(wired.store.run_summary(finished.run_id), top_k)
    if labels:
        _label_table(labels, counts.classified)
    if counts.failed:
        from vehclass.records import ResultFilter

        shown = wired.store.first_results("failures", ResultFilter(run_id=finished.run_id), 10)
        show.table(
            f"{counts.failed:,} image{'s' if counts.failed != 1 else ''} failed",
            ("name", "stage", "code", "why"),
            [(row["name"], row["stage"], row["code"], row["message"]) for row in shown],
        )
        if counts.failed > len(shown):
            more = counts.failed - len(shown)
            show.say(f"... and {more:,} more: vehclass results list --failures --run {finished.run_id}\n")
    show.say(
        f"{counts.classified:,} classified, {counts.failed:,} failed, {counts.needs_review:,} to review, "
        f"of {progress.listed:,} listed."
    )
    rate = counts.done / seconds
    show.say(f"{show.duration(seconds)} from start to end, {rate:,.0f} images/s, on {wired.device}.")
    if counts.done >= WORTH_A_PROFILE:
        lanes = {name: show.percent(share) for name, share in profile["lanes"].items()}
        show.say(
            f"Cores {show.percent(profile['cores_busy'])} busy; of the lanes' time {lanes['decode']} went into decoding, "
            f"{lanes['forward']} into the network, {lanes['waiting']} into waiting for photos or the store."
        )
    cost = wired.store.cost()
    if cost:
        show.say(
            f"{cost['request_units']:,.0f} request units: {cost['writes']:,} writes at {cost['request_units_per_write']:.2f} each, "
            f"{cost['reads']:,} reads for {cost['request_units_for_reads']:,.0f}; throttled {cost['throttled']:,} times."
        )
    show.say(f"Run {finished.run_id} of {hands.classifier.info.key} on {hands.source.url}, saved to {hands.store.url}.")


def _profile_table(profile: dict[str, Any]) -> None:
    show.table(
        "Seconds of the threads at each stage",
        ("stage", "seconds", "times", "ms each"),
        [
            (
                name,
                f"{spent['seconds']:,.2f}",
                f"{spent['times']:,}",
                f"{1000 * spent['seconds'] / max(1, spent['times']):,.2f}",
            )
            for name, spent in profile["stages"].items()
        ],
        right=("seconds", "times", "ms each"),
    )


def _label_table(labels: list[dict[str, Any]], classified: int) -> None:
    show.table(
        None,
        ("task", "label", "images", "share", "mean probability", "to review"),
        [
            (
                row["task"],
                row["label"],
                f"{row['images']:,}",
                show.percent(row["images"] / classified),
                f"{row['mean_probability']:.3f}",
                f"{row['needs_review']:,}",
            )
            for row in labels
        ],
        right=("images", "share", "mean probability", "to review"),
    )


def _top_labels(rows: list[dict[str, Any]], top_k: int) -> list[dict[str, Any]]:
    """The most frequent labels of each task, the tasks in their order."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(row)
    return [row for group in by_task.values() for row in sorted(group, key=lambda row: -row["images"])[:top_k]]
