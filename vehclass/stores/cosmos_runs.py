"""Runs, leases and models in the second container of a Cosmos DB store.

A lease is a document that is changed only by who has read its last version (If-Match on its etag), and runs
out by the service's own clock.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from email.utils import parsedate_to_datetime
from hashlib import blake2b
from typing import Any, Final

from azure.core import MatchConditions
from azure.cosmos.exceptions import (
    CosmosAccessConditionFailedError,
    CosmosResourceExistsError,
    CosmosResourceNotFoundError,
)

from vehclass.errors import LeaseHeld, LeaseLost, ServiceUnreachable
from vehclass.records import LeaseClaim, ModelInfo, RunStart, RunTicket, ScheduleNote, Task, image_id, iso, now
from vehclass.stores.cosmos_account import Document, Hook, Requests
from vehclass.stores.options import StoreOptions

DAY: Final = 86_400
ROUNDS: Final = 20  # of reading and writing a document that others change, too
LEASE_KEPT: Final = 7 * DAY  # a lease that nobody has touched for so long is deleted, and its fence starts anew
RUN_COLUMNS: Final = (
    *("run_id", "command", "source", "model", "settings", "host", "started_at", "heartbeat_at", "finished_at"),
    *("status", "exit_code", "message", "listed", "new", "classified", "failed", "quarantined", "needs_review"),
)


class RunBook:
    """What is done, by whom, with which models."""

    def __init__(self, requests: Requests, container: Any, options: StoreOptions) -> None:
        self.url = requests.url
        self._requests = requests
        self._runs = container
        self._options = options
        self.held_until: dict[str, float] = {}  # by run: when its lease may pass on, by this machine's clock

    def take_lease(self, claim: LeaseClaim) -> RunTicket:
        """The lease on a source and a model, if nobody holds it; raises LeaseHeld."""
        return self._requests.attempt(self._take_lease(claim), "taking the lease")

    async def _take_lease(self, claim: LeaseClaim) -> RunTicket:
        mine = {"run_id": claim.run_id, "holder": claim.holder, "seconds": claim.seconds, "acquired_at": iso(now())}
        named = {"id": _lease_id(claim.key), "type": "lease", "lease_key": claim.key, "ttl": LEASE_KEPT}
        for attempt in range(ROUNDS):
            until = awake() + claim.seconds
            if await self._create({**named, "fence": 1, **mine}):
                ticket = RunTicket(claim.run_id, claim.key, 1)
            else:
                held, moment = await self._lease(claim.key)
                if held is None:  # deleted between the two looks, or a replica that is behind
                    await asyncio.sleep(min(1.0, 0.05 * 2**attempt))
                    continue
                ticket = RunTicket(claim.run_id, claim.key, held["fence"] + 1)
                if held["run_id"] == claim.run_id:  # taken before, but the answer was lost
                    ticket = RunTicket(claim.run_id, claim.key, held["fence"])
                elif held["run_id"] is not None:
                    # Both times are whole seconds of the service's own clock.
                    live = moment < held["_ts"] + held["seconds"] + (held["seconds"] > 0)
                    if live and not claim.is_dead(held["holder"]):
                        raise LeaseHeld(holder=f"{held['run_id']} on {held['holder'].split(' ')[0]}")
                    await self._end_dead_run(held["run_id"])
                    ticket = replace(ticket, after_death=True)
                if ticket.fence != held["fence"] and not await self._replace(
                    held, {**named, "fence": ticket.fence, **mine}
                ):
                    continue
            self.held_until[claim.run_id] = until
            return ticket
        raise ServiceUnreachable(service=self.url, reason="its lease changes hands, or cannot be read, again and again")

    async def _create(self, document: Document) -> bool:
        """Writes a document that is not there yet; False when it is."""
        try:
            await self._requests.single(
                lambda hook: self._runs.create_item(document, response_hook=hook), "writing", write=True, urgent=True
            )
        except CosmosResourceExistsError:
            return False
        return True

    async def _lease(self, key: str) -> tuple[Document | None, float]:
        """A lease and the service's own present, which both sides of a dispute agree on."""
        said: dict[str, str] = {}

        async def read(hook: Hook) -> Document:
            def listen(headers: Any, *_: object) -> None:
                said.update(headers)
                hook(headers)

            return dict(await self._runs.read_item(_lease_id(key), _lease_id(key), response_hook=listen))

        try:
            found = await self._requests.single(read, "reading the lease", urgent=True)
        except CosmosResourceNotFoundError:
            return None, time.time()
        stamp = next((value for name, value in said.items() if name.lower() == "date"), None)
        return found, parsedate_to_datetime(stamp).timestamp() if stamp else time.time()

    async def _replace(self, held: Document, document: Document) -> bool:
        """Puts a document in the place of one that nobody has changed since it was read; False when somebody has."""
        try:
            await self._requests.single(
                lambda hook: self._runs.replace_item(
                    held["id"],
                    document,
                    etag=held["_etag"],
                    match_condition=MatchConditions.IfNotModified,
                    response_hook=hook,
                ),
                "writing",
                write=True,
                urgent=True,
            )
        except (CosmosAccessConditionFailedError, CosmosResourceNotFoundError):
            return False
        return True

    async def must_hold_lease(self, ticket: RunTicket) -> Document:
        """The lease of a run; raises LeaseLost when it is another's."""
        held, _ = await self._lease(ticket.lease_key)
        if held is None or (held["run_id"], held["fence"]) != (ticket.run_id, ticket.fence):
            raise LeaseLost(holder="a later run")
        return held

    def renew_lease(self, ticket: RunTicket, seconds: int) -> None:
        """Keeps the lease for so long from now, and leaves a heartbeat; raises LeaseLost."""

        async def renew() -> None:
            for _ in range(ROUNDS):  # our own answer may have been lost, and then the etag is another
                until = awake() + seconds
                held = await self.must_hold_lease(ticket)
                if await self._replace(held, {**_own(held), "seconds": seconds}):
                    self.held_until[ticket.run_id] = until
                    break
            await self.change_run(ticket.run_id, heartbeat_at=iso(now()))

        self._requests.attempt(renew(), "renewing the lease")

    def free_lease(self, ticket: RunTicket) -> None:
        """Gives the lease back; nothing happens when it is another's by now."""

        async def free() -> None:
            for _ in range(ROUNDS):
                held, _ = await self._lease(ticket.lease_key)
                if held is None or (held["run_id"], held["fence"]) != (ticket.run_id, ticket.fence):
                    return
                if await self._replace(held, {**_own(held), "run_id": None}):
                    return

        self._requests.attempt(free(), "freeing the lease")

    def marks(self, group: str) -> dict[str, str]:
        """What complete runs left, '' where it is no longer good, by key; none where results expire by themselves."""
        if self._options.cosmos_result_days:
            return {}
        query = "SELECT * FROM c WHERE c.type = 'mark' AND c.source = @group"
        found = self._requests.attempt(self._requests.query(self._runs, query, {"group": group}), "reading the marks")
        return {str(one["mark_key"]): str(one["mark"]) for one in found}

    def open_mark(self, group: str, key: str, ticket: RunTicket) -> None:
        """Makes room for a run's mark; raises LeaseLost."""

        async def make() -> None:
            await self.must_hold_lease(ticket)
            found = await self._requests.document(self._runs, f"mark-{key}")
            kept = {"mark": found["mark"] if found else "", "ttl": self._options.cosmos_run_days * DAY}
            named = {"id": f"mark-{key}", "type": "mark", "source": group, "mark_key": key}
            await self._requests.upsert(self._runs, {**named, **kept, "run_id": ticket.run_id, "left_at": iso(now())})

        if not self._options.cosmos_result_days:
            self._requests.attempt(make(), "making room for a mark")

    def drop_marks(self, keys: Sequence[str], ticket: RunTicket) -> None:
        """Makes marks no longer good; raises LeaseLost."""

        async def drop() -> None:
            await self.must_hold_lease(ticket)
            for key in keys:
                await self._change_mark(key, mark="")

        self._requests.attempt(drop(), "taking marks away")

    def leave_mark(self, key: str, mark: str, ticket: RunTicket) -> None:
        """Leaves a run's mark where there still is the room for it; raises LeaseLost."""

        async def leave() -> None:
            await self.must_hold_lease(ticket)
            found = await self._requests.document(self._runs, f"mark-{key}")
            if found is not None and found["run_id"] == ticket.run_id:
                await self._change_mark(key, mark=mark, left_at=iso(now()))

        self._requests.attempt(leave(), "leaving the mark")

    async def _drop_all_marks(self) -> None:
        for found in await self._requests.query(self._runs, "SELECT c.mark_key FROM c WHERE c.type = 'mark'"):
            await self._change_mark(found["mark_key"], mark="", run_id="")

    async def _change_mark(self, key: str, **changes: str) -> None:
        found = await self._requests.document(self._runs, f"mark-{key}")
        if found is not None:
            await self._requests.upsert(self._runs, {**_own(found), **changes})

    def beat_schedule(self, note: ScheduleNote) -> None:
        """Leaves word that a job's scheduler is alive."""
        named = {"id": _schedule_id(note.name), "type": "schedule", "ttl": self._options.cosmos_run_days * DAY}

        async def beat() -> None:
            for _ in range(ROUNDS):
                told = {**asdict(note), "heartbeat_at": iso(now())}
                found = await self._requests.document(self._runs, _schedule_id(note.name))
                if found is None and await self._create({**named, **told, "ended_due": None, "last": None}):
                    return
                if found is not None and await self._replace(found, {**_own(found), **told}):
                    return

        self._requests.attempt(beat(), "writing the schedule")

    def end_due(self, name: str, due: str, last: str, ticket: RunTicket) -> None:
        """Writes how a job ended that was due at a time, as JSON; raises LeaseLost."""

        async def end() -> None:
            for _ in range(ROUNDS):
                await self.must_hold_lease(ticket)
                found = await self._requests.document(self._runs, _schedule_id(name))
                if found is None or await self._replace(found, {**_own(found), "ended_due": due, "last": last}):
                    return

        self._requests.attempt(end(), "writing the schedule")

    def schedules(self) -> list[dict[str, Any]]:
        """What is known of each job; the service's own time says how long its scheduler was silent."""
        query = "SELECT * FROM c WHERE c.type = 'schedule'"
        found = self._requests.attempt(self._requests.query(self._runs, query), "reading the schedules")
        return [
            {
                **{name: one[name] for name in ("name", "times", "command", "holder", "heartbeat_at")},
                "silent_seconds": max(0, round(time.time() - one["_ts"])),
                "next_due_at": one["next_due"],
                "ended_due_at": one["ended_due"],
                "last": one["last"],
            }
            for one in sorted(found, key=lambda one: str(one["name"]))
        ]

    def start_run(self, start: RunStart, model: ModelInfo) -> None:
        """Writes that a run has begun, and the model's tasks and labels."""
        at = iso(now())
        told = {**asdict(start), "started_at": at, "heartbeat_at": at, "status": "running"}

        async def begin() -> None:
            await self.must_hold(model)
            await self._requests.upsert(self._runs, {**_run_document(start.run_id, self._options), **told}, urgent=True)

        self._requests.attempt(begin(), "writing the run")

    async def must_hold(self, model: ModelInfo) -> None:
        """Writes down a model with its tasks and labels."""
        tasks = [
            {"name": task.name, "labels": task.labels, "temperature": task.temperature, "threshold": task.threshold}
            for task in model.tasks
        ]
        named = {"id": f"model-{model.version}", "type": "model", "version": model.version, "name": model.name}
        await self._create({**named, "tasks": tasks, "first_used_at": iso(now())})

    async def change_run(self, run_id: str, **changes: object) -> None:
        """Changes what is said of a run, unless somebody else does so in between: then of what they have said."""
        for _ in range(ROUNDS):
            found = await self._requests.document(self._runs, f"run-{run_id}")
            if found is None or await self._replace(found, {**_own(found), **changes}):
                return

    async def _end_dead_run(self, run_id: str) -> None:
        """A run whose lease has passed to another did not end by itself: it was killed."""
        for _ in range(ROUNDS):
            found = await self._requests.document(self._runs, f"run-{run_id}")
            if found is None or found["status"] != "running":
                return
            why = "killed; its work was taken up by a later run"
            ended = {"status": "interrupted", "finished_at": found["heartbeat_at"], "message": why}
            if await self._replace(found, {**_own(found), **ended}):
                return

    def runs(self, *, limit: int, run_id: str | None = None, failed: bool = False) -> list[dict[str, Any]]:
        """Runs, the latest first."""
        where = "c.type = 'run'"
        where += " AND c.run_id = @run_id" if run_id is not None else ""
        where += " AND (NOT IS_DEFINED(c.exit_code) OR c.exit_code = null OR c.exit_code != 0)" if failed else ""
        query = f"SELECT TOP {limit:d} * FROM c WHERE {where} ORDER BY c.started_at DESC"
        found = self._requests.attempt(self._requests.query(self._runs, query, {"run_id": run_id}), "reading runs")
        return [{name: one.get(name) for name in RUN_COLUMNS} for one in found]

    def run_profile(self, run_id: str) -> dict[str, Any] | None:
        """Where the time of a run went; None where that is not known."""
        found = self._requests.attempt(self._requests.document(self._runs, f"run-{run_id}"), "reading the run")
        return dict(json.loads(found["profile"])) if found and found.get("profile") else None

    def models(self) -> list[ModelInfo]:
        """The models that results are of, with the tasks and labels that they answer."""
        query = "SELECT * FROM c WHERE c.type = 'model'"
        found = self._requests.attempt(self._requests.query(self._runs, query), "reading models")
        return [
            ModelInfo(
                one["name"],
                one["version"],
                tuple(Task(t["name"], tuple(t["labels"]), t["temperature"], t["threshold"]) for t in one["tasks"]),
                (0, 0),
                "",
            )
            for one in sorted(found, key=lambda one: str(one["first_used_at"]))
        ]

    def ids_of_name(self, name: str) -> list[str]:
        """The keys that an image of a name has or would have in each source that was ever looked at."""
        query = "SELECT c.source FROM c WHERE c.type = 'run'"
        found = self._requests.attempt(self._requests.query(self._runs, query), "reading runs")
        return sorted({image_id(one["source"], name) for one in found})

    def restore_runs(self, runs: Sequence[dict[str, Any]]) -> None:
        """Writes runs as another store held them; those that are there stay as they are."""

        async def write() -> None:
            for run in runs:
                await self._create({**_run_document(run["run_id"], self._options), **run})

        self._requests.attempt(write(), "writing runs")


def awake() -> float:
    """Seconds on a clock that nobody sets and that goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _lease_id(key: str) -> str:
    return f"lease-{blake2b(key.encode(), digest_size=16).hexdigest()}"


def _schedule_id(name: str) -> str:
    return f"schedule-{blake2b(name.encode(), digest_size=16).hexdigest()}"


def _run_document(run_id: str, options: StoreOptions) -> Document:
    return {"id": f"run-{run_id}", "type": "run", "ttl": options.cosmos_run_days * DAY}


def _own(document: Document) -> Document:
    """A document without what the service adds."""
    return {name: value for name, value in document.items() if not name.startswith("_")}
