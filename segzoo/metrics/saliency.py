"""Salient objects: MAE, F, weighted F, S and E, each by the protocol that the published figures used."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from segzoo._errors import unknown_name
from segzoo.metrics import _saliency_measures as measures
from segzoo.metrics._saliency_measures import Levels
from segzoo.metrics._weighted_f import weighted_f
from segzoo.metrics.base import Metric, exact_mean, fixed, fixed_mean, fixed_zeros

__all__ = ["SaliencyMetrics"]

_MEASURES = ("mae", "f_measure", "weighted_f", "s_measure", "e_measure")
_ROW = ("mae", "max_f", "mean_f", "adaptive_f", "weighted_f", "s_measure", "max_e", "mean_e", "adaptive_e")
_OF = {"max_f": "f_measure", "mean_f": "f_measure", "adaptive_f": "f_measure"}
_OF |= {"max_e": "e_measure", "mean_e": "e_measure", "adaptive_e": "e_measure"}
_CURVES = ("precision", "recall", "f_curve", "e_curve")


@dataclass(frozen=True)
class _Protocol:
    """What a protocol does with predictions and masks.

    Attributes:
        normalize: Whether each prediction is stretched to 0…1 unless said otherwise.
        thresholds: How many.
        mask_above: The last value of an 8-bit mask that is background.
        soft_mask: Whether MAE is against the mask's own grey values.
        mean_curves: Whether F is of the data set's mean precision and recall, not the mean of the pictures' F.
        slack: What is added to the denominators of precision and recall, and of F.
    """

    normalize: bool
    thresholds: int
    mask_above: int
    soft_mask: bool
    mean_curves: bool
    slack: tuple[float, float]


_PROTOCOLS = {
    "pysod": _Protocol(True, 256, 128, False, False, (0.0, 0.0)),
    "paper": _Protocol(True, 256, 128, False, True, (0.0, 0.0)),
    "tutorial": _Protocol(False, 255, 127, True, True, (1e-4, 1e-8)),
}


class SaliencyMetrics(Metric):
    """MAE, F-measure, weighted F, S-measure and E-measure of salient-object predictions.

    The digits are those of the field's own evaluation code, by one of three protocols:

    - ``"pysod"``: PySODMetrics, as most papers since 2020. Each prediction is stretched to 0…1 by its own minimum and
      maximum; 256 thresholds; the F and E curves are means of the pictures' curves.
    - ``"paper"``: the same, but F is taken from the data set's mean precision and recall, as in the table of the U²-Net
      paper and in much code of its time.
    - ``"tutorial"``: the well-known PyTorch implementation of U²-Net, whose ``maxF1`` is ``max_f`` here: nothing is
      stretched, 255 bins on 0…1, F from mean precision and recall with 1e-4 and 1e-8 in the denominators, and MAE
      against the mask's grey values. It has no measure but those two; the others follow ``"pysod"``, unstretched.

    Predictions are uint8 (0…255) or floating (0…1); masks are bool, 8-bit (0…255, or 0/1) or floating (0…1). What is
    above half of its range is foreground: above 128 of 255 in ``"pysod"`` and ``"paper"``, as their code has it, above
    127.5 in ``"tutorial"``; above 0.5 of 1. Everything is computed on the CPU and in double precision, wherever the
    tensors are, so that the digits are the same everywhere, but for the last bits of the weighted F, which depend on
    the order of its sums: OpenCV, where it is installed, makes it faster and changes it by 1e-15 at most.

    Args:
        protocol: ``"pysod"``, ``"paper"`` or ``"tutorial"``.
        normalize: Whether to stretch each prediction to 0…1; None as the protocol has it. A prediction of one value
            stays as it is.
        measures: Which to compute: some of ``"mae"``, ``"f_measure"``, ``"weighted_f"``, ``"s_measure"``,
            ``"e_measure"``. The weighted F takes most of the time.

    Raises:
        ValueError: A protocol or measure that does not exist.

    Where something is empty:

    | case | answer |
    |---|---|
    | mask without foreground | F, precision, recall, weighted F: 0; S: 1 - mean prediction; E: share below threshold |
    | mask without background | S: mean prediction; E: share at or above the threshold |
    | centroid in the last row or column | S: the empty quadrants count nothing (PySODMetrics: NaN) |
    | picture of one pixel | E divides by 1 (PySODMetrics: by 2e-16) |
    | no picture | NaN, and ``pictures`` is 0 |

    With floating predictions PySODMetrics computes in their own precision; in float32 it is off by up to 1e-6.

    Source:
        Perazzi et al. 2012 (MAE); Achanta et al. 2009 (F, β² = 0.3); Margolin et al., "How to evaluate foreground
        maps?", CVPR 2014; Fan et al., "Structure-measure", ICCV 2017; Fan et al., "Enhanced-alignment measure", IJCAI
        2018; Qin et al., "U²-Net", 2020, Section 4.3; the code of PySODMetrics 1.6.

    Examples:
        >>> import torch
        >>> metrics = SaliencyMetrics()
        >>> metrics.update(torch.tensor([[0.9, 0.8], [0.3, 0.1]]), torch.tensor([[1, 1], [0, 0]]))
        >>> metrics.compute()["mae"]
        0.09375
    """

    def __init__(
        self,
        protocol: str = "pysod",
        *,
        normalize: bool | None = None,
        measures: Collection[str] = _MEASURES,
    ) -> None:
        if protocol not in _PROTOCOLS:
            raise unknown_name("protocol", protocol, _PROTOCOLS)
        wanted = (measures,) if isinstance(measures, str) else tuple(measures)
        for name in wanted:
            if name not in _MEASURES:
                raise unknown_name("measure", name, _MEASURES)
        if not wanted:
            raise ValueError(f"measures is empty, expected some of {', '.join(_MEASURES)}")
        self.protocol = protocol
        self._rules = _PROTOCOLS[protocol]
        self.normalize = self._rules.normalize if normalize is None else bool(normalize)
        self.measures = tuple(name for name in _MEASURES if name in wanted)
        super().__init__(protocol=protocol, normalize=self.normalize, measures=list(self.measures))

    def _start(self) -> tuple[dict[str, Tensor], dict[str, int | None]]:
        return {"curves": fixed_zeros(len(_CURVES), self._rules.thresholds)}, {"pictures": len(_ROW)}

    def update(self, prediction: Any, target: Any) -> None:
        """Take in a picture or several.

        Args:
            prediction: uint8 0…255 or floating 0…1: a tensor, NumPy array or PIL picture ``[H, W]``, a batch
                ``[N, H, W]`` or ``[N, 1, H, W]``, or a list of pictures, whose sizes may differ.
            target: The masks likewise; bool, 8-bit 0…255, integers 0/1 or floating 0…1.

        Raises:
            ValueError: Sizes differ, or a value is NaN or out of range; the message says where. Nothing is taken in.
            TypeError: A type of values that is not among those.
        """
        self._open_for("update")
        predictions, masks = _pictures(prediction, "prediction"), _pictures(target, "mask")
        if len(predictions) != len(masks):
            raise ValueError(f"there are {len(predictions)} predictions and {len(masks)} masks")
        for i, (one, mask) in enumerate(zip(predictions, masks)):
            _check(one, mask, i if len(masks) > 1 else None)
        rows = np.full((len(masks), len(_ROW)), np.nan)
        curves = self._counts["curves"]
        for i, (one, mask) in enumerate(zip(predictions, masks)):
            row, curve = self._measure(one, mask)
            rows[i] = [row.get(name, math.nan) for name in _ROW]
            curves = curves + fixed(torch.from_numpy(curve))
        self._counts["curves"] = curves
        self._rows["pictures"].append(torch.from_numpy(rows))

    def compute(self) -> dict[str, Any]:
        """The values over all pictures so far.

        Returns:
            Floats ``mae``, ``max_f``, ``mean_f``, ``adaptive_f``, ``weighted_f``, ``s_measure``, ``max_e``, ``mean_e``,
            ``adaptive_e``, of the measures asked for; ``max_f_threshold``, where F is highest, of the prediction
            as it was scored, stretched or not; float64 tensors ``[T]`` ``precision``, ``recall``, ``f_curve`` and
            ``e_curve`` at ``thresholds``, which descend in steps of 1 / 255 to 0; and what was done: ``pictures``,
            ``protocol``, ``normalize`` and in words ``prediction``.
        """
        rows = self._row("pictures")
        result: dict[str, Any] = {}
        for name, values in zip(_ROW, rows.T):
            if _OF.get(name, name) in self.measures:
                result[name] = exact_mean(values)
        curves = dict(zip(_CURVES, fixed_mean(self._counts["curves"], len(rows))))
        if "f_measure" in self.measures:
            if self._rules.mean_curves:
                means = curves["precision"].numpy(), curves["recall"].numpy()
                curves["f_curve"] = torch.from_numpy(measures.f_measure(*means, self._rules.slack[1]))
            result["max_f"], result["mean_f"] = float(curves["f_curve"].max()), float(curves["f_curve"].mean())
        else:
            del curves["precision"], curves["recall"], curves["f_curve"]
        if "e_measure" in self.measures:
            result["max_e"], result["mean_e"] = float(curves["e_curve"].max()), float(curves["e_curve"].mean())
        else:
            del curves["e_curve"]
        if curves:
            steps = self._rules.thresholds
            curves["thresholds"] = torch.arange(steps - 1, -1, -1, dtype=torch.float64) / 255
        if "f_curve" in curves:
            best = curves["thresholds"][curves["f_curve"].argmax()]
            result["max_f_threshold"] = float(best) if len(rows) else math.nan
        done = "each stretched to 0…1 by its minimum and maximum" if self.normalize else "as they are"
        return {
            **result,
            **curves,
            "pictures": len(rows),
            "protocol": self.protocol,
            "normalize": self.normalize,
            "prediction": f"{done}, {self._rules.thresholds} thresholds",
        }

    def per_picture(self) -> dict[str, Tensor]:
        """Each picture's own values, float64 ``[pictures]``; its ``max_f`` is the maximum of its own curve."""
        rows = self._row("pictures")
        return {name: values.clone() for name, values in zip(_ROW, rows.T) if _OF.get(name, name) in self.measures}

    def table(self) -> str:
        """The values, to print."""
        result = self.compute()
        names = [name for name in _ROW if name in result]
        widths = [max(len(name), 7) for name in names]
        head = "  ".join(name.rjust(width) for name, width in zip(names, widths))
        values = "  ".join(f"{result[name]:{width}.4f}" for name, width in zip(names, widths))
        return f"{head}\n{values}\n{result['pictures']} pictures, protocol {self.protocol}: {result['prediction']}"

    def _measure(self, prediction: npt.NDArray[Any], mask: npt.NDArray[Any]) -> tuple[dict[str, float], Any]:
        """Values and curves ``[4, T]`` of one picture."""
        rules, wanted = self._rules, self.measures
        levels = _levels(prediction, self.normalize, rules.thresholds)
        soft, foreground = _soft_and_hard(mask, rules)
        row: dict[str, float] = {}
        if "weighted_f" in wanted:  # first: OpenCV's threads would wait for torch's, which stay awake for a while
            row["weighted_f"] = weighted_f(levels, foreground)
        curves = np.zeros((len(_CURVES), rules.thresholds))
        found = measures.regions(levels, foreground)
        size, inside = foreground.size, float(found.size[:, 1].sum())
        if "mae" in wanted:
            row["mae"] = _mae(found, levels, soft)
        binned = np.zeros((2, rules.thresholds))
        for side, counts in enumerate(found.counts.sum(0)):
            np.add.at(binned[side], levels.bins, counts)
        false, true = binned[:, ::-1].cumsum(1)
        adaptive_true, adaptive_false = measures.adaptive_counts(found, levels, foreground)
        if "f_measure" in wanted:
            curves[:3] = measures.f_curve(true, false, inside, rules.slack)
            row["max_f"], row["mean_f"] = curves[2].max(), curves[2].mean()
            row["adaptive_f"] = measures.f_curve(adaptive_true, adaptive_false, inside)[2].item()
        if "e_measure" in wanted:
            curves[3] = measures.e_measure(true, false, inside, size)
            row["max_e"], row["mean_e"] = curves[3].max(), curves[3].mean()
            row["adaptive_e"] = measures.e_measure(adaptive_true, adaptive_false, inside, size).item()
        if "s_measure" in wanted:
            row["s_measure"] = measures.s_measure(found, levels)
        return row, curves


def _mae(found: measures.Regions, levels: Levels, mask: npt.NDArray[Any]) -> float:
    if mask.dtype != bool:
        return float(np.abs(levels.dense().astype(np.float64) - mask).mean())
    pixels, mean, _ = found.whole(0)
    inside, mean_inside, _ = found.whole(1)
    return float((pixels * mean + inside * (1 - mean_inside)) / (pixels + inside))


# ---------------------------------------------------------------------------------------------------------------------
# What comes in.
# ---------------------------------------------------------------------------------------------------------------------


def _pictures(given: Any, what: str) -> list[npt.NDArray[Any]]:
    """Arrays ``[H, W]`` of what the user gave: one, a batch, or a list of pictures."""
    if isinstance(given, (list, tuple)):
        parts = [_pictures(one, f"{what} {i}") for i, one in enumerate(given)]
        if any(len(part) != 1 for part in parts):
            raise ValueError(f"{what}: a list holds single pictures [H, W]; give a batch as one tensor")
        return [part[0] for part in parts]
    if isinstance(given, Image.Image):
        if given.mode not in ("1", "L", "P"):
            raise ValueError(f"{what} is a picture of mode {given.mode}, expected grey of 8 bits: .convert('L')")
        given = given.convert("L") if given.mode == "P" else given  # its colours, not their numbers
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        given = (given.float() if given.dtype in (torch.float16, torch.bfloat16) else given).numpy()
    array = np.asarray(given)
    shape = list(array.shape)
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    if array.dtype != bool and array.dtype.kind not in "uif":
        raise TypeError(f"{what} is {type(given).__name__} of {array.dtype}, expected a tensor, an array or a picture")
    if array.ndim == 4 and shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3:
        raise ValueError(f"{what} is {shape}, expected [H, W], [N, H, W] or [N, 1, H, W]")
    if 0 in array.shape[1:]:
        raise ValueError(f"{what} is {shape}, which has no pixel")
    return [np.array(one, order="C", copy=None if min(one.strides) >= 0 else True) for one in array]


def _check(prediction: npt.NDArray[Any], mask: npt.NDArray[Any], number: int | None) -> None:
    """Refuse what cannot be measured; ``number`` says which picture of several it is."""
    which = "" if number is None else f"[{number}]"
    if prediction.shape != mask.shape:
        raise ValueError(
            f"prediction{which} is {list(prediction.shape)} and its mask {list(mask.shape)}: "
            "resize the prediction to the mask"
        )
    if prediction.dtype.kind in "ui" and prediction.dtype != np.uint8:
        raise TypeError(f"prediction{which} is {prediction.dtype}, expected uint8 (0 … 255) or floating (0 … 1)")
    for what, values, most in (
        ("prediction", prediction, 1.0),
        ("mask", mask, 1.0 if mask.dtype.kind == "f" else 255.0),
    ):
        if values.dtype == bool or values.dtype == np.uint8 or (values.min() >= 0 and values.max() <= most):
            continue
        row, column = (int(k[0]) for k in np.nonzero(~((values >= 0) & (values <= most))))
        hint = ""
        if values.dtype.kind == "f" and values.min() >= 0 and 2 < values.max() <= 255:
            hint = ": divide by 255"
        elif what == "prediction" and np.isfinite(values).all() and (values.min() < -0.1 or values.max() > 2):
            hint = ": these look like logits, take their sigmoid"
        found = values[row, column].item()
        raise ValueError(f"{what}{which}[{row}, {column}] is {found}, expected 0 … {most:g}{hint}")


def _levels(prediction: npt.NDArray[Any], normalize: bool, thresholds: int) -> Levels:
    """The prediction as codes, stretched if asked for, in the arithmetic of the reference code."""
    if prediction.dtype == bool:
        prediction = prediction.astype(np.uint8) * np.uint8(255)
    codes = np.arange(256)
    if prediction.dtype == np.uint8:
        # The tutorial's predictions are float32, the others' float64.
        values = (codes / np.float32(255)).astype(np.float32) if thresholds == 255 else codes / 255
        low, high = prediction.min(), prediction.max()
        if normalize and low != high:
            values = np.clip((values - values[low]) / (values[high] - values[low]), 0, 1)
        else:
            low, high = np.uint8(0), np.uint8(255)
        bins = np.minimum((values * 255).astype(np.int64), thresholds - 1)
        return Levels(prediction, values.astype(np.float64), bins, low, 1 / (int(high) - int(low)), None)
    low, high = prediction.min(), prediction.max()
    if normalize and low != high:
        prediction = (prediction - low) / (high - low)
    bins = np.minimum(codes, thresholds - 1)
    return Levels((prediction * 255).astype(np.uint8), codes / 255, bins, np.uint8(0), 1.0, prediction)


def _soft_and_hard(mask: npt.NDArray[Any], rules: _Protocol) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """The mask that MAE is against, bool or grey values 0…1, and the mask's foreground."""
    if mask.dtype == bool:
        return mask, mask
    if mask.dtype.kind == "f":
        foreground, most = mask > 0.5, 1
    elif mask.max() <= 1:  # 0/1, as data sets give them
        return mask.astype(bool), mask.astype(bool)
    else:
        foreground, most = mask > rules.mask_above, 255
    return (mask / most if rules.soft_mask else foreground), foreground
