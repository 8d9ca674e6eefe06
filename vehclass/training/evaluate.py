"""Turns a network's answers to labelled photos into figures: how often it is right, how sure, and how far to trust that.

Every figure is of answers as `classify-batch` gives them: calibrated, and marked needs_review by the same rules.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vehclass.imaging import Pixels
from vehclass.model.classifier import probabilities
from vehclass.model.runtime import Logits
from vehclass.records import Task
from vehclass.training.dataset import MISSING
from vehclass.training.intervals import resample, tally

TOP_K: Final = (2, 3, 5)
MOST_PAIRS: Final = 50
BINS: Final = 15
PHOTOS_PER_BIN: Final = 10  # with fewer the error of a bin is chance alone, and all chance counts as miscalibration
DIGITS: Final = 4


@dataclass(frozen=True, slots=True)
class Judged:
    """Answers to one task beside the truth; arrays of [m] labelled photos, `shares` of [m, labels]."""

    shares: NDArray[np.float64]
    truth: NDArray[np.int32]
    guesses: NDArray[np.int64]
    tops: NDArray[np.float64]
    right: NDArray[np.bool_]
    sure: NDArray[np.bool_]


def all_logits(run: Callable[[Pixels], Logits], pixels: Pixels, rows: NDArray[np.int64], batch: int) -> Logits:
    """The logits of the chosen rows of `pixels`, batch by batch."""
    return np.concatenate([run(pixels[rows[at : at + batch]]) for at in range(0, len(rows), batch)])


def per_task(
    logits: Logits, targets: NDArray[np.int32], tasks: tuple[Task, ...]
) -> Iterator[tuple[Task, Logits, NDArray[np.int32]]]:
    """Each task with its own logits [m, labels] and targets [m], of the labelled rows only."""
    start = 0
    for column, task in enumerate(tasks):
        stop = start + len(task.labels)
        labelled = targets[:, column] != MISSING
        yield task, logits[labelled, start:stop], targets[labelled, column]
        start = stop


def judge(
    logits: Logits, targets: NDArray[np.int32], tasks: tuple[Task, ...], novelty_limit: float | None = None
) -> Iterator[tuple[Task, Judged]]:
    """Each task with its answers to the labelled photos, sure or not by the rules of `classifier.answers`.

    `logits` is [n, labels of all tasks], plus the novelty column when there is a limit; `targets` [n, tasks].
    """
    strange = logits[:, -1] > novelty_limit if novelty_limit is not None else np.zeros(len(logits), bool)
    for column, (task, own, truth) in enumerate(per_task(logits, targets, tasks)):
        shares = probabilities(own, task.temperature)
        guesses, tops = shares.argmax(axis=1), shares.max(axis=1)
        sure = (tops >= np.array(task.thresholds)[guesses]) & ~strange[targets[:, column] != MISSING]
        yield task, Judged(shares, truth, guesses, tops, guesses == truth, sure)


def measure(
    logits: Logits,
    targets: NDArray[np.int32],
    tasks: tuple[Task, ...],
    novelty_limit: float | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """By task, ready for JSON: accuracy, top-k, labels, confusion, calibration, and 95 % intervals.

    `logits` float32 [n, labels of all tasks (+ 1 novelty column with a `novelty_limit`)], `targets` int32 [n, tasks]
    with -1 where unlabelled. Shares are of 1, `nll` is in nats; what cannot be said without photos is None.
    `confusion` has true labels as rows and answers as columns, both in the task's order. `coverage` is the share of
    answers that are not needs_review, `precision_when_sure` the share of right ones among those. Intervals: see
    `intervals.resample`. `macro_f1` is the mean of F1 over the labels that the photos have.

    `ece` is the expected calibration error of the top label (Guo et al., 'On calibration of modern neural networks',
    2017) over 15 bins of equal mass (Nixon et al., 'Measuring calibration in deep learning', 2019), fewer where a
    bin would have less than ten photos; photos of one probability share a bin. `*_uncalibrated`: at temperature 1.
    """
    metrics: dict[str, dict[str, Any]] = {}
    judged = judge(logits, targets, tasks, novelty_limit)
    for (task, seen), (_, own, truth) in zip(judged, per_task(logits, targets, tasks), strict=True):
        plain = probabilities(own, 1.0)
        bins = reliability(seen.tops, seen.right)
        before = reliability(plain.max(axis=1), plain.argmax(axis=1) == truth)
        outcomes = tally(seen.truth, seen.guesses, seen.sure, len(task.labels))
        drawn = resample(outcomes, seed)
        matrix = outcomes.confusion
        metrics[task.name] = {
            "accuracy": _mean(seen.right),
            "support": len(seen.truth),
            "coverage": _mean(seen.sure),
            "precision_when_sure": _mean(seen.right[seen.sure]),
            "top_k": _top_k(seen),
            "macro_f1": _macro_f1(matrix),
            "intervals": drawn.overall,
            "ece": calibration_error(bins),
            "ece_uncalibrated": calibration_error(before),
            "nll": _nll(seen.shares, seen.truth),
            "nll_uncalibrated": _nll(plain, truth),
            "reliability": bins,
            "per_label": _per_label(task, seen, matrix, drawn.by_label),
            "confused": _confused(task, matrix),
            "confusion": matrix.tolist(),
        }
    return metrics


def reliability(tops: NDArray[np.float64], right: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Bins of equal mass by top probability [m]: mean probability, accuracy and count of each, rising.

    The edges are quantiles and equal probabilities fall into one bin, so the order of the photos plays no part.
    """
    if not len(tops):
        return []
    wanted = int(np.clip(len(tops) // PHOTOS_PER_BIN, 1, BINS))
    cuts = np.sort(tops)[[len(tops) * cut // wanted for cut in range(1, wanted)]]
    place = np.searchsorted(np.unique(cuts), tops, side="right")
    count = np.bincount(place)
    there = np.flatnonzero(count)
    mean = np.bincount(place, tops)[there] / count[there]
    share = np.bincount(place, right.astype(float))[there] / count[there]
    return [
        {"probability": round(float(p), 6), "accuracy": round(float(a), 6), "count": int(n)}
        for p, a, n in zip(mean, share, count[there], strict=True)
    ]


def calibration_error(bins: list[dict[str, Any]]) -> float | None:
    """The mean distance of accuracy from probability over the bins of `reliability`, each weighing its photos."""
    total = sum(one["count"] for one in bins)
    if not total:
        return None
    return round(float(sum(one["count"] * abs(one["accuracy"] - one["probability"]) for one in bins) / total), DIGITS)


def _mean(flags: NDArray[np.bool_]) -> float | None:
    return round(float(flags.mean()), DIGITS) if len(flags) else None


def _nll(shares: NDArray[np.float64], truth: NDArray[np.int32]) -> float | None:
    if not len(truth):
        return None
    chosen = shares[np.arange(len(truth)), truth]
    return round(float(-np.log(np.maximum(chosen, 1e-12)).mean()), DIGITS)


def _top_k(seen: Judged) -> dict[str, float | None]:
    """The share of photos whose label is among the k most probable, for each k that leaves a label out."""
    labels = seen.shares.shape[1]
    own = seen.shares[np.arange(len(seen.truth)), seen.truth][:, None]
    # Of equal ones the first counts as the more probable, as it does for argmax.
    ahead = (seen.shares > own) | ((seen.shares == own) & (np.arange(labels) < seen.truth[:, None]))
    rank = ahead.sum(axis=1)
    return {str(k): _mean(rank < k) for k in TOP_K if labels > k}


def _macro_f1(matrix: NDArray[np.int64]) -> float | None:
    support, answered, hits = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
    there = support > 0
    if not there.any():
        return None
    return round(float((2 * hits[there] / (support + answered)[there]).mean()), DIGITS)


def _per_label(
    task: Task, seen: Judged, matrix: NDArray[np.int64], intervals: list[dict[str, list[float] | None]]
) -> list[dict[str, Any]]:
    """By label: precision, recall, F1, support; how many of its photos and answers are sure."""
    labels = len(task.labels)
    support, answered, hits = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
    sure_photos = np.bincount(seen.truth[seen.sure], minlength=labels)
    sure_answers = np.bincount(seen.guesses[seen.sure], minlength=labels)
    sure_hits = np.bincount(seen.guesses[seen.sure & seen.right], minlength=labels)
    return [
        {
            "label": label,
            "precision": _share(hits[at], answered[at]),
            "recall": _share(hits[at], support[at]),
            "f1": _share(2 * hits[at], support[at] + answered[at]),
            "support": int(support[at]),
            "answered": int(answered[at]),
            "coverage": _share(sure_photos[at], support[at]),
            "precision_when_sure": _share(sure_hits[at], sure_answers[at]),
            "intervals": intervals[at],
        }
        for at, label in enumerate(task.labels)
    ]


def _share(part: np.int64, whole: np.int64) -> float | None:
    return round(float(part / whole), DIGITS) if whole else None


def _confused(task: Task, matrix: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Which label is taken for which, the most frequent first."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
    return [
        {"truth": task.labels[truth], "taken_for": task.labels[guess], "count": int(wrong[truth, guess])}
        for truth, guess in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[truth, guess]
    ]
