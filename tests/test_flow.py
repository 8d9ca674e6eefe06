"""Lanes: bounded, ordered where there is one, honest about errors, and gone when nobody listens."""

import threading
import time
from collections.abc import Iterator

import pytest

from vehclass.batch import flow
from vehclass.batch.flow import Allowance, batched, gathered, in_lanes, spread


def alive(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


class Crowd:
    """Counts how many threads are there at a time."""

    def __init__(self) -> None:
        self._here, self.most = 0, 0
        self._turn = threading.Lock()

    def stay(self, seconds: float) -> None:
        with self._turn:
            self._here += 1
            self.most = max(self.most, self._here)
        time.sleep(seconds)
        with self._turn:
            self._here -= 1


@pytest.mark.parametrize("lanes", [1, 4])
def test_every_item_comes_out_once(lanes: int) -> None:
    found = list(in_lanes(lambda n: n * 2, range(500), lanes, 3, "lane"))
    assert sorted(found) == [n * 2 for n in range(500)]
    assert not alive("lane-")


def test_one_lane_keeps_the_order() -> None:
    assert list(in_lanes(str, range(100), 1, 2, "lane")) == [str(n) for n in range(100)]


def test_a_slow_consumer_stops_the_pulling() -> None:
    pulled = []

    def items() -> Iterator[int]:
        for n in range(1000):
            pulled.append(n)
            yield n

    results = in_lanes(lambda n: n, items(), 3, 4, "lane")
    next(results)
    time.sleep(0.3)
    assert len(pulled) <= 1 + 3 + 4 + 1
    results.close()  # type: ignore[attr-defined]  # a generator
    assert not alive("lane-")


@pytest.mark.parametrize(("weight", "held"), [(40, 3), (10, 10), (100, 1), (0, 100)])
def test_what_waits_is_held_by_weight(weight: int, held: int) -> None:
    pulled = []

    def work(items: Iterator[int]) -> Iterator[int]:
        for n in items:
            pulled.append(n)
            yield n

    results = spread(work, range(1000), 1, 100, "lane", weigh=lambda n: weight)
    assert next(results) == 0
    time.sleep(0.3)
    assert len(pulled) == 1 + held + 1  # which was handed out, which waits, and which the lane has in hand
    assert list(results) == list(range(1, 1000))


def test_what_weighs_much_makes_room_for_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "_LOOK_UP_SECONDS", 60.0)
    passed, turns = [], [threading.Event() for _ in range(3)]

    def work(items: Iterator[int]) -> Iterator[int]:
        for n in items:
            turns[min(n, 2)].wait(10)  # so that the heavy one comes second
            yield n
            passed.append(n)

    results = spread(work, range(5), 4, 8, "lane", weigh=lambda n: 8 if n == 1 else 1)
    turns[0].set()
    assert next(results) == 0
    turns[1].set()
    await_length(passed, 2)
    turns[2].set()
    time.sleep(0.4)
    assert passed == [0, 1]
    assert next(results) == 1
    await_length(passed, 5)
    assert sorted(results) == [2, 3, 4]


def await_length(found: list[int], length: int) -> None:
    end = time.monotonic() + 10
    while len(found) < length and time.monotonic() < end:
        time.sleep(0.01)
    assert len(found) == length


def test_lanes_work_at_the_same_time() -> None:
    meeting = threading.Barrier(4, timeout=5)
    assert len(list(in_lanes(lambda n: meeting.wait(), range(8), 4, 1, "lane"))) == 8


def test_lanes_are_added_while_the_consumer_waits_for_all_of_them() -> None:
    together = Crowd()

    list(in_lanes(lambda n: together.stay(0.03), range(400), 2, 4, "lane", 12))

    assert together.most == 12


def test_many_short_waits_count_as_a_long_one() -> None:
    """A result every millisecond or two: no single wait is worth a lane, and all the time is spent waiting."""
    together = Crowd()

    list(in_lanes(lambda n: together.stay(0.003), range(2_000), 2, 4, "lane", 12))

    assert together.most >= 8


def test_no_lane_is_added_while_nothing_comes_at_all() -> None:
    """A first answer that is late, or a service that asks everybody to wait, is not helped by more who ask."""
    together = Crowd()

    list(in_lanes(lambda n: together.stay(0.3), range(4), 2, 4, "lane", 12))

    assert together.most <= 3  # one, after the first two


def test_a_thread_that_cannot_be_had_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name in ("lane-3", "lane-4"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    together = Crowd()
    found = list(in_lanes(lambda n: together.stay(0.02) or n, range(60), 2, 4, "lane", 12))
    assert sorted(found) == list(range(60))
    assert together.most == 3


def test_no_lane_is_added_for_a_consumer_that_is_busy_itself() -> None:
    together = Crowd()

    for _ in in_lanes(lambda n: together.stay(0.001), range(40), 2, 4, "lane", 12):
        time.sleep(0.01)

    assert together.most <= 3  # the first result was waited for


def test_no_lane_is_added_while_the_items_themselves_are_late() -> None:
    threads = set()

    def items() -> Iterator[int]:
        for number in range(20):
            time.sleep(0.02)
            yield number

    list(in_lanes(lambda n: threads.add(threading.current_thread().name), items(), 2, 4, "lane", 12))

    assert len(threads) <= 2


def test_an_error_of_the_work_is_raised_after_what_was_in_hand() -> None:
    def work(n: int) -> int:
        if n == 5:
            raise ValueError("five")
        return n

    found = []
    with pytest.raises(ValueError, match="five"):
        for result in in_lanes(work, range(1000), 2, 2, "lane"):
            found.append(result)
    assert {0, 1, 2, 3} <= set(found)
    assert len(found) < 20
    assert not alive("lane-")


def test_an_error_of_the_items_is_raised_after_what_was_in_hand() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise ConnectionError("gone")

    found = []
    with pytest.raises(ConnectionError, match="gone"):
        for result in in_lanes(lambda n: n, items(), 3, 1, "lane"):
            found.append(result)
    assert sorted(found) == [0, 1, 2]


def test_batches_by_count_and_by_weight() -> None:
    assert list(batched([1, 1, 1, 1, 1], 2, lambda n: n, 100)) == [[1, 1], [1, 1], [1]]
    assert list(batched([4, 4, 9, 1, 30, 1], 10, lambda n: n, 10)) == [[4, 4], [9, 1], [30], [1]]
    assert list(batched([], 2, lambda n: 0, 1)) == []


def test_what_is_heavy_enough_does_not_wait_for_more() -> None:
    """Who waits for room that only this batch can make would wait for ever."""
    asked = []

    def items() -> Iterator[int]:
        for n in (30, 4, 6, 1):
            asked.append(n)
            yield n

    batches = batched(items(), 10, lambda n: n, 10)
    assert (next(batches), asked) == ([30], [30])
    assert (next(batches), asked) == ([4, 6], [30, 4, 6])


def test_lanes_that_feed_lanes_end_with_them() -> None:
    def work(n: int) -> int:
        if n == 3:
            raise ValueError("three")
        return n

    feed = in_lanes(lambda n: n, iter(range(10**9)), 2, 2, "feed")
    with pytest.raises(ValueError, match="three"):
        list(in_lanes(work, feed, 2, 2, "lane"))
    assert not alive("feed-")
    assert not alive("lane-")


def test_an_allowance_holds_back_and_lets_a_large_one_pass_alone() -> None:
    allowance = Allowance(10)
    held: list[int] = []
    most = 0
    lock = threading.Lock()

    def work(size: int) -> int:
        nonlocal most
        allowance.take(size)
        with lock:
            held.append(size)
            most = max(most, sum(held) if len(held) > 1 else 0)
        time.sleep(0.002)
        with lock:
            held.remove(size)
        allowance.give_back(size)
        return size

    sizes = [1, 3, 7, 30, 2, 5] * 20
    assert sorted(in_lanes(work, sizes, 6, 4, "lane")) == sorted(sizes)
    assert 0 < most <= 10


def test_an_allowance_says_whether_it_would_have_to_be_waited_for() -> None:
    allowance = Allowance(10)
    assert allowance.take(30, wait=False)
    assert not allowance.take(1, wait=False)
    allowance.give_back(30)
    assert allowance.take(6, wait=False)
    assert not allowance.take(5, wait=False)
    assert allowance.take(4, wait=False)


def test_a_closed_allowance_holds_nobody() -> None:
    allowance = Allowance(1)
    allowance.take(1)
    threading.Timer(0.1, allowance.close).start()
    allowance.take(1)


class TestGathered:
    def test_nothing_is_lost_and_the_order_stays(self) -> None:
        batches = [[n, n + 1] for n in range(0, 100, 2)]
        assert [item for part in gathered(batches, 10, 1, 9.0, "g") for item in part] == list(range(100))

    def test_a_slow_consumer_gets_fewer_and_larger_lists(self) -> None:
        taken = []
        for part in gathered(([n] for n in range(60)), 16, 1, 9.0, "g"):
            taken.append(len(part))
            time.sleep(0.02)
        assert sum(taken) == 60
        assert len(taken) < 20
        assert max(taken) <= 16

    def test_a_quick_consumer_gets_enough_at_a_time(self) -> None:
        taken = [len(part) for part in gathered(([n] for n in range(60)), 30, 25, 9.0, "g")]
        assert sum(taken) == 60
        assert min(taken[:-1]) >= 25
        assert max(taken) <= 30

    def test_what_is_there_is_handed_over_once_patience_ends(self) -> None:
        more = threading.Event()

        def batches() -> Iterator[list[int]]:
            yield [1]
            yield [2]
            assert more.wait(5), "the consumer waits for more than its patience"
            yield [3]

        got = []
        for part in gathered(batches(), 100, 25, 0.2, "g"):
            got.append(part)
            more.set()
        assert got == [[1, 2], [3]]

    def test_what_came_before_an_error_is_handed_over(self) -> None:
        def batches() -> Iterator[list[int]]:
            yield [1, 2]
            yield [3]
            raise ValueError("broken")

        got: list[int] = []
        with pytest.raises(ValueError, match="broken"):
            for part in gathered(batches(), 10, 1, 9.0, "g"):
                got += part
        assert got == [1, 2, 3]

    def test_a_consumer_that_leaves_ends_the_batches(self) -> None:
        ended = threading.Event()

        def batches() -> Iterator[list[int]]:
            try:
                while True:
                    yield [1]
            finally:
                ended.set()

        for _ in gathered(batches(), 4, 1, 9.0, "g"):
            break
        assert ended.wait(2)


def test_an_error_of_one_ends_the_others_that_have_many_to_give() -> None:
    given = []

    def work(names: Iterator[str]) -> Iterator[int]:
        for name in names:
            if name == "broken":
                time.sleep(0.1)
                raise ValueError("broken")
            for n in range(10_000):
                given.append(n)
                yield n
                time.sleep(0.001)

    with pytest.raises(ValueError, match="broken"):
        list(spread(work, ["endless", "broken"], 2, 3, "lane"))
    assert len(given) < 5_000
    assert not alive("lane-")


def test_what_lanes_have_put_by_is_delivered_when_the_items_break_off() -> None:
    together = threading.Barrier(2, timeout=5)

    def items() -> Iterator[int]:
        yield from (1, 2, 3, 4)
        raise ConnectionError("gone")

    def work(own: Iterator[int]) -> Iterator[list[int]]:
        kept = []
        for n in own:
            kept.append(n)
            if len(kept) == 1:
                together.wait()  # so that each lane has some
        yield kept

    found: list[int] = []
    with pytest.raises(ConnectionError, match="gone"):
        for kept in spread(work, items(), 2, 2, "lane"):
            assert kept
            found += kept
    assert sorted(found) == [1, 2, 3, 4]
    assert not alive("lane-")


def test_an_end_that_the_work_meets_by_mistake_is_no_end_of_the_items() -> None:
    def work(n: int) -> int:
        return n if n != 3 else next(iter(()))

    with pytest.raises(RuntimeError, match="StopIteration"):
        list(in_lanes(work, range(6), 1, 2, "lane"))
