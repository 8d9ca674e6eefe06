"""Fits a network to decoded photos: heads first where it starts from weights, then the whole, epoch by epoch."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import keras
import numpy as np
from numpy.typing import NDArray

from vehclass.errors import VehclassError
from vehclass.model import network as networks
from vehclass.model.runtime import CPU_BATCH, is_out_of_memory
from vehclass.records import Task
from vehclass.training.augment import Views, learner
from vehclass.training.calibrate import surprise, temperature
from vehclass.training.checkpoint import State, Unfinished
from vehclass.training.dataset import MISSING
from vehclass.training.decoded import Dataset
from vehclass.training.evaluate import all_logits, per_task
from vehclass.training.heads import fit_head
from vehclass.training.keras_parts import Batches, BetweenSteps, accuracies, masked_loss, soft_targets
from vehclass.training.optimizer import optimizer_for
from vehclass.training.pace import Pace, rate_at
from vehclass.training.plan import Listener

MOST_HEAD_PHOTOS: Final = 10_000  # more would say the same
HEADS_SHARE: Final = 0.25  # of a time limit, which their features may take


@dataclass(frozen=True, slots=True)
class Recipe:
    """The plan with every choice made."""

    epochs: int
    heads_first: bool
    patience: int | None  # None trains to the end and takes the last epoch
    batch_size: int
    learning_rate: float
    views: Views
    dropout: float
    label_smoothing: float
    weighted: bool
    task_weights: tuple[float, ...]
    seconds: float | None
    policy: str
    freeze_statistics: bool
    seed: int


class Fitting:
    """A training under way: the network that learns, where it is, and what was best so far."""

    def __init__(
        self,
        network: keras.Model,
        tasks: tuple[Task, ...],
        dataset: Dataset,
        recipe: Recipe,
        unfinished: Unfinished,
        listener: Listener,
    ) -> None:
        self._network, self._tasks, self._dataset, self._recipe = network, tasks, dataset, recipe
        self._unfinished, self._listener = unfinished, listener
        self._targets = soft_targets(
            dataset.targets[dataset.rows["train"]], tasks, smoothing=recipe.label_smoothing, weighted=recipe.weighted
        )
        self._loss = masked_loss(tasks, recipe.task_weights)
        self._forward = in_full_batches(network)

    def run(self, state: State | None) -> State:
        """Trains to the end, from `state` where there is one, and leaves the best epoch's weights in the network.

        A GPU that runs out of memory gets half the batch and goes on from the last epoch. Raises VehclassError when
        the loss is no longer a number.
        """
        if state is None:
            state = State(batch_size=self._recipe.batch_size)
            if self._recipe.heads_first:
                began = time.monotonic()
                self._fit_heads()
                state.best_loss, state.best_error, _ = self._validated()
                state.heads_loss = state.best_loss - state.best_error
                if state.heads_loss <= 0:  # no loss is lower: the validation split cannot tell what more would bring
                    self._listener.stage("the heads alone leave nothing to learn that the validation split could show")
                    state.ended = True
                self._unfinished.save_best(self._network.get_weights())
                state.spent = time.monotonic() - began
        while True:
            try:
                self._train_whole(state)
                break
            except Exception as error:
                if state.batch_size <= 2 or not is_out_of_memory(error):
                    raise
                state.batch_size //= 2
                # Steps are counted in batches, and there are twice as many of them now.
                state.step = 0
                self._listener.stage(f"the device is out of memory; going on with batches of {state.batch_size}")
        if math.isfinite(state.best_loss):
            self._network.set_weights(self._unfinished.best())
        return state

    def _fit_heads(self) -> None:
        """Fits the heads to features that are computed once, of the photos and of their mirror images."""
        self._listener.stage("fitting the heads to the features of the photos")
        features = in_full_batches(networks.feature_model(self._network))
        train, val = (self._dataset.rows[split] for split in ("train", "val"))
        pixels, most = self._dataset.pixels, MOST_HEAD_PHOTOS
        if self._recipe.seconds:
            passes = 2 if self._recipe.views.flip else 1
            most = min(
                most, affordable(features, pixels[train[:CPU_BATCH]], HEADS_SHARE * self._recipe.seconds / passes)
            )
        train = np.sort(np.random.default_rng(self._recipe.seed).permutation(train)[:most])
        seen = all_logits(features, pixels, train, CPU_BATCH)
        rows = np.concatenate([train, train]) if self._recipe.views.flip else train
        if self._recipe.views.flip:
            mirrored = all_logits(lambda batch: features(batch[:, :, ::-1]), pixels, train, CPU_BATCH)
            seen = np.concatenate([seen, mirrored])
        seen_val = all_logits(features, pixels, val, CPU_BATCH)
        for column, task in enumerate(self._tasks):
            known = self._dataset.targets[rows, column] != MISSING
            wanted = np.eye(len(task.labels), dtype=np.float32)[self._dataset.targets[rows[known], column]]
            kernel, bias = fit_head(seen[known], wanted)
            checked = self._dataset.targets[val, column] != MISSING
            if checked.any():
                scale = temperature(seen_val[checked] @ kernel + bias, self._dataset.targets[val[checked], column])
                kernel, bias = kernel / scale, bias / scale
            self._network.get_layer(networks.HEAD.format(column)).set_weights([kernel, bias])

    def _train_whole(self, state: State) -> None:
        recipe, dataset = self._recipe, self._dataset
        if recipe.freeze_statistics:
            networks.freeze_statistics(self._network)
        model = learner(self._network, recipe.views)
        batches = Batches(
            dataset.pixels,
            dataset.rows["train"],
            self._targets,
            recipe.views,
            batch_size=state.batch_size,
            seed=recipe.seed,
            epoch=lambda: state.epoch,
        )
        if state.step == 0:
            state.step = state.epoch * len(batches)
        pace = Pace(recipe.epochs * len(batches), recipe.seconds, state.spent)
        optimizer = optimizer_for(self._network.name, recipe.learning_rate)
        model.compile(optimizer, loss=self._loss, metrics=accuracies(self._tasks), jit_compile=False)
        model.optimizer.build(model.trainable_variables)
        kept = [*self._network.variables, *model.optimizer.variables]
        if state.epoch:
            for variable, value in zip(kept, self._unfinished.variables(), strict=True):
                variable.assign(value)

        def before_step() -> None:
            model.optimizer.learning_rate = recipe.learning_rate * rate_at(pace.progress(state.step))

        def after_step(loss: float) -> bool:
            state.step += 1
            progress = pace.progress(state.step)
            self._listener.step(state.epoch + 1, progress, loss, pace.left(state.step))
            return progress >= 1

        def after_epoch(logs: dict[str, float]) -> bool:
            row = self._epoch_row(logs, float(model.optimizer.learning_rate))
            state.spent = pace.spent
            row["seconds"] = round(state.spent, 1)
            state.history.append(row)
            state.epoch += 1
            # A later epoch was learnt at a lower rate, and on a few hundred photos the difference of two epochs is
            # mostly chance. With the lowest loss alone the epoch taken was one of a quarter of the highest rate.
            better = recipe.patience is None or row["val_loss"] <= state.best_loss + state.best_error
            # Of few photos the heads alone, which a formula found, are often as good, and more sure to be so on others.
            better = better and row["val_loss"] < state.heads_loss
            if row["val_loss"] < state.best_loss:
                state.best_loss, state.best_error = row["val_loss"], row["val_loss_error"]
            if better:
                state.best = state.epoch - 1
            waited = state.epoch - 1 - max(0, state.best)
            state.ended = pace.progress(state.step) >= 1 or (recipe.patience is not None and waited >= recipe.patience)
            self._unfinished.save(state, kept, self._network.get_weights() if better else None)
            self._listener.epoch(state.epoch, recipe.epochs, row, self._tasks)
            return state.ended

        # Where a training was killed after its last epoch, nothing is left to fit.
        if not state.ended and state.epoch < recipe.epochs and pace.progress(state.step) < 1:
            between = BetweenSteps(before_step, after_step, after_epoch)
            model.fit(
                batches,
                initial_epoch=state.epoch,
                epochs=recipe.epochs,
                shuffle=False,  # the batches are shuffled already, in a way that can be repeated
                verbose=0,
                callbacks=[between],
            )

    def _epoch_row(self, logs: dict[str, float], rate: float) -> dict[str, float]:
        """What an epoch brought: losses in nats, accuracies by task; `val_...` on the validation split."""
        if not np.isfinite(logs["loss"]):
            self._unfinished.discard()
            raise VehclassError(reason="Training diverged: the loss is not a number. Try a lower --learning-rate.")
        row = {"loss": logs["loss"]}
        row |= {task.name: logs[f"task_{n}"] for n, task in enumerate(self._tasks)}
        row["val_loss"], row["val_loss_error"], right = self._validated()
        row |= {f"val_{name}": share for name, share in right.items()}
        return {name: round(value, 5) for name, value in row.items()} | {"learning_rate": float(f"{rate:.4g}")}

    def _validated(self) -> tuple[float, float, dict[str, float]]:
        rows = self._dataset.rows["val"]
        logits = all_logits(self._forward, self._dataset.pixels, rows, CPU_BATCH)
        return validation(logits, self._dataset.targets[rows], self._tasks, self._recipe.task_weights)


def affordable(
    run: Callable[[Any], object], batch: Any, seconds: float, clock: Callable[[], float] = time.monotonic
) -> int:
    """How many pictures `run` can take in so many seconds, by what a batch takes it; one batch at least."""
    run(batch)  # the first time, it is compiled
    began = clock()
    run(batch)
    return max(len(batch), int(seconds * len(batch) / max(1e-6, clock() - began)))


def in_full_batches(network: keras.Model) -> Callable[[Any], NDArray[np.float32]]:
    """Runs a network on batches that are filled up to one size, so that Keras compiles once."""

    def run(pixels: Any) -> NDArray[np.float32]:
        full = np.zeros((CPU_BATCH, *pixels.shape[1:]), np.uint8)
        full[: len(pixels)] = pixels
        return np.asarray(network.predict_on_batch(full), np.float32)[: len(pixels)]

    return run


def validation(
    logits: NDArray[np.float32], targets: NDArray[np.int32], tasks: tuple[Task, ...], weights: Sequence[float]
) -> tuple[float, float, dict[str, float]]:
    """The weighted sum over tasks of the mean negative log-likelihood, its standard error, and each task's accuracy.

    `logits` are raw [n, labels of all tasks]. The likelihood is the calibrated one, since that is what leaves
    vehclass: smoothed labels and blended photos make a network timid, which says nothing against it.
    """
    total, variance, right = 0.0, 0.0, {}
    for weight, (task, own, truth) in zip(weights, per_task(logits, targets, tasks), strict=True):
        if len(truth):
            each = surprise(own, truth, temperature(own, truth))
            total += weight * float(each.mean())
            variance += weight**2 * float(each.var()) / len(each)
            right[task.name] = float((own.argmax(axis=1) == truth).mean())
    return total, math.sqrt(variance), right


def is_unbalanced(targets: NDArray[np.int32], most: float) -> bool:
    """Whether a task's most frequent label has that many times the photos of its rarest."""
    for column in targets.T:
        counts = np.bincount(column[column != MISSING])
        counts = counts[counts > 0]
        if len(counts) and counts.max() > most * counts.min():
            return True
    return False
