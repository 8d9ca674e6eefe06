"""Turns a folder of labelled photos, or a CSV manifest, into arrays of pixels and labels, split in three."""

import csv
import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vehclass.errors import DataError, DecodeError
from vehclass.imaging import Pixels, decode
from vehclass.records import Task

SPLITS: Final = ("train", "val", "test")
SPLIT_FOLDERS: Final = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
VAL_SHARE: Final = 0.15
TEST_SHARE: Final = 0.15
MISSING: Final = -1
MANIFEST: Final = "manifest.csv"


@dataclass(frozen=True, slots=True)
class Sample:
    """A photo's path, its label for each task that it has one for, and its split where the data say it."""

    path: Path
    labels: dict[str, str]
    split: str | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A photo that could not be used, and why."""

    path: Path
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What is there to learn from, before any pixel is decoded."""

    root: Path
    tasks: tuple[Task, ...]
    samples: tuple[Sample, ...]

    def label_counts(self, task: Task) -> Counter[str]:
        """How many photos carry each label of a task."""
        return Counter(sample.labels[task.name] for sample in self.samples if task.name in sample.labels)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Decoded photos: pixels uint8 [n, height, width, 3], targets int32 [n, tasks] with -1 where unlabelled.

    `rows` gives the indices of each split.
    """

    paths: tuple[Path, ...]
    pixels: Pixels
    targets: NDArray[np.int32]
    rows: dict[str, NDArray[np.int64]]
    rejected: tuple[Rejected, ...]


def read_catalogue(data: Path, task_name: str = "label") -> Catalogue:
    """The samples under `data`: a CSV manifest, a folder with one, or a folder per label.

    Folders per label may stand under train/, val/ and test/; they make one task, called `task_name`. A
    manifest has a `path` column, one column a task, and perhaps `split`. Raises DataError.
    """
    if data.is_file():
        samples, names = _from_manifest(data)
        root = data.parent
    elif (data / MANIFEST).is_file():
        samples, names = _from_manifest(data / MANIFEST)
        root = data
    elif data.is_dir():
        samples, names = _from_folders(data, task_name), [task_name]
        root = data
    else:
        raise DataError(path=data, reason="there is no such file or folder")
    tasks = tuple(Task(name, _checked_labels(data, name, samples)) for name in names)
    return Catalogue(root, tasks, tuple(samples))


def _from_folders(data: Path, task_name: str) -> list[Sample]:
    folders = _visible_folders(data)
    split_of = {folder: SPLIT_FOLDERS.get(folder.name.lower()) for folder in folders}
    if any(split == "train" for split in split_of.values()):
        odd = [folder.name for folder, split in split_of.items() if split is None]
        if odd:
            raise DataError(path=data, reason=f"beside train/ there is {odd[0]}/, which is neither val/ nor test/")
        places = [(label, split) for folder, split in split_of.items() for label in _visible_folders(folder)]
    else:
        places = [(folder, None) for folder in folders]
    if not places:
        raise DataError(path=data, reason="it has no manifest.csv and no folder per label")
    samples = []
    for folder, split in places:
        files = sorted(file for file in folder.rglob("*") if file.is_file() and not _hidden(file, folder))
        if not files:
            raise DataError(path=data, reason=f"the folder of the label {folder.name!r} is empty")
        samples += [Sample(file, {task_name: folder.name}, split) for file in files]
    return samples


def _visible_folders(folder: Path) -> list[Path]:
    """Sub-folders by name; hidden ones, such as .ipynb_checkpoints, are no labels."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _hidden(file: Path, below: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(below).parts)


def _from_manifest(manifest: Path) -> tuple[list[Sample], list[str]]:
    root = manifest.parent.resolve()
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            names = [name for name in table.fieldnames or () if name not in ("path", "split")]
            if "path" not in (table.fieldnames or ()) or not names:
                raise DataError(path=manifest, reason="it needs a column `path` and one column a task")
            samples = [_from_row(manifest, root, names, row, line) for line, row in enumerate(table, start=2)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(path=manifest, reason=f"it is not a CSV file in UTF-8 ({error})") from error
    return samples, names


def _from_row(manifest: Path, root: Path, names: Sequence[str], row: dict[str, str | None], line: int) -> Sample:
    name = (row["path"] or "").strip()
    path = (root / name).resolve()
    if not name or not path.is_relative_to(root):
        raise DataError(path=manifest, reason=f"line {line} names {name or 'no file'}, which is not below its folder")
    if not path.is_file():
        raise DataError(path=manifest, reason=f"line {line} names {name}, which does not exist")
    split = SPLIT_FOLDERS.get((row.get("split") or "").strip().lower())
    labels = {task: label for task in names if (label := (row[task] or "").strip())}
    return Sample(path, labels, split)


def _checked_labels(data: Path, task: str, samples: Iterable[Sample]) -> tuple[str, ...]:
    labels = sorted({sample.labels[task] for sample in samples if task in sample.labels})
    if len(labels) < 2:
        raise DataError(path=data, reason=f"the task {task!r} has {len(labels) or 'no'} label, and needs at least two")
    alike: dict[str, str] = {}
    for label in labels:
        other = alike.setdefault(" ".join(label.casefold().split()), label)
        if other != label:
            raise DataError(path=data, reason=f"the labels {other!r} and {label!r} differ only in case or space")
    return tuple(labels)


def typical_side(catalogue: Catalogue, largest: int) -> int:
    """A square input's side in pixels: the photos' usual shorter side in steps of 16, at most `largest`."""
    step = max(1, len(catalogue.samples) // 64)
    sides = []
    for sample in catalogue.samples[::step]:
        try:
            facts = decode(sample.path.read_bytes(), (8, 8))[1]
        except (DecodeError, OSError):
            continue
        sides.append(min(facts.width, facts.height))
    usual = int(np.median(sides)) if sides else largest
    return max(32, min(largest, round(usual / 16) * 16))


def load(
    catalogue: Catalogue,
    input_size: tuple[int, int],
    seed: int,
    *,
    threads: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Decodes every sample once, as classifying will, and splits them.

    The pixels lie in an unnamed file of the temporary folder: in memory while there is enough of it.
    Files that do not decode are left out and listed. Raises DataError when a label loses all its photos.
    """
    width, height = input_size
    samples = catalogue.samples
    with tempfile.TemporaryFile() as file:
        pixels = np.memmap(file, np.uint8, "w+", shape=(len(samples), height, width, 3))
    usable, rejected = [], []

    def decode_into(row: int) -> Rejected | None:
        path = samples[row].path
        try:
            pixels[row], _ = decode(path.read_bytes(), input_size)
        except DecodeError as error:
            return Rejected(path, error.code, str(error))
        except OSError as error:
            return Rejected(path, "unreadable", error.strerror or str(error))
        return None

    with ThreadPoolExecutor(threads) as pool:
        for row, problem in enumerate(pool.map(decode_into, range(len(samples)))):
            progress(row + 1, len(samples))
            if problem is None:
                usable.append(row)
            else:
                rejected.append(problem)
    targets = np.full((len(samples), len(catalogue.tasks)), MISSING, np.int32)
    for column, task in enumerate(catalogue.tasks):
        position = {label: number for number, label in enumerate(task.labels)}
        for row, sample in enumerate(samples):
            if task.name in sample.labels:
                targets[row, column] = position[sample.labels[task.name]]
        lost = set(range(len(task.labels))) - set(targets[usable, column].tolist())
        if lost:
            raise DataError(
                path=catalogue.root, reason=f"no photo of the label {task.labels[min(lost)]!r} can be decoded"
            )
    rows = split_rows([samples[row] for row in usable], np.array(usable, np.int64), seed)
    if any(len(part) == 0 for part in rows.values()):
        raise DataError(path=catalogue.root, reason=f"{len(usable)} photos are too few to be split in three")
    return Dataset(tuple(sample.path for sample in samples), pixels, targets, rows, tuple(rejected))


def split_rows(samples: Sequence[Sample], numbers: NDArray[np.int64], seed: int) -> dict[str, NDArray[np.int64]]:
    """Shares the samples among train, val and test, keeping the mix of labels; the same seed, the same split.

    A split that the data name is kept. A train folder without a val or test one gives some up for it.
    Samples of one mix of labels stand together, shuffled, and every so-many-th is taken: a mix with few
    samples gets its share to the nearest one.
    """
    groups: dict[tuple[str | None, ...], list[int]] = defaultdict(list)
    for at, sample in enumerate(samples):
        groups[(sample.split, *(f"{task}={label}" for task, label in sorted(sample.labels.items())))].append(at)
    named = {sample.split for sample in samples} - {None}
    shares = {"val": 0.0 if "val" in named else VAL_SHARE, "test": 0.0 if "test" in named else TEST_SHARE}
    shuffle = random.Random(seed)
    parts: dict[str, list[int]] = {split: [] for split in SPLITS}
    owed = dict.fromkeys(shares, 0.0)
    for key in sorted(groups, key=str):
        members = groups[key]
        shuffle.shuffle(members)
        for at in members:
            split = key[0]
            if split in (None, "train"):
                split = "train"
                for part, share in shares.items():
                    owed[part] += share
                    if split == "train" and owed[part] >= 1:
                        owed[part] -= 1
                        split = part
            parts[split or "train"].append(at)
    return {split: numbers[sorted(rows)] for split, rows in parts.items()}
