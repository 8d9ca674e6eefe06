"""Makes probabilities mean what they say: a temperature a task, and the threshold under which a person looks."""

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vehclass.model.classifier import probabilities
from vehclass.records import Task
from vehclass.training.intervals import wilson

GOLDEN: Final = (np.sqrt(5) - 1) / 2
# Photos that are all answered rightly would ask for a temperature of nothing, and for certainty ever after.
LOWEST, HIGHEST = 0.2, 20.0
CERTAINTY: Final = 1.2816  # standard deviations, for 90 % on one side
ENOUGH_ANSWERS: Final = 50  # with a label, for a threshold of its own


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
    return float(surprise(logits, targets, scale).mean())


def surprise(logits: NDArray[np.float32], targets: NDArray[np.int32], scale: float) -> NDArray[np.float64]:
    """Each target's negative log-likelihood, in nats: [n] for logits [n, labels]."""
    chosen = probabilities(logits, scale)[np.arange(len(targets)), targets]
    lost: NDArray[np.float64] = -np.log(np.maximum(chosen, 1e-12))
    return lost


def threshold(shares: NDArray[np.float64], targets: NDArray[np.int32], precision: float) -> float:
    """The lowest top probability from which on at least `precision` of the answers are right.

    `shares` are calibrated probabilities [n, labels]. That many have to be right with some certainty (the one-sided
    90 % bound of Wilson): the lowest threshold that a sample allows would promise too much of others. Where the
    sample is too small for certainty its plain share counts; where no probability is that sure, every answer asks
    for a look: the threshold is 1.
    """
    tops = shares.max(axis=1)
    order = np.argsort(-tops, kind="stable")
    counted = np.arange(1, len(order) + 1)
    right = np.cumsum((shares.argmax(axis=1) == targets)[order]) / counted
    # Of equal probabilities all pass or none does.
    last_of_its_kind = np.append(np.diff(tops[order]) != 0, True)
    for reached in (wilson(right, counted, CERTAINTY)[0], right):
        enough = np.flatnonzero((reached >= precision) & last_of_its_kind)
        if len(enough):
            return float(np.floor(tops[order][enough[-1]] * 1e4) / 1e4)  # down, so that the photo that set it passes
    return 1.0


def label_thresholds(
    shares: NDArray[np.float64], targets: NDArray[np.int32], precision: float, otherwise: float
) -> tuple[float, ...]:
    """A threshold for each label that is answered often enough to choose one; `otherwise` for the rest."""
    answers = shares.argmax(axis=1)
    chosen = []
    for label in range(shares.shape[1]):
        own = answers == label
        chosen.append(threshold(shares[own], targets[own], precision) if own.sum() >= ENOUGH_ANSWERS else otherwise)
    return tuple(chosen)


def calibrated(task: Task, logits: NDArray[np.float32], targets: NDArray[np.int32], precision: float) -> Task:
    """The task with its temperature and thresholds, chosen on validation logits [n, labels] and targets [n].

    Without any, nothing is known of how sure an answer is: each asks for a look.
    """
    if not len(targets):
        return replace(task, threshold=1.0)
    scale = temperature(logits, targets)
    shares = probabilities(logits, scale)
    lowest = threshold(shares, targets, precision)
    return replace(
        task,
        temperature=scale,
        threshold=lowest,
        label_thresholds=label_thresholds(shares, targets, precision, lowest),
    )
