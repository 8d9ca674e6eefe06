"""Sends the SDK's GET requests with libcurl and reads their answers whole, within bounds of bytes and of time.

The SDK's own transport goes through requests and urllib3, whose work in Python is most of what a blob of 100 kB costs
(docs/performance.md); libcurl does it in C, while other threads have Python to themselves. Proxies and bundles of
certificates are those that requests, and so the rest of the SDK, finds in the environment, looked up once.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pycurl
import requests
from azure.core.exceptions import AzureError, IncompleteReadError, ServiceRequestError, ServiceResponseError
from azure.core.pipeline.transport import HttpTransport
from azure.core.rest import HttpRequest
from azure.core.utils import case_insensitive_dict
from urllib3.util import parse_url

CONNECT_SECONDS: Final = 3
READ_SECONDS: Final = 5  # without a single byte of a body
PIECE: Final = 2**18  # the most that curl reads at a time
# How long an answer may take in all: longer than any line that a night could be done over needs, and not for ever.
LEAST_SECONDS: Final = 60.0
LEAST_SPEED: Final = 2_000  # bytes a second, after that
END_OF_HEADERS: Final = b"\r\n"


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


class _Arriving:
    """One answer as it arrives: what came of it, and whether it is still worth waiting for."""

    def __init__(self, silence: float) -> None:
        self.lines: list[bytes] = []  # of the headers
        self.parts: list[bytes] = []  # of the body
        self.too_slow = ""  # why it was given up, if it was
        self._silence = silence
        self._began = self._heard = time.monotonic()
        self._count = 0

    def watch(self, _length: int, count: int, *_: int) -> bool:
        """Told by curl, about once a second and more often, how much of the body is here; True ends it.

        A server that drips never falls silent, and curl's own idea of silence is an average over some seconds.
        """
        now = time.monotonic()
        if count != self._count:
            self._count, self._heard = count, now
        if count and now - self._heard > self._silence:
            self.too_slow = f"it timed out: after {count} bytes nothing came for {self._silence:g} seconds"
        elif now - self._began > LEAST_SECONDS + count / LEAST_SPEED:
            self.too_slow = f"it timed out: {count} bytes took {now - self._began:.0f} seconds"
        return bool(self.too_slow)


class Wire(HttpTransport[HttpRequest, Answer]):
    """Connections to one endpoint, each kept for the next request, `connections` of them at most.

    Raises OSError (as those of requests are) for a proxy or a bundle of the environment that cannot be used.
    """

    def __init__(self, endpoint: str, connections: int) -> None:
        self._options = {**_SETTLED, **_way_to(endpoint)}
        self._connections = connections
        self._idle: list[pycurl.Curl] = []  # a handle of curl's keeps its connection

    def open(self) -> None:
        """Nothing: connections are made when they are needed."""

    def close(self) -> None:
        """Closes the connections that wait for more."""
        while self._idle:
            self._idle.pop().close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(
        self,
        request: HttpRequest,
        *,
        most: int = 2**20,
        connection_timeout: float = CONNECT_SECONDS,
        read_timeout: float = READ_SECONDS,
        **_: Any,
    ) -> Answer:
        """The answer to a GET, with a body of `most` bytes at most; redirects are not followed.

        Raises ServiceRequestError for a server that cannot be reached, ServiceResponseError for one that does not
        answer, and BrokenOff for an answer that does not end, or not within bounds.
        """
        lines = [f"{name}: {value}" for name, value in request.headers.items()]
        if not all(line.isascii() and line.isprintable() for line in (request.url, *lines)):
            raise ServiceRequestError("A name or a header of this request cannot be sent.")
        arriving = _Arriving(read_timeout)
        curl = self._taken()
        try:
            curl.setopt(pycurl.URL, request.url)
            curl.setopt(pycurl.HTTPHEADER, lines)
            curl.setopt(pycurl.MAXFILESIZE_LARGE, most)
            curl.setopt(pycurl.CONNECTTIMEOUT_MS, int(1000 * connection_timeout))
            curl.setopt(pycurl.LOW_SPEED_TIME, int(read_timeout))  # as long as nothing of a body came
            curl.setopt(pycurl.HEADERFUNCTION, arriving.lines.append)
            curl.setopt(pycurl.WRITEFUNCTION, arriving.parts.append)
            curl.setopt(pycurl.XFERINFOFUNCTION, arriving.watch)
            curl.perform()
            return _answer(request, curl.getinfo(pycurl.RESPONSE_CODE), arriving)
        except pycurl.error as error:
            raise _told(error, curl, arriving) from error
        finally:
            arriving.parts.clear()  # which the handle would keep until its next request
            if len(self._idle) < self._connections:
                self._idle.append(curl)
            else:
                curl.close()

    def _taken(self) -> pycurl.Curl:
        """A handle that nobody else has, one with a connection if there is one."""
        try:
            return self._idle.pop()
        except IndexError:
            curl = pycurl.Curl()
            for option, value in self._options.items():
                curl.setopt(option, value)
            return curl


_SETTLED: Final[Mapping[int, Any]] = {
    pycurl.PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
    pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
    pycurl.SSLVERSION: pycurl.SSLVERSION_TLSv1_2,  # or later
    pycurl.PATH_AS_IS: 1,  # "a/../b.jpg" is a blob's name like any other
    pycurl.NOSIGNAL: 1,  # there are threads
    pycurl.NOPROGRESS: 0,
    pycurl.BUFFERSIZE: PIECE,
    pycurl.LOW_SPEED_LIMIT: 1,
}


def _way_to(endpoint: str) -> dict[int, Any]:
    """Curl's options for the proxy and the certificates that requests takes for an endpoint."""
    found = requests.Session().merge_environment_settings(endpoint, {}, True, None, None)
    proxy = requests.utils.select_proxy(endpoint, found["proxies"]) or ""
    if proxy:
        parts = parse_url(proxy)
        if parts.scheme not in ("http", "https") or not parts.host:
            raise requests.exceptions.InvalidProxyURL("its proxy is not written as http://HOST:PORT")
    way: dict[int, Any] = {pycurl.PROXY: proxy, pycurl.NOPROXY: ""}  # or curl would look at the environment itself
    if endpoint.startswith("https:"):
        bundle = Path(requests.utils.DEFAULT_CA_BUNDLE_PATH if found["verify"] is True else found["verify"])
        if not bundle.exists():
            raise OSError(f"there is no bundle of certificates at {bundle}")
        kinds = (pycurl.CAPATH, pycurl.PROXY_CAPATH) if bundle.is_dir() else (pycurl.CAINFO, pycurl.PROXY_CAINFO)
        way |= dict.fromkeys(kinds, str(bundle))
    return way


def _answer(request: HttpRequest, status: int, arriving: _Arriving) -> Answer:
    """The answer that arrived; raises BrokenOff for a body that came compressed."""
    lines = [line.decode("latin-1").rstrip("\r\n") for line in arriving.lines]
    # After what a proxy said when it made a tunnel, and after any 1xx.
    begins = max((number for number, line in enumerate(lines) if line.startswith("HTTP/")), default=0)
    fields = [line.partition(":") for line in lines[begins + 1 :] if line]
    headers = case_insensitive_dict({name: value.strip() for name, _, value in fields})
    if headers.get("Content-Encoding", "identity") != "identity":
        raise BrokenOff("The body came compressed, which nobody asked for.")
    reason = " ".join(lines[begins].split(" ")[2:]) if lines else ""
    return Answer(request, status, reason, headers, b"".join(arriving.parts))


_UNREACHED: Final = frozenset(
    {
        pycurl.E_URL_MALFORMAT,
        pycurl.E_COULDNT_RESOLVE_PROXY,
        pycurl.E_COULDNT_RESOLVE_HOST,
        pycurl.E_COULDNT_CONNECT,
        pycurl.E_SSL_CONNECT_ERROR,
        pycurl.E_SSL_CACERT_BADFILE,
        pycurl.E_PEER_FAILED_VERIFICATION,
    }
)


def _told(error: pycurl.error, curl: pycurl.Curl, arriving: _Arriving) -> AzureError:
    """What went wrong, by how far the request came."""
    code, said = error.args
    if code == pycurl.E_OPERATION_TIMEDOUT:
        said = f"it timed out: {said}"
    elif code == pycurl.E_FILESIZE_EXCEEDED:
        said = "it is larger than it may be"
    elif code == pycurl.E_COULDNT_CONNECT and (number := curl.getinfo(pycurl.OS_ERRNO)):
        said = f"{said} ({os.strerror(number)})"
    said = arriving.too_slow or said
    if code in _UNREACHED:
        return ServiceRequestError(f"There is no way to the server: {said}", error=error)
    # Other headers than the server's may have come: those of a proxy that made a tunnel have no such code.
    if not curl.getinfo(pycurl.RESPONSE_CODE) or arriving.lines[-1:] != [END_OF_HEADERS]:
        return ServiceResponseError(f"There was no answer: {said}", error=error)
    return BrokenOff(f"The body broke off: {said}", error=error)
