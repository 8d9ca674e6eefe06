"""The batch with ten-line stand-ins: one photo in, one row out, in bounded memory, whatever happens."""

import threading
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from vehclass.batch import pipeline, reading, runs
from vehclass.batch.batches import one_by_one
from vehclass.batch.pipeline import Hands, Job, Watch
from vehclass.errors import DecodeError, ImageError, Interrupted, LeaseLost, ReadError, ServiceUnreachable
from vehclass.imaging import Pixels
from vehclass.records import (
    ImageFacts,
    ImageRef,
    LeaseClaim,
    ModelInfo,
    Outcome,
    Prediction,
    ResultFilter,
    Task,
    image_id,
)
from vehclass.stores import Store, open_store

INFO = ModelInfo("stand-in", "v1", (Task("parity", ("even", "odd")),), (2, 2), "2026-01-01")
FACTS = ImageFacts(2, 2, "jpeg", "00")


class Names:
    """A source that makes its images up: number n's bytes are n."""

    url = "made-up://"
    prefix = ""
    concurrency = 3

    def __init__(self, count: int, page: int = 100) -> None:
        self.count, self.page = count, page
        self.reads: list[str] = []

    def check(self) -> None: ...

    def hold(self, claim: LeaseClaim) -> Any: ...

    def pages(self, prefix: str) -> Iterator[list[ImageRef]]:
        when = datetime(2026, 1, 1, tzinfo=UTC)
        for start in range(0, self.count, self.page):
            names = [str(n) for n in range(start, min(self.count, start + self.page))]
            yield [ImageRef(image_id(self.url, name), self.url, name, "1", 8, when) for name in names]

    def read(self, ref: ImageRef) -> bytes:
        self.reads.append(ref.name)
        return ref.name.encode()


class Parity:
    """A classifier of numbers."""

    info = INFO
    batch_size = 10

    def classify(self, pixels: Pixels) -> list[tuple[Prediction, ...] | ImageError]:
        odd = pixels[:, 0, 0, 0] % 2
        return [(Prediction("parity", INFO.tasks[0].labels[n], 1.0, False, (1.0 - n, float(n))),) for n in odd.tolist()]


def decode(data: bytes, size: tuple[int, int] = (2, 2)) -> tuple[Pixels, ImageFacts]:
    return np.full((2, 2, 3), int(data) % 256, np.uint8), FACTS


@pytest.fixture
def store() -> Iterator[Store]:
    made = open_store("sqlite:///:memory:", create=True)
    yield made
    made.close()


def tell(source: Any, store: Store, job: Job | None = None, watch: Watch | None = None, **hands: Any) -> runs.Finished:
    parts: dict[str, Any] = {"decode": decode, "classifiers": (Parity(),), **hands}
    parts["decode"] = one_by_one(parts["decode"])
    (finished,) = runs.run(
        job or Job(lanes=2), Hands(source, store=store, **parts), watch or Watch(), command="test", settings="{}"
    )
    return finished


def names(store: Store, what: str = "predictions", **wanted: Any) -> set[str]:
    return {row["name"] for row in store.results(what, ResultFilter(**wanted))}


def test_one_photo_in_one_row_out(store: Store) -> None:
    finished = tell(Names(1234), store)
    assert (finished.exit_code, finished.counts.classified) == (0, 1234)
    assert names(store, label="odd") == {str(n) for n in range(1, 1234, 2) if n % 256 % 2}
    assert len(names(store)) == 1234
    assert tell(Names(1234), store).counts.done == 0


def test_each_stage_may_fail_for_one_image(store: Store) -> None:
    class Torn(Names):
        def read(self, ref: ImageRef) -> bytes:
            if ref.name == "3":
                raise ReadError("vanished", "Gone.")
            return super().read(ref)

    def picky(data: bytes, size: tuple[int, int]) -> tuple[Pixels, ImageFacts]:
        if data == b"14":
            raise DecodeError("corrupt", "Damaged.")
        return decode(data)

    class Unsure(Parity):
        def classify(self, pixels: Pixels) -> list[tuple[Prediction, ...] | ImageError]:
            answers = super().classify(pixels)
            return [
                ImageError("not_finite", "NaN.") if p[0, 0, 0] == 25 else a
                for p, a in zip(pixels, answers, strict=True)
            ]

    finished = tell(Torn(40), store, decode=picky, classifiers=(Unsure(),))
    assert finished.exit_code == 3
    failed = {row["name"]: (row["stage"], row["code"]) for row in store.results("failures", ResultFilter())}
    assert failed == {"3": ("read", "vanished"), "14": ("decode", "corrupt"), "25": ("classify", "not_finite")}
    assert len(names(store)) == 37


def test_a_file_that_is_too_large_is_not_read(store: Store) -> None:
    source = Names(5)
    tell(source, store, Job(max_bytes=7))
    assert source.reads == []
    assert {row["code"] for row in store.results("failures", ResultFilter())} == {"too_many_bytes"}


def test_a_source_that_goes_away_keeps_what_was_done(store: Store) -> None:
    class Gone(Names):
        def pages(self, prefix: str) -> Iterator[list[ImageRef]]:
            yield from list(super().pages(prefix))[:3]
            raise ServiceUnreachable(service=self.url, reason="the cable was cut")

    with pytest.raises(ServiceUnreachable):
        tell(Gone(1000), store)
    assert len(names(store)) == 300
    (run,) = store.runs(limit=1)
    assert (run["status"], run["exit_code"], run["classified"]) == ("failed", 5, 300)
    assert tell(Names(1000), store).counts.classified == 700


def test_a_classifier_that_breaks_ends_the_run_and_frees_the_lease(store: Store) -> None:
    class Broken(Parity):
        def classify(self, pixels: Pixels) -> list[tuple[Prediction, ...] | ImageError]:
            raise RuntimeError("the device fell off the bus")

    with pytest.raises(RuntimeError, match="fell off"):
        tell(Names(50), store, classifiers=(Broken(),))
    assert store.runs(limit=1)[0]["message"] == "the device fell off the bus"
    assert tell(Names(50), store).counts.classified == 50


@pytest.mark.timeout(60)
def test_readers_that_wait_for_room_do_not_keep_a_run_that_breaks(store: Store) -> None:
    class Large(Names):
        def pages(self, prefix: str) -> Iterator[list[ImageRef]]:
            for page in super().pages(prefix):
                yield [replace(ref, size=60_000_000) for ref in page]

    class Broken(Parity):
        batch_size = 1

        def classify(self, pixels: Pixels) -> list[tuple[Prediction, ...] | ImageError]:
            time.sleep(0.2)  # until no reader has room for another
            raise RuntimeError("the device fell off the bus")

    with pytest.raises(RuntimeError, match="fell off"):
        tell(Large(50), store, classifiers=(Broken(),))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-")]


@pytest.mark.timeout(60)
def test_stopping_ends_soon_while_readers_wait_for_room(store: Store) -> None:
    """Photos so large that room for them is what a run mostly waits for."""

    class Large(Names):
        concurrency = 32

        def pages(self, prefix: str) -> Iterator[list[ImageRef]]:
            for page in super().pages(prefix):
                yield [replace(ref, size=10_000_000) for ref in page]

        def read(self, ref: ImageRef) -> bytes:
            return super().read(ref).ljust(10_000_000)

    def slowly(data: bytes, size: tuple[int, int]) -> tuple[Pixels, ImageFacts]:
        time.sleep(0.02)
        return decode(data[:20], size)

    watch = Watch()
    threading.Timer(1.0, watch.stop.set).start()
    began = time.monotonic()
    with pytest.raises(Interrupted):
        tell(Large(10_000), store, Job(lanes=2, max_bytes=20_000_000), watch, decode=slowly)
    assert time.monotonic() - began < 5


def test_stopping_ends_soon_and_saves_what_is_in_hand(store: Store) -> None:
    class Slow(Parity):
        def classify(self, pixels: Pixels) -> list[tuple[Prediction, ...] | ImageError]:
            time.sleep(0.05)
            return super().classify(pixels)

    watch = Watch()
    threading.Timer(0.5, watch.stop.set).start()
    began = time.monotonic()
    with pytest.raises(Interrupted, match="SIGINT"):
        tell(Names(10_000), store, watch=watch, classifiers=(Slow(),))
    assert time.monotonic() - began < 5
    assert 0 < len(names(store)) < 10_000
    assert store.runs(limit=1)[0]["classified"] == len(names(store))


def test_a_run_that_lost_its_lease_writes_nothing_more(store: Store) -> None:
    class Stolen(Parity):
        def classify(self, pixels: Pixels) -> list[tuple[Prediction, ...] | ImageError]:
            store._db._connection.execute("UPDATE lease SET fence = fence + 1, run_id = 'thief'")
            return super().classify(pixels)

    with pytest.raises(LeaseLost):
        tell(Names(50), store, classifiers=(Stolen(),))
    assert names(store) == set()


def test_a_limit_and_a_pattern(store: Store) -> None:
    tell(Names(1000), store, Job(limit=37))
    assert len(names(store)) == 37
    tell(Names(1000), store, Job(include=("99?", "5")))
    assert {f"99{n}" for n in range(10)} <= names(store)


def test_memory_does_not_grow_with_a_listing_of_nothing_new(store: Store) -> None:
    """What a run holds while it lists: a few pages and a stretch, however many there are."""
    peaks = []
    for count in (20_000, 60_000):
        tell(Names(count, page=1000), store)
        tracemalloc.start()
        assert tell(Names(count, page=1000), store).counts.done == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.parametrize("page", [100, 5_000])
def test_a_listing_runs_ahead_by_some_thousand_names(store: Store, page: int) -> None:
    """As many as hide the wait for the next page, however long the listing is and however large its pages are."""
    listed = 0

    class Counted(Names):
        def pages(self, prefix: str) -> Iterator[list[ImageRef]]:
            nonlocal listed
            for names in super().pages(prefix):
                listed += len(names)
                yield names

    def waits(data: bytes, size: tuple[int, int]) -> tuple[Pixels, ImageFacts]:
        if not watch.stop.is_set():
            until = time.monotonic() + 30
            while listed < pipeline.NAMES_AHEAD and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(0.3)  # time enough for many pages more
            watch.stop.set()
            ahead.append(listed)
        return decode(data, size)

    ahead: list[int] = []
    watch = Watch()
    with pytest.raises(Interrupted):
        tell(Counted(100_000, page), store, watch=watch, decode=waits)
    # Beside what waits: the page that is being taken, the one that no longer finds room, and what is read ahead.
    assert pipeline.NAMES_AHEAD <= max(ahead) <= pipeline.NAMES_AHEAD + 2 * page + 1_000


class Heavy(Names):
    """Photos of so many bytes each, and how many were held at most, from being read to being decoded."""

    concurrency = 1

    def __init__(self, count: int, size: int) -> None:
        super().__init__(count)
        self.size, self.held, self.most = size, 0, 0
        self._counting = threading.Lock()

    def pages(self, prefix: str) -> Iterator[list[ImageRef]]:
        for page in super().pages(prefix):
            yield [replace(ref, size=self.size) for ref in page]

    def read(self, ref: ImageRef) -> bytes:
        with self._counting:
            self.held += 1
            self.most = max(self.most, self.held)
        return super().read(ref).ljust(self.size)

    def decode(self, data: bytes, size: tuple[int, int]) -> tuple[Pixels, ImageFacts]:
        time.sleep(0.002)
        with self._counting:
            self.held -= 1
        return decode(data[:20], size)


@pytest.mark.parametrize("size", [1, 40, 60, 90, 100])
def test_who_reads_does_not_wait_for_what_it_holds_itself(
    store: Store, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """With room for the largest file and for little more: a reader that has one in hand must let go of it first."""
    monkeypatch.setattr(pipeline, "PART_BYTES", 5)
    monkeypatch.setattr(reading, "TOGETHER_SECONDS", 60.0)
    source = Heavy(50, size)
    assert tell(source, store, Job(lanes=2, max_bytes=100), decode=source.decode).counts.classified == 50


def test_few_large_photos_are_held_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader hands them over one by one and a lane takes two at a time, where of small ones it takes a batch."""
    monkeypatch.setattr(reading, "TOGETHER", 100)
    monkeypatch.setattr(reading, "SMALL", 20)
    monkeypatch.setattr(pipeline, "READ_AHEAD", 200)
    monkeypatch.setattr(pipeline, "PART_BYTES", 1600)
    monkeypatch.setattr(reading, "TOGETHER_SECONDS", 60.0)
    held = {}
    for size in (20, 700):
        source = Heavy(400, size)
        source.url = f"made-up://{size}"
        assert tell(source, store, Job(lanes=2, max_bytes=100_000), decode=source.decode).counts.classified == 400
        held[size] = source.most
    # What waits: one and one in the reader's hand; a part that is not full; a part for each lane.
    assert held[700] <= 1 + 1 + 3 * 2 + 1, held
    assert held[20] > 2 * held[700]


def test_room_is_given_back_when_nobody_has_the_bytes_any_more(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one file at a time there is only one at a time, however many readers, lanes and queues it passed."""
    monkeypatch.setattr(pipeline, "PART_BYTES", 5)
    alive, most, lock = 0, 0, threading.RLock()

    class Bytes(bytes):
        def __new__(cls, data: bytes) -> "Bytes":
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)
            return super().__new__(cls, data)

        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

    class Counted(Heavy):
        concurrency = 8

        def read(self, ref: ImageRef) -> bytes:
            return Bytes(super().read(ref))

    source = Counted(60, 90)
    assert tell(source, store, Job(lanes=2, max_bytes=100), decode=source.decode).counts.classified == 60
    assert (alive, most) == (0, 1)


def test_what_was_read_before_the_source_went_away_is_saved(store: Store) -> None:
    class Gone(Names):
        concurrency = 1

        def read(self, ref: ImageRef) -> bytes:
            if ref.name == "297":
                raise ServiceUnreachable(service=self.url, reason="the cable was cut")
            return super().read(ref)

    with pytest.raises(ServiceUnreachable):
        tell(Gone(1000), store)
    assert names(store) == {str(n) for n in range(297)}


def test_memory_is_bounded_where_the_store_is_a_hundred_times_slower(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photos of 100 kB come by the ten thousand a second, and the store takes 3 ms for each result."""

    class Large(Names):
        def pages(self, prefix: str) -> Iterator[list[ImageRef]]:
            for page in super().pages(prefix):
                yield [replace(ref, size=100_000) for ref in page]

        def read(self, ref: ImageRef) -> bytes:
            return super().read(ref).ljust(100_000)

    ahead, peaks = [], []
    save = store.save

    for start, count in ((0, 1100), (1, 2200)):  # more than are ever under way
        source = Large(count)
        source.url = f"made-up://{start}"
        saved = 0

        def slowly(outcomes: Sequence[Outcome], *rest: Any, source: Large = source, **more: Any) -> None:
            nonlocal saved
            ahead.append(len(source.reads) - saved)
            time.sleep(0.003 * len(outcomes))
            ahead.append(len(source.reads) - saved)
            save(outcomes, *rest, **more)
            saved += len(outcomes)

        monkeypatch.setattr(store, "save", slowly)
        tracemalloc.start()
        assert tell(source, store).counts.classified == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(ahead) < 1000, "more images are under way than a few turns and what waits to be saved"
    assert peaks[1] < 1.3 * peaks[0]
    assert peaks[1] < 18e6, peaks
