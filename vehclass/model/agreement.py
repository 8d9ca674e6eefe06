"""Says whether two forms of one network answer alike: their logits in, figures out, or ExportDiffers.

Also draws pictures to ask them with where there are no photos.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vehclass.errors import ExportDiffers, ImageError
from vehclass.imaging import Pixels
from vehclass.model.classifier import answers, probabilities
from vehclass.model.runtime import Logits
from vehclass.records import Task

TOLERANCE: Final = 1e-3  # of a probability; of the novelty, relative
# Two labels this close are a tie, which any rounding may turn: their order is no part of the answer.
TIE: Final = 1e-5
MADE_PICTURES: Final = 64


def agreement(
    trained: Logits, exported: Logits, tasks: Sequence[Task], novelty_limit: float | None = None
) -> dict[str, Any]:
    """How far exported answers are from the trained network's: both float32 [n, columns], row by row the same picture.

    Columns are the labels of all tasks side by side and, with a `novelty_limit`, the novelty. Gives photos,
    labels_changed, greatest_difference (of a probability, by each task's temperature), greatest_logit_difference
    and, with a limit, novelty_difference (relative). Raises ExportDiffers when a label changed, a probability
    or the novelty moved by more than 1e-3, or only one of the two answers with a number.
    """
    columns = sum(len(task.labels) for task in tasks) + (novelty_limit is not None)
    if trained.shape != exported.shape or trained.ndim != 2 or trained.shape[1] != columns:
        raise ExportDiffers(reason=f"{exported.shape} numbers instead of {trained.shape}, {columns} a photo expected")
    usable = np.isfinite(trained).all(axis=1)
    if (usable != np.isfinite(exported).all(axis=1)).any():
        raise ExportDiffers(reason="only one of them answers with numbers")
    if not usable.any():
        raise ExportDiffers(reason="no answer of either is a number, so nothing can be compared")
    ours, theirs = trained[usable], exported[usable]
    apart = np.abs(ours.astype(np.float64) - theirs)
    each, moves = _compared(ours, theirs, tasks)
    changed, worst = int(each.sum()), float(moves.max())
    start = sum(len(task.labels) for task in tasks)
    found: dict[str, Any] = {
        "photos": len(trained),
        "labels_changed": changed,
        "greatest_difference": _rounded(worst),
        "greatest_logit_difference": _rounded(apart[:, :start].max()),
    }
    moved = 0.0
    if novelty_limit is not None:
        size = np.maximum(np.maximum(np.abs(ours[:, -1]), abs(novelty_limit)), 1e-12)
        moved = float((apart[:, -1] / size).max())
        found["novelty_difference"] = _rounded(moved)
    if changed or worst > TOLERANCE or moved > TOLERANCE:
        novelty = f", the novelty by up to {moved:.1e} of it" if novelty_limit is not None else ""
        raise ExportDiffers(
            reason=f"{changed} labels of {len(trained)} photos changed, probabilities by up to {worst:.1e}{novelty}"
        )
    return found


def closeness(
    reference: Logits, other: Logits, tasks: Sequence[Task], novelty_limit: float | None = None
) -> dict[str, Any]:
    """How far the answers of another arithmetic are from those of 32 bits, as model.json keeps it for `precision.choose`.

    Both float32 [n, columns], row by row the same picture, columns as in `agreement`. Gives photos; labels_changed, the photos of which a
    task's label differs; mean_difference, the mean over photos of the greatest difference of a probability; and
    reviews_changed, the photos that only one of them sends to review.
    """
    changed, moves = _compared(reference, np.nan_to_num(other), tasks)
    reviews = [_reviews(logits, tasks, novelty_limit) for logits in (reference, other)]
    return {
        "photos": len(reference),
        "labels_changed": int(changed.any(axis=1).sum()),
        "mean_difference": _rounded(moves.max(axis=1).mean()),
        "reviews_changed": sum(before != after for before, after in zip(*reviews, strict=True)),
    }


def _reviews(logits: Logits, tasks: Sequence[Task], novelty_limit: float | None) -> list[object]:
    """By photo, which of its answers ask for a look; None where they are no numbers."""
    return [
        None if isinstance(answer, ImageError) else [one.needs_review for one in answer]
        for answer in answers(logits, tuple(tasks), novelty_limit)
    ]


def _compared(ours: Logits, theirs: Logits, tasks: Sequence[Task]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """By photo and task: whether the label changed, and how far a probability moved at most."""
    changed, moves, start = [], [], 0
    for task in tasks:
        stop = start + len(task.labels)
        mine = probabilities(ours[:, start:stop], task.temperature)
        other = probabilities(theirs[:, start:stop], task.temperature)
        rows = np.arange(len(mine))
        changed.append(mine[rows, mine.argmax(axis=1)] - mine[rows, other.argmax(axis=1)] > TIE)
        moves.append(np.abs(mine - other).max(axis=1))
        start = stop
    return np.stack(changed, axis=1), np.stack(moves, axis=1)


def _rounded(number: float) -> float:
    return float(f"{number:.2e}")


def made_pictures(size: tuple[int, int], count: int = MADE_PICTURES) -> Pixels:
    """Pictures of every simple kind, always the same: uint8 [count, height, width, 3] for `size` (width, height).

    By turns blank ones, gradients, noise fine and coarse, stripes and checks, boxes and discs, of all colours and
    contrasts: no photos, but they reach every part of a network.
    """
    rng = np.random.default_rng(20_26)
    width, height = size
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    makers = (_blank, _gradient, _noise, _stripes, _shapes)
    pictures = [makers[number % len(makers)](rng, x, y) for number in range(count)]
    return np.stack([picture.clip(0, 255).astype(np.uint8) for picture in pictures])


Plane = NDArray[np.float64]


def _between(rng: np.random.Generator, share: Plane) -> Plane:
    """A share of 0 to 1 for each pixel as a way from one colour to another."""
    first, second = rng.uniform(0, 255, (2, 3))
    colours: Plane = first + share[..., None] * (second - first)
    return colours


def _blank(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    grey = rng.choice([0.0, 60.0, 128.0, 255.0])
    colour = rng.uniform(0, 255, 3) if rng.random() < 0.5 else np.full(3, grey)
    return np.ones((*(x + y).shape, 1)) * colour


def _gradient(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    turn = rng.uniform(0, 2 * np.pi)
    way = np.cos(turn) * (x - 0.5) + np.sin(turn) * (y - 0.5)
    if rng.random() < 0.3:
        way = np.hypot(x - rng.random(), y - rng.random())
    span = max(float(np.ptp(way)), 1e-9)
    return _between(rng, (way - way.min()) / span)


def _noise(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    cells = int(rng.choice([3, 7, 16, max(x.shape)]))
    grid = rng.uniform(0, 1, (cells, cells, 3))
    rows, columns = ((plane * cells).astype(int).clip(0, cells - 1) for plane in (y, x))
    contrast = rng.uniform(40, 255)
    picture: Plane = rng.uniform(0, 255 - contrast) + contrast * grid[rows, columns]
    return picture


def _stripes(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    across, down = rng.integers(2, 24, 2)
    bars = np.floor(x * across) % 2
    if rng.random() < 0.5:
        bars = (bars + np.floor(y * down)) % 2
    return _between(rng, bars)


def _shapes(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    picture = _gradient(rng, x, y)
    for _ in range(int(rng.integers(2, 7))):
        middle_x, middle_y, reach = rng.random(), rng.random(), rng.uniform(0.05, 0.35)
        if rng.random() < 0.5:
            inside = np.hypot(x - middle_x, y - middle_y) < reach
        else:
            inside = (np.abs(x - middle_x) < reach) & (np.abs(y - middle_y) < reach * rng.uniform(0.3, 1))
        picture[inside] = rng.uniform(0, 255, 3)
    return picture
