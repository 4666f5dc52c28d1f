"""A model in eight bits: an ONNX file that is as exact as its float original where it matters, and what it costs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segzoo._errors import unknown_name
from segzoo._files import check_writable, write_whole
from segzoo._pairs import pictures_in
from segzoo.export._heads import split_heads
from segzoo.export._sensitive import channels_of, ranges_of, sensitive_nodes
from segzoo.export.onnx import to_onnx
from segzoo.inference.picture import PictureLike, read_picture
from segzoo.inference.preprocessing import preprocess
from segzoo.inference.runtimes import FileModel, is_onnx
from segzoo.models.base import SegmentationModel

__all__ = ["QuantizationReport", "quantize"]

_HELD_OUT = 4  # every fourth picture
_LOOKED_AT = 4  # for nearly constant channels, which hardly depend on the picture
_OLDEST_OPSET = 13  # the first with scales per channel

Array = NDArray[np.float32]


@dataclass(frozen=True)
class QuantizationReport:
    """What eight bits cost.

    Args:
        calibrated: How many pictures gave the ranges.
        compared: How many the two files were compared on.
        held_out: Whether those are others; of fewer than four pictures none is held out.
        difference: Mean absolute difference of the probabilities.
        flipped: Share of the pixels that have another class in the mask.
        float_bytes: Size of the float file.
        int8_bytes: Size of the quantised one.
        kept: The nodes that stayed in float, by name, and why.
    """

    calibrated: int
    compared: int
    held_out: bool
    difference: float
    flipped: float
    float_bytes: int
    int8_bytes: int
    kept: dict[str, str]

    def __str__(self) -> str:
        others = "held-out" if self.held_out else "of the same"
        lines = [
            f"calibrated on {self.calibrated} pictures, compared with float32 on {self.compared} {others}:",
            f"  probabilities differ by {self.difference:.4f} on average, {self.flipped:.2%} of the masks' pixels flip",
            f"  {self.float_bytes / 1e6:.1f} MB became {self.int8_bytes / 1e6:.1f} MB",
            f"  in float: {len(self.kept) or 'no'} nodes" + ":" * bool(self.kept),
        ]
        return "\n".join([*lines, *(f"    {name}: {why}" for name, why in self.kept.items())])


def quantize(
    model: str | os.PathLike[str] | SegmentationModel,
    calibration_pictures: str | os.PathLike[str] | Sequence[PictureLike],
    path: str | os.PathLike[str],
    *,
    keep_float: Sequence[str] | None = None,
    most: int = 40,
    reduce_range: bool = False,
) -> QuantizationReport:
    """Write a model as an ONNX file in eight bits, and say how its masks differ from those in float32.

    Activations are unsigned with a scale per tensor, weights signed with a scale per output channel (U8S8, as
    QuantizeLinear and DequantizeLinear around the operators); onnxruntime and OpenVINO run that as integer arithmetic.
    Where a nearly constant, large channel would be lost in eight bits, all that makes, hands on and takes it stays in
    float. Metadata and the freedom of N, H and W are those of the float file.

    Args:
        model: A name, a model, or the path of a float ONNX file that ``to_onnx`` wrote.
        calibration_pictures: A folder, or any pictures that ``read_picture`` takes. A few dozen of the kind that the
            model is for; those that it will be scored on do not belong here. Every fourth is only compared on.
        path: The file to write; one that is there is replaced.
        keep_float: Names of the nodes that stay in float. None: those that measurement finds; ``()``: none. The sums
            that heads with one channel end in do so anyway.
        most: How many pictures are used; of more, so many at even distances.
        reduce_range: Whether weights have seven bits, for x86 processors older than VNNI (before 2019): their sums of
            eight-bit products overflow.

    Raises:
        ImportError: Without onnx and onnxruntime (``pip install segzoo[export]``).
        ValueError: If there is no picture, the file is no float file of ours, or has no such node.
        TypeError: For what is no model.
        OSError: If a file cannot be read or written.

    Source:
        B. Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference", CVPR 2018, for the scheme.

    Examples:
        >>> report = quantize("u2net_lite", "photos", "u2net_lite.int8.onnx")  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
        calibrated on 30 pictures, compared with float32 on 10 held-out:
          probabilities differ by 0.0022 on average, 0.22% of the masks' pixels flip
          …
    """
    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise ImportError(f"{package} is not installed: pip install 'segzoo[export]'")
    import onnx

    check_writable(path)
    if hasattr(model, "roi_heads") or str(model).startswith("mask_rcnn"):
        raise ValueError("a detector is not quantized: expected a model that gives logits")
    pictures = _chosen(calibration_pictures, most)
    with tempfile.TemporaryDirectory() as folder:
        original = Path(os.fspath(model)) if is_onnx(model) else Path(folder) / "float.onnx"  # type: ignore[arg-type]
        if not is_onnx(model):
            to_onnx(model, original)  # type: ignore[arg-type]
        wide = FileModel(original)
        network = onnx.load(original)
        _check(network, wide.name, keep_float)
        sums = dict.fromkeys(split_heads(network), "sums a head's taps: one channel is faster in float")
        network = onnx.shape_inference.infer_shapes(network)
        float_bytes = original.stat().st_size
        held = pictures[_HELD_OUT - 1 :: _HELD_OUT]
        seen = [picture for i, picture in enumerate(pictures) if i % _HELD_OUT != _HELD_OUT - 1]

        def inputs(of: Sequence[PictureLike]) -> Iterator[Array]:
            return (_input(picture, wide) for picture in of)

        ranges = ranges_of(network, inputs(seen))
        if keep_float is None:
            kept = sensitive_nodes(network, ranges, channels_of(network, inputs(seen[:_LOOKED_AT])))
        else:
            kept = dict.fromkeys(keep_float, "was asked for")
        kept |= sums
        content = _quantized(network, ranges, list(kept), reduce_range)
        narrow = FileModel(content, name=os.fspath(path))
        difference, flipped = _cost(wide, narrow, inputs(held or seen))
        with write_whole(path) as file:
            file.write(content)
    return QuantizationReport(
        len(seen), len(held or seen), bool(held), difference, flipped, float_bytes, len(content), kept
    )


def _chosen(pictures: str | os.PathLike[str] | Sequence[PictureLike], most: int) -> list[PictureLike]:
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}")
    found: list[PictureLike]
    if isinstance(pictures, (str, os.PathLike)):
        place = Path(pictures)
        found = [place / name for name in pictures_in(place, place, recursive=False)]
    elif isinstance(pictures, (list, tuple)):
        found = list(pictures)
    else:
        raise TypeError(f"calibration_pictures is a folder or a list of pictures, got {type(pictures).__name__}")
    if not found:
        raise ValueError(f"there is no picture to calibrate with in {pictures!r}, expected a few dozen")
    if len(found) <= most:
        return found
    return [found[int(i)] for i in np.linspace(0, len(found) - 1, most).round()]


def _check(network: Any, name: str, keep_float: Sequence[str] | None) -> None:
    opset = next(entry.version for entry in network.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < _OLDEST_OPSET:
        raise ValueError(f"{name} is of opset {opset}, expected at least {_OLDEST_OPSET}")
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in network.graph.node):
        raise ValueError(f"{name} is quantised already, expected a float file")
    if isinstance(keep_float, str):
        raise TypeError(f"keep_float is a list of names, got the string {keep_float!r}")
    nodes = {node.name for node in network.graph.node}
    for given in keep_float or ():
        if given not in nodes:
            raise unknown_name("node", given, nodes)


def _input(picture: PictureLike, model: FileModel) -> Array:
    """``[N, C, H, W]`` as the file takes it; one that takes several at once gets the same several times."""
    x: Array = preprocess(read_picture(picture, in_channels=model.in_channels), model.preprocessing).numpy()
    return np.repeat(x[None], model.batch or 1, axis=0)


def _quantized(network: Any, ranges: dict[str, tuple[float, float]], kept: list[str], reduce_range: bool) -> bytes:
    import onnx
    from onnxruntime.quantization import QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import TensorData
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    limits = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()
    }
    described = {entry.key: entry.value for entry in network.metadata_props}
    described["quantization"] = json.dumps({"activations": "uint8", "weights": "int8", "float": kept})
    with _quietly():
        quantizer = QDQQuantizer(
            network,
            per_channel=True,
            reduce_range=reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,  # signed ones are slower than float32 on x86
            tensors_range=limits,
            nodes_to_quantize=[],
            nodes_to_exclude=kept,
            op_types_to_quantize=sorted({*QDQRegistry, *QLinearOpsRegistry}),
            extra_options={},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    done: Any = quantizer.model.model
    done.producer_name = "segzoo"
    onnx.helper.set_model_props(done, described)
    onnx.checker.check_model(done)
    content: bytes = done.SerializeToString()
    return content


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the remarks of onnxruntime's quantisation, which go to the root logger; those of others stay."""
    root, nothing = logging.getLogger(), logging.NullHandler()  # without any handler the first remark installs one
    refuse: Callable[[logging.LogRecord], bool] = lambda record: "quantization" not in record.pathname  # noqa: E731
    root.addHandler(nothing)
    root.addFilter(refuse)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(refuse)
        root.removeHandler(nothing)


def _cost(wide: FileModel, narrow: FileModel, inputs: Iterator[Array]) -> tuple[float, float]:
    """Mean difference of the probabilities, and the share of the pixels whose class changes."""
    differences, flips = [], []
    for x in inputs:
        expected, got = wide.predict(x), narrow.predict(x)
        differences.append(np.abs(expected - got).mean())
        if wide.num_classes == 1 or wide.multilabel:
            flips.append(((expected > wide.threshold) != (got > wide.threshold)).mean())
        else:
            flips.append((expected.argmax(1) != got.argmax(1)).mean())
    return float(np.mean(differences)), float(np.mean(flips))
