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
from azure.core.exceptions import AzureError, ClientAuthenticationError, DecodeError, HttpResponseError
from azure.cosmos.aio import CosmosClient

from vehclass.errors import ServiceUnreachable, StoreAccessDenied, StoreError, StoreGone, UsageError, VehclassError
from vehclass.stores.cosmos_pace import Pace, Spent
from vehclass.stores.options import StoreOptions

T = TypeVar("T")
Hook = Callable[..., None]
Document = dict[str, Any]

logging.getLogger("azure").setLevel(logging.CRITICAL)  # what matters of its requests is in our errors

TRANSIENT: Final = frozenset({408, 410, 429, 449, 500, 502, 503, 504})
# Of a status that is final otherwise, what passes: a replica that is behind, a container that is being made, a
# write region or an account that is moving (status, x-ms-substatus).
TRANSIENT_DETAIL: Final = frozenset({(404, 1002), (404, 1013), (403, 3), (403, 1008)})
THROTTLED: Final = 429
LONGEST_HINT: Final = 30.0  # seconds; an x-ms-retry-after-ms beyond this is not believed
DEFAULT_WAIT: Final = 120.0
TELL_AFTER: Final = 2.0  # seconds that a request does not get through
TELL_EVERY: Final = 10.0  # seconds, however many requests wait
OPENING_SILENCE: Final = 15.0  # for a server that nobody answers for at the start: most likely a wrong name


@dataclass(frozen=True, slots=True)
class Account:
    """Where an account is and how to sign in; what is a secret is never shown."""

    url: str  # cosmos://HOST/DATABASE
    endpoint: str
    database: str
    key: str | None = field(repr=False)


def account_of(url: str, options: StoreOptions) -> Account:
    """cosmos://ACCOUNT.documents.azure.com/DATABASE; a loopback host is an emulator's, over http. Raises UsageError."""
    host, port, database = _named(url)
    there = f"{host}:{port}" if port else host
    loopback = host == "localhost" or host.startswith("127.")
    endpoint, key = f"{'http' if loopback else 'https'}://{there}", options.cosmos_key
    if options.cosmos_connection_string:
        endpoint, key, named, its_port = _parts_of(options.cosmos_connection_string)
        if named.lower() != host.lower() or (port and its_port != port):
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


def _named(url: str) -> tuple[str, int | None, str]:
    """Host, port and database of a cosmos:// URL. Raises UsageError."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")  # a name that no server can have
    except ValueError as error:
        raise UsageError(reason="The store's URL cannot be read; write cosmos://ACCOUNT/DATABASE.") from error
    database = unquote(parts.path.strip("/"))
    if parts.username or parts.password:
        raise UsageError(
            reason="A cosmos:// URL has no key in it: put it into AZURE_COSMOS_KEY, or sign in to Entra ID."
        )
    if "?" in url or "#" in url:
        raise UsageError(reason="A cosmos:// URL ends with the database: cosmos://ACCOUNT/DATABASE.")
    if not host or not database or re.search(r"[/\\?#]", database):
        raise UsageError(
            reason="Name the account and the database, as in cosmos://ACCOUNT.documents.azure.com/DATABASE."
        )
    if "." not in host and host != "localhost":
        if not re.fullmatch(r"[a-z0-9-]{3,44}", host):
            raise UsageError(reason=f"{host!r} is not a Cosmos DB account's name: 3 to 44 of a-z, 0-9 and hyphens.")
        host += ".documents.azure.com"
    return host, port, database


def _parts_of(connection_string: str) -> tuple[str, str, str, int | None]:
    """Endpoint and key of AccountEndpoint=...;AccountKey=...; and the endpoint's host and port. Raises UsageError."""
    found = dict(part.split("=", 1) for part in connection_string.split(";") if "=" in part)
    known = {name.strip().lower(): value.strip() for name, value in found.items()}
    try:
        endpoint = known["accountendpoint"].rstrip("/")
        parts = urlsplit(endpoint)
        return endpoint, known["accountkey"], parts.hostname or "", parts.port
    except (KeyError, ValueError) as error:
        raise UsageError(
            reason="AZURE_COSMOS_CONNECTIONSTRING is no connection string: AccountEndpoint=...;AccountKey=...;"
        ) from error


class Requests:
    """An account's client on an event loop of its own; `call` runs a coroutine there from any thread."""

    def __init__(self, account: Account, options: StoreOptions) -> None:
        self.url = account.url
        self.spent = Spent()
        self._account = account
        self._options = options
        self._wait = DEFAULT_WAIT if options.wait is None else options.wait
        self._met = False
        self._served_at = 0.0  # when a request last succeeded
        self._told_at = 0.0  # when the user was last told of trouble
        self._credential: Any = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cosmos", daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine, run on the account's loop."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # where it was us who were interrupted
            raise

    def start(self) -> CosmosClient:
        """Signs in; raises StoreAccessDenied, ServiceUnreachable or UsageError."""
        try:
            return self.attempt(self._start(), "connecting")
        except (AttributeError, KeyError, TypeError) as error:  # the SDK on an answer that is none of an account's
            reason = "something answers there that is no Cosmos DB"
            raise ServiceUnreachable(service=self.url, reason=reason) from error

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
        await self.single(lambda hook: self._client.__aenter__(), "connecting")
        return self._client

    def close(self) -> None:
        """Ends the connections and the loop."""

        async def end() -> None:
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            if hasattr(self, "_client"):
                await self._client.close()
            if self._credential is not None:
                await self._credential.close()
            await asyncio.sleep(0)  # lets the sockets close before their loop does

        if self._loop.is_closed():
            return
        try:
            self.call(end())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def ask(
        self, request: Callable[[Hook], Awaitable[T]], what: str, *, write: bool = False, urgent: bool = False
    ) -> T:
        """Runs a request that is safe to repeat, until it succeeds or the patience ends; its errors become ours.

        `request` gets a response hook. HttpResponseError of a status that no repeat can mend is raised as it
        is. An `urgent` request, such as a lease's, does not queue behind others, and its cost is counted.
        """
        failing_since: float | None = None
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._once(request, write=write, urgent=urgent)
            except (AzureError, ClientError, TimeoutError, OSError) as error:
                if not self._may_pass(error):
                    raise
                status, hint, moment = status_of(error), _hint(error), time.monotonic()
                failing_since = moment if failing_since is None else failing_since
                # A busy service that still serves others of ours will come to this one.
                since = max(failing_since, self._served_at) if status == THROTTLED else failing_since
                budget = self._wait if self._met or status is not None else min(self._wait, OPENING_SILENCE)
                waited = moment - since
                # Without a word from the service, the last try comes when the patience ends, not before.
                backoff = random.uniform(0.05, min(8.0, 0.2 * 2 ** min(attempt, 6)))
                pause = hint if hint is not None else min(backoff, budget - waited)
                if waited >= budget or waited + pause > budget:
                    raise ServiceUnreachable(service=self.url, reason=_reason(error, status)) from error
                self.spent.throttled += status == THROTTLED
                self.spent.repeated += 1
                if moment - failing_since + pause > TELL_AFTER and moment - self._told_at > TELL_EVERY:
                    self._told_at = moment
                    self._options.say(f"{self.url}: {_reason(error, status)} ({what}); trying again")
                await asyncio.sleep(pause)

    def _may_pass(self, error: BaseException) -> bool:
        """Whether the same request may succeed a little later."""
        if isinstance(error, DecodeError):  # an answer that did not arrive whole
            return True
        status = status_of(error)
        if isinstance(error, ClientAuthenticationError):  # a token that is renewed in mid-run may hit a passing fault
            return self._served_at > 0 and (status is None or status in TRANSIENT)
        detail = (status, int(getattr(error, "sub_status", None) or 0))
        return status is None or status in TRANSIENT or detail in TRANSIENT_DETAIL

    async def _once(self, request: Callable[[Hook], Awaitable[T]], *, write: bool, urgent: bool) -> T:
        charge = 0.0

        def hook(headers: Mapping[str, str], *_: object) -> None:
            nonlocal charge
            charge += float(headers.get("x-ms-request-charge", 0) or 0)

        began = None if urgent else await self.pace.enter()
        throttled = good = False
        try:
            if not urgent:
                await self.pace.afford()
            answer = await request(hook)
            good = self._met = True
            self._served_at = time.monotonic()
            return answer
        except HttpResponseError as error:
            throttled = error.status_code == THROTTLED
            self._met = self._met or error.status_code is not None
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
            if began is not None:
                await self.pace.leave(began, throttled=throttled, good=good)

    async def single(
        self, request: Callable[[Hook], Awaitable[T]], what: str, *, write: bool = False, urgent: bool = False
    ) -> T:
        """`ask` for a request of one answer, which has to come within the time-out."""

        async def in_time(hook: Hook) -> T:
            async with asyncio.timeout(self._options.timeout):
                return await request(hook)

        return await self.ask(in_time, what, write=write, urgent=urgent)

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

    async def upsert(self, container: Any, document: Document, *, urgent: bool = False) -> None:
        """Writes a document under its id, whether it is there or not."""
        await self.single(
            lambda hook: container.upsert_item(document, response_hook=hook), "writing", write=True, urgent=urgent
        )

    async def document(self, container: Any, key: str) -> Document | None:
        """A document by its id, where the partition is the id; None when there is none.

        As a query, not a point read, so that nothing has to be made of an error: 2 to 3 RU instead of 1, a few
        times a run.
        """
        found = await self.query(container, "SELECT * FROM c WHERE c.id = @id", {"id": key}, partition=key)
        return found[0] if found else None

    async def query(
        self, container: Any, query: str, values: Mapping[str, object] | None = None, *, partition: str | None = None
    ) -> list[Any]:
        """All that a query finds; a value that is None is not among its parameters. Each page has to come in time."""
        values = values or {}
        parameters = [{"name": f"@{name}", "value": value} for name, value in values.items() if value is not None]
        where = {} if partition is None else {"partition_key": partition}

        async def read(hook: Hook) -> list[Any]:
            found: list[Any] = []
            pages = container.query_items(query, parameters=parameters, response_hook=hook, **where).by_page()
            while True:
                async with asyncio.timeout(self._options.timeout):
                    page = await anext(pages, None)
                    if page is None:
                        return found
                    found += [one async for one in page]

        return await self.ask(read, "reading", urgent=partition is not None)

    async def number(self, container: Any, query: str, values: Mapping[str, object] | None = None) -> int:
        """The one number that a query counts."""
        found: list[int] = await self.query(container, query, values)
        return sum(found)

    def explained(self, error: Exception, doing: str) -> VehclassError:
        """An error that no repeat can mend as ours."""
        if isinstance(error, ClientAuthenticationError):
            return StoreAccessDenied(url=self.url, reason="nobody is signed in to Azure here")
        status, detail = status_of(error), getattr(error, "sub_status", None)
        said = f"{_first_words(error)} ({doing}, status {status}{f'/{detail}' if detail else ''})"
        if status in (401, 403):
            return StoreAccessDenied(url=self.url, reason=said)
        if status == 404:
            return StoreGone(url=self.url)
        return StoreError(url=self.url, reason=said)


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an error; None when there was no answer, or none to its end."""
    broken = isinstance(error, DecodeError)
    return error.status_code if isinstance(error, HttpResponseError) and not broken else None


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
    if isinstance(error, TimeoutError):
        return "it does not answer"
    no_host = any(
        sign in str(error) for sign in ("Name or service not known", "nodename nor servname", "No address", "DNS")
    )
    return "there is no such host" if no_host else "nobody answers there"


def _first_words(error: BaseException) -> str:
    """An SDK's message without its codes, ids and addresses."""
    text = str(getattr(error, "http_error_message", None) or error)
    quoted = re.search(r'"message"\s*:\s*"([^"]*)"', text)
    first = ((quoted[1] if quoted else text).strip().splitlines() or [""])[0]
    words = re.sub(r"https?://\S+|\s+", " ", first).strip().rstrip(".")[:200]
    return words or "the service refused"
