"""How many photos a second one process can carry on more cores than this machine has: `python -m benchmarks.many_cores [TIMES]`.

Python runs one thread at a time, so what a photo takes of that, reading and saving included, bounds every machine.
Here time stands for other cores: decoding runs its Python on a picture of a few pixels, and then sleeps for as long as
a photo of 1024x768 keeps native code busy. The network answers at once, as if a GPU did it. All else is what a run does: photos of
93 kB from a source in memory, 25 probabilities each into a SQLite file. In helper processes decoding sleeps only, since
its Python, too, would run on those other cores. Each figure is a median, the ways in turns.
"""

import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.machine import describe
from vehclass import imaging, imaging_apart
from vehclass.batch import runs
from vehclass.batch.batches import one_by_one
from vehclass.batch.hangs import Hangs
from vehclass.batch.pipeline import Hands, Job, Watch
from vehclass.batch.profile import Profile
from vehclass.errors import ImageError
from vehclass.imaging import Pixels
from vehclass.imaging_apart import Apart
from vehclass.model.classifier import answers
from vehclass.records import ImageFacts, ImageRef, LeaseClaim, ModelInfo, Prediction, Task, image_id
from vehclass.stores import open_store

NATIVE = 0.0022  # seconds of native code in decoding a photo of 1024x768
BYTES, SIZE, LABELS, BATCH = 93_000, (224, 224), 25, 64
LANES = (2, 4, 8, 16)
EACH = 1_500  # photos a lane
SLEEPS = 16  # photos whose time a helper sleeps at once: each sleep is longer than asked for
URL = "memory://photos"


def photo() -> bytes:
    """A small picture in a file of the usual size."""
    file = io.BytesIO()
    Image.new("RGB", (32, 24), (9, 80, 200)).save(file, "JPEG")
    return file.getvalue().ljust(BYTES, b"\0")


class Memory:
    """Photos that need no reading."""

    url, prefix, concurrency = URL, "", 4

    def __init__(self, count: int) -> None:
        self._count, self._data = count, photo()

    def check(self) -> None:
        """It is there."""

    def hold(self, claim: LeaseClaim) -> None:
        """It has no leases."""

    def pages(self, prefix: str = "") -> Iterator[list[ImageRef]]:
        """All names at once."""
        names, at = (f"{number}.jpg" for number in range(self._count)), datetime.now(UTC)
        yield [ImageRef(image_id(URL, name), URL, name, "1", BYTES, at) for name in names]

    def read(self, ref: ImageRef) -> bytes:
        """Any of them."""
        return self._data


class Instant:
    """A network that answers at once."""

    info = ModelInfo(
        "instant", "1", (Task("label", tuple(f"label-{n:02}" for n in range(LABELS))),), SIZE, "2026-01-01"
    )
    batch_size = BATCH

    def __init__(self) -> None:
        self._logits = np.random.default_rng(0).normal(size=(BATCH, LABELS)).astype(np.float32)

    def classify(self, pixels: Pixels) -> list[tuple[Prediction, ...] | ImageError]:
        """What a classifier does with the answers of its network."""
        return answers(np.resize(self._logits, (len(pixels), LABELS)), self.info.tasks)


def in_a_thread(data: bytes, size: tuple[int, int]) -> tuple[Pixels, ImageFacts]:
    """Decodes a small picture, and sleeps for the rest of a large one."""
    _, facts = imaging.decode(data, (16, 16))
    time.sleep(NATIVE)
    return np.full((size[1], size[0], 3), 9, np.uint8), facts


def helper() -> None:
    """What a helper process runs: decoding sleeps, since its Python would be another core's."""
    decoded = [0]

    def asleep(*_: Any, **__: Any) -> tuple[int, ImageFacts]:
        decoded[0] += 1
        if decoded[0] % SLEEPS == 0:
            time.sleep(NATIVE * SLEEPS)
        return 0, ImageFacts(32, 24, "jpeg", "0" * 64)

    imaging_apart.decode = asleep  # type: ignore[assignment]  # an array of nothing but zeros
    imaging_apart.main()


def one_run(way: str, lanes: int) -> None:
    """A run in this process; prints its photos a second."""
    apart = Apart()
    if way == "helpers":
        apart._command[1:] = ["-m", "benchmarks.many_cores", "helper"]
    decode = apart.decode if way == "helpers" else one_by_one(Hangs(in_a_thread, 120).decode)
    with tempfile.TemporaryDirectory() as name:
        store = open_store(f"sqlite:///{Path(name) / 'store.db'}", create=True)
        count = EACH * lanes
        watch = Watch(profile=Profile(lanes, lanes))
        began, cpu = time.perf_counter(), time.process_time()
        runs.run(Job(lanes=lanes), Hands(Memory(count), decode, (Instant(),), store), watch, command="", settings="{}")
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        store.close()
    apart.close()
    print(json.dumps({"rate": count / seconds, "cpu_us": cpu / count * 1e6}))


def main() -> None:
    if sys.argv[1:2] == ["helper"]:
        sys.argv[1:] = sys.argv[2:]
        helper()
        return
    if sys.argv[1:2] == ["one"]:
        one_run(sys.argv[2], int(sys.argv[3]))
        return
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print(f"Measured on {describe()}.\n")
    print(
        "| cores, by time | photos/s, threads | photos/s, helpers | decoding alone | CPU of the process, us a photo |"
    )
    print("| ---: | ---: | ---: | ---: | --- |")
    for lanes in LANES:
        found: dict[str, list[dict[str, float]]] = {"threads": [], "helpers": []}
        for _ in range(times):
            for way, each in found.items():
                words = [sys.executable, "-m", "benchmarks.many_cores", "one", way, str(lanes)]
                each.append(json.loads(subprocess.run(words, check=True, capture_output=True).stdout))
        rates, cpu = (
            [statistics.median(one[what] for one in each) for each in found.values()] for what in ("rate", "cpu_us")
        )
        shown = " | ".join(f"{rate:,.0f}" for rate in (*rates, lanes / NATIVE))
        print(f"| {lanes} | {shown} | {cpu[0]:.0f}, {cpu[1]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
