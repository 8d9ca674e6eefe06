"""How many requests a service gets at a time: half as many once it cannot answer them all, one more at a time while it can.

That is additive increase and multiplicative decrease, by which TCP shares a line (Chiu and Jain, 1989). More requests than
a service or a line can take make no photo come sooner, and may keep some from ever being answered.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from azure.core.exceptions import AzureError, ServiceRequestError, ServiceResponseError

from vehclass.azure_storage.patience import status_of
from vehclass.azure_storage.wire import Overtaken

BUSY_STATUS: Final = frozenset({429, 503})


class Room:
    """Places for requests, `most` at first and at most; `size` says how many there are now. For several threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.size = float(most)
        self._taken = 0
        self._halved_at = -math.inf
        self._left = threading.Condition()

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one request, once there is one; what it raises tells how the service is."""
        with self._left:
            self._left.wait_for(lambda: self._taken < int(self.size))
            self._taken += 1
        began = time.monotonic()
        outcome: AzureError | None = None
        try:
            yield
        except AzureError as error:
            outcome = error
            raise
        finally:
            with self._left:
                self._taken -= 1
                self._learn(outcome, began)
                self._left.notify_all()

    def _learn(self, outcome: AzureError | None, began: float) -> None:
        status = status_of(outcome)
        if isinstance(outcome, Overtaken) or status in BUSY_STATUS:
            if began > self._halved_at:  # those that began before tell of the same crowd
                self.size, self._halved_at = max(1.0, self.size / 2), time.monotonic()
        elif isinstance(outcome, ServiceRequestError | ServiceResponseError):
            self.size = self._most  # nobody is answered: whoever waits shall find out soon
        else:
            self.size = min(self._most, self.size + 1 / self.size)
