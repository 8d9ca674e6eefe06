"""When a job is due: clock times of a zone, cron expressions or a steady pace, across every change of the clocks.

A clock time that a change skips is due right after the change, one that a change repeats is due once, the first
time; so does Debian's cron.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from vehclass.errors import UsageError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Times(Protocol):
    """When something is due."""

    @property
    def zone(self) -> ZoneInfo:
        """Whose clock it is told by."""
        ...

    def after(self, moment: datetime) -> datetime | None:
        """The first time that is later than a moment, in UTC; None when there will be none."""
        ...

    def __str__(self) -> str:
        """As a person would say it."""
        ...


@dataclass(frozen=True, slots=True)
class Cron:
    """Whenever the clocks of a zone match one of these expressions of five fields."""

    expressions: tuple[str, ...]
    zone: ZoneInfo

    def after(self, moment: datetime) -> datetime | None:
        """The first time that is later than a moment, in UTC; None when there will be none."""
        found = [due for one in self.expressions if (due := self._after(one, moment)) is not None]
        return min(found, default=None)

    def _after(self, expression: str, moment: datetime) -> datetime | None:
        # Begun before the moment, since within a repeated hour a clock does not tell which of the two it is.
        for due in CronSim(expression, (moment - timedelta(hours=3)).astimezone(self.zone)):
            if due > moment:
                return due.astimezone(UTC)
        return None

    def __str__(self) -> str:
        """As a person would say it."""
        return f"{' and '.join(map(_as_time, self.expressions))} {self.zone.key}"


@dataclass(frozen=True, slots=True)
class Every:
    """At a steady pace, counted from the beginning of 1970, so that two schedulers agree on the times."""

    pace: timedelta
    zone: ZoneInfo

    def after(self, moment: datetime) -> datetime:
        """The first time that is later than a moment, in UTC."""
        return EPOCH + ((moment - EPOCH) // self.pace + 1) * self.pace

    def __str__(self) -> str:
        """As a person would say it."""
        seconds = int(self.pace.total_seconds())
        for unit, length in (("h", 3600), ("m", 60)):
            if seconds % length == 0:
                return f"every {seconds // length}{unit}"
        return f"every {seconds}s"


def due_between(times: Times, after: datetime, until: datetime) -> Iterator[datetime]:
    """All times later than `after` and not later than `until`."""

    def each() -> Iterator[datetime]:
        due = times.after(after)
        while due is not None:
            yield due
            due = times.after(due)

    return takewhile(lambda due: due <= until, each())


def parse(at: Sequence[str], cron: Sequence[str], every: float | None, timezone: str | None) -> Times:
    """Times as they are written on a command line or in a file: one way of the three. Raises UsageError."""
    if sum((bool(at), bool(cron), every is not None)) != 1:
        raise UsageError(reason="Say when with one of --at 23:00, --cron '0 23 * * *' and --every 15m.")
    zone = _zone(timezone)
    if every is not None:
        if every < 60:
            raise UsageError(reason="--every is less than a minute; the shortest is 1m.")
        return Every(timedelta(seconds=round(every)), zone)
    times = Cron((*map(_at, at), *map(_checked, cron)), zone)
    if times.after(datetime.now(UTC)) is None:
        raise UsageError(reason=f"{times} never comes.")
    return times


def _zone(name: str | None) -> ZoneInfo:
    from tzlocal import get_localzone

    try:
        return ZoneInfo(name) if name else get_localzone()
    except (KeyError, ValueError, OSError) as error:  # not there, no such name, a folder
        wanted = f"{name!r} is not a zone" if name else f"the zone of this machine cannot be told ({error})"
        raise UsageError(reason=f"{wanted}. Name one as --timezone Europe/London.") from error


def _at(text: str) -> str:
    """A clock time as a cron expression."""
    found = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text.strip())
    if not found:
        raise UsageError(reason=f"--at is {text!r}; write a clock time such as 23:00.")
    return f"{int(found[2])} {int(found[1])} * * *"


def _as_time(expression: str) -> str:
    """A cron expression, as a clock time where it is one."""
    found = re.fullmatch(r"(\d+) (\d+) \* \* \*", expression)
    return f"at {int(found[2]):02}:{int(found[1]):02}" if found else f"cron {expression!r}"


def _checked(expression: str) -> str:
    try:
        if len(expression.split()) != 5:
            raise CronSimError("it has to have five fields")
        CronSim(expression, EPOCH)
    except CronSimError as error:
        why = str(error)
        raise UsageError(
            reason=f"--cron is {expression!r}, which cannot be read: {why[:1].lower()}{why[1:]}. Write minute, hour, day, month and weekday, such as '0 23 * * *'."
        ) from error
    return " ".join(expression.split())
