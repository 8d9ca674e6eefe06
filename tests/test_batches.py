"""A lane's turns: several quick batches are decoded before they are computed, and each image has one outcome."""

import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from vehclass.batch import batches
from vehclass.batch.batches import Read, Turn, one_by_one
from vehclass.errors import DecodeError, ImageError, ReadError
from vehclass.imaging import Pixels
from vehclass.records import ImageFacts, ImageRef, ModelInfo, Prediction, Task

FACTS = ImageFacts(2, 2, "jpeg", "00")


class Told:
    """A classifier that remembers how many pictures it was asked at a time, and answers with the first number of each."""

    def __init__(self, batch_size: int = 10, side: int = 2, seconds: float = 0.0) -> None:
        self.batch_size = batch_size
        self.info = ModelInfo("told", f"v{side}", (Task("number", ("low", "high")),), (side, side), "2026-01-01")
        self.asked: list[int] = []
        self._seconds = seconds

    def classify(self, pixels: Pixels) -> list[tuple[Prediction, ...] | ImageError]:
        self.asked.append(len(pixels))
        time.sleep(self._seconds)
        return [
            (Prediction("number", "low", n / 255, False, (n / 255, 1 - n / 255)),) for n in pixels[:, 0, 0, 0].tolist()
        ]


def decode(data: bytes, size: tuple[int, int]) -> tuple[Pixels, ImageFacts]:
    if data == b"broken":
        raise DecodeError("corrupt", "Damaged.")
    return np.full((size[1], size[0], 3), int(data), np.uint8), FACTS


def read(name: str, models: tuple[int, ...] = (0,), error: ReadError | None = None) -> Read:
    when = datetime(2026, 1, 1, tzinfo=UTC)
    return Read(ImageRef(name, "made-up://", name, "1", 8, when), models, name.encode(), error)


def batch(start: int, count: int = 10) -> list[Read]:
    return [read(str(n)) for n in range(start, start + count)]


def turns(turn: Turn, count: int) -> list[int]:
    """How many images each turn had, of so many batches of ten."""
    sizes = []
    for n in range(count):
        turn.take(batch(n % 20 * 10))
        if turn.is_over:
            sizes.append(len(turn.outcomes()))
    return sizes


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other tests as well does not end a turn early."""
    monkeypatch.setattr(batches, "TURN_SECONDS", 60.0)
    monkeypatch.setattr(batches, "WAITED_SECONDS", 0.3)


@pytest.mark.usefixtures("unhurried")
def test_quick_batches_are_computed_together_once_it_is_known_that_they_are_quick() -> None:
    assert turns(Turn(one_by_one(decode), [Told()]), 13) == [10, 40, 40, 40]


@pytest.mark.parametrize("cause", [None, OSError])
def test_nobody_keeps_the_bytes_of_photos_of_which_the_last_is_broken(cause: type[OSError] | None) -> None:
    """Nor a circle of an error, its traceback and a frame that knows it: Python seldom looks for those."""
    alive = 0

    class Counted(bytes):
        def __new__(cls, data: bytes) -> "Counted":
            nonlocal alive
            alive += 1
            return super().__new__(cls, data)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def refuse(data: bytes, size: tuple[int, int]) -> tuple[Pixels, ImageFacts]:
        try:
            if data != b"broken":
                return decode(data, size)
            raise cause("cut off") if cause else DecodeError("corrupt", "Damaged.")
        except OSError as error:
            raise DecodeError("corrupt", "Damaged.") from error

    turn = Turn(one_by_one(refuse), [Told()])
    gc.disable()
    try:
        for _ in range(5):
            turn.take([replace(read(name), data=Counted(name.encode())) for name in ("1", "2", "broken")])
            assert len(turn.outcomes()) == 3
        assert alive == 0
    finally:
        gc.enable()


def test_slow_batches_are_computed_one_by_one() -> None:
    """So that a signal, and a photo's row, need not wait for several of them."""
    assert turns(Turn(one_by_one(decode), [Told(seconds=0.2)]), 5) == [10] * 5


def test_batches_that_are_slow_to_decode_are_computed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "TURN_SECONDS", 0.05)

    def slowly(data: bytes, size: tuple[int, int]) -> tuple[Pixels, ImageFacts]:
        time.sleep(0.006)
        return decode(data, size)

    assert turns(Turn(one_by_one(slowly), [Told()]), 5) == [10] * 5


@pytest.mark.usefixtures("unhurried")
def test_who_waits_for_images_computes_what_there_is() -> None:
    turn = Turn(one_by_one(decode), [Told()])
    assert turns(turn, 5) == [10, 40]
    sizes = []
    for _ in range(3):
        time.sleep(2 * batches.WAITED_SECONDS)  # a source that is slower than the lane
        sizes += turns(turn, 1)
    assert sizes == [10, 10, 10]


@pytest.mark.usefixtures("unhurried")
def test_the_pixels_of_a_turn_are_bounded() -> None:
    large = Told(side=1024)  # 3 MB each, so a batch has more than a turn is to have
    turn = Turn(one_by_one(decode), [large])
    assert turns(turn, 3) == [10, 10, 10]
    assert large.asked == [10, 10, 10]


def test_each_image_has_one_outcome_of_each_model_that_it_is_for() -> None:
    small, other, large = Told(), Told(), Told(side=4)
    turn = Turn(one_by_one(decode), [small, other, large])
    gone = ReadError("vanished", "Gone.")
    asked: Sequence[Read] = [
        read("1", (0, 1, 2)),
        read("2", (1,)),
        read("broken", (0, 2)),
        read("3", (2,), gone),
        read("4", (0, 1)),
    ]
    for _ in range(2):  # what a turn leaves behind is not in the next
        turn.take(asked)
        found = {
            (model, one.ref.name): one.failure.code if one.failure else round(one.predictions[0].probability * 255)
            for model, one in turn.outcomes()
        }
        assert found == {
            (0, "1"): 1,
            (0, "4"): 4,
            (0, "broken"): "corrupt",
            (1, "1"): 1,
            (1, "2"): 2,
            (1, "4"): 4,
            (2, "1"): 1,
            (2, "broken"): "corrupt",
            (2, "3"): "vanished",
        }
    assert (small.asked, other.asked, large.asked) == ([2, 2], [3, 3], [1, 1])


@pytest.mark.usefixtures("unhurried")
def test_whole_batches_are_computed_however_images_come() -> None:
    """A network takes as long for a part of a batch, so large photos, which come one or two at a time, are put together."""
    told = Told()
    turn, left, found = Turn(one_by_one(decode), [told]), 0, 0
    for start in range(0, 42, 3):
        part: Sequence[Read] = batch(start, 3)
        while part:
            before = len(part)
            part = turn.take(part)
            left += 0 < len(part) < before
            if turn.is_over:
                found += len(turn.outcomes())
        time.sleep(0.11)  # each waits a little, which adds up to enough for a batch to be computed alone
    assert found + len(turn.outcomes()) == 42
    assert left, "no part was too large for what was left of a batch"
    assert told.asked == [10, 10, 10, 10, 2]


@pytest.mark.usefixtures("unhurried")
def test_a_part_of_a_batch_is_computed_when_the_rest_is_long_in_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "PART_SECONDS", 0.1)
    turn = Turn(one_by_one(decode), [Told()])
    turn.take(batch(0, 2))
    assert not turn.is_over
    time.sleep(0.11)
    turn.take(batch(2, 1))
    assert turn.is_over
    assert len(turn.outcomes()) == 3


def test_a_turn_of_nothing_but_failures_ends() -> None:
    turn = Turn(one_by_one(decode), [Told()])
    turn.take([read("broken")] * 10)
    assert turn.is_over
    assert [one.failure and one.failure.code for _, one in turn.outcomes()] == ["corrupt"] * 10
    assert turn.outcomes() == []


def test_bytes_are_let_go_of_once_they_are_decoded() -> None:
    """A turn of large photos would otherwise hold those of several batches, more than a run's memory accounts for."""
    turn = Turn(one_by_one(decode), [Told()])
    photos = [read(str(n)) for n in range(10)]
    held = [sys.getrefcount(photo) for photo in photos]
    turn.take(photos)
    assert [sys.getrefcount(photo) for photo in photos] == held
    assert len(turn.outcomes()) == 10
