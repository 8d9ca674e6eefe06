"""Notices an image that keeps a decoder busy for too long, which no thread can be made to give up."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vehclass.batch.ports import Decode
from vehclass.imaging import Pixels
from vehclass.imaging_limits import LOOKS
from vehclass.records import ImageFacts


class Hangs:
    """Decodes, and watches how long that takes.

    Time is counted in looks, so that a machine that slept, or a process that was stopped, does not seem to hang.
    """

    def __init__(self, decode: Decode, seconds: float) -> None:
        self._decode = decode
        self._seconds = seconds
        self._looks: dict[int, list[int]] = {}  # by thread that decodes, how often it was seen at this image

    def decode(self, data: bytes, size: tuple[int, int]) -> tuple[Pixels, ImageFacts]:
        """As the decoder that is watched."""
        thread = threading.get_ident()
        # Each image has a count of its own, so that a look that comes late adds to no other's.
        self._looks[thread] = [0]
        try:
            return self._decode(data, size)
        finally:
            del self._looks[thread]

    @contextmanager
    def watched(self, hung: Callable[[], None]) -> Iterator[None]:
        """Calls `hung`, once, when an image has taken too long while the block lasts."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(self._seconds / LOOKS):
                for thread, looks in list(self._looks.items()):
                    if looks[0] >= LOOKS and self._looks.get(thread) is looks:
                        hung()
                        return
                    looks[0] += 1

        watcher = threading.Thread(target=look, name="hangs", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
