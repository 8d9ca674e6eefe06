"""Shows labelled photos to a finished model: which of them are fair to ask, what it says of each, and how fast."""

import hashlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vehclass.errors import ImageError, UsageError
from vehclass.imaging import Pixels
from vehclass.model.classifier import Classifier
from vehclass.model.runtime import Logits, Runtime
from vehclass.records import Task
from vehclass.training.dataset import MISSING, Catalogue, Sample
from vehclass.training.report import Examined
from vehclass.training.splits import DIGEST_DIGITS, LEARNT_FROM, SPLITS_FILE

MOST_NAMED: Final = 5
REPEATS: Final = (4, 50)  # least and most forward passes that a speed is measured with, after one to warm up
LONGEST_SECONDS: Final = 1.0

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Unusable:
    """A photo that the model could not be asked about, and why."""

    path: Path
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Selection:
    """The samples to measure on, how many others were left out by split, and what a person should know of that."""

    samples: tuple[Sample, ...]
    left_out: dict[str, int]
    notes: tuple[str, ...]


def select(
    catalogue: Catalogue,
    split: str,
    records: Sequence[dict[str, str] | None],
    *,
    threads: int = 1,
    progress: Progress = lambda done, total: None,
) -> Selection:
    """The samples to measure on: `split` is auto, train, val, test or all; `records` are those of the models.

    auto leaves out what any of the models learnt from. A split by name is that of the first model's record; where
    a model has none, the data's own folders or column decide. Raises UsageError where nothing is left.
    """
    digests = _digests([sample.path for sample in catalogue.samples], threads, progress) if any(records) else {}
    notes: list[str] = []
    if any(record is None for record in records) and split in ("auto", "all"):
        if split == "auto" and any(sample.split for sample in catalogue.samples):
            notes.append("A model has no record of what it learnt from; train and val of the data were left out.")
        else:
            notes.append(
                "A model has no record of what it learnt from. Where photos of its training are among these, the "
                "figures are too good."
            )

    def splits_of(sample: Sample) -> list[str | None]:
        digest = digests.get(sample.path)
        return [sample.split if record is None else record.get(digest or "") for record in records]

    chosen, left_out, learnt = [], Counter[str](), 0
    for sample in catalogue.samples:
        known = splits_of(sample)
        seen = next((one for one in known if one in LEARNT_FROM), None)
        wanted = split == "all" or (seen is None if split == "auto" else known[0] == split)
        if wanted:
            chosen.append(sample)
            learnt += seen is not None
        else:
            left_out[(seen if split == "auto" else known[0]) or "in no split"] += 1
    if learnt and split != "auto":
        notes.append(f"{learnt:,} of the photos are ones that a model learnt from: the figures are too good.")
    if not chosen:
        raise UsageError(reason=_nothing_left(split, records, catalogue))
    return Selection(tuple(chosen), dict(left_out), tuple(notes))


def _nothing_left(split: str, records: Sequence[dict[str, str] | None], catalogue: Catalogue) -> str:
    if split == "auto":
        return "Every photo in the data is one that the model learnt from. Name other photos, or add --split all."
    if records[0] is None and not any(sample.split for sample in catalogue.samples):
        return (
            f"The model has no {SPLITS_FILE}, and the data do not say which photos are {split}. "
            "Leave --split out, or use --split all."
        )
    return f"None of the photos belong to the split {split!r}."


def targets_of(samples: Sequence[Sample], tasks: Sequence[Task]) -> NDArray[np.int32]:
    """The samples' labels as int32 [n, tasks], -1 where unlabelled.

    Raises UsageError naming labels that the tasks lack.
    """
    targets = np.full((len(samples), len(tasks)), MISSING, np.int32)
    unknown: Counter[tuple[str, str]] = Counter()
    for column, task in enumerate(tasks):
        position = {label: number for number, label in enumerate(task.labels)}
        for row, sample in enumerate(samples):
            label = sample.labels.get(task.name)
            if label in position:
                targets[row, column] = position[label]
            elif label is not None:
                unknown[task.name, label] += 1
    if unknown:
        named = [f"{task} {label!r} ({count:,})" for (task, label), count in unknown.most_common(MOST_NAMED)]
        more = f" and {len(unknown) - MOST_NAMED:,} more" if len(unknown) > MOST_NAMED else ""
        raise UsageError(
            reason=f"The data have labels that the model does not know: {', '.join(named)}{more}. Leave these photos "
            "out or rename their labels; `vehclass model show` lists what it knows."
        )
    return targets


def examine(
    classifier: Classifier,
    samples: Sequence[Sample],
    open_photo: Callable[[Path], Pixels],
    *,
    threads: int = 1,
    root: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[Examined, tuple[Unusable, ...]]:
    """What a model says of the samples, and those that it could not be asked about.

    `open_photo` gives uint8 [height, width, 3] of the model's input size, or raises ImageError or OSError. Photos
    are decoded and classified batch by batch, a batch a thread: memory does not grow with their number but for
    the logits. Raises UsageError for unknown labels, or where no photo can be used.
    """
    targets = targets_of(samples, classifier.info.tasks)
    step = classifier.batch_size

    def batch(at: int) -> list[tuple[int, Logits | Unusable]]:
        rows: list[int] = []
        photos: list[Pixels] = []
        found: list[tuple[int, Logits | Unusable]] = []
        for row in range(at, min(at + step, len(samples))):
            try:
                photos.append(open_photo(samples[row].path))
                rows.append(row)
            except ImageError as error:
                found.append((row, Unusable(samples[row].path, error.code, str(error))))
            except OSError as error:
                found.append((row, Unusable(samples[row].path, "unreadable", error.strerror or str(error))))
        answers: Iterable[Any] = classifier.runtime.logits(np.stack(photos)) if photos else ()
        for row, answer in zip(rows, answers, strict=True):
            broken = Unusable(samples[row].path, "not_finite", "The network's answer is not a number.")
            found.append((row, answer if np.isfinite(answer).all() else broken))
        return found

    kept: dict[int, Logits] = {}
    unusable: list[Unusable] = []
    pool = ThreadPoolExecutor(threads)
    try:
        for number, found in enumerate(pool.map(batch, range(0, len(samples), step)), 1):
            for row, answer in found:
                if isinstance(answer, Unusable):
                    unusable.append(answer)
                else:
                    kept[row] = answer
            progress(min(number * step, len(samples)), len(samples))
    finally:
        pool.shutdown(cancel_futures=True)
    if not kept:
        raise UsageError(reason=f"None of the {len(samples):,} photos can be used: {unusable[0].message}")
    rows = sorted(kept)
    paths = tuple(samples[row].path for row in rows)
    logits = np.stack([kept[row] for row in rows])
    info = classifier.info
    return Examined(
        paths, logits, targets[rows], info.tasks, info.novelty_limit, lambda row: open_photo(paths[row]), root
    ), tuple(unusable)


def latency(alone: Runtime, batches: Runtime, input_size: tuple[int, int], threads: int) -> dict[str, Any]:
    """The speed of the forward pass, without decoding: median ms of one image, images/s in full batches.

    `alone` is a runtime with a batch of one, `batches` the one that works, called by `threads` at once as it is in
    a batch. The picture is noise, which takes a network as long as any other.
    """
    width, height = input_size
    noise = np.random.default_rng(0).integers(0, 256, (batches.batch_size, height, width, 3), np.uint8)
    single = _seconds(lambda: alone.logits(noise[:1]))
    with ThreadPoolExecutor(threads) as pool:
        together = _seconds(lambda: list(pool.map(batches.logits, [noise] * threads)))
    return {
        "device": batches.device,
        "ms_one_image": round(1000 * statistics.median(single), 2),
        "images_per_second": round(threads * len(noise) / statistics.median(together), 1),
        "batch_size": batches.batch_size,
    }


def _seconds(work: Callable[[], object]) -> list[float]:
    """How long a piece of work takes, time after time; the first time, which sets things up, does not count."""
    work()
    taken: list[float] = []
    least, most = REPEATS
    while len(taken) < least or (len(taken) < most and sum(taken) < LONGEST_SECONDS):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return taken


def _digests(paths: Sequence[Path], threads: int, progress: Progress) -> Mapping[Path, str]:
    """The first digits of the sha256 of each file that can be read."""

    def digest(path: Path) -> str | None:
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_DIGITS]
        except OSError:
            return None

    found = {}
    pool = ThreadPoolExecutor(threads)
    try:
        for number, (path, one) in enumerate(zip(paths, pool.map(digest, paths), strict=True), 1):
            if one is not None:
                found[path] = one
            progress(number, len(paths))
    finally:
        pool.shutdown(cancel_futures=True)
    return found
