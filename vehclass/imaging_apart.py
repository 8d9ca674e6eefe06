"""Decodes images in helper processes: one that crashes the decoder, or keeps it busy for ever, ends only a helper.

Helpers also run Python side by side, which the threads of one process cannot (docs/performance.md, "Many cores"). Each
thread that asks has one of its own, from its first question until all are closed. Photos go to it through a pipe, a few
at a time; their pixels come back in memory that the two share, and what is known of each as JSON beside them. All of that is
looked at as what a stranger says: a decoder that was taken over by an image can give wrong pixels for it and those after it, and
little else this way.
"""

import fcntl
import math
import mmap
import os
import re
import select
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from signal import SIGABRT, SIGFPE, SIGILL, SIGKILL, SIGSEGV, Signals
from typing import IO, Any, Final

import numpy as np
import orjson

from vehclass.errors import DecodeError, HelperMissing
from vehclass.imaging import Pixels, decode, share_giants
from vehclass.imaging_limits import DEFAULT_FORMATS, DEFAULT_MAX_PIXELS, LOOKS
from vehclass.records import ImageFacts

TOGETHER: Final = 16  # photos a question, at most,
TOGETHER_BYTES: Final = 32 * 2**20  # and so many bytes of pixels, but for a single one
START_SECONDS: Final = 60.0  # until a helper is ready
CRASH_SECONDS: Final = 2.0  # from the end of a helper's pipe to its own
LONGEST_WAIT: Final = 10  # for its turn, in times of an image
# What a bug in a decoder ends by; other signals come from outside, or of a short disk or memory.
CRASHES: Final = frozenset({SIGSEGV, SIGILL, SIGFPE, SIGABRT})
SECRET: Final = re.compile("^(VEHCLASS|AZURE)_|SECRET|TOKEN|PASSWORD|KEY|CREDENTIAL|IDENTITY|PROXY", re.IGNORECASE)
# A question: its number, width, height, how many photos; then each one's length, then the photos.
ASK: Final = struct.Struct("<QIII")
LENGTH: Final = struct.Struct("<Q")
ANSWERED: Final = struct.Struct("<Q")  # the question's number; 0 from a helper that is ready
# The shared memory: how many of the photos are done, whether the next waits for its turn, the CPU that the helper has had in
# seconds; then a slot for what is known of each photo, with its length; then their pixels.
DONE: Final = struct.Struct("<Q")
WAITS: Final = struct.Struct("<Q")
CPU: Final = struct.Struct("<d")
SAID: Final = struct.Struct("<I")
WAITS_AT: Final = DONE.size
CPU_AT: Final = WAITS_AT + WAITS.size
SLOTS_AT: Final = CPU_AT + CPU.size
SLOT: Final = 4096
PIXELS_AT: Final = SLOTS_AT + TOGETHER * SLOT
LONGEST_MESSAGE: Final = 500  # characters, which fit a slot however they are written


class Apart:
    """Decodes as `imaging.decode` does, each thread's images in a process of its own."""

    def __init__(
        self,
        formats: tuple[str, ...] = DEFAULT_FORMATS,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        seconds: float = 120.0,
    ) -> None:
        """`seconds` is the longest that an image may take."""
        self._formats, self._max_pixels, self._seconds = formats, max_pixels, seconds
        self._command = [sys.executable, "-P", "-m", __name__]
        self._own = threading.local()
        self._all: list[_Helper] = []
        self._guard = threading.Lock()
        self._giants: int | None = None  # an open file by which the helpers take turns at giants
        self._cpu_seconds = 0.0  # of helpers that have ended

    def decode(
        self, photos: Sequence[bytes], size: tuple[int, int]
    ) -> Iterator[tuple[Pixels, ImageFacts] | DecodeError]:
        """What `imaging.decode` gives or raises for each photo, in order, also where the decoder crashed or took too long.

        An answer is good until the next is asked for. Raises HelperMissing.
        """
        width, height = size
        most = max(1, min(TOGETHER, TOGETHER_BYTES // (width * height * 3)))
        at, suspect = 0, -1  # the photo at which a helper ended
        while at < len(photos):
            # It is tried once more, alone: the helper may have been killed for something else.
            part = photos[at : at + (1 if at == suspect else most)]
            helper, error = self._helper(), None
            try:
                helper.ask(part, size)
                helper.wait(len(part), self._seconds)
            except (BrokenPipeError, EOFError):
                error = _crash(self._end(helper, CRASH_SECONDS))
            except _NoAnswer:
                self._end(helper)
                error = _crash(None)
            except _StillAt as stuck:
                self._end(helper)
                if helper.memory.done <= stuck.photo:  # and not just done after all
                    error = DecodeError("decode_timeout", f"It was not decoded within {self._seconds:g} s.")
            except OSError as full:
                self._end(helper)
                raise HelperMissing(reason=full.strerror or full) from full
            done = min(helper.memory.done, len(part))
            for number in range(done):
                yield helper.memory.answer(number, size, self._formats, self._max_pixels)
            at += done
            if error is not None and done < len(part):
                if error.code == "decoder_crashed" and suspect != at:
                    suspect = at
                else:
                    at += 1
                    yield error

    def cpu_seconds(self) -> float:
        """What the helpers have had of the cores so far."""
        with self._guard:
            return self._cpu_seconds + sum(helper.memory.cpu_seconds for helper in self._all)

    def close(self) -> None:
        """Ends the helpers, of which none may be at work."""
        for helper in list(self._all):
            self._end(helper)
        self._own = threading.local()  # with the memory of each
        if self._giants is not None:
            os.close(self._giants)
            self._giants = None

    def _helper(self) -> "_Helper":
        """This thread's own; raises HelperMissing."""
        helper: _Helper | None = getattr(self._own, "helper", None)
        if helper is None or helper.process.returncode is not None:
            try:
                with self._guard:
                    if self._giants is None:
                        self._giants = _unlinked_file()
                limits = [",".join(self._formats), str(self._max_pixels)]
                helper = _Helper([*self._command, *limits], self._giants)
            except OSError as error:
                raise HelperMissing(reason=error.strerror or error) from error
            with self._guard:
                self._all.append(helper)
            self._own.helper = helper
            try:
                helper.wait(0, START_SECONDS)
            except EOFError as error:
                raise HelperMissing(reason=_how(self._end(helper, CRASH_SECONDS))) from error
            except _NoAnswer as error:
                self._end(helper)
                raise HelperMissing(reason=_how(None)) from error
            except _StillAt as error:
                self._end(helper)
                raise HelperMissing(reason=f"it was not ready within {START_SECONDS:g} s") from error
        return helper

    def _end(self, helper: "_Helper", seconds: float = 0.0) -> int | None:
        """Ends a helper, unless it ends by itself within so many seconds; returns its exit code if it does."""
        with self._guard:
            if helper in self._all:
                self._all.remove(helper)
                self._cpu_seconds += helper.memory.cpu_seconds
        return helper.end(seconds)


class _NoAnswer(Exception):
    """A helper that says something else than that it has answered."""


class _StillAt(Exception):
    """A helper that takes too long over a photo of the question, by its number there."""

    def __init__(self, photo: int) -> None:
        super().__init__(photo)
        self.photo = photo


def _how(code: int | None) -> str:
    """How a process ended, by its exit code, if it did."""
    if code is None:
        return "it gave no answer"
    try:
        return f"killed by {Signals(-code).name}" if code < 0 else f"exit code {code}"
    except ValueError:  # a signal without a name
        return f"killed by signal {-code}"


def _crash(code: int | None) -> DecodeError:
    """Why an image has no pixels whose helper ended: for good where it was a crash."""
    permanent = code is not None and -code in CRASHES
    return DecodeError("decoder_crashed", f"It crashed the decoder ({_how(code)}).", permanent=permanent)


class _Memory:
    """What a helper and its owner share: a file without a name, as large as was ever needed."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._mapped = mmap.mmap(handle, PIXELS_AT)

    def make_room(self, photos: int, size: tuple[int, int]) -> None:
        """Sees to it that the pixels of so many photos fit."""
        needed = PIXELS_AT + photos * size[0] * size[1] * 3
        if len(self._mapped) < needed:
            if os.fstat(self._handle).st_size < needed:
                os.ftruncate(self._handle, needed)
            self._mapped = mmap.mmap(self._handle, needed)

    @property
    def done(self) -> int:
        """How many photos of the last question are done."""
        return int(DONE.unpack_from(self._mapped)[0])

    @done.setter
    def done(self, photos: int) -> None:
        DONE.pack_into(self._mapped, 0, photos)

    @property
    def waits(self) -> bool:
        """Whether the next photo waits until another helper has done a giant."""
        return bool(WAITS.unpack_from(self._mapped, WAITS_AT)[0])

    @waits.setter
    def waits(self, waits: bool) -> None:
        WAITS.pack_into(self._mapped, WAITS_AT, waits)

    @property
    def cpu_seconds(self) -> float:
        """What the helper has had of a core, up to the last photo."""
        seconds = float(CPU.unpack_from(self._mapped, CPU_AT)[0])
        return max(0.0, seconds) if math.isfinite(seconds) else 0.0

    @cpu_seconds.setter
    def cpu_seconds(self, seconds: float) -> None:
        CPU.pack_into(self._mapped, CPU_AT, seconds)

    def pixels(self, number: int, size: tuple[int, int]) -> Pixels:
        """A photo's place, uint8 [height, width, 3]."""
        count = size[0] * size[1] * 3
        flat = np.frombuffer(self._mapped, np.uint8, count, PIXELS_AT + number * count)
        return flat.reshape(size[1], size[0], 3)

    def say(self, number: int, said: object) -> None:
        """Puts down what is known of a photo, as JSON."""
        at, text = SLOTS_AT + number * SLOT, orjson.dumps(said)
        assert SAID.size + len(text) <= SLOT
        self._mapped[at : at + SAID.size + len(text)] = SAID.pack(len(text)) + text

    def answer(
        self, number: int, size: tuple[int, int], formats: Sequence[str], max_pixels: int
    ) -> tuple[Pixels, ImageFacts] | DecodeError:
        """What was put down of a photo, unless it cannot be true."""
        at = SLOTS_AT + number * SLOT
        (length,) = SAID.unpack_from(self._mapped, at)
        try:
            said: dict[str, Any] = orjson.loads(self._mapped[at + SAID.size : at + min(SAID.size + length, SLOT)])
            if "code" in said:
                return _as_error(said)
            return self.pixels(number, size), _as_facts(said, formats, max_pixels)
        except (ValueError, TypeError, KeyError):
            return DecodeError("decoder_crashed", "It crashed the decoder (what came back is no answer).")


def _as_error(said: dict[str, Any]) -> DecodeError:
    """A reason that a helper gave; raises ValueError, TypeError or KeyError for what is none."""
    code, message = said["code"], said["message"]
    if not re.fullmatch("[a-z_]{1,40}", code) or type(message) is not str or len(message) > LONGEST_MESSAGE:
        raise ValueError
    return DecodeError(code, message, permanent=bool(said["permanent"]))


def _as_facts(said: dict[str, Any], formats: Sequence[str], max_pixels: int) -> ImageFacts:
    """What a helper says of a photo; raises ValueError, TypeError or KeyError for what cannot be."""
    width, height, kind, digest = (said[name] for name in ("width", "height", "format", "sha256"))
    if not (type(width) is type(height) is int and width > 0 and height > 0 and width * height <= max_pixels):
        raise ValueError
    if kind not in formats or not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError
    return ImageFacts(width, height, kind, digest)


class _Helper:
    """A helper process as its owner sees it."""

    def __init__(self, command: Sequence[str], giants: int) -> None:
        """Starts it; `wait(0, ...)` says when it is ready. Raises OSError."""
        self._files = [_unlinked_file()]
        try:
            self._files += os.pipe()
            handle, self._answering, answers = self._files
            os.ftruncate(handle, PIXELS_AT)
            with suppress(OSError):  # where the file may not shrink, nobody can take the memory away from its owner
                fcntl.fcntl(handle, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
            self.memory = _Memory(handle)
            self.process = subprocess.Popen(
                [*command, str(giants), str(handle), str(answers)],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=2,  # what a library prints is no answer
                pass_fds=(giants, handle, answers),
                env=_environment(),
                process_group=0,  # a Ctrl-C is for the run, which ends it in its own time
            )
        except OSError:
            self._close_files()
            raise
        os.close(self._files.pop())  # the helper's end of the answers is its own
        assert self.process.stdin is not None
        self._asking = self.process.stdin.fileno()
        self._poll = select.poll()
        self._poll.register(self._answering, select.POLLIN)
        self._question = 0

    def ask(self, photos: Sequence[bytes], size: tuple[int, int]) -> None:
        """Hands photos over; raises BrokenPipeError where the helper has ended."""
        self.memory.make_room(len(photos), size)
        self.memory.done = 0
        self._question += 1
        head = [ASK.pack(self._question, *size, len(photos)), *(LENGTH.pack(len(photo)) for photo in photos)]
        left = [memoryview(part) for part in (b"".join(head), *photos) if part]
        while left:
            written = os.writev(self._asking, left)
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if left:
                left[0] = left[0][written:]

    def wait(self, photos: int, seconds: float) -> None:
        """Until all photos of the question are done; raises EOFError where the helper ended, _StillAt, or _NoAnswer.

        Time is counted in looks, so that a machine that slept does not seem to hang; a giant's does not begin before its turn.
        """
        seen = looks = waited = 0
        while not self._poll.poll(1000 * seconds / LOOKS):
            done, waits = self.memory.done, self.memory.waits
            looks = looks + 1 if done == seen and not waits else 0
            waited = waited + 1 if done == seen else 0
            seen = done
            if looks == LOOKS or waited == LOOKS * LONGEST_WAIT:
                raise _StillAt(done)
        answer = os.read(self._answering, ANSWERED.size)
        if not answer:
            raise EOFError
        if answer != ANSWERED.pack(self._question) or self.memory.done != photos:
            raise _NoAnswer

    def end(self, seconds: float) -> int | None:
        """Ends it, unless it ends by itself within so many seconds; returns its exit code if it does."""
        code: int | None = None
        with suppress(subprocess.TimeoutExpired):
            code = self.process.wait(seconds)
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self._close_files()
        return code

    def _close_files(self) -> None:
        while self._files:
            os.close(self._files.pop())


def _environment() -> dict[str, str]:
    """A helper's: without settings and what may be secret, and with one thread where libraries have a pool."""
    kept = {name: value for name, value in os.environ.items() if not SECRET.search(name)}
    return {**kept, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _unlinked_file() -> int:
    """An open file in memory, or else on disk, that goes with the last process that has it; raises OSError."""
    if hasattr(os, "memfd_create"):
        with suppress(OSError):  # some systems forbid it
            return os.memfd_create("vehclass", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def serve(formats: tuple[str, ...], max_pixels: int, memory: _Memory, asked: IO[bytes], answered: IO[bytes]) -> None:
    """A helper's life: decodes what is asked until there is no more."""
    answered.write(ANSWERED.pack(0))
    answered.flush()
    while len(head := asked.read(ASK.size)) == ASK.size:
        question, width, height, count = ASK.unpack(head)
        lengths = [length for (length,) in LENGTH.iter_unpack(asked.read(count * LENGTH.size))]
        # All are taken before the first is decoded, so that whoever asks can watch.
        photos = [asked.read(length) for length in lengths]
        memory.make_room(count, (width, height))
        for number, photo in enumerate(photos):
            try:
                pixels, facts = decode(photo, (width, height), formats=formats, max_pixels=max_pixels)
                memory.pixels(number, (width, height))[:] = pixels
                memory.say(number, facts)
            except DecodeError as error:
                memory.say(number, _reason(error))
            except MemoryError:
                memory.say(
                    number, _reason(DecodeError("out_of_memory", "There was not enough memory.", permanent=False))
                )
            memory.cpu_seconds = time.process_time()
            memory.done = number + 1
        del photo, photos  # which may be large
        answered.write(ANSWERED.pack(question))
        answered.flush()


def _reason(error: DecodeError) -> dict[str, object]:
    """An error as JSON can have it."""
    message = str(error).encode("utf-8", "backslashreplace").decode()[:LONGEST_MESSAGE]
    return {"code": error.code, "message": message, "permanent": error.permanent}


def _end_with_the_owner() -> None:
    """Ends this process once nobody can ask any more, whatever it is at."""
    asked = select.poll()
    asked.register(0, 0)  # the end of a pipe is told unasked
    asked.poll()
    os.kill(os.getpid(), SIGKILL)


def main() -> None:
    """What a helper runs. A signal is for the run that it works for, which ends it by closing the pipe."""
    import signal

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    formats, most, giants, handle, answers = sys.argv[1:]
    memory = _Memory(int(handle))

    def wait(waits: bool) -> None:
        memory.waits = waits

    share_giants(int(giants), wait)
    threading.Thread(target=_end_with_the_owner, daemon=True).start()
    with suppress(BrokenPipeError), os.fdopen(int(answers), "wb") as answered:
        serve(tuple(formats.split(",")), int(most), memory, sys.stdin.buffer, answered)


if __name__ == "__main__":
    main()
