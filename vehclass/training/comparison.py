"""Tells whether one model is better than another on the same photos, or whether chance explains the difference."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vehclass.training.evaluate import judge
from vehclass.training.intervals import RESAMPLES, percentiles
from vehclass.training.report import Examined

# Below this many photos that one model alone got right, the chi-square distribution is too rough a stand-in.
EXACT_BELOW: Final = 25
SIGNIFICANT: Final = 0.05


def mcnemar(only_first: int, only_second: int) -> tuple[float, str]:
    """The p-value and the name of McNemar's test, from how many photos only the one and only the other got right.

    McNemar, 'Note on the sampling error of the difference between correlated proportions or percentages', 1947.
    Below 25 such photos it is the exact two-sided binomial test, otherwise chi-square with one degree of freedom
    and the continuity correction of Edwards (1948): (|b - c| - 1)^2 / (b + c).
    """
    both = only_first + only_second
    if both < EXACT_BELOW:
        tail = sum(math.comb(both, k) for k in range(min(only_first, only_second) + 1))
        return min(1.0, 2 * tail / 2**both), "exact binomial"
    statistic = max(0, abs(only_first - only_second) - 1) ** 2 / both
    # A chi-square with one degree of freedom is a squared normal deviate, so its upper tail is erfc.
    return math.erfc(math.sqrt(statistic / 2)), "chi-square with continuity correction"


def compare_tasks(
    first: Examined, second: Examined, tasks: Sequence[str], names: tuple[str, str]
) -> list[dict[str, Any]]:
    """`compare` for each of the tasks, over the photos that both models were asked about."""
    right = [_right_by_photo(one) for one in (first, second)]
    found = []
    for task in tasks:
        both = [path for path in right[0][task] if path in right[1][task]]
        one, other = (np.array([by_task[task][path] for path in both], bool) for by_task in right)
        found.append({"task": task, **compare(one, other, names)})
    return found


def _right_by_photo(examined: Examined) -> dict[str, dict[Path, bool]]:
    """By task, which labelled photos were answered rightly."""
    judged = judge(examined.logits, examined.targets, examined.tasks, examined.novelty_limit)
    found = {}
    for column, (task, seen) in enumerate(judged):
        paths = (examined.paths[row] for row in np.flatnonzero(examined.targets[:, column] >= 0))
        found[task.name] = dict(zip(paths, seen.right.tolist(), strict=True))
    return found


def compare(
    first: NDArray[np.bool_], second: NDArray[np.bool_], names: tuple[str, str], seed: int = 0
) -> dict[str, Any]:
    """Two models on the same photos of one task, ready for JSON: `first` and `second` say [m] who was right where.

    `difference` is the second's accuracy minus the first's, with its 95 % interval by bootstrap over the photos.
    """
    count = len(first)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    p, test = mcnemar(only_first, only_second)
    shares = [round(float(right.mean()), 4) if count else None for right in (first, second)]
    document: dict[str, Any] = {
        "photos": count,
        "models": list(names),
        "accuracy": shares,
        "difference": None,
        "difference_interval": None,
        "only_first_right": only_first,
        "only_second_right": only_second,
        "test": f"McNemar's test, {test}",
        "p": float(f"{p:.4g}"),
    }
    if count:
        rest = count - only_first - only_second
        drawn = np.random.default_rng(seed).multinomial(
            count, np.array([only_first, only_second, rest]) / count, size=RESAMPLES
        )
        document["difference"] = round((only_second - only_first) / count, 4)
        document["difference_interval"] = percentiles((drawn[:, 1] - drawn[:, 0]) / count)
    document["sentence"] = _sentence(document)
    return document


def _sentence(said: dict[str, Any]) -> str:
    """What the figures mean, for a person."""
    photos = f"{said['photos']:,} photo{'s' if said['photos'] != 1 else ''}"
    if not said["photos"]:
        return "There are no photos to compare the models on."
    if not said["only_first_right"] + said["only_second_right"]:
        return f"Both models are right on the same ones of {photos}: no difference."
    counts = (
        f"{said['only_first_right']:,} of {photos} only {said['models'][0]} got right, "
        f"{said['only_second_right']:,} only {said['models'][1]}"
    )
    if said["p"] >= SIGNIFICANT:
        return f"No difference can be told apart from chance (p = {said['p']:.2g}): {counts}."
    better = said["models"][0 if said["only_first_right"] > said["only_second_right"] else 1]
    return f"{better} is right more often, and chance alone would hardly do that (p = {said['p']:.2g}): {counts}."
