"""A run with everything real but the network: a folder, the pipeline, leases, a SQLite store; the answer is a function of the bytes.

`python tests/standin_run.py FOLDER STORE` exits as `vehclass classify-batch` does. It starts in a third of a second, so that
it can be killed a thousand times.
"""

import hashlib
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from vehclass.batch import runs
from vehclass.batch.batches import one_by_one
from vehclass.batch.pipeline import Hands, Job, Watch
from vehclass.errors import VehclassError
from vehclass.records import ImageFacts, ModelInfo, Prediction, Task
from vehclass.sources.folder import FolderSource
from vehclass.stores import open_store

LABELS = ("a", "b", "c", "d")
MODEL = ModelInfo("standin", "5tand1n", (Task("label", LABELS),), (1, 1), "2026-01-01T00:00:00Z")


def label_of(data: bytes) -> str:
    return LABELS[hashlib.sha256(data).digest()[0] % len(LABELS)]


def decode(data: bytes, size: tuple[int, int]) -> Any:
    digest = hashlib.sha256(data)
    return np.full((1, 1, 3), digest.digest()[0], np.uint8), ImageFacts(1, 1, "jpeg", digest.hexdigest())


class StandIn:
    info = MODEL
    batch_size = 16

    def classify(self, pixels: Any) -> Any:
        time.sleep(0.01)  # about what a small network takes, so that there is a run to be killed
        return [self._answer(LABELS[int(one[0, 0, 0]) % len(LABELS)]) for one in pixels]

    def _answer(self, label: str) -> Any:
        shares = tuple(0.7 if one == label else 0.1 for one in LABELS)
        return (Prediction("label", label, 0.7, False, shares),)


def main() -> int:
    folder, store = Path(sys.argv[1]), open_store(f"sqlite:///{sys.argv[2]}", create=True)
    hands = Hands(FolderSource(folder), one_by_one(decode), (StandIn(),), store)
    try:
        (done,) = runs.run(Job(lanes=2), hands, Watch(), command="standin", settings="{}")
    except VehclassError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    return int(done.exit_code)


if __name__ == "__main__":
    sys.exit(main())
