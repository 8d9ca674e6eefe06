"""Makes the 8-bit form of a network that has been exported: quantised on training photos, its novelty measured anew."""

import importlib.util
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vehclass.errors import UsageError, VehclassError
from vehclass.imaging import Pixels
from vehclass.model.export import quantize
from vehclass.model.frameworks import load_openvino
from vehclass.training import novelty

CALIBRATED_ON: Final = 300  # photos, by which the ranges of 8 bits are chosen
BATCH: Final = 32


def require_quantizer() -> None:
    """Raises UsageError where NNCF is not installed; imports nothing of it."""
    if importlib.util.find_spec("nncf") is None:
        raise UsageError(reason="--int8 needs nncf, which is not installed. Install it: pip install 'vehclass[int8]'.")


def make_int8(exported: Path, out: Path, photos: Pixels, checked: Pixels, limit: float) -> None:
    """Writes `out` (.xml, and .bin beside it), the 8-bit form of `exported`, whose novelty column keeps its limit.

    `photos` and `checked` are uint8 [n, height, width, 3]: training photos, in no order, and validation photos. Numbers
    of 8 bits move the means that novelty is measured by, so their whitening is computed from this form's own, and scaled so
    that `limit` lets as many of the validation photos pass as in 32 bits. Raises VehclassError.
    """
    openvino = load_openvino()

    with tempfile.TemporaryDirectory() as folder:
        draft, pixels = Path(folder) / "int8.xml", Path(folder) / "pixels.npy"
        np.save(pixels, photos[:CALIBRATED_ON])
        quantize(exported, draft, pixels)
        model = openvino.Core().read_model(draft)
        product, addition = _whitening_of(model)
        means = _answers(model, product.input_value(0), photos)
        kernel, bias = novelty.whitening(means)
        lengths = np.square(_answers(model, product.input_value(0), checked) @ kernel + bias).sum(axis=1)
        scale = np.float32(np.sqrt(limit / novelty.limit(lengths)))
        _replace(product, kernel.T * scale if product.get_attributes()["transpose_b"] else kernel * scale)
        _replace(addition, bias.reshape(addition.input_value(1).get_node().shape) * scale)
        # Read from files that go with the folder.
        openvino.save_model(model.clone(), out, compress_to_fp16=False)


def _whitening_of(model: Any) -> tuple[Any, Any]:
    """The product and the addition of the layer `novelty_whitened`, which the network's maker named."""
    found = {op.get_type_name(): op for op in model.get_ops() if "novelty_whitened" in op.get_friendly_name()}
    if "MatMul" not in found or "Add" not in found:
        raise VehclassError(reason="The 8-bit form has lost its novelty column. Train without --int8.")
    return found["MatMul"], found["Add"]


def _answers(model: Any, output: Any, pixels: Pixels) -> NDArray[np.float32]:
    """What a place in the model says to pictures: float32 [n, numbers]."""
    openvino = load_openvino()

    part = openvino.Model([output], model.get_parameters(), "means").clone()
    run = openvino.Core().compile_model(part, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    parts = [run(np.asarray(pixels[at : at + BATCH]))[0].copy() for at in range(0, len(pixels), BATCH)]
    return np.concatenate(parts)


def _replace(op: Any, constant: NDArray[np.float32]) -> None:
    """Puts another constant in the place of an operation's second input."""
    openvino = load_openvino()

    made = openvino.opset13.constant(np.ascontiguousarray(constant, np.float32))
    op.input(1).replace_source_output(made.output(0))
