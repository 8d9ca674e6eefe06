"""How far training is and how fast it learns: by epochs, or by the clock when time is limited."""

import math
import time
from collections.abc import Callable
from typing import Final

WARM_UP: Final = 0.07  # of the whole, in which the rate rises
FIRST_SHARE: Final = 0.05  # of the highest rate, which it rises from
# Photos passed in all grow with the square root of how many there are: few photos are seen often, many rarely.
PASSES: Final = {"quick": 800.0, "balanced": 2500.0, "best": 5000.0}
FEWEST_EPOCHS: Final = 3
MOST_EPOCHS: Final = 400


def usual_epochs(photos: int, preset: str) -> int:
    """Epochs for so many training photos."""
    return max(FEWEST_EPOCHS, min(MOST_EPOCHS, round(PASSES[preset] / math.sqrt(max(1, photos)))))


def rate_at(progress: float) -> float:
    """The share of the highest learning rate at a progress of 0 to 1: a warm-up, then half a cosine down to 0.

    After Loshchilov and Hutter, 'SGDR: Stochastic gradient descent with warm restarts' (2017), without restarts.
    """
    if progress < WARM_UP:
        return FIRST_SHARE + (1 - FIRST_SHARE) * progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - WARM_UP) / (1 - WARM_UP))))


class Pace:
    """The progress of a training of so many steps, which a limit of seconds may bring to its end sooner.

    `spent` seconds went by before, in a process that was stopped.
    """

    def __init__(
        self, steps: int, seconds: float | None, spent: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.steps = max(1, steps)
        self._seconds = seconds
        self._clock = clock
        self._began = clock() - spent

    @property
    def spent(self) -> float:
        """Seconds of training so far."""
        return self._clock() - self._began

    def progress(self, step: int) -> float:
        """0 to 1 after so many steps; the clock counts where it is ahead of them."""
        by_steps = step / self.steps
        by_clock = self.spent / self._seconds if self._seconds else 0.0
        return min(1.0, max(by_steps, by_clock))

    def left(self, step: int) -> float | None:
        """Seconds that are left, as it went so far; None before anything is known."""
        progress = self.progress(step)
        return self.spent / progress * (1 - progress) if progress > 0.002 else None
