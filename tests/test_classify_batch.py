"""The main job from outside: the command as a process, on folders and on Azurite."""

import ctypes
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SAMPLE, VEHCLASS, Answer, Azurite, clean_environment

Vehclass = Callable[..., Answer]


@pytest.fixture
def uploads(drawn: Path, tmp_path: Path) -> Path:
    """A container of one's own: 24 photos, a PNG named .jpg, 6 bad files, and manifest.csv."""
    return Path(shutil.copytree(drawn, tmp_path / "uploads"))


def batch(vehclass: Vehclass, container: Path | str, *more: str | Path, **environment: str) -> Answer:
    return vehclass(
        "classify-batch", "--container", container, "--model", SAMPLE, "--store", "r.db", *more, **environment
    )


def table(folder: Path, query: str) -> list[Any]:
    with sqlite3.connect(folder / "r.db") as store:
        found = store.execute(query).fetchall()
    store.close()
    return found


PREDICTIONS = "SELECT name, task, label, round(probability, 5), needs_review FROM image_prediction ORDER BY name, task"
PROBABILITIES = "SELECT name, task, label, round(probability, 5) FROM image_probability ORDER BY name, task, label"
FAILURES = "SELECT name, stage, code, message, attempts, quarantined FROM image_failure ORDER BY name"


def test_a_first_night_and_a_second(vehclass: Vehclass, uploads: Path, tmp_path: Path) -> None:
    first = batch(vehclass, uploads, "--json")
    assert first.code == 3, first.err
    assert (first.json["listed"], first.json["new"], first.json["classified"], first.json["failed"]) == (32, 32, 25, 7)
    codes = {row["code"]: row["images"] for row in first.json["failures"]}
    assert codes == {"not_an_image": 3, "empty": 1, "truncated": 1, "unsupported_format": 1, "too_many_pixels": 1}
    stages = first.json["profile"]["stages"]
    assert (stages["read"]["times"], stages["decode"]["times"], stages["forward"]["times"]) == (32, 32, 2)
    assert 0 < stages["decode"]["seconds"] < first.json["profile"]["seconds"] * 64
    assert sum(first.json["profile"]["lanes"].values()) == pytest.approx(1, abs=0.01)
    assert len(table(tmp_path, PREDICTIONS)) == 25 * 3
    assert len(table(tmp_path, PROBABILITIES)) == 25 * 10
    sums = table(tmp_path, "SELECT sum(probability) FROM image_probability GROUP BY image_id, task")
    assert all(total == pytest.approx(1) for (total,) in sums)
    assert len(table(tmp_path, FAILURES)) == 7

    second = batch(vehclass, uploads, "--json")
    assert second.code == 0
    assert (second.json["listed"], second.json["new"], second.json["classified"]) == (32, 0, 0)
    assert (first.json["asked"], second.json["asked"]) == (32, 0)

    said = batch(vehclass, uploads, "--profile")
    assert said.code == 0
    assert "Nothing is new" in said.out
    assert len(table(tmp_path, "SELECT * FROM run WHERE status = 'done'")) == 3


def test_the_answers_are_right(vehclass: Vehclass, uploads: Path, tmp_path: Path) -> None:
    """The sample model on photos that it was not trained on."""
    batch(vehclass, uploads, "--include", "photos/0*")
    truth = [line.split(",") for line in (uploads / "manifest.csv").read_text().splitlines()[1:]]
    found = {(name, task): label for name, task, label, *_ in table(tmp_path, PREDICTIONS)}
    assert all(found[path, "view"] == view for path, view, _, _ in truth)
    right = sum(found[path, "condition"] == condition for path, _, condition, _ in truth)
    assert right >= 0.7 * len(truth)


def test_from_azurite_the_same_rows(vehclass: Vehclass, uploads: Path, tmp_path: Path, azurite: Azurite) -> None:
    client = azurite.container("tonight")
    for file in uploads.rglob("*"):
        if file.is_file():
            client.upload_blob(file.relative_to(uploads).as_posix(), file.read_bytes())
    folder = batch(vehclass, uploads)
    rows = [table(tmp_path, query) for query in (PREDICTIONS, PROBABILITIES, FAILURES)]
    (tmp_path / "r.db").unlink()
    blob = batch(vehclass, "tonight", AZURE_STORAGE_CONNECTION_STRING=azurite.connection_string)
    assert (folder.code, blob.code) == (3, 3), blob.err
    assert [table(tmp_path, query) for query in (PREDICTIONS, PROBABILITIES, FAILURES)] == rows
    again = batch(vehclass, "tonight", AZURE_STORAGE_CONNECTION_STRING=azurite.connection_string)
    assert "Nothing is new" in again.out
    assert azurite.KEY not in folder.out + blob.out + blob.err + (tmp_path / "r.db").read_bytes().decode("latin-1")


def test_a_replaced_photo_is_new_again(vehclass: Vehclass, uploads: Path, tmp_path: Path) -> None:
    batch(vehclass, uploads)
    shutil.copy(uploads / "photos/000003.jpg", uploads / "photos/000001.jpg")
    shutil.copy(uploads / "photos/000003.jpg", uploads / "photos/IMG_empty.jpg")
    again = batch(vehclass, uploads, "--json")
    assert (again.code, again.json["new"], again.json["classified"]) == (0, 2, 2)
    rows = table(
        tmp_path,
        "SELECT sha256 FROM image WHERE name IN ('photos/000001.jpg', 'photos/000003.jpg', 'photos/IMG_empty.jpg')",
    )
    assert len(rows) == 3
    assert len(set(rows)) == 1
    assert len(table(tmp_path, FAILURES)) == 6


def test_the_store_is_asked_about_what_changed_only(vehclass: Vehclass, uploads: Path, tmp_path: Path) -> None:
    def run(*words: str) -> tuple[int, int, int]:
        answer = batch(vehclass, uploads, "--json", *words)
        return answer.json["listed"], answer.json["asked"], answer.json["new"]

    assert run("--limit", "3") == (32, 32, 3)
    assert run() == (32, 32, 29)
    assert run() == (32, 0, 0)
    assert run("--full") == (32, 32, 0)
    shutil.copy(uploads / "photos/000003.jpg", uploads / "photos/new.jpg")
    assert run() == (33, 1, 1)
    old = uploads / "photos/an_old_one.jpg"
    shutil.copy(uploads / "photos/000003.jpg", old)
    os.utime(old, (1e9, 1e9))
    assert run()[2] == 1
    with sqlite3.connect(tmp_path / "r.db") as store:
        store.execute(
            "DELETE FROM outcome WHERE image_seq IN (SELECT image_seq FROM image WHERE name = 'photos/new.jpg')"
        )
    store.close()
    assert run() == (34, 34, 1)


def test_several_prefixes_side_by_side(vehclass: Vehclass, uploads: Path) -> None:
    words = ("--prefix", "photos/00000", "--prefix", "photos/00001", "--prefix", "photos/000011")
    first = batch(vehclass, uploads, *words, "--json").json
    assert (first["listed"], first["new"], first["classified"]) == (20, 20, 20)
    second = batch(vehclass, uploads, *words[2:4], *words[:2], "--json").json
    assert (second["listed"], second["asked"]) == (20, 0)


def test_quarantined_ones_come_back_when_asked_for(vehclass: Vehclass, uploads: Path, tmp_path: Path) -> None:
    batch(vehclass, uploads)
    again = batch(vehclass, uploads, "--retry-failed", "--json")
    assert (again.code, again.json["new"], again.json["failed"]) == (3, 7, 7)
    tiff = batch(vehclass, uploads, "--retry-failed", "--json", VEHCLASS_IMAGE_FORMATS="jpeg,png,tiff")
    assert (tiff.json["new"], tiff.json["classified"]) == (7, 1)


def test_which_images(vehclass: Vehclass, uploads: Path, tmp_path: Path) -> None:
    def new(*words: str) -> int:
        return int(batch(vehclass, uploads, "--dry-run", "--json", *words).json["new"])

    for file in uploads.rglob("*"):
        os.utime(file, (time.time() - 86400 * 30, time.time() - 86400 * 30))
    os.utime(uploads / "photos/000005.jpg")
    assert new() == 32
    assert new("--prefix", "photos/0000") == 24
    assert new("--include", "*.jpg") == 28
    assert new("--include", "*.tif", "--include", "*.txt") == 2
    assert new("--since", "7d") == 1
    assert new("--since", "2001-01-01") == 32
    assert new("--limit", "10") == 10
    assert not (tmp_path / "r.db").exists()


def test_a_dry_run_says_how_much_and_writes_nothing(vehclass: Vehclass, uploads: Path, tmp_path: Path) -> None:
    said = batch(vehclass, uploads, "--dry-run")
    assert said.code == 0
    assert "32 of 32 images are new" in said.out
    assert "images/s" in said.out
    assert not (tmp_path / "r.db").exists()
    batch(vehclass, uploads, "--limit", "8")
    before = (tmp_path / "r.db").read_bytes()
    assert batch(vehclass, uploads, "--dry-run", "--json").json["new"] == 24
    assert (tmp_path / "r.db").read_bytes() == before


def test_a_limit_leaves_the_rest_for_the_next_run(vehclass: Vehclass, uploads: Path) -> None:
    done = [batch(vehclass, uploads, "--limit", "20", "--json").json["new"] for _ in range(3)]
    assert done == [20, 12, 0]


def test_too_many_failures_stop_the_run(vehclass: Vehclass, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    for number in range(400):
        (tmp_path / "bad" / f"{number}.jpg").write_bytes(b"no photo")
    answer = batch(vehclass, tmp_path / "bad")
    assert answer.code == 1
    assert "more than the allowed share of 50%" in answer.err
    assert 100 <= len(table(tmp_path, FAILURES)) < 400
    (run,) = table(tmp_path, "SELECT status, exit_code FROM run")
    assert run == ("failed", 1)
    assert batch(vehclass, tmp_path / "bad", "--max-failure-rate", "1").code == 3
    assert len(table(tmp_path, FAILURES)) == 400


def test_odd_names_and_bad_files_each_get_a_row(vehclass: Vehclass, badinput: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(badinput, tmp_path / "bad"))
    photo = next(folder.glob("exif/Landscape_1.jpg")).read_bytes()
    (folder / "line\nbreak \x1b[31mred.jpg").write_bytes(photo)
    (folder / ("n" * 240 + ".jpg")).write_bytes(photo)
    with open(os.fsencode(folder) + b"/caf\xe9.jpg", "wb") as file:
        file.write(photo)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "nowhere.jpg").symlink_to("missing")
    answer = batch(vehclass, folder, "--max-failure-rate", "1")
    assert answer.code == 3, answer.err
    files = sum(len(names) for _, _, names in os.walk(folder))
    assert files == len(table(tmp_path, "SELECT 1 FROM outcome"))
    assert "\x1b" not in answer.out + answer.err
    assert {
        "truncated",
        "not_an_image",
        "unsupported_format",
        "too_many_pixels",
        "empty",
        "not_a_file",
        "vanished",
    } <= {code for _, _, code, *_ in table(tmp_path, FAILURES)}
    listed = vehclass("results", "list", "--failures", "--limit", "400", "--store", "r.db")
    assert listed.code == 0
    assert "\x1b" not in listed.out


@pytest.mark.parametrize(
    ("collection", "photos", "code"),
    [("photos", 178, 3), pytest.param("vtype6", 3595, 0, marks=pytest.mark.slow)],
)
def test_real_photos_from_folder_and_azurite(
    collection: str, photos: int, code: int, vehclass: Vehclass, real_photos: Path, tmp_path: Path, azurite: Azurite
) -> None:
    """The same rows from both; among `photos` lie a readme and a table, which are no photos."""
    folder = real_photos / collection
    client = azurite.container(collection)
    for file in folder.rglob("*"):
        if file.is_file():
            client.upload_blob(file.relative_to(folder).as_posix(), file.read_bytes())
    by_folder = batch(vehclass, folder, "--json")
    assert by_folder.code == code, by_folder.err
    rows = [table(tmp_path, query) for query in (PREDICTIONS, PROBABILITIES, FAILURES)]
    assert len({name for name, *_ in rows[0]}) == photos
    assert {reason for _, _, reason, *_ in rows[2]} <= {"not_an_image"}
    (tmp_path / "r.db").unlink()
    by_blob = batch(vehclass, collection, "--json", AZURE_STORAGE_CONNECTION_STRING=azurite.connection_string)
    assert by_blob.code == code, by_blob.err
    assert [table(tmp_path, query) for query in (PREDICTIONS, PROBABILITIES, FAILURES)] == rows
    print({where.json["source"]: where.json["seconds"] for where in (by_folder, by_blob)})


def test_on_a_cpu_no_framework_is_loaded(uploads: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['vehclass', 'classify-batch', '-c', 'uploads', '-m', sys.argv[1], '--json']\n"
        "from vehclass.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('tensorflow', 'keras', 'torch', 'jax', 'azure') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [VEHCLASS[0], "-c", code, str(SAMPLE)],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.strip().splitlines()[-1] == "[]"


class TestWrongSettings:
    """One sentence, exit code 2, and nothing begun."""

    @pytest.mark.parametrize(
        ("words", "environment", "says"),
        [
            (["-c", "missing/folder", "-m", str(SAMPLE)], {}, "no such folder"),
            (["-c", "no-such-container", "-m", str(SAMPLE)], {}, "AZURE_STORAGE_ACCOUNT"),
            (["-c", "ftp://host/x", "-m", str(SAMPLE)], {}, "ftp:// is no source"),
            (["-c", "."], {}, "Name a model folder"),
            (["-c", ".", "-m", "nowhere"], {}, "No model at nowhere"),
            (["-c", ".", "-m", str(SAMPLE), "--store", "mysql://x"], {}, "is no store"),
            (["-c", ".", "-m", str(SAMPLE), "--store", "no/where/r.db"], {}, "does not exist"),
            (
                ["-c", ".", "-m", str(SAMPLE), "--batch-size", "0"],
                {},
                "--batch-size is 0; it has to be between 1 and 4096",
            ),
            (["-c", ".", "-m", str(SAMPLE), "--max-failure-rate", "2"], {}, "between 0.0 and 1.0"),
            (["-c", ".", "-m", str(SAMPLE), "--runtime", "onnx"], {}, "choose from auto, openvino, keras"),
            (["-c", ".", "-m", str(SAMPLE), "--since", "yesterday"], {}, "--since is 'yesterday'"),
            (["-c", ".", "-m", str(SAMPLE)], {"VEHCLASS_THREADS": "many"}, "VEHCLASS_THREADS is 'many'"),
            (["-c", ".", "-m", str(SAMPLE)], {"VEHCLASS_IMAGE_FORMATS": "jpeg,xcf"}, "choose from jpeg"),
            (
                ["-c", "photos", "-m", str(SAMPLE)],
                {"AZURE_STORAGE_CONNECTION_STRING": "nonsense"},
                "not a connection string",
            ),
            (["-c", "http://example.org/photos/b", "-m", str(SAMPLE)], {"AZURE_STORAGE_KEY": "a2V5"}, "not encrypted"),
        ],
    )
    def test_one_sentence(
        self, vehclass: Vehclass, tmp_path: Path, words: list[str], environment: dict[str, str], says: str
    ) -> None:
        answer = vehclass("classify-batch", *words, **environment)
        assert answer.code == 2, answer.err
        assert says in answer.err
        assert answer.err.startswith("vehclass: ")
        assert len(answer.err.strip().splitlines()) == 1
        assert "Traceback" not in answer.err
        assert not (tmp_path / "vehclass.db").exists()
        as_json = vehclass("classify-batch", *words, "--json", **environment)
        assert json.loads(as_json.out)["exit_code"] == 2

    def test_a_file_of_settings(self, vehclass: Vehclass, uploads: Path, tmp_path: Path) -> None:
        (tmp_path / "vehclass.toml").write_text(f'model = "{SAMPLE}"\nstore = "r.db"\n')
        assert vehclass("classify-batch", "-c", uploads).code == 3
        (tmp_path / "vehclass.toml").write_text('stroe = "r.db"\n')
        assert "did you mean 'store'?" in vehclass("classify-batch", "-c", uploads).err
        (tmp_path / "vehclass.toml").write_text('storage_key = "c2VjcmV0"\n')
        answer = vehclass("classify-batch", "-c", uploads)
        assert (answer.code, "holds a secret" in answer.err, "c2VjcmV0" in answer.err) == (2, True, False)

    def test_no_gpu(self, vehclass: Vehclass, uploads: Path) -> None:
        answer = batch(vehclass, uploads, "--require-gpu", CUDA_VISIBLE_DEVICES="-1")
        assert answer.code == 2
        assert "No GPU can be used here" in answer.err

    def test_a_server_that_is_not_there(self, vehclass: Vehclass, tmp_path: Path) -> None:
        began = time.monotonic()
        answer = batch(
            vehclass,
            "photos",
            AZURE_STORAGE_CONNECTION_STRING="DefaultEndpointsProtocol=http;AccountName=a;AccountKey=a2V5;BlobEndpoint=http://127.0.0.1:9/a;",
        )
        assert (answer.code, "cannot be reached" in answer.err) == (5, True), answer.err
        assert time.monotonic() - began < 15
        assert not (tmp_path / "r.db").exists()


class TestTroubleWithTheStore:
    """A disk or a file that does not let us write."""

    def test_a_full_disk(self, uploads: Path, tmp_path: Path) -> None:
        """Files may not grow beyond 100 kB: the same error as a full disk gives."""
        limited = f"ulimit -f 100; exec {VEHCLASS[0]} -m vehclass classify-batch -c uploads -m {SAMPLE} --store r.db"
        ignore = "trap '' XFSZ; "
        done = subprocess.run(
            ["bash", "-c", ignore + limited],
            cwd=tmp_path,
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert "the disk" in done.stderr
        assert "Traceback" not in done.stderr

    def test_of_another_program(self, vehclass: Vehclass, uploads: Path, tmp_path: Path) -> None:
        with sqlite3.connect(tmp_path / "r.db") as other:
            other.execute("CREATE TABLE mine (x)")
        other.close()
        answer = batch(vehclass, uploads)
        assert (answer.code, "another program" in answer.err) == (2, True)

    def test_read_only(self, vehclass: Vehclass, uploads: Path, tmp_path: Path) -> None:
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        batch(vehclass, uploads, "--limit", "1")
        (tmp_path / "r.db").chmod(0o400)
        assert "cannot be written by this user" in batch(vehclass, uploads).err

    def test_locked(self, vehclass: Vehclass, uploads: Path, tmp_path: Path) -> None:
        batch(vehclass, uploads, "--limit", "1")
        other = sqlite3.connect(tmp_path / "r.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        answer = batch(vehclass, uploads, VEHCLASS_STORE_WAIT="0.5")
        other.close()
        assert (answer.code, "stayed locked" in answer.err) == (5, True)

    def test_another_run_is_at_it(self, vehclass: Vehclass, uploads: Path, tmp_path: Path) -> None:
        (uploads / "photos" / "slow.jpg").unlink(missing_ok=True)
        os.mkfifo(tmp_path / "gate")
        code = (
            "import sys, time\n"
            "from vehclass.batch import runs\n"
            "original = runs.classify_new\n"
            "def slow(*words):\n"
            "    print('at it', flush=True); sys.stdin.readline(); original(*words)\n"
            "runs.classify_new = slow\n"
            f"sys.argv = ['vehclass', 'classify-batch', '-c', 'uploads', '-m', {str(SAMPLE)!r}, '--store', 'r.db']\n"
            "from vehclass.cli import main; main()"
        )
        first = subprocess.Popen(
            [VEHCLASS[0], "-c", code],
            cwd=tmp_path,
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert first.stdout is not None
        assert first.stdout.readline() == "at it\n"
        answer = batch(vehclass, uploads)
        assert answer.code == 4
        assert "Another run (" in answer.err
        first.communicate("go on\n", timeout=60)
        assert first.returncode == 3
        assert "Nothing is new" in batch(vehclass, uploads).out


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library keeps memory as it likes")
def test_memory_that_photos_leave_is_kept_for_the_next() -> None:
    program = """
import resource, threading
from vehclass.cli.classify_batch import keep_freed_memory
keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    photos = [bytearray(b"x" * 3_000_000) for _ in range(8)]
    del photos
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
counted = []
reader = threading.Thread(target=lambda: counted.extend(faults() for _ in range(6)))
reader.start()
reader.join()
print(*counted)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, *later = map(int, done.stdout.split())
    assert first > 8 * 3_000_000 / 4096 / 2  # else this counts nothing
    assert max(later) < first / 10
