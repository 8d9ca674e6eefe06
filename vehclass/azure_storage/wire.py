"""Sends the SDK's GET requests over urllib3 and reads their answers whole, within bounds of bytes and of time.

The SDK's own transport goes through requests, which looks up proxies and netrc, merges sessions and cuts bodies into
pieces of 4 kB for each answer: three quarters of what a blob of 100 kB costs (docs/performance.md). Proxies and
certificate bundles are those that requests finds in the environment, looked up once.
"""

import http.client
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final

import requests
import urllib3
from azure.core.exceptions import IncompleteReadError, ServiceRequestError, ServiceResponseError
from azure.core.pipeline.transport import HttpTransport
from azure.core.rest import HttpRequest
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ProxyError, SSLError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CONNECT_SECONDS: Final = 3
READ_SECONDS: Final = 5  # without a single byte
PIECE: Final = 2**20
# How long an answer may take in all: longer than any line that a night could be done over needs, and not for ever.
LEAST_SECONDS: Final = 60.0
LEAST_SPEED: Final = 2_000  # bytes a second, after that


class BrokenOff(IncompleteReadError):
    """An answer that began and did not come to its end."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service answered; the names are those that the SDK's policies and errors ask for."""

    request: HttpRequest
    status_code: int
    reason: str
    headers: Mapping[str, str]  # whatever the case of their names
    content: bytes

    def text(self) -> str:
        """The body, as far as it is text."""
        return self.content.decode("utf-8", "replace")


class _Timed(io.RawIOBase):
    """The bytes of one answer as they arrive, headers and all; raises TimeoutError once they have taken too long."""

    def __init__(self, arriving: io.RawIOBase) -> None:
        self._arriving = arriving
        self._began, self._count = time.monotonic(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int | None:
        seconds = time.monotonic() - self._began
        if seconds > LEAST_SECONDS + self._count / LEAST_SPEED:
            raise TimeoutError(f"{self._count} bytes took {seconds:.0f} seconds")
        count = self._arriving.readinto(buffer)
        self._count += count or 0
        return count

    def close(self) -> None:
        self._arriving.close()
        super().close()


class _TimedResponse(http.client.HTTPResponse):
    """An answer whose headers and body together may take only so long: a server that drips never falls silent."""

    def __init__(self, *words: Any, **more: Any) -> None:
        super().__init__(*words, **more)
        buffered: IO[bytes] = self.fp
        assert isinstance(buffered, io.BufferedReader)
        self.fp = io.BufferedReader(_Timed(buffered.detach()))


class Wire(HttpTransport[HttpRequest, Answer]):
    """Connections to one endpoint, for `connections` threads at a time.

    Raises what requests and urllib3 raise for a proxy or a bundle of the environment that cannot be used.
    """

    def __init__(self, endpoint: str, connections: int) -> None:
        found = requests.Session().merge_environment_settings(endpoint, {}, True, None, None)
        adapter = requests.adapters.HTTPAdapter(pool_connections=1, pool_maxsize=connections)
        asked = requests.Request("GET", endpoint).prepare()
        self._pool = adapter.get_connection_with_tls_context(asked, found["verify"], found["proxies"], found["cert"])
        adapter.cert_verify(self._pool, endpoint, found["verify"], found["cert"])
        connection = self._pool.ConnectionCls
        self._pool.ConnectionCls = type(connection.__name__, (connection,), {"response_class": _TimedResponse})
        self._origin = "/".join(endpoint.split("/", 3)[:3])
        # A proxy for what is not encrypted is told the whole URL; any other way leads to the server itself.
        self._whole_urls = self._pool.proxy is not None and self._pool.scheme == "http"

    def open(self) -> None:
        """Nothing: connections are made when they are needed."""

    def close(self) -> None:
        """Closes the connections that wait for more."""
        self._pool.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(
        self,
        request: HttpRequest,
        *,
        most: int = PIECE,
        connection_timeout: float = CONNECT_SECONDS,
        read_timeout: float = READ_SECONDS,
        **_: Any,
    ) -> Answer:
        """The answer to a request without a body, of `most` bytes at most; redirects are not followed.

        Raises ServiceRequestError for a server that cannot be reached, ServiceResponseError for one that does not
        answer, and BrokenOff for an answer that does not end, or not within bounds.
        """
        try:
            response = self._pool.urlopen(
                request.method,
                request.url if self._whole_urls else request.url.removeprefix(self._origin),
                headers=dict(request.headers),
                timeout=urllib3.Timeout(connection_timeout, read_timeout),
                retries=False,
                redirect=False,
                assert_same_host=False,
                preload_content=False,
                decode_content=False,
            )
        except (NewConnectionError, ConnectTimeoutError, ProxyError, SSLError) as error:
            raise ServiceRequestError(_said(error), error=error) from error
        except HTTPError as error:
            raise ServiceResponseError(_said(error), error=error) from error
        try:
            content = _body(response, most)
        except (HTTPError, IncompleteReadError) as error:
            response.close()
            raise BrokenOff(f"The body broke off: {error}") from error
        response.release_conn()
        return Answer(request, response.status, response.reason or "", response.headers, content)


def _said(error: HTTPError) -> str:
    """What went wrong, with its kind, which says more than some messages."""
    return f"{type(error).__name__}: {error}"


def _body(response: urllib3.BaseHTTPResponse, most: int) -> bytes:
    """A body, unless it is larger than it may be, or would be once it is unpacked."""
    length = response.headers.get("Content-Length", "")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise IncompleteReadError("it is compressed, which nobody asked for")
    if length.isdecimal() and "Transfer-Encoding" not in response.headers:  # with both, the length means nothing
        if int(length) > most:
            raise IncompleteReadError(f"{length} bytes were announced where {most} are the most")
        content = response.read(max(1, int(length)))  # asked for none, it would not see that this is the end
        if len(content) != int(length):
            raise IncompleteReadError(f"{len(content)} of {length} bytes arrived")
        return content
    parts, count = list[bytes](), 0
    while part := response.read(PIECE):
        parts.append(part)
        count += len(part)
        if count > most:
            raise IncompleteReadError(f"more than {most} bytes arrived")
    return b"".join(parts)
