"""Is it well? And results that have to go."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.conftest import SAMPLE, Answer
from vehclass.records import iso


@pytest.fixture
def photos(drawn: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "uploads"
    folder.mkdir()
    for file in sorted(drawn.rglob("*.jpg"))[:6]:
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "broken.jpg").write_bytes(b"nothing")
    return folder


STORE = ("--store", "sqlite:///r.db")


def job(photos: Path, *words: str) -> list[str]:
    return ["classify-batch", "-c", str(photos), "-m", str(SAMPLE), *STORE, *words]


def change(folder: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(folder / "r.db")) as db, db:
        db.execute(statement, values)


class TestStatus:
    def test_well_until_the_last_good_run_is_too_long_ago(
        self, photos: Path, tmp_path: Path, vehclass: Callable[..., Answer]
    ) -> None:
        assert vehclass("store", "init", *STORE).code == 0
        assert vehclass("status", *STORE).code == 1
        assert vehclass(*job(photos)).code == 3
        well = vehclass("status", *STORE)
        assert (well.code, "NOT WELL" in well.out) == (0, False)
        change(tmp_path, "UPDATE run SET finished_at = ?", iso(datetime.now(UTC) - timedelta(hours=30)))
        late = vehclass("status", *STORE)
        assert (late.code, "NOT WELL" in late.out) == (1, True)
        assert vehclass("status", *STORE, "--max-age", "31h").code == 0

    def test_a_run_that_failed_does_not_hide_the_good_one(
        self, photos: Path, tmp_path: Path, vehclass: Callable[..., Answer]
    ) -> None:
        vehclass(*job(photos))
        change(
            tmp_path,
            "INSERT INTO run (run_id, command, source, model, settings, host, started_at, heartbeat_at, finished_at,"
            " status, exit_code, message) SELECT 'later', command, source, 'sample@another', settings, host, ?, ?, ?, 'failed', 5,"
            " 'the service is away' FROM run",
            *[iso(datetime.now(UTC))] * 3,
        )
        (one,) = vehclass("status", *STORE, "--json").json
        assert (one["good"], one["last_status"], one["last_message"]) == (True, "failed", "the service is away")
        assert one["last_good"] is not None

    def test_who_is_at_work_and_who_died(self, photos: Path, tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
        vehclass(*job(photos))
        change(tmp_path, "UPDATE run SET status = 'running', heartbeat_at = ?", iso(datetime.now(UTC)))
        assert vehclass("status", *STORE, "--json").json[0]["last_status"] == "running"
        change(tmp_path, "UPDATE run SET heartbeat_at = ?", iso(datetime.now(UTC) - timedelta(minutes=5)))
        assert vehclass("status", *STORE, "--json").json[0]["last_status"] == "died"

    def test_what_waits(self, photos: Path, tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
        words = ("status", *STORE, "-c", photos, "-m", SAMPLE, "--json")
        vehclass("store", "init", *STORE)
        never = vehclass(*words)
        assert (never.code, never.json[0]["waiting"], never.json[0]["last_status"]) == (1, 7, "never run")
        vehclass(*job(photos, "--limit", "4"))
        some = vehclass(*words)
        assert (some.code, some.json[0]["waiting"]) == (0, 3)
        assert some.json[0]["oldest_waiting"] is not None
        vehclass(*job(photos))
        assert vehclass(*words).json[0]["waiting"] == 0
        assert vehclass("status", *STORE, "-c", photos).code == 2

    def test_no_store_is_said(self, vehclass: Callable[..., Answer]) -> None:
        assert vehclass("status", *STORE).code == 2


class TestDelete:
    def test_an_image_and_old_ones(self, photos: Path, tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
        vehclass(*job(photos))
        name = vehclass("results", "list", *STORE, "--json").json[0]["name"]
        assert vehclass("results", "delete", *STORE).code == 2
        assert vehclass("results", "delete", *STORE, "--image", name).code == 1  # nobody there to ask
        done = vehclass("results", "delete", *STORE, "--image", name, "--json")
        assert (done.code, done.json["deleted"]) == (0, 1)
        assert name not in {row["name"] for row in vehclass("results", "list", *STORE, "--json").json}
        assert vehclass(*job(photos, "--json")).json["new"] == 1  # it is still there
        assert vehclass("results", "delete", *STORE, "--older-than", "1d", "--yes").code == 0
        assert len(vehclass("results", "list", *STORE, "--json").json) > 0
        old = iso(datetime.now(UTC) - timedelta(days=100))
        change(tmp_path, "UPDATE outcome SET finished_at = ?", old)
        assert vehclass("results", "delete", *STORE, "--older-than", "90d", "--json").json["deleted"] == 7
        held = vehclass("store", "check", *STORE, "--json").json
        assert (held["images"], held["outcomes"], held["predictions"], held["probabilities"]) == (0, 0, 0, 0)
