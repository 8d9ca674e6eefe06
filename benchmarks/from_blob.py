"""What reading from a Blob container costs beside reading from a folder: `python -m benchmarks.from_blob [TIMES]`.

The same drawn photos lie in a folder and in a container of Azurite, Microsoft's emulator, on this very machine; what
the emulator and the proxy take of the cores is not ours, but slows us. A proxy before it shows what distance costs: with
30 ms added to each answer, and with none. Each figure is a median over runs in turns, of the difference between a short run
and a long one; CPU and memory are those of vehclass alone. `scripts/setup_servers` installs the emulator.
"""

import os
import sys
import tempfile
from pathlib import Path

from azure.storage.blob import ContainerClient

from benchmarks.__main__ import Bench, Photos, median, ours, prepare
from benchmarks.machine import describe
from tests.conftest import Azurite, free_port, node_server
from tests.faults import Fault, FaultProxy

OF = Photos("1024x768", ("1024x768",), 82, 128, 1024)
FAR = 0.03  # seconds that are added to each answer


def upload(photos: Path, client: ContainerClient) -> None:
    for file in sorted(photos.rglob("*.jpg")):
        client.upload_blob(file.relative_to(photos).as_posix(), file.read_bytes())


def main() -> None:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as name:
        work, port = Path(name), free_port()
        bench = prepare(work, OF, "mobilenet_v3_small")
        options = ("--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence")
        quiet = ("--skipApiVersionCheck", "--disableTelemetry", "--silent")
        with node_server("azurite", "dist/src/blob/main.js", port, *options, *quiet, log=work / "log"):
            upload(bench.photos, Azurite(port).container("uploads"))
            compare(bench, port, times)


def compare(bench: Bench, port: int, times: int) -> None:
    near, far = FaultProxy(port), FaultProxy(port)
    far.rule = lambda method, path: Fault(delay=FAR)
    with near.running(), far.running():
        ports = {"Azurite": port, "Azurite, by a proxy": near.port, f"the same, {FAR * 1000:.0f} ms away": far.port}
        os.environ["AZURE_STORAGE_KEY"] = Azurite.KEY
        places = {"a folder": "PHOTOS"}
        places |= {name: f"http://127.0.0.1:{one}/{Azurite.ACCOUNT}/uploads" for name, one in ports.items()}
        commands = {
            name: [place if word == "PHOTOS" else word for word in ours("f32")] for name, place in places.items()
        }
        peaks = {name: bench.peak(words) for name, words in commands.items()}
        found = {name: [] for name in commands}
        for _ in range(times):
            for name, words in commands.items():
                found[name].append(bench.speed(words))
    print(f"Measured on {describe()}.\n")
    print("| from | images/s | CPU of vehclass, ms an image | as much as from a folder | peak memory, MB |")
    print("| --- | ---: | ---: | ---: | ---: |")
    speeds = {name: median(each) for name, each in found.items()}
    for name, one in speeds.items():
        share = one.cpu_ms / speeds["a folder"].cpu_ms
        print(f"| {name} | {one.rate:,.0f} | {one.cpu_ms:.2f} | {share:.2f} | {peaks[name]:,.0f} |")


if __name__ == "__main__":
    main()
