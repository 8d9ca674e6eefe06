"""Fits a network to labelled photos and writes the model folder: the story of `vehclass train`."""

import hashlib
import platform
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, Final

import numpy as np

from vehclass import __version__
from vehclass.errors import ExportDiffers, VehclassError
from vehclass.model.export import export_openvino
from vehclass.model.folder import KERAS_FILE, OPENVINO_FILE, ModelFolder, file_digest, write_model
from vehclass.model.frameworks import load_keras
from vehclass.model.runtime import CPU_BATCH, OpenVinoRuntime
from vehclass.records import ModelInfo, Task, iso, now
from vehclass.training.calibrate import temperature, threshold
from vehclass.training.dataset import Catalogue, Dataset, load, read_catalogue, typical_side
from vehclass.training.evaluate import all_logits, measure, per_task

LARGEST_DEFAULT_SIDE: Final = 160
EXPORT_CHECK_ROWS: Final = 512
EXPORT_TOLERANCE: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Plan:
    """What to train on, what to train, and how long."""

    data: Path
    out: Path
    task_name: str = "label"
    backbone: str = "small"
    weights: str | None = None
    input_side: int | None = None
    epochs: int = 40
    patience: int = 10
    batch_size: int = 32
    learning_rate: float = 2e-3
    target_precision: float = 0.95
    seed: int = 0
    threads: int = 1


class Listener:
    """Is told how training goes; a door overrides what it shows."""

    def catalogue(self, catalogue: Catalogue) -> None:
        """The samples are known."""

    def decoded(self, done: int, total: int) -> None:
        """So many photos are decoded."""

    def dataset(self, dataset: Dataset, input_size: tuple[int, int]) -> None:
        """The split is made; some files may have been left out."""

    def step(self, number: int, of: int, loss: float) -> None:
        """A training step of the present epoch is over."""

    def epoch(self, number: int, of: int, logs: Mapping[str, float]) -> None:
        """An epoch is over: losses and accuracies."""

    def stage(self, what: str) -> None:
        """Something other than an epoch begins."""


def train(plan: Plan, listener: Listener) -> ModelFolder:
    """Trains, calibrates, exports, checks and measures; the folder appears only when all of that is done.

    Raises DataError for unusable data, ExportDiffers when the exported network answers otherwise.
    """
    catalogue = read_catalogue(plan.data, plan.task_name)
    listener.catalogue(catalogue)
    side = plan.input_side or typical_side(catalogue, LARGEST_DEFAULT_SIDE)
    dataset = load(catalogue, (side, side), plan.seed, threads=plan.threads, progress=listener.decoded)
    listener.dataset(dataset, (side, side))
    plan.out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{plan.out.name}.", suffix=".part", dir=plan.out.parent))
    try:
        network, history = _fit(plan, catalogue.tasks, dataset, side, listener)
        listener.stage("exporting, calibrating and measuring")
        network.save(draft / KERAS_FILE)
        export_openvino(draft / KERAS_FILE, draft / OPENVINO_FILE)
        tasks, facts = _examine(plan, catalogue.tasks, dataset, draft, network, side)
        about = {
            "name": plan.out.name,
            "created_at": iso(now()),
            "backbone": plan.backbone,
            "input_size": [side, side],
            "prepare": {"resize": "stretch", "filter": "scaled decode, then antialiased bilinear", "pixels": "uint8"},
            **facts,
            "history": history,
            "data": _fingerprint(catalogue, dataset),
            "plan": _as_saved(plan),
            "environment": _environment(),
        }
        draft.chmod(0o755)
        return write_model(draft, plan.out, about, tasks)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _fit(
    plan: Plan, tasks: tuple[Task, ...], dataset: Dataset, side: int, listener: Listener
) -> tuple[Any, list[dict[str, float]]]:
    """The trained network with its best weights, and the losses and accuracies of each epoch."""
    keras, gpus = load_keras()
    from vehclass.model import network as networks
    from vehclass.training.keras_parts import Batches, EpochReport, accuracies, masked_loss

    keras.utils.set_random_seed(plan.seed)
    network = networks.build(plan.backbone, (side, side), tasks, plan.weights)
    pixels = keras.Input((side, side, 3), dtype="uint8")
    learner = keras.Model(pixels, network(networks.augmentation(plan.seed)(pixels)))
    train = Batches(dataset, "train", plan.batch_size, plan.seed)
    val = Batches(dataset, "val", plan.batch_size, None)
    steps = len(train) * plan.epochs
    schedule = keras.optimizers.schedules.CosineDecay(
        plan.learning_rate / 20,
        decay_steps=max(1, steps - 2 * len(train)),
        warmup_target=plan.learning_rate,
        warmup_steps=2 * len(train),
    )
    learner.compile(
        keras.optimizers.AdamW(schedule, weight_decay=1e-3, clipnorm=5.0),
        loss=masked_loss(tasks),
        metrics=accuracies(tasks),
        jit_compile="auto" if gpus else False,  # XLA was slower on two cores: 83 images/s against 150
    )
    report = EpochReport(plan.epochs, listener.epoch, listener.step)
    best = keras.callbacks.EarlyStopping("val_loss", patience=plan.patience, restore_best_weights=True)
    learner.fit(train, validation_data=val, epochs=plan.epochs, verbose=0, callbacks=[best, report])
    if not all(np.isfinite(row["loss"]) for row in report.rows):
        raise VehclassError(reason="Training diverged: the loss is not a number. Try a lower --learning-rate.")
    return network, report.rows


def _examine(
    plan: Plan, tasks: tuple[Task, ...], dataset: Dataset, draft: Path, network: Any, side: int
) -> tuple[tuple[Task, ...], dict[str, Any]]:
    """Tasks with temperature and threshold, from val; metrics, from test; the exported form's difference."""
    unfinished = ModelInfo(plan.out.name, "draft", tasks, (side, side), "")
    folder = ModelFolder(draft, unfinished, {OPENVINO_FILE: file_digest(draft / OPENVINO_FILE)})
    runtime = OpenVinoRuntime(folder, CPU_BATCH, plan.threads)
    val, test = dataset.rows["val"], dataset.rows["test"]
    logits = all_logits(runtime.logits, dataset.pixels, val, runtime.batch_size)
    check = val[:EXPORT_CHECK_ROWS]
    trained = all_logits(lambda batch: np.asarray(network.predict_on_batch(batch)), dataset.pixels, check, CPU_BATCH)
    difference = _difference(trained, logits[: len(check)], tasks)
    calibrated = tuple(
        _calibrated(task, own, truth, plan.target_precision)
        for task, own, truth in per_task(logits, dataset.targets[val], tasks)
    )
    answers = all_logits(runtime.logits, dataset.pixels, test, runtime.batch_size)
    return calibrated, {
        "metrics": measure(answers, dataset.targets[test], calibrated),
        "exports": {"openvino": difference},
    }


def _calibrated(task: Task, logits: Any, targets: Any, precision: float) -> Task:
    if len(targets) == 0:
        return task
    from vehclass.model.classifier import probabilities

    scale = temperature(logits, targets)
    return replace(task, temperature=scale, threshold=threshold(probabilities(logits, scale), targets, precision))


def _difference(trained: Any, exported: Any, tasks: tuple[Task, ...]) -> dict[str, Any]:
    """How far the exported network's probabilities are from the trained one's; raises ExportDiffers."""
    from vehclass.model.classifier import probabilities

    worst, start, changed = 0.0, 0, 0
    for task in tasks:
        stop = start + len(task.labels)
        ours, theirs = probabilities(trained[:, start:stop], 1.0), probabilities(exported[:, start:stop], 1.0)
        worst = max(worst, float(np.abs(ours - theirs).max()))
        changed += int((ours.argmax(axis=1) != theirs.argmax(axis=1)).sum())
        start = stop
    if changed or worst > EXPORT_TOLERANCE:
        raise ExportDiffers(
            reason=f"{changed} labels of {len(trained)} photos changed, probabilities by up to {worst:.1e}"
        )
    return {"photos": len(trained), "labels_changed": changed, "greatest_difference": float(f"{worst:.2e}")}


def _fingerprint(catalogue: Catalogue, dataset: Dataset) -> dict[str, Any]:
    """What the model has seen: counts, the files left out, and a digest over pixels and labels."""
    digest = hashlib.sha256()
    for rows in dataset.rows.values():
        for row in rows:
            digest.update(dataset.pixels[row].tobytes())
            digest.update(dataset.targets[row].tobytes())
    return {
        "photos": {split: len(rows) for split, rows in dataset.rows.items()},
        "labels": {task.name: dict(sorted(catalogue.label_counts(task).items())) for task in catalogue.tasks},
        "left_out": [{"file": file.path.name, "code": file.code} for file in dataset.rejected],
        "sha256": digest.hexdigest(),
    }


def _as_saved(plan: Plan) -> dict[str, Any]:
    """The plan without what only concerns this machine."""
    names = [name for name in plan.__slots__ if name not in ("data", "out", "threads")]
    return {name: getattr(plan, name) for name in names}


def _environment() -> dict[str, str]:
    packages = ("keras", "tensorflow", "openvino", "numpy", "pillow")
    return {
        "vehclass": __version__,
        "python": platform.python_version(),
        **{name: installed(name) for name in packages},
    }
