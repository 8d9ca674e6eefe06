"""What an error of SQL Server means: try again later, again at once, or never, and what to do about it.

By the server's own number, since the SQLSTATE says too little: through Microsoft's driver 40613 and 49918 come
as 42000, 40501 as HY000. Numbers: learn.microsoft.com, "Troubleshoot connection issues" for Azure SQL
Database, and sys.messages.
"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from vehclass.errors import (
    ServiceUnreachable,
    StoreAccessDenied,
    StoreError,
    StoreForeign,
    StoreNotFound,
    UsageError,
    VehclassError,
)


class Hope(Enum):
    """What repeating may bring."""

    LATER = "later"  # the server is away, busy or has chosen another's work over this
    NOW = "now"  # another writer was first; the same work finds its rows
    NONE = "none"


TRANSIENT: Final = frozenset(
    {
        596,  # session was killed
        615,  # metadata changed while a connection was being redirected
        701,  # out of memory
        921,  # database is being recovered, here and in the next
        922,
        926,
        976,  # replica does not take connections
        983,
        1204,  # out of locks
        1205,  # chosen as the deadlock's victim
        1222,  # waited too long for a lock
        3906,  # read-only while it fails over
        4060,  # database cannot be opened (yet)
        4221,  # replica is not ready for reads
        6005,  # shutting down
        8628,  # waited too long to compile, or for memory, here and in the next
        8645,
        8651,
        10928,  # out of workers or sessions, here and in the next
        10929,
        10936,
        17187,  # not ready for connections yet
        18401,
        40143,  # service had a fault
        40197,
        40501,  # service is busy
        40549,  # session ended for what it took
        40550,
        40551,
        40553,
        40613,  # database is not available, such as one that wakes up
        49918,  # out of resources for this request
        49919,
        49920,
        51222,  # our own: the lease was kept by somebody else (read_lease in queries.sql)
    }
)
# A server that goes down or comes up may say so without a number of its own.
_GOING_OR_COMING: Final = re.compile(
    r"severe error occurred on the current command|starting up|shutting down|recovery mode|terminating connection"
    r"|server closed the connection",
    re.IGNORECASE,
)
NO_TRANSACTION: Final = 3902  # at a commit: lost, so that all of it is to be done again
CANNOT_OPEN: Final = 4060
TRANSIENT_STATES: Final = frozenset({"HYT00", "HYT01", "08001", "08S01", "40001"})
DUPLICATE: Final = frozenset({2601, 2627, 3960})  # 3960: changed by another since a snapshot was taken
BUSY: Final = 40501  # wants to be left alone for longer

_DENIED: Final = frozenset({229, 230, 262, 297, 300, 916, 2760, 15247, 15517})
_LOGIN: Final = frozenset({18452, 18456, 18470, 18486, 18487, 18488, 33134, 37353, 40532})
_FIREWALL: Final = frozenset({40615, 47073, 40914})
_FULL: Final = frozenset({1105, 9002, 40544, 40552})
_NUMBER: Final = re.compile(r"\((\d+)\)(?: \(SQL\w+\))?(?=; \[\w{5}\]|$)")  # at the end of each message
_NOISE: Final = re.compile(r"\[[^\]]*\]|\(\d+\)|\(SQL\w+\)")


class Trouble(Exception):
    """An error of the driver, with the statement that it happened in."""

    def __init__(self, statement: str, state: str, message: str) -> None:
        super().__init__(message)
        self.statement = statement
        self.state = state
        self.numbers = frozenset(int(one) for one in _NUMBER.findall(message))
        self.said = message

    @property
    def hope(self) -> Hope:
        """Whether the whole batch should be repeated."""
        if self.numbers & TRANSIENT or _GOING_OR_COMING.search(self.said):
            return Hope.LATER
        if NO_TRANSACTION in self.numbers and self.statement == "commit_transaction":
            return Hope.LATER
        if self.numbers & DUPLICATE:
            return Hope.NOW
        if self.numbers & (_LOGIN | _DENIED | _FIREWALL) or self._is_about_certificate:
            return Hope.NONE
        return Hope.LATER if self.state in TRANSIENT_STATES else Hope.NONE

    @property
    def is_silence(self) -> bool:
        """Whether no server answered at all."""
        return self.state in ("08001", "HYT00", "HYT01") and not self.numbers & TRANSIENT

    @property
    def _is_about_certificate(self) -> bool:
        return self.state == "08001" and "certificate" in self.said.lower()

    def as_ours(self, url: str) -> VehclassError:
        """What to tell the user."""
        words = _plain(self.said)
        if self.hope is not Hope.NONE:
            return ServiceUnreachable(service=url, reason=_short(self) or words)
        if self._is_about_certificate:
            return UsageError(
                reason=f"The certificate of {url} is not trusted here ({words}). Mend the certificate, "
                "or turn the check off for a server of your own with ?trust_server_certificate=yes."
            )
        if self.numbers & _LOGIN or self.state == "28000":
            return StoreAccessDenied(url=url, reason="it does not let this user in")
        if self.numbers & _DENIED:
            return StoreAccessDenied(url=url, reason=words)
        if self.numbers & _FIREWALL:
            return UsageError(reason=f"The firewall of {url} keeps this address out: add a rule for it ({words}).")
        if 208 in self.numbers and "OPENJSON" in self.said:
            return StoreError(url=url, reason="the database's compatibility level is under 130, which OPENJSON needs")
        if 208 in self.numbers:
            return StoreNotFound(url=url)
        if 2714 in self.numbers:
            return StoreForeign(url=url, reason=f"it has another program's tables ({words})")
        if self.numbers & _FULL:
            return StoreError(url=url, reason="the database is full")
        number = f", error {min(self.numbers)}" if self.numbers else ""
        return StoreError(url=url, reason=f"{words} (statement {self.statement}{number})")


@dataclass(frozen=True, slots=True)
class Pause:
    """How long to wait before the n-th repeat."""

    least: float
    most: float


def pause_before(trouble: Trouble, attempt: int) -> Pause:
    """At least 5 s, or 10 s where the service is busy, doubling to 60 s; where another was first, soon."""
    if trouble.hope is Hope.NOW:
        return Pause(0.0, min(2.0, 0.1 * 2**attempt))
    least = 10.0 if BUSY in trouble.numbers else 5.0
    return Pause(least, max(least, min(60.0, least * 2**attempt)))


def _plain(message: str) -> str:
    """A driver's message without its brackets and numbers."""
    first = message.split(";")[0]
    return re.sub(r"\s+", " ", _NOISE.sub("", first)).strip(" .:;")[:300]


def _short(trouble: Trouble) -> str:
    """The usual reasons in plain words."""
    if CANNOT_OPEN in trouble.numbers:
        return "it cannot open the database: there is none of that name, this user has no right to it, or it is not ready (error 4060)"
    if trouble.numbers & TRANSIENT:
        return f"it is busy or not ready, again and again (error {min(trouble.numbers & TRANSIENT)})"
    if trouble.state in ("HYT00", "HYT01"):
        return "it does not answer"
    if trouble.state == "08001" and "[" in trouble.said:
        return "nobody answers there"
    if trouble.state == "08S01":
        return "it closed the connection"
    return ""
