"""What scaled decoding costs in accuracy: `python -m benchmarks.decode_accuracy MODEL PHOTOS`.

Classifies labelled photos twice: as vehclass decodes them, scaled in the DCT domain, and decoded whole and
then scaled down by an antialiased bilinear filter. PHOTOS is a folder per label, or a CSV manifest, as `vehclass train`
takes them. Prints both accuracies, the share of labels that changed, and the CPU of each way.
"""

import io
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from benchmarks.machine import describe
from vehclass.imaging import Pixels, decode
from vehclass.model.classifier import Classifier
from vehclass.model.folder import open_model
from vehclass.training.dataset import read_catalogue


def whole(data: bytes, size: tuple[int, int]) -> Pixels:
    """Every pixel decoded, then scaled down."""
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
        return np.asarray(upright.resize(size, Image.Resampling.BILINEAR))


def main() -> None:
    model, photos = Path(sys.argv[1]), Path(sys.argv[2])
    classifier = Classifier.open(open_model(model), kind="openvino", batch_size=None, threads=2, require_gpu=False)
    catalogue = read_catalogue(photos)
    size = classifier.info.input_size
    ways: dict[str, Any] = {
        "scaled while decoding": lambda data: decode(data, size)[0],
        "whole": lambda data: whole(data, size),
    }
    answers: dict[str, list[Any]] = {name: [] for name in ways}
    cpu = dict.fromkeys(ways, 0.0)
    for at in range(0, len(catalogue.samples), classifier.batch_size):
        data = [sample.path.read_bytes() for sample in catalogue.samples[at : at + classifier.batch_size]]
        for name, way in ways.items():
            began = time.thread_time()
            pixels = np.stack([way(one) for one in data])
            cpu[name] += time.thread_time() - began
            answers[name] += classifier.classify(pixels)
    print(
        f"Measured on {describe()}.\n\n| task | photos | {' | '.join(f'right, {name}' for name in ways)} | labels changed |"
    )
    print("| --- | ---: | ---: | ---: | ---: |")
    for number, task in enumerate(classifier.info.tasks):
        said = {name: [answer[number].label for answer in each] for name, each in answers.items()}
        truth = [sample.labels.get(task.name) or sample.labels.get("label") for sample in catalogue.samples]
        known = [n for n, label in enumerate(truth) if label is not None]
        right = {name: sum(each[n] == truth[n] for n in known) / len(known) for name, each in said.items()}
        changed = sum(len({each[n] for each in said.values()}) > 1 for n in known) / len(known)
        print(
            f"| {task.name} | {len(known):,} | {' | '.join(f'{share:.2%}' for share in right.values())} | {changed:.2%} |"
        )
    print(
        "\nCPU, ms a photo: "
        + ", ".join(f"{name} {1000 * seconds / len(catalogue.samples):.2f}" for name, seconds in cpu.items())
    )


if __name__ == "__main__":
    main()
