"""Azurite behind a proxy that misbehaves: what passes is repeated, what does not is told apart and told soon."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import SAMPLE, Answer, Azurite
from tests.faults import Fault, FaultProxy
from vehclass.azure_storage import patience
from vehclass.azure_storage.options import BlobOptions
from vehclass.azure_storage.wire import Overtaken
from vehclass.batch.flow import in_lanes
from vehclass.errors import AccessDenied, ReadError, ServiceUnreachable, SourceNotFound
from vehclass.sources import open_source

PHOTOS = 40


@pytest.fixture
def proxy(azurite: Azurite) -> Iterator[FaultProxy]:
    with FaultProxy(azurite.port).running() as made:
        yield made


@pytest.fixture
def container(azurite: Azurite) -> str:
    name = f"faults{time.monotonic_ns()}"
    client = azurite.container(name)
    for number in range(PHOTOS):
        client.upload_blob(f"{number:02d}.jpg", bytes([number]) * 5000)
    return name


@pytest.fixture
def source(proxy: FaultProxy, azurite: Azurite, container: str) -> Any:
    through = replace(azurite, port=proxy.port)
    return open_source(container, BlobOptions(connection_string=through.connection_string))


def read_all(source: Any) -> dict[str, bytes | str]:
    """Every blob's bytes, or the code of what kept them away."""

    def read(ref: Any) -> tuple[str, bytes | str]:
        try:
            return ref.name, source.read(ref)
        except ReadError as error:
            return ref.name, error.code

    refs = [ref for page in source.pages("") for ref in page]
    return dict(in_lanes(read, refs, source.concurrency, 4, "read"))


def is_read(method: str, path: str) -> bool:
    return method == "GET" and ".jpg" in path


def once_each() -> Callable[[str], bool]:
    seen: set[str] = set()

    def first(path: str) -> bool:
        new = path not in seen
        seen.add(path)
        return new

    return first


def whole(found: dict[str, bytes | str]) -> bool:
    return found == {f"{n:02d}.jpg": bytes([n]) * 5000 for n in range(PHOTOS)}


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=503, error_code="ServerBusy"),
        Fault(status=500, error_code="InternalError"),
        Fault(status=429),
        Fault(cut_after=100),
        Fault(drop_reply=True),
        Fault(change_body=lambda data: data[:-1] + b"\xff"),
    ],
    ids=["503", "500", "429", "cut", "dropped", "flipped"],
)
def test_what_happens_once_is_repeated(source: Any, proxy: FaultProxy, fault: Fault) -> None:
    first = once_each()
    proxy.rule = lambda method, path: fault if is_read(method, path) and first(path) else None
    assert whole(read_all(source))


def test_the_servers_own_hint_is_obeyed(source: Any, proxy: FaultProxy) -> None:
    first = once_each()
    busy = Fault(status=503, headers={"Retry-After": "2"}, error_code="ServerBusy")
    proxy.rule = lambda method, path: busy if is_read(method, path) and first("any") else None
    began = time.monotonic()
    assert whole(read_all(source))
    assert time.monotonic() - began >= 2


def test_a_hint_that_nobody_can_mean_is_not(source: Any, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "LONGEST_HINT", 0.2)
    first = once_each()
    busy = Fault(status=503, headers={"Retry-After": "1000000000"}, error_code="ServerBusy")
    proxy.rule = lambda method, path: busy if is_read(method, path) and first(path) else None
    assert whole(read_all(source))


@pytest.mark.parametrize(
    "page", [b"<html><body>Welcome</body></html>", b"<?xml version='1.0' encoding='nonsense'?><a/>", b"<Enumer", b""]
)
def test_a_page_of_something_on_the_way_is_no_empty_container(page: bytes, source: Any, proxy: FaultProxy) -> None:
    first = once_each()
    changed = Fault(change_body=lambda body: page)
    proxy.rule = lambda method, path: changed if "comp=list" in path and first(path) else None
    assert whole(read_all(source))


def test_a_body_that_breaks_late_is_asked_for_again(
    source: Any, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large one on a slow line has long used up what a silent server gets."""
    monkeypatch.setattr(patience, "SILENCE_BUDGET", 0.0)
    first = once_each()
    proxy.rule = lambda method, path: Fault(cut_after=500) if is_read(method, path) and first(path) else None
    assert whole(read_all(source))


def test_a_listing_that_stumbles_goes_on(source: Any, proxy: FaultProxy) -> None:
    first = once_each()
    proxy.rule = lambda method, path: Fault(status=503) if "comp=list" in path and first(path) else None
    assert whole(read_all(source))
    assert source._room.window.size < source.concurrency / 2  # readers, too, heard that it is busy


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(cut_after=100), "timeout"),
        (Fault(change_body=lambda data: b"\xff" + data[1:]), "damaged_in_transit"),
        (Fault(status=500, error_code="InternalError"), "unreadable"),
        (Fault(status=403, error_code="AuthorizationPermissionMismatch"), "forbidden"),
        (Fault(status=409, error_code="BlobArchived"), "archived"),
        (Fault(silent=True), "timeout"),
    ],
    ids=["cut", "flipped", "500", "403", "archived", "silent"],
)
def test_one_bad_blob_is_told_from_a_bad_service(
    source: Any, proxy: FaultProxy, fault: Fault, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "BUSY_BUDGET", 2.0)
    monkeypatch.setattr(patience, "SILENCE_BUDGET", 2.0)
    proxy.rule = lambda method, path: fault if is_read(method, path) and "07.jpg" in path else None
    found = read_all(source)
    assert found.pop("07.jpg") == code
    assert len(found) == PHOTOS - 1
    assert all(isinstance(data, bytes) for data in found.values())


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(status=403, error_code="AuthenticationFailed"), AccessDenied),
        (Fault(status=404, error_code="ContainerNotFound"), SourceNotFound),
        (Fault(drop_reply=True), ServiceUnreachable),
    ],
    ids=["expired", "deleted", "dropping"],
)
def test_a_service_that_ends_in_mid_run_blames_no_photo(
    source: Any, proxy: FaultProxy, fault: Fault, error: type[Exception]
) -> None:
    refs = next(source.pages(""))
    proxy.rule = lambda method, path: fault
    with pytest.raises(error):
        source.read(refs[0])


@pytest.mark.parametrize("places", [64.0, 4.0])
def test_a_service_that_falls_silent_is_noticed_within_15_seconds_by_all_readers(
    source: Any, proxy: FaultProxy, places: float
) -> None:
    refs = next(source.pages(""))
    source._room.window.size = places
    proxy.rule = lambda method, path: Fault(silent=True)
    began = time.monotonic()
    with pytest.raises(ServiceUnreachable):
        list(in_lanes(source.read, refs, source.concurrency, 4, "read"))
    assert time.monotonic() - began < 15


def test_a_service_that_falls_silent_among_its_answers_is_noticed_within_15_seconds(
    source: Any, proxy: FaultProxy
) -> None:
    """Some of those that wait then have seen others answered for long."""
    refs = next(source.pages(""))
    began = time.monotonic()
    proxy.rule = lambda method, path: (
        Fault(silent=True) if time.monotonic() - began > 4 or "07.jpg" in path else Fault(delay=0.4)
    )
    with pytest.raises(ServiceUnreachable):
        list(in_lanes(source.read, refs * 20, source.concurrency, 4, "read"))
    assert time.monotonic() - began < 4 + 15


def test_a_service_that_answers_others_is_not_away(source: Any, proxy: FaultProxy) -> None:
    """One with more to do than it can leaves some requests waiting."""
    first = once_each()
    late = [f"{number:02d}.jpg" for number in (3, 17, 39)]
    proxy.rule = lambda method, path: (
        Fault(silent=True)
        if any(name in path and first(name) for name in late)
        else Fault(delay=3.75)
        if is_read(method, path)
        else None
    )
    assert whole(read_all(source))
    assert source._room.window.size < source.concurrency / 2  # and gets fewer requests at a time


def test_a_look_that_is_left_waiting_finds_no_service_away(source: Any, proxy: FaultProxy) -> None:
    refs = next(source.pages(""))
    proxy.rule = lambda method, path: Fault(silent=True) if "maxresults=1&" in f"{path}&" else Fault(delay=0.05)
    with ThreadPoolExecutor(1) as others:
        look = others.submit(source._problem)
        while not look.done():
            source.read(refs[0])
        assert look.result() is None


def test_a_listing_that_others_always_overtake_says_so(source: Any) -> None:
    said = str(source._container.explained(Overtaken("Others were answered meanwhile: it timed out")))
    assert "it answers some requests and leaves others waiting" in said


def test_waiting_for_a_place_takes_no_patience(source: Any, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens once is repeated, however long others came first."""
    monkeypatch.setattr(patience, "BUSY_BUDGET", 2.0)
    source._room.window.size = 4.0
    first = once_each()
    proxy.rule = lambda method, path: (
        Fault(status=500) if "39.jpg" in path and first(path) else Fault(delay=0.4) if is_read(method, path) else None
    )
    assert whole(read_all(source))


def test_who_waits_for_a_place_hears_that_the_service_stays_busy(
    source: Any, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One problem is enough: the others need not find it out four by four."""
    monkeypatch.setattr(patience, "BUSY_BUDGET", 1.0)
    monkeypatch.setattr(patience.random, "uniform", lambda low, high: 0.2)
    refs = next(source.pages(""))
    source._room.window.size = 4.0
    proxy.rule = lambda method, path: Fault(status=503)
    with pytest.raises(ServiceUnreachable):
        list(in_lanes(source.read, refs, source.concurrency, 4, "read"))
    asked = {path for method, path in proxy.requests if is_read(method, path)}
    assert len(asked) < PHOTOS / 2


@pytest.mark.parametrize(("spent", "times"), [("SILENCE_BUDGET", 3), ("BUSY_BUDGET", 1)])
def test_who_was_overtaken_is_asked_again(spent: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as with a service that says that it is busy, and once more even after that."""
    monkeypatch.setattr(patience, spent, 0.0)
    monkeypatch.setattr(patience.random, "uniform", lambda low, high: 0.01)
    answers = iter([Overtaken("late")] * times)

    def request() -> str:
        for error in answers:
            raise error
        return "here"

    assert patience.patiently(request) == "here"


def test_a_redirect_is_not_followed(source: Any, proxy: FaultProxy) -> None:
    refs = next(source.pages(""))
    proxy.rule = lambda method, path: (
        Fault(status=302, headers={"Location": "http://127.0.0.1:9/elsewhere"}) if is_read(method, path) else None
    )
    with pytest.raises((ReadError, ServiceUnreachable)):
        source.read(refs[0])
    assert len([path for _, path in proxy.requests if "elsewhere" in path]) == 0


def test_secrets_stay_out_of_all_output(vehclass: Callable[..., Answer], proxy: FaultProxy, azurite: Azurite) -> None:
    proxy.rule = lambda method, path: Fault(drop_reply=True)
    sas = "sv=2024-01-01&se=2030-01-01&sp=rl&sig=CANARYSIG%3D"
    url = f"http://127.0.0.1:{proxy.port}/{azurite.ACCOUNT}/faults?{sas}"
    settings = {"AZURE_STORAGE_KEY": "Q0FOQVJZS0VZ"}
    answers = [vehclass("classify-batch", "-c", url, "-m", SAMPLE, "--verbose")]
    proxy.rule = lambda method, path: Fault(status=403, error_code="AuthenticationFailed")
    answers += [
        vehclass("classify-batch", "-c", url, "-m", SAMPLE, "--json", "--verbose"),
        vehclass("classify-batch", "-c", url.removeprefix("http://"), "-m", SAMPLE, "--verbose"),
        vehclass("classify-batch", "-c", ".", "-m", SAMPLE, "--store", "postgres://user:CANARYPW@host/db", "--verbose"),
        vehclass(
            "classify-batch",
            "-c",
            f"http://127.0.0.1:{proxy.port}/{azurite.ACCOUNT}/faults",
            "-m",
            SAMPLE,
            "-v",
            **settings,
        ),
        vehclass("doctor", "-c", url, **settings),
    ]
    assert [answer.code for answer in answers] == [5, 2, 2, 2, 2, 1]
    for answer in answers:
        assert "CANARY" not in answer.out + answer.err
        assert "Q0FOQVJZS0VZ" not in answer.out + answer.err
