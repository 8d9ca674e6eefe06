"""How far a linear model gets on the data of a model: `python -m benchmarks.linear_baseline DATA [SIDE]`.

Ridge regression on the pixels at 24x24, with the best of five strengths by the test photos, which flatters it.
The split is the one that `vehclass train` makes with the same seed and SIDE (160 by default).
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from vehclass.training.dataset import MISSING, read_catalogue
from vehclass.training.decoded import dataset_of, look
from vehclass.training.fit import split

SIDE = 24


def main() -> None:
    """Prints the test accuracy for each task."""
    side = int(sys.argv[2]) if len(sys.argv) > 2 else 160
    catalogue = read_catalogue(Path(sys.argv[1]))
    seen = look(catalogue, (side, side), threads=os.cpu_count() or 1, cache_beside=Path(tempfile.gettempdir()))
    data = dataset_of(catalogue, seen, split(catalogue, seen, 0))
    small = [
        Image.fromarray(np.asarray(picture)).resize((SIDE, SIDE), Image.Resampling.BILINEAR) for picture in data.pixels
    ]
    pixels = np.stack([np.asarray(picture, np.float64).reshape(-1) for picture in small])
    train = np.concatenate([data.rows["train"], data.rows["val"]])
    pixels = (pixels - pixels[train].mean(axis=0)) / (pixels[train].std(axis=0) + 1e-6)
    for column, task in enumerate(catalogue.tasks):
        learn, try_on = (rows[data.targets[rows, column] != MISSING] for rows in (train, data.rows["test"]))
        wanted = np.eye(len(task.labels))[data.targets[learn, column]]
        gram, moments = pixels[learn].T @ pixels[learn], pixels[learn].T @ (wanted - wanted.mean(axis=0))
        scores = []
        for strength in (1e1, 1e2, 1e3, 1e4, 1e5):
            weights = np.linalg.solve(gram + strength * np.eye(len(gram)), moments)
            guesses = np.argmax(pixels[try_on] @ weights + wanted.mean(axis=0), axis=1)
            scores.append((guesses == data.targets[try_on, column]).mean())
        print(f"{task.name}: {max(scores):.1%} of {len(try_on)} test photos")


if __name__ == "__main__":
    main()
