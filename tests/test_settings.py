"""Flags before the environment before the file, each value with where it came from, and no secret shown."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from tests.conftest import ROOT, Answer
from vehclass.cli.options import cores
from vehclass.errors import UsageError
from vehclass.settings import Settings, load, schedules


def test_defaults(tmp_path: Path) -> None:
    settings = load({}, {}, tmp_path / "none.toml")
    assert (settings.store, settings.batch_size, settings.runtime) == ("sqlite:///vehclass.db", None, "auto")
    assert {row["origin"] for row in settings.shown()} == {"default"}


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "vehclass.toml"
    file.write_text('store = "from-file.db"\nthreads = 3\nruntime = "keras"\n')
    settings = load(
        {"store": "from-flag.db", "model": None}, {"VEHCLASS_STORE": "from-env.db", "VEHCLASS_THREADS": "5"}, file
    )
    assert (settings.store, settings.threads, settings.runtime) == ("from-flag.db", 5, "keras")
    origins = {row["setting"]: row["origin"] for row in settings.shown()}
    assert (origins["store"], origins["threads"], origins["runtime"]) == ("flag", "environment", "vehclass.toml")


def test_an_empty_variable_is_unset(tmp_path: Path) -> None:
    assert load({}, {"VEHCLASS_THREADS": ""}, tmp_path / "none.toml").threads is None


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    environment = {
        "AZURE_STORAGE_KEY": "canary",
        "AZURE_STORAGE_CONNECTION_STRING": "canary",
        "AZURE_STORAGE_SAS_TOKEN": "canary",
    }
    settings = load({}, environment, tmp_path / "none.toml")
    assert settings.storage_key == "canary"
    assert "canary" not in str(settings.shown())


@given(
    some.dictionaries(
        some.sampled_from([f.metadata["env"] for f in dataclasses.fields(Settings) if f.metadata]), some.text()
    )
)
def test_any_environment_is_taken_or_refused_in_a_sentence(environment: dict[str, str]) -> None:
    try:
        load({}, environment, Path("/nonexistent.toml"))
    except UsageError as error:
        assert str(error).endswith(".")


@given(some.text())
def test_any_file_is_taken_or_refused_in_a_sentence(text: str) -> None:
    file = Path("/tmp") / "vehclass-fuzz.toml"
    file.write_text(text, encoding="utf-8", errors="replace", newline="")
    try:
        load({}, {}, file)
    except UsageError as error:
        assert "vehclass-fuzz.toml" in str(error)
    finally:
        file.unlink()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("threads = 'x'\n", "a whole number is needed"),
        ("max_bytes = 0\n", "at least 1"),
        ("allow_http = 'maybe'\n", "yes or no"),
        ("[", "cannot be read"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "vehclass.toml").write_text(text)
    with pytest.raises(UsageError, match=says):
        load({}, {}, tmp_path / "vehclass.toml")


def test_the_example_names_every_setting_and_can_be_used(tmp_path: Path) -> None:
    text = (ROOT / "vehclass.toml.example").read_text(encoding="utf-8")
    names = [f.name for f in dataclasses.fields(Settings) if f.metadata and not f.metadata.get("secret")]
    assert [name for name in names if f"{name} = " not in text] == []
    uncommented = "\n".join(
        line.removeprefix("# ") if " = " in line or "[[" in line else line
        for line in text.splitlines()
        if not line.startswith("##")
    )
    (tmp_path / "vehclass.toml").write_text(uncommented)
    load({}, {}, tmp_path / "vehclass.toml")
    assert [one["name"] for one in schedules(tmp_path / "vehclass.toml")] == ["uploads"]


@pytest.mark.parametrize(
    ("said", "most"),
    [("100000 100000", 1), ("150000 100000", 2), ("5000 100000", 1), ("max 100000", 10**6), ("", 10**6)],
)
def test_a_containers_share_of_the_cores_counts(said: str, most: int, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(said)
    assert 1 <= cores(tmp_path / "cpu.max") <= most
    assert (cores(tmp_path / "cpu.max") == cores(tmp_path / "nothing")) or most < 10**6


def test_doctor(vehclass: Callable[..., Answer], drawn: Path) -> None:
    answer = vehclass(
        "doctor", "--container", drawn, "--model", ROOT / "models/sample", "--json", AZURE_STORAGE_KEY="canary"
    )
    assert answer.code == 0, answer.err
    checks = {check["name"]: check["ok"] for check in answer.json["checks"]}
    assert checks == {"model": True, "store": None, "source": True}
    key = next(row for row in answer.json["settings"] if row["setting"] == "storage_key")
    assert (key["value"], key["origin"]) == ("(set)", "environment")
    broken = vehclass(
        "doctor", "--container", "no/where", "--model", "no/model", "--store", "no.db", AZURE_STORAGE_KEY="canary"
    )
    assert broken.code == 1
    assert broken.out.count("FAILED") == 3
    assert "canary" not in answer.out + broken.out + broken.err
