"""An Azure Blob container as a source of photos: listed page by page, read at the listed etag, checked.

Keyless by DefaultAzureCredential unless the settings have a connection string, a key or a SAS. The SDK's
own retries are off: with its defaults a dead server is noticed after 82 s. Ours give up on a server that
does not answer within 15 s, wait as long as a busy one asks for, and never repeat what cannot succeed.
"""

import hashlib
import ipaddress
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

import requests
from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceModifiedError,
    ResourceNotFoundError,
    ServiceRequestError,
)
from azure.core.pipeline.transport import RequestsTransport
from azure.storage.blob import BlobServiceClient, ContainerClient
from tenacity import RetryCallState, Retrying, retry_if_exception

from vehclass.errors import AccessDenied, ReadError, ServiceUnreachable, SourceNotFound, UsageError
from vehclass.records import ImageRef, image_id
from vehclass.sources.blob_options import BlobOptions

T = TypeVar("T")

# The SDK logs each request; a night's log is about photos.
logging.getLogger("azure").setLevel(logging.WARNING)

CONNECT_SECONDS: Final = 3
READ_SECONDS: Final = 5  # without a single byte
SILENCE_BUDGET: Final = 5.0  # after so long without any answer, no further try begins
BUSY_BUDGET: Final = 60.0  # for a server that answers, but asks to come back later
LONGEST_HINT: Final = 30.0  # a Retry-After beyond this is not believed
TRANSIENT_STATUS: Final = frozenset({408, 429, 500, 502, 503, 504})


def open_container(
    options: BlobOptions, *, container: str, prefix: str = "", account: str | None = None
) -> "BlobSource":
    """A container by name, in the given account or in that of the options."""
    if options.connection_string and account is None:
        try:
            service = BlobServiceClient.from_connection_string(options.connection_string)
        except ValueError as error:
            raise UsageError(reason="AZURE_STORAGE_CONNECTION_STRING is not a connection string.") from error
        client = _client(options, service.url.partition("?")[0], container, service.credential or _query(service.url))
    else:
        name = account or options.account
        client = _client(options, f"https://{name}.blob.core.windows.net", container, None)
    return BlobSource(client, prefix, options)


def open_url(options: BlobOptions, url: str) -> "BlobSource":
    """A container by URL: https://ACCOUNT.blob.../CONTAINER/PREFIX, or http://HOST:PORT/ACCOUNT/CONTAINER/PREFIX."""
    parts = urlsplit(url)
    path = unquote(parts.path).strip("/").split("/", 2 if _is_address(parts.hostname) else 1)
    endpoint = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    if _is_address(parts.hostname):  # an emulator: the account is the first part of the path
        endpoint += f"/{path.pop(0)}"
    if not path or not path[0]:
        raise SourceNotFound(where=f"{endpoint}/", reason="the URL names no container")
    prefix = path[1] if len(path) > 1 else ""
    return BlobSource(_client(options, endpoint, path[0], parts.query or None), prefix, options)


def _client(options: BlobOptions, endpoint: str, container: str, credential: Any) -> ContainerClient:
    parts = urlsplit(endpoint)
    if parts.scheme != "https" and not options.allow_http and not _is_loopback(parts.hostname):
        raise UsageError(reason=f"{endpoint} is not encrypted. Use https, or allow it with VEHCLASS_ALLOW_HTTP=1.")
    session = requests.Session()
    adapter = requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=options.concurrency + 4)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return ContainerClient(
        endpoint,
        container,
        credential=credential or options.account_key or options.sas_token or _entra(),
        transport=RequestsTransport(
            session=session, session_owner=False, connection_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS
        ),
        retry_total=0,
        permit_redirects=False,  # credentials go to the server that was named, and to no other
    )


def _entra() -> Any:
    from azure.identity import DefaultAzureCredential

    return DefaultAzureCredential(exclude_interactive_browser_credential=True)


def _query(url: str) -> str | None:
    return urlsplit(url).query or None


def _is_address(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        ipaddress.ip_address(host or "")
    except ValueError:
        return False
    return True


def _is_loopback(host: str | None) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host or "").is_loopback)


class BlobSource:
    """The blobs of a container under a prefix, read from several threads at once."""

    def __init__(self, client: ContainerClient, prefix: str, options: BlobOptions) -> None:
        self._client = client
        self._prefix = prefix
        self.concurrency = options.concurrency
        endpoint = urlsplit(client.url)
        self.url = f"{endpoint.scheme}://{(endpoint.netloc).lower()}{unquote(endpoint.path)}"
        self._probe_turn = threading.Lock()

    def check(self) -> None:
        """Asks for one name: raises SourceNotFound, AccessDenied or ServiceUnreachable."""
        self._ask(lambda: next(self._client.list_blobs(results_per_page=1).by_page(), None), "list")

    def pages(self, prefix: str = "") -> Iterator[list[ImageRef]]:
        """Every blob under a prefix, a page of the service's at a time."""
        token: str | None = None
        while True:
            found, token = self._ask(partial(self._page, prefix, token), "list")
            yield [self._ref(blob) for blob in found]
            if not token:
                return

    def _page(self, prefix: str, token: str | None) -> tuple[list[Any], str | None]:
        # A new iterator a page: one that failed half-way could not be asked again.
        pages = self._client.list_blobs(
            name_starts_with=(self._prefix + prefix) or None, results_per_page=5_000
        ).by_page(token)
        found = list(next(pages, ()))
        return found, getattr(pages, "continuation_token", None)

    def _ref(self, blob: Any) -> ImageRef:
        return ImageRef(
            image_id(self.url, blob.name), self.url, blob.name, blob.etag.strip('"'), blob.size, blob.last_modified
        )

    def read(self, ref: ImageRef) -> bytes:
        """The blob's bytes at the listed etag, of the announced length and with the announced MD5."""
        try:
            return self._ask(lambda: self._download(ref), "read")
        except ResourceNotFoundError as error:
            raise ReadError("vanished", "It was deleted after it was listed.") from error
        except ResourceModifiedError as error:
            if not self._ask(self._client.get_blob_client(ref.name).exists, "read"):
                raise ReadError("vanished", "It was deleted after it was listed.") from error
            raise ReadError("replaced", "It was replaced after it was listed; the next run takes it up.") from error
        except _Damaged as error:
            raise ReadError("damaged_in_transit", f"It arrived damaged more than once: {error}.") from error
        except HttpResponseError as error:
            code = str(getattr(error, "error_code", None) or error.status_code)
            if code == "BlobArchived":
                raise ReadError("archived", "It lies in the archive tier and must be rehydrated first.") from error
            if error.status_code == 403:
                raise ReadError("forbidden", f"The service does not let this identity read it ({code}).") from error
            raise ReadError("unreadable", f"The service would not give it ({code}).") from error
        except AzureError as error:
            raise ReadError("timeout", "It stopped arriving half-way, more than once.") from error

    def _download(self, ref: ImageRef) -> bytes:
        stream = self._client.download_blob(
            ref.name, etag=f'"{ref.etag}"', match_condition=MatchConditions.IfNotModified, max_concurrency=1
        )
        data: bytes = stream.readall()
        if len(data) != ref.size:
            raise _Damaged(f"{len(data)} of {ref.size} bytes")
        md5 = stream.properties.content_settings.content_md5
        if md5 and hashlib.md5(data, usedforsecurity=False).digest() != bytes(md5):
            raise _Damaged("its MD5 differs")
        return data

    def _ask(self, request: Callable[[], T], what: str) -> T:
        """Runs a request, again where that may help; errors that concern the whole service become ours."""
        try:
            return Retrying(retry=retry_if_exception(_may_help), stop=_enough, wait=_pause, reraise=True)(request)
        except ClientAuthenticationError as error:
            if what == "read" and error.status_code == 403:
                raise
            raise AccessDenied(service=self.url, reason=_first_line(error)) from error
        except HttpResponseError as error:
            if error.status_code in TRANSIENT_STATUS:
                raise ServiceUnreachable(
                    service=self.url, reason=f"it answers {error.status_code} again and again"
                ) from error
            if what == "read":
                raise
            if error.status_code == 404:
                raise SourceNotFound(where=self.url, reason="there is no such container") from error
            if error.status_code == 403:
                raise AccessDenied(service=self.url, reason=_first_line(error)) from error
            raise ServiceUnreachable(service=self.url, reason=_first_line(error)) from error
        except AzureError as error:
            if what == "read" and not isinstance(error, ServiceRequestError) and self._answers():
                raise
            raise ServiceUnreachable(service=self.url, reason=_first_line(error)) from error

    def _answers(self) -> bool:
        """Whether the server says anything at all: tells one bad blob from a dead service."""
        with self._probe_turn:
            try:
                self._client.get_container_properties(connection_timeout=2, read_timeout=2)
            except HttpResponseError:
                return True
            except AzureError:
                return False
            return True


class _Damaged(AzureError):
    """A body that is not what the service announced."""


def _may_help(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, ClientAuthenticationError):
        return False
    if isinstance(error, HttpResponseError):
        return error.status_code in TRANSIENT_STATUS
    return isinstance(error, AzureError)


def _enough(state: RetryCallState) -> bool:
    """When to give up: soon on silence, later on a server that answers."""
    error = state.outcome.exception() if state.outcome else None
    busy = isinstance(error, HttpResponseError)
    elapsed = time.monotonic() - state.start_time
    return elapsed + (_hint(error) or 0.0) > (BUSY_BUDGET if busy else SILENCE_BUDGET) or state.attempt_number >= 8


def _pause(state: RetryCallState) -> float:
    """The server's own hint, or full jitter under a doubling ceiling (0.5 s to 8 s)."""
    error = state.outcome.exception() if state.outcome else None
    return _hint(error) or random.uniform(0, min(8.0, 0.5 * 2 ** (state.attempt_number - 1)))


def _hint(error: BaseException | None) -> float | None:
    """Seconds from x-ms-retry-after-ms or Retry-After, where the answer has one and it can be believed."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    for name, unit in (("x-ms-retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return min(LONGEST_HINT, max(0.0, float(headers[name]) * unit))
        except (KeyError, ValueError):
            continue
    return None


def _first_line(error: Exception) -> str:
    """An SDK's message without its XML, its URLs' queries and its advice."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text.partition("?")[0].rstrip(".")[:200]
