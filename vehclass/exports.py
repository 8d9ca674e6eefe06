"""Writes rows to CSV, JSON Lines or Parquet, as they come; a file appears only when it is complete."""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final

from vehclass.errors import UsageError

Row = dict[str, Any]
FORMATS: Final = ("csv", "jsonl", "parquet")
ROW_GROUP: Final = 20_000  # rows of a Parquet group: what is held in memory at a time

_IMAGE: Final = ("name", "source", "image_id", "model")
_RUN: Final = ("etag", "run_id")
COLUMNS: Final = {
    "predictions": (
        *_IMAGE,
        *("task", "label", "probability", "needs_review"),
        *_RUN,
        *("classified_at", "width", "height", "sha256"),
    ),
    "probabilities": (*_IMAGE, "task", "label", "probability", *_RUN, "classified_at"),
    "failures": (*_IMAGE, "stage", "code", "message", "attempts", "quarantined", *_RUN, "failed_at"),
}


def format_of(path: Path | None, wanted: str | None) -> str:
    """The format that was asked for, or that a file's name asks for; CSV on standard output."""
    name = wanted or (path.suffix.removeprefix(".").lower() if path else "csv")
    name = {"json": "jsonl", "ndjson": "jsonl"}.get(name, name)
    if name not in FORMATS:
        raise UsageError(
            reason=f"{name or 'No ending'!r} is no format; choose one of {', '.join(FORMATS)} with --format."
        )
    if name == "parquet" and path is None:
        raise UsageError(reason="Parquet needs a file: name one with --out.")
    return name


def write(rows: Iterator[Row], what: str, kind: str, path: Path | None) -> int:
    """Writes all rows of predictions, probabilities or failures; returns how many."""
    writers: dict[str, Callable[[Iterator[Row], Sequence[str], IO[Any]], int]]
    writers = {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet}
    with _target(path, binary=kind == "parquet") as file:
        return writers[kind](rows, COLUMNS[what], file)


@contextmanager
def _target(path: Path | None, *, binary: bool) -> Iterator[IO[Any]]:
    """Standard output, or a file that appears when it is complete; a pipe or a device is written to as it is."""
    if path is None:
        yield sys.stdout
        return
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(reason=f"{path} cannot be written: it is a folder, or its folder does not exist.")
    special = path.exists() and not path.is_file()
    part = path if special else path.with_name(path.name + ".part")
    try:
        with (
            part.open("wb")
            if binary
            else part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file
        ):
            yield file
            file.flush()
            if not special:
                os.fsync(file.fileno())
        if not special:
            part.replace(path)
    except OSError as error:
        raise UsageError(reason=f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        if not special:
            part.unlink(missing_ok=True)


def _csv(rows: Iterator[Row], columns: Sequence[str], file: IO[Any]) -> int:
    table = csv.writer(_Lines(file), lineterminator="\r\n")
    table.writerow(columns)
    count = 0
    for row in rows:
        table.writerow([cell(row[column]) for column in columns])
        count += 1
    return count


class _Lines:
    """Ends rows with a newline alone, where csv ends them with both: only what the terminator is made of gets quotes."""

    def __init__(self, file: IO[Any]) -> None:
        self._file = file

    def write(self, row: str) -> int:
        """One row, as csv hands it over."""
        return self._file.write(row.removesuffix("\r\n") + "\n")


def cell(value: object) -> object:
    """A value for CSV: text that a spreadsheet would run as a formula gets an apostrophe before it."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value


def _jsonl(rows: Iterator[Row], columns: Sequence[str], file: IO[Any]) -> int:
    count = 0
    for row in rows:
        file.write(json.dumps({column: row[column] for column in columns}, ensure_ascii=False) + "\n")
        count += 1
    return count


def _parquet(rows: Iterator[Row], columns: Sequence[str], file: IO[Any]) -> int:
    import pyarrow
    import pyarrow.parquet

    kinds = {
        "probability": pyarrow.float64(),
        **dict.fromkeys(("needs_review", "quarantined"), pyarrow.bool_()),
        **dict.fromkeys(("attempts", "width", "height"), pyarrow.int32()),
    }
    schema = pyarrow.schema([(column, kinds.get(column, pyarrow.string())) for column in columns])
    count = 0
    with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := list(islice(rows, ROW_GROUP)):
            for row in group:
                for column in ("needs_review", "quarantined"):
                    if column in row:
                        row[column] = bool(row[column])
            writer.write_table(pyarrow.Table.from_pylist(group, schema))
            count += len(group)
    return count
