"""Refuses an OpenVINO graph that is no network for photos, and puts others into the form that a CPU computes quickest."""

from math import prod
from typing import Any, Final

import numpy as np

from vehclass.model.frameworks import load_openvino

# What repeats, branches or remembers: a network that looks at one photo needs none, and a made-up one may never end.
NOT_FOR_PHOTOS: Final = frozenset({"Assign", "If", "Loop", "ReadValue", "TensorIterator"})
MOST_NUMBERS: Final = 2**26  # that a step of a network may give for a picture: 4 GB in 32 bits for a batch of 16


def why_unfit(model: Any, batch: int) -> str | None:
    """Why a graph, shaped for batches of so many, should not be compiled, if at all: a file may claim what it likes."""
    for op in model.get_ops():
        kind = op.get_type_name()
        if kind in NOT_FOR_PHOTOS:
            return f"has a step ({kind}) that no network for photos needs"
        for answer in op.outputs():
            shape = answer.get_partial_shape()
            if shape.is_static and prod(shape.to_shape()) > MOST_NUMBERS * batch:
                return f"has a step ({kind}) that gives {prod(shape.to_shape()) / batch / 1e6:,.0f} million numbers for a picture"
    return None


def prepare_before_turning(model: Any) -> None:
    """Moves what prepares the pixels (scale, offset) ahead of the transposition to channels first, in place; at export.

    The converter puts the transposition first. With arithmetic between it and the first convolution, OpenVINO turns
    every picture and turns it back, since that convolution wants channels last; without, it does neither: 5 to 10 % of
    a small network's time.
    """
    openvino = load_openvino()

    turns = [op for op in model.get_ordered_ops() if op.get_type_name() == "Transpose" and _order(op) == [0, 3, 1, 2]]
    if not turns:
        return
    turn = turns[0]
    while len(followers := list(turn.output(0).get_target_inputs())) == 1:
        step = followers[0].get_node()
        if step.get_type_name() not in ("Multiply", "Add") or followers[0].get_index() != 0:
            return
        number = step.input_value(1).get_node()
        if number.get_type_name() != "Constant" or len(number.get_data().shape) != 4:
            return
        after = list(step.output(0).get_target_inputs())
        turned_back = openvino.opset13.constant(np.ascontiguousarray(number.get_data().transpose(0, 2, 3, 1)))
        step.input(0).replace_source_output(turn.input_value(0))
        step.input(1).replace_source_output(turned_back.output(0))
        turn.input(0).replace_source_output(step.output(0))
        for one in after:
            one.replace_source_output(turn.output(0))
        model.validate_nodes_and_infer_types()


def average_by_pooling(model: Any) -> None:
    """Replaces means over the whole picture by a pooling window of its size, in place; when a network is opened.

    It takes 2 to 10 % of a network's time away, where height and width are fixed. Not for 8 bits, where a pooling rounds
    what a mean does not, and the novelty column adds such roundings up.
    """
    openvino = load_openvino()
    ops = openvino.opset13

    for mean in model.get_ordered_ops():
        if mean.get_type_name() != "ReduceMean" or sorted(_order(mean)) != [2, 3]:
            continue
        maps, answer = mean.input_value(0), mean.output(0)
        shape = maps.get_partial_shape()
        if shape.rank.is_dynamic or len(shape) != 4 or shape[2].is_dynamic or shape[3].is_dynamic:
            continue
        window = [shape[axis].get_length() for axis in (2, 3)]
        pooled = ops.avg_pool(maps, [1, 1], [0, 0], [0, 0], window, True)
        keeps_axes = answer.get_partial_shape().rank.get_length() == 4
        instead = pooled if keeps_axes else ops.squeeze(pooled, ops.constant(np.array([2, 3])))
        for one in answer.get_target_inputs():
            one.replace_source_output(instead.output(0))
    model.validate_nodes_and_infer_types()


def _order(op: Any) -> list[int]:
    """The axes that an operation names; none where they are computed."""
    axes = op.input_value(1).get_node()
    return [int(axis) for axis in axes.get_data().ravel()] if axes.get_type_name() == "Constant" else []
