"""How fast requests to a Cosmos DB account may go, and what they have cost."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MOST_IN_FLIGHT: Final = 64


class Pace:
    """How many requests may be in flight, and how many request units a second may be spent.

    One more in flight for each round that goes well, half as many when the service says 429.
    """

    def __init__(self, most_ru: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = 8.0
        self._in_flight = 0
        self._changed = asyncio.Condition()
        self._most_ru = most_ru
        self._clock = clock
        self._balance = most_ru or 0.0
        self._paid_at = self._last_cut = clock()

    async def enter(self) -> None:
        """Waits for a place."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._in_flight < int(self.limit))
            self._in_flight += 1

    async def leave(self, *, throttled: bool, good: bool) -> None:
        """Gives the place back, and says how it went."""
        async with self._changed:
            self._in_flight -= 1
            if throttled and self._clock() - self._last_cut > 0.2:  # one storm counts once
                self.limit = max(1.0, self.limit / 2)
                self._last_cut = self._clock()
            elif good:
                self.limit = min(float(MOST_IN_FLIGHT), self.limit + 1 / self.limit)
            self._changed.notify(max(1, int(self.limit) - self._in_flight))  # not all: they would wake each other up

    async def afford(self) -> None:
        """Waits until the budget of request units is not overdrawn."""
        while self._most_ru is not None:
            moment = self._clock()
            self._balance = min(self._most_ru, self._balance + (moment - self._paid_at) * self._most_ru)
            self._paid_at = moment
            if self._balance > 0:
                return
            await asyncio.sleep(min(1.0, -self._balance / self._most_ru + 0.001))

    def pay(self, charge: float) -> None:
        """Takes what a request has cost, which is known only afterwards."""
        self._balance -= charge


@dataclass(slots=True)
class Spent:
    """What the requests so far have cost, from the x-ms-request-charge of each answer."""

    reads: int = 0
    writes: int = 0
    ru_read: float = 0.0
    ru_written: float = 0.0
    throttled: int = 0
    repeated: int = 0
