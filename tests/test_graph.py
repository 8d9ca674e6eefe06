"""What is done to an OpenVINO graph makes it quicker and leaves its answers."""

from typing import Any

import numpy as np
import pytest

from vehclass.model.frameworks import load_openvino
from vehclass.model.graph import average_by_pooling, prepare_before_turning, why_unfit

openvino = load_openvino()
ops = openvino.opset13
CHANCE = np.random.default_rng(5)


def number(*shape: int) -> np.ndarray:
    return CHANCE.normal(1, 0.3, shape).astype(np.float32)


def converted(scale: tuple[int, ...] = (1, 1, 1, 1), offset: tuple[int, ...] = (1, 3, 1, 1)) -> Any:
    """A network as the converter leaves one: turned to channels first before anything else."""
    pixels = ops.parameter([-1, 20, 24, 3], np.uint8, name="pixels")
    turned = ops.transpose(ops.convert(pixels, np.float32), ops.constant(np.array([0, 3, 1, 2])))
    prepared = ops.add(ops.multiply(turned, ops.constant(number(*scale))), ops.constant(number(*offset)))
    maps = ops.convolution(prepared, ops.constant(number(8, 3, 3, 3)), [2, 2], [1, 1], [1, 1], [1, 1])
    squeezed = ops.reduce_mean(maps, ops.constant(np.array([2, 3])), True)
    means = ops.reduce_mean(ops.relu(ops.multiply(maps, squeezed)), ops.constant(np.array([2, 3])), False)
    return openvino.Model([ops.matmul(means, ops.constant(number(8, 4)), False, False)], [pixels], "net")


def answers(model: Any) -> np.ndarray:
    pixels = np.random.default_rng(1).integers(0, 256, (5, 20, 24, 3), np.uint8)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled([pixels])[0])


def kinds(model: Any) -> list[str]:
    return [op.get_type_name() for op in model.get_ordered_ops() if op.get_type_name() not in ("Constant", "Result")]


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 3, 1, 1)])
def test_the_pixels_are_prepared_before_they_are_turned(shape: tuple[int, ...]) -> None:
    model = converted(shape, shape)
    before = answers(model)
    prepare_before_turning(model)
    assert kinds(model)[:6] == ["Parameter", "Convert", "Multiply", "Add", "Transpose", "Convolution"]
    assert answers(model) == pytest.approx(before, rel=1e-5)


def test_means_over_the_picture_become_pooling() -> None:
    model = converted()
    before = answers(model)
    average_by_pooling(model)
    assert kinds(model).count("AvgPool") == 2
    assert "ReduceMean" not in kinds(model)
    assert answers(model) == pytest.approx(before, rel=1e-5)


def test_what_two_need_turned_stays_as_it_is() -> None:
    pixels = ops.parameter([-1, 6, 6, 3], np.float32)
    turned = ops.transpose(pixels, ops.constant(np.array([0, 3, 1, 2])))
    sums = ops.add(ops.multiply(turned, ops.constant(number(1, 3, 1, 1))), turned)
    model = openvino.Model([sums], [pixels], "net")
    prepare_before_turning(model)
    assert kinds(model) == ["Parameter", "Transpose", "Multiply", "Add"]


@pytest.mark.parametrize(
    ("shape", "axes"), [([-1, 6, 6, 3], [1]), ([-1, 3, -1, 6], [2, 3]), ([-1, 2, 6, 6, 3], [2, 3])]
)
def test_a_mean_over_something_else_stays(shape: list[int], axes: list[int]) -> None:
    pixels = ops.parameter(shape, np.float32)
    model = openvino.Model([ops.reduce_mean(pixels, ops.constant(np.array(axes)), False)], [pixels], "net")
    average_by_pooling(model)
    assert kinds(model) == ["Parameter", "ReduceMean"]


def test_a_network_for_photos_is_fit() -> None:
    model = converted()
    model.reshape([16, 20, 24, 3])
    assert why_unfit(model, 16) is None


def test_a_step_that_would_take_all_memory_is_not() -> None:
    """Padding is a few bytes in a file, whatever it makes of a picture."""
    pixels = ops.parameter([-1, 8, 8, 3], np.uint8)
    none, much = (ops.constant(np.array([0, side, side, 0])) for side in (0, 20_000))
    wide = ops.pad(pixels, none, much, "constant", ops.constant(np.uint8(0)))
    model = openvino.Model([ops.reduce_mean(wide, ops.constant(np.array([1, 2])), False)], [pixels], "net")
    model.reshape([1, 8, 8, 3])
    assert why_unfit(model, 1) == "has a step (Pad) that gives 1,201 million numbers for a picture"


def test_a_network_that_remembers_is_not() -> None:
    pixels = ops.parameter([1, 4, 4, 3], np.float32)
    kept = ops.read_value(pixels, "before", np.float32, [1, 4, 4, 3])
    answer = ops.result(ops.add(kept, pixels))
    model = openvino.Model([answer], [ops.assign(kept, "before")], [pixels], "net")
    assert why_unfit(model, 1) in [
        f"has a step ({kind}) that no network for photos needs" for kind in ("Assign", "ReadValue")
    ]
