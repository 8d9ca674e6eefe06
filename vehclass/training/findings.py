"""Looks training data over: what stops training, what will hurt the model, what is good to know."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from vehclass.records import Task
from vehclass.training.dataset import MISSING, Catalogue, Sample
from vehclass.training.decoded import Look

FEW_PHOTOS: Final = 20  # of a label: below it nothing can be said of how well it is known
IMBALANCE: Final = 10.0  # times as many photos of the most frequent label as of the rarest
SMALL_SHARE: Final = 0.5  # of the network's input: smaller photos are blown up to more than twice their size
EXAMPLES: Final = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that somebody should know of the data: severity is error (training stops), warning or note."""

    severity: str
    code: str
    count: int
    message: str
    examples: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


def label_findings(catalogue: Catalogue) -> list[Finding]:
    """What the labels alone say, before any photo is opened."""
    return [*_label_errors(catalogue), *_label_warnings(catalogue)]


def _label_errors(catalogue: Catalogue) -> Iterator[Finding]:
    for task in catalogue.tasks:
        if len(task.labels) < 2:
            said = f"the task {task.name!r} has {len(task.labels) or 'no'} label, and needs at least two"
            yield Finding("error", "too_few_labels", len(task.labels), said, task.labels)
        alike: dict[str, str] = {}
        for label in task.labels:
            other = alike.setdefault(" ".join(label.casefold().split()), label)
            if other != label:
                said = f"the labels {other!r} and {label!r} differ only in case or space"
                yield Finding("error", "labels_alike", 2, said, (other, label))


def _label_warnings(catalogue: Catalogue) -> Iterator[Finding]:
    for task in catalogue.tasks:
        counts = catalogue.label_counts(task)
        few = sorted((count, label) for label, count in counts.items() if count < FEW_PHOTOS)
        if few:
            said = f"{task.name}: {_some(len(few), 'label')} with fewer than {FEW_PHOTOS} photos"
            yield Finding(
                "warning", "few_photos", len(few), said, _examples(f"{label} ({count})" for count, label in few)
            )
        if counts and max(counts.values()) >= IMBALANCE * min(counts.values()):
            (most, many), (least, least_count) = counts.most_common()[0], counts.most_common()[-1]
            said = f"{task.name}: {many:,} photos of {most!r} and {least_count:,} of {least!r}"
            yield Finding("warning", "imbalance", many // max(1, least_count), said)
    bare = [sample.path for sample in catalogue.samples if not sample.labels]
    if bare:
        yield Finding(
            "warning",
            "unlabelled",
            len(bare),
            f"{_some(len(bare), 'photo')} without any label",
            _names(bare, catalogue.root),
        )


def photo_findings(catalogue: Catalogue, seen: Look, input_side: int) -> list[Finding]:
    """What the photos say, once they are decoded: broken, too small, the same more than once, leaks between splits."""
    return [
        *_broken(catalogue, seen),
        *_small(catalogue, seen, input_side),
        *_copies(catalogue, seen),
    ]


def _broken(catalogue: Catalogue, seen: Look) -> Iterator[Finding]:
    by_code: dict[str, list[Path]] = defaultdict(list)
    why = {}
    for file in seen.rejected:
        by_code[file.code].append(file.path)
        why[file.code] = file.message
    for code, paths in sorted(by_code.items()):
        said = f"{_some(len(paths), 'file')} cannot be used ({code}): {why[code]}"
        yield Finding("warning", "undecodable", len(paths), said, _names(paths, catalogue.root))


def _small(catalogue: Catalogue, seen: Look, input_side: int) -> Iterator[Finding]:
    shorter = seen.sizes.min(axis=1)
    rows = [row for row in seen.usable.tolist() if shorter[row] < SMALL_SHARE * input_side]
    if rows:
        said = f"{_some(len(rows), 'photo')} with a side of less than half the network's input of {input_side} pixels"
        smallest = sorted(rows, key=lambda row: int(shorter[row]))
        yield Finding(
            "warning",
            "small_photos",
            len(rows),
            said,
            _names((catalogue.samples[row].path for row in smallest), catalogue.root),
        )


def _copies(catalogue: Catalogue, seen: Look) -> Iterator[Finding]:
    exact, near = seen.exact_copies, seen.near_copies
    samples = catalogue.samples

    def pairs(some: Iterable[tuple[int, int]]) -> tuple[str, ...]:
        return _examples(
            f"{_name(samples[a].path, catalogue.root)} = {_name(samples[b].path, catalogue.root)}" for a, b in some
        )

    for kind, found, what in (
        ("exact_copies", exact, ("has", "have", "the same bytes as another")),
        ("near_copies", near, ("looks", "look", "the same as another")),
    ):
        if found:
            count = len({b for _, b in found})
            singular, plural, rest = what
            verb = singular if count == 1 else plural
            said = f"{_some(count, 'photo')} {verb} {rest}; copies go into one split together"
            yield Finding("note", kind, count, said, pairs(found))
    both = [*exact, *near]
    torn = [(a, b) for a, b in both if _contradict(samples[a], samples[b], catalogue.tasks)]
    if torn:
        said = f"{_some(len(torn), 'pair')} of copies with different labels: one of them must be wrong"
        yield Finding("warning", "copies_disagree", len(torn), said, pairs(torn))
    leaks: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for a, b in both:
        one, other = samples[a].split, samples[b].split
        if one and other and one != other:
            leaks[min(one, other), max(one, other)].append((a, b))
    for (one, other), leaked in sorted(leaks.items()):
        said = f"{_some(len(leaked), 'pair')} of copies with one in {one}/ and one in {other}/: a leak, which makes figures too good"
        yield Finding("warning", "leak", len(leaked), said, pairs(leaked))


def _contradict(one: Sample, other: Sample, tasks: Sequence[Task]) -> bool:
    return any(
        task.name in one.labels and task.name in other.labels and one.labels[task.name] != other.labels[task.name]
        for task in tasks
    )


def learnt_before(rows: Mapping[str, Any], digests: Sequence[str], before: Collection[str]) -> list[Finding]:
    """Photos that the weights to start from have learnt from: in train they may be, elsewhere they flatter."""
    count = {split: sum(digests[row] in before for row in some) for split, some in rows.items()}
    found = []
    if count["train"]:
        said = f"{_some(count['train'], 'photo')} that the model to start from has learnt from; they are kept in train"
        found.append(Finding("note", "learnt_before", count["train"], said))
    flattering = count["val"] + count["test"]
    if flattering:
        said = (
            f"{_some(flattering, 'photo')} of your val and test that the model to start from has learnt from: "
            "a leak, which makes figures too good"
        )
        found.append(Finding("warning", "leak", flattering, said))
    return found


def split_findings(rows: Mapping[str, Any], catalogue: Catalogue, targets: Any) -> list[Finding]:
    """What the split leaves thin: labels that cannot be learnt or cannot be checked."""
    found = []
    if any(len(part) == 0 for part in rows.values()):
        count = sum(len(part) for part in rows.values())
        found.append(
            Finding("error", "too_few_photos", count, f"{_some(count, 'photo')} are too few to be split in three")
        )
    for column, task in enumerate(catalogue.tasks):
        for split, then in (("train", "it cannot be learnt"), ("val", "every answer of it will ask for a look")):
            if len(rows[split]) and not (targets[rows[split], column] != MISSING).any():
                severity = "error" if split == "train" else "warning"
                said = f"{task.name}: no photo in {split} has a label, so {then}"
                found.append(Finding(severity, f"no_label_in_{split}", 1, said))
        for split, verb in (("train", "learnt"), ("test", "tested")):
            there: Counter[int] = Counter(targets[rows[split], column].tolist())
            gone = [label for number, label in enumerate(task.labels) if not there[number]]
            if gone:
                said = f"{task.name}: {_some(len(gone), 'label')} with no photo in {split}, which cannot be {verb}"
                found.append(Finding("warning", f"not_in_{split}", len(gone), said, _examples(gone)))
    least = min(len(rows[split]) for split in ("val", "test"))
    if least < 100:
        said = f"only {least} photos to check with: accuracy, probabilities and thresholds will be rough guesses"
        found.append(Finding("note", "few_to_check", least, said))
    return found


def counts_of(catalogue: Catalogue, seen: Look) -> dict[str, Any]:
    """What there is, in figures: photos, how many decode, labels by task, sizes."""
    sizes = seen.sizes[seen.usable]
    return {
        "photos": len(catalogue.samples),
        "usable": len(seen.usable),
        "tasks": {task.name: dict(sorted(catalogue.label_counts(task).items())) for task in catalogue.tasks},
        "splits": dict(Counter(sample.split for sample in catalogue.samples if sample.split)),
        "median_size": [int(one) for one in np.median(sizes, axis=0)] if len(sizes) else None,
        "smallest_side": int(sizes.min()) if len(sizes) else None,
    }


def _some(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' if count != 1 else ''}"


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _names(paths: Iterable[Path], root: Path) -> tuple[str, ...]:
    return _examples(_name(path, root) for path in paths)


def _examples(some: Iterable[str]) -> tuple[str, ...]:
    return tuple(text for _, text in zip(range(EXAMPLES), some, strict=False))
