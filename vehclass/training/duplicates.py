"""Finds photos that show the same thing: equal bytes, or pixels that differ by compression, size or light only.

A photo's sketch is its grey picture in 16 x 16 cells. A 64-bit difference hash of it (which of two neighbouring
cells is brighter) finds candidates without comparing all with all; their sketches then have to correlate. Pairs
that are copies (scaled to 80 %, JPEG at quality 60, brighter) correlate by 0.997 and more, roadside photos of two
vehicles of one kind before the same wall by 0.98 and less.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vehclass.imaging import Pixels

CELLS: Final = 16
ALIKE: Final = 0.99  # correlation of two sketches from which on they show the same
BANDS: Final = 4  # of 16 bits: copies differ in four bits at most, and one band is nearly always untouched
LARGEST_BUCKET: Final = 4000  # candidates compared with one another at a time
GREY: Final = np.array([0.299, 0.587, 0.114], np.float32)

Sketch = NDArray[np.float32]


def sketch(pixels: Pixels) -> Sketch:
    """The mean brightness, 0-255, of 16 x 16 cells of a picture [h, w, 3] of at least 16 x 16 pixels: float32 [256]."""
    grey = pixels.astype(np.float32) @ GREY
    height, width = grey.shape
    rows, columns = (np.linspace(0, side, CELLS + 1).astype(int) for side in (height, width))
    sums = np.add.reduceat(np.add.reduceat(grey, rows[:-1], axis=0), columns[:-1], axis=1)
    means: Sketch = (sums / np.outer(np.diff(rows), np.diff(columns))).ravel()
    return means.astype(np.float32)


def perceptual_hash(sketches: Sketch) -> NDArray[np.uint16]:
    """The difference hash of sketches [n, 256], in four bands: uint16 [n, 4]."""
    cells = sketches.reshape(-1, 8, 2, 8, 2).mean(axis=(2, 4))
    brighter = cells > np.roll(cells, -1, axis=2)
    return np.packbits(brighter.reshape(len(cells), -1), axis=1).view(np.uint16)


def near_duplicates(sketches: Sketch) -> list[tuple[int, int]]:
    """Pairs of rows of sketches [n, 256] that show the same, the smaller row first, in order.

    Pictures without any contrast are alike only to others of the same brightness, which copies of one blank are.
    """
    if len(sketches) < 2:
        return []
    level = sketches.mean(axis=1, keepdims=True)
    plain = sketches - level
    # The constant keeps the noise of a nearly blank picture from being blown up to a pattern.
    plain = np.hstack([plain, np.full((len(plain), 1), 8.0, np.float32)])
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    pairs: set[tuple[int, int]] = set()
    bands = perceptual_hash(sketches)
    for band in range(BANDS):
        order = np.argsort(bands[:, band], kind="stable")
        starts = np.flatnonzero(np.diff(bands[order, band], prepend=-1))
        for bucket in np.split(order, starts[1:]):
            for at in range(0, len(bucket), LARGEST_BUCKET):
                pairs |= _alike(bucket[at : at + LARGEST_BUCKET], plain, level[:, 0])
    return sorted(pairs)


def _alike(rows: NDArray[np.intp], plain: Sketch, level: Sketch) -> set[tuple[int, int]]:
    if len(rows) < 2:
        return set()
    alike = np.triu(plain[rows] @ plain[rows].T >= ALIKE, k=1)
    pairs = rows[np.argwhere(alike)]
    blank = np.abs(plain[pairs[:, 0], -1]) > 0.7  # more constant than contrast
    same_level = np.abs(level[pairs[:, 0]] - level[pairs[:, 1]]) < 2
    return {(min(a, b), max(a, b)) for a, b in pairs[~blank | same_level].tolist()}


def groups(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The rows 0 to count-1 in groups that pairs hold together, directly or by way of others; most are single."""
    leader = list(range(count))

    def find(row: int) -> int:
        while leader[row] != row:
            leader[row] = row = leader[leader[row]]
        return row

    for one, other in pairs:
        first, second = sorted((find(one), find(other)))
        leader[second] = first
    members: dict[int, list[int]] = defaultdict(list)
    for row in range(count):
        members[find(row)].append(row)
    return list(members.values())


def same_bytes(digests: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of rows with equal digests, each later one with the first of its kind."""
    first: dict[str, int] = {}
    pairs = []
    for row, digest in enumerate(digests):
        earlier = first.setdefault(digest, row)
        if earlier != row:
            pairs.append((earlier, row))
    return pairs
