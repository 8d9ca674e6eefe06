"""Makes probabilities mean what they say: a temperature a task, and the threshold under which a person looks."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vehclass.model.classifier import probabilities

GOLDEN: Final = (np.sqrt(5) - 1) / 2
# Photos that are all answered rightly would ask for a temperature of nothing, and for certainty ever after.
LOWEST, HIGHEST = 0.5, 20.0


def temperature(logits: NDArray[np.float32], targets: NDArray[np.int32]) -> float:
    """The temperature that makes the labels most likely: logits [n, labels], targets [n].

    After Guo et al., 'On calibration of modern neural networks' (2017); a golden-section search on its
    logarithm, since the likelihood has one minimum.
    """
    low, high = np.log(LOWEST), np.log(HIGHEST)
    while high - low > 1e-3:
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        if nll(logits, targets, float(np.exp(left))) <= nll(logits, targets, float(np.exp(right))):
            high = right
        else:
            low = left
    return round(float(np.exp((low + high) / 2)), 4)


def nll(logits: NDArray[np.float32], targets: NDArray[np.int32], scale: float) -> float:
    """Mean negative log-likelihood of the targets, in nats."""
    chosen = probabilities(logits, scale)[np.arange(len(targets)), targets]
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


def threshold(shares: NDArray[np.float64], targets: NDArray[np.int32], precision: float) -> float:
    """The lowest top probability from which on at least `precision` of the answers are right.

    `shares` are calibrated probabilities [n, labels]. Where no probability is that sure, every answer
    asks for a look: the threshold is 1.
    """
    tops = shares.max(axis=1)
    order = np.argsort(-tops, kind="stable")
    right = np.cumsum((shares.argmax(axis=1) == targets)[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(right >= precision)
    if not len(enough):
        return 1.0
    return float(np.floor(tops[order][enough[-1]] * 1e4) / 1e4)  # down, so that the photo that set it passes
