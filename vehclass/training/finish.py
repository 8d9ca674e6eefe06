"""Turns a trained network into a model folder: novelty, export, calibration, measurement, documents."""

import csv
import json
import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
from numpy.typing import NDArray

from vehclass import __version__
from vehclass.model.agreement import agreement, closeness
from vehclass.model.export import export_openvino
from vehclass.model.folder import INT8_FILE, KERAS_FILE, OPENVINO_FILE, ModelFolder, file_digest, write_model
from vehclass.model.network import stage_means, with_novelty
from vehclass.model.precision import F32, INT8
from vehclass.model.runtime import CPU_BATCH, OpenVinoRuntime, fewer_bits_here
from vehclass.records import ModelInfo, Task, iso, now
from vehclass.training import novelty
from vehclass.training.calibrate import calibrated
from vehclass.training.checkpoint import State
from vehclass.training.evaluate import all_logits, judge, measure, per_task
from vehclass.training.fitting import in_full_batches
from vehclass.training.int8 import make_int8
from vehclass.training.plan import Listener, Material, Plan
from vehclass.training.report import Examined, write_card, write_report
from vehclass.training.splits import SPLITS_FILE, write_splits

EXPORT_CHECK_ROWS: Final = 512
PACKAGES: Final = ("keras", "tensorflow", "openvino", "numpy", "pillow")


def finish(
    plan: Plan, material: Material, network: keras.Model, state: State, draft: Path, listener: Listener
) -> ModelFolder:
    """Writes the model folder of a trained network by way of `draft`.

    Temperatures, thresholds and the novelty limit come from the validation split, figures from the test split. Raises
    ExportDiffers when the exported network answers otherwise.
    """
    dataset, tasks = material.dataset, material.catalogue.tasks
    listener.stage("exporting, calibrating and measuring")
    train, val, test = (dataset.rows[split] for split in ("train", "val", "test"))
    sample = np.random.default_rng(plan.seed).permutation(train)[: novelty.MOST_PHOTOS]
    features = all_logits(in_full_batches(stage_means(network)), dataset.pixels, np.sort(sample), CPU_BATCH)
    whole = with_novelty(network, *novelty.whitening(features))
    whole.save(draft / KERAS_FILE)
    export_openvino(draft / KERAS_FILE, draft / OPENVINO_FILE)

    runtime = _runtime(plan, material, draft)
    logits = all_logits(runtime.logits, dataset.pixels, val, runtime.batch_size)
    check = val[:EXPORT_CHECK_ROWS]
    trained = all_logits(in_full_batches(whole), dataset.pixels, check, CPU_BATCH)
    limit = novelty.limit(logits[:, -1])
    difference = agreement(trained, logits[: len(check)], tasks, limit)
    answered = tuple(
        calibrated(task, own, truth, plan.target_precision)
        for task, own, truth in per_task(logits, dataset.targets[val], tasks)
    )
    answers = all_logits(runtime.logits, dataset.pixels, test, runtime.batch_size)
    if plan.int8:
        listener.stage("making the 8-bit form")
        photos, checked = (np.asarray(dataset.pixels[rows]) for rows in (sample, val))
        make_int8(draft / OPENVINO_FILE, draft / INT8_FILE, photos, checked, limit)
    precisions = _precisions(plan, material, draft, answered, limit, logits)
    about = {
        "name": plan.out.name,
        "created_at": iso(now()),
        "backbone": plan.backbone,
        "input_size": [material.side, material.side],
        "prepare": {"resize": "stretch", "filter": "scaled decode, then antialiased bilinear", "pixels": "uint8"},
        "novelty": {
            "limit": limit,
            "kept": round(float((answers[:, -1] <= limit).mean()), 4),
            "examples": _odd_shares(runtime, answered, limit, material, plan),
        },
        "metrics": measure(answers, dataset.targets[test], answered, limit),
        "exports": {"openvino": difference},
        "precisions": precisions,
        "history": state.history,
        "best_epoch": state.best + 1,
        "training_seconds": round(state.spent, 1),
        "data": _fingerprint(material),
        "plan": plan.as_saved(),
        "environment": _environment(),
    }
    root = material.catalogue.root
    write_splits(draft / SPLITS_FILE, root, dataset.paths, dataset.digests, dataset.rows, material.before)
    examined = Examined(
        tuple(dataset.paths[row] for row in test),
        answers,
        dataset.targets[test],
        answered,
        limit,
        lambda row: np.asarray(dataset.pixels[test[row]]),
        root,
    )

    def describe(folder: Path, facts: Mapping[str, Any]) -> None:
        _write_history(folder, state)
        write_report(folder, facts, examined)
        write_card(folder, facts)

    draft.chmod(0o755)
    return write_model(draft, plan.out, about, answered, describe)


def _runtime(plan: Plan, material: Material, draft: Path, precision: str = F32) -> OpenVinoRuntime:
    side = material.side
    unfinished = ModelInfo(plan.out.name, "draft", material.catalogue.tasks, (side, side), "")
    file = INT8_FILE if precision == INT8 else OPENVINO_FILE
    folder = ModelFolder(
        draft, replace(unfinished, facts={"precisions": {INT8: {}}}), {file: file_digest(draft / file)}
    )
    return OpenVinoRuntime(folder, CPU_BATCH, plan.threads, precision)


def _precisions(
    plan: Plan, material: Material, draft: Path, tasks: tuple[Task, ...], limit: float, logits: NDArray[np.float32]
) -> dict[str, Any]:
    """How close the answers of fewer bits are to `logits`, those of 32 bits, on the validation split: by precision."""
    rows, measured = material.dataset.rows["val"], {}
    for name in [*fewer_bits_here(), *([INT8] if plan.int8 else [])]:
        runtime = _runtime(plan, material, draft, name)
        other = all_logits(runtime.logits, material.dataset.pixels, rows, runtime.batch_size)
        measured[name] = closeness(logits, other, tasks, limit)
    return measured


def _odd_shares(
    runtime: OpenVinoRuntime, tasks: tuple[Task, ...], limit: float, material: Material, plan: Plan
) -> dict[str, float]:
    """The share of pictures unlike the data which ask for a look in every task, by kind."""
    kinds = novelty.odd_pictures((material.side, material.side), plan.seed)
    if plan.unlike and material.unlike is not None:
        name = plan.unlike.resolve().name
        kinds |= {f"{name} (of yours)" if name in kinds else name: material.unlike}
    shares = {}
    for kind, pixels in kinds.items():
        logits = all_logits(runtime.logits, pixels, np.arange(len(pixels)), runtime.batch_size)
        shares[kind] = round(review_share(logits, tasks, limit), 4)
    return shares


def review_share(logits: NDArray[np.float32], tasks: tuple[Task, ...], limit: float | None) -> float:
    """The share of photos whose answers all ask for a person's look, from logits with their novelty column."""
    any_label = np.zeros((len(logits), len(tasks)), np.int32)
    sure = [seen.sure for _, seen in judge(logits, any_label, tasks, limit)]
    return float((~np.any(sure, axis=0)).mean())


def _fingerprint(material: Material) -> dict[str, Any]:
    """What the model has seen: counts, findings, the files left out, digests over photos and labels."""
    catalogue, dataset = material.catalogue, material.dataset
    return {
        "photos": {split: len(rows) for split, rows in dataset.rows.items()},
        "labels": {task.name: dict(sorted(catalogue.label_counts(task).items())) for task in catalogue.tasks},
        "left_out": [{"file": file.path.name, "code": file.code} for file in dataset.rejected],
        "findings": [one.as_json() for one in material.findings],
        "sha256": dataset.digest(),
        "test_sha256": dataset.digest("test"),
    }


def _write_history(folder: Path, state: State) -> None:
    rows = [{"epoch": number, **row} for number, row in enumerate(state.history, start=1)]
    (folder / "history.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    with (folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0] if rows else ["epoch"], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def _environment() -> dict[str, str]:
    return {
        "vehclass": __version__,
        "python": platform.python_version(),
        **{name: installed(name) for name in PACKAGES},
    }
