"""Augmentations that mix the pictures of a batch with their labels: a box of another, or an object of a rare class."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segzoo._errors import unknown_name
from segzoo.ops import component_sizes, connected_components
from segzoo.transforms._arguments import checked_count, checked_positive, checked_probability

__all__ = ["CopyBlob", "CutMix"]

# (class, the class it stands on). Cityscapes, as train ids: the pairs of the entry that CopyBlob is from, wall, fence
# → sidewalk and bus, train → road. CamVid: of its five rare classes (pole, sign, fence, pedestrian and bicyclist
# have 0.3 to 1.2 % of the training pixels each, everything else has 4.6 % or more) those that many pictures lack and
# that stand on the ground; poles are in 366 of 367, signs hang. Fence, pedestrian → pavement; bicyclist → road.
_PAIRS = {
    "cityscapes": ((3, 1), (4, 1), (15, 0), (16, 0)),
    "camvid": ((7, 4), (9, 4), (10, 3)),
}
_PIXELS_AT_ONCE = 2**22  # in which blobs are looked for: finding them takes some 50 bytes for each


class CutMix:
    """Paste a random box of another picture of the batch into each, together with its labels.

    λ ~ Beta(α, α); the box has the sides √(1 - λ)·(H, W), its centre is uniform in the picture, and a pixel is in it if
    its centre is; what lies outside the picture is lost. Labels are those of the pixels, hard as they were: nothing is
    left of λ for the loss. Partners form a random circle: each picture gives to one and takes from one, never itself.
    A batch of one picture stays as it is.

    Args:
        p: How probable it is that a picture (or, ``per="batch"``, the batch) is changed.
        alpha: α, positive. 1: boxes of every size; below, mostly very small or large ones; above, mostly half the area.
        per: ``"sample"``: every picture has a box of its own. ``"batch"``: all have the same, as in the paper's code.
        generator: Where randomness comes from, on any device; None: torch's global generator, which a
            ``DataLoader`` seeds differently in every worker. (A generator given would be the same in all of them.)

    Raises:
        ValueError: an argument, or in a call a shape, is not what it should be.

    Source:
        Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019,
        Eqs. 1 and 2; on segmentation: French et al., "Semi-supervised semantic segmentation needs strong, varied
        perturbations", BMVC 2020.

    Examples:
        >>> import torch
        >>> images, labels = torch.rand(4, 3, 32, 32), torch.randint(19, (4, 32, 32))
        >>> mixed, mixed_labels = CutMix(p=0.5)(images, labels)  # in the training loop, or in a collate function
        >>> mixed.shape, mixed_labels.shape
        (torch.Size([4, 3, 32, 32]), torch.Size([4, 32, 32]))
    """

    def __init__(
        self, p: float = 1.0, alpha: float = 1.0, *, per: str = "sample", generator: torch.Generator | None = None
    ) -> None:
        self.p, self.alpha = checked_probability("p", p), checked_positive("alpha", alpha)
        if per not in ("sample", "batch"):
            raise unknown_name("per", per, ("sample", "batch"))
        self.per, self.generator = per, generator

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch; what is given stays as it is.

        Args:
            images: ``[N, C, H, W]``, any dtype and device.
            labels: ``[N, H, W]`` or ``[N, C, H, W]`` (a mask is ``[N, 1, H, W]``), any dtype and device.

        Returns:
            New images and labels, of the same types.
        """
        _check_batch(images, labels)
        random = _random(self.generator)
        mixed_images, mixed_labels = images.clone(), labels.clone()
        count, height, width = len(images), *images.shape[-2:]
        circle = random.permutation(count)
        partner = np.empty_like(circle)
        partner[circle] = np.roll(circle, 1)
        boxes = self._boxes(random, 1 if self.per == "batch" else count, height, width)
        for i, (top, bottom, left, right) in enumerate(np.broadcast_to(boxes, (count, 4)).tolist()):
            box = (..., slice(top, bottom), slice(left, right))
            for part, mixed in ((images, mixed_images), (labels, mixed_labels)):
                mixed.as_subclass(Tensor)[i][box] = part.as_subclass(Tensor)[partner[i]][box]
        return mixed_images, mixed_labels

    def _boxes(self, random: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
        """First row, row after the last, first column, column after the last, ``[count, 4]``; empty if not chosen."""
        chosen = random.random(count) < self.p
        sides = np.sqrt(1 - random.beta(self.alpha, self.alpha, count))[:, None] * (height, width)
        centre = random.random((count, 2)) * (height, width)
        # A pixel's centre is half a pixel from its corner.
        edges = np.stack((centre - sides / 2, centre + sides / 2), -1) - 0.5
        edges = np.ceil(edges).clip(0, [[height], [width]]) * chosen[:, None, None]
        return edges.reshape(count, 4).astype(np.int64)

    def __repr__(self) -> str:
        return f"CutMix(p={self.p}, alpha={self.alpha}, per={self.per!r})"


class CopyBlob:
    """Copy objects of rare classes from other pictures of the batch onto what such objects stand on.

    For every picture and every pair of a rare class and its ground, one after the other: from a random other picture
    that has such an object, a random one of them, a connected component, is set with the middle pixel of its lowest row
    on a random pixel of the ground. Its pixels take their colours and their labels with them, nothing else is changed,
    and what lies outside the picture is lost. Where there is no object or no ground the picture stays as it is. Objects
    come from the batch as it was given; the ground is what previous pairs have left of it.

    Args:
        pairs: ``"cityscapes"`` (train ids: wall, fence → sidewalk; bus, train → road), ``"camvid"`` (fence,
            pedestrian → pavement; bicyclist → road), or pairs (class, the class it stands on).
        p: How probable it is that a picture is changed.
        whole_class: Copy all pixels of the class in one picture, not one object, so that the pixel with the smallest
            sum of row and column lands on the ground: what the known implementation copies.
        min_area: The least number of pixels of an object (``whole_class``: of the class) that is copied. Labels
            drawn by hand are full of specks: in CamVid, three tenths to three quarters of the rare classes'
            components have less than 64 pixels.
        generator: Where randomness comes from, on any device; None: torch's global generator, which a
            ``DataLoader`` seeds differently in every worker. (A generator given would be the same in all of them.)

    Raises:
        ValueError: an argument, or in a call a shape or type, is not what it should be.

    Source:
        H. Lee, github.com/hoya012/semantic-segmentation-tutorial-pytorch, an entry to the VIPriors challenge of 2020
        (MiniCity): the idea and the pairs. There, pixels that leave the picture pile up at its border or come in again
        at the opposite one, and the batch is changed while it is copied from.

    Examples:
        >>> import torch
        >>> images, labels = torch.rand(4, 3, 32, 32), torch.randint(19, (4, 32, 32))
        >>> mixed, mixed_labels = CopyBlob([(16, 0)], p=0.5, min_area=1)(images, labels)
        >>> mixed.shape, mixed_labels.shape
        (torch.Size([4, 3, 32, 32]), torch.Size([4, 32, 32]))
    """

    def __init__(
        self,
        pairs: str | Sequence[tuple[int, int]] = "cityscapes",
        p: float = 1.0,
        *,
        whole_class: bool = False,
        min_area: int = 64,
        generator: torch.Generator | None = None,
    ) -> None:
        self.p, self.min_area = checked_probability("p", p), checked_count("min_area", min_area)
        if isinstance(pairs, str) and pairs not in _PAIRS:
            raise unknown_name("pairs", pairs, _PAIRS)
        self.pairs = _PAIRS[pairs] if isinstance(pairs, str) else _checked_pairs(pairs)
        self.whole_class, self.generator = whole_class, generator

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch; what is given stays as it is.

        Args:
            images: ``[N, C, H, W]``, any dtype and device.
            labels: ``[N, H, W]`` or ``[N, 1, H, W]``, integers, on any device.

        Returns:
            New images and labels, of the same types.
        """
        _check_batch(images, labels)
        if labels.is_floating_point() or labels.dtype == torch.bool or (labels.ndim == 4 and labels.shape[1] != 1):
            raise ValueError(
                f"labels are {labels.dtype} {list(labels.shape)}, expected class indices [N, H, W] or [N, 1, H, W]"
            )
        mixed_images, mixed_labels = images.clone(), labels.clone()
        pasted = [(_bits(images), _bits(mixed_images)), (_bits(labels), _bits(mixed_labels))]
        classes, new_classes = (
            part.as_subclass(Tensor) if part.ndim == 3 else part.as_subclass(Tensor)[:, 0]
            for part in (labels, mixed_labels)
        )
        # As many numbers for each picture, whatever is in it: who is chosen; then by pair whose blob, which, and where.
        draws = _random(self.generator).random((len(images), 1 + 3 * len(self.pairs)))
        chosen = np.flatnonzero(draws[:, 0] < self.p).tolist()
        blobs: dict[int, tuple[Tensor, list[int]]] = {}
        for k, (label, ground) in enumerate(self.pairs if chosen else ()):
            if k == 0 or label != self.pairs[k - 1][0]:  # of one class at a time: maps are large
                blobs.clear()
                blobs.update(self._blobs(classes, label))
            for i in chosen:
                givers = [j for j in blobs if j != i]
                if not givers:
                    continue
                whose, which, where = draws[i, 1 + 3 * k : 4 + 3 * k]
                giver = _pick(givers, whose)
                numbers, candidates = blobs[giver]
                pixels = (numbers == _pick(candidates, which)).nonzero()
                source, target = self._place(pixels, new_classes[i] == ground, where)
                for part, mixed in pasted:
                    there, here = source.to(part.device), target.to(part.device)
                    mixed[i][..., here[:, 0], here[:, 1]] = part[giver][..., there[:, 0], there[:, 1]]
        return mixed_images, mixed_labels

    def _blobs(self, labels: Tensor, label: int) -> dict[int, tuple[Tensor, list[int]]]:
        """Of every picture with a large enough blob: a map that numbers its blobs, and the large ones' numbers."""
        mask = labels == label
        pictures = (mask.sum((1, 2)) >= self.min_area).nonzero().view(-1)
        blobs = {}
        for some in pictures.split(max(1, _PIXELS_AT_ONCE // max(1, mask.shape[1] * mask.shape[2]))):
            numbers = mask[some].to(torch.uint8) if self.whole_class else connected_components(mask[some])[0]
            large = (component_sizes(numbers) >= self.min_area).tolist()
            # There are fewer blobs than pixels: half the bytes do.
            for i, part, row in zip(some.tolist(), numbers.to(torch.int32), large):
                if candidates := [number for number, enough in enumerate(row) if enough and number]:
                    blobs[i] = part, candidates
        return blobs

    def _place(self, pixels: Tensor, ground: Tensor, where: float) -> tuple[Tensor, Tensor]:
        """Those of the pixels ``[M, 2]`` of a blob that stay in the picture, and where they come to lie."""
        places = ground.nonzero()
        if len(places) == 0:
            return places, places
        if self.whole_class:
            foot = pixels[(pixels.sum(1) * len(ground) + pixels[:, 0]).argmin()]  # of several the uppermost
        else:
            lowest = pixels[pixels[:, 0] == pixels[-1, 0]]
            foot = lowest[len(lowest) // 2]
        moved = pixels + (_pick(places, where) - foot)
        inside = ((moved >= 0) & (moved < moved.new_tensor(ground.shape))).all(1)
        return pixels[inside], moved[inside]

    def __repr__(self) -> str:
        return f"CopyBlob({list(self.pairs)}, p={self.p}, whole_class={self.whole_class}, min_area={self.min_area})"


def _random(generator: torch.Generator | None) -> np.random.Generator:
    """NumPy's generator, for its beta distribution, seeded by torch's: few numbers, which are needed on the CPU."""
    device = "cpu" if generator is None else generator.device
    return np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator, device=device)))


def _bits(part: Tensor) -> Tensor:
    """The same memory, as a type that torch can index."""
    same = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
    return part.as_subclass(Tensor).view(same.get(part.dtype, part.dtype))


def _pick(things: Any, where: float) -> Any:
    """One of several, from a number in 0…1."""
    return things[int(where * len(things))]


def _checked_pairs(pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    try:
        found = tuple((operator.index(label), operator.index(ground)) for label, ground in pairs)
    except (TypeError, ValueError):
        found = ()
    if not found or any(label == ground or min(label, ground) < 0 for label, ground in found):
        known = " or ".join(repr(name) for name in _PAIRS)
        raise ValueError(f"pairs are {pairs!r}, expected {known} or pairs (class, another class that it stands on)")
    return found


def _check_batch(images: Tensor, labels: Tensor) -> None:
    for name, part, ndims in (("images", images, (4,)), ("labels", labels, (3, 4))):
        if not isinstance(part, Tensor):
            raise TypeError(f"{name} are a {type(part).__name__}, expected a tensor")
        if part.ndim not in ndims:
            expected = "[N, C, H, W]" if name == "images" else "[N, H, W] or [N, 1, H, W]"
            raise ValueError(f"{name} are {list(part.shape)}, expected {expected}, a batch")
    if len(images) != len(labels) or images.shape[-2:] != labels.shape[-2:]:
        raise ValueError(
            f"labels are {list(labels.shape)}, which are not as many or not as large as the images {list(images.shape)}"
        )
