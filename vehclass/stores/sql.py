"""The store on a SQL database: what is new, saving a batch, runs and leases, and reading it all back.

Written on named queries, so that a database needs only `query`, `records`, `execute` and `transact`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby, islice, repeat
from typing import Any, Final, Protocol, TypeVar

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
    Saved,
    ScheduleNote,
    image_id,
    iso,
    now,
)
from vehclass.stores.rows import as_models, as_saved, check_numbers, text

SMALLEST: Final = 1e-300  # below it a number may be more than a database's float can tell from 0
SCHEMA_WITH_MARKS: Final = 2
SCHEMA_WITH_SCHEDULES: Final = 3
STRETCH: Final = 5_000  # images read or asked about in one query

Row = Sequence[Any]
LabelNumbers = dict[str, dict[str, int]]  # by task, by label, in order
T = TypeVar("T")


class Database(Protocol):
    """A SQL database that knows the named queries of its dialect. Rows are given as a list, and travel as it likes best."""

    url: str
    most_rows: int  # that one statement should write

    @property
    def schema_version(self) -> int:
        """The number of the last migration that was applied."""
        ...

    def query(self, name: str, /, **values: object) -> list[Row]:
        """All rows of a named query."""
        ...

    def records(self, name: str, /, **values: object) -> list[dict[str, Any]]:
        """All rows of a named query, as dictionaries by column; times as ISO 8601 text, booleans as 0 and 1."""
        ...

    def execute(self, name: str, /, **values: object) -> int:
        """Runs a named query that changes rows; returns how many, where it is one that tells."""
        ...

    def transact(self, work: Callable[[], T]) -> T:
        """Runs `work` in a transaction, and all of it again where that may help."""
        ...

    def check(self) -> dict[str, object]:
        """What the database says of itself; 'integrity' is 'ok' or what is wrong."""
        ...

    def close(self) -> None:
        """Lets go of it."""
        ...


class SqlStore:
    """Results of any number of models over any number of sources."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self.url = database.url
        self._models: dict[str, tuple[int, LabelNumbers]] = {}  # by version: its number, and its labels' numbers

    def close(self) -> None:
        """Lets go of the database."""
        self._db.close()

    # --- a run's side ---

    def unseen(self, refs: Sequence[ImageRef], model: ModelInfo, *, retry_failed: bool) -> list[ImageRef]:
        """Those of a page that the model has no result for at their etag, in order; asked in one query."""
        known = self._number(model.version)
        if known is None:
            return list(refs)
        page = [(position, ref.image_id, ref.etag) for position, ref in enumerate(refs)]
        found = self._db.query("unseen", page=page, model_seq=known[0], retry_failed=retry_failed)
        return [refs[position] for (position,) in found]

    def save(self, outcomes: Sequence[Outcome], model: ModelInfo, ticket: RunTicket, *, max_attempts: int) -> None:
        """Writes a batch in one transaction; the same batch again changes nothing. Raises LeaseLost."""
        self._must_hold(model)

        self._transact_holding(ticket, lambda: self._write(outcomes, model, ticket.run_id, max_attempts))

    def _transact_holding(self, ticket: RunTicket, work: Callable[[], object]) -> None:
        """Runs `work` in a transaction in which the lease is the ticket's; raises LeaseLost where it no longer is."""

        def write() -> None:
            if not self._db.query("holds_lease", **_lease(ticket)):
                raise LeaseLost(holder="a later run")
            work()

        self._db.transact(write)

    def _write(self, outcomes: Sequence[Outcome], model: ModelInfo, run_id: str, max_attempts: int) -> None:
        """Writes outcomes, no more at a time than a statement of this database should."""
        check_numbers(self.url, outcomes)
        model_seq, labels = self._models[model.version]
        at = iso(now())
        once = list({one.ref.image_id: one for one in outcomes}.values())
        most = max(1, self._db.most_rows // max(1, model.label_count))
        for start in range(0, len(once), most):
            part = once[start : start + most]
            images = [_image_row(position, one) for position, one in enumerate(part)]
            numbers = {int(row[0]): int(row[1]) for row in self._db.query("save_images", images=images, now=at)}
            numbered = [(numbers[position], one) for position, one in enumerate(part)]
            self._db.execute(
                "save_outcomes",
                outcomes=[_outcome_row(seq, one) for seq, one in numbered],
                predictions=[row for seq, one in numbered for row in _prediction_rows(seq, one, labels)],
                probabilities=_probability_rows(numbered, labels),
                model_seq=model_seq,
                max_attempts=max_attempts,
                run_id=run_id,
                now=at,
            )

    def _number(self, version: str) -> "tuple[int, LabelNumbers] | None":
        """A model's number, and its labels' numbers; None where the store has not met it."""
        if version not in self._models:
            rows = self._db.query("model_seq", version=version)
            if not rows:
                return None
            number = int(rows[0][0])
            labels: LabelNumbers = {}
            for task, label, seq in self._db.query("label_seqs", model_seq=number):
                labels.setdefault(task, {})[label] = seq
            self._models[version] = (number, labels)
        return self._models[version]

    def _must_hold(self, model: ModelInfo) -> None:
        """Writes down a model with its tasks and labels, where the store has not met it."""
        if self._number(model.version) is not None:
            return
        tasks = [(n, task.name, task.temperature, task.threshold) for n, task in enumerate(model.tasks)]
        labels = [(n, at, label) for n, task in enumerate(model.tasks) for at, label in enumerate(task.labels)]

        def write() -> None:
            self._db.execute("add_model", version=model.version, name=model.name, now=iso(now()))
            number = int(self._db.query("model_seq", version=model.version)[0][0])
            self._db.execute("add_tasks", tasks=tasks, model_seq=number)
            self._db.execute("add_labels", labels=labels, model_seq=number)

        self._db.transact(write)
        self._number(model.version)

    # --- runs and leases ---

    def take_lease(self, claim: LeaseClaim) -> RunTicket:
        """The lease on a source and a model, if nobody holds it; raises LeaseHeld.

        `claim.is_dead` may say of the holder that it cannot come back, which ends its lease at once.
        """

        def take() -> RunTicket:
            rows = self._db.records("read_lease", lease_key=claim.key)
            if rows and rows[0]["run_id"] == claim.run_id:  # taken before, but the answer was lost
                return RunTicket(claim.run_id, claim.key, int(rows[0]["fence"]))
            if rows and rows[0]["run_id"] is not None:
                holder = rows[0]
                if holder["live"] and not claim.is_dead(holder["holder"]):
                    raise LeaseHeld(holder=f"{holder['run_id']} on {holder['holder'].split(' ')[0]}")
            self._db.execute(
                "take_lease", lease_key=claim.key, run_id=claim.run_id, holder=claim.holder, seconds=claim.seconds
            )
            if rows and rows[0]["run_id"] is not None:  # after the lease, as a renewal locks them, too
                self._db.execute("end_dead_runs", run_id=rows[0]["run_id"])
            fence = int(self._db.records("read_lease", lease_key=claim.key)[0]["fence"])
            return RunTicket(claim.run_id, claim.key, fence, after_death=bool(rows and rows[0]["run_id"] is not None))

        return self._db.transact(take)

    def renew_lease(self, ticket: RunTicket, seconds: int) -> None:
        """Keeps the lease for so long from now, and leaves a heartbeat; raises LeaseLost."""

        def renew() -> None:
            if not self._db.execute("renew_lease", **_lease(ticket), seconds=seconds):
                raise LeaseLost(holder="a later run")
            self._db.execute("beat", run_id=ticket.run_id, now=iso(now()))

        self._db.transact(renew)

    def free_lease(self, ticket: RunTicket) -> None:
        """Gives the lease back; nothing happens when it is another's by now."""
        self._db.execute("free_lease", **_lease(ticket))

    def start_run(self, start: RunStart, model: ModelInfo) -> None:
        """Writes that a run has begun, and the model's tasks and labels where they are not there yet."""
        self._must_hold(model)
        self._db.execute("start_run", **asdict(start), now=iso(now()))

    def end_run(self, run_id: str, end: RunEnd) -> None:
        """Writes how a run ended, with the counts as this store has them."""
        ended = {**asdict(end), "message": None if end.message is None else text(end.message)}
        profile = ended.pop("profile")
        self._db.execute("end_run", run_id=run_id, now=iso(now()), **ended, **asdict(self.counts(run_id)))
        if profile is not None:
            self._db.transact(lambda: self._db.execute("save_profile", run_id=run_id, profile=profile))

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

    def marks(self, group: str) -> dict[str, str]:
        """What complete runs left, '' where it is no longer good, by key."""
        if self._db.schema_version < SCHEMA_WITH_MARKS:  # a dry run reads, and brings no store up to date
            return {}
        return {str(key): str(mark) for key, mark in self._db.query("read_marks", mark_group=group)}

    def open_mark(self, group: str, key: str, ticket: RunTicket) -> None:
        """Makes room for a run's mark, which goes with any row of `outcome` that is deleted; raises LeaseLost."""
        room = {"mark_group": group, "mark_key": key, "run_id": ticket.run_id, "now": iso(now())}
        self._transact_holding(ticket, lambda: self._db.execute("open_mark", **room))

    def drop_marks(self, keys: Sequence[str], ticket: RunTicket) -> None:
        """Makes marks no longer good; raises LeaseLost."""
        self._transact_holding(ticket, lambda: self._db.execute("drop_marks", mark_keys=list(keys)))

    def leave_mark(self, key: str, mark: str, ticket: RunTicket) -> None:
        """Leaves a run's mark where there still is the room for it; raises LeaseLost."""
        left = {"mark_key": key, "mark": mark, "run_id": ticket.run_id, "now": iso(now())}
        self._transact_holding(ticket, lambda: self._db.execute("leave_mark", **left))

    # --- schedules ---

    def beat_schedule(self, note: ScheduleNote) -> None:
        """Leaves word that a job's scheduler is alive, at this store's own time."""
        self._db.transact(lambda: self._db.execute("beat_schedule", **asdict(note)))

    def end_due(self, name: str, due: str, last: str, ticket: RunTicket) -> None:
        """Writes how a job ended that was due at a time, as JSON; raises LeaseLost."""
        ended = {"name": name, "due": due, "last": text(last)}
        self._transact_holding(ticket, lambda: self._db.execute("end_due", **ended))

    def schedules(self) -> list[dict[str, Any]]:
        """What is known of each job, `silent_seconds` since its scheduler was heard among it."""
        return self._db.records("schedules") if self._db.schema_version >= SCHEMA_WITH_SCHEDULES else []

    # --- a reader's side ---

    def runs(self, *, limit: int, run_id: str | None = None, failed: bool = False) -> list[dict[str, Any]]:
        """Runs, the latest first."""
        return self._db.records("runs", run_id=run_id, failed=failed, limit=limit)

    def run_profile(self, run_id: str) -> dict[str, Any] | None:
        """Where the time of a run went; None where that is not known."""
        known = self._db.schema_version >= SCHEMA_WITH_SCHEDULES
        found = self._db.query("run_profile", run_id=run_id) if known else []
        return dict(json.loads(found[0][0])) if found else None

    def run_summary(self, run_id: str) -> list[dict[str, Any]]:
        """By task and label: images, mean probability, how many ask for a look."""
        return self._db.records("run_summary", run_id=run_id)

    def failure_codes(self, run_id: str) -> list[dict[str, Any]]:
        """How many images of a run failed, by stage and code."""
        return self._db.records("failure_codes", run_id=run_id)

    def models(self) -> list[ModelInfo]:
        """The models that results are of, with the tasks and labels that they answer."""
        return as_models(self._db.records("models"))

    def results(self, what: str, wanted: ResultFilter, *, newest_first: bool = False) -> Iterator[dict[str, Any]]:
        """Rows of `what` (predictions, probabilities or failures), read a stretch of images at a time."""
        values = {name: text(value) if isinstance(value, str) else value for name, value in asdict(wanted).items()}
        stretches = self._stretches(wanted.name)
        for after, until in reversed(stretches) if newest_first else stretches:
            rows = self._db.records(f"{what}_between", **{**values, "after": after, "until": until})
            if newest_first:
                images = [list(group) for _, group in groupby(rows, key=lambda row: row["image_id"])]
                rows = [row for group in reversed(images) for row in group]
            yield from rows

    def _stretches(self, name: str | None) -> list[tuple[int, int]]:
        """Where to look: all images, a stretch at a time; or those that bear a name, found by their keys."""
        if name is not None:
            ids = [image_id(source, name) for (source,) in self._db.query("sources")]
            found = self._db.query("image_seqs", image_ids=ids)
            if found:
                return [(seq - 1, seq) for (seq,) in found]
        last = int(self._db.query("last_image")[0][0])
        return [(after, after + STRETCH) for after in range(0, last, STRETCH)]

    def first_results(self, what: str, wanted: ResultFilter, limit: int) -> list[dict[str, Any]]:
        """The newest rows, at most `limit`."""
        return list(islice(self.results(what, wanted, newest_first=True), limit))

    def check(self) -> dict[str, Any]:
        """Is it whole, at which schema, and how much is in it."""
        return {
            "url": self.url,
            "schema_version": self._db.schema_version,
            **self._db.check(),
            **self._db.records("store_counts")[0],
        }

    def cost(self) -> dict[str, float]:
        """What the work so far has cost by the store's own measure; a SQL database has none."""
        return {}

    def delete(self, *, name: str | None = None, before: str | None = None) -> Iterator[int]:
        """Deletes all that is held of the images of a name, or that were last looked at before a time (ISO 8601).

        One of the two at least is given. Yields how many images, as they go; those that are still in
        their container are new again.
        """
        wanted = {"name": None if name is None else text(name), "before": before}
        for after, until in self._stretches(name):
            found = [int(row[0]) for row in self._db.query("images_to_delete", after=after, until=until, **wanted)]
            most = max(1, self._db.most_rows // 50)
            for start in range(0, len(found), most):
                part = found[start : start + most]
                self._db.transact(lambda part=part: self._db.execute("delete_images", image_seqs=part))  # type: ignore[misc]  # bound at once
                yield len(found[start : start + most])

    # --- moving to another store ---

    def saved(self) -> Iterator[list[Saved]]:
        """All that is held, a stretch of images at a time."""
        for after, until in self._stretches(None):
            ids = [image for (image,) in self._db.query("image_ids_between", after=after, until=until)]
            for start in range(0, len(ids), 1_000):
                yield self.saved_of(ids[start : start + 1_000])

    def saved_of(self, image_ids: Sequence[str]) -> list[Saved]:
        """All that is held of some images."""
        asked = list(image_ids)
        return as_saved(
            {model.version: model for model in self.models()},
            self._db.records("saved_outcomes", image_ids=asked),
            self._db.records("saved_predictions", image_ids=asked),
            self._db.records("saved_probabilities", image_ids=asked),
        )

    def restore(self, held: Sequence[Saved], model: ModelInfo) -> None:
        """Writes outcomes of one model as another store held them."""
        self._must_hold(model)
        known = self._number(model.version)
        assert known is not None
        rows = [
            (
                one.outcome.ref.image_id,
                one.etag,
                one.status,
                one.attempts,
                one.run_id,
                one.finished_at,
                one.first_seen_at,
            )
            for one in held
        ]

        def write() -> None:
            self._write([one.outcome for one in held], model, "", 1)
            self._db.execute("restore_outcomes", outcomes=rows, model_seq=known[0])

        self._db.transact(write)

    def restore_runs(self, runs: Sequence[dict[str, Any]]) -> None:
        """Writes runs as another store held them; those that are there stay as they are."""
        rows = [{name: _not_null(name, value) for name, value in run.items()} for run in runs]
        self._db.execute("restore_runs", runs=rows)


def _lease(ticket: RunTicket) -> dict[str, object]:
    """What a lease's row is told by."""
    return {"run_id": ticket.run_id, "lease_key": ticket.lease_key, "fence": ticket.fence}


def _not_null(name: str, value: object) -> object:
    """What stands for a null in JSON: '' for text, -1 for a number."""
    if value is not None:
        return value
    return "" if name in ("finished_at", "message") else -1


def _image_row(position: int, one: Outcome) -> list[object]:
    ref, facts = one.ref, one.facts
    seen = [facts.width, facts.height, facts.format, facts.sha256] if facts else [-1, -1, "", ""]
    return [position, ref.image_id, ref.source, text(ref.name), ref.etag, ref.size, iso(ref.modified_at), *seen]


def _outcome_row(seq: int, one: Outcome) -> list[object]:
    why = one.failure
    said = [why.stage, why.code, text(why.message), int(why.permanent)] if why else ["", "", "", 0]
    return [seq, one.ref.etag, *said]


def _prediction_rows(seq: int, one: Outcome, labels: LabelNumbers) -> Iterator[list[object]]:
    for answer in one.predictions:
        yield [seq, labels[answer.task][answer.label], answer.probability, int(answer.needs_review)]


def _probability_rows(numbered: Sequence[tuple[int, Outcome]], labels: LabelNumbers) -> list[tuple[int, int, float]]:
    """Rows in the order that they lie in, by label and then by image, so that one is written beside the last."""
    images: dict[str, list[int]] = {}
    shares: dict[str, list[Sequence[float]]] = {}
    for seq, one in numbered:
        for answer in one.predictions:
            own: Sequence[float] = answer.probabilities
            if min(own) <= SMALLEST:
                own = [share if share > SMALLEST else 0.0 for share in own]
            images.setdefault(answer.task, []).append(seq)
            shares.setdefault(answer.task, []).append(own)
    return [
        row
        for task, seqs in images.items()
        for label, column in zip(labels[task].values(), zip(*shares[task], strict=True), strict=True)
        for row in zip(seqs, repeat(label), column)
    ]
