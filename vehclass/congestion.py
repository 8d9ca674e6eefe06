"""How many requests at a time a service gets: half as many once it cannot answer them all, one more at a time while it can.

That is additive increase and multiplicative decrease, by which TCP shares a line (Chiu and Jain, 1989; RFC 5681). More
requests than a service or a line can take make no answer come sooner, and may keep some from ever coming.
"""

import math


class CongestionWindow:
    """`size` says how many requests may be in flight: `first` to begin with, then from `least` to `most`.

    Moments are seconds of any one clock. Not for several threads at once: whoever has places to give has a lock, too.
    """

    def __init__(self, first: float, least: float, most: float) -> None:
        self.size = float(first)
        self._least, self._most = float(min(least, most)), float(most)
        self._halved_at = -math.inf

    def widen(self) -> None:
        """A request was answered: one more in flight for each round of them."""
        self.size = min(self._most, self.size + 1 / self.size)

    def halve(self, began: float, now: float, in_flight: int) -> None:
        """A request that began then was too much: half of those `in_flight`, it among them, are to be.

        Those that began before the last time tell of the same crowd, and change nothing.
        """
        if began > self._halved_at:
            self.size = max(self._least, min(self.size, in_flight) / 2)
            self._halved_at = now
