"""Turns a batch of pixels into predictions: calibrated probabilities of every label of every task."""

import numpy as np
from numpy.typing import NDArray

from vehclass.errors import ImageError
from vehclass.imaging import Pixels
from vehclass.model.folder import ModelFolder
from vehclass.model.precision import F32
from vehclass.model.runtime import Logits, Runtime, open_runtime
from vehclass.records import ModelInfo, Prediction, Task


class Classifier:
    """A model that is ready to answer; may be called from several threads at once."""

    def __init__(self, info: ModelInfo, runtime: Runtime) -> None:
        self.info = info
        self.runtime = runtime
        self.batch_size = runtime.batch_size

    @classmethod
    def open(
        cls,
        folder: ModelFolder,
        *,
        kind: str = "auto",
        batch_size: int | None = None,
        threads: int = 1,
        require_gpu: bool = False,
        precision: str = F32,
    ) -> "Classifier":
        """The classifier of a checked model folder; see `runtime.open_runtime` for the options."""
        runtime = open_runtime(
            folder, kind=kind, batch_size=batch_size, threads=threads, require_gpu=require_gpu, precision=precision
        )
        return cls(folder.info, runtime)

    def classify(self, pixels: Pixels) -> list[tuple[Prediction, ...] | ImageError]:
        """One answer a picture, in order, for uint8 [n, height, width, 3]: a prediction a task, or an error."""
        return answers(self.runtime.logits(pixels), self.info.tasks, self.info.novelty_limit)


def answers(
    logits: Logits, tasks: tuple[Task, ...], novelty_limit: float | None = None
) -> list[tuple[Prediction, ...] | ImageError]:
    """Logits [n, labels of all tasks] as predictions; a picture whose logits are not finite is an error.

    With a `novelty_limit` the last column is no logit: it says how unlike the training photos a picture is.
    """
    finite: NDArray[np.bool_] = np.all(np.isfinite(logits), axis=1)
    strange = logits[:, -1] > novelty_limit if novelty_limit is not None else np.zeros(len(logits), bool)
    by_task: list[list[Prediction]] = []
    start = 0
    for task in tasks:
        shares = probabilities(logits[:, start : start + len(task.labels)], task.temperature)
        start += len(task.labels)
        tops = shares.argmax(axis=1)
        unsure = strange | (shares.max(axis=1) < np.array(task.thresholds)[tops])
        by_task.append(
            [
                Prediction(task.name, task.labels[top], row[top], look, tuple(row))
                for row, top, look in zip(shares.tolist(), tops.tolist(), unsure.tolist(), strict=True)
            ]
        )
    return [
        predictions if usable else ImageError("not_finite", "The network's answer is not a number.", permanent=True)
        for predictions, usable in zip(zip(*by_task, strict=True), finite.tolist(), strict=True)
    ]


def probabilities(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Softmax of logits / temperature over the last axis, in double precision, each row summing to 1."""
    scaled = np.nan_to_num(logits.astype(np.float64)) / temperature
    scaled -= scaled.max(axis=-1, keepdims=True)
    shares = np.exp(scaled)
    shares /= shares.sum(axis=-1, keepdims=True)
    return shares
