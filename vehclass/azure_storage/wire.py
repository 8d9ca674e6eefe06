"""Sends the SDK's GET requests with libcurl and reads their answers whole, within bounds of bytes and of time.

The SDK's own transport goes through requests and urllib3, whose work in Python is most of what a blob of 100 kB costs
(docs/performance.md); libcurl does it in C, while other threads have Python to themselves. Proxies and bundles of
certificates are those that requests, and so the rest of the SDK, finds in the environment, looked up once.
"""

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pycurl
import requests
from azure.core.exceptions import IncompleteReadError, ServiceRequestError, ServiceResponseError
from azure.core.pipeline.transport import HttpTransport
from azure.core.rest import HttpRequest
from azure.core.utils import case_insensitive_dict

CONNECT_SECONDS: Final = 5  # for the name, the connection, a proxy's tunnel and TLS together
READ_SECONDS: Final = 5  # without a single byte of a body
PIECE: Final = 2**18  # the most that curl reads at a time
# How long an answer may take in all: longer than any line that a night could be done over needs, and not for ever.
LEAST_SECONDS: Final = 60.0
LEAST_SPEED: Final = 2_000  # bytes a second, after that
QUICK_EXIT: Final = 322  # CURLOPT_QUICK_EXIT, which pycurl has no name for

TOO_LARGE: Final = "it is larger than it may be"


class BrokenOff(IncompleteReadError):
    """An answer that began and did not come to its end."""


class Overtaken(ServiceResponseError):
    """Nothing came for too long while other requests were answered: a service, or a way to it, with more to do than it can."""


@dataclass(slots=True)
class _Pulse:
    """When a body's byte or a whole answer last came from a service, whatever it belonged to, by the monotonic clock."""

    at: float = -math.inf


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

    def __init__(self, most: int, silence: float, pulse: _Pulse) -> None:
        self.lines: list[bytes] = []  # of the headers, those of a proxy and trailers among them
        self.parts: list[bytes] = []  # of the body
        self.given_up = ""  # why, if it was
        self.fell_silent = False
        self._most, self._silence, self._pulse = most, silence, pulse
        self._began = self._heard = time.monotonic()
        self._count = 0

    @property
    def overtaken(self) -> bool:
        """Whether others still got something in the later half of this silence: the service itself did not fall silent."""
        return self._pulse.at - self._heard > self._silence / 2

    def watch(self, _length: int, count: int, *_: int) -> bool:
        """Told by curl, about once a second and more often, how much of the body is here; True ends it.

        A server that drips never falls silent, and curl's own idea of silence is an average over some seconds.
        """
        now = time.monotonic()
        if count != self._count:
            self._count, self._heard, self._pulse.at = count, now, now
        if count > self._most:
            self.given_up = TOO_LARGE
        elif count and now - self._heard > self._silence:
            self.fell_silent = True
            self.given_up = f"it timed out: after {count} bytes nothing came for {self._silence:g} seconds"
        elif now - self._began > LEAST_SECONDS + count / LEAST_SPEED:
            self.given_up = f"it timed out: {count} bytes took {now - self._began:.0f} seconds"
        return bool(self.given_up)

    def headers(self) -> list[str]:
        """The status line and the headers of the answer itself, as far as they came whole.

        Before them may be those of a proxy that made a tunnel and of any 1xx, and after them trailers; an empty line ends
        each but the trailers.
        """
        blocks: list[list[str]] = [[]]
        for line in self.lines:
            text = line.decode("latin-1").strip("\r\n")
            if text:
                blocks[-1].append(text)
            else:
                blocks.append([])
        return blocks[-2] if len(blocks) > 1 else []


class Wire(HttpTransport[HttpRequest, Answer]):
    """Connections to one endpoint, one for each request at a time; `connections` of them at most are kept for the next.

    Raises OSError (as those of requests are) for a proxy or a bundle of the environment that cannot be used.
    """

    def __init__(self, endpoint: str, connections: int) -> None:
        self._options = {**_SETTLED, **_way_to(endpoint)}
        self._connections = connections
        self._idle: list[pycurl.Curl] = []  # a handle of curl's keeps its connection
        self._pulse = _Pulse()

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
        answer in time, Overtaken where it answers others meanwhile, BrokenOff for an answer that does not end, or not
        within bounds, and ValueError for what no request can say.
        """
        lines = [f"{name}: {value}" if value else f"{name};" for name, value in request.headers.items()]
        if not all(line.isascii() and line.isprintable() for line in (request.url, *lines)):
            raise ValueError("a request's address or header has characters that cannot be sent")
        arriving = _Arriving(most, read_timeout, self._pulse)
        curl = self._taken()
        try:
            curl.setopt(pycurl.URL, request.url)
            curl.setopt(pycurl.HTTPHEADER, lines)
            curl.setopt(pycurl.MAXFILESIZE_LARGE, most)
            curl.setopt(pycurl.CONNECTTIMEOUT_MS, int(1000 * connection_timeout))
            curl.setopt(pycurl.LOW_SPEED_TIME, math.ceil(read_timeout))  # as long as nothing of a body came
            curl.setopt(pycurl.HEADERFUNCTION, arriving.lines.append)
            curl.setopt(pycurl.WRITEFUNCTION, arriving.parts.append)
            curl.setopt(pycurl.XFERINFOFUNCTION, arriving.watch)
            curl.perform()
            self._pulse.at = time.monotonic()
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
    QUICK_EXIT: 1,  # or closing a handle would wait for a name server that does not answer
}


_CERTIFICATES: Final = (pycurl.CAINFO, pycurl.CAPATH, pycurl.PROXY_CAINFO, pycurl.PROXY_CAPATH)


def _way_to(endpoint: str) -> dict[int, Any]:
    """Curl's options for the proxy and the certificates that requests takes for an endpoint."""
    found = requests.Session().merge_environment_settings(endpoint, {}, True, None, None)
    # What is not set, curl would take from the environment, and certificates from the system, by rules of its own.
    way: dict[int, Any] = {**dict.fromkeys(_CERTIFICATES), pycurl.PROXY: "", pycurl.NOPROXY: ""}
    if proxy := requests.utils.select_proxy(endpoint, found["proxies"]):
        way |= _through(proxy)
    if endpoint.startswith("https:") or way[pycurl.PROXY].startswith("https:"):
        bundle = Path(requests.utils.DEFAULT_CA_BUNDLE_PATH if found["verify"] is True else found["verify"])
        if not bundle.exists():
            raise OSError(f"there is no bundle of certificates at {bundle}")
        kinds = (pycurl.CAPATH, pycurl.PROXY_CAPATH) if bundle.is_dir() else (pycurl.CAINFO, pycurl.PROXY_CAINFO)
        way |= dict.fromkeys(kinds, os.fsencode(bundle))
    return way


def _through(proxy: str) -> dict[int, Any]:
    """Curl's options for a proxy as the environment has it, whose password then is in no message of curl's."""
    try:
        whole = requests.utils.prepend_scheme_if_needed(proxy, "http")
        parts = urlsplit(whole)
        usual = {"http": 80, "https": 443}[parts.scheme]
        port = usual if parts.port is None else parts.port
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    except (KeyError, ValueError):  # which say what they could not read, be it a password
        host = None
    if not host:
        raise requests.exceptions.InvalidProxyURL("its proxy is not written as http://HOST:PORT")
    name, password = requests.utils.get_auth_from_url(whole)
    signing_in = {pycurl.PROXYUSERNAME: name.encode(), pycurl.PROXYPASSWORD: password.encode()} if name else {}
    return {pycurl.PROXY: f"{parts.scheme}://{host}:{port}", **signing_in}


def _answer(request: HttpRequest, status: int, arriving: _Arriving) -> Answer:
    """The answer that arrived; raises BrokenOff for a body that came compressed."""
    first, *fields = arriving.headers() or [""]
    found: dict[str, str] = {}
    for field in fields:
        name, _, value = field.partition(":")
        name, value = name.lower(), value.strip()
        found[name] = f"{found[name]}, {value}" if name in found else value
    headers = case_insensitive_dict(found)
    if headers.get("Content-Encoding", "identity") != "identity":
        raise BrokenOff("The body came compressed, which nobody asked for.")
    return Answer(request, status, " ".join(first.split(" ")[2:]), headers, b"".join(arriving.parts))


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


def _told(error: pycurl.error, curl: pycurl.Curl, arriving: _Arriving) -> Exception:
    """What went wrong, by how far the request came."""
    code, said = error.args if len(error.args) == 2 else (pycurl.E_FAILED_INIT, str(error))
    # Taking a piece of the answer fails for want of memory only.
    if code in (pycurl.E_OUT_OF_MEMORY, pycurl.E_WRITE_ERROR):
        return MemoryError(said)
    if code == pycurl.E_OPERATION_TIMEDOUT:
        arriving.fell_silent = True
        said = f"it timed out: {said}"
    elif code == pycurl.E_FILESIZE_EXCEEDED:
        said = TOO_LARGE
    elif code == pycurl.E_COULDNT_CONNECT and (number := curl.getinfo(pycurl.OS_ERRNO)):
        said = f"{said} ({os.strerror(number)})"
    said = arriving.given_up or said
    if arriving.fell_silent and arriving.overtaken:
        return Overtaken(f"Others were answered meanwhile: {said}", error=error)
    if code in _UNREACHED:
        return ServiceRequestError(f"There is no way to the server: {said}", error=error)
    # A tunnel's code is not the answer's, and 100 is not its last.
    if curl.getinfo(pycurl.RESPONSE_CODE) < 200 or arriving.lines[-1].strip():
        return ServiceResponseError(f"There was no answer: {said}", error=error)
    return BrokenOff(f"The body broke off: {said}", error=error)
