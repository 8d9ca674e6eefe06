"""Tells photos unlike all that a network learnt from: how its features go together in the training photos, and a limit."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vehclass.imaging import Pixels

MOST_NUMBERS: Final = 384  # of the features that are looked at, evenly picked from all
LEAST_SHRINKAGE: Final = 0.02
MOST_PHOTOS: Final = 20_000  # more would say the same
KEPT: Final = 0.98  # of the validation photos are within the limit


def whitening(features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Kernel [features, k] and bias [k] of the linear map that makes the training photos' features alike in all directions.

    The squared length of what comes out for `features` [n, features] is their squared Mahalanobis distance over k: at
    most 1 for a training photo on average, more for one whose features go together in a way that theirs do not. After Lee
    et al., 'A simple unified framework for detecting out-of-distribution samples' (2018), with one centre for all
    labels. Correlations are shrunk towards none, the more the fewer photos they were seen on.
    """
    count = features.shape[1]
    picked = np.unique(np.linspace(0, count - 1, min(count, MOST_NUMBERS)).round().astype(int))
    some = features[:, picked].astype(np.float64)
    mean, spread = some.mean(axis=0), some.std(axis=0)
    # What hardly ever differs among the training photos would make noise of the arithmetic count.
    spread = np.maximum(spread, 1e-3 * max(float(spread.mean()), 1e-6))
    even = (some - mean) / spread
    share = max(LEAST_SHRINKAGE, len(picked) / (len(picked) + len(even)))
    correlation = (1 - share) * (even.T @ even) / len(even) + share * np.eye(len(picked))
    values, directions = np.linalg.eigh(correlation)
    own = directions / np.sqrt(values * len(picked)) / spread[:, None]
    kernel = np.zeros((count, len(picked)))
    kernel[picked] = own
    return kernel.astype(np.float32), (-mean @ own).astype(np.float32)


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
