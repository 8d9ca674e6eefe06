"""How many requests a service gets at a time, by how it answers them."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from azure.core.exceptions import AzureError, HttpResponseError, ServiceResponseError

from vehclass.azure_storage.room import LEAST, Room
from vehclass.azure_storage.wire import BrokenOff, Overtaken


def refused(status: int) -> HttpResponseError:
    error = HttpResponseError("no")
    error.status_code = status
    return error


def failing(error: AzureError) -> Callable[[], None]:
    def request() -> None:
        raise error

    return request


def fail(room: Room, error: AzureError) -> None:
    with pytest.raises(AzureError), room.place():
        room.watch(failing(error))


def answer(room: Room) -> None:
    with room.place():
        room.watch(int)


def crowd(room: Room, error: AzureError, count: int) -> None:
    """So many requests at the same time, all of which fail."""
    together = threading.Barrier(count)

    def request() -> None:
        together.wait(10)
        raise error

    def ask(_: int) -> None:
        with room.place():
            room.watch(request)

    with ThreadPoolExecutor(count) as threads:
        asked = [threads.submit(ask, number) for number in range(count)]
        assert all(isinstance(one.exception(), AzureError) for one in asked)


def test_no_more_are_inside_than_there_are_places() -> None:
    room, inside, most = Room(3), [0], []
    lock = threading.Lock()

    def ask(_: int) -> None:
        with room.place():
            with lock:
                inside[0] += 1
                most.append(inside[0])
            time.sleep(0.002)
            with lock:
                inside[0] -= 1

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(ask, range(60)))
    assert len(most) == 60
    assert max(most) == 3


def test_who_came_first_comes_in_first() -> None:
    room, order = Room(1), []

    def ask(number: int) -> None:
        with room.place():
            order.append(number)

    with ThreadPoolExecutor(8) as threads:
        with room.place():
            for number in range(8):
                threads.submit(ask, number)
                while len(room._waiting) <= number:
                    time.sleep(0.001)
    assert order == list(range(8))


@pytest.mark.parametrize("error", [Overtaken("late"), refused(503), refused(429)])
def test_a_crowd_halves_it_once_and_what_comes_later_again(error: AzureError) -> None:
    room = Room(64)
    crowd(room, error, 64)
    assert room.window.size == 32
    crowd(room, error, 20)  # which is what it could not take
    assert room.window.size == 10
    fail(room, error)
    assert room.window.size == LEAST
    small = Room(2)
    fail(small, error)
    assert small.window.size == 2


def test_answers_make_it_wider_by_one_a_round_up_to_the_most() -> None:
    room = Room(8)
    crowd(room, Overtaken("late"), 8)
    for _ in range(4):
        answer(room)
    assert 4.8 < room.window.size < 5
    for _ in range(5):
        fail(room, refused(404))
    assert 5.6 < room.window.size < 6
    for _ in range(100):
        answer(room)
    assert room.window.size == 8


@pytest.mark.parametrize("error", [ServiceResponseError("reset"), BrokenOff("half")])
def test_what_tells_of_no_crowd_leaves_it_as_it_is(error: AzureError) -> None:
    room = Room(8)
    for size in (8.0, 5.0):
        room.window.size = size
        fail(room, error)
        assert room.window.size == size


def test_answers_let_those_in_who_wait() -> None:
    room = Room(8)
    crowd(room, Overtaken("late"), 8)
    together = threading.Barrier(8)

    def ask(_: int) -> None:
        with room.place():
            together.wait(10)  # which four alone do not pass

    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(ask, number) for number in range(8)]
        for _ in range(40):
            room.watch(int)
        assert all(one.exception() is None for one in asked)


def test_who_waits_is_told_that_the_service_is_away() -> None:
    room = Room(1)
    with ThreadPoolExecutor(3) as threads:
        with room.place():
            asked = [threads.submit(answer, room) for _ in range(3)]
            while len(room._waiting) < 3:
                time.sleep(0.001)
            room.dismiss(ValueError("away"))
            assert [str(one.exception()) for one in asked] == ["away"] * 3
    answer(room)
