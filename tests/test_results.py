"""What is in the store can be listed, shown and exported; whatever is in a name stays a name."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import SAMPLE, VEHCLASS, Answer, clean_environment
from tests.test_stores import MODEL, TRUNCATED, begin, classified, failed
from vehclass.exports import cell
from vehclass.stores import open_store

Vehclass = Callable[..., Answer]


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, drawn: Path) -> Path:
    """A folder with vehclass.db of one run over drawn photos."""
    folder = tmp_path_factory.mktemp("night")
    uploads = shutil.copytree(drawn, folder / "uploads")
    shutil.copy(uploads / "photos/000001.jpg", uploads / "=HYPERLINK(evil).jpg")
    words = [*VEHCLASS, "classify-batch", "-c", "uploads", "-m", str(SAMPLE), "--json"]
    done = subprocess.run(words, cwd=folder, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    return folder


def test_list(vehclass: Vehclass, night: Path) -> None:
    every = vehclass("results", "list", "--limit", "1000", "--json", cwd=night).json
    assert len(every) == 26 * 3
    sure = vehclass(
        "results", "list", "--task", "view", "--min-probability", "0.9", "--limit", "99", "--json", cwd=night
    ).json
    assert {row["task"] for row in sure} == {"view"}
    assert all(row["probability"] >= 0.9 for row in sure)
    shown = vehclass("results", "list", cwd=night)
    assert "photos/" in shown.out
    failures = vehclass("results", "list", "--failures", "--json", cwd=night).json
    assert {row["code"] for row in failures} == {
        "not_an_image",
        "empty",
        "truncated",
        "unsupported_format",
        "too_many_pixels",
    }


def test_show(vehclass: Vehclass, night: Path) -> None:
    answer = vehclass("results", "show", "photos/000003.jpg", "--json", cwd=night).json
    assert len(answer["predictions"]) == 3
    assert len(answer["probabilities"]) == 10
    assert "hatchback" in vehclass("results", "show", "photos/000003.jpg", cwd=night).out
    assert "truncated" in vehclass("results", "show", "photos/IMG_cut_short.jpg", cwd=night).out
    nothing = vehclass("results", "show", "missing.jpg", cwd=night)
    assert (nothing.code, "Nothing is known" in nothing.err) == (2, True)


def test_export_in_every_format_says_the_same(vehclass: Vehclass, night: Path) -> None:
    import pyarrow.parquet

    for name in ("r.csv", "r.jsonl", "r.parquet"):
        done = vehclass("results", "export", "--out", name, cwd=night)
        assert (done.code, "78 predictions written" in done.out) == (0, True), done.err
    by_csv = list(csv.DictReader(io.StringIO((night / "r.csv").read_text())))
    by_json = [json.loads(line) for line in (night / "r.jsonl").read_text().splitlines()]
    by_parquet = pyarrow.parquet.read_table(night / "r.parquet").to_pylist()
    assert len(by_csv) == len(by_json) == len(by_parquet) == 78
    for a, b, c in zip(by_csv, by_json, by_parquet, strict=True):
        assert a["name"].lstrip("'") == b["name"] == c["name"]
        assert (a["label"], float(a["probability"])) == (b["label"], b["probability"]) == (c["label"], c["probability"])
        assert bool(int(a["needs_review"])) == bool(b["needs_review"]) == c["needs_review"]
    assert not list(night.glob("*.part"))


def test_export_of_probabilities_and_failures(vehclass: Vehclass, night: Path) -> None:
    rows = vehclass(
        "results", "export", "--what", "probabilities", "--label", "damaged", "--format", "jsonl", cwd=night
    ).out.splitlines()
    assert len(rows) == 26
    assert {json.loads(row)["label"] for row in rows} == {"damaged"}
    failures = list(csv.DictReader(io.StringIO(vehclass("results", "export", "--what", "failures", cwd=night).out)))
    assert len(failures) == 7


def test_exports_that_cannot_be(vehclass: Vehclass, night: Path) -> None:
    (night / "file").touch()
    for words, says in (
        (["--out", "file/x.csv"], "cannot be written"),
        (["--out", "uploads"], "choose one of csv, jsonl, parquet"),
        (["--out", "x.xlsx"], "choose one of csv, jsonl, parquet"),
        (["--format", "parquet"], "Parquet needs a file"),
        (["--what", "everything"], "cannot be exported"),
        (["--what", "failures", "--label", "damaged"], "Failures have no task"),
        (["--since", "9999999d"], "--since is"),
        (["--until", "0001-01-01T00:00+14:00"], "--until is"),
    ):
        answer = vehclass("results", "export", *words, cwd=night)
        assert (answer.code, says in answer.err) == (2, True), answer.err
    os.mkfifo(night / "pipe")
    reader = subprocess.Popen(["cat", str(night / "pipe")], stdout=subprocess.PIPE, text=True)
    assert vehclass("results", "export", "--out", "pipe", "--format", "csv", cwd=night).code == 0
    assert len(reader.communicate(timeout=10)[0].splitlines()) == 79
    assert (night / "pipe").is_fifo()


def test_formulas_do_not_run_in_a_spreadsheet(vehclass: Vehclass, night: Path) -> None:
    assert "'=HYPERLINK(evil).jpg," in vehclass("results", "export", cwd=night).out
    assert [cell(text) for text in ("=1", "+1", "-1", "@x", "\tx", "a=1")] == [
        "'=1",
        "'+1",
        "'-1",
        "'@x",
        "'\tx",
        "a=1",
    ]
    assert cell(-0.5) == -0.5


def test_runs(vehclass: Vehclass, night: Path) -> None:
    (run,) = vehclass("runs", "list", "--json", cwd=night).json
    assert (run["status"], run["exit_code"], run["classified"], run["failed"]) == ("done", 3, 26, 7)
    shown = vehclass("runs", "show", "last", "--json", cwd=night).json
    assert shown["run_id"] == run["run_id"]
    assert sum(row["images"] for row in shown["failures"]) == 7
    assert "condition" in vehclass("runs", "show", run["run_id"], cwd=night).out
    assert vehclass("runs", "show", "nonsense", cwd=night).code == 2
    assert run["run_id"] in vehclass("runs", "list", "--failed", cwd=night).out


def test_store_commands(vehclass: Vehclass, night: Path, tmp_path: Path) -> None:
    report = vehclass("store", "check", "--json", cwd=night).json
    assert (report["integrity"], report["schema_version"], report["predictions"]) == ("ok", 3, 78)
    assert vehclass("store", "check", cwd=tmp_path).code == 2
    assert vehclass("store", "init", cwd=tmp_path).code == 0
    assert vehclass("results", "list", cwd=tmp_path).code == 0


def test_classify_writes_nothing(vehclass: Vehclass, night: Path, tmp_path: Path) -> None:
    photos = [night / "uploads/photos" / name for name in ("000001.jpg", "IMG_empty.jpg", "missing.jpg")]
    answer = vehclass("classify", *photos, "--model", SAMPLE)
    assert answer.code == 3
    assert "exterior" in answer.out or "interior" in answer.out
    assert "empty" in answer.out
    assert "No such file" in answer.out
    assert not list(tmp_path.iterdir())


def test_a_reader_that_leaves_early(night: Path) -> None:
    words = " ".join([*VEHCLASS, "results", "export", "--what", "probabilities"])
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{words} | head -n 1"],
        cwd=night,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("name,")


def test_a_large_export_takes_little_memory(tmp_path: Path) -> None:
    """150,000 rows in one process with a cap on its memory that all of them would not fit under."""
    store = open_store(str(tmp_path / "r.db"), create=True)
    ticket = begin(store, "run-1")
    for start in range(0, 30_000, 2_000):
        some = [classified(f"{'n' * 60}{n:08d}.jpg") for n in range(start, start + 2_000)]
        store.save([*some, failed(f"x{start}", TRUNCATED)], replace(MODEL), ticket, max_attempts=3)
    store.close()
    peaks = {}
    for label, words in {"few": ["--task", "none"], "all": []}.items():
        code = (
            "import resource, sys\n"
            f"sys.argv = ['vehclass', 'results', 'export', '--what', 'probabilities', '--store', 'r.db', *{words!r}]\n"
            "from vehclass.cli import main\n"
            "try: main()\n"
            "except SystemExit: pass\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        peaks[label] = int(done.stderr)
        assert len(done.stdout.splitlines()) == {"few": 1, "all": 150_001}[label]
    assert peaks["all"] < peaks["few"] + 60_000  # kB; the rows as text are 40 MB
