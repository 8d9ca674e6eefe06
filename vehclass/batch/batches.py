"""Turns images that were read into their outcomes: decoded in any of two ways, classified together."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from vehclass.batch.ports import Classifier, Decode, DecodeAll
from vehclass.batch.profile import Profile
from vehclass.errors import DecodeError, ImageError, ReadError
from vehclass.imaging import Pixels
from vehclass.records import Failure, ImageFacts, ImageRef, Outcome, Prediction

# A turn is a batch, or as many more as there may be: more gain nothing.
TURN_BATCHES: Final = 4
TURN_SECONDS: Final = 0.25  # that decoding, and then computing, may take
TURN_BYTES: Final = 10 * 2**20  # of pixels
WAITED_SECONDS: Final = 0.02  # for a batch: who waits for longer has the time to compute what there is
PART_SECONDS: Final = 1.0  # after which a part of a batch is computed, too, though a network takes as long for it


class Todo(NamedTuple):
    """An image, and the models that it is new to, by their number."""

    ref: ImageRef
    models: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Read:
    """An image with its bytes, or with what kept them away, for some models."""

    ref: ImageRef
    models: tuple[int, ...]
    data: bytes = b""
    error: ReadError | None = None


@dataclass(frozen=True, slots=True)
class _Input:
    """Pictures of one size, and the models that take them, by their number."""

    size: tuple[int, int]
    models: tuple[int, ...]
    pixels: Pixels  # room for a turn
    # Without their bytes, which are of no more use.
    decoded: list[tuple[Todo, ImageFacts]] = field(default_factory=list)


def one_by_one(decode: Decode) -> DecodeAll:
    """A decoder of one image for several, each decoded when it is asked for."""

    def attempt(photo: bytes, size: tuple[int, int]) -> tuple[Pixels, ImageFacts] | DecodeError:
        try:
            return decode(photo, size)
        except DecodeError as error:
            # Not kept by a name in any frame of its traceback: such a circle would hold all photos until Python looks for it.
            return error

    return lambda photos, size: (attempt(photo, size) for photo in photos)


class Turn:
    """What a lane does by turns: decode images, then compute all that it has decoded.

    The first batch that is computed after decoding takes longer than those right after it: with MobileNetV3Small 15 ms
    instead of 13, and as long after a thread has only counted for 35 ms. It looks as if the caches lost within some ten
    milliseconds what is not used. So a turn is several batches, where they are quick. Models with inputs of one size share the decoding. For one thread.
    """

    def __init__(self, decode: DecodeAll, classifiers: Sequence[Classifier], profile: Profile | None = None) -> None:
        self._decode, self._classifiers, self._profile = decode, classifiers, profile or Profile()
        self._batch = min(classifier.batch_size for classifier in classifiers)
        self._inputs: list[_Input] = []
        for width, height in dict.fromkeys(classifier.info.input_size for classifier in classifiers):
            models = tuple(n for n, one in enumerate(classifiers) if one.info.input_size == (width, height))
            batches = max(1, min(TURN_BATCHES, TURN_BYTES // (width * height * 3 * self._batch)))
            pixels = np.empty((batches * self._batch, height, width, 3), np.uint8)
            self._inputs.append(_Input((width, height), models, pixels))
        self._room = min(len(one.pixels) for one in self._inputs)
        self._most = self._batch  # until it is known how long computing takes
        self._taken = 0
        self._began = self._waited = 0.0
        self._idle_since = time.monotonic()
        self._failed: list[tuple[int, Outcome]] = []

    def take(self, images: Sequence[Read]) -> Sequence[Read]:
        """Decodes images, until the smallest batch of the models is full, and returns those that it has left."""
        now, full = time.monotonic(), self._taken % self._batch
        self._waited = now - self._idle_since + (self._waited if full else 0.0)
        images, left = images[: self._batch - full], images[self._batch - full :]
        if not self._taken:
            self._began = now
        self._taken += len(images)
        for one in self._inputs:
            asked = [item for item in images if any(n in item.models for n in one.models)]
            answers = self._decode([item.data for item in asked if item.error is None], one.size)
            for item in asked:
                error: ImageError | None = item.error
                if error is None:
                    with self._profile.stage("decode"):
                        answer = next(answers)
                        if not isinstance(answer, DecodeError):
                            one.pixels[len(one.decoded)] = answer[0]
                    if isinstance(answer, DecodeError):
                        error = answer
                    else:
                        one.decoded.append((Todo(item.ref, item.models), answer[1]))
                if error is not None:
                    failure = as_failure(error)
                    self._failed += [(n, Outcome(item.ref, failure=failure)) for n in one.models if n in item.models]
        self._idle_since = time.monotonic()
        return left

    @property
    def is_over(self) -> bool:
        """Whether what was taken is to be computed before more is."""
        seconds = time.monotonic() - self._began
        if self._taken % self._batch:
            return seconds >= PART_SECONDS
        full = self._taken + self._batch > self._most
        return full or self._waited > WAITED_SECONDS or seconds >= TURN_SECONDS

    def outcomes(self) -> list[tuple[int, Outcome]]:
        """One outcome for each image that was taken and each model that it is for, with the model's number."""
        outcomes, self._failed = self._failed, []
        began, computed = time.monotonic(), 0
        for one in self._inputs:
            computed = max(computed, len(one.decoded))
            for n in one.models:
                rows = [row for row, (item, _) in enumerate(one.decoded) if n in item.models]
                if rows:
                    whole = len(rows) == len(one.decoded)
                    with self._profile.stage("forward"):
                        answers = self._classifiers[n].classify(one.pixels[: len(rows)] if whole else one.pixels[rows])
                    asked = [one.decoded[row] for row in rows]
                    outcomes += [
                        (n, _outcome(item.ref, facts, answer))
                        for (item, facts), answer in zip(asked, answers, strict=True)
                    ]
            one.decoded.clear()
        self._idle_since = time.monotonic()
        seconds = self._idle_since - began
        if computed:
            batches = int(TURN_SECONDS * computed / max(seconds, 1e-9)) // self._batch
            self._most = min(self._room, max(1, batches) * self._batch)
        self._taken = 0
        return outcomes


def _outcome(ref: ImageRef, facts: ImageFacts, answer: tuple[Prediction, ...] | ImageError) -> Outcome:
    if isinstance(answer, ImageError):
        return Outcome(ref, facts, failure=as_failure(answer))
    return Outcome(ref, facts, answer)


def as_failure(error: ImageError) -> Failure:
    """An image's error as its row will say it."""
    return Failure(error.stage, error.code, str(error), error.permanent)
