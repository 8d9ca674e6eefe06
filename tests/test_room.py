"""How many requests a service gets at a time, by how it answers them."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from azure.core.exceptions import AzureError, HttpResponseError, ServiceResponseError

from vehclass.azure_storage.room import Room
from vehclass.azure_storage.wire import BrokenOff, Overtaken


def refused(status: int) -> HttpResponseError:
    error = HttpResponseError("no")
    error.status_code = status
    return error


def fail(room: Room, error: AzureError) -> None:
    with pytest.raises(AzureError), room.place():
        raise error


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


@pytest.mark.parametrize("error", [Overtaken("late"), refused(503), refused(429)])
def test_a_crowd_halves_it_once_and_what_came_later_again(error: AzureError) -> None:
    room, together = Room(8), threading.Barrier(8)

    def ask(_: int) -> None:
        with room.place():
            together.wait(10)
            raise error

    with ThreadPoolExecutor(8) as threads:
        assert all(isinstance(one.exception(), AzureError) for one in [threads.submit(ask, n) for n in range(8)])
    assert room.size == 4
    for expected in (2, 1, 1):
        fail(room, error)
        assert room.size == expected


def test_answers_make_it_wider_by_one_a_round_up_to_the_most() -> None:
    room = Room(8)
    fail(room, Overtaken("late"))
    for _ in range(4):
        with room.place():
            pass
    assert 4.8 < room.size < 5
    for _ in range(5):
        fail(room, refused(404))
    assert 5.6 < room.size < 6
    fail(room, BrokenOff("half"))
    assert room.size > 5.6
    for _ in range(100):
        with room.place():
            pass
    assert room.size == 8


def test_nobody_queues_for_a_service_that_is_away() -> None:
    room = Room(64)
    for _ in range(6):
        fail(room, Overtaken("late"))
    assert room.size == 1
    first = threading.Event()

    def ask(number: int) -> None:
        with room.place():
            if number == 0:
                first.wait(10)
            else:
                time.sleep(0.2)
            raise ServiceResponseError("silent")

    began = time.monotonic()
    with ThreadPoolExecutor(32) as threads:
        asked = [threads.submit(ask, number) for number in range(32)]
        first.set()
        assert all(isinstance(one.exception(), ServiceResponseError) for one in asked)
    assert time.monotonic() - began < 3  # one by one it would be twice that
