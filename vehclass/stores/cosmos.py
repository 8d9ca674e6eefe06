"""The store on Azure Cosmos DB: a document per image and model, runs and leases beside them.

An image's outcome is one document and is written whole. A batch is not one transaction, since its images lie
in different partitions: what was written of a batch that broke off is right, and the rest is still new.
"""

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.resources import files
from itertools import islice
from typing import Any, Final

from azure.cosmos import PartitionKey, ThroughputProperties
from azure.cosmos.exceptions import (
    CosmosHttpResponseError,
    CosmosResourceExistsError,
    CosmosResourceNotFoundError,
)

from vehclass.errors import StoreAccessDenied, StoreForeign, StoreNotFound
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
from vehclass.stores.cosmos_account import Document, Requests, account_of
from vehclass.stores.cosmos_documents import as_document, as_saved, rows_of
from vehclass.stores.cosmos_runs import DAY, RunBook
from vehclass.stores.options import StoreOptions
from vehclass.stores.rows import check_numbers, text

SCHEMA_VERSION: Final = 1
PAGE: Final = 1_000  # documents read at a time


def open_cosmos(url: str, *, create: bool, options: StoreOptions) -> "CosmosStore":
    """The store in a database of a Cosmos DB account; with `create`, what is missing is made where that is allowed."""
    requests = Requests(account_of(url, options), options)
    try:
        store = CosmosStore(requests, url_database(requests.url), options)
        store.open(create=create)
    except BaseException:
        requests.close()
        raise
    return store


def url_database(url: str) -> str:
    """The database in a cosmos:// URL."""
    return url.rpartition("/")[2]


def container_plan(name: str) -> dict[str, Any]:
    """A container as sql/cosmos/NAME.json describes it."""
    plan: dict[str, Any] = json.loads((files("vehclass.sql") / "cosmos" / f"{name}.json").read_text(encoding="utf-8"))
    return plan


class CosmosStore(RunBook):
    """Results of any number of models over any number of sources."""

    def __init__(self, requests: Requests, database: str, options: StoreOptions) -> None:
        self._client = requests.start()
        self._database = self._client.get_database_client(database)
        self._results = self._database.get_container_client("results")
        super().__init__(requests, self._database.get_container_client("runs"), options)
        self._last_seq = 0
        self._turn = threading.Lock()

    def close(self) -> None:
        """Lets go of the account."""
        self._requests.close()

    # --- opening and making ---

    def open(self, *, create: bool) -> None:
        """Looks whether the containers are there and ours; raises StoreNotFound, StoreForeign or StoreAccessDenied."""
        there = self._requests.attempt(self._properties(), "looking at the containers")
        if there is None:
            if not create:
                raise StoreNotFound(url=self.url)
            self._requests.attempt(self._make(), "making the containers")
        found = self._requests.attempt(self._requests.document(self._runs, "schema"), "reading the schema's version")
        if found is None:
            if not create:
                raise StoreNotFound(url=self.url)
            made = {"id": "schema", "type": "schema", "version": SCHEMA_VERSION, "made_at": iso(now())}
            self._requests.attempt(self._requests.upsert(self._runs, made), "writing the schema's version")
        elif found["version"] > SCHEMA_VERSION:
            reason = f"a newer vehclass made it (schema {found['version']}, this one knows {SCHEMA_VERSION})"
            raise StoreForeign(url=self.url, reason=reason)

    async def _properties(self) -> dict[str, Any] | None:
        """The results container as the service has it; None when it or the other is not there."""
        found: dict[str, Any] = {}
        for container in (self._runs, self._results):
            try:
                found = await self._requests.ask(lambda hook, one=container: one.read(), "reading a container")  # type: ignore[misc]  # bound now, not when it is called
            except CosmosResourceNotFoundError:
                return None
        if found["partitionKey"]["paths"] != [container_plan("results")["partitionKey"]]:
            raise StoreForeign(url=self.url, reason="its container `results` has another partition key")
        return found

    async def _make(self) -> None:
        """Makes database and containers; throughput is the database's, shared by both containers, where we made it."""
        offer = None
        if self._options.cosmos_throughput:
            offer = ThroughputProperties(auto_scale_max_throughput=self._options.cosmos_throughput)
        name = self._database.id
        try:
            try:
                await self._requests.ask(
                    lambda hook: self._client.create_database(name, offer_throughput=offer), "making the database"
                )
                offer = None
            except CosmosResourceExistsError:
                pass
            for container in ("runs", "results"):
                plan = container_plan(container)
                days = self._options.cosmos_result_days if container == "results" else None
                try:
                    await self._requests.ask(
                        lambda hook, plan=plan, days=days: self._database.create_container(  # type: ignore[misc]  # as above
                            plan["id"],
                            PartitionKey(plan["partitionKey"]),
                            indexing_policy=plan["indexingPolicy"],
                            default_ttl=days * DAY if days else plan["defaultTtl"],
                            offer_throughput=offer,
                        ),
                        "making a container",
                    )
                except CosmosResourceExistsError:
                    continue
        except CosmosHttpResponseError as error:
            if error.status_code in (401, 403):
                raise StoreAccessDenied(
                    url=self.url,
                    reason="its containers are not there yet and this identity may not make them; an administrator "
                    "makes them as docs/stores.md shows (data-plane roles cannot), or runs `vehclass store init` with a key",
                ) from error
            raise

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
            return await self._requests.query(self._results, query, version=version, **names)

        parts = [image_ids[start : start + PAGE] for start in range(0, len(image_ids), PAGE)]
        found = await asyncio.gather(*map(some, parts))
        return {one["image_id"]: one for part in found for one in part}

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
            about = {"status": status, "attempts": attempts, "run_id": ticket.run_id, "at": at, "seq": seq}
            document = as_document(one, model, **about)  # type: ignore[arg-type]  # a dict of several kinds
            documents[document["id"]] = document
        await self._upsert_all(list(documents.values()))

    async def _upsert_all(self, documents: Sequence[Document]) -> None:
        async with asyncio.TaskGroup() as group:
            for document in documents:
                group.create_task(self._requests.upsert(self._results, document))

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
            return await self._requests.number(
                self._results, f"SELECT VALUE COUNT(1) FROM c WHERE c.run_id = @run_id AND {condition}", run_id=run_id
            )

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
        for document in self._stream(
            ["c.run_id = @run_id", "c.status = 'classified'"], {"run_id": run_id}, SUMMARY_FIELDS
        ):
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
            names = (wanted.model,)
            models = {v: m for v, m in models.items() if {v, m.name, m.key} & set(names)}
        conditions, values = _conditions(what, wanted, models)
        fields = "*" if what == "probabilities" else PREDICTION_FIELDS if what == "predictions" else FAILURE_FIELDS
        if wanted.name is not None and (found := self.ids_of_name(wanted.name)):
            conditions = [one for one in conditions if "@name" not in one] + ["ARRAY_CONTAINS(@image_ids, c.image_id)"]
            values = {**{k: v for k, v in values.items() if k != "name"}, "image_ids": found}
        for document in self._stream(conditions, values, fields, newest_first=newest_first):
            rows = list(rows_of(what, document, models[document["version"]], wanted))
            yield from rows

    def first_results(self, what: str, wanted: ResultFilter, limit: int) -> list[dict[str, Any]]:
        """The newest rows, at most `limit`."""
        return list(islice(self.results(what, wanted, newest_first=True), limit))

    def check(self) -> dict[str, Any]:
        """Is it reachable, at which schema, which rights are missing, and how much is in it."""

        async def look() -> dict[str, Any]:
            missing = []
            for container in (self._runs, self._results):
                probe = {"id": "check", "image_id": "check", "ttl": 60, "type": "check", "version": "", "seq": 0}
                try:
                    await self._requests.upsert(container, probe)
                    await self._requests.ask(
                        lambda hook, one=container: one.delete_item("check", "check"),  # type: ignore[misc]  # bound now
                        "deleting",
                    )
                except CosmosHttpResponseError as error:
                    if error.status_code not in (401, 403):
                        raise
                    missing.append(f"write to {container.id}")
            outcomes = await self._requests.number(self._results, "SELECT VALUE COUNT(1) FROM c")
            failures = await self._requests.number(
                self._results, "SELECT VALUE COUNT(1) FROM c WHERE c.status != 'classified'"
            )
            runs = await self._requests.number(self._runs, "SELECT VALUE COUNT(1) FROM c WHERE c.type = 'run'")
            counted = {"outcomes": outcomes, "failures": failures, "runs": runs}
            return {"integrity": "ok", "missing_rights": missing, **counted}

        return {"url": self.url, "schema_version": SCHEMA_VERSION, **self._requests.attempt(look(), "checking")}

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
        stream = self._stream(["IS_DEFINED(c.status)"], {}, "*")
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
            about = {
                "status": one.status,
                "attempts": one.attempts,
                "run_id": one.run_id,
                "at": one.finished_at,
                "seq": seq,
            }
            document = as_document(one.outcome, model, **about)  # type: ignore[arg-type]  # a dict of several kinds
            documents.append({**document, "etag": one.etag, "first_seen_at": one.first_seen_at})

        async def write() -> None:
            await self.must_hold(model)
            await self._upsert_all(documents)

        self._requests.attempt(write(), "writing results")

    def _stream(
        self, conditions: list[str], values: dict[str, object], fields: str, *, newest_first: bool = False
    ) -> Iterator[Document]:
        """Documents in the order of their numbers, a page at a time; a page that fails is asked again by itself."""
        order, beyond = ("DESC", "<=") if newest_first else ("ASC", ">=")
        last: int | None = None
        seen: set[str] = set()  # of the number that the last page ended with
        while True:
            where = [*conditions, f"c.seq {beyond} @last"] if last is not None else conditions
            query = f"SELECT TOP {PAGE:d} {fields} FROM c WHERE {' AND '.join(where)} ORDER BY c.seq {order}"
            page = self._requests.attempt(
                self._requests.query(self._results, query, **{**values, "last": last}), "reading results"
            )
            yield from (document for document in page if document["id"] not in seen)
            if len(page) < PAGE:
                return
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
        ("c.name = @name", None if wanted.name is None else text(wanted.name)),
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
