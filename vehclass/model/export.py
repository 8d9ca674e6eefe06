"""Turns model.keras into a form that another runtime reads, and asks a form for its answers; in a process of its own.

    python -m vehclass.model.export convert FORM model.keras PLACE [pixels.npy logits.npy]
    python -m vehclass.model.export answer FORM PLACE pixels.npy logits.npy
    python -m vehclass.model.export quantize openvino model.xml PLACE pixels.npy

The process has the TensorFlow backend and no GPU, so that a model trained on any Keras backend is exported
the same way, Keras' own answers are of full precision, and what the frameworks print and hold ends with it.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vehclass.errors import UsageError, VehclassError
from vehclass.model.frameworks import load_openvino
from vehclass.model.graph import prepare_before_turning

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# What each form is called, and its main file in the folder that an export is ("" is the folder itself).
FORMS: Final = {"openvino": "model.xml", "onnx": "model.onnx", "saved_model": ""}
# What a program that uses a form calls its input and its output.
PORTS: Final = {
    "openvino": ("pixels", "output_0"),
    "onnx": ("pixels", "logits"),
    "saved_model": ("pixels", "output_0"),
}
# The packages whose versions an export depends on, as the registry knows them.
PACKAGES: Final = {
    "openvino": ("keras", "tensorflow", "openvino"),
    "onnx": ("keras", "tensorflow", "tf2onnx", "onnx", "onnxruntime"),
    "saved_model": ("keras", "tensorflow"),
}
# Has all that the backbones need, and every ONNX Runtime since 1.12 reads it.
ONNX_OPSET: Final = 17
BATCH: Final = 32


def export_openvino(keras_file: Path, out: Path) -> None:
    """Writes `out` (.xml, and .bin beside it) from a Keras file; weights stay 32-bit. Raises VehclassError."""
    convert("openvino", keras_file, out)


def convert(form: str, keras_file: Path, place: Path, questions: tuple[Path, Path] | None = None) -> None:
    """Writes a form of a Keras file to `place`: a file, or a folder for saved_model.

    The caller has checked the Keras file (`folder.check_keras_file`) unless it has just been written. With
    `questions`, (pixels.npy, logits.npy), Keras' own answers to these pictures are written, too. Raises
    UsageError for a form whose packages are not installed, VehclassError when it cannot be exported.
    """
    require(form)
    words = ("convert", form, str(keras_file), str(place), *map(str, questions or ()))
    _in_child(words, f"The model could not be exported to {form}")


def quantize(exported: Path, place: Path, pixels: Path) -> None:
    """Writes the 8-bit form of an OpenVINO model (.xml) to `place`, its ranges chosen by pictures.

    `pixels` is a .npy of uint8 [n, height, width, 3]. The novelty column stays in 32 bits. Raises VehclassError.
    """
    words = ("quantize", "openvino", str(exported), str(place), str(pixels))
    _in_child(words, "The model could not be brought to 8 bits")


def ask(form: str, place: Path, pixels: Path, logits: Path) -> None:
    """Writes the answers (.npy, float32 [n, columns]) of a form, run by its own runtime, to pictures.

    `pixels` is a .npy of uint8 [n, height, width, 3]. The first picture goes alone and the others 32 at a
    time, so that an answer also shows that the form takes any batch. Raises VehclassError.
    """
    words = ("answer", form, str(place), str(pixels), str(logits))
    _in_child(words, f"The exported form ({form}) could not be run")


def require(form: str) -> None:
    """Raises UsageError for a form that does not exist or whose packages are not installed; imports none."""
    if form not in FORMS:
        raise UsageError(reason=f"There is no format {form!r}; choose one of {', '.join(FORMS)}.")
    missing = [name for name in PACKAGES[form] if importlib.util.find_spec(name) is None]
    if missing:
        hint = " Install it: pip install 'vehclass[onnx]'." if form == "onnx" else ""
        raise UsageError(reason=f"The format {form} needs {' and '.join(missing)}, which is not installed.{hint}")


def _in_child(words: tuple[str, ...], failed: str) -> None:
    environment = {
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "vehclass.model.export", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode < 0:
        raise VehclassError(reason=f"{failed}: it was ended by signal {-done.returncode}; is there memory enough?")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise VehclassError(reason=f"{failed}: {last}")


# From here on: inside the child.


def _convert(form: str, keras_file: Path, place: Path, questions: list[Path]) -> None:
    import keras
    import numpy as np

    model = keras.saving.load_model(keras_file, compile=False, safe_mode=True)
    {"openvino": _to_openvino, "onnx": _to_onnx, "saved_model": _to_saved_model}[form](model, place)
    if questions:
        pixels = np.load(questions[0])
        np.save(questions[1], _in_batches(lambda batch: np.asarray(model.predict_on_batch(batch)), pixels))


def _to_saved_model(model: Any, place: Path) -> None:
    import keras

    # Named here, so that a form's ports have their names whatever the network calls its own.
    pixels = keras.InputSpec(shape=(None, *model.input_shape[1:]), dtype="uint8", name=PORTS["saved_model"][0])
    model.export(place, format="tf_saved_model", verbose=False, input_signature=[pixels])


def _to_openvino(model: Any, place: Path) -> None:
    # By way of a saved model with its uint8 input: probabilities right to 2e-4 on every backbone.
    _forbid_telemetry()
    openvino = load_openvino()

    with tempfile.TemporaryDirectory() as folder:
        _to_saved_model(model, Path(folder))
        converted = openvino.convert_model(folder, share_weights=False)
        height, width = model.input_shape[1:3]
        converted.reshape([-1, height, width, 3])
        given, answer = PORTS["openvino"]
        converted.inputs[0].set_names({given})
        converted.outputs[0].set_names({answer})
        prepare_before_turning(converted)
        openvino.save_model(converted, place, compress_to_fp16=False)


def _to_onnx(model: Any, place: Path) -> None:
    """By way of a frozen graph whose only input is the pixels.

    tf2onnx.convert.from_function, and with it Keras' own export to ONNX, takes whatever a function has captured
    for its input: the mean and variance of EfficientNetV2's Normalization became inputs that nobody feeds.
    Named by hand they stay the constants that they are.
    """
    import tensorflow
    from tf2onnx import optimizer, tf_loader
    from tf2onnx.tfonnx import process_tf_graph

    height, width = model.input_shape[1:3]
    spec = tensorflow.TensorSpec((None, height, width, 3), tensorflow.uint8, name="pixels")
    traced = tensorflow.function(lambda pixels: model(pixels, training=False))
    with _without_calls(tensorflow):
        function = traced.get_concrete_function(spec)
    given, answer = "pixels:0", function.outputs[0].name
    frozen = tf_loader.from_function(function, [given], [answer])
    with tensorflow.Graph().as_default() as graph:
        tensorflow.import_graph_def(frozen, name="")
        made = process_tf_graph(
            graph,
            opset=ONNX_OPSET,
            input_names=[given],
            output_names=[answer],
            tensors_to_rename=dict(zip((given, answer), PORTS["onnx"], strict=True)),
            custom_op_handlers={"Erfc": (_erfc, [])},
        )
    # Of tf2onnx' optimisers only those that take transpositions out. The others bring no speed that the
    # runtime does not bring itself, and take three times as long.
    wanted = ("optimize_transpose", "remove_identity", "remove_back_to_back")
    every = optimizer._get_optimizers()
    made = optimizer.optimize_graph(made, optimizers={name: every[name] for name in wanted})
    proto = made.make_model("vehclass")
    for port in (*proto.graph.input, *proto.graph.output):
        port.type.tensor_type.shape.dim[0].dim_param = "batch"
    import onnx

    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, place)


@contextmanager
def _without_calls(tensorflow: Any) -> Iterator[None]:
    """Lets what is traced meanwhile stand in one graph.

    Keras has the convolutions in groups of a ConvNeXt compiled by XLA, as functions of their own, which a
    converter cannot see into.
    """
    real = tensorflow.function
    tensorflow.function = lambda body=None, **options: body if body is not None else lambda inner: inner
    try:
        yield
    finally:
        tensorflow.function = real


def _erfc(graph: Any, node: Any, name: str, _: Any) -> Any:
    """erfc(x) as 1 - erf(x): ONNX has no operator for it, and ConvNeXt's GELU is made of it."""
    import numpy as np

    (given,), made, shapes, types = node.input, node.output, node.output_shapes, node.output_dtypes
    graph.remove_node(node.name)
    erf = graph.make_node("Erf", [given], dtypes=types, shapes=shapes)
    one = graph.make_const(f"{name}_one", np.array(1, np.float32))
    return graph.make_node("Sub", [one.output[0], erf.output[0]], name=name, outputs=made, dtypes=types, shapes=shapes)


def _quantize(exported: Path, place: Path, pixels: Path) -> None:
    _forbid_telemetry()
    import nncf
    import numpy as np

    openvino = load_openvino()

    pictures = nncf.Dataset([picture[None] for picture in np.load(pixels)])
    # What is named after it computes distances, in which a rounding of each number would add up.
    apart = nncf.IgnoredScope(patterns=[".*novelty.*"], validate=False)
    made = nncf.quantize(
        openvino.Core().read_model(exported),
        pictures,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(np.load(pixels, mmap_mode="r")),
        ignored_scope=apart,
    )
    openvino.save_model(made, place, compress_to_fp16=False)


def _answer(form: str, place: Path, pixels: Path, logits: Path) -> None:
    import numpy as np

    run = {"openvino": _openvino, "onnx": _onnxruntime, "saved_model": _tensorflow}[form](place)
    np.save(logits, _in_batches(run, np.load(pixels)))


def _openvino(place: Path) -> Any:
    _forbid_telemetry()
    openvino = load_openvino()

    # Else bfloat16 where the processor has it, which is another network.
    compiled = openvino.Core().compile_model(place, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    given, answer = PORTS["openvino"]
    return lambda batch: compiled({given: batch})[answer].copy()


def _onnxruntime(place: Path) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(place, providers=["CPUExecutionProvider"])
    given, answer = PORTS["onnx"]
    return lambda batch: session.run([answer], {given: batch})[0]


def _tensorflow(place: Path) -> Any:
    import tensorflow

    # Kept whole: a signature alone does not keep the weights that it was loaded with.
    loaded = tensorflow.saved_model.load(str(place))
    given, answer = PORTS["saved_model"]

    def run(batch: Any) -> Any:
        return loaded.signatures["serving_default"](**{given: tensorflow.constant(batch)})[answer].numpy()

    return run


def _in_batches(run: Any, pixels: Any) -> "NDArray[np.float32]":
    """Answers to all pictures: one alone, the others 32 at a time."""
    import numpy as np

    starts = [0, *range(1, len(pixels), BATCH)]
    stops = [*starts[1:], len(pixels)]
    answers = [run(pixels[start:stop]) for start, stop in zip(starts, stops, strict=True)]
    return np.concatenate(answers).astype(np.float32)


def _forbid_telemetry() -> None:
    # The converter reports its use to its maker unless this module is missing; a tool that runs at night
    # inside somebody's network tells nobody.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # Python's way to forbid an import


def _main(what: str, form: str, *paths: str) -> None:
    places = [Path(path) for path in paths]
    try:
        if what == "convert":
            _convert(form, places[0], places[1], places[2:])
        elif what == "quantize":
            _quantize(*places)
        else:
            _answer(form, *places)
    except Exception as error:  # whatever the frameworks raise becomes one line for the parent
        raise SystemExit(" ".join(f"{type(error).__name__}: {error}".split())[:500]) from error


if __name__ == "__main__":
    _main(*sys.argv[1:])
