"""What a detector says about one picture: objects one by one, each with its mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segzoo._errors import unknown_name
from segzoo.inference.colours import colour_map
from segzoo.inference.picture import Picture
from segzoo.inference.prediction import Kind, Prediction

__all__ = ["InstancePrediction"]

Self = TypeVar("Self", bound="InstancePrediction")


class InstancePrediction(Prediction):
    """The objects that a detector found in one picture, the surest first.

    Pictures are made of it as of any ``Prediction``: ``mask`` numbers the objects, ``cutout`` keeps them all, or those
    of the ``classes`` that are named.

    Args:
        picture: The picture.
        detections: torchvision's dictionary: ``boxes`` ``[n, 4]``, ``labels`` ``[n]``, ``scores`` ``[n]`` and
            ``masks`` ``[n, 1, H, W]``, at the picture's size.
        score_threshold: Objects with less confidence are left out.
        threshold: Of a pixel's probability, for masks.
        classes: Names by label, or None.

    Attributes:
        boxes: float32 ``[n, 4]``: x1, y1, x2, y2 in pixels.
        labels: int64 ``[n]``.
        confidences: float32 ``[n]``, in 0…1, falling.
        scores: float32 tensor ``[n, H, W]``: each object's probability at every pixel (``probabilities`` as an array).
    """

    def __init__(
        self,
        picture: Picture,
        detections: Mapping[str, Tensor],
        *,
        score_threshold: float = 0.5,
        threshold: float = 0.5,
        classes: tuple[str, ...] | None = None,
    ) -> None:
        found = {name: value.detach().cpu() for name, value in detections.items()}
        order = found["scores"].argsort(descending=True)
        order = order[found["scores"][order] >= score_threshold]
        super().__init__(picture, found["masks"][order, 0].float(), threshold=threshold, classes=classes)
        self.boxes: NDArray[np.float32] = found["boxes"][order].float().numpy()
        self.labels: NDArray[np.int64] = found["labels"][order].numpy()
        self.confidences: NDArray[np.float32] = found["scores"][order].float().numpy()

    def __repr__(self) -> str:
        height, width = self.picture.size
        return f"InstancePrediction({len(self)} objects, {height}×{width} pixels)"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def probabilities(self) -> NDArray[np.float32]:  # type: ignore[override]
        """float32 ``[n, H, W]`` in 0…1: each object's probability at every pixel."""
        values: NDArray[np.float32] = self.scores.numpy()
        return values

    @property
    def _overlapping(self) -> bool:
        return True

    def tidied(self: Self, *, largest: bool = False, min_area: float = 0, holes: float | None = None) -> Self:
        """The detections, each without specks, holes or further parts, and without those that have no pixel left.

        Args:
            largest: Whether only the largest part of each object stays.
            min_area: See ``Prediction.tidied``.
            holes: See ``Prediction.tidied``.

        Returns:
            New detections; these stay as they are. Boxes, labels and confidences go with the objects; the box of an
            object that lost pixels is that of its mask, from the first pixel's left or upper side to the last one's
            right or lower.

        Raises:
            ValueError: For a negative area.
        """
        tidy = super().tidied(largest=largest, min_area=min_area, holes=holes)
        masks = tidy.masks
        kept = masks.any((1, 2))
        boxes = self.boxes.copy()
        for i in np.flatnonzero((self.masks & ~masks).any((1, 2)) & kept):
            rows, columns = (np.flatnonzero(masks[i].any(axis)) for axis in (1, 0))
            boxes[i] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        tidy = tidy._with(tidy.scores[torch.from_numpy(kept)])
        tidy.boxes, tidy.labels, tidy.confidences = boxes[kept], self.labels[kept], self.confidences[kept]
        return tidy

    @property
    def masks(self) -> NDArray[np.bool_]:
        """bool ``[n, H, W]``: each object's pixels; they may overlap."""
        return self.probabilities > self.threshold

    @property
    def mask(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """uint8 ``[H, W]``: 0 where there is nothing, i + 1 on the i-th object; the surer one lies on top."""
        if len(self) > 255:
            raise ValueError(f"a uint8 mask numbers 255 objects, there are {len(self)}: use .masks")
        mask = np.zeros(self.picture.size, np.uint8)
        for i, inside in reversed(list(enumerate(self.masks))):
            mask[inside] = i + 1
        return mask

    @property
    def names(self) -> list[str]:
        """The name of each object's class, or its number."""
        return [self.classes[label] if self.classes else str(label) for label in self.labels]

    def render(
        self,
        kind: Kind = "mask",
        *,
        background: str | None = None,
        hard: bool = False,
        clean_rim: bool = False,
        classes: Sequence[int | str] | int | str | None = None,
    ) -> Image.Image:
        """As ``Prediction.render``; ``"mask"`` is a palette of the objects' numbers."""
        if kind != "mask" or background is not None or hard or clean_rim or classes is not None:
            return super().render(kind, background=background, hard=hard, clean_rim=clean_rim, classes=classes)
        image = Image.fromarray(self.mask)
        image.putpalette(colour_map().tobytes())
        return image

    def _foreground(self, classes: Sequence[int | str] | int | str | None, hard: bool) -> NDArray[np.uint8]:
        """uint8 ``[H, W]``, 255 where the picture is kept: all objects, or those of some classes."""
        if isinstance(classes, (str, int)):
            classes = [classes]
        kept = np.ones(len(self), bool)
        if classes is not None:
            kept = np.isin(self.labels, [self._class_index(c) for c in classes])
        together = self.probabilities[kept].max(0, initial=0.0)
        together = np.broadcast_to(together, self.picture.size)
        soft = together if not hard else (together > self.threshold).astype(np.float32)
        rounded: NDArray[np.uint8] = (soft * 255 + 0.5).astype(np.uint8)
        return rounded

    def _class_index(self, name: int | str) -> int:
        names = self.classes or ()
        if isinstance(name, str) and name in names:
            return names.index(name)
        if isinstance(name, int) and 0 <= name < (len(names) or name + 1):
            return name  # a label, whether or not it was found here
        raise unknown_name("class", name, [known for known in names if known != "N/A"])

    def _one_class(self, what: str) -> None:
        raise ValueError(f"{what} is of one map, a detector gives one for each object: use .probabilities")
