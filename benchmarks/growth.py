"""How the cost of a run grows with a container, and with what is new in it: `python -m benchmarks.growth [NAMES ...]`.

A made-up source lists names in pages of 5,000, as Azure's are; a made-up classifier answers at once with 25
probabilities, and a SQLite file takes the rows. For each number of names: a run on an empty store, one where nothing
is new, the same with `full`, and one where a hundredth is new, spread over the whole listing. Each is a process of its
own; printed are its seconds, how many names the store was asked about in how many questions, and its peak memory; and
the milliseconds of a query by label and probability that finds one image in twenty.
"""

import json
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from vehclass.batch import runs
from vehclass.batch.batches import one_by_one
from vehclass.batch.pipeline import Hands, Job, Watch
from vehclass.errors import ImageError
from vehclass.imaging import Pixels
from vehclass.records import ImageFacts, ImageRef, ModelInfo, Prediction, Task, image_id, now
from vehclass.stores import open_store

LABELS = tuple(f"label-{n:02d}" for n in range(25))
INFO = ModelInfo("made-up", "v1", (Task("make_model", LABELS),), (1, 1), "2026-01-01")
# One image in twenty is sure to be label 3, the others are not.
USUAL = (Prediction("make_model", LABELS[3], 0.52, False, (0.02,) * 3 + (0.52,) + (0.02,) * 21),)
RARE = (Prediction("make_model", LABELS[3], 0.976, False, (0.001,) * 3 + (0.976,) + (0.001,) * 21),)
QUERY = "SELECT count(name) FROM image_probability WHERE label = 'label-03' AND probability > 0.8"
FACTS = ImageFacts(1024, 768, "jpeg", "0" * 64)
PAGE, A_HUNDREDTH = 5_000, 100
RUNS = {"all": "all", "none": "none", "none, --full": "none", "1 %": "some"}


class Names:
    """A source with pages of 5,000 names; with `some`, one more after every hundredth, uploaded just now."""

    url = "made-up://container"
    prefix = ""
    concurrency = 2

    def __init__(self, count: int, some: bool) -> None:
        self.count, self.some = count, some

    def check(self) -> None: ...

    def hold(self, claim: object) -> None: ...

    def pages(self, prefix: str) -> Iterator[list[ImageRef]]:
        long_ago, just_now = datetime(2026, 1, 1, tzinfo=UTC), now() + timedelta(seconds=1)
        for start in range(0, self.count, PAGE):
            page = []
            for n in range(start, min(self.count, start + PAGE)):
                page.append(self._ref(f"2026/11/IMG_{n:08d}.jpg", long_ago))
                if self.some and n % A_HUNDREDTH == 0:
                    page.append(self._ref(f"2026/11/IMG_{n:08d}b.jpg", just_now))
            yield page

    def _ref(self, name: str, when: datetime) -> ImageRef:
        return ImageRef(image_id(self.url, name), self.url, name, "0x8DD0000", 100_000, when)

    def read(self, ref: ImageRef) -> bytes:
        return b"x"


class Ready:
    """A classifier that answers at once, with 25 probabilities."""

    info = INFO
    batch_size = 256

    def classify(self, pixels: Pixels) -> list[tuple[Prediction, ...] | ImageError]:
        return [USUAL if n % 20 else RARE for n in range(len(pixels))]


class Counted:
    """A store that counts what it is asked."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.questions = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def unseen(self, refs: Sequence[ImageRef], model: ModelInfo, *, retry_failed: bool) -> Any:
        self.questions += 1
        return self._store.unseen(refs, model, retry_failed=retry_failed)


def one_run(count: int, what: str, store: str) -> None:
    """A run in this process; prints what it took as JSON."""
    results = Counted(open_store(store, create=True))
    pixel = np.zeros((1, 1, 3), np.uint8)
    decode = one_by_one(lambda data, size: (pixel, FACTS))
    hands = Hands(Names(count, RUNS[what] == "some"), decode, (Ready(),), results)  # type: ignore[arg-type]  # a Store by delegation
    job, watch = Job(lanes=2, full="--full" in what), Watch()
    began = time.monotonic()
    (finished,) = runs.run(job, hands, watch, command="benchmark", settings="{}")
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    asked = {"names": watch.progress.asked, "questions": results.questions}
    print(json.dumps({"seconds": seconds, "peak": peak, "done": finished.counts.done, **asked}))


def main() -> None:
    """Measures and prints the tables."""
    if sys.argv[1:2] == ["--one"]:
        one_run(int(sys.argv[2]), sys.argv[3], sys.argv[4])
        return
    counts = [int(word) for word in sys.argv[1:]] or [1_000, 10_000, 100_000, 1_000_000]
    print(f"Measured on {describe()}.\n")
    print("| names | new | seconds | names/s | classified | asked about | in questions | peak RSS, MB |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    queries = []
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            store = str(Path(folder) / "r.db")
            for what in RUNS:
                words = [sys.executable, "-m", "benchmarks.growth", "--one", str(count), what, store]
                took = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
                expected = {"all": count, "some": -(-count // A_HUNDREDTH), "none": 0}[RUNS[what]]
                assert took["done"] == expected, (took, expected)
                print(
                    f"| {count:,} | {what} | {took['seconds']:.2f} | {count / took['seconds']:,.0f} | {took['done']:,} | "
                    f"{took['names']:,} | {took['questions']:,} | {took['peak']:.0f} |",
                    flush=True,
                )
            reader = sqlite3.connect(store)
            began = time.perf_counter()
            found = reader.execute(QUERY).fetchone()[0]
            queries.append((count, Path(store).stat().st_size / 1e6, found, (time.perf_counter() - began) * 1000))
            reader.close()
    print("\n| names | store, MB | the query finds | in |\n| ---: | ---: | ---: | ---: |")
    for count, size, found, milliseconds in queries:
        print(f"| {count:,} | {size:,.0f} | {found:,} | {milliseconds:,.0f} ms |")


if __name__ == "__main__":
    main()
