"""Metrics of semantic segmentation from one confusion matrix: IoU, Dice, accuracy and what else is made of it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from segzoo.metrics._arguments import is_integer, is_real
from segzoo.metrics._confusion_counts import count_pairs, first_stray, label_maps
from segzoo.metrics._confusion_report import confusion_figure, printed_table
from segzoo.metrics.base import Metric, exact_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SegmentationMetrics"]

_PER_PICTURE = ("miou_per_picture", "mean_dice_per_picture", "pixel_accuracy_per_picture")


class SegmentationMetrics(Metric):
    """Pixel accuracy, IoU, Dice, precision and recall of label maps, from one confusion matrix over all pictures.

    ``confusion[t, p]`` counts the pixels of class ``t`` that were predicted to be ``p``. With true positives TP, false
    positives FP and false negatives FN of a class: IoU = TP / (TP + FP + FN), Dice = F1 = 2 TP / (2 TP + FP + FN),
    precision = TP / (TP + FP), recall = TP / (TP + FN). A mean is over classes, each counting the same; the
    frequency-weighted IoU weights by the pixels of the target, ``mean_pixel_accuracy`` is the mean recall of the
    classes in the target. What ends in ``_per_picture`` is the mean of the pictures' own values, each from its own
    matrix, which is another number.

    What has no value of its own:

    | case | value |
    |---|---|
    | absent: a class in neither target nor prediction | NaN, left out of the means; or ``absent``, in the means |
    | in the target, never predicted | precision 0 |
    | predicted, not in the target | recall 0; left out of ``mean_pixel_accuracy``, in the other means |
    | ``ignore_index`` is a class | NaN, left out; predicted where another class is, it is wrong like any |
    | nothing counted: no picture, or all ignored | NaN everywhere, also with ``absent`` |
    | a picture without a counted pixel | NaN in `per_picture`, left out of the averages, counted in ``pictures`` |

    The matrix is scikit-learn's, and precision, recall and F1 are its with ``zero_division=0`` (its means have the
    absent classes in if ``labels`` names them). torchmetrics' ``MulticlassJaccardIndex``, ``MulticlassF1Score``,
    ``MulticlassPrecision`` and ``MulticlassRecall`` have the same values but 0 for absent classes by themselves, and
    the same macro means; its macro ``MulticlassAccuracy`` is ``mean_recall`` here. Where ``ignore_index`` is a class,
    those but the Jaccard index have it in their means, as 0.

    Args:
        num_classes: How many. 1: one channel, which stands for two classes, background and object.
        ignore_index: The target's label that does not count, any integer, also one of the classes. None: all count.
            ``"auto"``: 255, or None with ``num_classes=1``, where 255 in a mask is mostly its object.
        absent: The score of an absent class; None leaves it out.
        class_names: For `table` and `plot`. With ``num_classes=1`` two.
        threshold: With ``num_classes=1``, a probability above it is the object. Half precision is compared as float32.
        from_logits: With ``num_classes=1``, whether predictions are logits. With more it makes no difference.

    Raises:
        ValueError: An argument is out of its range, or there are more or fewer names than classes.
        TypeError: ``class_names`` are no strings.

    Source:
        Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation, CVPR 2015, Section 5: pixel
        accuracy, mean accuracy, mean and frequency-weighted IU. Everingham et al.: The PASCAL Visual Object Classes
        Challenge, IJCV 2015: IoU summed over a data set, and what is not to count.

    Examples:
        >>> import torch
        >>> metric = SegmentationMetrics(3)
        >>> metric.update(torch.tensor([[0, 1], [1, 1]]), torch.tensor([[0, 1], [0, 255]]))
        >>> values = metric.compute()
        >>> values["miou"], values["iou"]
        (0.5, tensor([0.5000, 0.5000,    nan], dtype=torch.float64))
    """

    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int | Literal["auto"] | None = "auto",
        absent: float | None = None,
        class_names: Sequence[str] | None = None,
        threshold: float = 0.5,
        from_logits: bool = False,
    ) -> None:
        if not is_integer(num_classes) or num_classes < 1:
            raise ValueError(f"num_classes is {num_classes!r}, expected an integer of at least 1")
        if ignore_index == "auto":
            ignore_index = None if num_classes == 1 else 255
        if ignore_index is not None and not (is_integer(ignore_index) and abs(ignore_index) < 2**61):
            raise ValueError(f"ignore_index is {ignore_index!r}, expected an integer of at most 61 bits, or None")
        if absent is not None and not (is_real(absent) and math.isfinite(absent)):
            raise ValueError(f"absent is {absent!r}, expected a finite number, or None to leave absent classes out")
        if not is_real(threshold) or not 0 < threshold < 1:
            raise ValueError(f"threshold is {threshold!r}, expected a probability between 0 and 1")
        self.num_classes = int(num_classes)
        self.ignore_index = None if ignore_index is None else int(ignore_index)
        self.absent = None if absent is None else float(absent)
        self.threshold = float(threshold)
        self.from_logits = bool(from_logits)
        self._classes = max(2, self.num_classes)
        self.class_names = self._names(class_names)
        super().__init__(
            num_classes=self.num_classes,
            ignore_index=self.ignore_index,
            absent=self.absent,
            threshold=self.threshold,
            from_logits=self.from_logits,
        )

    def _names(self, names: Sequence[str] | None) -> tuple[str, ...]:
        if names is None:
            return ("background", "object") if self.num_classes == 1 else tuple(map(str, range(self.num_classes)))
        names = names if isinstance(names, str) else tuple(names)
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"class_names is {names!r}, expected a list of strings")
        if len(names) != self._classes:
            channel = " (background and object)" if self.num_classes == 1 else ""
            raise ValueError(f"class_names has {len(names)} names, expected {self._classes}{channel}")
        return tuple(names)

    def _start(self) -> tuple[dict[str, Tensor], dict[str, int | None]]:
        confusion = torch.zeros(self._classes, self._classes, dtype=torch.int64, device="cpu")
        return {"confusion": confusion, "strays": torch.zeros((), dtype=torch.int64, device="cpu")}, {
            "pictures": len(_PER_PICTURE)
        }

    def update(self, prediction: Any, target: Any) -> None:
        """Take in a picture or a batch of them; sizes may differ from call to call.

        All stays on the device of the inputs, as do the counts from then on. On the CPU a label out of range is an
        error at once, and the batch is not taken in. A GPU is not waited for: such pixels are left out and counted, and
        `compute` raises the error.

        Args:
            prediction: Logits or probabilities ``[N, C, H, W]``, or ``[C, H, W]`` for one picture, of which the highest
                of C is the prediction, the first of equals; or a label map of any integer dtype, in the target's forms.
                With ``num_classes=1`` probabilities in 0…1, or logits with ``from_logits``: ``[N, 1, H, W]``,
                ``[N, H, W]`` or ``[H, W]``. Tensors or NumPy arrays. What it holds at ignored pixels does not matter.
            target: Labels ``[N, H, W]``, ``[N, 1, H, W]`` or ``[H, W]``, bool or any integer dtype. With
                ``num_classes=1`` these are 0 and 1, floating too: a mask of 0 and 255 has to be divided by 255.

        Raises:
            TypeError: What is given is no tensor or array, or the target holds no labels.
            ValueError: Shapes or devices do not fit, or, on the CPU, a pixel that counts has a label out of range, a
                NaN, or what is no probability.
            RuntimeError: After `sync`.
        """
        self._open_for("update")
        maps = label_maps(prediction, target, self.num_classes, self.threshold, self.from_logits)
        matrices, strays = count_pairs(maps.prediction, maps.target, self._classes, self.ignore_index)
        if _checks_at_once(matrices) and int(strays):
            raise first_stray(maps, self._classes, self.ignore_index, self.num_classes)
        _, means = _scores(matrices, self.ignore_index, self.absent)
        self._rows["pictures"].append(torch.stack((means[0], means[1], _accuracy(matrices)), 1))
        # An accelerator's counts are not brought to the CPU, which would wait for them.
        device = self._counts["confusion"].device if matrices.device.type == "cpu" else matrices.device
        for name, count in (("confusion", matrices.sum(0)), ("strays", strays)):
            before = self._counts[name].to(device, non_blocking=True)
            self._counts[name] = before + count.to(device, non_blocking=True)

    def compute(self) -> dict[str, Any]:
        """The values over all pictures so far. The state stays as it is.

        Returns:
            Floats ``pixel_accuracy``, ``mean_pixel_accuracy``, ``miou``, ``mean_dice``, ``mean_precision``,
            ``mean_recall``, ``mean_f1``, ``frequency_weighted_iou`` and, means over pictures, ``miou_per_picture``,
            ``mean_dice_per_picture``, ``pixel_accuracy_per_picture``; float64 tensors ``[C]`` ``iou``, ``dice``,
            ``precision``, ``recall``, ``f1`` (the same as ``dice``); int64 ``support`` ``[C]``, the counted pixels of
            the target, and ``confusion_matrix`` ``[C, C]``; int ``pictures``. Tensors are on the CPU.

        Raises:
            ValueError: Pixels on a GPU had a label out of range, a NaN, or what is no probability.
        """
        rows = self._checked_rows()
        matrix = self._counts["confusion"].cpu().clone()
        scores, means = (values[:, 0] for values in _scores(matrix[None], self.ignore_index, self.absent))
        iou, dice, precision, recall = scores
        support = matrix.sum(1)
        present = support > 0
        # A class without support has no weight here, whatever its score.
        weighted = torch.where(present, iou * support, 0.0)
        values = {
            "pixel_accuracy": float(_accuracy(matrix[None])),
            "mean_pixel_accuracy": float(_sum(torch.where(present, recall, 0.0)) / present.sum()),
            **dict(zip(("miou", "mean_dice", "mean_precision", "mean_recall"), means.tolist())),
            "mean_f1": float(means[1]),
            "frequency_weighted_iou": float(_sum(weighted) / support.sum()),
        }
        for name, row in zip(_PER_PICTURE, rows.unbind(1)):
            values[name] = exact_mean(row[~row.isnan()])
        tensors = {"iou": iou, "dice": dice, "precision": precision, "recall": recall, "f1": dice.clone()}
        return {**values, **tensors, "support": support, "confusion_matrix": matrix, "pictures": len(rows)}

    def per_picture(self) -> dict[str, Tensor]:
        """Each picture's own mIoU, mean Dice and pixel accuracy, float64 ``[pictures]``, in the order of the updates.

        Returns:
            The keys of `compute` that end in ``_per_picture``; NaN for pictures without a counted pixel.

        Raises:
            ValueError: As in `compute`.
        """
        return dict(zip(_PER_PICTURE, self._checked_rows().clone().unbind(1)))

    def _checked_rows(self) -> Tensor:
        strays = int(self._counts["strays"])
        if strays:
            raise ValueError(
                f"{strays} pixels had a label out of range, a NaN or what is no probability: reset, and update with"
                " tensors on the CPU to see which"
            )
        return self._row("pictures")

    def table(self) -> str:
        """The values as text: a line for each class, the means, and what there is one of.

        Examples:
            >>> import torch
            >>> metric = SegmentationMetrics(3, class_names=["road", "car", "sky"])
            >>> metric.update(torch.tensor([[0, 1], [1, 1]]), torch.tensor([[0, 1], [0, 1]]))
            >>> print(metric.table().splitlines()[2])
            road     0.5000  0.6667     1.0000  0.5000   50.00%
        """
        return printed_table(self.compute(), self.class_names)

    def plot(self, path: str | os.PathLike[str] | None = None, *, normalize: bool = True) -> Figure:
        """A picture of the confusion matrix, by matplotlib.

        Args:
            path: Where to write it, too: ``.png``, ``.pdf`` or ``.svg``.
            normalize: Show the share of each class's pixels, so that the diagonal is the recall; else counts.

        Returns:
            A matplotlib ``Figure``; a notebook shows it.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return confusion_figure(self.compute()["confusion_matrix"], self.class_names, normalize, path)


def _checks_at_once(matrices: Tensor) -> bool:
    return matrices.device.type == "cpu"


def _scores(matrices: Tensor, ignore_index: int | None, absent: float | None) -> tuple[Tensor, Tensor]:
    """IoU, Dice, precision, recall of each class, ``[4, N, C]``, and their means, ``[4, N]``, of ``[N, C, C]``."""
    true = matrices.diagonal(dim1=1, dim2=2)
    actual, predicted = matrices.sum(2), matrices.sum(1)
    both = actual + predicted
    scored = present = both > 0
    if absent is not None:
        scored = (actual.sum(1, keepdim=True) > 0).expand_as(present)
    if ignore_index is not None and 0 <= ignore_index < matrices.shape[1]:
        scored = scored.clone()
        scored[:, ignore_index] = False
    above = torch.stack((true, 2 * true, true, true)).double()
    values = above / torch.stack((both - true, both, predicted, actual)).clamp_(min=1)
    values = values.masked_fill_(~present, math.nan if absent is None else absent)
    means = _sum(values.masked_fill(~scored, 0.0)) / scored.sum(1)
    return values.masked_fill_(~scored, math.nan), means


def _accuracy(matrices: Tensor) -> Tensor:
    """Share of the pixels on the diagonal, ``[N]``."""
    return matrices.diagonal(dim1=1, dim2=2).sum(1).double() / matrices.sum((1, 2))


def _sum(values: Tensor) -> Tensor:
    """Sum over the last axis in an order that neither batch nor device change, and so the same digits everywhere."""
    while (size := values.shape[-1]) > 1:
        half = (size + 1) // 2
        values, rest = values[..., :half].clone(), values[..., half:]
        values[..., : size - half] += rest
    return values[..., 0]
