"""The two containers of a Cosmos DB store: found, made where that is allowed, and asked whether they are as they should be."""

import json
import secrets
from contextlib import suppress
from functools import partial
from importlib.resources import files
from typing import Any, Final

from azure.cosmos import PartitionKey, ThroughputProperties
from azure.cosmos.aio import ContainerProxy, CosmosClient
from azure.cosmos.exceptions import (
    CosmosHttpResponseError,
    CosmosResourceExistsError,
    CosmosResourceNotFoundError,
)

from vehclass.errors import StoreAccessDenied, StoreForeign, StoreNotFound, UsageError
from vehclass.records import iso, now
from vehclass.stores.cosmos_account import Requests
from vehclass.stores.cosmos_runs import DAY
from vehclass.stores.options import StoreOptions

SCHEMA_VERSION: Final = 1
THROUGHPUT_STEP: Final = 1_000  # RU/s, in which autoscale is set


def container_plan(name: str) -> dict[str, Any]:
    """A container as sql/cosmos/NAME.json describes it."""
    plan: dict[str, Any] = json.loads((files("vehclass.sql") / "cosmos" / f"{name}.json").read_text(encoding="utf-8"))
    return plan


def check_throughput(options: StoreOptions) -> None:
    """Raises UsageError for a throughput that the service would refuse."""
    if options.cosmos_throughput % THROUGHPUT_STEP:
        raise UsageError(reason="VEHCLASS_COSMOS_THROUGHPUT has to be a multiple of 1000 RU/s, or 0 for serverless.")


class Containers:
    """`results` and `runs` of a database."""

    def __init__(self, requests: Requests, client: CosmosClient, database: str, options: StoreOptions) -> None:
        self.url = requests.url
        self._requests = requests
        self._options = options
        self._client = client
        self._database = client.get_database_client(database)
        self.results = self._database.get_container_client("results")
        self.runs = self._database.get_container_client("runs")

    def open(self, *, create: bool) -> None:
        """Looks whether the containers are there and ours; raises StoreNotFound, StoreForeign or StoreAccessDenied."""
        there = self._requests.attempt(self._properties(), "looking at the containers")
        if there is None:
            if not create:
                raise StoreNotFound(url=self.url)
            self._requests.attempt(self._make(), "making the containers")
        found = self._requests.attempt(self._requests.document(self.runs, "schema"), "reading the schema's version")
        if found is None and create:
            made = {"id": "schema", "type": "schema", "version": SCHEMA_VERSION, "made_at": iso(now())}
            self._requests.attempt(self._requests.upsert(self.runs, made), "writing the schema's version")
        if found is not None and found["version"] > SCHEMA_VERSION:
            reason = f"a newer vehclass made it (schema {found['version']}, this one knows {SCHEMA_VERSION})"
            raise StoreForeign(url=self.url, reason=reason)

    async def _properties(self) -> dict[str, dict[str, Any]] | None:
        """Both containers as the service has them; None when one is not there."""
        found = {}
        for name, container in (("runs", self.runs), ("results", self.results)):
            try:
                read = partial(_read, container)
                found[name] = dict(await self._requests.single(read, "reading a container", urgent=True))
            except CosmosResourceNotFoundError:
                return None
            if found[name]["partitionKey"]["paths"] != [container_plan(name)["partitionKey"]]:
                raise StoreForeign(url=self.url, reason=f"its container `{name}` has another partition key")
        return found

    async def integrity(self) -> str:
        """'ok', or what is not as it should be."""
        found = await self._properties() or {}
        eternal = [name for name, one in found.items() if one.get("defaultTtl") is None]
        return f"no time to live is set on {' and '.join(eternal)} (-1 would do)" if eternal else "ok"

    async def missing_rights(self) -> list[str]:
        """What this identity may not do, found out by a document that is written and deleted."""
        missing = []
        for container in (self.runs, self.results):
            key = f"check-{secrets.token_hex(4)}"
            probe = {"id": key, "image_id": key, "ttl": 60, "type": "check"}
            try:
                await self._requests.upsert(container, probe)
                with suppress(CosmosResourceNotFoundError):  # the answer to the first try was lost
                    await self._requests.single(partial(_delete, container, key), "deleting", write=True)
            except CosmosHttpResponseError as error:
                if error.status_code not in (401, 403):
                    raise
                missing.append(f"write to {container.id}")
        return missing

    async def _make(self) -> None:
        """Makes what is missing; throughput is the database's where it has one, shared by both containers."""
        try:
            offer = await self._make_database()
            for name in ("runs", "results"):
                plan = container_plan(name)
                days = self._options.cosmos_result_days if name == "results" else None
                make = partial(
                    self._database.create_container,
                    plan["id"],
                    PartitionKey(plan["partitionKey"]),
                    indexing_policy=plan["indexingPolicy"],
                    default_ttl=days * DAY if days else plan["defaultTtl"],
                    offer_throughput=offer,
                )
                with suppress(CosmosResourceExistsError):
                    await self._requests.single(lambda hook, make=make: make(), "making a container")  # type: ignore[misc]  # bound now, not when it is called
        except CosmosHttpResponseError as error:
            if error.status_code in (401, 403):
                raise StoreAccessDenied(
                    url=self.url,
                    reason="its containers are not there yet and this identity may not make them; an administrator "
                    "makes them as docs/stores.md shows (data-plane roles cannot), or runs `vehclass store init` with a key",
                ) from error
            raise

    async def _make_database(self) -> ThroughputProperties | None:
        """Makes the database; the throughput that each container needs of its own, if any."""
        wished = self._options.cosmos_throughput
        offer = ThroughputProperties(auto_scale_max_throughput=wished) if wished else None
        name = self._database.id
        try:
            await self._requests.single(
                lambda hook: self._client.create_database(name, offer_throughput=offer), "making the database"
            )
        except CosmosResourceExistsError:
            return offer if offer is not None and not await self._has_throughput() else None
        except CosmosHttpResponseError as error:
            if error.status_code != 400 or "serverless" not in str(error).lower():
                raise
            await self._requests.single(lambda hook: self._client.create_database(name), "making the database")
        return None

    async def _has_throughput(self) -> bool:
        """Whether a database that is there shares its throughput, or belongs to an account without any."""
        try:
            await self._requests.single(lambda hook: self._database.get_throughput(), "reading the throughput")
        except CosmosHttpResponseError as error:
            return error.status_code != 404
        return True


async def _read(container: ContainerProxy, hook: Any) -> dict[str, Any]:
    return await container.read(response_hook=hook)


async def _delete(container: ContainerProxy, key: str, hook: Any) -> None:
    await container.delete_item(key, key, response_hook=hook)
