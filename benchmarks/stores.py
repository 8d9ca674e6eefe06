"""Results into each store, 25 labels an image: `python -m benchmarks.stores [IMAGES]`.

The same made-up results go through each store's own `save`, 256 images at a time, as a run hands them over when the
store is the slower side. SQLite is the real thing. For Azure SQL, Microsoft's driver speaks to a server in a
process of its own that only answers, so the figure is what the driver and vehclass allow; with
VEHCLASS_BENCH_MSSQL (an ODBC connection string of a database with a schema) a real server is measured as well. For
Cosmos DB it is npm's @vercel/cosmosdb-server, which is what bounds it.
"""

import json
import multiprocessing
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.machine import describe
from vehclass.records import (
    ImageFacts,
    ImageRef,
    LeaseClaim,
    ModelInfo,
    Outcome,
    Prediction,
    RunStart,
    Task,
    image_id,
)
from vehclass.stores import Store, open_store
from vehclass.stores.options import StoreOptions

LABELS, BATCH, ROUNDS = 25, 256, 3
ROOT = Path(__file__).resolve().parent.parent
COSMOS_KEY = "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw=="
MODEL = ModelInfo(
    "bench", "0123456789ab", (Task("make_model", tuple(f"label-{n:02d}" for n in range(LABELS))),), (1, 1), ""
)


def outcomes(start: int, count: int) -> list[Outcome]:
    """Results of made-up photos."""
    rng = random.Random(start)
    source, when = "https://bench.blob.core.windows.net/uploads", datetime(2026, 1, 1, tzinfo=UTC)
    made = []
    for number in range(start, start + count):
        weights = [rng.random() ** 8 for _ in range(LABELS)]
        shares = tuple(weight / sum(weights) for weight in weights)
        best = max(range(LABELS), key=shares.__getitem__)
        answer = Prediction("make_model", MODEL.tasks[0].labels[best], shares[best], shares[best] < 0.5, shares)
        name = f"2026/11/20/{number:09d}.jpg"
        ref = ImageRef(image_id(source, name), source, name, "0x8DCE5A1B2C3D4E5", 100_000, when)
        made.append(Outcome(ref, ImageFacts(1024, 768, "jpeg", f"{number:064x}"), (answer,)))
    return made


def fill(store: Store, images: int) -> tuple[float, float, float, float]:
    """Images a second written, and asked about; and the CPU seconds of this process for 1,000 images of each."""
    ticket = store.take_lease(LeaseClaim("bench", "run-1", "here 1", 3600, lambda holder: True))
    store.start_run(RunStart("run-1", "bench", "bench", MODEL.key, "{}", "here"), MODEL)
    spent = cpu = 0.0
    for start in range(0, images, BATCH):
        batch = outcomes(start, min(BATCH, images - start))
        began, began_cpu = time.perf_counter(), time.process_time()
        store.save(batch, MODEL, ticket, max_attempts=3)
        spent += time.perf_counter() - began
        cpu += time.process_time() - began_cpu
    refs = [one.ref for one in outcomes(0, min(images, 5000))]
    began, began_cpu = time.perf_counter(), time.process_time()
    store.unseen(refs, MODEL, retry_failed=False)
    asked, asked_cpu = time.perf_counter() - began, time.process_time() - began_cpu
    return images / spent, len(refs) / asked, 1000 * cpu / images, 1000 * asked_cpu / len(refs)


def serve(pipe: Connection) -> None:
    """A server that answers as SQL Server would, without keeping anything."""
    sys.path.insert(0, str(ROOT))
    from tests.tds import Done, Reply, Request, Rows, TdsServer
    from tests.tsql_standin import name_of

    def answer(request: Request) -> Reply:
        match name_of(request.sql):
            case "schema_version":
                return Rows(("version",), [(1,)])
            case "save_images":
                return Rows(
                    ("position", "image_seq"), [(row[0], 1000 + row[0]) for row in json.loads(str(request.values[0]))]
                )
            case "model_seq":
                return Rows(("model_seq",), [(1,)])
            case "label_seqs":
                task = MODEL.tasks[0]
                return Rows(("task", "label", "label_seq"), [(task.name, one, n) for n, one in enumerate(task.labels)])
            case "holds_lease":
                return Rows(("held",), [(1,)])
            case "read_lease":
                return Rows(("run_id", "holder", "fence", "live"), [(None, "x", 1, 0)])
            case "unseen":
                return Rows(("position",), [])
            case _:
                return Done()

    server = TdsServer(answer=answer)
    with server.running():
        pipe.send(server.port)
        pipe.recv()


@contextmanager
def answering_server() -> Iterator[int]:
    """That server in a process of its own; its port."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there,))
    process.start()
    yield here.recv()
    here.send("end")
    process.join()


@contextmanager
def cosmos_server() -> Iterator[int]:
    """The Cosmos DB server of the tests; its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    program = ROOT / ".tools/node_modules/@vercel/cosmosdb-server/lib/cli.js"
    command = [str(ROOT / ".tools/bin/node"), str(program), "-p", str(port), "--no-ssl", "--host", "127.0.0.1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1.5)
    try:
        yield port
    finally:
        process.terminate()
        process.wait()


def stores(folder: Path, round_: int) -> Iterator[tuple[str, str, StoreOptions]]:
    """Each store's name, URL and options."""
    options = StoreOptions()
    yield "SQLite, a file, synchronous=EXTRA", f"sqlite:///{folder}/{round_}.db", options
    with answering_server() as port:
        yield (
            "Azure SQL: the driver and vehclass, a server that only answers",
            f"mssql://a:b@127.0.0.1:{port}/db?encrypt=no",
            options,
        )
    if string := os.environ.get("VEHCLASS_BENCH_MSSQL"):
        yield "Azure SQL: a real server", "mssql://", replace(options, sql_connection_string=string)
    with cosmos_server() as port:
        yield (
            "Cosmos DB: npm's server",
            f"cosmos://127.0.0.1:{port}/bench{round_}",
            replace(options, cosmos_key=COSMOS_KEY),
        )


def main() -> None:
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 5_120
    found: dict[str, list[tuple[float, ...]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(ROUNDS):
            for name, url, options in stores(Path(folder), round_):
                store = open_store(url, create=True, options=options)
                found.setdefault(name, []).append(fill(store, images))
                store.close()
    print(f"Measured on {describe()}: {images:,} images of {LABELS} labels, medians of {ROUNDS}.\n")
    print("| store | images/s written | rows/s | our CPU, ms an image | names/s asked about |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, runs in found.items():
        written, asked, cpu, _ = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"| {name} | {written:,.0f} | {written * (LABELS + 3):,.0f} | {cpu:.2f} | {asked:,.0f} |")


if __name__ == "__main__":
    main()
