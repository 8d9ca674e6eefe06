"""Turns a batch of images that were read into their outcomes: decoded one by one, classified together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vehclass.batch.ports import Classifier, Decode
from vehclass.batch.profile import Profile
from vehclass.errors import DecodeError, ImageError, ReadError
from vehclass.imaging import Pixels
from vehclass.records import Failure, ImageFacts, ImageRef, Outcome, Prediction


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


def classify_batch(
    batch: Sequence[Read], decode: Decode, classifiers: Sequence[Classifier], profile: Profile | None = None
) -> list[tuple[int, Outcome]]:
    """One outcome for each image and each model that it is for, with the model's number.

    Models with inputs of one size share the decoding.
    """
    profile = profile or Profile()
    outcomes: list[tuple[int, Outcome]] = []
    for size in dict.fromkeys(classifier.info.input_size for classifier in classifiers):
        models = [n for n, classifier in enumerate(classifiers) if classifier.info.input_size == size]
        wanted = [item for item in batch if not set(models).isdisjoint(item.models)]
        pixels, decoded, failed = _decoded(wanted, decode, size, profile)
        outcomes += [(n, Outcome(one.ref, failure=why)) for one, why in failed for n in models if n in one.models]
        for n in models:
            rows = [row for row, (item, _) in enumerate(decoded) if n in item.models]
            if rows:
                with profile.stage("forward"):
                    answers = classifiers[n].classify(pixels if len(rows) == len(pixels) else pixels[rows])
                asked = [decoded[row] for row in rows]
                outcomes += [
                    (n, _outcome(item.ref, facts, one)) for (item, facts), one in zip(asked, answers, strict=True)
                ]
    return outcomes


def _decoded(
    items: Sequence[Read], decode: Decode, size: tuple[int, int], profile: Profile
) -> tuple[Pixels, list[tuple[Read, ImageFacts]], list[tuple[Read, Failure]]]:
    """The pixels [n, height, width, 3] of those that can be decoded, which those are, and why the others cannot."""
    width, height = size
    pixels = np.empty((len(items), height, width, 3), np.uint8)
    decoded: list[tuple[Read, ImageFacts]] = []
    failed: list[tuple[Read, Failure]] = []
    for item in items:
        try:
            if item.error is not None:
                raise item.error
            with profile.stage("decode"):
                pixels[len(decoded)], facts = decode(item.data, size)
            decoded.append((item, facts))
        except (ReadError, DecodeError) as error:
            failed.append((item, as_failure(error)))
    return pixels[: len(decoded)], decoded, failed


def _outcome(ref: ImageRef, facts: ImageFacts, answer: tuple[Prediction, ...] | ImageError) -> Outcome:
    if isinstance(answer, ImageError):
        return Outcome(ref, facts, failure=as_failure(answer))
    return Outcome(ref, facts, answer)


def as_failure(error: ImageError) -> Failure:
    """An image's error as its row will say it."""
    return Failure(error.stage, error.code, str(error), error.permanent)
