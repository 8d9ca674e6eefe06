"""The same answers from Keras on each backend that is installed as from OpenVINO."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SAMPLE, Answer
from vehclass.records import ResultFilter
from vehclass.stores import open_store

Shares = dict[tuple[str, str, str], float]


def shares(store: Path) -> Shares:
    """Every probability, by photo, task and label."""
    opened = open_store(f"sqlite:///{store}", create=False)
    found = {
        (row["name"], row["task"], row["label"]): float(row["probability"])
        for row in opened.results("probabilities", ResultFilter())
    }
    opened.close()
    return found


def classified(vehclass: Callable[..., Answer], photos: Path, store: Path, *words: str, **environment: str) -> Shares:
    answer = vehclass(
        *("classify-batch", "-c", photos, "-m", SAMPLE, "--include", "*.jpg", "--store", f"sqlite:///{store}", *words),
        **environment,
    )
    assert answer.code in (0, 3), answer.err  # 3: some of them are no photos
    return shares(store)


def test_a_backend_that_is_not_there_is_named(tmp_path: Path, vehclass: Callable[..., Answer]) -> None:
    words = (
        "classify-batch",
        "-c",
        tmp_path,
        "-m",
        SAMPLE,
        "--store",
        f"sqlite:///{tmp_path}/r.db",
        "--runtime",
        "keras",
    )
    answer = vehclass(*words, KERAS_BACKEND="abacus")
    assert answer.code == 2
    assert "backend abacus" in answer.err
    assert "set KERAS_BACKEND to tensorflow" in answer.err


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_backend_answers_as_openvino_does(
    backend: str, drawn: Path, tmp_path: Path, vehclass: Callable[..., Answer]
) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    there = classified(vehclass, drawn, tmp_path / "openvino.db", "--precision", "f32")
    words = ("--runtime", "keras", "--precision")
    f32 = classified(vehclass, drawn, tmp_path / "f32.db", *words, "f32", KERAS_BACKEND=backend)
    assert f32.keys() == there.keys()
    assert max(abs(f32[key] - share) for key, share in there.items()) < 1e-3
    bf16 = classified(vehclass, drawn, tmp_path / "bf16.db", *words, "bf16", KERAS_BACKEND=backend)
    differences = [abs(bf16[key] - share) for key, share in there.items()]
    assert max(differences) > 0
    assert sum(differences) / len(differences) < 0.02
