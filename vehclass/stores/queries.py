"""Reads the .sql files of a store: its named queries and its numbered migrations."""

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

_NAME: Final = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_PARAMETERS: Final = re.compile(r"^-- parameters: (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Query:
    """A statement, or several that go together, and the types of their parameters where the file declares them."""

    text: str
    parameters: dict[str, str]


@cache
def named_queries(dialect: str) -> dict[str, Query]:
    """Each block of sql/DIALECT/queries.sql under its name."""
    text = (files("vehclass.sql") / dialect / "queries.sql").read_text(encoding="utf-8")
    parts = _NAME.split(text)
    return {name: _query(block.strip()) for name, block in zip(parts[1::2], parts[2::2], strict=True)}


def _query(block: str) -> Query:
    declared = _PARAMETERS.search(block)
    pairs = [tuple(one.strip().lstrip("@").split(" ", 1)) for one in declared[1].split(",")] if declared else []
    return Query(block, dict(pairs))


def migrations(dialect: str) -> list[tuple[int, str, str]]:
    """Number, file name and text of each migration, in order."""
    folder = files("vehclass.sql") / dialect
    found = [(entry.name, entry.read_text(encoding="utf-8")) for entry in folder.iterdir() if entry.name[:4].isdigit()]
    return [(int(name[:4]), name, text) for name, text in sorted(found)]
