"""How well the rims of objects agree: Hausdorff and surface distances, surface Dice, boundary F-measures and IoU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segzoo._errors import unknown_name
from segzoo.metrics._arguments import is_integer, is_real
from segzoo.metrics._surface import CodeMap, Points, band_overlaps, nearest_squares
from segzoo.metrics.base import Metric, exact_mean

__all__ = ["BoundaryMetrics"]

Array: TypeAlias = NDArray[Any]
_DISTANCES = 3  # so many of the measures, the first, are distances
_RELAXED_BETA2 = 0.3


class BoundaryMetrics(Metric):
    """Measures of the rims of objects, for each picture and class, and their means.

    The rim of an object is its pixels that have a 4-neighbour outside of it or lie at the picture's border. Distances
    are between pixel centres, exact and in float64; everything is computed on the CPU, so that the digits do not
    depend on the device. The measures:

    - ``hausdorff``: the largest distance of a point of either rim to the other rim. ``hd95`` (``hd{percentile}``): the
      percentile, interpolated linearly, in place of the largest. ``assd``: the mean of both rims' distances together.
    - ``surface_dice``: the share of both rims within ``tolerance`` of the other. ``boundary_precision``: the share of
      the prediction's rim, ``boundary_recall``: of the target's; ``boundary_f1``: their harmonic mean.
    - ``relaxed_f``: the F-measure with β² = 0.3 of precision and recall within ``relaxed_tolerance``.
    - ``boundary_iou``: intersection over union of what is left of either object after taking away what is farther than
      ``iou_dilation`` of the picture's diagonal (in pixels, rounded, 1 or more) from its outside and from the border,
      counted in squares as the authors' erosion does.

    ============================  ======================  ======================================  ============
    prediction and target         ``hausdorff … assd``    ``surface_dice … relaxed_f``            counted in
    ============================  ======================  ======================================  ============
    both rims empty               NaN: left out           NaN: left out                           both_empty
    one rim empty                 inf: the mean is inf    0 (precision and recall too)            one_empty
    all pixels ignored            NaN: left out           NaN: left out                           both_empty
    one pixel each                their distance          0 or 1                                  neither
    ============================  ======================  ======================================  ============

    ``boundary_iou`` is NaN where both bands are empty and 0 where one is. An ignored pixel is neither object nor
    outside: no rim is drawn at it or because of it. An object that meets nothing but ignored pixels thus has no rim.

    Args:
        num_classes: 1: masks of one object. More: label maps, each class is an object.
        classes: The classes to measure; None: all but ``ignore_index``.
        ignore_index: The label in the target of pixels that do not count, or None; ``"auto"``: None for one class, else
            255.
        spacing: Height and width of a pixel, in the unit the distances shall have.
        percentile: 0…100, of ``hd95``.
        directed: ``"max"``: ``hd95`` is the maximum of the percentiles of the two directions, as in MONAI;
            ``"pooled"``: the percentile of both directions' distances together, as in medpy.
        tolerance: Distance up to which rims agree, in the unit of ``spacing``.
        relaxed_tolerance: The same for ``relaxed_f``.
        iou_dilation: Width of the bands of ``boundary_iou`` as a share of the picture's diagonal.
        class_names: A name for each of ``num_classes``, for `table`.

    Raises:
        ValueError: An argument that does not fit, in one sentence that says which.

    Source:
        Huttenlocher, Klanderman, Rucklidge: Comparing images using the Hausdorff distance, PAMI 1993. Nikolov et al.:
        Deep learning to achieve clinically applicable segmentation of head and neck anatomy for radiotherapy, 2018
        (surface Dice, here of pixels). Csurka, Larlus, Perronnin: What is a good evaluation measure for semantic
        segmentation?, BMVC 2013 (boundary F1). Qin et al.: BASNet, CVPR 2019, and U²-Net, Pattern Recognition 2020
        (relaxed F at 3 pixels). Cheng et al.: Boundary IoU, CVPR 2021.

    Examples:
        >>> metric = BoundaryMetrics()
        >>> target = torch.zeros(1, 8, 8, dtype=torch.bool)
        >>> target[:, 2:5, 2:5] = True
        >>> metric.update(target.roll(1, dims=-1), target)
        >>> metric.compute()["hausdorff"], metric.compute()["assd"]
        (1.0, 0.5)
    """

    def __init__(
        self,
        num_classes: int = 1,
        *,
        classes: Sequence[int] | None = None,
        ignore_index: int | Literal["auto"] | None = "auto",
        spacing: tuple[float, float] = (1.0, 1.0),
        percentile: float = 95.0,
        directed: Literal["max", "pooled"] = "max",
        tolerance: float = 2.0,
        relaxed_tolerance: float = 3.0,
        iou_dilation: float = 0.02,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.num_classes = _integer("num_classes", num_classes)
        if not 1 <= self.num_classes <= 2**15:
            raise ValueError(f"num_classes is {num_classes}, expected 1…{2**15}")
        self.ignore_index = self._checked_ignored(ignore_index)
        self.classes = self._checked_classes(classes)
        if directed not in ("max", "pooled"):
            raise unknown_name("directed", directed, ["max", "pooled"])
        self.directed = directed
        self.spacing = _checked_spacing(spacing)
        self.percentile = _number("percentile", percentile, 0, 100)
        self.tolerance = _number("tolerance", tolerance)
        self.relaxed_tolerance = _number("relaxed_tolerance", relaxed_tolerance)
        self.iou_dilation = _number("iou_dilation", iou_dilation, 0, 1)
        names = () if class_names is None else (class_names,) if isinstance(class_names, str) else tuple(class_names)
        if class_names is not None and (
            isinstance(class_names, str)
            or len(names) != self.num_classes
            or not all(isinstance(name, str) for name in names)
        ):
            raise ValueError(f"class_names are {class_names!r}, expected {self.num_classes} names")
        self.class_names = names or None
        self.measures = (
            "hausdorff",
            f"hd{self.percentile:g}",
            "assd",
            "surface_dice",
            "boundary_precision",
            "boundary_recall",
            "boundary_f1",
            "relaxed_f",
            "boundary_iou",
        )
        super().__init__(
            num_classes=self.num_classes,
            classes=self.classes,
            ignore_index=self.ignore_index,
            spacing=self.spacing,
            percentile=self.percentile,
            directed=self.directed,
            tolerance=self.tolerance,
            relaxed_tolerance=self.relaxed_tolerance,
            iou_dilation=self.iou_dilation,
        )

    def _start(self) -> tuple[dict[str, Tensor], dict[str, int | None]]:
        return {}, {"values": len(self.measures) * len(self.classes)}

    def _checked_ignored(self, ignore_index: int | str | None) -> int | None:
        if ignore_index == "auto":
            return None if self.num_classes == 1 else 255
        if ignore_index is None:
            return None
        label = _integer("ignore_index", ignore_index)
        if self.num_classes == 1 and label in (0, 1):
            raise ValueError(f"ignore_index is {label}, expected another value than 0 and 1, which are the mask's own")
        return label

    def _checked_classes(self, classes: Sequence[int] | None) -> tuple[int, ...]:
        if classes is None:
            return tuple(label for label in range(self.num_classes) if label != self.ignore_index)
        chosen = tuple(_integer("classes", label) for label in classes)
        if not chosen or len(set(chosen)) < len(chosen) or min(chosen) < 0 or max(chosen) >= self.num_classes:
            raise ValueError(f"classes are {list(chosen)}, expected different ones of 0…{self.num_classes - 1}")
        if self.ignore_index in chosen:
            raise ValueError(f"classes are {list(chosen)}, and {self.ignore_index} of them is ignore_index")
        return chosen

    def update(self, prediction: Tensor | Array, target: Tensor | Array) -> None:
        """Measure a picture or a batch of them.

        Args:
            prediction: One class: ``[H, W]``, ``[N, H, W]`` or ``[N, 1, H, W]``, bool, integers 0 and 1, or
                probabilities 0…1 of which more than 0.5 is the object. More: integer labels of these shapes, or scores
                ``[N, C, H, W]`` or ``[C, H, W]``, floating point, of which the highest wins. Any device.
            target: Bool, integers or floating point 0 and 1; for more classes integer labels. Of the same height, width
                and number of pictures.

        Raises:
            TypeError: Neither tensors nor arrays.
            ValueError: Shapes differ or are none of these, or a pixel that counts has a value out of range or NaN: the
                message says which and where.
            RuntimeError: The metric holds what all processes have seen.
        """
        self._open_for("update")
        mine, theirs = self._codes(_array("prediction", prediction), _array("target", target))
        ignoring = self.ignore_index is not None and bool((theirs == np.iinfo(theirs.dtype).max).any())
        rows = [
            self._measured(CodeMap(one, self.num_classes, ignoring), CodeMap(other, self.num_classes, ignoring))
            for one, other in zip(mine, theirs)
        ]
        if rows:
            self._rows["values"].append(torch.from_numpy(np.stack(rows)).flatten(1))

    def _codes(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        """Prediction and target as `CodeMap` takes them, ``[N, H, W]``."""
        given = f"prediction is {list(prediction.shape)} and target {list(target.shape)}"
        target = _pictures(target)
        scores = self.num_classes > 1 and prediction.dtype.kind == "f"
        if scores and prediction.ndim == 3:
            prediction = prediction[None]
        fits = prediction.ndim == 4 and prediction.shape[1] == self.num_classes
        if not scores:
            prediction = _pictures(prediction)
        shape = (len(prediction), *prediction.shape[2:]) if scores else prediction.shape
        if target.ndim != 3 or shape != target.shape or (scores and not fits):
            more = f" or, of floating point, scores [N, {self.num_classes}, H, W]" if self.num_classes > 1 else ""
            raise ValueError(f"{given}, expected both [H, W], [N, H, W] or [N, 1, H, W]{more}, of the same size")
        if 0 in target.shape[1:]:
            raise ValueError(f"{given}: there are no pixels")
        ignored = None
        if self.ignore_index is not None:
            ignored = target == self.ignore_index
            ignored = ignored if ignored.any() else None
        if self.num_classes > 1 and target.dtype.kind not in "iu":
            raise ValueError(f"target is {target.dtype}, expected integer labels")
        theirs = self._checked("target", target, ignored)
        if scores:
            best, label = torch.from_numpy(np.require(prediction, requirements=["C", "W"])).max(1)
            _refuse("prediction", best.numpy(), best.isnan().numpy(), ignored, "scores")
            return self._as_codes(label.numpy(), ignored), theirs
        if self.num_classes > 1 and prediction.dtype.kind not in "iu":
            raise ValueError(f"prediction is {prediction.dtype}, expected integer labels or floating point scores")
        return self._checked("prediction", prediction, ignored), theirs

    def _checked(self, name: str, values: Array, ignored: Array | None) -> Array:
        """The codes of masks or labels, after a look at each of them."""
        highest = max(1, self.num_classes - 1)
        real = values.dtype.kind == "f"
        probable = real and name == "prediction"
        if values.dtype.kind != "b" and values.size:
            if real and not probable:
                outside = (values != 0) & (values != 1)
            elif values.min() >= 0 and values.max() <= highest:  # neither holds of a NaN
                outside = None
            else:
                outside = ~((values >= 0) & (values <= highest))
            if outside is not None:
                expected = "0 or 1" if self.num_classes == 1 else f"labels 0…{highest}"
                if probable:
                    expected = "probabilities 0…1 (of logits take the sigmoid)"
                elif self.ignore_index is not None and name == "target":
                    expected += f" or ignore_index={self.ignore_index}"
                _refuse(name, values, outside, ignored, expected)
        return self._as_codes(values > 0.5 if real else values, ignored)

    def _as_codes(self, labels: Array, ignored: Array | None) -> Array:
        """What is not ignored is in range here; see `CodeMap` for the codes."""
        dtype = np.dtype(np.uint8 if self.num_classes < 255 else np.int32)
        codes = labels.astype(dtype, copy=False) if labels.dtype.kind != "b" else labels.view(np.uint8)
        if self.num_classes > 1:
            codes = codes + dtype.type(1)
        return codes if ignored is None else np.where(ignored, dtype.type(np.iinfo(dtype).max), codes)

    def _measured(self, prediction: CodeMap, target: CodeMap) -> NDArray[np.float64]:
        """The measures of a picture, ``[measures, classes]``."""
        diagonal = math.hypot(prediction.height, prediction.width)
        common, together = band_overlaps(prediction, target, max(1, round(self.iou_dilation * diagonal)))
        mine, theirs = prediction.rims(), target.rims()
        columns = [
            (*self._of_rims(mine[c], theirs[c]), common[c] / together[c] if together[c] else math.nan)
            for c in self.classes
        ]
        values: NDArray[np.float64] = np.array(columns, dtype=np.float64).T
        return values

    def _of_rims(self, mine: Points, theirs: Points) -> tuple[float, ...]:
        """All measures but the last, from the two rims."""
        if not len(mine) or not len(theirs):
            both = len(mine) == len(theirs)
            return (math.nan,) * 8 if both else (*(math.inf,) * _DISTANCES, *(0.0,) * 5)
        height, width = self.spacing
        there, back = (np.sqrt(s) * height for s in nearest_squares(mine, theirs, (width / height) ** 2))
        if self.directed == "max":
            percentile = max(_percentile(there, self.percentile), _percentile(back, self.percentile))
        else:
            percentile = _percentile(np.concatenate((there, back)), self.percentile)
        points = len(there) + len(back)
        near = [_count_within(distances, self.tolerance) for distances in (there, back)]
        relaxed = [_count_within(distances, self.relaxed_tolerance) for distances in (there, back)]
        precision, recall = near[0] / len(there), near[1] / len(back)
        return (
            max(float(there.max()), float(back.max())),
            percentile,
            float(there.sum() + back.sum()) / points,
            sum(near) / points,
            precision,
            recall,
            _f_measure(precision, recall, 1.0),
            _f_measure(relaxed[0] / len(there), relaxed[1] / len(back), _RELAXED_BETA2),
        )

    def per_picture(self) -> dict[str, Tensor]:
        """Every measure of every picture, in the order they came: float64 ``[pictures, classes]``."""
        values = self._row("values").unflatten(1, (len(self.measures), len(self.classes)))
        return {name: values[:, i].clone() for i, name in enumerate(self.measures)}

    def compute(self) -> dict[str, Any]:
        """The means over all pictures so far.

        Returns:
            For each measure, under its name: the mean over the classes of the classes' means over the pictures, a
            float; as ``…_per_class`` these means, float64 ``[classes]``. NaN, where there is no object in either, is
            left out; inf is not. For the three distances also ``…_finite`` and ``…_finite_per_class``, the same of
            the finite ones alone. How many were not: ``one_empty``, and how many NaN: ``both_empty``, int64
            ``[classes]``. Also ``pictures``, their number, and ``definition``, what was measured, in words. NaN
            where nothing was seen.
        """
        result: dict[str, Any] = {}
        every = self.per_picture()
        for i, (name, values) in enumerate(every.items()):
            for key, keep in ((name, ~values.isnan()), (f"{name}_finite", values.isfinite())):
                if key == name or i < _DISTANCES:
                    means = [exact_mean(column[kept]) for column, kept in zip(values.T, keep.T)]
                    per_class = torch.tensor(means, dtype=torch.float64)
                    result[key] = exact_mean(per_class[~per_class.isnan()])
                    result[f"{key}_per_class"] = per_class
        result["one_empty"] = every["hausdorff"].isinf().sum(0)
        result["both_empty"] = every["hausdorff"].isnan().sum(0)
        result["pictures"] = len(every["hausdorff"])
        result["definition"] = self.definition
        return result

    @property
    def definition(self) -> str:
        """What is measured, in one line: the rim, the percentile, the unit, the tolerances."""
        percentile = f"percentile {self.percentile:g} (linear interpolation)"
        directed = "maximum of the two directions'" if self.directed == "max" else "both directions together,"
        return (
            "rim: pixels of an object with a counted 4-neighbour outside of it or at the picture's border; "
            f"distances between pixel centres, a pixel is {self.spacing[0]:g} × {self.spacing[1]:g}; "
            f"{self.measures[1]}: {directed} {percentile}; assd: mean of both directions together; "
            f"surface_dice, boundary_*: within {self.tolerance:g}; "
            f"relaxed_f: within {self.relaxed_tolerance:g}, beta² {_RELAXED_BETA2:g}; "
            f"boundary_iou: bands of {self.iou_dilation:g} of the diagonal; means over pictures, then over classes"
        )

    def table(self) -> str:
        """The means of every class as text; of the distances those of the finite ones, and how many were infinite.

        Examples:
            >>> metric = BoundaryMetrics(class_names=["cat"])
            >>> metric.update(torch.eye(9).bool(), torch.eye(9).bool().roll(1, 0))
            >>> print(metric.table().splitlines()[1])
            cat         1       0   5.657   3.794   1.259   0.944   1.000   0.889   0.941   0.972   0.000
        """
        result = self.compute()
        shown = [f"{name}_finite" if i < _DISTANCES else name for i, name in enumerate(self.measures)]
        names = [self.class_names[c] if self.class_names else str(c) for c in self.classes]
        used = (result["pictures"] - result["both_empty"]).tolist()
        rows = [
            [label, str(count), str(empty), *(f"{result[f'{key}_per_class'][i]:.3f}" for key in shown)]
            for i, (label, count, empty) in enumerate(zip(names, used, result["one_empty"].tolist()))
        ]
        infinite = int(result["one_empty"].sum())
        if len(rows) > 1:
            rows.append(["mean", str(sum(used)), str(infinite), *(f"{result[key]:.3f}" for key in shown)])
        header = ["class", "used", "inf", "HD", f"HD{self.percentile:g}", "ASSD", "s.Dice", "prec", "recall"]
        lines = [[*header, "F1", "relaxF", "b.IoU"], *rows]
        width = max(len(line[0]) for line in lines)
        text = "\n".join(line[0].ljust(width) + "".join(f"{cell:>8}" for cell in line[1:]) for line in lines)
        note = f"{infinite} of {sum(used)} distances are infinite (one mask is empty)"
        return f"{text}\n{note}" + (": HD, percentile and ASSD are means of the others" if infinite else "")


def _array(name: str, value: object) -> Array:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a tensor or a numpy array")
    if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
        raise ValueError(f"{name} is {value.dtype}, expected bool, integers or floating point of up to 64 bits")
    # Torch knows neither foreign byte orders nor negative steps.
    return value.astype(value.dtype.newbyteorder("="), order="C", copy=min(value.strides, default=0) < 0)


def _pictures(values: Array) -> Array:
    """As ``[N, H, W]``, where it is one of the shapes that can be."""
    if values.ndim == 2:
        return values[None]
    return values[:, 0] if values.ndim == 4 and values.shape[1] == 1 else values


def _refuse(name: str, values: Array, outside: Array, ignored: Array | None, expected: str) -> None:
    """An error if a pixel that counts is outside of what is expected."""
    if ignored is not None:
        outside = outside & ~ignored
    if not outside.any():
        return
    picture, row, column = np.unravel_index(int(outside.argmax()), outside.shape)
    hint = ": divide by 255" if expected.startswith("0 or 1") and values.max() == 255 else ""
    raise ValueError(
        f"{name} holds {values[picture, row, column]} in picture {picture}, row {row}, column {column}, "
        f"expected {expected}{hint}"
    )


def _percentile(values: NDArray[np.float64], percent: float) -> float:
    """As ``numpy.percentile`` has it by default, in a fraction of its time."""
    place = (len(values) - 1) * percent / 100
    below = min(int(place), len(values) - 1)
    above = min(below + 1, len(values) - 1)
    parted = np.partition(values, (below, above))
    low, high = float(parted[below]), float(parted[above])
    return low + (high - low) * (place - below)


def _count_within(distances: NDArray[np.float64], tolerance: float) -> int:
    # Three pixels of 0.1 are a little more than 0.3 after rounding, and yet within it.
    return int(np.count_nonzero(distances <= tolerance * (1 + 1e-12)))


def _f_measure(precision: float, recall: float, beta2: float) -> float:
    both = beta2 * precision + recall
    return (1 + beta2) * precision * recall / both if both else 0.0


def _integer(name: str, value: Any) -> int:
    if not is_integer(value):
        raise ValueError(f"{name} is {value!r}, expected an integer")
    return int(value)


def _number(name: str, value: Any, low: float = 0.0, high: float = math.inf) -> float:
    if not is_real(value) or not low <= float(value) <= high or math.isinf(value):
        expected = f"a number {low:g}…{high:g}" if high < math.inf else f"a finite number of at least {low:g}"
        raise ValueError(f"{name} is {value!r}, expected {expected}")
    return float(value)


def _checked_spacing(spacing: Sequence[float]) -> tuple[float, float]:
    steps = tuple(spacing) if isinstance(spacing, (Sequence, np.ndarray)) else ()
    if len(steps) != 2 or not all(is_real(step) and 0 < step < math.inf for step in steps):
        raise ValueError(f"spacing is {spacing!r}, expected two positive numbers: height and width of a pixel")
    return float(steps[0]), float(steps[1])
