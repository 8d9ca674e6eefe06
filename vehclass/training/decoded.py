"""Decodes every photo of a catalogue once, as classifying will, into a cache that training reads again and again."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vehclass.errors import DataError, DecodeError, UsageError
from vehclass.imaging import Pixels, decode
from vehclass.training.checkpoint import is_full
from vehclass.training.dataset import MISSING, Catalogue
from vehclass.training.duplicates import near_duplicates, same_bytes, sketch
from vehclass.training.splits import DIGEST_DIGITS

SMALLEST_SIDE: Final = 16
AHEAD: Final = 64  # photos a thread, at most, that are read and not yet written to the cache


@dataclass(frozen=True, slots=True)
class Rejected:
    """A photo that could not be used, and why."""

    path: Path
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Look:
    """What one decoding says of all photos, row by row as in the catalogue.

    `usable` are the rows that decoded; sizes [n, 2] are width and height as a person sees them, 0 where unknown.
    Copies are pairs of rows: with the same bytes, or with nearly the same pixels but other bytes. `pixels` is
    uint8 [n, height, width, 3], or nothing when only looking.
    """

    usable: NDArray[np.int64]
    rejected: tuple[Rejected, ...]
    digests: tuple[str, ...]
    sizes: NDArray[np.int32]
    exact_copies: tuple[tuple[int, int], ...]
    near_copies: tuple[tuple[int, int], ...]
    pixels: Pixels | None


@dataclass(frozen=True, slots=True)
class Dataset:
    """Decoded photos: pixels uint8 [n, height, width, 3], targets int32 [n, tasks] with -1 where unlabelled.

    `rows` gives the indices of each split, `digests` the beginning of each file's sha256.
    """

    paths: tuple[Path, ...]
    pixels: Pixels
    targets: NDArray[np.int32]
    rows: dict[str, NDArray[np.int64]]
    rejected: tuple[Rejected, ...]
    digests: tuple[str, ...]

    def digest(self, split: str | None = None) -> str:
        """A sha256 over the bytes of all photos and their labels, or those of one split."""
        whole = hashlib.sha256()
        for name, rows in self.rows.items():
            if split in (None, name):
                for row in sorted(rows.tolist(), key=lambda row: self.digests[row]):
                    whole.update(self.digests[row].encode())
                    whole.update(self.targets[row].tobytes())
        return whole.hexdigest()


def typical_side(catalogue: Catalogue, largest: int) -> int:
    """A square input's side in pixels: the photos' usual shorter side, from 32 pixels on in steps of 16, at most `largest`."""
    step = max(1, len(catalogue.samples) // 64)
    sides = []
    for sample in catalogue.samples[::step]:
        try:
            facts = decode(sample.path.read_bytes(), (8, 8))[1]
        except (DecodeError, OSError):
            continue
        sides.append(min(facts.width, facts.height))
    usual = int(np.median(sides)) if sides else largest
    if usual < 2 * SMALLEST_SIDE:
        return max(SMALLEST_SIDE, usual)
    return min(largest, round(usual / 16) * 16)


def look(
    catalogue: Catalogue,
    input_size: tuple[int, int],
    *,
    threads: int = 1,
    cache_beside: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Look:
    """Decodes every photo of the catalogue to `input_size` (width, height) once.

    With `cache_beside` the pixels are kept, in an unnamed file of that folder: in memory while there is enough of
    it, on disk where there is not. Raises UsageError when the disk has no room for them.
    """
    samples = catalogue.samples
    pixels = _cache(len(samples), input_size, cache_beside) if cache_beside else None
    sizes = np.zeros((len(samples), 2), np.int32)
    sketches = np.zeros((len(samples), 256), np.float32)
    digests = [""] * len(samples)

    def decode_into(row: int) -> Rejected | None:
        path = samples[row].path
        try:
            data = path.read_bytes()
            digests[row] = hashlib.sha256(data).hexdigest()[:DIGEST_DIGITS]
            picture, facts = decode(data, input_size)
        except DecodeError as error:
            return Rejected(path, error.code, str(error))
        except OSError as error:
            return Rejected(path, "unreadable", error.strerror or str(error))
        sizes[row] = facts.width, facts.height
        sketches[row] = sketch(picture)
        if pixels is not None:
            pixels[row] = picture
        return None

    usable, rejected = [], []
    with ThreadPoolExecutor(threads) as pool:
        for row, problem in enumerate(_in_order(pool, decode_into, len(samples), AHEAD * threads)):
            progress(row + 1, len(samples))
            if problem is None:
                usable.append(row)
            else:
                rejected.append(problem)
    rows = np.array(usable, np.int64)
    exact = same_bytes([digests[row] for row in usable])
    # Of equal files one is compared with the others: ten thousand times the same picture would be 50 million pairs.
    singles = np.setdiff1d(np.arange(len(rows)), [later for _, later in exact])
    near = [(singles[a], singles[b]) for a, b in near_duplicates(sketches[rows[singles]])]
    exact_copies, near_copies = (tuple((usable[a], usable[b]) for a, b in pairs) for pairs in (exact, near))
    return Look(rows, tuple(rejected), tuple(digests), sizes, exact_copies, near_copies, pixels)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[int], Rejected | None], count: int, ahead: int
) -> Iterator[Rejected | None]:
    """work(0) to work(count - 1) in order, so many of them begun ahead; leaving early begins no more."""
    for at in range(0, count, ahead):
        yield from pool.map(work, range(at, min(count, at + ahead)))


def _cache(count: int, size: tuple[int, int], folder: Path) -> Pixels:
    width, height = size
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            # Room is taken now: a mapped file that cannot grow later ends the process without a word.
            room = max(1, count * width * height * 3)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, room)
            else:  # macOS
                file.truncate(room)
        except OSError as error:
            if not is_full(error):
                raise
            raise UsageError(
                reason=f"The disk of {folder} has no room for {count * width * height * 3 / 1e9:.1f} GB of decoded photos. "
                "Make room, choose another --out, or a smaller --input-size."
            ) from error
        return np.memmap(file, np.uint8, "r+", shape=(count, height, width, 3))


def targets_of(catalogue: Catalogue) -> NDArray[np.int32]:
    """Each photo's label numbers, int32 [n, tasks]; -1 where a task has no label for it."""
    targets = np.full((len(catalogue.samples), len(catalogue.tasks)), MISSING, np.int32)
    for column, task in enumerate(catalogue.tasks):
        position = {label: number for number, label in enumerate(task.labels)}
        for row, sample in enumerate(catalogue.samples):
            if task.name in sample.labels:
                targets[row, column] = position[sample.labels[task.name]]
    return targets


def dataset_of(catalogue: Catalogue, seen: Look, rows: dict[str, NDArray[np.int64]]) -> Dataset:
    """What training works on; raises DataError when a label has lost all its photos."""
    targets = targets_of(catalogue)
    for column, task in enumerate(catalogue.tasks):
        lost = set(range(len(task.labels))) - set(targets[seen.usable, column].tolist())
        if lost:
            raise DataError(
                path=catalogue.root, reason=f"no photo of the label {task.labels[min(lost)]!r} can be decoded"
            )
    assert seen.pixels is not None
    paths = tuple(sample.path for sample in catalogue.samples)
    return Dataset(paths, seen.pixels, targets, rows, seen.rejected, seen.digests)


def photos_below(folder: Path, size: tuple[int, int], most: int = 1000) -> Pixels:
    """The first photos by name in a folder and its folders that decode: uint8 [n, height, width, 3].

    Raises UsageError when there are none.
    """
    found: list[Pixels] = []
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        try:
            found.append(decode(file.read_bytes(), size)[0])
        except (DecodeError, OSError):
            continue
        if len(found) == most:
            break
    if not found:
        raise UsageError(
            reason=f"No photo in {folder} can be decoded; name another folder with --unlike, or leave it out."
        )
    return np.stack(found)
