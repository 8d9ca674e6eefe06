"""Counts how often a model is right: accuracy and confusion of each task."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vehclass.imaging import Pixels
from vehclass.model.classifier import probabilities
from vehclass.model.runtime import Logits
from vehclass.records import Task
from vehclass.training.dataset import MISSING


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


def measure(logits: Logits, targets: NDArray[np.int32], tasks: tuple[Task, ...]) -> dict[str, dict[str, Any]]:
    """By task: accuracy, support, the share of answers above the threshold, the confusion matrix.

    Rows of the matrix are true labels, columns are predicted ones, both in the task's order.
    """
    metrics: dict[str, dict[str, Any]] = {}
    for task, own, truth in per_task(logits, targets, tasks):
        shares = probabilities(own, task.temperature)
        guesses = shares.argmax(axis=1)
        sure = shares.max(axis=1) >= task.threshold
        confusion = np.zeros((len(task.labels),) * 2, int)
        np.add.at(confusion, (truth, guesses), 1)
        metrics[task.name] = {
            "accuracy": round(float((guesses == truth).mean()), 4) if len(truth) else None,
            "support": len(truth),
            "coverage": round(float(sure.mean()), 4) if len(truth) else None,
            "precision_when_sure": round(float((guesses == truth)[sure].mean()), 4) if sure.any() else None,
            "confusion": confusion.tolist(),
        }
    return metrics
