"""Where a run's time goes: seconds by stage, added up over all threads as they work."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

STAGES: Final = ("list", "ask", "read", "decode", "forward", "save")


@dataclass(slots=True)
class Spent:
    """What a stage took: seconds of the threads that were at it, and how often."""

    seconds: float = 0.0
    times: int = 0


class Profile:
    """A clock for each stage, which threads share; it begins when it is made."""

    def __init__(self, lanes: int = 1, cores: int = 1) -> None:
        """`lanes` decode and classify, on so many cores."""
        self._lanes, self._cores = lanes, cores
        self.stages = {stage: Spent() for stage in STAGES}
        self._lock = threading.Lock()
        self._began, self._cpu_began = time.perf_counter(), time.process_time()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds what the block takes to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            with self._lock:
                self.stages[name].seconds += seconds
                self.stages[name].times += 1

    def summary(self) -> dict[str, Any]:
        """All of it, for JSON: seconds, how busy the cores were, and what the lanes did, as shares of 1.

        A lane decodes, waits for the forward pass, or waits for photos and for a store that is slower than it.
        """
        seconds = time.perf_counter() - self._began
        whole = seconds * self._lanes
        decode, forward = (self.stages[stage].seconds / whole for stage in ("decode", "forward"))
        return {
            "seconds": round(seconds, 3),
            "cores_busy": round((time.process_time() - self._cpu_began) / (seconds * self._cores), 3),
            "lanes": {
                "decode": round(decode, 3),
                "forward": round(forward, 3),
                "waiting": round(max(0.0, 1 - decode - forward), 3),
            },
            "stages": {
                name: {"seconds": round(spent.seconds, 3), "times": spent.times} for name, spent in self.stages.items()
            },
        }
