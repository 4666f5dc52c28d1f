"""ONNX files in the runtimes that take them, which then all look alike: an array in, an array out."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections import OrderedDict, deque
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segzoo._errors import unknown_name

__all__ = ["RUNTIMES", "Session", "Shape", "check_runtime", "imported", "open_session"]

Shape: TypeAlias = "tuple[int | None, ...]"
"""Of an input or output; None is free."""

RUNTIMES = ("onnxruntime", "openvino")
_SIZES_AT_ONCE = 8  # that OpenVINO keeps networks for
_HINTS = {"auto": "f32", "fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class Session(Protocol):
    """A network that is ready to run; any number of threads may call it at once.

    Attributes:
        input: Of its only input.
        output: Of its first output.
        metadata: What the file says of itself.
        device: Where it runs.
    """

    input: Shape
    output: Shape
    metadata: dict[str, str]
    device: str

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]: ...


def open_session(file: Path | bytes, runtime: str, *, name: str, device: str, precision: str) -> Session:
    """A file, or its content, in a runtime.

    Args:
        file: ONNX.
        runtime: ``"onnxruntime"`` or ``"openvino"``.
        name: Of the file, for messages.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` … or one that OpenVINO lists.
        precision: ``"auto"``, ``"fp32"``, ``"bf16"`` or ``"fp16"``.

    Raises:
        ImportError: If the runtime is not installed.
        ValueError: If the file is broken, or the runtime has no such device or precision.
    """
    opened: type[_OnnxRuntime | _OpenVino] = _OnnxRuntime if runtime == "onnxruntime" else _OpenVino
    return opened(file, name, device, precision)


def check_runtime(runtime: str, device: str, precision: str) -> None:
    """Raise now what ``open_session`` would raise of any file."""
    package = imported(runtime)
    if runtime == "onnxruntime":
        _providers(package, device, precision)
    else:
        _place(package.Core(), device, precision)


class _OnnxRuntime:
    def __init__(self, file: Path | bytes, name: str, device: str, precision: str) -> None:
        onnxruntime = imported("onnxruntime")
        wanted = _providers(onnxruntime, device, precision)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is an exception, not a line on stderr too
        threads = _threads()
        if threads is not None:
            options.intra_op_num_threads = threads
        given = file if isinstance(file, bytes) else os.fspath(file)
        try:
            session = onnxruntime.InferenceSession(given, options, providers=wanted)
        except Exception as error:  # its own types, which have no base of their own
            raise ValueError(f"{name} cannot be loaded by onnxruntime ({_reason(error)})") from None
        on_gpu = session.get_providers()[0] == "CUDAExecutionProvider"
        if wanted[0] != "CPUExecutionProvider" and not on_gpu and device != "auto":
            raise _not_there(device, "onnxruntime could not start CUDA")
        self._session: Any = session
        self._name = name
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)":
            kinds = ", ".join(f"{one.name} {one.type}" for one in inputs)
            raise ValueError(f"{name} takes {kinds}, expected one input, of float32")
        self._input, self._output = inputs[0].name, outputs[0].name
        self.input, self.output = _shape(inputs[0].shape), _shape(outputs[0].shape)
        self.metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
        self.device = ("cuda" if device == "auto" else device) if on_gpu else "cpu"

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            found: NDArray[np.float32] = self._session.run([self._output], {self._input: x})[0]
        except Exception as error:
            raise RuntimeError(f"{self._name} failed in onnxruntime ({_reason(error)})") from None
        return found


class _OpenVino:
    def __init__(self, file: Path | bytes, name: str, device: str, precision: str) -> None:
        openvino = imported("openvino")
        core = openvino.Core()
        place, hint = _place(core, device, precision)
        # Its own default is the narrowest that is quick: nobody checked that a network stands that.
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint}
        threads = _threads()
        if threads is not None and place == "CPU":
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            source = {"model": file, "weights": b""} if isinstance(file, bytes) else {"model": os.fspath(file)}
            network = core.read_model(**source)
        except Exception as error:
            raise ValueError(f"{name} cannot be loaded by OpenVINO ({_reason(error)})") from None
        if len(network.inputs) != 1 or network.inputs[0].get_element_type().get_type_name() != "f32":
            kinds = ", ".join(f"{x.any_name} {x.get_element_type().get_type_name()}" for x in network.inputs)
            raise ValueError(f"{name} takes {kinds}, expected one input, of float32")
        self._name, self._network = name, network
        self._compile = partial(core.compile_model, device_name=place, config=settings)
        self._ready: OrderedDict[tuple[int, ...], _Compiled] = OrderedDict()  # by height and width
        self._lock = threading.Lock()
        self.input, self.output = (_partial(x.get_partial_shape()) for x in (network.inputs[0], network.outputs[0]))
        said = network.get_rt_info(["framework"]).value if "framework" in list(network.get_rt_info()) else {}
        self.metadata: dict[str, str] = {key: str(value) for key, value in said.items()}
        self.device = place.lower()
        if None not in self.input[2:]:
            self._for_size(self.input[2:])  # type: ignore[arg-type]  # what is wrong with it is said now

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._for_size(x.shape[2:])(x)

    def _for_size(self, size: tuple[int, ...]) -> _Compiled:
        """The network for pictures of one height and width.

        With free ones OpenVINO 2026.4 makes wrong masks of eight-bit files: it overwrites what is concatenated later.
        """
        with self._lock:
            if size not in self._ready:
                try:
                    network = self._network.clone()
                    network.reshape([-1 if n is None else n for n in (*self.input[:2], *size)])
                    self._ready[size] = _Compiled(self._compile(network), self._name)
                except Exception as error:
                    raise ValueError(f"{self._name} cannot be loaded by OpenVINO ({_reason(error)})") from None
                if len(self._ready) > _SIZES_AT_ONCE:
                    self._ready.popitem(last=False)
            self._ready.move_to_end(size)
            return self._ready[size]


class _Compiled:
    """A network for one size of pictures."""

    def __init__(self, compiled: Any, name: str) -> None:
        self._compiled, self._name = compiled, name
        self._requests: deque[Any] = deque()  # those that are free: one is for one thread at a time

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            request = self._requests.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            request.infer([x], share_inputs=True)
            found: NDArray[np.float32] = np.array(request.get_output_tensor(0).data)
        except Exception as error:
            raise RuntimeError(f"{self._name} failed in OpenVINO ({_reason(error)})") from None
        self._requests.append(request)
        return found


def imported(package: str) -> Any:
    """A package that not everybody has installed; an ImportError says how.

    Examples:
        >>> imported("runtime_of_nobody")
        Traceback (most recent call last):
        ImportError: runtime_of_nobody is not installed: pip install runtime_of_nobody
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ImportError(f"{package} is not installed: pip install {package}") from None


def _threads() -> int | None:
    """How many threads the user wants to be used, where that is less than there are processors."""
    limits = [len(os.sched_getaffinity(0))] if hasattr(os, "sched_getaffinity") else []
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        limits.append(int(asked))
    torch = sys.modules.get("torch")
    if torch is not None:
        limits.append(torch.get_num_threads())
    fewest = min(limits, default=None)
    return fewest if fewest is not None and fewest < (os.cpu_count() or 1) else None


def _providers(onnxruntime: Any, device: str, precision: str) -> list[Any]:
    """What onnxruntime is asked to run on, the best first."""
    if precision not in ("auto", "fp32"):
        raise ValueError(
            f"precision is {precision!r}, and onnxruntime computes as the file says: expected 'auto' or 'fp32' "
            "(segzoo.export.quantize makes an int8 file)"
        )
    there = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and (kind != "cuda" or not number.isdecimal())):
        raise unknown_name("device of onnxruntime", device, ["auto", "cpu", "cuda", "cuda:1"])
    if kind == "cpu" or (kind == "auto" and not there):
        return ["CPUExecutionProvider"]
    if not there:
        raise _not_there(device, "this onnxruntime runs on the CPU only; onnxruntime-gpu is for CUDA")
    cuda = ("CUDAExecutionProvider", {"device_id": int(number or 0)})
    return [cuda, "CPUExecutionProvider"]


def _place(core: Any, device: str, precision: str) -> tuple[str, str]:
    """Where OpenVINO runs a network, and how narrow."""
    place = "CPU" if device == "auto" else device.upper()
    if place not in core.available_devices:
        known = ", ".join(["auto", *map(str.lower, core.available_devices)])
        raise _not_there(device, f"OpenVINO lists {known}")
    able = core.get_property(place, "OPTIMIZATION_CAPABILITIES")
    if precision not in ("auto", "fp32") and precision.upper() not in able:
        raise ValueError(f"precision is {precision!r}, and OpenVINO's {place} has it not here: expected 'fp32'")
    return place, _HINTS[precision]


def _not_there(device: str, why: str) -> ValueError:
    return ValueError(f"device {device!r} was asked for and is not there ({why}); device='auto' takes what is")


def _shape(dimensions: list[Any]) -> Shape:
    return tuple(d if isinstance(d, int) and d > 0 else None for d in dimensions)


def _partial(shape: Any) -> Shape:
    if shape.rank.is_dynamic:
        return ()
    return tuple(d.get_length() if d.is_static else None for d in shape)


def _reason(error: Exception) -> str:
    """What a runtime says, without its codes and the places in its own source."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception from")]
    text = said[0].rpartition(" : ")[2] if said else type(error).__name__
    return text.rstrip(".:")
