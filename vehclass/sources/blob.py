"""An Azure Blob container as a source of photos: listed page by page, read at the listed etag, checked.

Keyless by DefaultAzureCredential unless the settings have a connection string, a key or a SAS. The SDK's
own retries are off; ours are in patience.py.
"""

import hashlib
import ipaddress
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

import requests
from azure.core import MatchConditions
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    ResourceModifiedError,
)
from azure.core.pipeline.transport import RequestsTransport
from azure.storage.blob import BlobServiceClient, ContainerClient

from vehclass.errors import AccessDenied, ReadError, ServiceUnreachable, SourceNotFound, UsageError, VehclassError
from vehclass.records import ImageRef, image_id
from vehclass.sources.blob_options import BlobOptions
from vehclass.sources.patience import TRANSIENT_STATUS, code_of, patiently, status_of

T = TypeVar("T")

# The SDK logs requests and half-finished downloads; what matters of them is in our rows and errors.
logging.getLogger("azure").setLevel(logging.CRITICAL)

CONNECT_SECONDS: Final = 3
READ_SECONDS: Final = 5  # without a single byte
LOOK_LASTS: Final = 5.0  # for so long one look at the service counts for all readers
CONTAINER_NAME: Final = re.compile(r"\$root|\$web|(?=.{3,63}$)[a-z0-9](?:-?[a-z0-9])*")
ACCOUNT_NAME: Final = re.compile(r"[a-z0-9]{3,24}")


def open_container(
    options: BlobOptions, *, container: str, prefix: str = "", account: str | None = None
) -> "BlobSource":
    """A container by name, in the given account or in that of the options. Raises UsageError."""
    if not CONTAINER_NAME.fullmatch(container):
        raise UsageError(reason=f"{container!r} is not a container's name: 3 to 63 of a-z, 0-9 and single hyphens.")
    if options.connection_string and account is None:
        try:
            service = BlobServiceClient.from_connection_string(options.connection_string)
        except ValueError as error:
            raise UsageError(reason="AZURE_STORAGE_CONNECTION_STRING is not a connection string.") from error
        endpoint, _, sas = service.url.partition("?")
        return BlobSource(_client(options, endpoint, container, service.credential or sas or None), prefix, options)
    name = account or options.account or ""
    if not ACCOUNT_NAME.fullmatch(name):
        raise UsageError(reason=f"{name!r} is not a storage account's name: 3 to 24 of a-z and 0-9.")
    return BlobSource(_client(options, f"https://{name}.blob.core.windows.net", container, None), prefix, options)


def open_url(options: BlobOptions, url: str) -> "BlobSource":
    """A container by URL: https://ACCOUNT.blob.../CONTAINER/PREFIX, or http://HOST:PORT/ACCOUNT/CONTAINER/PREFIX.

    The second form is an emulator's: a host that is an address, or a name without a dot. Raises UsageError.
    """
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError as error:
        raise UsageError(reason="The container's URL cannot be read.") from error
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    endpoint = f"{parts.scheme}://{host}{port}"
    path = unquote(parts.path).removeprefix("/")
    if _is_emulator(parts.hostname):
        account, _, path = path.partition("/")
        endpoint += f"/{account}"
    container, _, prefix = path.partition("/")
    if not host or not CONTAINER_NAME.fullmatch(container):
        raise UsageError(
            reason=f"The URL {endpoint}/... names no container; write https://ACCOUNT.blob.core.windows.net/CONTAINER."
        )
    return BlobSource(_client(options, endpoint, container, parts.query or None), prefix, options)


def _client(options: BlobOptions, endpoint: str, container: str, credential: Any) -> ContainerClient:
    parts = urlsplit(endpoint)
    account = parts.path.strip("/") or (parts.hostname or "").partition(".")[0]
    if credential is None and options.account_key:
        credential = AzureNamedKeyCredential(account, options.account_key)
    credential = credential or options.sas_token
    if parts.scheme != "https":
        if not options.allow_http and not _is_loopback(parts.hostname):
            raise UsageError(reason=f"{endpoint} is not encrypted. Use https, or allow it with VEHCLASS_ALLOW_HTTP=1.")
        if credential is None:
            raise UsageError(
                reason=f"{endpoint} is not encrypted, so Entra ID cannot sign in there. Set a key or a SAS."
            )
    session = requests.Session()
    adapter = requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=options.concurrency + 4)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    try:
        return ContainerClient(
            endpoint,
            container,
            credential=credential or _entra(),
            transport=RequestsTransport(
                session=session, session_owner=False, connection_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS
            ),
            retry_total=0,
            permit_redirects=False,  # credentials go to the server that was named, and to no other
        )
    except ValueError as error:
        raise UsageError(reason=f"{endpoint}/{container} cannot be used: {_first_line(error)}.") from error


def _entra() -> Any:
    from azure.identity import DefaultAzureCredential

    return DefaultAzureCredential(exclude_interactive_browser_credential=True)


def _is_emulator(host: str | None) -> bool:
    return _is_address(host) or "." not in (host or ".")


def _is_address(host: str | None) -> bool:
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
        self._look_turn = threading.Lock()
        # When the service was last tried, and what was wrong with it.
        self._look: tuple[float, VehclassError | None] | None = None

    def check(self) -> None:
        """Asks for one name: raises SourceNotFound, AccessDenied, UsageError or ServiceUnreachable."""
        self._ask(self._one_name)

    def _one_name(self) -> None:
        next(self._client.list_blobs(results_per_page=1).by_page(), None)

    def pages(self, prefix: str = "") -> Iterator[list[ImageRef]]:
        """Every blob under a prefix, a page of the service's at a time."""
        token: str | None = None
        while True:
            found, token = self._ask(partial(self._page, prefix, token))
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
            return patiently(partial(self._download, ref))
        except ResourceModifiedError as error:
            # Some services say so of a blob that is gone, too.
            if self._is_there(ref):
                raise ReadError("replaced", "It was replaced after it was listed; the next run takes it up.") from error
            raise ReadError("vanished", "It was deleted after it was listed.") from error
        except _Damaged as error:
            raise ReadError("damaged_in_transit", f"It arrived damaged more than once: {error}.") from error
        except AzureError as error:
            code = code_of(error)
            if code == "BlobNotFound":
                raise ReadError("vanished", "It was deleted after it was listed.") from error
            if code == "BlobArchived":
                raise ReadError("archived", "It lies in the archive tier and must be rehydrated first.") from error
            problem = self._problem()
            if problem is not None:  # not this blob is to blame
                raise problem from error
            if status_of(error) is None:
                raise ReadError("timeout", "It stopped arriving half-way, more than once.") from error
            if status_of(error) == 403:
                raise ReadError("forbidden", f"The service does not let this identity read it ({code}).") from error
            raise ReadError("unreadable", f"The service would not give it ({code}).") from error

    def _is_there(self, ref: ImageRef) -> bool:
        try:
            return bool(patiently(self._client.get_blob_client(ref.name).exists))
        except AzureError:
            return True

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

    def _ask(self, request: Callable[[], T]) -> T:
        """Runs a request that concerns the whole container; its errors become ours."""
        try:
            return patiently(request)
        except AzureError as error:
            raise self._explained(error) from error
        except ValueError as error:  # the SDK on credentials that do not fit
            raise UsageError(reason=f"{self.url} cannot be asked: {_first_line(error)}.") from error

    def _explained(self, error: AzureError) -> VehclassError:
        """An error that concerns the whole container as ours."""
        status, reason = status_of(error), _first_line(error)
        if isinstance(error, ClientAuthenticationError) or status in (401, 403):
            return AccessDenied(service=self.url, reason=reason)
        if status == 404:
            return SourceNotFound(where=self.url, reason="there is no such container")
        if status in TRANSIENT_STATUS:
            return ServiceUnreachable(service=self.url, reason=f"it answers {status} again and again")
        if status is not None and 400 <= status < 500:
            return UsageError(reason=f"{self.url} cannot be listed: {reason} ({code_of(error)}).")
        return ServiceUnreachable(service=self.url, reason=reason)

    def _problem(self) -> VehclassError | None:
        """What is wrong with the container as a whole, if anything: tells one bad blob from a dead service.

        Asked once for all readers that wonder at the same time.
        """
        with self._look_turn:
            if self._look is None or time.monotonic() - self._look[0] > LOOK_LASTS:
                problem: VehclassError | None = None
                try:
                    next(
                        self._client.list_blobs(results_per_page=1, connection_timeout=2, read_timeout=2).by_page(),
                        None,
                    )
                except AzureError as error:
                    problem = self._explained(error)
                self._look = (time.monotonic(), problem)
            return self._look[1]


class _Damaged(AzureError):
    """A body that is not what the service announced."""


_PLAIN_WORDS: Final = {
    "NameResolutionError": "there is no such host",
    "Connection refused": "nobody listens there",
    "timed out": "it does not answer",
    "Connection aborted": "it closed the connection",
    "DefaultAzureCredential failed": "nobody is signed in to Azure here",
}


def _first_line(error: Exception) -> str:
    """An SDK's message without its XML, its URLs' queries (a SAS is one) and its advice."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    for sign, meaning in _PLAIN_WORDS.items():
        if sign in text:
            return meaning
    return re.sub(r"\?\S*", "", text).rstrip(".")[:200]
