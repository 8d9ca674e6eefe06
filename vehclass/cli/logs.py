"""What happens while vehclass works, line by line on standard error: for people on a terminal, as JSON elsewhere."""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from vehclass.cli.show import plain
from vehclass.records import iso

_STANDARD: Final = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})


class Format(StrEnum):
    """How the lines look."""

    auto = "auto"
    human = "human"
    json = "json"


class Context(logging.Filter):
    """What every line says besides its own, such as the run's id; and no line says a secret."""

    fields: Mapping[str, object] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Adds them; lets every line pass."""
        for name, value in self.fields.items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


CONTEXT: Final = Context()


def bind(**fields: object) -> None:
    """From now on every line says these."""
    CONTEXT.fields = {**CONTEXT.fields, **fields}


def as_json() -> bool:
    """Whether lines are JSON."""
    return any(isinstance(handler.formatter, _Json) for handler in logging.getLogger("vehclass").handlers)


def set_up(wanted: Format, *, verbose: bool) -> None:
    """Sends what vehclass and some that it uses say to standard error, in a format."""
    lines = wanted is Format.json or (wanted is Format.auto and not sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if lines else _Human())
    handler.addFilter(CONTEXT)
    others = {"apscheduler": logging.ERROR, "opentelemetry": logging.ERROR}
    for name, level in {"vehclass": logging.DEBUG if verbose else logging.INFO, **others}.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a line says besides its message."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        from vehclass.cli import without_secrets

        line = {
            "time": iso(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": plain(without_secrets(record.getMessage())),
            **fields_of(record),
        }
        if record.exc_info:
            line["traceback"] = without_secrets(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


class _Human(logging.Formatter):
    """A sentence a line, with its time where it is about a schedule."""

    def format(self, record: logging.LogRecord) -> str:
        from vehclass.cli import without_secrets

        message = plain(without_secrets(record.getMessage()))
        schedule = fields_of(record).get("schedule")
        if schedule:
            at = datetime.fromtimestamp(record.created).strftime("%Y-%m-%d %H:%M:%S")
            message = f"{at} {schedule}: {message}"
        if record.exc_info:
            message += "\n" + without_secrets(self.formatException(record.exc_info))
        return message
