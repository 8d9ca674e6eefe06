"""Reads the .sql files of a store: its named queries and its numbered migrations."""

import re
from functools import cache
from importlib.resources import files
from typing import Final

_NAME: Final = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@cache
def named_queries(dialect: str) -> dict[str, str]:
    """Each statement of sql/DIALECT/queries.sql under its name."""
    text = (files("vehclass.sql") / dialect / "queries.sql").read_text(encoding="utf-8")
    parts = _NAME.split(text)
    return {name: statement.strip() for name, statement in zip(parts[1::2], parts[2::2], strict=True)}


def migrations(dialect: str) -> list[tuple[int, str, str]]:
    """Number, file name and text of each migration, in order."""
    folder = files("vehclass.sql") / dialect
    found = [(entry.name, entry.read_text(encoding="utf-8")) for entry in folder.iterdir() if entry.name[:4].isdigit()]
    return [(int(name[:4]), name, text) for name, text in sorted(found)]
