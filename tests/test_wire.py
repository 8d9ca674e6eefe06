"""GET over the wire: answers whole or none, within bounds of bytes and time, through the proxy that the environment names."""

import base64
import gc
import shutil
import socket
import threading
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import certifi
import pycurl
import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError, ServiceRequestError, ServiceResponseError

from tests.conftest import free_port
from vehclass.azure_storage import containers, wire
from vehclass.azure_storage.containers import open_url
from vehclass.azure_storage.get import get, list_page
from vehclass.azure_storage.options import BlobOptions
from vehclass.azure_storage.wire import Answer, BrokenOff, Overtaken
from vehclass.errors import UsageError

KEY = base64.b64encode(b"k" * 64).decode()
BODY = b"jpeg" * 30_000
Talk = Callable[[socket.socket, list[str]], None]  # what a server says on a connection to a request's lines


class Server:
    """A server that says what a test has it say, request by request; `asked` has the lines of each."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.asked: list[list[str]] = []
        self.connections = 0

    @contextmanager
    def running(self) -> Iterator["Server"]:
        threading.Thread(target=self._accept, daemon=True).start()
        yield self
        self._listening.shutdown(socket.SHUT_RDWR)  # which wakes whoever accepts
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as reader:
            try:
                while lines := [line.decode().strip() for line in iter(reader.readline, b"\r\n") if line]:
                    self.asked.append(lines)
                    self._talk(connection, lines)
            except OSError:  # the client has had enough
                return


def whole(connection: socket.socket, lines: list[str]) -> None:
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\nETag: "1"\r\n\r\n%s' % (len(BODY), BODY))


def page(blobs: int) -> bytes:
    """A page of a listing as the service writes it."""
    facts = {
        "Creation-Time": "Tue, 10 Nov 2026 10:00:00 GMT",
        "Last-Modified": "Tue, 10 Nov 2026 10:00:00 GMT",
        "Etag": "0x8DD0000000000",
        "Content-Length": "100000",
        "Content-Type": "image/jpeg",
        "Content-Encoding": "",
        "Content-MD5": "1B2M2Y8AsgTpgAmY7PhCfg==",
        "BlobType": "BlockBlob",
        "AccessTier": "Hot",
        "LeaseState": "available",
    }
    properties = "".join(f"<{name}>{value}</{name}>" for name, value in facts.items())
    listed = "".join(
        f"<Blob><Name>{n:08d}.jpg</Name><Properties>{properties}</Properties></Blob>" for n in range(blobs)
    )
    return f"<EnumerationResults><Blobs>{listed}</Blobs><NextMarker>more</NextMarker></EnumerationResults>".encode()


def test_a_page_of_a_listing_takes_little_more_memory_than_its_bytes() -> None:
    """Its XML as a tree would take six times as much, beside the photos of a night."""
    body = page(5_000)

    def answer(connection: socket.socket, lines: list[str]) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    with Server(answer).running() as server:
        line = open_url(BlobOptions(account_key=KEY), f"http://127.0.0.1:{server.port}/account/container").line
        list_page(line, "", "", 5_000)  # what is loaded once
        tracemalloc.start()
        found, following = list_page(line, "", "", 5_000)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (len(found), found[-1].name, found[-1].size, following) == (5_000, "00004999.jpg", 100_000, "more")
    assert peak < 4 * len(body), (peak, len(body))


def ask(url: str, most: int = 10**6) -> Answer:
    return get(open_url(BlobOptions(account_key=KEY, allow_http=True), url).line, "a/b.jpg", {}, {}, most)


def test_an_answer_comes_whole_and_its_connection_serves_the_next() -> None:
    with Server(whole).running() as server:
        line = open_url(BlobOptions(account_key=KEY), f"http://127.0.0.1:{server.port}/account/container").line
        for _ in range(3):
            answer = get(line, "a/b.jpg", {}, {"If-Match": '"1"'}, len(BODY))
            assert answer.content == BODY
            assert answer.headers["etag"] == '"1"'
    assert server.connections == 1
    first = server.asked[0]
    assert first[0] == "GET /account/container/a/b.jpg HTTP/1.1"
    assert any(line.startswith("Authorization: SharedKey account:") for line in first)
    assert "Accept-Encoding: identity" in first


@pytest.mark.parametrize(
    ("sent", "content"),
    [
        (b"Content-Length: 0\r\n\r\n", b""),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nphoto\r\n3\r\n of\r\n0\r\n\r\n", b"photo of"),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nphoto\r\n3\r\n of\r\n6\r\n a car\r\n0\r\n\r\n", b"photo of a car"),
    ],
)
def test_a_body_of_any_kind_leaves_its_connection_ready(sent: bytes, content: bytes) -> None:
    with Server(lambda connection, lines: connection.sendall(b"HTTP/1.1 200 OK\r\n" + sent)).running() as server:
        line = open_url(BlobOptions(account_key=KEY), f"http://127.0.0.1:{server.port}/account/container").line
        assert [get(line, "a/b.jpg", {}, {}, 100).content for _ in range(3)] == [content] * 3
    assert server.connections == 1


@pytest.mark.parametrize(
    ("first", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", BrokenOff),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", ServiceResponseError),
    ],
    ids=["body", "headers"],
)
def test_what_drips_is_not_waited_for(first: bytes, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LEAST_SECONDS", 0.5)

    def drip(connection: socket.socket, lines: list[str]) -> None:
        connection.sendall(first)
        for _ in range(1000):
            connection.sendall(b"x")
            time.sleep(0.02)

    began = time.monotonic()
    with Server(drip).running() as server, pytest.raises(error, match="timed out"):
        ask(f"http://127.0.0.1:{server.port}/account/container")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("code", ["HTTP/1.1 200 OK", "HTTP/1.1 100 Continue"])
def test_headers_that_drip_are_silence(code: str) -> None:
    def drip(connection: socket.socket, lines: list[str]) -> None:
        connection.sendall(f"{code}\r\nX-Long: ".encode())
        for _ in range(100):
            connection.sendall(b"x")
            time.sleep(0.1)

    began = time.monotonic()
    with Server(drip).running() as server, pytest.raises(ServiceResponseError, match="timed out"):
        line = open_url(BlobOptions(account_key=KEY), f"http://127.0.0.1:{server.port}/account/container").line
        get(line, "a/b.jpg", {}, {}, 10**6, read_timeout=1)
    assert time.monotonic() - began < 4


def test_an_answer_after_other_headers_and_before_trailers_is_told_by_its_own() -> None:
    said = (
        b"HTTP/1.1 103 Early Hints\r\nContent-Encoding: gzip\r\n\r\nHTTP/1.1 200 Fine so far\r\nVary: a\r\nvary: b\r\n"
    )
    chunks = b"Transfer-Encoding: chunked\r\n\r\n5\r\nphoto\r\n0\r\nHTTP/x: y\r\nContent-Encoding: gzip\r\n\r\n"
    with Server(lambda connection, lines: connection.sendall(said + chunks)).running() as server:
        answer = ask(f"http://127.0.0.1:{server.port}/account/container")
    assert (answer.status_code, answer.reason, answer.content) == (200, "Fine so far", b"photo")
    assert dict(answer.headers) == {"vary": "a, b", "transfer-encoding": "chunked"}


def test_what_came_compressed_is_no_photo() -> None:
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Encoding: gzip\r\n\r\nphoto"
    with Server(lambda connection, lines: connection.sendall(said)).running() as server:
        with pytest.raises(BrokenOff, match="compressed"):
            ask(f"http://127.0.0.1:{server.port}/account/container")


def test_what_falls_silent_half_way_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By curl's own measure, an average over some seconds, it would be noticed after twice as long and more."""

    def half(connection: socket.socket, lines: list[str]) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(50_000))
        time.sleep(20)

    began = time.monotonic()
    with Server(half).running() as server, pytest.raises(BrokenOff, match="after 50000 bytes nothing came for 2 sec"):
        line = open_url(BlobOptions(account_key=KEY), f"http://127.0.0.1:{server.port}/account/container").line
        get(line, "a/b.jpg", {}, {}, 10**6, read_timeout=2)
    assert 2 <= time.monotonic() - began < 4


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(50_000)])
def test_silence_while_others_are_answered_is_told_from_that_of_a_service(said: bytes) -> None:
    def one_of_two(connection: socket.socket, lines: list[str]) -> None:
        if "late.jpg" in lines[0]:
            connection.sendall(said)
            time.sleep(10)
        else:
            whole(connection, lines)

    with Server(one_of_two).running() as server, ThreadPoolExecutor(1) as others:
        line = open_url(BlobOptions(account_key=KEY), f"http://127.0.0.1:{server.port}/account/container").line
        late = others.submit(get, line, "late.jpg", {}, {}, 10**6, read_timeout=3)
        time.sleep(2.25)
        get(line, "b.jpg", {}, {}, len(BODY))
        with pytest.raises(Overtaken, match="Others were answered meanwhile: it timed out"):
            late.result()


def test_a_name_goes_as_it_is() -> None:
    with Server(whole).running() as server:
        line = open_url(BlobOptions(account_key=KEY), f"http://127.0.0.1:{server.port}/account/container").line
        get(line, "../a/./b c?.jpg", {}, {}, len(BODY))
        with pytest.raises(ValueError, match="cannot be sent"):
            get(line, "b.jpg", {}, {"If-Match": '"1"\r\nX-More: 1'}, len(BODY))
        sas = open_url(BlobOptions(sas_token="sp=r l&sig=a%2Bb\u00fc"), line.url).line
        get(sas, "b.jpg", {}, {"x-empty": ""}, len(BODY))
    first, second = server.asked
    assert first[0] == "GET /account/container/../a/./b%20c%3F.jpg HTTP/1.1"
    assert second[0] == "GET /account/container/b.jpg?sp=r%20l&sig=a%2Bb%C3%BC HTTP/1.1"
    assert "x-empty:" in second


def test_what_was_read_is_not_kept_by_what_reads_next() -> None:
    """A connection that waits must not hold the last photo: at 64 of them that would be 64 photos."""
    with Server(whole).running() as server:
        line = open_url(BlobOptions(account_key=KEY), f"http://127.0.0.1:{server.port}/account/container").line
        answer = get(line, "b.jpg", {}, {}, len(BODY))
        (idle,) = line.pipeline._transport._idle
        kept = [one for one in gc.get_referents(idle) for one in gc.get_referents(one)]
        assert answer.content == BODY
        assert not [one for one in kept if isinstance(one, list) and sum(map(len, one)) > 10_000]


@pytest.mark.parametrize("announced", [True, False])
def test_no_more_is_read_than_was_expected(announced: bool) -> None:
    def much(connection: socket.socket, lines: list[str]) -> None:
        length = b"Content-Length: 4000000\r\n" if announced else b"Connection: close\r\n"
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n" + bytes(4_000_000))
        connection.close()

    with Server(much).running() as server, pytest.raises(BrokenOff, match="larger than it may be"):
        ask(f"http://127.0.0.1:{server.port}/account/container", 100_000)


def test_a_body_that_ends_early_is_no_answer() -> None:
    def short(connection: socket.socket, lines: list[str]) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(50_000))
        connection.shutdown(socket.SHUT_RDWR)

    with Server(short).running() as server, pytest.raises(BrokenOff):
        ask(f"http://127.0.0.1:{server.port}/account/container")


def test_a_refusal_has_the_services_own_word() -> None:
    body = b"<?xml version='1.0'?><Error><Code>BlobArchived</Code><Message>It is archived.</Message></Error>"

    def refuse(connection: socket.socket, lines: list[str]) -> None:
        connection.sendall(b"HTTP/1.1 409 Conflict\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    with Server(refuse).running() as server, pytest.raises(HttpResponseError) as caught:
        ask(f"http://127.0.0.1:{server.port}/account/container")
    assert caught.value.status_code == 409
    assert caught.value.error_code == "BlobArchived"  # type: ignore[attr-defined]


def test_nobody_there_and_nobody_who_answers() -> None:
    with pytest.raises(ServiceRequestError, match="Connection refused"):
        ask(f"http://127.0.0.1:{free_port()}/account/container")
    with Server(lambda connection, lines: connection.shutdown(socket.SHUT_RDWR)).running() as server:
        with pytest.raises(ServiceResponseError, match="Empty reply"):
            ask(f"http://127.0.0.1:{server.port}/account/container")


@pytest.mark.parametrize(
    ("written", "known_as"),
    [
        ("http://me:secret@", "me:secret"),
        ("http://me:se cr%40t@", "me:se cr@t"),
        ("http://me:p@ss\u00fc@", "me:p@ss\u00fc"),
        ("", ""),  # requests takes it for http
    ],
)
def test_the_proxy_of_the_environment_is_asked(written: str, known_as: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(whole).running() as proxy:
        monkeypatch.setenv("http_proxy", f"{written}127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "elsewhere")
        assert ask("http://storage/account/container").content == BODY
        with Server(whole).running() as server:
            monkeypatch.setenv("no_proxy", "elsewhere,127.0.0.1")
            assert ask(f"http://127.0.0.1:{server.port}/account/container").content == BODY
    assert [lines[0] for lines in proxy.asked] == ["GET http://storage/account/container/a/b.jpg HTTP/1.1"]
    basic = [line.split()[-1] for line in proxy.asked[0] if line.lower().startswith("proxy-authorization: basic ")]
    assert [base64.b64decode(word).decode() for word in basic] == ([known_as] if known_as else [])


def test_what_is_said_of_a_proxy_leaves_its_password_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "")
    for proxy in ("http://me:CANARY x@nosuch.invalid:1", "http://me:CANARY@127.0.0.1:1"):
        monkeypatch.setenv("http_proxy", proxy)
        with pytest.raises(ServiceRequestError) as caught:
            ask("http://storage/account/container")
        assert "CANARY" not in "".join(traceback.format_exception(caught.value))
    for proxy in ("http://me:CANARY#x@127.0.0.1:1", "ftp://me:CANARY@127.0.0.1:1", "http://me:CANARY@127.0.0.1:x"):
        monkeypatch.setenv("http_proxy", proxy)
        with pytest.raises(UsageError) as refused:
            ask("http://storage/account/container")
        assert "CANARY" not in "".join(traceback.format_exception(refused.value))


class Token:
    """Signs in to Entra ID without it."""

    def get_token(self, *scopes: str, **more: object) -> AccessToken:
        return AccessToken("a token", int(time.time()) + 3600)


def test_signing_in_by_entra_id_serves_the_sdk_and_the_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token's policy knows the one after it; each of the two ways has its own."""
    monkeypatch.setattr(containers, "_entra", Token)
    container = open_url(BlobOptions(), "https://account.blob.core.windows.net/container")

    def ends_of_both() -> list[str]:
        kinds = []
        for pipeline in (container.client._pipeline, container.line.pipeline):
            step = pipeline._impl_policies[0]
            while hasattr(step, "next"):
                step = step.next
            kinds.append(type(step._sender).__name__)
        return kinds

    assert ends_of_both() == ["RequestsTransport", "Wire"]
    container.client.get_blob_client("car.jpg")
    assert ends_of_both()[1] == "Wire"
    sent: list[str] = []
    monkeypatch.setattr(
        wire.Wire,
        "send",
        lambda self, request, **more: (
            sent.append(request.headers["Authorization"]) or Answer(request, 200, "", {}, b"x")
        ),
    )
    assert get(container.line, "car.jpg", {}, {}, 10).content == b"x"
    assert sent == ["Bearer a token"]


def bundle_for(options: BlobOptions, url: str) -> str:
    return open_url(options, url).line.pipeline._transport._options[pycurl.CAINFO].decode()


def test_the_bundle_of_certificates_is_the_one_of_requests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    url = "https://account.blob.core.windows.net/container"
    options = BlobOptions(account_key=KEY)
    assert bundle_for(options, url) == certifi.where()
    own = shutil.copy(certifi.where(), tmp_path / "own.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(own))
    assert bundle_for(options, url) == str(own)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))
    options_of_curl = open_url(options, url).line.pipeline._transport._options
    assert options_of_curl[pycurl.CAPATH] == str(tmp_path).encode()
    assert options_of_curl[pycurl.CAINFO] is None  # or curl would trust the system's as well
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "gone.pem"))
    with pytest.raises(UsageError, match="the environment asks for"):
        open_url(options, url)


@pytest.mark.parametrize("proxy", ["socks5h://127.0.0.1:1", "http://"])
def test_a_proxy_that_cannot_be_used_is_told_before_any_work(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(UsageError, match="the environment asks for"):
        open_url(BlobOptions(account_key=KEY), "https://account.blob.core.windows.net/container")


def test_https_goes_through_a_tunnel_of_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(connection: socket.socket, lines: list[str]) -> None:
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    with Server(refuse).running() as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "")
        with pytest.raises(ServiceRequestError, match="CONNECT tunnel failed"):
            ask("https://account.blob.core.windows.net/container")
    assert proxy.asked[0][0].startswith("CONNECT account.blob.core.windows.net:443 HTTP/1.")
    assert not any("Authorization" in line for line in proxy.asked[0])
