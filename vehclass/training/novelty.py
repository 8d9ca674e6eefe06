"""Tells photos unlike all that a network learnt from: prototypes of the training photos' features, and a limit."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vehclass.imaging import Pixels

PROTOTYPES: Final = 128
ROUNDS: Final = 15
MOST_PHOTOS: Final = 20_000  # more would say the same
KEPT: Final = 0.98  # of the validation photos are within the limit


def prototypes(features: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """The centres [features, k] of the training photos' features [n, features], as unit vectors.

    Spherical k-means (Dhillon and Modha, 2001): features count by direction, which the network's depth of contrast
    does not change.
    """
    rng = np.random.default_rng(seed)
    photos = _unit(features)
    if len(photos) > MOST_PHOTOS:
        photos = photos[rng.choice(len(photos), MOST_PHOTOS, replace=False)]
    count = max(1, min(PROTOTYPES, len(photos) // 4))
    centres = photos[rng.choice(len(photos), count, replace=False)]
    for _ in range(ROUNDS):
        nearest = (photos @ centres.T).argmax(axis=1)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, photos)
        empty = np.bincount(nearest, minlength=count) == 0
        sums[empty] = photos[rng.choice(len(photos), int(empty.sum()))]
        centres = _unit(sums)
    return centres.T.astype(np.float32)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def limit(novelty: NDArray[np.float32]) -> float:
    """The novelty above which a photo is unlike the validation photos, given theirs [n]: all but 2 % of them are below."""
    return float(np.ceil(np.quantile(novelty, KEPT) * 1e5) / 1e5)


def odd_pictures(size: tuple[int, int], seed: int, count: int = 64) -> dict[str, Pixels]:
    """Pictures that are no photos, uint8 [count, height, width, 3] of each kind: noise, coloured clouds, blanks."""
    from PIL import Image

    width, height = size
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 6, 6, 3), np.uint8)
    clouds = [np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BICUBIC)) for one in small]
    return {
        "noise": rng.integers(0, 256, (count, height, width, 3), np.uint8),
        "clouds": np.stack(clouds),
        "blank": np.broadcast_to(rng.integers(0, 256, (count, 1, 1, 3), np.uint8), (count, height, width, 3)),
    }
