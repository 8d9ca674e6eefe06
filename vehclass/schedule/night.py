"""One time that a job is due, from its lease to its record: who runs it, how often it is tried, and how it ended.

Whoever holds the job's lease in the store runs it, so that of two schedulers one does, and the other takes over where
the first one dies. What is run is a process of its own: neither its leak nor its crash is the scheduler's.
"""

import json
import logging
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from signal import SIGINT, SIGTERM, Signals
from typing import Any, Final, Protocol

from vehclass.errors import ExitCode, LeaseHeld, LeaseLost, VehclassError
from vehclass.holders import identity, is_gone
from vehclass.records import LeaseClaim, RunTicket, ScheduleNote, iso, now
from vehclass.schedule.times import Times

log = logging.getLogger(__name__)

LEASE_SECONDS: Final = 120
RENEW_SECONDS: Final = 20
LOOK_AGAIN_SECONDS: Final = 30  # at a lease that another scheduler holds, or a store that does not answer
FIRST_PAUSE_SECONDS: Final = 300  # before an unreachable service is tried again; doubled each time
LONGEST_PAUSE_SECONDS: Final = 3600
CRASHES: Final = 3  # of a run, by a signal that nobody here sent, before its night is given up
AFTER_CRASH_SECONDS: Final = 5


class Store(Protocol):
    """What a scheduler needs of a store."""

    def take_lease(self, claim: LeaseClaim) -> RunTicket:
        """The right to run a job; raises LeaseHeld."""
        ...

    def renew_lease(self, ticket: RunTicket, seconds: int) -> None:
        """Keeps that right; raises LeaseLost."""
        ...

    def free_lease(self, ticket: RunTicket) -> None:
        """Gives it back."""
        ...

    def beat_schedule(self, note: ScheduleNote) -> None:
        """Leaves word that a job's scheduler is alive."""
        ...

    def end_due(self, name: str, due: str, last: str, ticket: RunTicket) -> None:
        """Writes how a job ended that was due at a time, as JSON; raises LeaseLost."""
        ...

    def schedules(self) -> list[dict[str, Any]]:
        """What is known of each job."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be run, when, and where that is written down."""

    name: str
    times: Times
    words: tuple[str, ...]  # of `vehclass classify-batch`
    command: str  # the same for people, without secrets
    grace: timedelta  # how late it may still begin, and how long it is tried again
    open_store: Callable[[], AbstractContextManager[Store]]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: its exit code, negative for a signal, and the JSON that it printed."""

    code: int
    document: Mapping[str, Any] = field(default_factory=dict)

    @property
    def said(self) -> str:
        """The end in a few words."""
        if self.code < 0:
            return f"killed by {Signals(-self.code).name}"
        return str(self.document.get("message") or f"exit code {self.code}")

    @property
    def crashed(self) -> bool:
        """Whether a signal ended it that asks nobody to stop."""
        return self.code < 0 and -self.code not in (SIGTERM, SIGINT)


RunChild = Callable[[Job, threading.Event], Ended]  # runs a job's words until they end; the event asks to stop


@dataclass(frozen=True, slots=True)
class Night:
    """What became of one time that a job was due."""

    job: str
    due: datetime
    started_at: datetime
    finished_at: datetime
    tries: Sequence[Ended]

    @property
    def ended(self) -> Ended:
        """How the last try ended."""
        return self.tries[-1]

    def as_record(self) -> dict[str, Any]:
        """What the store keeps of it."""
        runs = self.ended.document.get("runs") or ([self.ended.document] if "run_id" in self.ended.document else [])
        kept = ("run_id", "model", "listed", "new", "classified", "failed", "quarantined", "needs_review")
        return {
            "due": iso(self.due),
            "started_at": iso(self.started_at),
            "finished_at": iso(self.finished_at),
            "exit_code": self.ended.code,
            "message": None if self.ended.code == ExitCode.DONE else self.ended.said,
            "tries": len(self.tries),
            "runs": [{name: run[name] for name in kept if name in run} for run in runs],
        }


def run_night(job: Job, due: datetime, run_child: RunChild, stop: threading.Event) -> Night | None:
    """Runs a job that is due, unless somebody else has done so; None then, and when it was stopped.

    A store that does not answer, or a lease that is another's, is looked at again for as long as the job's
    grace lasts.
    """
    until = due + job.grace
    while not stop.is_set():
        try:
            with job.open_store() as store, _leased(store, job, due) as ticket:
                if ticket is None:
                    return None
                night = _try(job, due, run_child, stop)
                if night is not None:
                    _record(job, store, night, ticket)
                return night
        except LeaseHeld:
            why = "another scheduler was at it all the time"
        except VehclassError as error:
            why = str(error)
            log.warning("the store cannot be used: %s", error, extra={"schedule": job.name})
        if now() >= until:
            return not_begun(job, due, why)
        stop.wait(LOOK_AGAIN_SECONDS)
    return None


def not_begun(job: Job, due: datetime, why: str) -> Night:
    """What became of a time at which a job could not even begin."""
    said = {"message": f"It could not begin: {why}"}
    return Night(job.name, due, now(), now(), [Ended(ExitCode.UNREACHABLE, said)])


def ended_due(store: Store, name: str) -> str | None:
    """The last time that a job was due and came to an end, as ISO 8601; None when there is none."""
    return next((row["ended_due_at"] for row in store.schedules() if row["name"] == name), None)


@contextmanager
def _leased(store: Store, job: Job, due: datetime) -> Iterator[RunTicket | None]:
    """The job's lease for as long as the block lasts, renewed; None where this time has come to an end already."""
    claim = LeaseClaim(f"schedule {job.name}", f"night-{secrets.token_hex(6)}", identity(), LEASE_SECONDS, is_gone)
    ticket = store.take_lease(claim)
    over = threading.Event()

    def renew() -> None:
        while not over.wait(RENEW_SECONDS):
            try:
                store.renew_lease(ticket, LEASE_SECONDS)
            except LeaseLost:
                return  # the run has a lease of its own, and recording this night will be refused
            except VehclassError:
                continue

    thread = threading.Thread(target=renew, name=f"lease of {job.name}", daemon=True)
    try:
        done = ended_due(store, job.name)
        if done is not None and done >= iso(due):
            yield None
            return
        thread.start()
        yield ticket
    finally:
        over.set()
        if thread.ident is not None:
            thread.join()
        with suppress(VehclassError):
            store.free_lease(ticket)


def _try(job: Job, due: datetime, run_child: RunChild, stop: threading.Event) -> Night | None:
    """Runs the job until it ends in a way that trying again would not better; None when it was stopped."""
    began, tries = now(), list[Ended]()
    pause = FIRST_PAUSE_SECONDS
    while True:
        log.info("begins", extra={"schedule": job.name, "due": iso(due), "try": len(tries) + 1})
        ended = run_child(job, stop)
        tries.append(ended)
        if stop.is_set() and ended.code not in (ExitCode.DONE, ExitCode.SOME_IMAGES_FAILED):
            return None  # whoever starts the scheduler again within the grace goes on with it
        if ended.crashed and sum(one.crashed for one in tries) < CRASHES:
            wait = AFTER_CRASH_SECONDS
        elif ended.code == ExitCode.UNREACHABLE and now() + timedelta(seconds=pause) < due + job.grace:
            wait, pause = pause, min(LONGEST_PAUSE_SECONDS, 2 * pause)
        else:
            return Night(job.name, due, began, now(), tries)
        log.warning("%s; trying again in %d s", ended.said, wait, extra={"schedule": job.name})
        if stop.wait(wait):
            return None


def _record(job: Job, store: Store, night: Night, ticket: RunTicket) -> None:
    try:
        store.end_due(job.name, iso(night.due), json.dumps(night.as_record()), ticket)
    except VehclassError as error:
        log.error("its end could not be recorded: %s", error, extra={"schedule": job.name})
