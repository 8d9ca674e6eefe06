"""CPU of our side for a name of a listing and for a blob, by Azure's SDK and by ours: `python -m benchmarks.blob_requests`.

A server of its own process answers each request with the same made-up page of 5,000 names, or the same blob of 100 kB.
Medians of five rounds, in turns.
"""

import base64
import hashlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from azure.core import MatchConditions
from azure.core.credentials import AzureNamedKeyCredential
from azure.storage.blob import ContainerClient

from benchmarks.machine import describe
from vehclass.azure_storage.get import Line, get, list_page

NAMES, BLOBS, ROUNDS = 5_000, 200, 5
ETAG = '"0x8DD0000000000"'
BLOB = os.urandom(100_000)
MD5 = base64.b64encode(hashlib.md5(BLOB).digest()).decode()
TIME = "Tue, 10 Nov 2026 10:00:00 GMT"


def listed(number: int) -> str:
    return (
        f"<Blob><Name>2026/11/IMG_{number:08d}.jpg</Name><Properties><Creation-Time>{TIME}</Creation-Time>"
        f"<Last-Modified>{TIME}</Last-Modified><Etag>0x8DD{number:010x}</Etag><Content-Length>100000</Content-Length>"
        "<Content-Type>image/jpeg</Content-Type><Content-Encoding/><Content-Language/><Content-CRC64/>"
        f"<Content-MD5>{MD5}</Content-MD5><Cache-Control/><Content-Disposition/><BlobType>BlockBlob</BlobType>"
        "<AccessTier>Hot</AccessTier><AccessTierInferred>true</AccessTierInferred><LeaseStatus>unlocked</LeaseStatus>"
        "<LeaseState>available</LeaseState><ServerEncrypted>true</ServerEncrypted></Properties><OrMetadata/></Blob>"
    )


PAGE = (
    '<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="http://a/" ContainerName="c"><Blobs>'
    f"{''.join(map(listed, range(NAMES)))}</Blobs><NextMarker>more</NextMarker></EnumerationResults>"
).encode()


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        page = "comp=list" in self.path
        body = PAGE if page else BLOB
        part = not page and (self.headers.get("x-ms-range") or self.headers.get("Range"))
        self.send_response(206 if part else 200)
        headers = {"Content-Length": len(body), "Content-Type": "application/xml" if page else "image/jpeg"}
        if not page:
            headers |= {"ETag": ETAG, "Last-Modified": TIME, "x-ms-blob-type": "BlockBlob"}
            headers |= {"x-ms-blob-content-md5" if part else "Content-MD5": MD5}
        if part:
            headers["Content-Range"] = f"bytes 0-{len(body) - 1}/{len(body)}"
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None: ...


def serve(port: "multiprocessing.Queue[int]") -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    port.put(server.server_port)
    server.serve_forever()


def cpu(work: Callable[[], object], times: int, items: int) -> float:
    """Milliseconds of this thread on a core, an item."""
    work()
    began = time.thread_time()
    for _ in range(times):
        work()
    return 1000 * (time.thread_time() - began) / times / items


def main() -> None:
    port: multiprocessing.Queue[int] = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(port,), daemon=True)
    server.start()
    key = AzureNamedKeyCredential("account", base64.b64encode(b"k" * 64).decode())
    client = ContainerClient(f"http://127.0.0.1:{port.get()}/account", "c", credential=key)
    line = Line.of(client, 1)

    def by_the_sdk() -> bytes:
        wanted = {"etag": ETAG, "match_condition": MatchConditions.IfNotModified, "max_concurrency": 1}
        return client.download_blob("a/b.jpg", **wanted).readall()

    ways: dict[str, list[tuple[Callable[[], object], int, int]]] = {
        "the SDK's objects": [
            (lambda: list(next(client.list_blobs(results_per_page=NAMES).by_page())), 1, NAMES),
            (by_the_sdk, BLOBS, 1),
        ],
        "GET, signed by the SDK, sent by libcurl": [
            (lambda: list_page(line, "", "", NAMES), 1, NAMES),
            (lambda: get(line, "a/b.jpg", {}, {"If-Match": ETAG}, len(BLOB)).content, BLOBS, 1),
        ],
    }
    taken: dict[str, list[list[float]]] = {name: [[], []] for name in ways}
    for _ in range(ROUNDS):
        for name, works in ways.items():
            for figures, work in zip(taken[name], works, strict=True):
                figures.append(cpu(*work))
    server.terminate()
    print(f"Measured on {describe()}.\n")
    print("| CPU, ms | a name of a listing | a blob of 100 kB |\n| --- | ---: | ---: |")
    for name, (names, blobs) in taken.items():
        print(f"| {name} | {statistics.median(names):.3f} | {statistics.median(blobs):.2f} |")


if __name__ == "__main__":
    main()
