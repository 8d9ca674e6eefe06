"""Says how far the figures of a model may be off, by drawing its test photos again and again.

Percentile bootstrap (Efron, 'Bootstrap methods: another look at the jackknife', 1979; Efron and Tibshirani, 'An
introduction to the bootstrap', 1993, chapter 13): n photos are drawn from the n with replacement, 2,000 times.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

RESAMPLES: Final = 2000
LEVEL: Final = 0.95
DRAWN_AT_ONCE: Final = 2_500_000  # counts, which bounds the memory to some 30 MB
TAILS: Final = (50 * (1 - LEVEL), 50 * (1 + LEVEL))
DIGITS: Final = 4

Interval = list[float] | None


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How many photos had each outcome (true label, answer, sure or not); arrays of [kinds of outcome]."""

    truth: NDArray[np.int64]
    guess: NDArray[np.int64]
    sure: NDArray[np.bool_]
    count: NDArray[np.int64]
    labels: int

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Counts [true labels, answers]."""
        matrix = np.zeros((self.labels, self.labels), np.int64)
        np.add.at(matrix, (self.truth, self.guess), self.count)
        return matrix


@dataclass(frozen=True, slots=True)
class Intervals:
    """95 % intervals [low, high]; None where there is nothing to draw."""

    overall: dict[str, Interval]
    by_label: list[dict[str, Interval]]


def tally(truth: NDArray[Any], guesses: NDArray[Any], sure: NDArray[np.bool_], labels: int) -> Outcomes:
    """The outcomes of [m] photos, those that occurred only."""
    codes = (truth.astype(np.int64) * labels + guesses) * 2 + sure
    kinds, count = np.unique(codes, return_counts=True)
    return Outcomes(kinds // 2 // labels, kinds // 2 % labels, kinds % 2 == 1, count, labels)


def resample(outcomes: Outcomes, seed: int) -> Intervals:
    """Intervals of accuracy, coverage, precision when sure and macro F1, and of each label's precision and recall.

    Drawing photos with replacement and counting their outcomes is a draw from a multinomial distribution, so the
    counts are drawn, not the photos: the same distribution at a fraction of the work.

    Where all photos agree (each right, say) drawing them again cannot show how far that may be off; there the
    bound is that of Clopper and Pearson ('The use of confidence or fiducial limits', 1934).
    """
    total = int(outcomes.count.sum())
    right = outcomes.truth == outcomes.guess
    overall: dict[str, Interval] = {}
    if not total:
        names = ("accuracy", "coverage", "precision_when_sure", "macro_f1")
        return Intervals(dict.fromkeys(names), [dict.fromkeys(("precision", "recall")) for _ in range(outcomes.labels)])
    # What is summed of the drawn counts: one column each. Matrices in single precision are exact up to 16 million.
    sums = np.stack([right, outcomes.sure, right & outcomes.sure], axis=1).astype(np.float32)
    is_truth = (outcomes.truth[:, None] == np.arange(outcomes.labels)).astype(np.float32)
    is_guess = (outcomes.guess[:, None] == np.arange(outcomes.labels)).astype(np.float32)
    is_hit = is_truth[right]
    rng = np.random.default_rng(seed)
    parts = []
    step = max(1, DRAWN_AT_ONCE // len(outcomes.count))
    for at in range(0, RESAMPLES, step):
        size = min(step, RESAMPLES - at)
        drawn = rng.multinomial(total, outcomes.count / total, size=size).astype(np.float32)
        parts.append((drawn @ sums, drawn @ is_truth, drawn @ is_guess, drawn[:, right] @ is_hit))
    basic, support, answered, hits = (np.concatenate(part) for part in zip(*parts, strict=True))
    seen_basic = outcomes.count @ sums
    overall["accuracy"] = _interval(basic[:, 0], total, seen_basic[0], total)
    overall["coverage"] = _interval(basic[:, 1], total, seen_basic[1], total)
    overall["precision_when_sure"] = _interval(basic[:, 2], basic[:, 1], seen_basic[2], seen_basic[1])
    overall["macro_f1"] = _macro_f1(support, answered, hits) if seen_basic[0] < total else None
    matrix = outcomes.confusion
    true, given, met = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
    by_label = [
        {
            "precision": _interval(hits[:, at], answered[:, at], met[at], given[at]),
            "recall": _interval(hits[:, at], support[:, at], met[at], true[at]),
        }
        for at in range(outcomes.labels)
    ]
    return Intervals(overall, by_label)


def _interval(parts: NDArray[Any], wholes: NDArray[Any] | int, part: float, whole: float) -> Interval:
    """The interval of a share that was part / whole, from what was drawn of both: arrays of [resamples]."""
    if not whole:
        return None
    if part in (0, whole):
        open_end = ((1 - LEVEL) / 2) ** (1 / float(whole))
        return [round(open_end, DIGITS), 1.0] if part else [0.0, round(1 - open_end, DIGITS)]
    counts = np.broadcast_to(np.asarray(wholes), parts.shape)
    some = counts > 0  # a rare label may be missing from a draw
    return percentiles(parts[some] / counts[some])


def percentiles(values: NDArray[Any]) -> list[float]:
    """The middle 95 % of the drawn values."""
    low, high = np.percentile(values, TAILS)
    return [round(float(low), DIGITS), round(float(high), DIGITS)]


def _macro_f1(support: NDArray[Any], answered: NDArray[Any], hits: NDArray[Any]) -> Interval:
    """Of draws [resamples, labels]: the mean of F1 over the labels that a draw has."""
    there = support > 0
    each = np.where(there, 2 * hits / np.maximum(support + answered, 1), 0.0)
    return percentiles(each.sum(axis=1) / there.sum(axis=1))


def wilson(share: Any, count: Any, z: float = 1.96) -> tuple[Any, Any]:
    """The interval of a share of `count`, numbers or arrays of them, `z` standard deviations to either side.

    The default is the 95 % interval. Wilson, 'Probable inference, the law of succession' (1927).
    """
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return middle - half, middle + half
