"""Decodes images in helper processes: one that crashes the decoder, or keeps it busy for ever, ends only a helper.

And each has a Python lock of its own, for which threads of one process wait where there are many (docs/performance.md).
A helper is started for each thread that asks and stays until it ends. Photos go to it through a pipe, a few at a time; their
pixels come back in memory that the two share, and what is known of each as JSON beside them. Nothing of that could run: a
decoder that was taken over by an image has no more to say than pixels.
"""

import mmap
import os
import select
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from signal import Signals
from typing import IO, Any, Final

import numpy as np
import orjson

from vehclass.errors import DecodeError
from vehclass.imaging import Pixels, decode, share_giants
from vehclass.imaging_limits import DEFAULT_FORMATS, DEFAULT_MAX_PIXELS
from vehclass.records import ImageFacts

TOGETHER: Final = 16  # photos a question, at most,
TOGETHER_BYTES: Final = 32 * 2**20  # and so many bytes of pixels, but for a single one
CRASH_SECONDS: Final = 0.2  # from the end of a helper's pipe to its own
LOOKS: Final = 20  # at a helper, in the time that an image may take
ASK: Final = struct.Struct("<III")  # width, height, photos; then each one's LENGTH, then the photos
LENGTH: Final = struct.Struct("<Q")
DONE: Final = struct.Struct("<Q")  # the shared memory begins with the number of photos that are done,
CPU: Final = struct.Struct("<d")  # and the seconds of CPU that the helper has had;
SAID: Final = struct.Struct("<I")  # then a slot for each, with the length of its JSON before it,
SLOT: Final = 4096
SLOTS_AT: Final = DONE.size + CPU.size
PIXELS_AT: Final = SLOTS_AT + TOGETHER * SLOT  # then their pixels


class Apart:
    """Decodes as `imaging.decode` does, each thread's images in a process of its own."""

    def __init__(
        self,
        formats: tuple[str, ...] = DEFAULT_FORMATS,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        seconds: float = 120.0,
    ) -> None:
        """`seconds` is the longest that an image may take."""
        self._giants = _nameless()  # of which the helpers take turns to decode one
        self._words = [sys.executable, "-P", "-m", __name__, ",".join(formats), str(max_pixels), str(self._giants)]
        self._seconds = seconds
        self._own = threading.local()
        self._all: list[_Helper] = []
        self._cpu_seconds = 0.0  # of helpers that have ended
        self._guard = threading.Lock()

    def decode(
        self, photos: Sequence[bytes], size: tuple[int, int]
    ) -> Iterator[tuple[Pixels, ImageFacts] | DecodeError]:
        """What `imaging.decode` gives or raises for each photo, in order, also where the decoder crashed or took too long.

        Pixels are good until the next are asked for.
        """
        width, height = size
        most = max(1, min(TOGETHER, TOGETHER_BYTES // (width * height * 3)))
        at, tried = 0, -1  # which photo has crashed a helper before
        while at < len(photos):
            # One that may have crashed a helper gets another to itself: it may have been killed for something else.
            part = photos[at : at + (1 if at == tried else most)]
            helper, error = self._helper(), None
            try:
                helper.ask(part, size)
                helper.wait(self._seconds)
            except (BrokenPipeError, EOFError):
                code = self._end(helper, CRASH_SECONDS)
                how = f"killed by {Signals(-code).name}" if code < 0 else f"exit code {code}"
                error = DecodeError("decoder_crashed", f"It crashed the decoder ({how}).")
            except TimeoutError:
                self._end(helper)
                error = DecodeError("decode_timeout", f"It was not decoded within {self._seconds:g} s.")
            done = min(helper.memory.done, len(part))
            for number in range(done):
                yield helper.memory.answer(number, size)
            at += done
            if error is not None and done < len(part):
                if error.code == "decoder_crashed" and tried != at:
                    tried = at
                else:
                    at += 1
                    yield error

    def cpu_seconds(self) -> float:
        """What the helpers have had of the cores so far."""
        with self._guard:
            return self._cpu_seconds + sum(helper.memory.cpu_seconds for helper in self._all)

    def close(self) -> None:
        """Ends the helpers."""
        for helper in list(self._all):
            self._end(helper)
        if self._giants >= 0:
            os.close(self._giants)
            self._giants = -1

    def _helper(self) -> "_Helper":
        helper: _Helper | None = getattr(self._own, "helper", None)
        if helper is None or helper.process.returncode is not None:
            helper = _Helper(self._words, self._giants)
            self._own.helper = helper
            with self._guard:
                self._all.append(helper)
        return helper

    def _end(self, helper: "_Helper", seconds: float = 0.0) -> int:
        """Ends a helper, unless it ends by itself within so many seconds; returns its exit code."""
        with self._guard:
            if helper in self._all:
                self._all.remove(helper)
                self._cpu_seconds += helper.memory.cpu_seconds
        return helper.end(seconds)


class _Memory:
    """What a helper and its owner share: a file without a name, as large as was ever needed."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._shown = mmap.mmap(handle, PIXELS_AT)

    def hold(self, photos: int, size: tuple[int, int]) -> None:
        """Sees to it that so many photos have room, none of which is done."""
        needed = PIXELS_AT + photos * size[0] * size[1] * 3
        if len(self._shown) < needed:
            if os.fstat(self._handle).st_size < needed:
                os.ftruncate(self._handle, needed)
            self._shown = mmap.mmap(self._handle, needed)
        self.done = 0

    @property
    def done(self) -> int:
        """How many photos of the last question are done."""
        return int(DONE.unpack_from(self._shown)[0])

    @done.setter
    def done(self, photos: int) -> None:
        DONE.pack_into(self._shown, 0, photos)

    @property
    def cpu_seconds(self) -> float:
        """What the helper has had of a core, up to the last photo."""
        return float(CPU.unpack_from(self._shown, DONE.size)[0])

    @cpu_seconds.setter
    def cpu_seconds(self, seconds: float) -> None:
        CPU.pack_into(self._shown, DONE.size, seconds)

    def pixels(self, number: int, size: tuple[int, int]) -> Pixels:
        """A photo's place, uint8 [height, width, 3]."""
        count = size[0] * size[1] * 3
        flat = np.frombuffer(self._shown, np.uint8, count, PIXELS_AT + number * count)
        return flat.reshape(size[1], size[0], 3)

    def say(self, number: int, said: object) -> None:
        """Puts down what is known of a photo, as JSON."""
        at, text = SLOTS_AT + number * SLOT, orjson.dumps(said)
        self._shown[at : at + SAID.size + len(text)] = SAID.pack(len(text)) + text

    def answer(self, number: int, size: tuple[int, int]) -> tuple[Pixels, ImageFacts] | DecodeError:
        """What was put down of a photo, which may be anything."""
        at = SLOTS_AT + number * SLOT
        (length,) = SAID.unpack_from(self._shown, at)
        try:
            said: dict[str, Any] = orjson.loads(self._shown[at + SAID.size : at + min(SAID.size + length, SLOT)])
            if "code" in said:
                return DecodeError(str(said["code"]), str(said["message"]), permanent=bool(said["permanent"]))
            facts = ImageFacts(int(said["width"]), int(said["height"]), str(said["format"]), str(said["sha256"]))
        except (ValueError, TypeError, KeyError):
            return DecodeError("decoder_crashed", "It crashed the decoder (what came back is no answer).")
        return self.pixels(number, size), facts


class _Helper:
    """A helper process as its owner sees it."""

    def __init__(self, words: Sequence[str], *shared: int) -> None:
        """`shared` are open files that it gets beside its own."""
        self._handle = _nameless()
        os.ftruncate(self._handle, PIXELS_AT)
        self.memory = _Memory(self._handle)
        self.process = subprocess.Popen(
            [*words, str(self._handle)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self._handle, *shared),
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._asked, self._answered = self.process.stdin.fileno(), self.process.stdout.fileno()

    def ask(self, photos: Sequence[bytes], size: tuple[int, int]) -> None:
        """Hands photos over; raises BrokenPipeError where the helper has ended."""
        self.memory.hold(len(photos), size)
        head = [ASK.pack(*size, len(photos)), *(LENGTH.pack(len(photo)) for photo in photos)]
        left = [memoryview(part) for part in (b"".join(head), *photos) if part]
        while left:
            written = os.writev(self._asked, left)
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if left:
                left[0] = left[0][written:]

    def wait(self, seconds: float) -> None:
        """Until all are done; raises EOFError where the helper has ended, TimeoutError where one takes too long.

        Time is counted in looks, so that a machine that slept does not seem to hang.
        """
        seen = looks = 0
        while not select.select([self._answered], [], [], seconds / LOOKS)[0]:
            done = self.memory.done
            seen, looks = done, looks + 1 if done == seen else 0
            if looks == LOOKS:
                raise TimeoutError
        if not os.read(self._answered, 1):
            raise EOFError

    def end(self, seconds: float) -> int:
        """Ends it, unless it ends by itself within so many seconds; returns its exit code."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self.process.kill()
        code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        return code


def _nameless() -> int:
    """An open file that goes with the last process that has it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("vehclass")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def serve(formats: tuple[str, ...], max_pixels: int, memory: _Memory, asked: IO[bytes], answered: IO[bytes]) -> None:
    """A helper's life: decodes what is asked until there is no more."""
    while len(head := asked.read(ASK.size)) == ASK.size:
        width, height, count = ASK.unpack(head)
        memory.hold(count, (width, height))
        lengths = [length for (length,) in LENGTH.iter_unpack(asked.read(count * LENGTH.size))]
        # All are taken before the first is decoded, so that whoever asks can watch.
        for number, photo in enumerate([asked.read(length) for length in lengths]):
            try:
                memory.pixels(number, (width, height))[:], facts = decode(
                    photo, (width, height), formats=formats, max_pixels=max_pixels
                )
                memory.say(number, facts)
            except DecodeError as error:
                message = str(error)[:500]
                memory.say(number, {"code": error.code, "message": message, "permanent": error.permanent})
            memory.cpu_seconds = time.process_time()
            memory.done = number + 1
        answered.write(b"\n")
        answered.flush()


def main() -> None:
    """What a helper runs. A signal is for the run that it works for, which ends it by closing the pipe."""
    import signal

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    formats, most, giants, handle = sys.argv[1:]
    share_giants(int(giants))
    with suppress(BrokenPipeError):
        serve(tuple(formats.split(",")), int(most), _Memory(int(handle)), sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
