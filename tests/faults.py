"""A proxy before a real HTTP server that answers some requests otherwise: late, wrong, half, or not at all."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Fault:
    """What to do to one request. Without any of these it passes."""

    status: int | None = None  # answer this at once, without asking the server
    headers: dict[str, str] = field(default_factory=dict)  # with a status
    error_code: str = ""  # Azure's word for it, with a status
    delay: float = 0.0  # seconds before the answer
    silent: bool = False  # take the request and never answer
    cut_after: int | None = None  # send so many bytes of the body, then close
    change_body: Callable[[bytes], bytes] | None = None
    drop_reply: bool = False  # let the server do it, then close without a word


Rule = Callable[[str, str], Fault | None]  # method, path with query


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # with five at most, whoever comes with sixty others waits for a second


class FaultProxy:
    """A running proxy: set `rule` at any time; `requests` has what came by."""

    def __init__(self, port: int) -> None:
        self.rule: Rule = lambda method, path: None
        self.requests: list[tuple[str, str]] = []
        self.over = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def forward(self) -> None:
                proxy.requests.append((self.command, self.path))
                fault = proxy.rule(self.command, self.path) or Fault()
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                time.sleep(fault.delay)
                if fault.silent:
                    proxy.over.wait(60)
                    self.close_connection = True
                    return
                if fault.status is not None:
                    headers = (
                        {"x-ms-error-code": fault.error_code, **fault.headers} if fault.error_code else fault.headers
                    )
                    self.answer(fault.status, headers, b"", Fault())
                    return
                upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                try:
                    upstream.request(self.command, self.path, body, dict(self.headers.items()))
                    reply = upstream.getresponse()
                    data = reply.read()
                    if fault.drop_reply:
                        self.close_connection = True
                        return
                    kept = {
                        k: v
                        for k, v in reply.getheaders()
                        if k.lower() not in ("transfer-encoding", "connection", "content-length")
                    }
                    length = reply.getheader("Content-Length") if self.command == "HEAD" else None
                    self.answer(reply.status, kept, data, fault, length)
                finally:
                    upstream.close()

            def answer(
                self, status: int, headers: dict[str, str], data: bytes, fault: Fault, length: str | None = None
            ) -> None:
                if fault.change_body:
                    data = fault.change_body(data)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", length or str(len(data)))
                self.end_headers()
                if fault.cut_after is not None:
                    data = data[: fault.cut_after]
                    self.close_connection = True
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])

    @contextmanager
    def running(self) -> Iterator["FaultProxy"]:
        """Serves until the block ends."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.over.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()
