"""Turns a folder of labelled photos, or a CSV manifest, into a catalogue: which photo has which labels."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vehclass.errors import DataError
from vehclass.records import Task

SPLITS: Final = ("train", "val", "test")
SPLIT_FOLDERS: Final = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
MISSING: Final = -1
MANIFEST: Final = "manifest.csv"
TAKEN: Final = ("epoch", "loss", "learning_rate", "seconds")  # columns of a training's history


@dataclass(frozen=True, slots=True)
class Sample:
    """A photo's path, its label for each task that it has one for, and its split where the data say it."""

    path: Path
    labels: dict[str, str]
    split: str | None = None


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What is there to learn from, before any pixel is decoded."""

    root: Path
    tasks: tuple[Task, ...]
    samples: tuple[Sample, ...]

    def label_counts(self, task: Task) -> Counter[str]:
        """How many photos carry each label of a task."""
        return Counter(sample.labels[task.name] for sample in self.samples if task.name in sample.labels)


def read_catalogue(data: Path, task_name: str = "label") -> Catalogue:
    """The samples under `data`: a CSV manifest, a folder with one, or a folder per label.

    Folders per label may stand under train/, val/ and test/; they make one task, called `task_name`. A
    manifest has a `path` column, one column a task, and perhaps `split`. Raises DataError.
    """
    if data.is_file():
        samples, names = _from_manifest(data)
        root = data.parent.resolve()  # as the samples' paths are
    elif (data / MANIFEST).is_file():
        samples, names = _from_manifest(data / MANIFEST)
        root = data.resolve()
    elif data.is_dir():
        samples, names = _from_folders(data, task_name), [task_name]
        root = data
    else:
        raise DataError(path=data, reason="there is no such file or folder")
    taken = next((name for name in names if name in TAKEN or name.startswith("val_")), None)
    if taken:
        raise DataError(
            path=data,
            reason=f"a task called {taken!r} would be mistaken for a figure of training's; give it another name",
        )
    tasks = tuple(
        Task(name, tuple(sorted({sample.labels[name] for sample in samples if name in sample.labels})))
        for name in names
    )
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
    try:
        path = (root / name).resolve()
        there = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL in it, a link in a circle
        raise DataError(path=manifest, reason=f"line {line} names {name[:100]!r}, which no file can be") from error
    if not name or not path.is_relative_to(root):
        raise DataError(path=manifest, reason=f"line {line} names {name or 'no file'}, which is not below its folder")
    if not there:
        raise DataError(path=manifest, reason=f"line {line} names {name}, which does not exist")
    wanted = (row.get("split") or "").strip().lower()
    split = SPLIT_FOLDERS.get(wanted)
    if wanted and split is None:
        raise DataError(path=manifest, reason=f"line {line} has the split {wanted!r}, which is not train, val or test")
    labels = {task: label for task in names if (label := (row[task] or "").strip())}
    return Sample(path, labels, split)
