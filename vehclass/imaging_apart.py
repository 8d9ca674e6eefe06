"""Decodes images in helper processes, so that one that crashes the decoder, or keeps it busy forever, ends only a helper.

A helper is started for each thread that asks and stays until it ends. What goes to and fro is lengths, JSON and raw
bytes, nothing that could run: a decoder that was taken over by an image has no more to say than pixels.
"""

import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from signal import Signals
from typing import IO, Any, Final

import numpy as np

from vehclass.errors import DecodeError
from vehclass.imaging import Pixels, decode
from vehclass.imaging_limits import DEFAULT_FORMATS, DEFAULT_MAX_PIXELS
from vehclass.records import ImageFacts

ASK: Final = struct.Struct("<IIQ")  # width, height, bytes that follow
ANSWER: Final = struct.Struct("<IQ")  # bytes of JSON, bytes of pixels


class Apart:
    """Decodes as `imaging.decode` does, each thread's images in a process of its own."""

    def __init__(
        self,
        formats: tuple[str, ...] = DEFAULT_FORMATS,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        seconds: float = 120.0,
    ) -> None:
        """`seconds` is the longest that an image may take."""
        self._words = [sys.executable, "-P", "-m", __name__, ",".join(formats), str(max_pixels)]
        self._seconds = seconds
        self._own = threading.local()
        self._all: list[subprocess.Popen[bytes]] = []
        self._guard = threading.Lock()

    def decode(self, data: bytes, size: tuple[int, int]) -> tuple[Pixels, ImageFacts]:
        """The photo as `imaging.decode` gives it; raises DecodeError also where the decoder crashed or took too long."""
        helper = self._helper()
        try:
            return self._ask(helper, data, size)
        except (BrokenPipeError, EOFError):
            code = self._end(helper)
            how = f"killed by {Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise DecodeError("decoder_crashed", f"It crashed the decoder ({how}).") from None
        except TimeoutError:
            self._end(helper)
            raise DecodeError("decode_timeout", f"It was not decoded within {self._seconds:g} s.") from None

    def close(self) -> None:
        """Ends the helpers."""
        for helper in list(self._all):
            self._end(helper)

    def _helper(self) -> "subprocess.Popen[bytes]":
        helper: subprocess.Popen[bytes] | None = getattr(self._own, "helper", None)
        if helper is None or helper.returncode is not None:
            helper = subprocess.Popen(self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._own.helper = helper
            with self._guard:
                self._all.append(helper)
        return helper

    def _end(self, helper: "subprocess.Popen[bytes]") -> int:
        """Ends a helper, if it has not ended by itself; returns its exit code."""
        with suppress(subprocess.TimeoutExpired):
            helper.wait(0.2)
        helper.kill()
        code = helper.wait()
        for pipe in (helper.stdin, helper.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # what could not be sent any more
                    pipe.close()
        with self._guard:
            if helper in self._all:
                self._all.remove(helper)
        return code

    def _ask(self, helper: "subprocess.Popen[bytes]", data: bytes, size: tuple[int, int]) -> tuple[Pixels, ImageFacts]:
        assert helper.stdin is not None
        assert helper.stdout is not None
        helper.stdin.write(ASK.pack(*size, len(data)))
        helper.stdin.write(data)
        helper.stdin.flush()
        until = time.monotonic() + self._seconds
        said, count = ANSWER.unpack(_read(helper.stdout, ANSWER.size, until))
        width, height = size
        if said > 100_000 or count not in (0, width * height * 3):
            raise EOFError
        answer = json.loads(_read(helper.stdout, said, until))
        pixels = np.frombuffer(_read(helper.stdout, count, until), np.uint8)
        if "code" in answer:
            raise DecodeError(answer["code"], answer["message"], permanent=answer["permanent"])
        return pixels.reshape(height, width, 3), ImageFacts(**answer)


def _read(pipe: IO[bytes], count: int, until: float) -> bytes:
    """So many bytes; raises TimeoutError, or EOFError where the other end is closed."""
    parts: list[bytes] = []
    while count:
        ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            raise TimeoutError
        part = os.read(pipe.fileno(), min(count, 2**20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def serve(formats: tuple[str, ...], max_pixels: int, asked: IO[bytes], answered: IO[bytes]) -> None:
    """A helper's life: decodes what is asked until there is no more."""
    while len(head := asked.read(ASK.size)) == ASK.size:
        width, height, count = ASK.unpack(head)
        body = b""
        try:
            pixels, facts = decode(asked.read(count), (width, height), formats=formats, max_pixels=max_pixels)
            answer: dict[str, Any] = asdict(facts)
            body = pixels.tobytes()
        except DecodeError as error:
            answer = {"code": error.code, "message": str(error), "permanent": error.permanent}
        text = json.dumps(answer).encode()
        answered.write(ANSWER.pack(len(text), len(body)))
        answered.write(text)
        answered.write(body)
        answered.flush()


def main() -> None:
    """What a helper runs. A signal is for the run that it works for, which ends it by closing the pipe."""
    import signal

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    formats, most = sys.argv[1:]
    with suppress(BrokenPipeError):
        serve(tuple(formats.split(",")), int(most), sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
