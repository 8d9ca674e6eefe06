"""Model folders to measure speed with: a backbone with random weights and one task of 25 labels."""

import tempfile
from pathlib import Path

LABELS = 25


def make_model(backbone: str, side: int, out: Path, seed: int = 0) -> Path:
    """A model folder at `out`, as training would leave it, without the training; weights from a seed."""
    import keras
    import numpy as np

    from vehclass.model.export import export_openvino
    from vehclass.model.folder import INT8_FILE, KERAS_FILE, OPENVINO_FILE, write_model
    from vehclass.model.network import build, stage_means, with_novelty
    from vehclass.records import Task, iso, now
    from vehclass.training.int8 import make_int8
    from vehclass.training.novelty import whitening

    keras.utils.set_random_seed(seed)
    tasks = (Task("make_model", tuple(f"label-{number:02}" for number in range(LABELS))),)
    network = build(backbone, (side, side), tasks)
    means = np.random.default_rng(0).normal(size=(1000, stage_means(network).output.shape[1])).astype(np.float32)
    draft = Path(tempfile.mkdtemp(dir=out.parent))
    with_novelty(network, *whitening(means)).save(draft / KERAS_FILE)
    export_openvino(draft / KERAS_FILE, draft / OPENVINO_FILE)
    noise = np.random.default_rng(1).integers(0, 256, (64, side, side, 3), np.uint8)
    make_int8(draft / OPENVINO_FILE, draft / INT8_FILE, noise, noise, 1e9)
    facts = {
        "name": out.name,
        "created_at": iso(now()),
        "backbone": backbone,
        "input_size": [side, side],
        "novelty": {"limit": 1e9},
        "precisions": {"int8": {}},
    }
    return write_model(draft, out, facts, tasks).path
