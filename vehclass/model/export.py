"""Turns model.keras into the OpenVINO form that a CPU runs: `python -m vehclass.model.export model.keras openvino.xml`.

Runs as a process of its own with the TensorFlow backend, so that a model trained on any Keras backend is
exported the same way, and what TensorFlow and the converter print and hold ends with it.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from vehclass.errors import VehclassError


def export_openvino(keras_file: Path, out: Path) -> None:
    """Writes `out` (.xml, and .bin beside it) from a Keras file; weights stay 32-bit."""
    environment = {
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, "-m", "vehclass.model.export", str(keras_file), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise VehclassError(reason=f"The model could not be exported to OpenVINO: {last}")


def _convert(keras_file: Path, out: Path) -> None:
    # By way of a saved model with its uint8 input: the way that was right to 5e-5, while ONNX broke two
    # of three backbones.
    # The converter reports its use to its maker unless this module is missing; a tool that runs at night
    # inside somebody's network tells nobody.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # Python's way to forbid an import
    import keras
    import openvino

    model = keras.saving.load_model(keras_file, compile=False, safe_mode=True)
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, format="tf_saved_model", verbose=False)
        converted = openvino.convert_model(folder, share_weights=False)
        height, width = model.input_shape[1:3]
        converted.reshape([-1, height, width, 3])
        openvino.save_model(converted, out, compress_to_fp16=False)


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
