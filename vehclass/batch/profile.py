"""Where a run's time goes: seconds by stage, added up over all threads as they work."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

STAGES: Final = ("list", "ask", "read", "decode", "forward", "save")
MOSTLY: Final = 0.5  # of the time
ALWAYS: Final = 0.9


@dataclass(slots=True)
class Spent:
    """What a stage took: seconds of all threads that were at it, how often, and seconds with at least one at it."""

    seconds: float = 0.0
    times: int = 0
    busy: float = 0.0
    _at_it: int = 0
    _since: float = 0.0

    def enter(self, moment: float) -> None:
        """A thread begins."""
        if not self._at_it:
            self._since = moment
        self._at_it += 1

    def leave(self, moment: float, seconds: float) -> None:
        """A thread is through, after so many seconds."""
        self.seconds += seconds
        self.times += 1
        self._at_it -= 1
        if not self._at_it:
            self.busy += moment - self._since


class _Clocked:
    """A block of a stage; a class, since a generator would take twice as long, and each image has two."""

    __slots__ = ("_began", "_lock", "_spent")

    def __init__(self, spent: Spent, lock: threading.Lock) -> None:
        self._spent, self._lock, self._began = spent, lock, 0.0

    def __enter__(self) -> None:
        self._began = began = time.perf_counter()
        with self._lock:
            self._spent.enter(began)

    def __exit__(self, *_: object) -> None:
        ended = time.perf_counter()
        with self._lock:
            self._spent.leave(ended, ended - self._began)


class Profile:
    """A clock for each stage, which threads share; it begins when it is made."""

    def __init__(self, lanes: int = 1, cores: int = 1, elsewhere: Callable[[], float] = lambda: 0.0) -> None:
        """`lanes` decode and classify, on so many cores; `elsewhere` tells what helpers have had of them, in seconds."""
        self._lanes, self._cores, self._elsewhere = lanes, cores, elsewhere
        self.stages = {stage: Spent() for stage in STAGES}
        self._lock = threading.Lock()
        self._began, self._cpu_began = time.perf_counter(), time.process_time()

    def stage(self, name: str) -> _Clocked:
        """Adds what the block takes to a stage."""
        return _Clocked(self.stages[name], self._lock)

    def summary(self) -> dict[str, Any]:
        """All of it, for JSON: seconds, how busy the cores were, and what the lanes did, as shares of 1.

        A lane decodes, waits for the forward pass, or waits for photos and for a store that is slower than it.
        """
        seconds = time.perf_counter() - self._began
        whole, had = seconds * self._lanes, time.process_time() - self._cpu_began + self._elsewhere()
        decode, forward = (self.stages[stage].seconds / whole for stage in ("decode", "forward"))
        return {
            "seconds": round(seconds, 3),
            "cores": self._cores,
            "cores_busy": round(had / (seconds * self._cores), 3),
            "lanes": {
                "decode": round(decode, 3),
                "forward": round(forward, 3),
                "waiting": round(max(0.0, 1 - decode - forward), 3),
            },
            "stages": {
                name: {"seconds": round(spent.seconds, 3), "times": spent.times, "busy": round(spent.busy / seconds, 3)}
                for name, spent in self.stages.items()
            },
        }


def bound_by(profile: Mapping[str, Any], on_gpu: bool) -> str:
    """What a run waited for in the end, by its summary: store, source, gpu, decode, or cores.

    On a CPU decoding and the network share the cores; with a GPU the slower of the two decides.
    """
    lanes, stages = profile["lanes"], profile["stages"]
    if lanes["waiting"] > MOSTLY:
        return "store" if max(stages[one]["busy"] for one in ("save", "ask")) > MOSTLY else "source"
    if not on_gpu:
        return "cores"
    return "gpu" if stages["forward"]["busy"] > ALWAYS else "decode"
