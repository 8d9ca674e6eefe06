"""Shares photos among train, val and test: stratified, seeded, copies of one photo together, and written down."""

import csv
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vehclass.training.dataset import SPLITS, Sample

VAL_SHARE: Final = 0.1
TEST_SHARE: Final = 0.1
SPLITS_FILE: Final = "splits.csv"
DIGEST_DIGITS: Final = 16  # of a file's sha256: enough to tell any two photos apart


def split_rows(
    samples: Sequence[Sample], numbers: NDArray[np.int64], seed: int, groups: Iterable[Sequence[int]] | None = None
) -> dict[str, NDArray[np.int64]]:
    """Shares the samples among train, val and test, keeping the mix of labels; the same seed, the same split.

    `numbers` are what the samples are called in the answer. `groups` are positions of samples that must not be
    torn apart, such as copies of one photo. A split that the data name is kept, torn groups or not. A train folder
    without a val or test one gives some up for it. Groups of one mix of labels stand together, shuffled, and every
    so-many-th is taken: a mix with few samples gets its share to the nearest one.
    """
    strata: dict[tuple[str | None, ...], list[Sequence[int]]] = defaultdict(list)
    parts: dict[str, list[int]] = {split: [] for split in SPLITS}
    for group in groups or [[at] for at in range(len(samples))]:
        free = [at for at in group if samples[at].split in (None, "train")]
        for at in group:
            if at not in free:
                parts[samples[at].split or "train"].append(at)
        if free:
            first = samples[free[0]]
            mix = (first.split, *(f"{task}={label}" for task, label in sorted(first.labels.items())))
            strata[mix].append(free)
    named = {sample.split for sample in samples} - {None}
    shares = {"val": 0.0 if "val" in named else VAL_SHARE, "test": 0.0 if "test" in named else TEST_SHARE}
    shuffle = random.Random(seed)
    owed = dict.fromkeys(shares, 0.0)
    for mix in sorted(strata, key=str):
        members = strata[mix]
        shuffle.shuffle(members)
        for group in members:
            split = "train"
            for part, share in shares.items():
                owed[part] += share * len(group)
                if split == "train" and owed[part] > len(group) - 1e-6:
                    owed[part] -= len(group)
                    split = part
            parts[split].extend(group)
    return {split: numbers[sorted(rows)] for split, rows in parts.items()}


def write_splits(
    file: Path, root: Path, paths: Sequence[Path], digests: Sequence[str], rows: dict[str, NDArray[np.int64]]
) -> None:
    """Writes which photo went where: the digest of its bytes, the split, and its path below the data's folder."""
    split_of = {int(row): split for split, members in rows.items() for row in members}
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
        table = csv.writer(opened, lineterminator="\n")
        table.writerow(("sha256", "split", "path"))
        for row in sorted(split_of):
            table.writerow((digests[row], split_of[row], paths[row].relative_to(root).as_posix()))
