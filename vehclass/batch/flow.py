"""Threads that pull work from one iterator and hand results to another: all of the batch's concurrency."""

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from typing import Final, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_ENDED: Final = object()
_LOOK_UP_SECONDS: Final = 0.2  # how often a lane that waits for room looks whether anybody still wants its result
_HUNGRY_SECONDS: Final = 0.005  # a consumer that waits for longer than this in all gets another lane, where it may,
_HUNGRY_SHARE: Final = 0.02  # unless it is busy for fifty times as long meanwhile


def in_lanes(
    work: Callable[[T], R], items: Iterable[T], lanes: int, buffer: int, name: str, most: int = 0
) -> Generator[R, None, None]:
    """`work(item)` for each item on `lanes` threads; results as they come, in no promised order.

    With one lane it is a prefetch; the rest is as in `spread`.
    """
    return spread(lambda own: (work(item) for item in own), items, lanes, buffer, name, most)


def spread(  # noqa: C901  (one protocol, easier to check in one place)
    work: Callable[[Iterator[T]], Iterable[R]],
    items: Iterable[T],
    lanes: int,
    buffer: int,
    name: str,
    most: int = 0,
    weigh: Callable[[R], int] = lambda result: 1,
) -> Generator[R, None, None]:
    """All results of `work(items)` on each of `lanes` threads, which share the items, as they come, in no promised order.

    Where `most` is larger than `lanes`, a lane is added, up to so many and one for each result at most, when the
    consumer spends its time waiting while all lanes work: not for a first result, nor while none come at all. At most as many results as
    there are lanes are held at a time, beside those that wait, less than `buffer` by what they weigh and one more, so memory does not grow with the items: a consumer that is
    slow makes the lanes wait, and items are only pulled by a lane that is free. An exception, of `work` or of `items`,
    ends the items for every lane; what the lanes have in hand is still delivered, then the exception is raised. A
    consumer that leaves early ends the lanes.
    """
    results = _Weighed(buffer)
    source = iter(items)
    turn = threading.Lock()
    closed = threading.Event()
    abandoned = threading.Event()
    errors: list[BaseException] = []
    threads: list[threading.Thread] = []
    at_work: list[bool] = []  # each lane, while it has an item in hand

    def deliver(result: object, weight: int = 1) -> None:
        while not abandoned.is_set():
            try:
                results.put((result, weight), timeout=_LOOK_UP_SECONDS)
                return
            except queue.Full:
                continue

    def pulled(number: int) -> Iterator[T]:
        while True:
            at_work[number] = False
            try:
                with turn:
                    item = _ENDED if closed.is_set() else next(source, _ENDED)
            except BaseException as error:  # noqa: BLE001  (passed on to the consumer, whatever it is)
                closed.set()
                errors.append(error)
                return
            if item is _ENDED:
                return
            at_work[number] = True
            yield item  # type: ignore[misc]  # an item, since it is not the end

    def lane(number: int) -> None:
        try:
            for result in work(pulled(number)):
                deliver(result, max(1, weigh(result)))
                if closed.is_set():
                    break
        except BaseException as error:  # noqa: BLE001  (passed on to the consumer, whatever it is)
            closed.set()
            errors.append(error)
        finally:
            at_work[number] = False
            deliver(_ENDED)

    def add_lane() -> None:
        number = len(threads)
        at_work.append(False)
        thread = threading.Thread(target=lane, args=(number,), name=f"{name}-{number}", daemon=True)
        thread.start()
        threads.append(thread)

    try:
        for _ in range(lanes):
            add_lane()
        running, may_grow = lanes, False
        patience = _HUNGRY_SECONDS
        while running:
            asked = time.monotonic()
            try:
                result, _ = results.get(timeout=patience if may_grow else None)
            except queue.Empty:
                patience = _HUNGRY_SECONDS
                if all(at_work):
                    may_grow = False
                    with suppress(RuntimeError):  # no more threads to be had: those that there are do it
                        add_lane()
                        running += 1
                continue
            if result is _ENDED:
                running -= 1
            else:
                got = time.monotonic()
                patience = max(0.0, patience - (got - asked)) if may_grow else _HUNGRY_SECONDS
                may_grow = len(threads) < most
                yield result  # type: ignore[misc]  # what `work` returned
                patience = min(_HUNGRY_SECONDS, patience + _HUNGRY_SHARE * (time.monotonic() - got))
        if errors:
            raise errors[0]
    finally:
        closed.set()
        abandoned.set()
        for thread in threads:
            thread.join()
        close = getattr(source, "close", None)
        if close is not None:  # lanes that feed these end with them
            close()


class _Weighed(queue.Queue[tuple[object, int]]):
    """A queue that is full by what is in it, not by how many: each item comes with its weight, 1 at least, since what weighs nothing would not be seen."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self._weight = 0

    def _qsize(self) -> int:
        return self._weight

    def _put(self, item: tuple[object, int]) -> None:
        self._weight += item[1]
        super()._put(item)
        if self._weight < self.maxsize:
            self.not_full.notify()  # what weighed much and left made room for several, of whom it woke one

    def _get(self) -> tuple[object, int]:
        item = super()._get()
        self._weight -= item[1]
        return item


class Allowance:
    """So many bytes and no more: who takes waits until there is room. Whoever takes alone always gets."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._closed = False
        self._changed = threading.Condition()

    def take(self, count: int, *, wait: bool = True) -> bool:
        """Waits until there is room for so many, or until it is closed; False where it is not to wait and would have to."""

        def may() -> bool:
            return self._closed or not self._taken or self._taken + count <= self._limit

        with self._changed:
            if not may():
                if not wait:
                    return False
                self._changed.wait_for(may)
            self._taken += count
            return True

    def give_back(self, count: int) -> None:
        """Makes room."""
        with self._changed:
            self._taken -= count
            self._changed.notify_all()

    def close(self) -> None:
        """Lets everybody through: the work is over, or given up."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def batched(items: Iterable[T], count: int, weigh: Callable[[T], int], heaviest: int) -> Iterator[list[T]]:
    """Lists of at most `count` items that together weigh at most `heaviest`, or of one that weighs more.

    What waits for the next item weighs less than `heaviest`. An exception of theirs is raised after what came before it.
    """
    batch: list[T] = []
    weight = 0
    try:
        for item in items:
            more = weigh(item)
            if batch and weight + more > heaviest:
                yield batch
                batch, weight = [], 0
            batch.append(item)
            del item  # which may be large, while nobody asks for more
            weight += more
            if len(batch) == count or weight >= heaviest:
                yield batch
                batch, weight = [], 0
    except Exception:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def emptied(lists: Iterable[list[T]]) -> Iterator[T]:
    """What is in lists, in order, taken out of them: so it lives no longer than whoever asked wants it."""
    for some in lists:
        some.reverse()
        while some:
            yield some.pop()


def gathered(batches: Iterable[list[T]], most: int, enough: int, patience: float, name: str) -> Iterator[list[T]]:
    """The items of `batches` in larger lists: all that came while the consumer was busy with the last.

    A consumer that is quick gets `enough` at a time, or what came within `patience` seconds; a slow one, such as a store
    far away, gets all that waits. Once `most` items wait, the batches wait, too. An exception of theirs is raised
    after what came before it has been handed over.
    """
    waiting: list[T] = []
    changed = threading.Condition()
    state = {"ended": False, "left": False}
    errors: list[BaseException] = []

    def collect() -> None:
        source = iter(batches)
        try:
            for batch in source:
                with changed:
                    changed.wait_for(lambda: state["left"] or len(waiting) < most)
                    if state["left"]:
                        return
                    waiting.extend(batch)
                    changed.notify_all()
        except BaseException as error:  # noqa: BLE001  (passed on to the consumer, whatever it is)
            errors.append(error)
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()
            with changed:
                state["ended"] = True
                changed.notify_all()

    thread = threading.Thread(target=collect, name=name, daemon=True)
    thread.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: waiting or state["ended"])
                changed.wait_for(lambda: len(waiting) >= enough or state["ended"], patience)
                taken = waiting[:]
                waiting.clear()
                changed.notify_all()
            if not taken:
                break
            yield taken
        if errors:
            raise errors[0]
    finally:
        with changed:
            state["left"] = True
            changed.notify_all()
        thread.join()
