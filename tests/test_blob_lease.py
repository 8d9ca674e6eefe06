"""The second lease, in the container itself: taken where it may be, waited for, taken over from the dead, and lost."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SAMPLE, VEHCLASS, Answer, Azurite, clean_environment
from tests.faults import Fault, FaultProxy
from vehclass.azure_storage.containers import Container, open_container
from vehclass.azure_storage.lease import FOLDER, take
from vehclass.azure_storage.options import BlobOptions
from vehclass.errors import LeaseHeld, LeaseLost, SourceNotFound
from vehclass.holders import place_of
from vehclass.records import LeaseClaim


@pytest.fixture
def client(azurite: Azurite) -> Any:
    """A new container's, by the SDK."""
    return azurite.container(f"c{time.monotonic_ns()}")


@pytest.fixture
def container(azurite: Azurite, client: Any) -> Container:
    return open_container(BlobOptions(connection_string=azurite.connection_string), container=client.container_name)


def claim(run: str, *, key: str = "photos model store", dead: bool = False) -> LeaseClaim:
    return LeaseClaim(key, run, f"{run}-host 4711 1 boot", 120, lambda holder: dead)


def leases(client: Any) -> list[Any]:
    return list(client.list_blobs(name_starts_with=FOLDER))


def test_a_file_is_the_same_store_by_any_path_and_another_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    here = place_of("sqlite:///r.db")
    assert here == place_of(f"sqlite:///{tmp_path}/here/r.db")
    monkeypatch.chdir(tmp_path / "there")
    assert here != place_of("sqlite:///r.db")
    assert place_of("mssql://server/db") == "mssql://server/db"


class TestTaking:
    def test_one_at_a_time_by_name(self, container: Container) -> None:
        first = take(container, claim("one"))
        assert first is not None
        with pytest.raises(LeaseHeld, match="one on one-host"):
            take(container, claim("two"))
        first.renew()
        first.free()
        second = take(container, claim("two"))
        assert second is not None
        with pytest.raises(LeaseHeld, match="two on two-host"):
            take(container, claim("three"))

    def test_other_models_and_stores_have_leases_of_their_own(self, container: Container, client: Any) -> None:
        assert take(container, claim("one")) is not None
        assert take(container, claim("two", key="photos another-model store")) is not None
        assert len(leases(client)) == 2

    def test_a_dead_holder_is_not_waited_for_and_cannot_come_back(self, container: Container) -> None:
        first = take(container, claim("one"))
        second = take(container, claim("two", dead=True))
        assert first is not None
        assert second is not None
        with pytest.raises(LeaseLost):
            first.renew()
        first.free()  # which does nothing to the other's
        second.renew()

    def test_of_two_that_find_it_dead_the_second_breaks_nothing(self, container: Container) -> None:
        """While one looks whether the holder lives, another has already taken its place."""
        take(container, claim("one"))
        winner = []

        def is_dead(holder: str) -> bool:
            winner.append(take(container, claim("two", dead=True)))
            return True

        with pytest.raises(LeaseHeld, match="at the same moment"):
            take(container, replace(claim("three"), is_dead=is_dead))
        winner[0].renew()

    def test_a_holder_nobody_can_tell_of_is_waited_for(self, container: Container, client: Any) -> None:
        take(container, claim("one"))
        (blob,) = leases(client)
        # Somebody else's lease on that blob, who left no word.
        found = client.get_blob_client(blob.name)
        from azure.storage.blob import BlobLeaseClient

        BlobLeaseClient(found).break_lease(lease_break_period=0)
        found.set_blob_metadata({})
        found.acquire_lease(15)
        with pytest.raises(LeaseHeld, match="another machine"):
            take(container, claim("two", dead=True))

    def test_a_blob_that_was_deleted_is_a_lost_lease(self, container: Container, client: Any) -> None:
        held = take(container, claim("one"))
        (blob,) = leases(client)
        from azure.storage.blob import BlobLeaseClient

        BlobLeaseClient(client.get_blob_client(blob.name)).break_lease(lease_break_period=0)
        client.delete_blob(blob.name)
        assert held is not None
        with pytest.raises(LeaseLost):
            held.renew()

    def test_an_identity_that_may_only_read_goes_without(self, azurite: Azurite, client: Any) -> None:
        from azure.storage.blob import ContainerSasPermissions, generate_container_sas

        sas = generate_container_sas(
            azurite.ACCOUNT,
            client.container_name,
            azurite.KEY,
            permission=ContainerSasPermissions(read=True, list=True),
            expiry=datetime.now(UTC) + timedelta(hours=1),
        )
        url = f"http://127.0.0.1:{azurite.port}/{azurite.ACCOUNT}"
        text = f"BlobEndpoint={url};SharedAccessSignature={sas}"
        reading = open_container(BlobOptions(connection_string=text), container=client.container_name)
        assert take(reading, claim("one")) is None
        assert leases(client) == []

    def test_an_answer_that_was_lost_is_asked_for_again(self, azurite: Azurite, client: Any) -> None:
        """The first acquiring succeeds, and nobody hears of it."""
        lost: list[str] = []

        def rule(method: str, path: str) -> Fault | None:
            if "comp=lease" in path and not lost:
                lost.append(path)
                return Fault(drop_reply=True)
            return None

        proxy = FaultProxy(azurite.port)
        proxy.rule = rule
        with proxy.running():
            text = azurite.connection_string.replace(f":{azurite.port}/", f":{proxy.port}/")
            through = open_container(BlobOptions(connection_string=text), container=client.container_name)
            assert take(through, claim("one")) is not None
        assert len(lost) == 1

    def test_a_container_that_is_gone(self, container: Container, client: Any) -> None:
        client.delete_container()
        with pytest.raises(SourceNotFound):
            take(container, claim("one"))


class TestRuns:
    @pytest.fixture
    def uploads(self, client: Any, drawn: Path) -> str:
        """A container of 24 photos."""
        for file in sorted(drawn.glob("photos/0*")):
            client.upload_blob(file.name, file.read_bytes())
        return str(client.container_name)

    @pytest.fixture
    def environment(self, azurite: Azurite) -> dict[str, str]:
        return {"AZURE_STORAGE_CONNECTION_STRING": azurite.connection_string, "VEHCLASS_BLOB_LEASE": "1"}

    def words(self, uploads: str) -> list[str | Path]:
        return ["classify-batch", "--container", uploads, "--model", SAMPLE, "--store", "r.db", "--json"]

    def test_a_run_leaves_its_blob_which_is_no_photo(
        self, vehclass: Callable[..., Answer], client: Any, uploads: str, environment: dict[str, str]
    ) -> None:
        first = vehclass(*self.words(uploads), **environment)
        assert first.code == 0, first.err
        (blob,) = leases(client)
        assert blob.lease.state in ("available", "expired")
        second = vehclass(*self.words(uploads), "--full", **environment)
        assert (second.code, second.json["listed"], second.json["new"]) == (0, first.json["listed"], 0)
        assert leases(client)[0].name == blob.name

    def test_by_default_nothing_is_written_beside_the_photos(
        self, vehclass: Callable[..., Answer], client: Any, uploads: str, environment: dict[str, str]
    ) -> None:
        answer = vehclass(*self.words(uploads), **(environment | {"VEHCLASS_BLOB_LEASE": "0"}))
        assert (answer.code, leases(client)) == (0, [])

    def test_a_holder_elsewhere_is_named(
        self, vehclass: Callable[..., Answer], client: Any, uploads: str, environment: dict[str, str], tmp_path: Path
    ) -> None:
        """The store's lease is free: what holds the run back is the container's."""
        assert vehclass(*self.words(uploads), **environment).code == 0
        (blob,) = leases(client)
        found = client.get_blob_client(blob.name)
        held = found.acquire_lease(30)
        found.set_blob_metadata({"holder": "elsewhere 1 2 boot", "run": "run-of-another"}, lease=held)
        answer = vehclass(*self.words(uploads), **environment)
        assert answer.code == 4, answer.err
        assert "run-of-another on elsewhere" in answer.err
        held.release()
        assert vehclass(*self.words(uploads), **environment).code == 0

    def test_after_a_kill_the_next_run_goes_on_at_once(
        self, vehclass: Callable[..., Answer], client: Any, uploads: str, environment: dict[str, str], tmp_path: Path
    ) -> None:
        command = [*VEHCLASS, *map(str, self.words(uploads))]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=clean_environment(**environment),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 30
        while not leases(client) or leases(client)[0].lease.state != "leased":
            assert time.monotonic() < until
        process.kill()
        process.wait()
        answer = vehclass(*self.words(uploads), **environment)
        assert answer.code == 0, answer.err
        assert answer.json["classified"] == 24
