"""The store on Azure Cosmos DB: a document per image and model, runs and leases beside them.

An image's outcome is one document and is written whole. A batch is not one transaction, since its images lie
in different partitions: what was written of a batch that broke off is right, and the rest is still new.
"""

import asyncio
import json
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from typing import Any, Final

from azure.cosmos.exceptions import CosmosResourceNotFoundError

from vehclass.errors import LeaseLost, StoreError
from vehclass.records import (
    Counts,
    ImageRef,
    ModelInfo,
    Outcome,
    ResultFilter,
    RunEnd,
    RunTicket,
    Saved,
    iso,
    now,
)
from vehclass.stores.cosmos_account import Document, Hook, Requests, account_of
from vehclass.stores.cosmos_containers import SCHEMA_VERSION, Containers, check_throughput
from vehclass.stores.cosmos_documents import as_document, as_saved, rows_of
from vehclass.stores.cosmos_runs import RunBook, awake
from vehclass.stores.options import StoreOptions
from vehclass.stores.rows import check_numbers, text

PAGE: Final = 1_000  # documents read at a time


def open_cosmos(url: str, *, create: bool, options: StoreOptions) -> "CosmosStore":
    """The store in a database of a Cosmos DB account; with `create`, what is missing is made where that is allowed."""
    account = account_of(url, options)
    check_throughput(options)
    requests = Requests(account, options)
    try:
        containers = Containers(requests, requests.start(), account.database, options)
        containers.open(create=create)
        return CosmosStore(requests, containers, options)
    except BaseException:
        requests.close()
        raise


class CosmosStore(RunBook):
    """Results of any number of models over any number of sources."""

    def __init__(self, requests: Requests, containers: Containers, options: StoreOptions) -> None:
        super().__init__(requests, containers.runs, options)
        self._results = containers.results
        self._containers = containers
        self._last_seq = 0
        self._turn = threading.Lock()

    def close(self) -> None:
        """Lets go of the account."""
        self._requests.close()

    # --- a run's side ---

    def unseen(self, refs: Sequence[ImageRef], model: ModelInfo, *, retry_failed: bool) -> list[ImageRef]:
        """Those of a page that the model has no result for at their etag, in order; read a thousand at a time."""
        known = self._requests.attempt(self._known([ref.image_id for ref in refs], model.version), "asking what is new")
        again = {"failed", "quarantined"} if retry_failed else {"failed"}

        def is_new(ref: ImageRef) -> bool:
            found = known.get(ref.image_id)
            return found is None or found["etag"] != ref.etag or found["status"] in again

        return [ref for ref in refs if is_new(ref)]

    async def _known(
        self, image_ids: Sequence[str], version: str, fields: str = "c.image_id, c.etag, c.status, c.attempts, c.run_id"
    ) -> dict[str, Document]:
        """The documents of images, where there are any, by image.

        As a query with IN on the partition key, which asks only the partitions concerned and brings back only
        what is needed: through the SDK's read_items a thousand names took 7.7 s instead of 0.16 s.
        """

        async def some(part: Sequence[str]) -> list[Document]:
            names = {f"image{n:04d}": one for n, one in enumerate(part)}
            listed = ", ".join(f"@{name}" for name in names)
            query = f"SELECT {fields} FROM c WHERE c.image_id IN ({listed}) AND c.version = @version"
            return await self._requests.query(self._results, query, {"version": version, **names})

        async with asyncio.TaskGroup() as group:
            parts = [image_ids[start : start + PAGE] for start in range(0, len(image_ids), PAGE)]
            tasks = [group.create_task(some(part)) for part in parts]
        return {one["image_id"]: one for task in tasks for one in task.result()}

    def save(self, outcomes: Sequence[Outcome], model: ModelInfo, ticket: RunTicket, *, max_attempts: int) -> None:
        """Writes a batch, document by document; the same batch again changes nothing. Raises LeaseLost."""
        check_numbers(self.url, outcomes)
        self._requests.attempt(self._save(outcomes, model, ticket, max_attempts), "writing results")

    async def _save(self, outcomes: Sequence[Outcome], model: ModelInfo, ticket: RunTicket, max_attempts: int) -> None:
        await self.must_hold_lease(ticket)
        failed = [one.ref.image_id for one in outcomes if one.failure]
        before = await self._known(failed, model.version) if failed else {}
        at = iso(now())
        documents = {}
        for one, seq in zip(outcomes, self._numbers(len(outcomes)), strict=True):
            attempts = _attempts(one, before.get(one.ref.image_id), ticket.run_id)
            status = "classified"
            if one.failure:
                status = "quarantined" if one.failure.permanent or attempts >= max_attempts else "failed"
            document = as_document(one, model, status=status, attempts=attempts, run_id=ticket.run_id, at=at, seq=seq)
            documents[document["id"]] = document
        await self._upsert_all(list(documents.values()), until=self.held_until.get(ticket.run_id, math.inf))

    async def _upsert_all(self, documents: Sequence[Document], until: float = math.inf) -> None:
        """Writes documents side by side, each only while the lease is certain to be ours."""

        async def write(document: Document) -> None:
            def request(hook: Hook) -> Any:
                if awake() > until:
                    raise LeaseLost(holder="a later run")
                return self._results.upsert_item(document, response_hook=hook)

            await self._requests.single(request, "writing", write=True)

        async with asyncio.TaskGroup() as group:
            for document in documents:
                group.create_task(write(document))

    def _numbers(self, count: int) -> range:
        """So many numbers that grow, from one process to the next, too: microseconds, which a double still holds."""
        with self._turn:
            first = max(self._last_seq + 1, time.time_ns() // 1000)
            self._last_seq = first + count
            return range(first, first + count)

    def end_run(self, run_id: str, end: RunEnd) -> None:
        """Writes how a run ended, with the counts as this store has them."""
        at = iso(now())
        told = {**asdict(end), "message": None if end.message is None else text(end.message)}
        counts = asdict(self.counts(run_id))
        ended = self.change_run(run_id, finished_at=at, heartbeat_at=at, **told, **counts)
        self._requests.attempt(ended, "writing the run's end")

    def counts(self, run_id: str) -> Counts:
        """What a run has finished so far, counted here and now."""

        async def count(condition: str) -> int:
            query = f"SELECT VALUE COUNT(1) FROM c WHERE c.run_id = @run_id AND {condition}"
            return await self._requests.number(self._results, query, {"run_id": run_id})

        async def all_of_them() -> list[int]:
            conditions = [f"c.status = '{status}'" for status in ("classified", "failed", "quarantined")]
            return list(await asyncio.gather(*map(count, [*conditions, "c.needs_review = true"])))

        classified, failed, quarantined, needs_review = self._requests.attempt(all_of_them(), "counting")
        return Counts(classified, failed + quarantined, quarantined, needs_review)

    # --- a reader's side ---

    def run_summary(self, run_id: str) -> list[dict[str, Any]]:
        """By task and label: images, mean probability, how many ask for a look."""
        models = {model.version: model for model in self.models()}
        order: dict[tuple[str, str], list[float]] = {}
        conditions = ["c.run_id = @run_id", "c.status = 'classified'", "ARRAY_CONTAINS(@versions, c.version)"]
        values: dict[str, object] = {"run_id": run_id, "versions": list(models)}
        for document in self._stream(conditions, values, SUMMARY_FIELDS):
            for task in models[document["version"]].tasks:
                for label in task.labels:
                    order.setdefault((task.name, label), [0, 0.0, 0])
                top = document["predictions"].get(task.name)
                if top is not None:
                    cell = order[task.name, top["label"]]
                    cell[0] += 1
                    cell[1] += top["probability"]
                    cell[2] += top["needs_review"]
        return [
            {
                "task": task,
                "label": label,
                "images": int(images),
                "mean_probability": total / images,
                "needs_review": int(look),
            }
            for (task, label), (images, total, look) in order.items()
            if images
        ]

    def failure_codes(self, run_id: str) -> list[dict[str, Any]]:
        """How many images of a run failed, by stage and code."""
        found: dict[tuple[str, str], int] = {}
        conditions = ["c.run_id = @run_id", "c.status != 'classified'"]
        for one in self._stream(conditions, {"run_id": run_id}, "c.seq, c.id, c.stage, c.code"):
            found[one["stage"], one["code"]] = found.get((one["stage"], one["code"]), 0) + 1
        ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
        return [{"stage": stage, "code": code, "images": images} for (stage, code), images in ordered]

    def results(self, what: str, wanted: ResultFilter, *, newest_first: bool = False) -> Iterator[dict[str, Any]]:
        """Rows of `what` (predictions, probabilities or failures), read a page of documents at a time."""
        models = {model.version: model for model in self.models()}
        if wanted.model is not None:
            models = {v: m for v, m in models.items() if wanted.model in (v, m.name, m.key)}
        conditions, values = _conditions(what, wanted, models)
        fields = "*" if what == "probabilities" else PREDICTION_FIELDS if what == "predictions" else FAILURE_FIELDS
        if wanted.name is not None:  # by its key where its source is known, which is one partition
            values["name"] = text(wanted.name)
            ids = {f"key{n}": one for n, one in enumerate(self.ids_of_name(wanted.name))}
            values.update(ids)
            known = f"c.image_id IN ({', '.join(f'@{name}' for name in ids)}) OR " if ids else ""
            conditions.append(f"({known}c.name = @name)")
        for document in self._stream(conditions, values, fields, newest_first=newest_first):
            yield from rows_of(what, document, models[document["version"]], wanted)

    def first_results(self, what: str, wanted: ResultFilter, limit: int) -> list[dict[str, Any]]:
        """The newest rows, at most `limit`."""
        return list(islice(self.results(what, wanted, newest_first=True), limit))

    def check(self) -> dict[str, Any]:
        """Is it reachable, at which schema, which rights are missing, and how much is in it."""

        async def look() -> dict[str, Any]:
            missing = await self._containers.missing_rights()
            stored = "SELECT VALUE COUNT(1) FROM c WHERE IS_DEFINED(c.status)"
            outcomes = await self._requests.number(self._results, stored)
            failures = await self._requests.number(self._results, f"{stored} AND c.status != 'classified'")
            runs = await self._requests.number(self._runs, "SELECT VALUE COUNT(1) FROM c WHERE c.type = 'run'")
            counted = {"outcomes": outcomes, "failures": failures, "runs": runs}
            return {"integrity": await self._containers.integrity(), "missing_rights": missing, **counted}

        report = self._requests.attempt(look(), "checking")
        return {"url": self.url, "schema_version": SCHEMA_VERSION, **report}

    def cost(self) -> dict[str, float]:
        """Request units so far, as the service has charged them."""
        spent = self._requests.spent
        return {
            "request_units": round(spent.ru_read + spent.ru_written, 1),
            "writes": spent.writes,
            "request_units_per_write": round(spent.ru_written / spent.writes, 2) if spent.writes else 0.0,
            "reads": spent.reads,
            "request_units_for_reads": round(spent.ru_read, 1),
            "throttled": spent.throttled,
            "repeated": spent.repeated,
        }

    # --- moving to another store ---

    def saved(self) -> Iterator[list[Saved]]:
        """All that is held, a page of documents at a time."""
        models = {model.version: model for model in self.models()}
        conditions = ["IS_DEFINED(c.status)", "ARRAY_CONTAINS(@versions, c.version)"]
        stream = self._stream(conditions, {"versions": list(models)}, "*")
        while page := list(islice(stream, PAGE)):
            yield [as_saved(document, models[document["version"]]) for document in page]

    def saved_of(self, image_ids: Sequence[str]) -> list[Saved]:
        """All that is held of some images."""
        models = self.models()

        async def all_of_them() -> list[dict[str, Document]]:
            return [await self._known(list(image_ids), model.version, "*") for model in models]

        found = self._requests.attempt(all_of_them(), "reading documents")
        return [
            as_saved(document, model) for model, known in zip(models, found, strict=True) for document in known.values()
        ]

    def restore(self, held: Sequence[Saved], model: ModelInfo) -> None:
        """Writes outcomes of one model as another store held them."""
        check_numbers(self.url, [one.outcome for one in held])
        documents = []
        for one, seq in zip(held, self._numbers(len(held)), strict=True):
            document = as_document(
                one.outcome,
                model,
                status=one.status,
                attempts=one.attempts,
                run_id=one.run_id,
                at=one.finished_at,
                seq=seq,
            )
            documents.append({**document, "etag": one.etag, "first_seen_at": one.first_seen_at})

        async def write() -> None:
            await self.must_hold(model)
            await self._upsert_all(documents)

        self._requests.attempt(write(), "writing results")

    def delete(self, *, name: str | None = None, before: str | None = None) -> Iterator[int]:
        """Deletes all that is held of the images of a name, or last looked at before a time; yields how many documents.

        First of all the marks go, so that the next run asks about every name.
        """
        self._requests.attempt(self._drop_all_marks(), "taking marks away")
        conditions = ["IS_DEFINED(c.status)"]
        conditions += ["c.name = @name"] if name is not None else []
        conditions += ["c.finished_at < @before"] if before is not None else []
        values: dict[str, object] = {"name": None if name is None else text(name), "before": before}
        stream = self._stream(conditions, {k: v for k, v in values.items() if v is not None}, "c.id, c.image_id, c.seq")

        async def remove(documents: list[Document]) -> None:
            async def one(document: Document) -> None:
                with suppress(CosmosResourceNotFoundError):  # the answer to an earlier try was lost
                    await self._requests.single(
                        lambda hook: self._results.delete_item(
                            document["id"], partition_key=document["image_id"], response_hook=hook
                        ),
                        "deleting",
                        write=True,
                    )

            async with asyncio.TaskGroup() as group:
                for document in documents:
                    group.create_task(one(document))

        while page := list(islice(stream, PAGE)):
            self._requests.attempt(remove(page), "deleting results")
            yield len(page)

    def _stream(
        self, conditions: list[str], values: dict[str, object], fields: str, *, newest_first: bool = False
    ) -> Iterator[Document]:
        """Documents in the order of their numbers, a page at a time; a page that fails is asked again by itself."""
        order, beyond = ("DESC", "<=") if newest_first else ("ASC", ">=")
        if not newest_first:
            # What is written while this reads gets a higher number, and is not read twice. The bound is the store's own,
            # since the clock of whoever wrote may be ahead of ours.
            asked = self._requests.query(self._results, "SELECT TOP 1 c.seq FROM c ORDER BY c.seq DESC")
            newest = self._requests.attempt(asked, "reading results")
            if not newest:
                return
            values, conditions = {**values, "newest": newest[0]["seq"]}, [*conditions, "c.seq <= @newest"]
        last: int | None = None
        seen: set[str] = set()  # of the number that the last page ended with
        while True:
            where = [*conditions, f"c.seq {beyond} @last"] if last is not None else conditions
            query = f"SELECT TOP {PAGE:d} {fields} FROM c WHERE {' AND '.join(where)} ORDER BY c.seq {order}"
            asked = self._requests.query(self._results, query, {**values, "last": last})
            page = self._requests.attempt(asked, "reading results")
            fresh = [document for document in page if document["id"] not in seen]
            yield from fresh
            if len(page) < PAGE:
                return
            if not fresh:
                raise StoreError(url=self.url, reason=f"more than {PAGE} documents bear the same number")
            last = page[-1]["seq"]
            seen = {document["id"] for document in page if document["seq"] == last}


SUMMARY_FIELDS: Final = "c.seq, c.id, c.version, c.predictions"
PREDICTION_FIELDS: Final = (
    "c.seq, c.id, c.name, c.source, c.image_id, c.model, c.version, c.etag, c.run_id, c.finished_at, c.width, c.height,"
    " c.sha256, c.predictions"
)
FAILURE_FIELDS: Final = (
    "c.seq, c.id, c.name, c.source, c.image_id, c.model, c.version, c.etag, c.run_id, c.finished_at, c.status, c.stage,"
    " c.code, c.message, c.attempts"
)


def _conditions(what: str, wanted: ResultFilter, models: dict[str, ModelInfo]) -> tuple[list[str], dict[str, object]]:
    """What the service can leave out by its index; `rows_of` is exact about the rest."""
    conditions = ["c.status != 'classified'" if what == "failures" else "c.status = 'classified'"]
    conditions.append("ARRAY_CONTAINS(@versions, c.version)")
    asked: tuple[tuple[str, object], ...] = (
        ("c.run_id = @run_id", wanted.run_id),
        ("c.finished_at >= @since", wanted.since),
        ("c.finished_at < @until", wanted.until_time),
    )
    values: dict[str, object] = {"versions": list(models)}
    for condition, value in asked:
        if value is not None:
            conditions.append(condition)
            values[condition.rpartition("@")[2]] = value
    known = any(task.name == wanted.task for model in models.values() for task in model.tasks)
    if what == "predictions" and known and wanted.label is not None:
        conditions.append(f"c.predictions[{json.dumps(wanted.task)}].label = @label")
        values["label"] = wanted.label
    if what == "predictions" and wanted.needs_review:
        conditions.append("c.needs_review = true")
    return conditions, values


def _attempts(one: Outcome, before: Document | None, run_id: str) -> int:
    """The runs that have tried this content; the same batch written twice by one run is one attempt."""
    if before is None or before["etag"] != one.ref.etag or before["status"] == "classified":
        return 1
    return int(before["attempts"]) + int(before["run_id"] != run_id)
