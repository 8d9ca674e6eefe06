"""How vehclass looks on a screen: tables, numbers, progress, and names that cannot play tricks on a terminal."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from rich.console import Console

    from vehclass.batch.pipeline import Progress

LINE_EVERY_SECONDS: Final = 10.0  # where there is no terminal to draw a bar on
WIDEST: Final = 120


@cache
def console(*, stderr: bool = False) -> "Console":
    """The console on standard output, or on standard error; plain and wide where nobody looks."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not made.is_terminal:
        made = Console(stderr=stderr, highlight=False, width=WIDEST, no_color=True)
    return made


def plain(text: str) -> str:
    """Text without control characters: a blob's name may hold terminal escapes, or not be text at all."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_json(document: object) -> None:
    """One JSON document on standard output."""
    print(json.dumps(document, indent=2, ensure_ascii=False, default=str))


def table(
    title: str | None,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> None:
    """A table on standard output; columns named in `right` are numbers, those in `whole` are never folded."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        made.add_column(column, justify=justify, overflow="fold", no_wrap=column in (*right, *whole))
    for row in rows:
        made.add_row(*(escape(plain("" if cell is None else str(cell))) for cell in row))
    console().print(made)


def say(text: str = "") -> None:
    """A line on standard output, as it is."""
    console().print(text, markup=False, soft_wrap=True)


def note(text: str) -> None:
    """A line for whoever watches, beside the output proper."""
    from vehclass.cli import logs

    if logs.as_json():
        logging.getLogger("vehclass").info("%s", text)
        return
    console(stderr=True).print(text, markup=False, soft_wrap=True)


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage."""
    return "" if share is None else f"{share:.{digits}%}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size(count: int) -> str:
    """Bytes as people say them."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "bytes" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


@contextmanager
def status(*, quiet: bool, lines: bool = False) -> "Iterator[Callable[[str], None]]":
    """Yields a function that keeps one line of a terminal up to date; elsewhere it prints one now and then, if asked to."""
    screen = console(stderr=True)
    if quiet or not (screen.is_terminal or lines):
        yield lambda text: None
        return
    if not screen.is_terminal:
        said = time.monotonic()

        def now_and_then(text: str) -> None:
            nonlocal said
            if time.monotonic() - said >= LINE_EVERY_SECONDS:
                said = time.monotonic()
                note(plain(text))

        yield now_and_then
        return
    with screen.status("...") as line:
        last, kind = 0.0, ""

        def tell(text: str) -> None:
            nonlocal last, kind
            first = text.partition(" ")[0]
            if first != kind or time.monotonic() - last >= 0.1:  # a count may skip, a new kind of work may not
                last, kind = time.monotonic(), first
                line.update(plain(text))

        yield tell


class Speedometer:
    """Images a second over the last half minute, so that the estimate follows what happens now."""

    def __init__(self) -> None:
        self._points: list[tuple[float, int]] = [(time.monotonic(), 0)]

    def rate(self, done: int) -> float:
        """The rate when so many are done."""
        at = time.monotonic()
        self._points.append((at, done))
        while len(self._points) > 2 and self._points[1][0] < at - 30:
            self._points.pop(0)
        start, first = self._points[0]
        return (done - first) / max(1e-6, at - start)


@contextmanager
def watching(*, quiet: bool) -> "Iterator[Any]":
    """Yields a function that is told the progress of a batch: a live bar on a terminal, lines elsewhere."""
    screen = console(stderr=True)
    if quiet:
        yield lambda progress: None
    elif screen.is_terminal:
        with _bar(screen) as tell:
            yield tell
    else:
        yield _lines()


@contextmanager
def _bar(screen: "Console") -> "Iterator[Any]":
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed:,.0f} of {task.fields[total_text]}"),
        TextColumn("{task.fields[speed]}"),
    )
    with Bars(*columns, console=screen, transient=True, refresh_per_second=8) as bars:
        bar = bars.add_task("listing", total=None, total_text="?", speed="")
        speedometer = Speedometer()
        last = 0.0

        def tell(progress: "Progress") -> None:
            nonlocal last
            if time.monotonic() - last < 0.1 and not progress.listing_done:
                return
            last = time.monotonic()
            bars.update(
                bar,
                description="classifying" if progress.new else "listing",
                completed=progress.done,
                total=progress.new or None,
                total_text=f"{progress.new:,}{'' if progress.listing_done else '+'}",
                speed=_speed(progress, speedometer),
            )

        yield tell


def _lines() -> Any:
    speedometer = Speedometer()
    last = time.monotonic()

    def tell(progress: "Progress") -> None:
        nonlocal last
        if time.monotonic() - last < LINE_EVERY_SECONDS:
            return
        last = time.monotonic()
        total = f"{progress.new:,}{'' if progress.listing_done else '+'}"
        note(f"{progress.done:,} of {total} images, {_speed(progress, speedometer)}")

    return tell


def _speed(progress: "Progress", speedometer: Speedometer) -> str:
    rate = speedometer.rate(progress.done)
    parts = [f"{rate:,.0f} images/s" if rate >= 10 else f"{rate:.1f} images/s"] if progress.done else []
    if rate > 0 and progress.done and progress.new > progress.done:
        parts.append(f"{duration((progress.new - progress.done) / rate)}{'' if progress.listing_done else '+'} left")
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    return ", ".join(parts)
