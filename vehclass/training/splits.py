"""Shares photos among train, val and test: stratified, seeded, copies of one photo together, and written down."""

import csv
import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vehclass.errors import ModelRefused
from vehclass.training.dataset import SPLITS, Sample

VAL_SHARE: Final = 0.1
TEST_SHARE: Final = 0.1
SPLITS_FILE: Final = "splits.csv"
BEFORE: Final = "before"  # the split, as written down, of what a model learnt from whose weights were started from
LEARNT_FROM: Final = ("train", "val", BEFORE)
DIGEST_DIGITS: Final = 16  # of a file's sha256: enough to tell any two photos apart


def split_rows(
    samples: Sequence[Sample],
    numbers: NDArray[np.int64],
    seed: int,
    groups: Iterable[Sequence[int]] | None = None,
    learnt: Collection[int] = (),
) -> dict[str, NDArray[np.int64]]:
    """Shares the samples among train, val and test, keeping the mix of labels; the same seed, the same split.

    `numbers` are what the samples are called in the answer. `groups` are positions of samples that must not be
    torn apart, such as copies of one photo. A split that the data name is kept, torn groups or not. A train folder
    without a val or test one gives some up for it. Groups of one mix of labels stand together, shuffled, and every
    so-many-th is taken: a mix with few samples gets its share to the nearest one, but for one that stays in train.
    Positions in `learnt`, of photos that the network to start from has learnt from, stay in train with their groups.
    """
    learnt = frozenset(learnt)
    strata: dict[tuple[str | None, ...], list[Sequence[int]]] = defaultdict(list)
    parts: dict[str, list[int]] = {split: [] for split in SPLITS}
    for group in groups or [[at] for at in range(len(samples))]:
        free = [at for at in group if samples[at].split in (None, "train")]
        for at in group:
            if at not in free:
                parts[samples[at].split or "train"].append(at)
        if not learnt.isdisjoint(group):
            parts["train"].extend(free)
        elif free:
            first = samples[free[0]]
            mix = (first.split, *(f"{task}={label}" for task, label in sorted(first.labels.items())))
            strata[mix].append(free)
    named = {sample.split for sample in samples} - {None}
    fresh = sum(len(group) for groups in strata.values() for group in groups)
    # Where many were learnt before, what is measured on comes from the rest, but not more than half of that.
    scale = min(0.25 / VAL_SHARE, 1 + len(parts["train"]) / fresh) if learnt and fresh else 1.0
    shares = {"val": 0.0 if "val" in named else VAL_SHARE, "test": 0.0 if "test" in named else TEST_SHARE}
    shares = {part: share * scale for part, share in shares.items()}
    shuffle = random.Random(seed)
    owed = dict.fromkeys(shares, 0.0)
    for mix in sorted(strata, key=str):
        members = strata[mix]
        shuffle.shuffle(members)
        kept_in_train = False
        for left, group in zip(range(len(members) - 1, -1, -1), members, strict=True):
            split = "train"
            for part, share in shares.items():
                owed[part] += share * len(group)
                if split == "train" and owed[part] > len(group) - 1e-6 and (left or kept_in_train):
                    owed[part] -= len(group)
                    split = part
            kept_in_train = kept_in_train or split == "train"
            parts[split].extend(group)
    return {split: numbers[sorted(rows)] for split, rows in parts.items()}


def read_splits(folder: Path) -> dict[str, str] | None:
    """Which photos a model folder's model learnt from: split by the first digits of their bytes' sha256.

    None without a record; raises ModelRefused where it cannot be read.
    """
    file = folder / SPLITS_FILE
    if not file.is_file():
        return None
    try:
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
            rows = [(row["sha256"][:DIGEST_DIGITS], row["split"]) for row in csv.DictReader(opened)]
    except (OSError, csv.Error, KeyError, TypeError) as error:
        raise ModelRefused(path=folder, reason=f"{SPLITS_FILE} cannot be read ({error!r})") from error
    # A photo that stands in two splits was learnt from.
    return dict(sorted(rows, key=lambda row: row[1] in LEARNT_FROM))


def learnt_from(record: dict[str, str] | None) -> frozenset[str]:
    """The first digits of the digests of all photos that a model has learnt from, as its record has them."""
    return frozenset(digest for digest, split in (record or {}).items() if split in LEARNT_FROM)


def write_splits(
    file: Path,
    root: Path,
    paths: Sequence[Path],
    digests: Sequence[str],
    rows: dict[str, NDArray[np.int64]],
    before: Collection[str] = (),
) -> None:
    """Writes which photo went where: the digest of its bytes, the split, and its path below the data's folder.

    Digests in `before`, of what the weights to start from have learnt from, follow without a path.
    """
    split_of = {int(row): split for split, members in rows.items() for row in members}
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
        table = csv.writer(opened, lineterminator="\n")
        table.writerow(("sha256", "split", "path"))
        for row in sorted(split_of):
            table.writerow((digests[row], split_of[row], paths[row].relative_to(root).as_posix()))
        for digest in sorted({*before} - {digests[row][:DIGEST_DIGITS] for row in split_of}):
            table.writerow((digest, BEFORE, ""))
