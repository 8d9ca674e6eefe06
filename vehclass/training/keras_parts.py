"""The parts of training that are Keras': batches, the masked loss, accuracies, the report of an epoch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from vehclass.records import Task
from vehclass.training.dataset import MISSING, Dataset


class Batches(keras.utils.PyDataset):  # type: ignore[misc]  # keras has no types
    """One split of a dataset, batch by batch; shuffled anew each epoch where a seed is given."""

    def __init__(self, dataset: Dataset, split: str, batch_size: int, seed: int | None) -> None:
        super().__init__()
        self._dataset = dataset
        self._rows = dataset.rows[split].copy()
        self._batch_size = batch_size
        self._shuffle = None if seed is None else np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        rows = self._rows[index * self._batch_size : (index + 1) * self._batch_size]
        return np.asarray(self._dataset.pixels[rows]), self._dataset.targets[rows]

    def on_epoch_end(self) -> None:
        """Another order for the next epoch."""
        if self._shuffle is not None:
            self._shuffle.shuffle(self._rows)


def _slices(tasks: Sequence[Task]) -> list[tuple[int, int]]:
    ends = np.cumsum([len(task.labels) for task in tasks]).tolist()
    return list(zip([0, *ends], ends, strict=False))


def masked_loss(tasks: Sequence[Task]) -> Callable[[Any, Any], Any]:
    """The sum over tasks of the cross-entropy, each averaged over the photos that have that label."""
    slices = _slices(tasks)

    def loss(targets: Any, logits: Any) -> Any:
        total = 0.0
        for column, (start, stop) in enumerate(slices):
            target = ops.cast(targets[:, column], "int32")
            known = ops.cast(target != MISSING, logits.dtype)
            each = ops.sparse_categorical_crossentropy(ops.maximum(target, 0), logits[:, start:stop], from_logits=True)
            total = total + ops.sum(each * known) / ops.maximum(ops.sum(known), 1.0)
        return total

    return loss


class MaskedAccuracy(keras.metrics.Mean):  # type: ignore[misc]  # keras has no types
    """The share of right answers among the photos that have a label for one task."""

    def __init__(self, name: str, column: int, start: int, stop: int) -> None:
        super().__init__(name=name)
        self._column, self._start, self._stop = column, start, stop

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Counts one batch: targets [n, tasks], logits [n, labels of all tasks]."""
        target = ops.cast(y_true[:, self._column], "int32")
        guess = ops.cast(ops.argmax(y_pred[:, self._start : self._stop], axis=-1), "int32")
        super().update_state(ops.cast(guess == target, "float32"), sample_weight=ops.cast(target != MISSING, "float32"))


def accuracies(tasks: Sequence[Task]) -> list[MaskedAccuracy]:
    """One accuracy a task, named after it."""
    return [
        MaskedAccuracy(task.name, column, start, stop)
        for column, (task, (start, stop)) in enumerate(zip(tasks, _slices(tasks), strict=True))
    ]


class EpochReport(keras.callbacks.Callback):  # type: ignore[misc]  # keras has no types
    """Keeps what each epoch brought, and passes it on."""

    def __init__(
        self,
        epochs: int,
        tell: Callable[[int, int, Mapping[str, float]], None],
        tell_step: Callable[[int, int, float], None],
    ) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []
        self._epochs, self._tell, self._tell_step = epochs, tell, tell_step

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Called by Keras."""
        self._tell_step(batch + 1, self.params["steps"], float((logs or {}).get("loss", 0.0)))

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Called by Keras."""
        row = {name: round(float(value), 5) for name, value in (logs or {}).items()}
        self.rows.append(row)
        self._tell(epoch + 1, self._epochs, row)
