"""The store on a SQL database: what is new, saving a batch, runs and leases, and reading it all back.

Written on named queries, so that a database needs only `query`, `records`, `execute` and `transaction`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby, islice
from typing import Any, Final

from vehclass.errors import LeaseHeld, LeaseLost
from vehclass.records import (
    Counts,
    ImageRef,
    LeaseClaim,
    ModelInfo,
    Outcome,
    ResultFilter,
    RunEnd,
    RunStart,
    RunTicket,
    iso,
    now,
)
from vehclass.stores.sqlite import SqliteDatabase

STRETCH: Final = 5_000  # images read or asked about in one query


class SqlStore:
    """Results of any number of models over any number of sources."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._db = database
        self.url = database.url
        self._models: dict[str, tuple[int, str]] = {}  # by version: its number, and its labels' numbers as JSON

    def close(self) -> None:
        """Lets go of the database."""
        self._db.close()

    # --- a run's side ---

    def unseen(self, refs: Sequence[ImageRef], model: ModelInfo, *, retry_failed: bool) -> list[ImageRef]:
        """Those of a page that the model has no result for at their etag, in order; asked in one query."""
        rows = self._db.query("model_seq", version=model.version)
        if not rows:
            return list(refs)
        page = json.dumps([(ref.image_id, ref.etag) for ref in refs])
        found = self._db.query("unseen", page=page, model_seq=rows[0][0], retry_failed=retry_failed)
        return [refs[position] for (position,) in found]

    def save(self, outcomes: Sequence[Outcome], model: ModelInfo, ticket: RunTicket, *, max_attempts: int) -> None:
        """Writes a batch in one transaction; the same batch again changes nothing. Raises LeaseLost."""
        at = iso(now())
        model_seq, label_seqs = self._models[model.version]
        with self._db.transaction():
            self._guard(ticket)
            self._db.execute("save_images", images=json.dumps([_image_row(one) for one in outcomes]), now=at)
            self._db.execute(
                "save_outcomes",
                outcomes=json.dumps([_outcome_row(one) for one in outcomes]),
                model_seq=model_seq,
                max_attempts=max_attempts,
                run_id=ticket.run_id,
                now=at,
            )
            failed = json.dumps([one.ref.image_id for one in outcomes if one.failure])
            if failed != "[]":
                self._db.execute("forget_predictions", image_ids=failed, model_seq=model_seq)
                self._db.execute("forget_probabilities", image_ids=failed, model_seq=model_seq)
            classified = [one for one in outcomes if not one.failure]
            if classified:
                predictions = [row for one in classified for row in _prediction_rows(one, model)]
                self._db.execute("save_predictions", predictions=json.dumps(predictions), model_seq=model_seq)
                shares = [
                    (one.ref.image_id, [p for task in one.predictions for p in task.probabilities])
                    for one in classified
                ]
                self._db.execute(
                    "save_probabilities",
                    probabilities=json.dumps(shares, allow_nan=False),
                    label_seqs=label_seqs,
                )

    def _guard(self, ticket: RunTicket) -> None:
        if not self._db.query("holds_lease", **asdict(ticket)):
            raise LeaseLost(holder="a later run")

    # --- runs and leases ---

    def take_lease(self, claim: LeaseClaim) -> RunTicket:
        """The lease on a source and a model, if nobody holds it; raises LeaseHeld.

        `claim.is_dead` may say of the holder that it cannot come back, which ends its lease at once.
        """
        with self._db.transaction():
            rows = self._db.records("read_lease", lease_key=claim.key)
            if rows and rows[0]["run_id"] is not None:
                holder = rows[0]
                if holder["live"] and not claim.is_dead(holder["holder"]):
                    raise LeaseHeld(holder=f"{holder['run_id']} on {holder['holder'].split(' ')[0]}")
                self._db.execute("end_dead_runs", run_id=holder["run_id"])
            self._db.execute(
                "take_lease",
                lease_key=claim.key,
                run_id=claim.run_id,
                holder=claim.holder,
                seconds=f"{claim.seconds:+d} seconds",
            )
            fence = int(self._db.records("read_lease", lease_key=claim.key)[0]["fence"])
        return RunTicket(claim.run_id, claim.key, fence)

    def renew_lease(self, ticket: RunTicket, seconds: int) -> None:
        """Keeps the lease for so long from now, and leaves a heartbeat; raises LeaseLost."""
        with self._db.transaction():
            if not self._db.execute("renew_lease", **asdict(ticket), seconds=f"{seconds:+d} seconds"):
                raise LeaseLost(holder="a later run")
            self._db.execute("beat", run_id=ticket.run_id, now=iso(now()))

    def free_lease(self, ticket: RunTicket) -> None:
        """Gives the lease back; nothing happens when it is another's by now."""
        self._db.execute("free_lease", **asdict(ticket))

    def start_run(self, start: RunStart, model: ModelInfo) -> None:
        """Writes that a run has begun, and the model's tasks and labels where they are not there yet."""
        tasks = [(n, task.name, task.temperature, task.threshold) for n, task in enumerate(model.tasks)]
        labels = [(n, at, label) for n, task in enumerate(model.tasks) for at, label in enumerate(task.labels)]
        with self._db.transaction():
            self._db.execute("start_run", **asdict(start), now=iso(now()))
            self._db.execute("add_model", version=model.version, name=model.name, now=iso(now()))
            seq = int(self._db.query("model_seq", version=model.version)[0][0])
            self._db.execute("add_tasks", tasks=json.dumps(tasks), model_seq=seq)
            self._db.execute("add_labels", labels=json.dumps(labels), model_seq=seq)
            label_seqs = json.dumps([row[0] for row in self._db.query("label_seqs", model_seq=seq)])
        self._models[model.version] = (seq, label_seqs)

    def end_run(self, run_id: str, end: RunEnd) -> None:
        """Writes how a run ended, with the counts as this store has them."""
        with self._db.transaction():
            ended = {**asdict(end), "message": None if end.message is None else _text(end.message)}
            self._db.execute("end_run", run_id=run_id, now=iso(now()), **ended, **asdict(self.counts(run_id)))

    def counts(self, run_id: str) -> Counts:
        """What a run has finished so far, counted here and now."""
        by_status = {str(status): int(count) for status, count in self._db.query("count_outcomes", run_id=run_id)}
        quarantined = by_status.get("quarantined", 0)
        return Counts(
            classified=by_status.get("classified", 0),
            failed=by_status.get("failed", 0) + quarantined,
            quarantined=quarantined,
            needs_review=int(self._db.query("count_needs_review", run_id=run_id)[0][0]),
        )

    # --- a reader's side ---

    def runs(self, *, limit: int, run_id: str | None = None, failed: bool = False) -> list[dict[str, Any]]:
        """Runs, the latest first."""
        return self._db.records("runs", run_id=run_id, failed=failed, limit=limit)

    def run_summary(self, run_id: str) -> list[dict[str, Any]]:
        """By task and label: images, mean probability, how many ask for a look."""
        return self._db.records("run_summary", run_id=run_id)

    def failure_codes(self, run_id: str) -> list[dict[str, Any]]:
        """How many images of a run failed, by stage and code."""
        return self._db.records("failure_codes", run_id=run_id)

    def labels(self) -> list[dict[str, Any]]:
        """What each model may answer to each task."""
        return self._db.records("labels")

    def results(self, what: str, wanted: ResultFilter, *, newest_first: bool = False) -> Iterator[dict[str, Any]]:
        """Rows of `what` (predictions, probabilities or failures), read a stretch of images at a time."""
        last = int(self._db.query("last_image")[0][0])
        starts = range(0, last, STRETCH)
        for after in reversed(starts) if newest_first else starts:
            values = {name: _text(value) if isinstance(value, str) else value for name, value in asdict(wanted).items()}
            values.update(after=after, until=after + STRETCH)
            rows = self._db.records(f"{what}_between", **values)
            if newest_first:
                images = [list(group) for _, group in groupby(rows, key=lambda row: row["image_id"])]
                rows = [row for group in reversed(images) for row in group]
            yield from rows

    def first_results(self, what: str, wanted: ResultFilter, limit: int) -> list[dict[str, Any]]:
        """The newest rows, at most `limit`."""
        return list(islice(self.results(what, wanted, newest_first=True), limit))

    def check(self) -> dict[str, Any]:
        """Is it whole, at which schema, and how much is in it."""
        return {
            "url": self.url,
            "schema_version": self._db.schema_version,
            "integrity": self._db.integrity_check(),
            **self._db.records("store_counts")[0],
        }


def _text(name: str) -> str:
    """A name as the database can hold it: bytes that are not UTF-8 are shown as escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").replace("\0", "\\x00")


def _image_row(one: Outcome) -> list[object]:
    ref, facts = one.ref, one.facts
    seen = [facts.width, facts.height, facts.format, facts.sha256] if facts else [None] * 4
    return [ref.image_id, ref.source, _text(ref.name), ref.etag, ref.size, iso(ref.modified_at), *seen]


def _outcome_row(one: Outcome) -> list[object]:
    failure = one.failure
    why = (
        [failure.stage, failure.code, _text(failure.message), failure.permanent]
        if failure
        else [None, None, None, False]
    )
    return [one.ref.image_id, one.ref.etag, *why]


def _prediction_rows(one: Outcome, model: ModelInfo) -> Iterator[list[object]]:
    for number, (task, answer) in enumerate(zip(model.tasks, one.predictions, strict=True)):
        yield [one.ref.image_id, number, task.labels.index(answer.label), answer.probability, int(answer.needs_review)]
