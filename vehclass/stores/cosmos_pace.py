"""How fast requests to a Cosmos DB account may go, and what they have cost."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vehclass.congestion import CongestionWindow

FIRST_IN_FLIGHT: Final = 8
MOST_IN_FLIGHT: Final = 64


class Pace:
    """How many requests may be in flight, and how many request units a second may be spent.

    One more in flight for each round that goes well, half as many when the service says 429.
    """

    def __init__(self, most_ru: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.window = CongestionWindow(FIRST_IN_FLIGHT, 1, MOST_IN_FLIGHT)
        self._in_flight = 0
        self._changed = asyncio.Condition()
        self._most_ru = most_ru
        self._clock = clock
        self._balance = most_ru or 0.0
        self._paid_at = clock()

    async def enter(self) -> float:
        """Waits for a place; returns when it was there, which `leave` asks for."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._in_flight < int(self.window.size))
            self._in_flight += 1
            return self._clock()

    async def leave(self, began: float, *, throttled: bool, good: bool) -> None:
        """Gives the place back, and says how it went."""
        async with self._changed:
            if throttled:
                self.window.halve(began, self._clock(), self._in_flight)
            elif good:
                self.window.widen()
            self._in_flight -= 1
            self._changed.notify(
                max(1, int(self.window.size) - self._in_flight)
            )  # not all: they would wake each other up

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
