"""Loads Keras and OpenVINO, without what they print, and send home, by themselves; says which GPUs Keras' backend sees."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vehclass.errors import UsageError


def load_keras() -> tuple[Any, list[str]]:
    """The keras module, on the backend that KERAS_BACKEND names, and the GPUs that it sees.

    Raises UsageError where that backend is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _hushed():
        try:
            import keras
        except (ImportError, ValueError) as error:
            named = os.environ.get("KERAS_BACKEND")
            reason = f"Keras cannot load its backend{f' {named}' if named else ''} ({error}). Install it, or set KERAS_BACKEND to tensorflow."
            raise UsageError(reason=reason) from error

        backend = keras.backend.backend()
        found = gpus(backend)
        if found:
            _no_short_floats(backend)
        return keras, found


def load_openvino() -> Any:
    """The openvino module, which tells nobody that it is used.

    Importing it would start a process that sends an event to a service for statistics, unless the user has turned that off.
    Without the package that does so it goes on; NNCF likewise.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: it cannot be imported
    import openvino

    return openvino


def _no_short_floats(backend: str) -> None:
    """Lets 32-bit arithmetic be that: GPUs otherwise take 19 bits for it, and answers differ from a CPU's."""
    if backend == "tensorflow":
        import tensorflow

        tensorflow.config.experimental.enable_tensor_float_32_execution(False)
    elif backend == "torch":
        import torch

        torch.backends.cudnn.allow_tf32 = False
    elif backend == "jax":
        import jax

        jax.config.update("jax_default_matmul_precision", "highest")


def gpus(backend: str) -> list[str]:
    """The GPUs that a Keras backend sees."""
    if backend == "tensorflow":
        import tensorflow

        return [device.name for device in tensorflow.config.list_physical_devices("GPU")]
    if backend == "torch":
        import torch

        return [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    if backend == "jax":
        import jax

        return [str(device) for device in jax.devices() if device.platform == "gpu"]
    return []


def fast_policy(found: list[str]) -> str:
    """Keras' name for the fastest arithmetic that trains as well here: weights stay in 32 bits, the rest in 16 where the hardware has them."""
    if found:
        import tensorflow

        devices = tensorflow.config.list_physical_devices("GPU")
        if not devices:  # the GPU is another backend's
            return "mixed_bfloat16"
        details = tensorflow.config.experimental.get_device_details(devices[0])
        return "mixed_bfloat16" if details.get("compute_capability", (0, 0)) >= (8, 0) else "mixed_float16"
    return (
        "mixed_bfloat16"
        if "BF16" in load_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        else "float32"
    )


@contextmanager
def _hushed() -> Iterator[None]:
    """Keeps back what native code writes to standard error, unless loading fails: then it may say why.

    TensorFlow reports missing CUDA drivers and its choice of instructions there, before any log level counts.
    """
    with tempfile.TemporaryFile() as kept:
        real = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(real, kept.read())
            raise
        finally:
            os.dup2(real, 2)
            os.close(real)
