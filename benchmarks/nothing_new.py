"""A container of which every name is known: `python -m benchmarks.nothing_new [NAMES ...]`.

A made-up source lists names, a made-up classifier answers at once, and a SQLite file takes the rows. Printed
are, for each number of names, the seconds to fill the store, the seconds of the next run (which finds
nothing new and reads no photo), that run's peak memory, and the milliseconds of a query by label and
probability that finds one image in twenty. Each run is a process of its own.
"""

import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.machine import describe
from vehclass.batch import runs
from vehclass.batch.pipeline import Hands, Job, Watch
from vehclass.errors import ImageError
from vehclass.imaging import Pixels
from vehclass.records import ImageFacts, ImageRef, ModelInfo, Prediction, Task, image_id
from vehclass.stores import open_store

LABELS = tuple(f"label-{n:02d}" for n in range(25))
INFO = ModelInfo("made-up", "v1", (Task("make_model", LABELS),), (1, 1), "2026-01-01")
# One image in twenty is sure to be label 3, the others are not.
USUAL = (Prediction("make_model", LABELS[3], 0.52, False, (0.02,) * 3 + (0.52,) + (0.02,) * 21),)
RARE = (Prediction("make_model", LABELS[3], 0.976, False, (0.001,) * 3 + (0.976,) + (0.001,) * 21),)
QUERY = "SELECT count(name) FROM image_probability WHERE label = 'label-03' AND probability > 0.8"
FACTS = ImageFacts(1024, 768, "jpeg", "0" * 64)


class Names:
    """A source with pages of 5,000 names, as Azure's are; reading counts."""

    url = "made-up://container"
    concurrency = 2

    def __init__(self, count: int) -> None:
        self.count = count
        self.reads = 0

    def check(self) -> None: ...

    def pages(self, prefix: str) -> Iterator[list[ImageRef]]:
        when = datetime(2026, 1, 1, tzinfo=UTC)
        for start in range(0, self.count, 5000):
            names = (f"2026/11/{n % 30:02d}/IMG_{n:08d}.jpg" for n in range(start, min(self.count, start + 5000)))
            yield [ImageRef(image_id(self.url, name), self.url, name, "0x8DD0000", 100_000, when) for name in names]

    def read(self, ref: ImageRef) -> bytes:
        self.reads += 1
        return b"x"


class Ready:
    """A classifier that answers at once, with 25 probabilities."""

    info = INFO
    batch_size = 256

    def classify(self, pixels: Pixels) -> list[tuple[Prediction, ...] | ImageError]:
        return [USUAL if n % 20 else RARE for n in range(len(pixels))]


def one_run(count: int, store: str) -> None:
    """A run in this process; prints its seconds, its peak memory in MB, the images done and the reads."""
    source = Names(count)
    results = open_store(store, create=True)
    pixel = np.zeros((1, 1, 3), np.uint8)
    hands = Hands(source, lambda data: (pixel, FACTS), Ready(), results)
    began = time.monotonic()
    finished = runs.run(Job(lanes=2), hands, Watch(), command="benchmark", settings="{}")
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(f"{seconds:.2f} {peak:.0f} {finished.counts.done} {source.reads}")


def main() -> None:
    """Measures and prints the table."""
    if sys.argv[1:2] == ["--one"]:
        one_run(int(sys.argv[2]), sys.argv[3])
        return
    counts = [int(word) for word in sys.argv[1:]] or [10_000, 100_000, 1_000_000]
    print(f"Measured on {describe()}.\n")
    print(
        "| names | filling the store | images/s | nothing new | names/s | peak RSS, MB | photos read | store, MB | the query |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            store = str(Path(folder) / "r.db")
            words = [sys.executable, "-m", "benchmarks.nothing_new", "--one", str(count), store]
            rows = [subprocess.run(words, capture_output=True, text=True, check=True).stdout.split() for _ in range(2)]
            assert int(rows[0][2]) == count
            fill, again, peak, reads = float(rows[0][0]), float(rows[1][0]), rows[1][1], rows[1][3]
            size = Path(store).stat().st_size / 1e6
            reader = sqlite3.connect(store)
            began = time.perf_counter()
            assert reader.execute(QUERY).fetchone()[0] >= count // 20
            asked = (time.perf_counter() - began) * 1000
            reader.close()
            print(
                f"| {count:,} | {fill:,.1f} s | {count / fill:,.0f} | {again:.2f} s | {count / again:,.0f} | {peak} | {reads} | {size:,.0f} | {asked:,.0f} ms |",
                flush=True,
            )


if __name__ == "__main__":
    main()
