"""A container of Azure Blob Storage by name or URL: its client, its canonical URL, and its errors as ours.

Keyless by DefaultAzureCredential unless the settings have a connection string, a key or a SAS. The SDK's
own retries are off; ours are in patience.py.
"""

import ipaddress
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import AzureError, ClientAuthenticationError
from azure.core.pipeline.transport import RequestsTransport
from azure.storage.blob import BlobServiceClient, ContainerClient

from vehclass.azure_storage.get import Line
from vehclass.azure_storage.options import BlobOptions
from vehclass.azure_storage.patience import TRANSIENT_STATUS, code_of, patiently, status_of
from vehclass.azure_storage.wire import CONNECT_SECONDS, READ_SECONDS
from vehclass.errors import AccessDenied, ServiceUnreachable, SourceNotFound, UsageError, VehclassError

T = TypeVar("T")

# The SDK logs requests and half-finished downloads; what matters of them is in our rows and errors.
logging.getLogger("azure").setLevel(logging.CRITICAL)
logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of connections that many threads leave over

CONTAINER_NAME: Final = re.compile(r"\$root|\$web|(?=.{3,63}$)[a-z0-9](?:-?[a-z0-9])*")
ACCOUNT_NAME: Final = re.compile(r"[a-z0-9]{3,24}")


@dataclass(frozen=True, slots=True)
class Container:
    """A container and the prefix in it that was named; `url` is canonical and holds no secret."""

    client: ContainerClient
    prefix: str
    line: Line

    @property
    def url(self) -> str:
        """The container's URL, without the prefix, in the one form that rows and messages have."""
        endpoint = urlsplit(self.client.url)
        return f"{endpoint.scheme}://{(endpoint.netloc).lower()}{unquote(endpoint.path)}"

    def ask(self, request: Callable[[], T]) -> T:
        """Runs a request that concerns the whole container; its errors become ours."""
        try:
            return patiently(request)
        except AzureError as error:
            raise self.explained(error) from error
        except ValueError as error:  # the SDK on credentials that do not fit
            raise UsageError(reason=f"{self.url} cannot be asked: {first_line(error)}.") from error

    def explained(self, error: AzureError) -> VehclassError:
        """An error that concerns the whole container as ours."""
        status, reason = status_of(error), first_line(error)
        if isinstance(error, ClientAuthenticationError) or status in (401, 403):
            return AccessDenied(service=self.url, reason=reason)
        if status == 404:
            return SourceNotFound(where=self.url, reason="there is no such container")
        if status in TRANSIENT_STATUS:
            return ServiceUnreachable(service=self.url, reason=f"it answers {status} again and again")
        if status is not None and 400 <= status < 500:
            return UsageError(reason=f"{self.url} cannot be listed: {reason} ({code_of(error)}).")
        return ServiceUnreachable(service=self.url, reason=reason)


def open_container(options: BlobOptions, *, container: str, prefix: str = "", account: str | None = None) -> Container:
    """A container by name, in the given account or in that of the options. Raises UsageError."""
    if not CONTAINER_NAME.fullmatch(container):
        raise UsageError(reason=f"{container!r} is not a container's name: 3 to 63 of a-z, 0-9 and single hyphens.")
    if options.connection_string and account is None:
        try:
            service = BlobServiceClient.from_connection_string(options.connection_string)
        except ValueError as error:
            raise UsageError(reason="AZURE_STORAGE_CONNECTION_STRING is not a connection string.") from error
        endpoint, _, sas = service.url.partition("?")
        return _opened(options, endpoint, container, service.credential or sas or None, prefix)
    name = account or options.account or ""
    if not ACCOUNT_NAME.fullmatch(name):
        raise UsageError(reason=f"{name!r} is not a storage account's name: 3 to 24 of a-z and 0-9.")
    return _opened(options, f"https://{name}.blob.core.windows.net", container, None, prefix)


def open_url(options: BlobOptions, url: str) -> Container:
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
    return _opened(options, endpoint, container, parts.query or None, prefix)


def _opened(options: BlobOptions, endpoint: str, container: str, credential: Any, prefix: str) -> Container:
    client = _client(options, endpoint, container, credential)
    try:
        return Container(client, prefix, Line.of(client, options.concurrency + 4))
    except OSError as error:  # such as those of requests
        reason = f"{endpoint} cannot be reached in the way that the environment asks for: {first_line(error)}."
        raise UsageError(reason=reason) from error


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
    try:
        return ContainerClient(
            endpoint,
            container,
            credential=credential or _entra(),
            transport=RequestsTransport(connection_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS),
            retry_total=0,
            permit_redirects=False,  # credentials go to the server that was named, and to no other
        )
    except ValueError as error:
        raise UsageError(reason=f"{endpoint}/{container} cannot be used: {first_line(error)}.") from error


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


_PLAIN_WORDS: Final = {
    "Others were answered": "it answers some requests and leaves others waiting",
    "NameResolutionError": "there is no such host",
    "Could not resolve": "there is no such host",
    "Connection refused": "nobody listens there",
    "timed out": "it does not answer",
    "Connection aborted": "it closed the connection",
    "Connection reset": "it closed the connection",
    "Empty reply": "it closed the connection",
    "DefaultAzureCredential failed": "nobody is signed in to Azure here",
}


def first_line(error: Exception) -> str:
    """An SDK's message without its XML, its URLs' queries (a SAS is one) and its advice."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    for sign, meaning in _PLAIN_WORDS.items():
        if sign in text:
            return meaning
    return re.sub(r"\?\S*", "", text).rstrip(".")[:200]
