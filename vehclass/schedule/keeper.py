"""Keeps jobs running at their times, for as long as the process lives.

APScheduler wakes up, puts missed times together and lets one of a kind run at a time; when a job is due, and whether
it still has to run, is said by `times` and by the store. Jobs come from settings only, never from a pickle.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from apscheduler.events import EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED, JobEvent
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

from vehclass.errors import UsageError, VehclassError
from vehclass.holders import identity, is_gone
from vehclass.records import ScheduleNote, iso, now
from vehclass.schedule.night import Job, Night, RunChild, not_begun, run_night
from vehclass.schedule.times import Times, due_between

log = logging.getLogger(__name__)

BEAT_SECONDS: Final = 30  # also how late a time may be noticed after the machine slept or its clock was set
SILENT_SECONDS: Final = 180  # without a heartbeat, and a scheduler counts as gone


class WhenDue(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """A job's times, for APScheduler."""

    def __init__(self, times: Times) -> None:
        self._times = times

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        """The first time after the last one, or after the present."""
        return self._times.after(previous_fire_time or now)


class Keeper:
    """Runs jobs when they are due, until it is told to stop."""

    def __init__(
        self, jobs: Sequence[Job], run_child: RunChild, ended: Callable[[Night], None], stop: threading.Event
    ) -> None:
        """`run_child` runs a job's words; `ended` is told of each night that was run, or given up, here."""
        self._jobs = {job.name: job for job in jobs}
        self._run_child = run_child
        self._ended = ended
        self._stop = stop
        self._met: set[str] = set()  # jobs whose store has answered since the start
        self._running: dict[str, datetime] = {}  # by job, which time it was due is being run
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": {"type": "threadpool", "max_workers": len(jobs)}},
            job_defaults={"coalesce": True, "max_instances": 1},
        )
        self._scheduler.add_listener(self._not_run, EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES)

    def keep(self, *, run_now: bool = False) -> None:
        """Runs each job at its times until `stop` is set; then waits for those that run to end.

        With `run_now` each runs at the start, too; without, one whose last time passed while no scheduler was there, or
        broke off with it, if that is within its grace. Raises UsageError where another scheduler keeps
        another job of the same name.
        """
        missed = {name: self._meet(job) for name, job in self._jobs.items()}
        starts = [
            threading.Thread(target=self._start, args=(job, missed[name], run_now), name=f"start of {name}")
            for name, job in self._jobs.items()
        ]
        self._scheduler.start()
        for thread in starts:
            thread.start()
        try:
            while not self._stop.wait(BEAT_SECONDS):
                # APScheduler waits by a clock that stands still while the machine sleeps.
                self._scheduler.wakeup()
                self._beat()
        finally:
            self._stop.set()
            for thread in starts:
                thread.join()
            self._scheduler.shutdown(wait=True)

    def _meet(self, job: Job) -> datetime | None:
        """Asks a job's store what it knows, and leaves the first heartbeat; returns the time that was missed, if one was.

        A job that the store has never heard of has missed nothing: its first time is the next one.
        """
        note = self._note(job)
        try:
            with job.open_store() as store:
                known = next((row for row in store.schedules() if row["name"] == job.name), None)
                other = _other_of_that_name(known, note)
                if not other:
                    store.beat_schedule(note)
        except VehclassError as error:
            log.warning("its store cannot be used yet: %s", error, extra={"schedule": job.name})
            return None
        if other:
            raise UsageError(reason=other)
        self._met.add(job.name)
        due = _last_due(job)
        if known is None or due is None or (known["ended_due_at"] or "") >= iso(due):
            return None
        return due if known["next_due_at"] is not None and known["next_due_at"] <= iso(due) else None

    def _start(self, job: Job, missed: datetime | None, run_now: bool) -> None:
        """Runs a job at the start, where it has to, and only then leaves its times to APScheduler."""
        while job.name not in self._met and not self._stop.wait(BEAT_SECONDS):
            try:
                missed = self._meet(job)
            except UsageError as error:
                log.error("%s", error, extra={"schedule": job.name})
                return
        if missed is not None and not run_now:
            log.info("was missed, and is run now", extra={"schedule": job.name, "due": iso(missed)})
        due = now() if run_now else missed
        if due is not None and not self._stop.is_set():
            self._run(job, due)
        if not self._stop.is_set():
            grace = int(job.grace.total_seconds())
            when = WhenDue(job.times)
            self._scheduler.add_job(self._run_due, when, [job], id=job.name, misfire_grace_time=grace)

    def _beat(self) -> None:
        """Leaves a heartbeat of each job in its store, where that answers."""
        for job in self._jobs.values():
            if job.name in self._met:
                self._beat_of(job)

    def _beat_of(self, job: Job) -> None:
        try:
            with job.open_store() as store:
                store.beat_schedule(self._note(job))
        except VehclassError as error:
            log.warning("no heartbeat could be left: %s", error, extra={"schedule": job.name})

    def _note(self, job: Job) -> ScheduleNote:
        # While a time is being run it is the next one still: whoever finds that when this process is dead runs it.
        due = self._running.get(job.name) or job.times.after(now())
        return ScheduleNote(job.name, str(job.times), job.command, identity(), iso(due) if due else None)

    def _run_due(self, job: Job) -> None:
        """Runs a job for the last time that it was due; APScheduler calls this once for all that were missed."""
        due = _last_due(job)
        if due is not None:
            self._run(job, due)

    def _run(self, job: Job, due: datetime) -> None:
        self._running[job.name] = due
        try:
            night = run_night(job, due, self._run_child, self._stop)
            if night is not None:
                self._ended(night)
        except Exception:
            log.exception("something unforeseen went wrong", extra={"schedule": job.name})
        finally:
            if not self._stop.is_set():  # else it may have been broken off
                del self._running[job.name]
                self._beat_of(job)

    def _not_run(self, event: JobEvent) -> None:
        job = self._jobs[event.job_id]
        if event.code == EVENT_JOB_MISSED:
            self._ended(not_begun(job, event.scheduled_run_time, "the machine came back later than --grace allows"))
        else:
            log.warning("is due while it is still running; left out", extra={"schedule": job.name})


def _last_due(job: Job) -> datetime | None:
    """The last time that a job was due, within its grace."""
    present = now()
    return next(reversed(list(due_between(job.times, present - job.grace, present))), None)


def _other_of_that_name(known: dict[str, Any] | None, note: ScheduleNote) -> str | None:
    """What is wrong where a scheduler that is alive keeps another job under this name in the same store."""
    if known is None or known["silent_seconds"] >= SILENT_SECONDS or known["holder"] == note.holder:
        return None
    if (known["times"], known["command"]) == (note.times, note.command) or is_gone(known["holder"]):
        return None
    return f"{known['holder'].split(' ')[0]} keeps another schedule {note.name!r} in this store ({known['times']}: {known['command']}). Give this one another --name, or wait three minutes after stopping that one."
