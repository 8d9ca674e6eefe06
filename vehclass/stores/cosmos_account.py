"""Requests to a Cosmos DB account: signed in, counted in request units, paced, and repeated where that may help.

The SDK's own retries are off where they can be: it repeats a 429 nine times, a 503 once, and a write on 408,
410, 449, 500 or a closed connection never, although an upsert by key is safe to repeat. Its time-outs notice a server
that hangs late. All requests run on one event loop in a thread of its own.
"""

import asyncio
import logging
import random
import re
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

from aiohttp import ClientError
from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError
from azure.cosmos.aio import CosmosClient

from vehclass.errors import ServiceUnreachable, StoreAccessDenied, StoreError, UsageError, VehclassError
from vehclass.stores.options import StoreOptions

T = TypeVar("T")
Hook = Callable[..., None]
Document = dict[str, Any]

logging.getLogger("azure").setLevel(logging.CRITICAL)  # what matters of its requests is in our errors

TRANSIENT: Final = frozenset({408, 410, 429, 449, 500, 502, 503, 504})
THROTTLED: Final = 429
LONGEST_HINT: Final = 30.0  # seconds; an x-ms-retry-after-ms beyond this is not believed
DEFAULT_WAIT: Final = 120.0
OPENING_SILENCE: Final = 15.0  # for a server that nobody answers for at the start: most likely a wrong name
MOST_IN_FLIGHT: Final = 64


@dataclass(frozen=True, slots=True)
class Account:
    """Where an account is and how to sign in; what is a secret is never shown."""

    url: str  # cosmos://HOST/DATABASE
    endpoint: str
    database: str
    key: str | None = field(repr=False)


def account_of(url: str, options: StoreOptions) -> Account:
    """cosmos://ACCOUNT.documents.azure.com/DATABASE; a loopback host is an emulator's, over http. Raises UsageError."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UsageError(reason="The store's URL cannot be read; write cosmos://ACCOUNT/DATABASE.") from error
    database = unquote(parts.path.strip("/"))
    if parts.username or parts.password or parts.query:
        raise UsageError(
            reason="A cosmos:// URL has no key in it: put it into AZURE_COSMOS_KEY, or sign in to Entra ID."
        )
    if not host or not database or re.search(r"[/\\?#]", database):
        raise UsageError(
            reason="Name the account and the database, as in cosmos://ACCOUNT.documents.azure.com/DATABASE."
        )
    if "." not in host and host != "localhost":
        host += ".documents.azure.com"
    there = f"{host}:{port}" if port else host
    loopback = host == "localhost" or host.startswith("127.")
    endpoint, key = f"{'http' if loopback else 'https'}://{there}", options.cosmos_key
    if options.cosmos_connection_string:
        endpoint, key = _parts_of(options.cosmos_connection_string)
        named = urlsplit(endpoint)
        if (named.hostname or "").lower() != host.lower() or (port and named.port != port):
            raise UsageError(
                reason="--store and AZURE_COSMOS_CONNECTIONSTRING name different accounts; name the same, or unset one."
            )
    if key is not None and not re.fullmatch(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", key):
        raise UsageError(reason="The key of the Cosmos DB account is not one: copy it whole, up to its last '='.")
    if endpoint.startswith("http://"):
        if not loopback and not options.allow_http:
            raise UsageError(reason=f"{endpoint} is not encrypted. Use https, or allow it with VEHCLASS_ALLOW_HTTP=1.")
        if key is None:
            raise UsageError(
                reason=f"{endpoint} is not encrypted, so Entra ID cannot sign in there. Set AZURE_COSMOS_KEY."
            )
    return Account(f"cosmos://{there}/{database}", endpoint, database, key)


def _parts_of(connection_string: str) -> tuple[str, str]:
    """Endpoint and key of AccountEndpoint=...;AccountKey=...;"""
    found = dict(part.split("=", 1) for part in connection_string.split(";") if "=" in part)
    known = {name.strip().lower(): value.strip() for name, value in found.items()}
    try:
        return known["accountendpoint"].rstrip("/"), known["accountkey"]
    except KeyError as error:
        raise UsageError(
            reason="AZURE_COSMOS_CONNECTIONSTRING is no connection string: AccountEndpoint=...;AccountKey=...;"
        ) from error


class Pace:
    """How many requests may be in flight, and how many request units a second may be spent.

    One more in flight for each round that goes well, half as many when the service says 429.
    """

    def __init__(self, most_ru: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = 8.0
        self._in_flight = 0
        self._changed = asyncio.Condition()
        self._most_ru = most_ru
        self._clock = clock
        self._balance = most_ru or 0.0
        self._paid_at = self._last_cut = clock()

    async def enter(self) -> None:
        """Waits for a place."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._in_flight < int(self.limit))
            self._in_flight += 1

    async def leave(self, *, throttled: bool, good: bool) -> None:
        """Gives the place back, and says how it went."""
        async with self._changed:
            self._in_flight -= 1
            if throttled and self._clock() - self._last_cut > 0.2:  # one storm counts once
                self.limit = max(1.0, self.limit / 2)
                self._last_cut = self._clock()
            elif good:
                self.limit = min(float(MOST_IN_FLIGHT), self.limit + 1 / self.limit)
            self._changed.notify(max(1, int(self.limit) - self._in_flight))  # not all: they would wake each other up

    async def afford(self) -> None:
        """Waits until the budget of request units is not overdrawn."""
        while self._most_ru is not None:
            moment = self._clock()
            self._balance = min(self._most_ru, self._balance + (moment - self._paid_at) * self._most_ru)
            self._paid_at = moment
            if self._balance > 0:
                return
            await asyncio.sleep(min(1.0, -self._balance / self._most_ru + 0.001))

    def pay(self, charge: float) -> None:
        """Takes what a request has cost, which is known only afterwards."""
        self._balance -= charge


@dataclass(slots=True)
class Spent:
    """What the requests so far have cost, from the x-ms-request-charge of each answer."""

    reads: int = 0
    writes: int = 0
    ru_read: float = 0.0
    ru_written: float = 0.0
    throttled: int = 0
    repeated: int = 0


class Requests:
    """An account's client on an event loop of its own; `call` runs a coroutine there from any thread."""

    def __init__(self, account: Account, options: StoreOptions) -> None:
        self.url = account.url
        self.spent = Spent()
        self._account = account
        self._options = options
        self._wait = DEFAULT_WAIT if options.wait is None else options.wait
        self._met = False
        self._credential: Any = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cosmos", daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine, run on the account's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def start(self) -> CosmosClient:
        """Signs in; raises StoreAccessDenied, ServiceUnreachable or UsageError."""
        return self.call(self._start())

    async def _start(self) -> CosmosClient:
        self.pace = Pace(self._options.max_ru)
        credential: Any = self._account.key
        if credential is None:
            from azure.identity.aio import DefaultAzureCredential

            credential = self._credential = DefaultAzureCredential(exclude_interactive_browser_credential=True)
        loopback = self._account.endpoint.startswith("http://")
        self._client = CosmosClient(
            self._account.endpoint,
            credential,
            # An emulator names itself by an address that may not be reachable from here.
            enable_endpoint_discovery=not loopback,
            connection_timeout=min(5.0, self._options.timeout),
            read_timeout=self._options.timeout,
            retry_total=0,
            retry_connect=0,
            retry_read=0,
            retry_status=0,
            retry_throttle_total=-1,  # 0 would be taken for "not given", which is nine
            no_response_on_write=True,
            user_agent_suffix="vehclass",
        )
        await self.ask(lambda hook: self._client.__aenter__(), "signing in")
        return self._client

    def close(self) -> None:
        """Ends the connections and the loop."""

        async def end() -> None:
            if hasattr(self, "_client"):
                await self._client.close()
            if self._credential is not None:
                await self._credential.close()
            await asyncio.sleep(0)  # lets the sockets close before their loop does

        if self._loop.is_closed():
            return
        self.call(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def ask(self, request: Callable[[Hook], Awaitable[T]], what: str, *, write: bool = False) -> T:
        """Runs a request that is safe to repeat, until it succeeds or the patience ends; its errors become ours.

        `request` gets a response hook. HttpResponseError of a status that no repeat can mend is raised as it is.
        """
        began = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._once(request, write=write)
            except (AzureError, ClientError, TimeoutError, OSError) as error:
                status = error.status_code if isinstance(error, HttpResponseError) else None
                if isinstance(error, ClientAuthenticationError) or (status is not None and status not in TRANSIENT):
                    raise
                hint = _hint(error)
                pause = hint if hint is not None else random.uniform(0.05, min(8.0, 0.2 * 2**attempt))
                budget = self._wait if self._met or status is not None else min(self._wait, OPENING_SILENCE)
                if time.monotonic() - began + pause > budget:
                    raise ServiceUnreachable(service=self.url, reason=_reason(error, status)) from error
                self.spent.throttled += status == THROTTLED
                self.spent.repeated += 1
                if pause > 2 or attempt == 6:
                    self._options.say(f"{self.url}: {_reason(error, status)} ({what}); again in {pause:.1f} s")
                await asyncio.sleep(pause)

    async def _once(self, request: Callable[[Hook], Awaitable[T]], *, write: bool) -> T:
        charge = 0.0

        def hook(headers: Mapping[str, str], *_: object) -> None:
            nonlocal charge
            charge += float(headers.get("x-ms-request-charge", 0) or 0)

        await self.pace.enter()
        throttled = good = False
        try:
            await self.pace.afford()
            async with asyncio.timeout(self._options.timeout):
                answer = await request(hook)
            good = self._met = True
            return answer
        except HttpResponseError as error:
            throttled = error.status_code == THROTTLED
            self._met = True
            charge += float((getattr(error, "headers", None) or {}).get("x-ms-request-charge", 0) or 0)
            raise
        finally:
            self.pace.pay(charge)
            if write:
                self.spent.writes += good
                self.spent.ru_written += charge
            else:
                self.spent.reads += good
                self.spent.ru_read += charge
            await self.pace.leave(throttled=throttled, good=good)

    def attempt(self, coroutine: Coroutine[Any, Any, T], doing: str) -> T:
        """Runs a coroutine from any thread; what no repeat could mend becomes ours."""
        try:
            return self.call(coroutine)
        except (HttpResponseError, ClientAuthenticationError) as error:
            raise self.explained(error, doing) from error
        except BaseExceptionGroup as group:  # of several writes at once, the first tells enough
            first = group.exceptions[0]
            if isinstance(first, HttpResponseError):
                raise self.explained(first, doing) from group
            if isinstance(first, VehclassError):
                raise first from group
            raise

    async def upsert(self, container: Any, document: Document) -> None:
        """Writes a document under its id, whether it is there or not."""
        await self.ask(lambda hook: container.upsert_item(document, response_hook=hook), "writing", write=True)

    async def document(self, container: Any, key: str) -> Document | None:
        """A document by its id, where the partition is the id; None when there is none.

        As a query, not a point read, so that nothing has to be made of an error: 2 to 3 RU instead of 1, a few
        times a run.
        """
        found = await self.query(container, "SELECT * FROM c WHERE c.id = @id", id=key)
        return found[0] if found else None

    async def query(self, container: Any, query: str, **values: object) -> list[Any]:
        """All that a query finds; a value that is None is not among its parameters."""
        parameters = [{"name": f"@{name}", "value": value} for name, value in values.items() if value is not None]

        async def read(hook: Hook) -> list[Any]:
            found = container.query_items(query, parameters=parameters, response_hook=hook)
            return [one async for one in found]

        return await self.ask(read, "reading")

    async def number(self, container: Any, query: str, **values: object) -> int:
        """The one number that a query counts."""
        return sum(int(one) for one in await self.query(container, query, **values))

    def explained(self, error: Exception, doing: str) -> VehclassError:
        """An error that no repeat can mend as ours."""
        status = error.status_code if isinstance(error, HttpResponseError) else None
        words = _first_words(error)
        if isinstance(error, ClientAuthenticationError) and status is None:
            return StoreAccessDenied(url=self.url, reason="nobody is signed in to Azure here")
        if status in (401, 403):
            return StoreAccessDenied(url=self.url, reason=f"{words} ({doing})")
        return StoreError(url=self.url, reason=f"{words} ({doing})")


def _hint(error: BaseException) -> float | None:
    """Seconds that the service asks to wait, where it does and can be believed."""
    headers = getattr(error, "headers", None) or getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        wished = float(headers["x-ms-retry-after-ms"]) / 1000
    except (KeyError, ValueError):
        return None
    return min(LONGEST_HINT, max(0.0, wished)) + random.uniform(0, 0.01)


def _reason(error: BaseException, status: int | None) -> str:
    if status == THROTTLED:
        return "it has no request units left, again and again; raise its throughput"
    if status is not None:
        return f"it answers {status} again and again"
    return "it does not answer" if isinstance(error, TimeoutError) else "nobody answers there"


def _first_words(error: BaseException) -> str:
    """An SDK's message without its codes, ids and addresses."""
    text = getattr(error, "http_error_message", None) or str(error)
    first = (str(text).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"https?://\S+|\s+", " ", first).strip().rstrip(".")[:200]
