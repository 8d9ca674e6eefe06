"""Reads images, by several threads: hands over a few at a time where they come quickly, in bounded memory."""

import time
from collections.abc import Iterator, Sequence
from typing import Final

from vehclass.batch.batches import Read, Todo
from vehclass.batch.flow import Allowance
from vehclass.batch.ports import Source
from vehclass.batch.profile import Profile
from vehclass.errors import ReadError

# What a reader hands over at a time, which wakes a thread or two: so much, or what came within a moment.
TOGETHER: Final = 2 * 2**20
SMALL: Final = 64 * 2**10  # an image weighs no less, be it empty
TOGETHER_SECONDS: Final = 0.01


class Reader:
    """Reads what there is to do; whoever takes an image over gives its listed size back to `memory`."""

    def __init__(self, source: Source, memory: Allowance, max_bytes: int, profile: Profile) -> None:
        """An image of more than `max_bytes` is not read."""
        self._source, self._memory, self._max_bytes, self._profile = source, memory, max_bytes, profile

    def some(self, todos: Iterator[Todo]) -> Iterator[list[Read]]:
        """All of them, a few at a time; raises ServiceUnreachable after those that came before. For several threads."""
        ready: list[Read] = []
        size, since = 0, time.monotonic()
        for todo in todos:
            if todo.ref.size > self._max_bytes:
                reason = f"It has {todo.ref.size} bytes; at most {self._max_bytes} are read."
                ready.append(Read(*todo, error=ReadError("too_many_bytes", reason, permanent=True)))
            else:
                if not self._memory.take(todo.ref.size, wait=not ready):
                    yield ready  # which may be what there is to wait for
                    self._memory.take(todo.ref.size)
                    ready, size, since = [], 0, time.monotonic()
                try:
                    ready.append(self._read(todo))
                except BaseException:
                    yield ready
                    raise
            size += max(SMALL, len(ready[-1].data))
            if size >= TOGETHER or time.monotonic() - since > TOGETHER_SECONDS:
                yield ready
                ready, size, since = [], 0, time.monotonic()
        if ready:
            yield ready

    @staticmethod
    def weight(some: Sequence[Read]) -> int:
        """What images weigh that wait for somebody to take them."""
        return sum(max(SMALL, len(one.data)) for one in some)

    def _read(self, todo: Todo) -> Read:
        try:
            with self._profile.stage("read"):
                return Read(*todo, self._source.read(todo.ref))
        except BaseException as error:
            self._memory.give_back(todo.ref.size)
            if isinstance(error, ReadError):
                return Read(*todo, error=error)
            raise
