"""Draws the pictures of a report as PNG: curves of training, confusion matrices, reliability diagrams.

Only matplotlib's Figure objects are used, never pyplot, so nothing global is changed. Colours are those of Okabe and
Ito ('Color universal design', 2008), which people tell apart whatever their colour vision.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vehclass.training.intervals import wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
TASK_COLOURS: Final = (BLUE, ORANGE, GREEN, PURPLE, "#56b4e9", "#e69f00", "#8c6d1f", "#000000")
INK, FAINT, GRID = "#222222", "#767676", "#e4e4e4"
SCREEN_DPI: Final = 96  # so many dots are an inch to a browser
SHARP: Final = 2  # dots drawn for each of the screen's, so that the small pictures print well
MOST_NUMBERED: Final = 40  # labels up to which a confusion matrix has room for numbers
LONGEST_LABEL: Final = 30
HISTOGRAM_BINS: Final = 20


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG and how large it is to be shown, in CSS pixels."""

    png: bytes
    width: int
    height: int


def curves(history: Sequence[Mapping[str, Any]], tasks: Sequence[str], kept: int | None = None) -> Picture | None:
    """Loss, and accuracy of each task, by epoch: training dashed, validation solid. None without a history.

    A dotted line stands at the epoch that was `kept`, counted from 1; at the lowest validation loss where that is
    not known.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    if not any("loss" in row for row in history):
        return None
    told = [task for task in tasks if np.isfinite(_series(history, f"val_{task}")).any()]
    figure = _figure(9.6 if told else 5.0, 3.6)
    left, *others = figure.subplots(1, 2 if told else 1, squeeze=False)[0]
    _line(left, history, "loss", INK, "--", "training")
    _line(left, history, "val_loss", INK, "-", "validation")
    left.set_title("Loss", fontsize=10)
    for right in others:
        right.set_title("Accuracy", fontsize=10)
        right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        for number, task in enumerate(told):
            colour = TASK_COLOURS[number % len(TASK_COLOURS)]
            _line(right, history, task, colour, "--", None)
            _line(right, history, f"val_{task}", colour, "-", _plain(task))
    losses = _series(history, "val_loss")
    if kept is None and np.isfinite(losses).any():
        kept = int(np.nanargmin(losses)) + 1
    for axes in (left, *others):
        if kept is not None:
            axes.axvline(kept, color=FAINT, linewidth=0.8, linestyle=":", zorder=0)
        axes.set_xlabel("epoch", fontsize=9)
        axes.set_xlim(0.5, len(history) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _calm(axes, "both")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, ncols=1 + len(tasks) // 7, fontsize=8)
    return _picture(figure)


def confusion(matrix: NDArray[np.int64], labels: Sequence[str]) -> Picture:
    """Counts [true label, answer] as a picture: blue on the diagonal is right, orange beside it is wrong.

    Up to 40 labels every cell has its number, and colour is the share of its row. Beyond, colour alone speaks, on a
    logarithmic scale of counts, and the picture grows with the labels, so that their names stay readable.
    """
    return _small_confusion(matrix, labels) if len(labels) <= MOST_NUMBERED else _large_confusion(matrix, labels)


def reliability(
    bins: Sequence[Mapping[str, Any]],
    before: Sequence[Mapping[str, Any]],
    tops: NDArray[np.float64],
    right: NDArray[np.bool_],
    threshold: float | None,
) -> Picture | None:
    """How often answers of a probability are right, beside how often they should be, over a histogram of [m] answers.

    `bins` and `before` are those of `evaluate.reliability`, with and without calibration; the bars are 95 % intervals
    after Wilson (1927). None without answers.
    """
    from matplotlib.ticker import PercentFormatter

    if not len(tops):
        return None
    figure = _figure(5.2, 4.8)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    lowest = min(0.5, 0.1 * int(10 * min([float(tops.min()), *(one["probability"] for one in (*bins, *before))])))
    upper.plot([lowest, 1], [lowest, 1], color=FAINT, linewidth=0.8, linestyle=":", label="as it should be")
    if before:
        points = [(one["probability"], one["accuracy"]) for one in before]
        upper.plot(*zip(*points, strict=True), color=ORANGE, linewidth=1, alpha=0.8, label="before calibration")
    points = [(one["probability"], one["accuracy"]) for one in bins]
    upper.plot(*zip(*points, strict=True), color=BLUE, marker="o", markersize=4, linewidth=1.2, label="calibrated")
    for one in bins:
        upper.plot([one["probability"]] * 2, wilson(one["accuracy"], one["count"]), color=BLUE, linewidth=1, alpha=0.5)
    upper.set_ylabel("share that is right", fontsize=9)
    upper.set_ylim(-0.02, 1.02)
    edges = np.linspace(lowest, 1, HISTOGRAM_BINS + 1)
    lower.hist([tops[right], tops[~right]], edges, stacked=True, color=[BLUE, ORANGE], label=["right", "wrong"])
    lower.set_xlabel("probability of the answer", fontsize=9)
    lower.set_ylabel("photos", fontsize=9)
    for axes in (upper, lower):
        if threshold is not None and threshold >= lowest:
            axes.axvline(
                threshold, color=INK, linewidth=0.8, linestyle="--", label="threshold" if axes is upper else None
            )
        axes.set_xlim(lowest - 0.01, 1.01)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _calm(axes, "both")
        axes.legend(frameon=False, fontsize=8, loc="lower right" if axes is upper else "upper left")
    upper.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return _picture(figure)


def _small_confusion(matrix: NDArray[np.int64], labels: Sequence[str]) -> Picture:
    count = len(labels)
    names = [_drawable(label, number) for number, label in enumerate(labels, 1)]
    pitch = float(np.clip(9.0 / count, 0.235, 0.75))  # inches a cell
    figure, axes = _square(count * pitch, names, size := float(np.clip(pitch * 30, 7, 10)))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    # A label that is wrong half of the time is as bad as it needs to look; small shares are to be seen, too.
    _two_colours(axes, shares, {"vmin": 0.0, "vmax": 1.0}, {"vmin": 0.0, "vmax": 0.5})
    for row, column in zip(*np.nonzero(matrix), strict=True):
        dark = shares[row, column] > (0.55 if row == column else 0.3)
        axes.text(
            column,
            row,
            _short(int(matrix[row, column])),
            ha="center",
            va="center",
            fontsize=float(np.clip(pitch * 26, 6, 10)),
            color="white" if dark else INK,
        )
    _name_axes(axes, names, size)
    return _picture(figure)


def _large_confusion(matrix: NDArray[np.int64], labels: Sequence[str]) -> Picture:
    """Drawn dot for dot: a name needs some 12 dots of height, whatever their number."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FuncFormatter, NullLocator

    count = len(labels)
    names = [_drawable(label, number) for number, label in enumerate(labels, 1)]
    figure, axes = _square(count * 12.5 / SCREEN_DPI, names, 7, both_sides=True)
    norm = LogNorm(0.5, max(2, int(matrix.max())))  # from below 1, so that a single error is not as pale as none
    shown = _two_colours(axes, matrix.astype(float), {"norm": norm}, {"norm": norm})
    _name_axes(axes, names, 7, both_sides=True)
    place_of = axes.get_position()
    tall, wide = figure.get_size_inches()[::-1]
    place = (place_of.x0, 1 - 0.35 / tall, min(place_of.width, 3.5 / wide), 0.12 / tall)
    bar = figure.colorbar(shown, cax=figure.add_axes(place), orientation="horizontal")
    steps = [step * 10**power for power in range(6) for step in (1, 2, 5) if step * 10**power <= matrix.max()]
    bar.set_ticks(steps)
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.xaxis.set_minor_locator(NullLocator())
    bar.ax.tick_params(labelsize=8)
    bar.ax.set_title("photos in a cell: orange wrong, blue right on the same scale", fontsize=8, loc="left")
    return _picture(figure, sharp=1)


def _square(side: float, names: Sequence[str], size: float, *, both_sides: bool = False) -> "tuple[Figure, Axes]":
    """A sheet with axes of `side` inches and room for the names, placed by hand: a layout engine takes many seconds for 200."""
    letter = size / 72 * 0.64
    room = 0.45 + letter * max(len(name.replace("\\$", "$")) for name in names)
    below = room if _upright(names) else 0.5
    far, above = (room, room + 0.6) if both_sides else (0.1, 0.1)
    width, height = room + side + far, below + side + above
    figure = _figure(width, height)
    figure.set_layout_engine(None)
    return figure, figure.add_axes((room / width, below / height, side / width, side / height))


def _upright(names: Sequence[str]) -> bool:
    return len(names) > 8 or max(len(name) for name in names) > 9


def _two_colours(axes: "Axes", values: NDArray[np.float64], right: Mapping[str, Any], wrong: Mapping[str, Any]) -> Any:
    """Paints [rows, columns] with what is right in blue and what is wrong in orange; returns the orange part."""
    count = len(values)
    diagonal = np.eye(count, dtype=bool)
    axes.imshow(np.ma.masked_where(~diagonal | (values == 0), values), cmap="Blues", **right)
    shown = axes.imshow(np.ma.masked_where(diagonal | (values == 0), values), cmap="Oranges", **wrong)
    edges = np.arange(count + 1) - 0.5
    axes.hlines(edges, -0.5, count - 0.5, color=GRID, linewidth=0.5)
    axes.vlines(edges, -0.5, count - 0.5, color=GRID, linewidth=0.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return shown


def _name_axes(axes: "Axes", names: Sequence[str], size: float, *, both_sides: bool = False) -> None:
    places = np.arange(len(names))
    axes.set_xticks(places, names, rotation=90 if _upright(names) else 0, fontsize=size)
    axes.set_yticks(places, names, fontsize=size)
    axes.tick_params(labeltop=both_sides, labelright=both_sides, length=0)
    axes.set_xlabel("answer", fontsize=9, color=FAINT)
    axes.set_ylabel("true label", fontsize=9, color=FAINT)


def _series(history: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    """One metric by epoch; NaN where an epoch lacks it."""
    values = [row.get(name) for row in history]
    return np.array([float(value) if isinstance(value, int | float) else np.nan for value in values])


def _line(
    axes: "Axes", history: Sequence[Mapping[str, Any]], name: str, colour: str, style: str, label: str | None
) -> None:
    values = _series(history, name)
    if np.isfinite(values).any():
        few = "o" if len(values) < 3 else None  # a line of one point is not seen
        faint = 0.55 if style == "--" else 1.0
        axes.plot(
            np.arange(1, len(values) + 1),
            values,
            style,
            color=colour,
            alpha=faint,
            label=label,
            marker=few,
            markersize=3,
        )


def _calm(axes: "Axes", grid: Any) -> None:
    axes.grid(axis=grid, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8, length=3)


def _figure(width: float, height: float) -> "Figure":
    """A blank sheet of so many inches, painted without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _picture(figure: "Figure", sharp: int = SHARP) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=SCREEN_DPI * sharp, metadata={"Software": None})
    width, height = figure.get_size_inches() * SCREEN_DPI
    return Picture(_in_few_colours(buffer.getvalue()), round(float(width)), round(float(height)))


def _in_few_colours(png: bytes) -> bytes:
    """The picture with a palette of 256 colours: a third of the bytes, and no colour is off by more than a few of 255."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        small = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        small.save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def _short(count: int) -> str:
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k"


def _plain(text: str) -> str:
    """A label as matplotlib shows it letter by letter: a dollar sign would begin a formula."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    if len(text) > LONGEST_LABEL:  # makes and models tend to differ at the end, so that both ends are kept
        text = f"{text[: LONGEST_LABEL // 2]}…{text[1 - LONGEST_LABEL // 2 :]}"
    return text.replace("$", r"\$")


def _drawable(label: str, number: int) -> str:
    """A label, or its number in the table where the font lacks one of its letters."""
    return _plain(label) if {ord(c) for c in label if c.isprintable()} <= _letters() else f"#{number}"


@cache
def _letters() -> frozenset[int]:
    """The characters that matplotlib's own font has."""
    from matplotlib import font_manager, ft2font

    return frozenset(ft2font.FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())
