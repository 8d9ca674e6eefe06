"""Every source lists the same, reads the same, and says the same of what went missing."""

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Azurite
from vehclass.azure_storage.options import BlobOptions
from vehclass.errors import AccessDenied, ReadError, ServiceUnreachable, SourceNotFound, UsageError
from vehclass.records import ImageRef
from vehclass.sources import open_source

ODD_NAMES = [
    "plain.jpg",
    "sub/deeper/with space & (paren) 'quote'.jpg",
    "coche_señal_汽车_🚗.jpg",
    "hash#and?question%20percent.jpg",
    "-dash-first.jpg",
    "comma,semi;colon+plus.jpg",
    ".hidden",
    "no_extension",
]


@dataclass
class Place:
    """A source with the means to change what is in it."""

    source: Any
    put: Callable[[str, bytes], None]
    delete: Callable[[str], None]

    def refs(self, prefix: str = "") -> dict[str, ImageRef]:
        return {ref.name: ref for page in self.source.pages(prefix) for ref in page}


@pytest.fixture(params=["folder", "blob"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        root = tmp_path / "photos"
        root.mkdir()

        def put(name: str, data: bytes) -> None:
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)

        return Place(open_source(str(root), BlobOptions()), put, lambda name: (root / name).unlink())
    azurite: Azurite = request.getfixturevalue("azurite")
    name = f"c{time.monotonic_ns()}"
    client = azurite.container(name)
    options = BlobOptions(connection_string=azurite.connection_string)
    return Place(
        open_source(name, options),
        lambda name, data: client.upload_blob(name, data, overwrite=True),
        client.delete_blob,
    )


class TestEverySource:
    """The contract."""

    def test_empty(self, place: Place) -> None:
        place.source.check()
        assert place.refs() == {}

    def test_odd_names_come_back_and_can_be_read(self, place: Place) -> None:
        for number, name in enumerate(ODD_NAMES):
            place.put(name, f"{number}".encode() * 10)
        refs = place.refs()
        assert sorted(refs) == sorted(ODD_NAMES)
        assert len({ref.image_id for ref in refs.values()}) == len(ODD_NAMES)
        for number, name in enumerate(ODD_NAMES):
            assert refs[name].size == 10
            assert place.source.read(refs[name]) == f"{number}".encode() * 10

    def test_empty_file(self, place: Place) -> None:
        place.put("empty.jpg", b"")
        assert place.source.read(place.refs()["empty.jpg"]) == b""

    def test_prefix(self, place: Place) -> None:
        for name in ("a/1.jpg", "a/2.jpg", "ab/3.jpg", "b/4.jpg"):
            place.put(name, b"x")
        assert sorted(place.refs("a/")) == ["a/1.jpg", "a/2.jpg"]
        assert sorted(place.refs("a")) == ["a/1.jpg", "a/2.jpg", "ab/3.jpg"]
        assert place.refs("zzz") == {}

    def test_vanished(self, place: Place) -> None:
        place.put("gone.jpg", b"x")
        ref = place.refs()["gone.jpg"]
        place.delete("gone.jpg")
        with pytest.raises(ReadError, match="gone|deleted") as caught:
            place.source.read(ref)
        assert (caught.value.code, caught.value.permanent) == ("vanished", False)

    def test_replaced_after_the_listing(self, place: Place) -> None:
        place.put("car.jpg", b"before")
        ref = place.refs()["car.jpg"]
        time.sleep(0.02)
        place.put("car.jpg", b"behind")
        with pytest.raises(ReadError) as caught:
            place.source.read(ref)
        assert caught.value.code == "replaced"
        fresh = place.refs()["car.jpg"]
        assert fresh.etag != ref.etag
        assert fresh.image_id == ref.image_id
        assert place.source.read(fresh) == b"behind"

    def test_an_etag_stays_while_the_content_does(self, place: Place) -> None:
        place.put("car.jpg", b"x")
        assert place.refs()["car.jpg"] == place.refs()["car.jpg"]

    def test_reads_from_several_threads(self, place: Place) -> None:
        for number in range(40):
            place.put(f"{number}.jpg", bytes([number]) * 1000)
        refs = list(place.refs().values())
        seen: dict[str, bytes] = {}
        threads = [
            threading.Thread(target=lambda some=refs[n::8]: seen.update((r.name, place.source.read(r)) for r in some))
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {name: data[0] for name, data in seen.items()} == {f"{n}.jpg": n for n in range(40)}


class TestFolder:
    """What only a file system has."""

    def test_pages_are_bounded(self, tmp_path: Path) -> None:
        for number in range(2500):
            (tmp_path / f"{number}.jpg").touch()
        sizes = [len(page) for page in open_source(str(tmp_path), BlobOptions()).pages("")]
        assert sizes == [1000, 1000, 500]

    def test_a_name_that_is_not_utf8(self, tmp_path: Path) -> None:
        with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb") as file:
            file.write(b"x")
        source = open_source(str(tmp_path), BlobOptions())
        (ref,) = next(source.pages(""))
        assert source.read(ref) == b"x"

    def test_links_pipes_and_circles(self, tmp_path: Path) -> None:
        (tmp_path / "real.jpg").write_bytes(b"x")
        (tmp_path / "link.jpg").symlink_to("real.jpg")
        (tmp_path / "nowhere.jpg").symlink_to("missing.jpg")
        (tmp_path / "circle").symlink_to(tmp_path)
        os.mkfifo(tmp_path / "pipe.jpg")
        source = open_source(str(tmp_path), BlobOptions())
        refs = {ref.name: ref for page in source.pages("") for ref in page}
        assert sorted(refs) == ["link.jpg", "nowhere.jpg", "pipe.jpg", "real.jpg"]
        assert source.read(refs["link.jpg"]) == b"x"
        codes = {}
        for name in ("nowhere.jpg", "pipe.jpg"):
            with pytest.raises(ReadError) as caught:
                source.read(refs[name])
            codes[name] = caught.value.code
        assert codes == {"nowhere.jpg": "vanished", "pipe.jpg": "not_a_file"}

    def test_what_else_a_folder_may_hold(self, tmp_path: Path) -> None:
        """A link in a circle, a time that no calendar has, a file that has become a folder: each its own row."""
        (tmp_path / "good.jpg").write_bytes(b"x")
        (tmp_path / "loop.jpg").symlink_to("loop.jpg")
        (tmp_path / "later.jpg").write_bytes(b"x")
        os.utime(tmp_path / "later.jpg", (2**36, 2**36))
        (tmp_path / "changed.jpg").write_bytes(b"x")
        (tmp_path / "grows.jpg").write_bytes(b"x")
        source = open_source(str(tmp_path), BlobOptions())
        refs = {ref.name: ref for page in source.pages("") for ref in page}
        assert sorted(refs) == ["changed.jpg", "good.jpg", "grows.jpg", "later.jpg", "loop.jpg"]
        (tmp_path / "changed.jpg").unlink()
        (tmp_path / "changed.jpg").mkdir()
        (tmp_path / "grows.jpg").write_bytes(b"x" * 10_000_000)
        codes = {}
        for name, ref in refs.items():
            try:
                assert source.read(ref) == b"x"
            except ReadError as error:
                codes[name] = error.code
        assert codes == {"changed.jpg": "not_a_file", "grows.jpg": "replaced", "loop.jpg": "unreadable"}

    def test_a_folder_that_goes_while_it_is_listed(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "1.jpg").touch()
        walk = open_source(str(tmp_path), BlobOptions())._walk("", "")  # type: ignore[union-attr]  # a folder, here
        assert next(walk)[0] == "a/1.jpg"
        (tmp_path / "b" / "1.jpg").unlink()
        (tmp_path / "b").rmdir()
        assert list(walk) == []

    def test_no_such_folder_and_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(SourceNotFound, match="no such folder"):
            open_source(str(tmp_path / "missing"), BlobOptions())
        (tmp_path / "file").touch()
        with pytest.raises(SourceNotFound, match="a file, not a folder"):
            open_source(str(tmp_path / "file"), BlobOptions())


class TestBlob:
    """What only a service has."""

    def test_a_name_of_1024_characters(self, azurite: Azurite) -> None:
        client = azurite.container("longname")
        name = "/".join(["d" * 100] * 10) + "/" + "n" * 14
        assert len(name) == 1024
        client.upload_blob(name, b"x")
        source = open_source("longname", BlobOptions(connection_string=azurite.connection_string))
        (ref,) = next(source.pages(""))
        assert ref.name == name
        assert source.read(ref) == b"x"

    def test_a_blob_that_somebody_leases_after_the_listing_is_read(self, azurite: Azurite) -> None:
        client = azurite.container("leased")
        client.upload_blob("car.jpg", b"pixels")
        source = open_source("leased", BlobOptions(connection_string=azurite.connection_string))
        [page] = source.pages()
        client.get_blob_client("car.jpg").acquire_lease(lease_duration=15)
        assert source.read(page[0]) == b"pixels"

    def test_ways_to_name_a_container(self, azurite: Azurite) -> None:
        azurite.container("named").upload_blob("a/car.jpg", b"x")
        base = f"http://127.0.0.1:{azurite.port}/{azurite.ACCOUNT}/named"
        by_key = BlobOptions(account_key=azurite.KEY)
        sources = [
            open_source("named", BlobOptions(connection_string=azurite.connection_string)),
            open_source(base, by_key),
            open_source(f"{base}/a/", by_key),
            open_source(f"{base}?{_sas(azurite, 'named')}", BlobOptions()),
        ]
        found = [[(ref.image_id, ref.name) for page in source.pages("") for ref in page] for source in sources]
        assert all(refs == found[0] for refs in found), found
        assert {source.url for source in sources} == {base}
        assert [source.read(next(source.pages(""))[0]) for source in sources] == [b"x"] * 4

    def test_more_names_than_a_page(self, azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
        client = azurite.container("many")
        for number in range(25):
            client.upload_blob(f"{number:03d}", b"x")
        source: Any = open_source("many", BlobOptions(connection_string=azurite.connection_string))
        monkeypatch.setattr("vehclass.sources.blob.PAGE", 10)
        pages = [[ref.name for ref in page] for page in source.pages("")]
        assert [len(page) for page in pages] == [10, 10, 5]
        assert sum(pages, []) == [f"{n:03d}" for n in range(25)]

    def test_no_such_container(self, azurite: Azurite) -> None:
        source = open_source("missing", BlobOptions(connection_string=azurite.connection_string))
        with pytest.raises(SourceNotFound, match="no such container"):
            source.check()

    def test_a_wrong_key(self, azurite: Azurite) -> None:
        url = f"http://127.0.0.1:{azurite.port}/{azurite.ACCOUNT}/any"
        with pytest.raises(AccessDenied, match="Storage Blob Data Reader"):
            open_source(url, BlobOptions(account_key="d3Jvbmc=")).check()

    def test_a_container_without_an_account(self) -> None:
        with pytest.raises(SourceNotFound, match="AZURE_STORAGE_ACCOUNT"):
            open_source("some-container", BlobOptions())

    @pytest.mark.parametrize(
        ("where", "says"),
        [
            ("az://acct", "not a container's name"),
            ("az:///container", "not a storage account's name"),
            ("az://Acct!/container", "not a storage account's name"),
            ("az://account/c#1/x", "not a container's name"),
            ("az://account/container?sig=x", "AZURE_STORAGE_SAS_TOKEN"),
            ("https:///container", "names no container"),
            ("https://account.blob.core.windows.net/", "names no container"),
            ("https://[account/container", "cannot be read"),
            ("http://127.0.0.1:9/account/container", "Set a key or a SAS"),
            ("account.blob.core.windows.net/c?sig=x", "begin a container's URL with https://"),
            ("", "empty"),
            ("n" * 300 + "/x", "too long"),
        ],
    )
    def test_names_that_cannot_be_meant(self, where: str, says: str) -> None:
        with pytest.raises(UsageError, match=says):
            open_source(where, BlobOptions())

    def test_a_prefix_in_a_url_keeps_its_slash(self, azurite: Azurite) -> None:
        client = azurite.container("slashes")
        for name in ("2026/a.jpg", "2026-old/b.jpg"):
            client.upload_blob(name, b"x")
        url = f"http://127.0.0.1:{azurite.port}/{azurite.ACCOUNT}/slashes/2026/"
        source = open_source(url, BlobOptions(account_key=azurite.KEY))
        assert [ref.name for page in source.pages("") for ref in page] == ["2026/a.jpg"]

    def test_plain_http_to_elsewhere_is_refused(self) -> None:
        with pytest.raises(UsageError, match="not encrypted"):
            open_source("http://10.0.0.9:10000/account/container", BlobOptions(account_key="a2V5"))

    @pytest.mark.parametrize("kind", ["refuses", "is silent"])
    def test_a_dead_server_is_noticed_within_15_seconds(self, kind: str) -> None:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            if kind == "is silent":
                server.listen(8)
            url = f"http://127.0.0.1:{server.getsockname()[1]}/account/container"
            began = time.monotonic()
            with pytest.raises(ServiceUnreachable, match="cannot be reached"):
                open_source(url, BlobOptions(account_key="a2V5")).check()
            assert time.monotonic() - began < 15


def _sas(azurite: Azurite, container: str) -> str:
    from datetime import UTC, datetime, timedelta

    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    return generate_container_sas(
        azurite.ACCOUNT,
        container,
        azurite.KEY,
        permission=ContainerSasPermissions(read=True, list=True),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )
