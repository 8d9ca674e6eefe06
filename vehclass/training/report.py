"""Turns a model's facts and its answers to labelled photos into `report.html` and `card.md`, each one file of its own.

The page refers to nothing outside itself: pictures are in it, style is in it, and there is no script. Labels and file
names come from whoever made the data, so the template escapes all of them.
"""

import base64
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vehclass.imaging import Pixels
from vehclass.model.classifier import probabilities
from vehclass.model.runtime import Logits
from vehclass.records import Task
from vehclass.training import plots, statements
from vehclass.training.evaluate import Judged, judge, measure, reliability

if TYPE_CHECKING:
    from jinja2 import Environment

REPORT_FILE: Final = "report.html"
CARD_FILE: Final = "card.md"
THUMBNAIL: Final = 160  # pixels of the longer side; shown smaller, so that print is sharp
MOST_ERRORS: Final = 24
MOST_THUMBNAILS: Final = 144  # of all tasks together, so that the page stays under some 3 MB
MOST_LABELS_IN_BARS: Final = 40


@dataclass(frozen=True, slots=True)
class Examined:
    """Photos that a model was measured on, and what it said of them.

    `logits` float32 [n, labels of all tasks (+ 1 novelty column)], `targets` int32 [n, tasks] with -1 where
    unlabelled. `pixels(row)` gives photo `row` again, uint8 [height, width, 3] of any size; it may raise ImageError
    or OSError. File names are shown relative to `root` where that is given.
    """

    paths: tuple[Path, ...]
    logits: Logits
    targets: NDArray[np.int32]
    tasks: tuple[Task, ...]
    novelty_limit: float | None = None
    pixels: Callable[[int], Pixels] | None = None
    root: Path | None = None

    def only(self, names: Sequence[str]) -> "Examined":
        """The same photos, for some of the tasks only; the novelty column stays the last."""
        columns: list[int] = []
        start = 0
        for task in self.tasks:
            stop = start + len(task.labels)
            columns += range(start, stop) if task.name in names else ()
            start = stop
        columns += range(start, self.logits.shape[1])
        kept = [number for number, task in enumerate(self.tasks) if task.name in names]
        return replace(
            self,
            logits=self.logits[:, columns],
            targets=self.targets[:, kept],
            tasks=tuple(self.tasks[number] for number in kept),
        )


def write_report(out: Path, facts: Mapping[str, Any], examined: Examined) -> None:
    """Writes the report to `out`, or to report.html where `out` is a folder.

    `facts` is what model.json says; of it only `name` and `tasks` have to be there. Raises OSError.
    """
    metrics = facts.get("metrics") or {}
    if not all("per_label" in metrics.get(task.name, ()) for task in examined.tasks):  # of an older vehclass
        metrics = measure(examined.logits, examined.targets, examined.tasks, examined.novelty_limit)
    facts = {**facts, "metrics": metrics}
    judged = list(judge(examined.logits, examined.targets, examined.tasks, examined.novelty_limit))
    most = min(MOST_ERRORS, MOST_THUMBNAILS // max(1, len(judged)))
    page = _environment(html=True).get_template("report.html.j2")
    text = page.render(
        facts=facts,
        statements=statements,
        curves=plots.curves(
            facts.get("history") or (), [task.name for task in examined.tasks], facts.get("best_epoch")
        ),
        tasks=[
            _task_section(number, task, seen, metrics[task.name], facts, examined, most)
            for number, (task, seen) in enumerate(judged)
        ],
    )
    _write(out, REPORT_FILE, text)


def write_card(out: Path, facts: Mapping[str, Any]) -> None:
    """Writes the model card to `out`, or to card.md where `out` is a folder. Raises OSError."""
    card = _environment(html=False).get_template("card.md.j2")
    _write(out, CARD_FILE, re.sub(r"\n{3,}", "\n\n", card.render(facts=facts, statements=statements)))


def _task_section(
    column: int,
    task: Task,
    seen: Judged,
    of: Mapping[str, Any],
    facts: Mapping[str, Any],
    examined: Examined,
    most: int,
) -> dict[str, Any]:
    """What the page shows of one task."""
    labelled = np.flatnonzero(examined.targets[:, column] >= 0)
    start = sum(len(other.labels) for other in examined.tasks[:column])
    raw = probabilities(examined.logits[labelled, start : start + len(task.labels)], 1.0)
    before = reliability(raw.max(axis=1), raw.argmax(axis=1) == seen.truth)
    counts = ((facts.get("data") or {}).get("labels") or {}).get(task.name) or {}
    one_threshold = len(set(task.thresholds)) == 1
    return {
        "name": task.name,
        "temperature": task.temperature,
        "thresholds": (min(task.thresholds), max(task.thresholds)) if task.thresholds else (0.0, 0.0),
        "of": of,
        "labels": [
            {**row, "number": number, "threshold": limit, "photos": counts.get(row["label"])}
            for number, (row, limit) in enumerate(zip(of["per_label"], task.thresholds, strict=True), 1)
        ],
        "bars": _bars(counts),
        "spread": sorted(counts.values()),
        "confusion": plots.confusion(np.array(of["confusion"], np.int64), task.labels) if of["support"] else None,
        "large": len(task.labels) > plots.MOST_NUMBERED,
        "reliability": plots.reliability(
            of["reliability"], before, seen.tops, seen.right, task.thresholds[0] if one_threshold else None
        ),
        "errors": list(_errors(task, seen, labelled, examined, most)),
        "wrong": int((~seen.right).sum()),
    }


def _bars(counts: Mapping[str, int]) -> list[tuple[str, int, float]]:
    """Label, photos and the share of the largest, where there is room for a bar a label."""
    if not counts or len(counts) > MOST_LABELS_IN_BARS:
        return []
    largest = max(counts.values()) or 1
    return [(label, count, count / largest) for label, count in counts.items()]


def _errors(
    task: Task, seen: Judged, labelled: NDArray[np.int64], examined: Examined, most: int
) -> Iterator[dict[str, Any]]:
    """The wrong answers with the highest probability: the photo, what it is, and what it was taken for."""
    wrong = np.flatnonzero(~seen.right)
    for at in wrong[np.argsort(-seen.tops[wrong], kind="stable")][:most].tolist():
        row = int(labelled[at])
        yield {
            "file": _name(examined.paths[row], examined.root),
            "truth": task.labels[seen.truth[at]],
            "answer": task.labels[seen.guesses[at]],
            "probability": float(seen.tops[at]),
            "truth_probability": float(seen.shares[at, seen.truth[at]]),
            "sure": bool(seen.sure[at]),
            "picture": _thumbnail(examined, row),
        }


def _name(path: Path, root: Path | None) -> str:
    """A photo's name below the data's folder; elsewhere the bare name, since folders tell of the machine."""
    for folder in (root, root.resolve()) if root is not None else ():  # a manifest's photos have resolved paths
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return path.name


def _thumbnail(examined: Examined, row: int) -> bytes | None:
    """A small JPEG of a photo; None where it is no longer to be had."""
    from PIL import Image

    from vehclass.errors import ImageError

    if examined.pixels is None:
        return None
    try:
        pixels = np.ascontiguousarray(examined.pixels(row))
    except (ImageError, OSError):
        return None
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()


def _environment(*, html: bool) -> "Environment":
    from jinja2 import Environment, PackageLoader

    made = Environment(
        loader=PackageLoader("vehclass.training"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalized if html else _as_markdown,
    )
    made.filters["code"] = _with_code
    made.filters["percent"] = _percent
    made.filters["between"] = _between
    made.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    return made


def _finalized(value: object) -> object:
    """What is printed: nothing for None, and no control characters, which may turn the order of text around."""
    from markupsafe import Markup

    if value is None:
        return ""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in value)


def _as_markdown(value: object) -> object:
    """Text that Markdown shows as it is: no HTML, links, code or table cells come out of a label."""
    from markupsafe import Markup

    value = _finalized(value)
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    plain = re.sub(r"\s*[\r\n]\s*", " ", value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markup(re.sub(r"([\\|*\[\]])", r"\\\1", plain))  # noqa: S704  (this is the escaping)


def _with_code(text: str) -> object:
    """A sentence as HTML, with what stands between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(_finalized(text)))))  # noqa: S704  (escaped before)


def _percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{share:.{digits}%}"


def _between(interval: list[float] | None, digits: int = 1) -> str:
    """An interval of shares: 93.1–96.0 %."""
    return "" if interval is None else f"{interval[0]:.{digits}%}".rstrip("%") + f"–{interval[1]:.{digits}%}"


def _write(out: Path, name: str, text: str) -> None:
    """The whole file or none: written beside its place, then moved there."""
    target = out / name if out.is_dir() else out
    part = target.with_name(f".{target.name}.part")
    part.write_bytes(text.encode("utf-8", "backslashreplace"))
    part.replace(target)
