"""A reader: it hands over a few small images at a time and large or slow ones at once, and never waits with some in hand."""

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from vehclass.batch import reading
from vehclass.batch.batches import Todo
from vehclass.batch.flow import Allowance
from vehclass.batch.profile import Profile
from vehclass.batch.reading import Reader
from vehclass.errors import ReadError, ServiceUnreachable
from vehclass.records import ImageRef, LeaseClaim

WHEN = datetime(2026, 1, 1, tzinfo=UTC)


class Made:
    """A source of as many bytes as are listed, each after so many seconds."""

    url = "made-up://"
    prefix = ""
    concurrency = 1

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def check(self) -> None: ...

    def hold(self, claim: LeaseClaim) -> None: ...

    def pages(self, prefix: str) -> Iterator[list[ImageRef]]:
        yield []

    def read(self, ref: ImageRef) -> bytes:
        time.sleep(self.seconds)
        if ref.name == "vanished":
            raise ReadError("vanished", "Gone.")
        if ref.name == "cut":
            raise ServiceUnreachable(service=self.url, reason="the cable was cut")
        return bytes(ref.size)


def todos(*sizes: int, name: str = "photo") -> Iterator[Todo]:
    return iter([Todo(ImageRef(str(n), "made-up://", name, "1", size, WHEN), (0,)) for n, size in enumerate(sizes)])


def reader(source: Made | None = None, room: int = 10**9) -> Reader:
    return Reader(source or Made(), Allowance(room), 10**8, Profile())


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "TOGETHER_SECONDS", 60.0)


@pytest.mark.usefixtures("unhurried")
def test_small_images_are_handed_over_a_few_at_a_time() -> None:
    assert [len(some) for some in reader().some(todos(*[1000] * 70))] == [32, 32, 6]
    assert [len(some) for some in reader().some(todos(*[200_000] * 24))] == [11, 11, 2]


@pytest.mark.usefixtures("unhurried")
def test_large_images_are_handed_over_one_by_one() -> None:
    assert [len(some) for some in reader().some(todos(*[2_200_000] * 3))] == [1, 1, 1]


def test_slow_images_are_handed_over_one_by_one() -> None:
    assert [len(some) for some in reader(Made(0.02)).some(todos(*[1000] * 3))] == [1, 1, 1]


@pytest.mark.usefixtures("unhurried")
def test_what_is_in_hand_is_handed_over_before_room_is_waited_for() -> None:
    memory = Allowance(100)
    some = Reader(Made(), memory, 100, Profile()).some(todos(40, 40, 100, 1))
    assert [len(one.data) for one in next(some)] == [40, 40]
    threading.Timer(0.1, memory.give_back, [80]).start()
    began = time.monotonic()
    (large,) = next(some)  # which finds itself alone, so that the last has to wait
    assert len(large.data) == 100
    assert time.monotonic() - began > 0.09
    memory.give_back(100)
    assert [len(one.data) for one in next(some)] == [1]


@pytest.mark.usefixtures("unhurried")
def test_what_cannot_be_read_takes_no_room_and_has_its_reason() -> None:
    memory = Allowance(100)
    ((one, two),) = Reader(Made(), memory, 100, Profile()).some(iter([*todos(50, name="vanished"), *todos(101)]))
    assert (one.error and one.error.code, two.error and two.error.code) == ("vanished", "too_many_bytes")
    assert memory.take(100, wait=False)
    assert not memory.take(1, wait=False)


@pytest.mark.usefixtures("unhurried")
def test_what_came_before_the_source_went_away_is_handed_over() -> None:
    some = reader().some(iter([*todos(1, 2), *todos(3, name="cut")]))
    assert [len(one.data) for one in next(some)] == [1, 2]
    with pytest.raises(ServiceUnreachable):
        next(some)
