"""`vehclass classify-batch`: the main job."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Final

import typer

from vehclass.cli import logs, options, show, summary, telling
from vehclass.errors import Interrupted, StoreNotFound, UsageError
from vehclass.settings import Settings

if TYPE_CHECKING:
    from vehclass.batch.pipeline import Job, Watch


FEW_LANES = 2  # threads of one process; more would wait for Python's lock, so each has a process to decode in
STOP_SECONDS = 19.0  # after a signal; what has not been saved by then stays new for the next run
# Parameters of glibc's malloc.h: what is freed goes back to the system where more than so much is free, or at once where it was larger.
M_TRIM_THRESHOLD: Final = (-1, 256 * 2**20)
M_MMAP_THRESHOLD: Final = (-3, 32 * 2**20)


def classify_batch(
    container: options.Container,
    model: options.Models = None,
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
        int | None,
        typer.Option(
            help="Lanes that decode and classify; more than two have a process each to decode in. (default: one a core)",
            show_default=False,
        ),
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
    image_timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds that an image may take to be decoded before it is quarantined. (default: 120)",
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
    notify: options.Notify = None,
    metrics_file: Annotated[
        str | None,
        typer.Option(
            help="Write the figures for Prometheus here, such as /var/lib/node_exporter/vehclass.prom.",
            show_default=False,
        ),
    ] = None,
    log_format: options.LogFormat = logs.Format.auto,
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
    logs.set_up(log_format, verbose=verbose)
    settings = options.given(
        model=model[0] if model else None,
        store=store,
        batch_size=batch_size,
        runtime=runtime,
        precision=precision,
        threads=threads,
        max_failure_rate=max_failure_rate,
        image_timeout=image_timeout,
        max_ru=max_ru,
        notify=notify,
        metrics_file=metrics_file,
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
    more = model[1:] if model else []
    if dry_run:
        with _hands(settings, container, job, require_gpu=require_gpu, writing=False, more=more) as wired:
            _dry_run(job, wired, as_json=as_json)
        return
    from vehclass.batch import runs
    from vehclass.batch.profile import Profile

    with (
        telling.told(settings, container) as ending,
        _hands(settings, container, job, require_gpu=require_gpu, writing=True, more=more) as wired,
    ):
        asked = {
            "container": wired.hands.source.url,
            "prefix": job.prefixes,
            "include": job.include,
            "since": since,
            "limit": limit,
        }
        flags = {"retry_failed": retry_failed, "full": full, **_settings_of_a_run(settings)}
        flags["precision"] = [summary.choice(runtime) for runtime in wired.runtimes]
        watch = ending.watch = Watch(profile=Profile(job.lanes, options.cores(), wired.apart.cpu_seconds))
        with (
            show.watching(quiet=as_json) as tell,
            _stopped_by_signals(watch, quiet=as_json),
            wired.hangs.watched(_begin_anew),
        ):
            watch.tell = tell
            watch.begun = lambda run_ids: logs.bind(run=" ".join(run_ids))
            ended = runs.run(job, wired.hands, watch, command="classify-batch", settings=json.dumps({**asked, **flags}))
        spent, seconds = watch.profile.summary(), time.monotonic() - began
        documents = [summary.as_document(wired, watch, one, number) for number, one in enumerate(ended)]
        ending.runs.extend(documents)
        if as_json:
            whole = {"seconds": round(seconds, 2), "profile": spent, "store_cost": wired.store.cost()}
            show.print_json({**documents[0], **whole} if len(documents) == 1 else {"runs": documents, **whole})
        else:
            summary.show_summary(wired, watch, documents, seconds, top_k, spent)
            if profile:
                summary.show_profile(spent)
    raise typer.Exit(max(int(one.exit_code) for one in ended))


def _apart(prefixes: list[str]) -> tuple[str, ...]:
    """The prefixes without those that begin with another, whose names that one has already."""
    kept: list[str] = []
    for prefix in sorted(prefixes):
        if not kept or not prefix.startswith(kept[-1]):
            kept.append(prefix)
    return tuple(kept)


@contextmanager
def _hands(
    settings: Settings, container: str, job: "Job", *, require_gpu: bool, writing: bool, more: list[str]
) -> "Iterator[summary.Wired]":
    """Source, models (those of `more` beside the settings' own) and store, each checked before any work: the source first, since it asks the least."""
    from vehclass import imaging
    from vehclass.batch.batches import one_by_one
    from vehclass.batch.hangs import Hangs
    from vehclass.batch.pipeline import Hands
    from vehclass.imaging_apart import Apart
    from vehclass.model.classifier import Classifier
    from vehclass.sources import open_source
    from vehclass.stores import open_store

    if require_gpu and settings.runtime == "openvino":
        raise UsageError(reason="--require-gpu goes with --runtime keras or auto: OpenVINO runs on the CPU here.")
    folders = [options.model_folder(replace(settings, model=one)) for one in (settings.model, *more)]
    if len({folder.info.version for folder in folders}) < len(folders):
        raise UsageError(reason="--model names one model twice.")
    source = open_source(container, options.blob_options(settings))
    source.check()
    try:
        results = open_store(settings.store, create=writing, options=options.store_options(settings))
    except StoreNotFound:
        results = open_store("sqlite:///:memory:", create=True)  # a dry run on nothing: an empty store in memory
    classifiers = tuple(
        Classifier.open(
            folder,
            kind=settings.runtime,
            batch_size=settings.batch_size,
            threads=job.lanes,
            require_gpu=require_gpu,
            precision=settings.precision,
        )
        for folder in folders
    )
    keep_freed_memory()
    formats, most = settings.image_formats, settings.max_pixels
    hangs = Hangs(partial(imaging.decode, formats=formats, max_pixels=most), settings.image_timeout)
    apart = Apart(formats, most, settings.image_timeout)
    try:
        runtimes = tuple(classifier.runtime for classifier in classifiers)
        if job.lanes <= FEW_LANES:
            hands = Hands(source, one_by_one(hangs.decode), classifiers, results, apart.decode)
        else:
            hands = Hands(source, apart.decode, classifiers, results)
        yield summary.Wired(hands, results, runtimes, hangs, apart)
    finally:
        apart.close()
        results.close()


def keep_freed_memory() -> None:
    """Has the C library keep for the next photos what the last ones have freed, where it is glibc; others do as they like.

    Pages that go back to the system and come again, empty, took 2.5 % of the time with photos of 12 megapixels.
    """
    import ctypes

    with suppress(AttributeError, OSError, TypeError):  # no such function, or no such library
        for parameter, value in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            ctypes.CDLL(None).mallopt(parameter, value)


def _begin_anew() -> None:
    """Replaces this process by the same command, since an image keeps a thread busy that cannot be stopped.

    The new one finds a lease that was never given back, by which it knows to decode apart. What was saved is saved.
    """
    import os
    import sys

    show.note(
        "an image takes longer than --image-timeout allows; beginning anew, with each decoded in a process of its own"
    )
    os.execv(sys.executable, [sys.executable, "-P", "-m", "vehclass", *sys.argv[1:]])  # noqa: S606  (no shell wanted)


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

    lines = logs.as_json()

    def stop(number: int, frame: FrameType | None) -> None:
        if watch.stop.is_set():
            os._exit(128 + number)
        watch.signal = signal.Signals(number)
        watch.stop.set()
        last = threading.Timer(STOP_SECONDS, os._exit, (128 + number,))
        last.daemon = True
        last.start()
        if not quiet and not lines:
            os.write(2, b"\nvehclass: stopping; finishing what is in hand ...\n")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _dry_run(job: "Job", wired: summary.Wired, *, as_json: bool) -> None:
    from vehclass.batch.pipeline import Watch, count_new, outcomes_of

    hands, watch = wired.hands, Watch()
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
        new = [progress.new_to.get(number, 0) for number in range(len(hands.models))]
        models = [model.key for model in hands.models]
        one = len(models) == 1
        show.print_json(
            {
                "dry_run": True,
                "source": hands.source.url,
                "model": models[0] if one else models,
                "store": hands.store.url,
                "listed": progress.listed,
                "asked": progress.asked,
                "new": new[0] if one else new,
                "bytes": progress.bytes_new,
                "estimated_seconds": round(estimate, 1),
                "tried": tried,
            }
        )
        return
    for number, model in enumerate(hands.models):
        new_to = progress.new_to.get(number, 0)
        show.say(f"{new_to:,} of {progress.listed:,} images are new to {model.key}.")
    if tried:
        show.say(
            f"They are {show.size(progress.bytes_new)}, and would take about {show.duration(estimate)}, at "
            f"{len(first) / seconds:,.0f} images/s as tried on {len(first)} of them."
        )
    show.say("Nothing was written.")
