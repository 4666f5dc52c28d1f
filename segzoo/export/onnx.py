"""A model as an ONNX file, compared with it before the file is there."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import torch

from segzoo._files import check_writable, write_whole
from segzoo.export._prepared import (
    Exported,
    compare,
    compared_shapes,
    described,
    noise,
    opened,
    prepared,
    quiet,
    reason,
    traced_shape,
)
from segzoo.export.program import captured
from segzoo.models.base import SegmentationModel

__all__ = ["to_onnx"]

OPSETS = range(18, 24)  # what torch's exporter has operators for
_MOST = 2**31 - 2**20  # bytes: of a file with its weights in it


def to_onnx(
    model: str | SegmentationModel,
    path: str | os.PathLike[str],
    *,
    dynamic: bool = True,
    size: tuple[int, int] | None = None,
    batch: int = 1,
    opset: int = 20,
    include_postprocessing: bool = False,
) -> float:
    """Write a model as an ONNX file, after onnxruntime has given the same numbers.

    The input ``image`` is ``[N, in_channels, H, W]``, float32, normalised as the metadata say; the output is
    ``logits`` or ``probabilities`` ``[N, num_classes, H, W]``. Norms are folded into the convolutions.

    Args:
        model: A name (``"u2net_lite"``), ``"local-dir:PATH"``, ``"hf-hub:org/repo"``, or a model; it stays as it is.
        path: The file to write; one that is there is replaced.
        dynamic: Whether N is free, and H and W from 33 pixels on; else ``batch`` and ``size`` are fixed.
        size: Height and width of a file that is not dynamic. None: those of the model's preprocessing.
        batch: N of a file that is not dynamic.
        opset: Of ONNX, 18 to 23.
        include_postprocessing: Whether a sigmoid or softmax is part of it.

    Returns:
        The largest difference from the model, as a share of its outputs' range, over two sizes and batches that were
        not traced (of one that is not dynamic: over its own).

    Raises:
        ImportError: Without onnx, onnxscript and onnxruntime (``pip install 'segzoo[export]'``).
        ValueError: If torch cannot export it, or onnxruntime does not give the same to 1e-4; nothing is written then.
        TypeError: For what is no model, or one that is not in float32.
        OSError: If the file cannot be written.

    Examples:
        >>> import tempfile
        >>> to_onnx("u2net_lite", f"{tempfile.mkdtemp()}/u2net_lite.onnx") < 1e-4  # doctest: +SKIP
        True
    """
    check_installed()
    if opset not in OPSETS:
        raise ValueError(f"opset is {OPSETS[0]} to {OPSETS[-1]}, got {opset!r}")
    check_writable(path)
    loaded = opened(model)
    if hasattr(loaded, "roi_heads"):
        if include_postprocessing:
            raise ValueError(
                "include_postprocessing is of logits; a detector's file gives boxes, labels, scores and masks"
            )
        data, difference = _detector(loaded, dynamic, size, batch, opset)
    else:
        exported = prepared(loaded, include_postprocessing)
        traced = traced_shape(exported.model, dynamic, size, batch)
        _check_weights(exported)
        proto = _translated(captured(exported, traced, dynamic), exported.output, opset)
        data = _finished(proto, described(exported.model, exported.output), "NCHW")
        session = session_of(data)
        difference = max(_difference(exported, session, shape) for shape in compared_shapes(traced, dynamic))
    with write_whole(path) as file:
        file.write(data)
    return difference


def _difference(exported: Exported, session: Any, shape: tuple[int, ...]) -> float:
    x = noise(shape)
    with torch.inference_mode():
        expected = exported(x)
    try:
        (got,) = session.run(None, {"image": x.numpy()})
    except Exception as error:  # onnxruntime's own kinds
        raise ValueError(f"onnxruntime does not take {list(x.shape)}: {reason(error)}") from error
    return compare(f"the ONNX file at {shape[2]}×{shape[3]}", expected, torch.from_numpy(got))


def _detector(model: Any, dynamic: bool, size: tuple[int, int] | None, batch: int, opset: int) -> tuple[bytes, float]:
    """The file of a detector, and how far its boxes are from the model's."""
    from segzoo.export.detection import check_detector, detector, detector_shapes, fix_threshold, translated_detector

    exported = detector(model)
    traced, *shapes = detector_shapes(exported, dynamic, size, batch)
    proto = translated_detector(exported, traced, dynamic, opset)
    session = session_of(proto.SerializeToString())
    difference = max(check_detector(exported, session, shape) for shape in shapes)
    fix_threshold(proto, model.roi_heads.score_thresh)
    data = _finished(proto, described(model, "detections"), "")
    session_of(data)
    return data, difference


def _check_weights(exported: Exported) -> None:
    size = sum(x.nbytes for x in exported.state_dict().values())
    if size > _MOST:
        raise ValueError(f"an ONNX file holds 2 GiB at most, and these weights are {size / 2**30:.1f} GiB")


def check_installed() -> None:
    """Raise ImportError unless all that an export takes is there."""
    missing = [package for package in ("onnx", "onnxscript", "onnxruntime") if find_spec(package) is None]
    if missing:
        raise ImportError(f"{' and '.join(missing)} not installed: pip install 'segzoo[export]'")


def _translated(program: torch.export.ExportedProgram, output: str, opset: int) -> Any:
    """The program as ONNX."""
    try:
        with quiet():
            made: Any = torch.onnx.export(
                program,
                (),
                input_names=["image"],
                output_names=[output],
                opset_version=opset,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
            proto = made.model_proto
    except Exception as error:  # of many kinds, and pages long
        raise ValueError(
            f"torch {torch.__version__} cannot make ONNX of this model (dynamic=False and a size may work): "
            f"{reason(error)}"
        ) from error
    got = next(entry.version for entry in proto.opset_import if not entry.domain)
    if got != opset:
        raise ValueError(f"torch {torch.__version__} made a file of opset {got}, not {opset}: take opset={got}")
    return proto


def _finished(proto: Any, metadata: dict[str, str], axes: str) -> bytes:
    """With what is known, and without what is nobody's business: places in source files of this machine."""
    import onnx

    onnx.helper.set_model_props(proto, metadata)
    proto.producer_name = "segzoo"
    proto.producer_version = metadata["producer"].split()[-1]
    graph = proto.graph
    del graph.value_info[:]  # names sizes otherwise than below; every runtime infers it
    for entry in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *proto.functions):
        del entry.metadata_props[:]
        entry.doc_string = ""
    for function in proto.functions:
        for node in function.node:
            del node.metadata_props[:]
            node.doc_string = ""
    for value in (*graph.input, *graph.output):
        for dimension, name in zip(value.type.tensor_type.shape.dim, axes):
            if dimension.dim_param:
                dimension.dim_param = name
    onnx.checker.check_model(proto)
    data: bytes = proto.SerializeToString()
    return data


def session_of(data: bytes) -> Any:
    """onnxruntime with this file, on the CPU, without a word."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
