"""No secret of any setting is in anything that vehclass says or keeps."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SAMPLE, VEHCLASS, Answer, Azurite, Cosmos, clean_environment, free_port
from tests.tds import Error, TdsServer
from tests.tsql_standin import Engine
from vehclass.settings import Settings, load

CANARY = "canary8f3a"


def canaries(port: int = 1) -> dict[str, str]:
    """Every secret setting with a canary in it, as it might look."""
    key = f"{CANARY}key" + "A" * 71 + "=="  # the length of an account key
    return {
        "AZURE_STORAGE_CONNECTION_STRING": (
            f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={key};"
            f"BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;"
        ),
        "AZURE_STORAGE_KEY": key,
        "AZURE_STORAGE_SAS_TOKEN": f"sv=2024-01-01&sig={CANARY}sas%3D",
        "AZURE_SQL_PASSWORD": f"{CANARY};pw}}",
        "VEHCLASS_WEBHOOK": f"http://127.0.0.1:{port}/{CANARY}",
        "VEHCLASS_SMTP_PASSWORD": CANARY,
        "AZURE_SQL_CONNECTIONSTRING": f"Server=127.0.0.1,{port};Database=db;Uid=night;Pwd={CANARY};Encrypt=no",
        "AZURE_COSMOS_KEY": key,
        "AZURE_COSMOS_CONNECTIONSTRING": f"AccountEndpoint=http://127.0.0.1:{port};AccountKey={key}",
    }


def test_every_secret_setting_has_a_canary() -> None:
    secrets = {one["environment"] for one in load(environment={}).shown() if _is_secret(str(one["setting"]))}
    assert secrets == set(canaries())


def _is_secret(name: str) -> bool:
    return bool(Settings.__dataclass_fields__[name].metadata.get("secret"))


def said_by(folder: Path, *words: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [*VEHCLASS, *map(str, words)],
        cwd=folder,
        env=clean_environment(VEHCLASS_STORE_WAIT="0", VEHCLASS_STORE_TIMEOUT="2", **environment),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0 or "doctor" in words, done.stdout
    return done.stdout + done.stderr


STORES = ["mssql://", "mssql://night@127.0.0.1:{port}/db?encrypt=no", "cosmos://127.0.0.1:{port}/db"]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("server", ["refuses", "is no such server", "is away"])
def test_nothing_is_said_when_it_goes_wrong(
    tmp_path: Path, drawn: Path, azurite: Azurite, server: str, store: str
) -> None:
    tds = TdsServer(answer=lambda request: Error(1, "x"))
    tds.login = lambda login: Error(18456, f"Login failed for user '{login.user}' with {login.database}.", severity=14)
    with tds.running():
        port = {"refuses": tds.port, "is no such server": azurite.port, "is away": free_port()}[server]
        secrets = canaries(port)
        url = store.format(port=port)
        if "night@" in store:
            del secrets["AZURE_SQL_CONNECTIONSTRING"]
        commands: list[tuple[str | Path, ...]] = [
            ("classify-batch", "-c", drawn, "-m", SAMPLE, "--store", url, "--json", "--verbose"),
            ("store", "check", "--store", url, "--verbose"),
        ]
        if store == "mssql://" and server == "refuses":
            commands += [
                ("classify-batch", "-c", "uploads", "-m", SAMPLE, "--store", url, "--verbose"),
                ("doctor", "--store", url, "--container", "uploads", "--json", "--verbose"),
            ]
        for words in commands:
            assert CANARY not in said_by(tmp_path, *words, **secrets), words
    assert not any(CANARY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_password_in_the_url_is_not_repeated(tmp_path: Path, drawn: Path) -> None:
    url = f"mssql://night:{CANARY}@127.0.0.1:{free_port()}/db?encrypt=no"
    for words in (("store", "check", "--store", url, "--verbose"), ("doctor", "--store", url)):
        assert CANARY not in said_by(tmp_path, *words), words
    wrong = f"cosmos://user:{CANARY}@account/db"
    assert CANARY not in said_by(tmp_path, "store", "check", "--store", wrong, "--verbose")


def test_nothing_is_kept_when_it_goes_well(
    vehclass: Callable[..., Answer], tmp_path: Path, drawn: Path, cosmos: Cosmos
) -> None:
    engine = Engine(tmp_path / "behind.db")
    server = engine.server()
    with server.running():
        url = f"mssql://night:{CANARY}@127.0.0.1:{server.port}/db?encrypt=no"
        done = vehclass("classify-batch", "-c", drawn, "-m", SAMPLE, "--store", url, "--json", VEHCLASS_STORE=url)
        assert done.code == 3, done.err
        seen = [done.out + done.err]
        for words in (
            ("runs", "show", "last", "--json"),
            ("store", "check"),
            ("results", "export", "--format", "csv"),
            ("doctor",),
        ):
            answer = vehclass(*words, "--store", url)
            assert answer.code == 0, answer.err
            seen.append(answer.out + answer.err)
        assert not any(CANARY in text for text in seen)
    engine.close()
    assert CANARY.encode() not in (tmp_path / "behind.db").read_bytes()
    key = cosmos.KEY
    where = cosmos.url("canary")
    vehclass("classify-batch", "-c", drawn, "-m", SAMPLE, "--store", where, AZURE_COSMOS_KEY=key)
    for what in ("runs", "results"):
        from vehclass.stores import open_store
        from vehclass.stores.options import StoreOptions

        store = open_store(where, options=StoreOptions(cosmos_key=key))
        requests, container = store._requests, getattr(store, f"_{what}")  # type: ignore[attr-defined]
        documents = requests.call(requests.query(container, "SELECT * FROM c"))
        assert documents
        assert key not in json.dumps(documents)
        store.close()


def test_a_traceback_shows_no_values() -> None:
    """Python's own traceback of an options object, should one ever be printed."""
    code = (
        "from vehclass.stores.options import StoreOptions\n"
        f"print(StoreOptions(sql_password='{CANARY}', cosmos_key='{CANARY}', sql_connection_string='{CANARY}',"
        f" cosmos_connection_string='{CANARY}'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert CANARY not in done.stdout
