"""What the tests share: drawn photos, the sample model, the command as a process, and real servers."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Importing OpenVINO in a test would tell a service for statistics; what vehclass itself does is tested.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "models" / "sample"
# Real photos that are not part of the project; tests on them skip where they are not at hand.
DATA = Path(os.environ.get("VEHCLASS_TEST_DATA", ROOT.parent / "shared" / "data"))
VEHCLASS = [sys.executable, "-m", "vehclass"]
# Files that take minutes: begun last, they would keep one core busy while the others have nothing left to do.
LONG = ("test_power_loss.py", "test_kill.py", "test_fitting.py", "test_train.py", "test_export.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without what would change the outcome: settings of ours and of Azure's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VEHCLASS_", "AZURE_", "KERAS_"))}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error::ResourceWarning",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "VEHCLASS_LOG_FORMAT": "human",
        **more,
    }


@dataclass(frozen=True)
class Answer:
    """What a finished command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def vehclass(tmp_path: Path) -> Callable[..., Answer]:
    """Runs the command as a user would, in a folder of its own."""

    def run(*words: str | Path, cwd: Path = tmp_path, timeout: float = 120, **environment: str) -> Answer:
        done = subprocess.run(
            [*VEHCLASS, *map(str, words)],
            cwd=cwd,
            env=clean_environment(**environment),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return run


def draw(out: Path, *words: str) -> Path:
    """Draws photos with the project's own script."""
    subprocess.run([sys.executable, str(ROOT / "scripts/draw_samples.py"), str(out), *words], check=True)
    return out


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 drawn photos with a manifest and 7 files that are no photos; to be read only."""
    return draw(tmp_path_factory.mktemp("drawn"), "--count", "24", "--seed", "5", "--size", "320x240", "--with-bad")


@pytest.fixture(scope="session")
def badinput() -> Path:
    """285 broken, odd and hostile files."""
    folder = DATA / "badinput"
    if not folder.is_dir():
        pytest.skip(f"no bad-input collection at {folder} (set VEHCLASS_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def real_photos() -> Path:
    """The folder of real photos, by collection."""
    if not (DATA / "photos").is_dir() or not (DATA / "vtype6").is_dir():
        pytest.skip(f"no real photos at {DATA} (set VEHCLASS_TEST_DATA)")
    return DATA


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Azurite:
    """A running Blob emulator."""

    port: int

    # Azurite's published account and key: every copy of it has these.
    ACCOUNT = "devstoreaccount1"
    KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    @property
    def connection_string(self) -> str:
        return (
            f"DefaultEndpointsProtocol=http;AccountName={self.ACCOUNT};AccountKey={self.KEY};"
            f"BlobEndpoint=http://127.0.0.1:{self.port}/{self.ACCOUNT};"
        )

    def container(self, name: str) -> Any:
        """A new container's client."""
        from azure.storage.blob import BlobServiceClient

        client = BlobServiceClient.from_connection_string(self.connection_string).get_container_client(name)
        client.create_container()
        return client


@contextmanager
def node_server(package: str, script: str, port: int, *options: str, log: Path) -> Iterator[None]:
    """A server from npm as a process of its own, until the block ends."""
    tools = ROOT / ".tools"
    program = tools / "node_modules" / package / script
    if not program.is_file():
        pytest.fail(f"{package} is not installed: run scripts/setup_servers")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(tools / "bin" / "node"), str(program), *options], stdout=output, stderr=output, cwd=log.parent
        )
        try:
            for _ in range(200):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                if process.poll() is not None:
                    pytest.fail(f"{package} did not start: {log.read_text()}")
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.wait(10)


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """Microsoft's Blob emulator, in memory, on a port of its own."""
    port = free_port()
    options = ("--blobHost", "127.0.0.1", "--blobPort", str(port))
    quiet = ("--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent")
    log = tmp_path_factory.mktemp("azurite") / "log"
    with node_server("azurite", "dist/src/blob/main.js", port, *options, *quiet, log=log):
        yield Azurite(port)


@dataclass(frozen=True)
class Cosmos:
    """A running Cosmos DB emulator, or a proxy before one."""

    port: int

    # The emulators' published key: every copy of them has it.
    KEY = "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw=="

    def url(self, database: str) -> str:
        return f"cosmos://127.0.0.1:{self.port}/{database}"


@pytest.fixture(scope="session")
def cosmos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cosmos]:
    """A Cosmos DB server that others wrote, in memory, on a port of its own."""
    port = free_port()
    log = tmp_path_factory.mktemp("cosmos") / "log"
    options = ("-p", str(port), "--no-ssl", "--host", "127.0.0.1")
    with node_server("@vercel/cosmosdb-server", "lib/cli.js", port, *options, log=log):
        yield Cosmos(port)
