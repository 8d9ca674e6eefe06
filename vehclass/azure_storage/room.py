"""Places for those who read from one service: as many as it can answer at a time."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Final, TypeVar

from azure.core.exceptions import AzureError

from vehclass.azure_storage.patience import status_of
from vehclass.azure_storage.wire import Overtaken
from vehclass.congestion import CongestionWindow

T = TypeVar("T")

BUSY_STATUS: Final = frozenset({429, 503})
LEAST: Final = 4  # places that are always there: whoever waits for one must come in before long


class Room:
    """Places for readers, `most` at first and at most; its `window` says how many there are now. For several threads."""

    def __init__(self, most: int) -> None:
        self.window = CongestionWindow(most, LEAST, most)
        self._taken = 0
        self._waiting: deque[Future[None]] = deque()  # who came first gets the next place
        self._lock = threading.Lock()

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place, once there is one; raises what `dismiss` was given meanwhile."""
        self._enter()
        try:
            yield
        finally:
            with self._lock:
                self._taken -= 1
                self._admit()

    def dismiss(self, problem: Exception) -> None:
        """Nobody needs to wait any longer: whoever does gets the problem instead of a place."""
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
        for one in waiting:
            one.set_exception(problem)

    def watch(self, request: Callable[[], T]) -> T:
        """Runs a request, and learns from what becomes of it how much the service can take."""
        began = time.monotonic()
        try:
            answer = request()
        except AzureError as error:
            self._learn(error, began)
            raise
        self._learn(None, began)
        return answer

    def _enter(self) -> None:
        with self._lock:
            if self._taken < int(self.window.size):  # then nobody waits
                self._taken += 1
                return
            turn: Future[None] = Future()
            self._waiting.append(turn)
        turn.result()

    def _admit(self) -> None:
        while self._waiting and self._taken < int(self.window.size):
            self._taken += 1
            self._waiting.popleft().set_result(None)

    def _learn(self, error: AzureError | None, began: float) -> None:
        status = status_of(error)
        with self._lock:
            if isinstance(error, Overtaken) or status in BUSY_STATUS:
                self.window.halve(began, time.monotonic(), self._taken)
            elif error is None or status is not None:
                self.window.widen()
                self._admit()
