"""Mask R-CNN as an ONNX file: boxes, labels, scores and masks, as many as there are objects.

torch's newer exporter stops at torchvision's ``batched_nms`` (torch 2.15 with torchvision 0.29: "could not guard on
data-dependent expression 4*u1 > 4000"), which asks how many boxes there are. The one by tracing knows these operators.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn

from segzoo.export._prepared import TOLERANCE, quiet, reason, single
from segzoo.models.base import check_positive

__all__ = ["OUTPUTS", "ExportedDetector", "compare_detections", "detector_shapes", "translated_detector"]

OUTPUTS = ("boxes", "labels", "scores", "masks")
_OPSETS = range(18, 21)
_TRACED = (200, 280)
_MASKS = 0.01  # of a pixel's probability,
_PIXELS = 1e-3  # in all but this share of the pixels: a box that is a hair off moves the rim of its mask
_SHARE = 0.95  # of the detections: of two whose scores differ by less than rounding either may win


class ExportedDetector(nn.Module):
    """The network that is exported; one picture at a time, as torchvision's list of pictures cannot be exported.

    Args:
        model: In eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        transform: Any = model.transform
        self._resize = transform.resize
        transform.resize = self._resized

    def _resized(self, image: Tensor, target: None = None) -> tuple[Tensor, None]:
        """As torchvision resizes, but in float64 where it traces in float32, in which 200 · (160 / 200) becomes 159."""
        transform: Any = self.model.transform
        tracing = torch._C._get_tracing_state() is not None
        if not tracing or transform.fixed_size is not None:
            return self._resize(image, target)  # type: ignore[no-any-return]
        sides = torch._shape_as_tensor(image)[1:].double()
        limits = torch.tensor([transform.min_size[-1], transform.max_size], dtype=torch.float64)
        # torch.div, as the exporter makes a product with the reciprocal of number / tensor, which rounds otherwise
        scale = torch.div(limits, torch.stack([sides.min(), sides.max()])).min()
        height_width = (sides * scale).floor().long()
        size: Any = (height_width[0], height_width[1])
        return nn.functional.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0], target

    def forward(self, image: Tensor, score_threshold: Tensor) -> tuple[Tensor, ...]:
        """``[1, C, H, W]`` in 0…1 to boxes ``[n, 4]``, labels ``[n]``, scores ``[n]`` and masks ``[n, 1, H, W]``.

        Args:
            image: The picture.
            score_threshold: Below it nothing is a detection. A tensor, so that the comparison can have another than the
                file: it needs detections, and a network that has learned nothing makes none.
        """
        heads: Any = self.model.roi_heads
        kept, heads.score_thresh = heads.score_thresh, score_threshold
        try:
            found = self.model([image[0]])[0]
        finally:
            heads.score_thresh = kept
        return tuple(found[name] for name in OUTPUTS)


def detector(model: Any) -> ExportedDetector:
    """A copy of the model on the CPU, in eval mode."""
    return ExportedDetector(single(model)).eval()


def detector_shapes(
    exported: ExportedDetector, dynamic: bool, size: tuple[int, int] | None, batch: int
) -> list[tuple[int, int, int, int]]:
    """The shape to trace with, then those to compare on."""
    if batch != 1:
        raise ValueError(f"a detector is exported for one picture at a time, got batch={batch}")
    channels = int(exported.model.in_channels)  # type: ignore[arg-type]
    if dynamic:
        if size is not None:
            raise ValueError(f"size is of a file with dynamic=False, got size={size}")
        return [(1, channels, *shape) for shape in (_TRACED, (97, 161), (241, 143))]
    if size is None:
        raise ValueError("dynamic=False needs a size, as size=(480, 640)")
    height, width = size
    check_positive(height=height, width=width)
    return [(1, channels, height, width)] * 2


def translated_detector(exported: ExportedDetector, shape: tuple[int, ...], dynamic: bool, opset: int) -> Any:
    """The network as ONNX, with ``score_threshold`` as a second input: see ``fix_threshold``.

    Raises:
        ValueError: If torch cannot, in one sentence.
    """
    import onnx
    import torchvision

    if opset not in _OPSETS:
        raise ValueError(f"opset of a detector is {_OPSETS[0]} to {_OPSETS[-1]}, got {opset!r}")
    free = {"image": {2: "H", 3: "W"}, "masks": {0: "n", 2: "H", 3: "W"}}
    file: Any = io.BytesIO()
    try:
        with quiet():
            torch.onnx.export(
                exported,
                (_picture(shape), _lowest()),
                file,
                input_names=["image", "score_threshold"],
                output_names=list(OUTPUTS),
                opset_version=opset,
                dynamo=False,
                dynamic_axes={**(free if dynamic else {"masks": {0: "n"}}), **{k: {0: "n"} for k in OUTPUTS[:3]}},
            )
    except Exception as error:  # of many kinds
        raise ValueError(
            f"torch {torch.__version__} with torchvision {torchvision.__version__} cannot make ONNX of a detector, "
            f"which takes the exporter by tracing (dynamo=False): {reason(error)}"
        ) from error
    proto = onnx.load_from_string(file.getvalue())
    masks = proto.graph.output[-1].type.tensor_type.shape.dim
    for dimension, given in zip(masks, ("n", 1, *(("H", "W") if dynamic else shape[2:]))):
        name, pixels = (given, 0) if isinstance(given, str) else ("", given)
        dimension.Clear()
        if name:
            dimension.dim_param = name
        else:
            dimension.dim_value = pixels
    return proto


def fix_threshold(proto: Any, threshold: float) -> None:
    """Make a constant of the second input."""
    import numpy as np
    import onnx

    graph = proto.graph
    (given,) = [value for value in graph.input if value.name == "score_threshold"]
    graph.input.remove(given)
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(threshold, np.float32), "score_threshold"))


def check_detector(exported: ExportedDetector, session: Any, shape: tuple[int, ...]) -> float:
    """The largest difference of the boxes as a share of the picture's longer side.

    Raises:
        ValueError: If the detections are not the same.
    """
    image = _picture(shape)
    with torch.inference_mode():
        expected = exported(image, _lowest())
    try:
        got = session.run(None, {"image": image.numpy(), "score_threshold": _lowest().numpy()})
    except Exception as error:  # onnxruntime's own kinds
        raise ValueError(f"onnxruntime does not take {list(shape)}: {reason(error)}") from error
    found = tuple(torch.from_numpy(array) for array in got)
    return compare_detections(f"the ONNX file at {shape[2]}×{shape[3]}", expected, found, max(shape[2:]))


def compare_detections(name: str, expected: tuple[Tensor, ...], got: tuple[Tensor, ...], side: int) -> float:
    """The largest difference of the boxes of paired detections, as a share of the picture's longer side.

    Args:
        name: Of what is compared.
        expected: Boxes, labels, scores and masks.
        got: The same of the other.
        side: In pixels.

    Raises:
        ValueError: If fewer than 95 % have a partner of the same label with the same box and score to 1e-4, or more
            than a thousandth of their masks' pixels differs by 0.01.
    """
    boxes, labels, scores, masks = expected
    if masks.shape[1:] != got[3].shape[1:]:
        raise ValueError(f"{name} gives masks {list(got[3].shape)}, the model {list(masks.shape)}")
    if not len(boxes) or not len(got[0]):
        if len(boxes) == len(got[0]):
            return 0.0
        raise ValueError(f"{name} gives {len(got[0])} detections, the model {len(boxes)}")
    away = (boxes[:, None] - got[0][None]).abs().amax(-1) / side
    away = torch.where(labels[:, None] == got[1][None], away, torch.inf)
    away = torch.where((scores[:, None] - got[2][None]).abs() <= TOLERANCE, away, torch.inf)
    nearest, partner = away.min(1)
    same = nearest <= TOLERANCE
    if int(same.sum()) < _SHARE * max(len(boxes), len(got[0])):
        raise ValueError(
            f"{name} gives {len(got[0])} detections, of which {int(same.sum())} are among the model's {len(boxes)}"
        )
    close = (masks[same] - got[3][partner[same]]).abs() <= _MASKS
    others = 1 - float(close.float().mean())
    if others > _PIXELS:
        raise ValueError(f"{name} gives masks of which {others:.1%} of the pixels differ by more than {_MASKS}")
    return float(nearest[same].max())


def _picture(shape: tuple[int, ...]) -> Tensor:
    """Noise in 0…1, the same each time: with smooth pictures the scores of an untrained network are all but equal."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _lowest() -> Tensor:
    return torch.tensor(-1.0)
