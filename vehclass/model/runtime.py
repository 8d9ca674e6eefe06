"""Runs a network: uint8 pixels in, logits out, on OpenVINO (CPU) or on Keras (GPU, or any backend).

Both give the same for the same pixels, within the difference that model.json records. A runtime may be
called from `lanes` threads at once; it says how many pictures a forward pass takes.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from vehclass.errors import DeviceMissing, ModelRefused, UsageError
from vehclass.imaging import Pixels
from vehclass.model.accelerated import best_batch, in_bfloat16
from vehclass.model.folder import INT8_FILE, KERAS_FILE, OPENVINO_FILE, ModelFolder, check_keras_file
from vehclass.model.frameworks import load_keras, load_openvino
from vehclass.model.graph import average_by_pooling, why_unfit
from vehclass.model.precision import AUTO, BF16, F32, INT8, Choice, choose

Logits = NDArray[np.float32]

# Measured on two cores with three backbones: on a CPU larger batches are no quicker, or slower since they leave the
# caches, and take a quarter more memory; on a GPU they are the point, and are found by trying.
CPU_BATCH: Final = 16
MOST_OF_COPIES: Final = 2**30  # bytes of weights, of the networks of all threads
IN_FLIGHT: Final = 2  # batches that a GPU has at a time, so that one is copied while another is computed


class Runtime(Protocol):
    """What a classifier needs of a runtime."""

    name: str
    device: str
    precision: Choice
    batch_size: int  # of a forward pass

    def logits(self, pixels: Pixels) -> Logits:
        """Float32 [n, labels of all tasks] for uint8 [n, height, width, 3], n > 0; a multiple of `batch_size` is best."""
        ...


def open_runtime(
    folder: ModelFolder, *, kind: str, batch_size: int | None, threads: int, require_gpu: bool, precision: str = F32
) -> Runtime:
    """The runtime for a model folder: `kind` is auto, openvino or keras, `precision` one of precision.PRECISIONS.

    auto takes Keras where its backend sees a GPU and OpenVINO otherwise; looking for a GPU loads a
    framework, so without a sign of one (a device file of NVIDIA's driver) nothing is loaded.
    """
    if kind == "keras" or require_gpu or (kind == "auto" and _gpu_may_exist()):
        runtime = KerasRuntime(folder, batch_size, precision)
        if require_gpu and not runtime.on_gpu:
            raise DeviceMissing(reason=f"Keras with its {runtime.backend} backend sees none")
        if kind == "keras" or runtime.on_gpu:
            return runtime
    return OpenVinoRuntime(folder, batch_size or CPU_BATCH, threads, precision)


def fewer_bits_here() -> list[str]:
    """The precisions below 32 bits that this processor computes the same network in."""
    openvino = load_openvino()

    return [BF16] if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else []


def cores_are_alike(system: Path = Path("/sys/devices")) -> bool:
    """Whether every core is as near to all memory and as quick as the others.

    Where they are not, OpenVINO ties a network of one stream to the first node, or to the quick cores; so it does
    nowhere else, but only Linux says which it is: Intel's two kinds by a device, ARM's by a figure for each core.
    """
    nodes = [node for node in system.glob("system/node/node*") if node.name[4:].isdigit()]
    speeds = {file.read_text() for file in system.glob("system/cpu/cpu*/cpu_capacity")}
    two_kinds = (system / "cpu_atom").exists() or len(speeds) > 1
    return (system / "system/cpu").is_dir() and len(nodes) <= 1 and not two_kinds


def _gpu_may_exist() -> bool:
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


class OpenVinoRuntime:
    """The CPU's runtime: every thread that calls it computes by itself, on a network that it has to itself meanwhile.

    OpenVINO's own way, a network with a stream for each thread, hands each batch to threads of its own. A core then
    stands idle for up to 16 ms whenever the system has put two of them on one: 3 % of two cores' time with
    MobileNetV3Small. A network of one stream computes in the thread that calls it, so there is one for each, made when
    it is first needed. Streams share the weights, which networks do not: where that is too much, it is streams after all.
    """

    name = "openvino"

    def __init__(self, folder: ModelFolder, batch_size: int, threads: int, precision: str = F32) -> None:
        openvino = load_openvino()

        core = openvino.Core()
        self.precision = choose(folder.info.facts, precision, core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        file = folder.file(INT8_FILE if self.precision.name == INT8 else OPENVINO_FILE)
        try:
            model = core.read_model(file)
            width, height = folder.info.input_size
            # One fixed shape: the last batch is padded, so that a picture's answer does not depend on
            # how many came with it.
            model.reshape([batch_size, height, width, 3])
            if reason := why_unfit(model, batch_size):
                raise ModelRefused(path=folder.path, reason=f"{file.name} {reason}")
            if self.precision.name != INT8:
                average_by_pooling(model)
            copies = threads * file.with_suffix(".bin").stat().st_size
            self._alone = copies <= MOST_OF_COPIES and cores_are_alike()
            streams = 1 if self._alone else threads
            self._compile: Callable[[], Any] = lambda: core.compile_model(
                model,
                "CPU",
                {
                    # Said, since OpenVINO takes bfloat16 by itself where the processor has it. What is left of an
                    # 8-bit network in floating point stays in 32 bits.
                    "INFERENCE_PRECISION_HINT": BF16 if self.precision.name == BF16 else F32,
                    "NUM_STREAMS": streams,
                    "INFERENCE_NUM_THREADS": streams,
                    "ENABLE_CPU_PINNING": False,
                },
            )
            self._compiled = [self._compile()]
        except RuntimeError as error:
            raise ModelRefused(path=folder.path, reason=f"OpenVINO cannot run {file.name} ({error})") from error
        self.batch_size = batch_size
        self.device = f"CPU, {threads} thread{'s' if threads != 1 else ''}, {self.precision.name}"
        self._idle = [self._compiled[0].create_infer_request()]
        self._first = threading.Lock()
        self._started = threading.Event()

    def logits(self, pixels: Pixels) -> Logits:
        """See Runtime."""
        if self._started.is_set():
            return self._infer(pixels)
        # The first call of a process goes alone: OpenVINO's Python module finishes its set-up in it, and two
        # threads that do so at once wait for each other for ever, one for Python's lock and one for the
        # set-up's (5 of 30 processes with four threads hung, with openvino 2026.4).
        with self._first:
            if not self._started.is_set():
                answer = self._infer(pixels)
                self._started.set()
                return answer
        return self._infer(pixels)

    def _infer(self, pixels: Pixels) -> Logits:
        try:
            request = self._idle.pop()
        except IndexError:  # more threads at a time than ever before
            request = self._another()
        parts: list[Logits] = []
        try:
            for at in range(0, len(pixels), self.batch_size):
                part = pixels[at : at + self.batch_size]
                request.infer([_padded(part, self.batch_size)], share_inputs=True)
                parts.append(request.get_output_tensor(0).data[: len(part)].copy())
        finally:
            self._idle.append(request)
        return np.concatenate(parts)

    def _another(self) -> Any:
        compiled = self._compiled[0]
        if self._alone:
            try:
                compiled = self._compile()
            except RuntimeError as error:
                reason = f"OpenVINO cannot make the network once more, for another thread ({error}). Set fewer threads."
                raise UsageError(reason=reason) from error
            self._compiled.append(compiled)
        return compiled.create_infer_request()


class KerasRuntime:
    """Keras on whatever backend KERAS_BACKEND names; the GPU's runtime.

    A GPU computes in bfloat16 where the model's record has measured that the answers stay the same, gets batches as
    large as pay, and two at a time. Out of memory halves the batch and goes on.
    """

    name = "keras"

    def __init__(self, folder: ModelFolder, batch_size: int | None, precision: str = F32) -> None:
        if precision == INT8:
            raise UsageError(reason="--precision int8 goes with --runtime openvino: Keras computes in f32 or bf16.")
        file = folder.file(KERAS_FILE)
        check_keras_file(file)
        keras, found = load_keras()
        self.backend: str = keras.backend.backend()
        self.on_gpu = bool(found)
        try:
            self._model = keras.saving.load_model(file, compile=False, safe_mode=True)
        except Exception as error:  # whatever Keras, HDF5 and the backend raise for what does not fit together
            reason = f"Keras cannot load {file.name} ({(str(error) or type(error).__name__).splitlines()[0][:200]})"
            raise ModelRefused(path=folder.path, reason=reason) from error
        # A CPU takes bfloat16 here only when it is asked for: OpenVINO is its runtime.
        asked = precision if self.on_gpu or precision != AUTO else F32
        self.precision = choose(folder.info.facts, asked, ["BF16"])
        if self.precision.name == BF16:
            self._model = in_bfloat16(self._model)
        # On a CPU one forward pass at a time: meanwhile the other threads decode.
        self._turns = threading.BoundedSemaphore(IN_FLIGHT if self.on_gpu else 1)
        self._step = self.batch_size = batch_size or (self._best_batch(folder) if self.on_gpu else CPU_BATCH)
        self.device = f"{'GPU' if self.on_gpu else 'CPU'}, {self.backend}, {self.precision.name}"

    def _best_batch(self, folder: ModelFolder) -> int:
        width, height = folder.info.input_size

        def seconds_of(count: int) -> float:
            pixels = np.zeros((count, height, width, 3), np.uint8)
            self._model.predict_on_batch(pixels)  # the first of a shape is compiled
            began = time.perf_counter()
            np.asarray(self._model.predict_on_batch(pixels))
            return time.perf_counter() - began

        return best_batch(seconds_of, is_out_of_memory)

    def logits(self, pixels: Pixels) -> Logits:
        """See Runtime."""
        with self._turns:
            while True:
                step = self._step  # another thread may halve it meanwhile
                try:
                    parts = [self._forward(pixels[at : at + step], step) for at in range(0, len(pixels), step)]
                    return np.concatenate(parts)
                except Exception as error:
                    if step == 1 or not is_out_of_memory(error):
                        raise
                    self._step = min(self._step, step // 2)

    def _forward(self, pixels: Pixels, step: int) -> Logits:
        answer = self._model.predict_on_batch(_padded(pixels, step))
        return np.asarray(answer, np.float32)[: len(pixels)]


def _padded(pixels: Pixels, count: int) -> Pixels:
    """The batch filled up to `count` pictures, so that a network is compiled for one shape only."""
    if len(pixels) == count:
        return pixels
    full = np.zeros((count, *pixels.shape[1:]), np.uint8)
    full[: len(pixels)] = pixels
    return full


def is_out_of_memory(error: Exception) -> bool:
    """Each backend has its own class for it, and the words in common."""
    text = f"{type(error).__name__} {error}".lower()
    return "resourceexhausted" in text or "resource_exhausted" in text or "out of memory" in text
