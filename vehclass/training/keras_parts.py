"""The parts of training that are Keras': batches, the masked loss, accuracies, and what happens between steps."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from vehclass.imaging import Pixels
from vehclass.records import Task
from vehclass.training.augment import Views, draw_views, mix, recompress
from vehclass.training.dataset import MISSING


class Batches(keras.utils.PyDataset):  # type: ignore[misc]  # keras has no types
    """Batches of the training photos as they are learnt from: in an order, in views and in mixtures of their own each epoch.

    All chance comes from (seed, epoch, batch), so that an epoch is the same whenever it is run; `epoch` says which
    one it is, since Keras looks into the first batches of a dataset before it begins. Each batch is ([pixels,
    transforms, colours, boxes], targets [n, labels of all tasks]); the last one is filled up with others.
    """

    def __init__(
        self,
        pixels: Pixels,
        rows: NDArray[np.int64],
        targets: NDArray[np.float32],
        views: Views,
        *,
        batch_size: int,
        seed: int,
        epoch: Callable[[], int],
    ) -> None:
        super().__init__()
        self._pixels, self._rows, self._targets, self._views = pixels, rows, targets, views
        self._batch_size, self._seed, self._epoch = min(batch_size, len(rows)), seed, epoch
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng((self._seed, epoch))
            order = rng.permutation(len(self._rows))
            filled = rng.choice(len(order), -len(order) % self._batch_size, replace=False)
            self._order = epoch, np.concatenate([order, filled])
        return self._order[1]

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        epoch = self._epoch()
        rng = np.random.default_rng((self._seed, epoch, index))
        chosen = self._shuffled(epoch)[index * self._batch_size : (index + 1) * self._batch_size]
        pixels, targets = np.asarray(self._pixels[self._rows[chosen]]), self._targets[chosen]
        pixels = recompress(rng, pixels, self._views.recompressed)
        if rng.random() < self._views.mixed:
            pixels, targets = mix(rng, pixels, targets)
        height, width = pixels.shape[1:3]
        return (pixels, *draw_views(rng, len(pixels), (width, height), self._views)), targets


def slices(tasks: Sequence[Task]) -> list[tuple[int, int]]:
    """Where each task's labels begin and end among those of all tasks."""
    ends = np.cumsum([len(task.labels) for task in tasks]).tolist()
    return list(zip([0, *ends], ends, strict=False))


def soft_targets(
    targets: NDArray[np.int32], tasks: Sequence[Task], *, smoothing: float, weighted: bool
) -> NDArray[np.float32]:
    """What the network should answer, float32 [n, labels of all tasks]: a share for each label, nothing where unlabelled.

    `smoothing` is spread over all labels of a task. With `weighted`, rare labels count more: by the inverse square
    root of their frequency, one on average.
    """
    soft = np.zeros((len(targets), slices(tasks)[-1][1]), np.float32)
    for column, (task, (start, stop)) in enumerate(zip(tasks, slices(tasks), strict=True)):
        rows = np.flatnonzero(targets[:, column] != MISSING)
        chosen = targets[rows, column]
        soft[rows, start:stop] = smoothing / len(task.labels)
        soft[rows, start + chosen] += 1 - smoothing
        if weighted and len(rows):
            weight = 1 / np.sqrt(np.maximum(np.bincount(chosen, minlength=len(task.labels)), 1))
            each = weight[chosen] / weight[chosen].mean()
            soft[rows, start:stop] *= each[:, None]
    return soft


def masked_loss(tasks: Sequence[Task], weights: Sequence[float]) -> Callable[[Any, Any], Any]:
    """The weighted sum over tasks of the cross-entropy, each averaged over the photos that have that label."""
    places = slices(tasks)

    def loss(targets: Any, logits: Any) -> Any:
        total = 0.0
        for weight, (start, stop) in zip(weights, places, strict=True):
            wanted = targets[:, start:stop]
            each = ops.sum(-wanted * ops.log_softmax(ops.cast(logits[:, start:stop], "float32")), axis=-1)
            known = ops.cast(ops.sum(wanted, axis=-1) > 0, "float32")
            total = total + weight * ops.sum(each) / ops.maximum(ops.sum(known), 1.0)
        return total

    return loss


class MaskedAccuracy(keras.metrics.Mean):  # type: ignore[misc]  # keras has no types
    """The share of right answers among the photos that have a label for one task."""

    def __init__(self, name: str, start: int, stop: int) -> None:
        super().__init__(name=name)
        self._start, self._stop = start, stop

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Counts one batch: targets and logits [n, labels of all tasks]."""
        wanted, said = y_true[:, self._start : self._stop], y_pred[:, self._start : self._stop]
        right = ops.argmax(said, axis=-1) == ops.argmax(wanted, axis=-1)
        super().update_state(
            ops.cast(right, "float32"), sample_weight=ops.cast(ops.sum(wanted, axis=-1) > 0, "float32")
        )


def accuracies(tasks: Sequence[Task]) -> list[MaskedAccuracy]:
    """One accuracy a task, in their order."""
    return [MaskedAccuracy(f"task_{n}", *place) for n, place in enumerate(slices(tasks))]


class BetweenSteps(keras.callbacks.Callback):  # type: ignore[misc]  # keras has no types
    """Calls back before and after each step and after each epoch; a true answer ends the training there."""

    def __init__(
        self,
        before_step: Callable[[], None],
        after_step: Callable[[float], bool],
        after_epoch: Callable[[dict[str, float]], bool],
    ) -> None:
        super().__init__()
        self._before_step, self._after_step, self._after_epoch = before_step, after_step, after_epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Called by Keras."""
        self._before_step()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Called by Keras."""
        if self._after_step(float((logs or {}).get("loss", 0.0))):
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Called by Keras."""
        if self._after_epoch({name: float(value) for name, value in (logs or {}).items()}):
            self.model.stop_training = True
