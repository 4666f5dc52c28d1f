"""What pictures and masks go through on their way to a model, in training and in evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segzoo.ops import resize
from segzoo.transforms._arguments import checked_label, checked_number, checked_probability, checked_range, checked_size
from segzoo.transforms._colour import adjust_colours, gaussian_blur
from segzoo.transforms._geometry import View, nearest, resize_image
from segzoo.transforms._inputs import Pair, checked_labels, checked_salient, stacked, uniform
from segzoo.transforms._preset import Preset
from segzoo.transforms.normalize import Normalization, NormalizationLike

__all__ = ["SalientEval", "SalientTrain", "SemanticEval", "SemanticTrain"]

_WINDOWS_TRIED = 10
_LEAST_SCALE = 1e-3  # of most pictures no pixel is left


class SemanticTrain(Preset):
    """Training of semantic segmentation: random scale, crop, flip, rotation, colours and blur, then normalisation.

    A window of the picture, as large as the crop divided by the scale, in whole pixels, is seen at the crop's size, its
    place uniform; where the picture is smaller, it lies anywhere in the window. All of it is one interpolation:
    bilinear for the picture (without aliasing where it shrinks), nearest for the mask, at the same places. What is
    outside the picture is 0 after normalisation, the mean, and ``ignore_index`` in the target; nothing of it is mixed
    into what is inside. Of a batch, every picture has random numbers of its own, in order.

    Args:
        size: Height and width of the crop, or one number for both.
        scale: Least and largest factor by which the picture is enlarged, uniform, from 0.001 up; (1, 1): never.
        hflip: How probable it is that left and right are exchanged.
        rotation: Largest angle in degrees to either side, uniform; 0: never.
        brightness: b: times a factor uniform in max(0, 1 - b)…1 + b; 0: never. Colours are changed where there are
            three channels or one (one: brightness and contrast only); pictures with more bands, and values in a unit
            of their own (``normalize`` with ``scale=None``: heights, temperatures), keep what they are.
        contrast: Likewise, away from the picture's mean luma.
        saturation: Likewise, away from each pixel's luma.
        hue: Largest rotation of the colours to either side, in turns, at most 0.5; 0: never.
        blur: How probable a Gaussian blur is.
        blur_sigma: Least and largest standard deviation of it, in pixels of the result, uniform.
        max_class_share: If given, up to ten windows are tried until no class has more than this share of the window's
            pixels that count: crops of road alone teach little. Needs a mask.
        ignore_index: The target's label outside the picture.
        normalize: ``"imagenet"``, ``"0_1"``, ``"-1_1"``, a pair (mean, std), or anything with ``mean`` and ``std``
            (and ``scale``), such as a model's ``preprocessing``: see :class:`Normalization`.
        generator: Where randomness comes from; None: torch's global generator, which a ``DataLoader`` seeds
            differently in every worker. (A generator given would be the same in all of them.)

    Raises:
        ValueError: For arguments that do not fit, in one sentence.

    Source:
        Random scale, crop, flip, rotation of at most 10° and blur: Zhao et al., "Pyramid Scene Parsing Network", CVPR
        2017, implementation details. The largest share of a class is from OpenMMLab's pipelines,
        there 0.75.

    Examples:
        >>> transform = SemanticTrain(64)
        >>> image = torch.randint(256, (3, 90, 120), dtype=torch.uint8)
        >>> x, target = transform(image, torch.zeros(90, 120, dtype=torch.uint8))
        >>> x.shape, x.dtype, target.shape, target.dtype
        (torch.Size([3, 64, 64]), torch.float32, torch.Size([64, 64]), torch.int64)
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        scale: tuple[float, float] = (0.75, 2.0),
        hflip: float = 0.5,
        rotation: float = 10.0,
        brightness: float = 0.3,
        contrast: float = 0.3,
        saturation: float = 0.3,
        hue: float = 0.05,
        blur: float = 0.2,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        max_class_share: float | None = None,
        ignore_index: int = 255,
        normalize: NormalizationLike = "imagenet",
        generator: torch.Generator | None = None,
    ) -> None:
        self.size = checked_size("size", size)
        self.scale = checked_range("scale", scale)
        if self.scale[0] < _LEAST_SCALE:
            raise ValueError(f"scale is {scale!r}, expected factors of at least {_LEAST_SCALE}")
        self.hflip = checked_probability("hflip", hflip)
        self.rotation = checked_number("rotation", rotation, high=180)
        self.brightness = checked_number("brightness", brightness)
        self.contrast = checked_number("contrast", contrast)
        self.saturation = checked_number("saturation", saturation)
        self.hue = checked_number("hue", hue, high=0.5)
        self.blur = checked_probability("blur", blur)
        self.blur_sigma = checked_range("blur_sigma", blur_sigma)
        shares = max_class_share is not None
        self.max_class_share = checked_probability("max_class_share", max_class_share) if shares else None
        self.ignore_index = checked_label("ignore_index", ignore_index)
        self.normalize = Normalization.of(normalize)
        self.generator = generator

    def _apply(self, images: Tensor, masks: Tensor | None) -> Pair:
        if masks is not None:
            checked_labels(masks)
        images, white = self.normalize.checked(images)
        seen = [self._one(image, None if masks is None else masks[i], white) for i, image in enumerate(images)]
        targets = None if masks is None else stacked([target for _, target in seen if target is not None])
        return stacked([image for image, _ in seen]), targets

    def _one(self, image: Tensor, mask: Tensor | None, white: float) -> Pair:
        # As many numbers whatever is switched off: the other augmentations stay as they were for a seed.
        scale, top, left, flip, angle, *colours, blur, sigma = uniform(11, self.generator)
        view = self._view(image.shape[-2:], scale, (top, left), angle, flip)
        if self.max_class_share is not None and mask is not None:
            for _ in range(_WINDOWS_TRIED - 1):
                if self._varied(view, mask):
                    break
                view = self._view(image.shape[-2:], scale, uniform(2, self.generator), angle, flip)
        x, target, outside = view(image, mask)
        x = x.to(torch.float32)
        if blur < self.blur:
            x = gaussian_blur(x, _between(sigma, *self.blur_sigma))
        if self.normalize.scale is not None:  # times a factor, a height or a temperature is another one
            x = self._recoloured(x, colours, white)
        x = self.normalize(x, white)
        target = None if target is None else target.to(torch.int64)
        if outside is not None:
            x.masked_fill_(outside, 0)
            target = None if target is None else target.masked_fill_(outside, self.ignore_index)
        return x, target

    def _view(self, picture: Sequence[int], scale: float, place: Sequence[float], angle: float, flip: float) -> View:
        factor = _between(scale, *self.scale)
        height, width = (max(1, round(length / factor)) for length in self.size)
        top, left = (
            min(0, spare) + int(where * (abs(spare) + 1))
            for spare, where in zip((picture[0] - height, picture[1] - width), place)
        )
        turned = _between(angle, -self.rotation, self.rotation)
        return View(top, left, height, width, self.size, turned, flip < self.hflip)

    def _varied(self, view: View, mask: Tensor) -> bool:
        top, left = max(view.top, 0), max(view.left, 0)
        labels = mask[top : view.top + view.height, left : view.left + view.width]
        counts = labels[labels != self.ignore_index].unique(return_counts=True)[1]
        return counts.numel() > 0 and int(counts.max()) <= (self.max_class_share or 0) * int(counts.sum())

    def _recoloured(self, x: Tensor, draws: list[float], white: float) -> Tensor:
        brightness, contrast, saturation = (
            _between(draw, max(0.0, 1 - strength), 1 + strength)
            for draw, strength in zip(draws, (self.brightness, self.contrast, self.saturation))
        )
        return adjust_colours(x, brightness, contrast, saturation, _between(draws[3], -self.hue, self.hue), white)


class SemanticEval(Preset):
    """Evaluation of semantic segmentation: the picture resized and normalised, the labels as they are.

    With ``normalize=model.preprocessing`` and its ``size`` the picture is exactly what
    :func:`segzoo.inference.preprocess` makes of it.

    Args:
        size: None: the picture's own; one number: its shorter side, the longer in proportion (rounded down); or height
            and width.
        resize_mask: Also resize the target (nearest), for batches while training. Else it keeps its size: figures
            are measured at the size of the ground truth, to which predictions are resized.
        normalize: As in :class:`SemanticTrain`.

    Raises:
        ValueError: For arguments that do not fit, in one sentence.

    Examples:
        >>> transform = SemanticEval(520)
        >>> image = torch.randint(256, (3, 600, 800), dtype=torch.uint8)
        >>> x, target = transform(image, torch.zeros(600, 800, dtype=torch.uint8))
        >>> x.shape, target.shape, target.dtype
        (torch.Size([3, 520, 693]), torch.Size([600, 800]), torch.int64)
    """

    def __init__(
        self,
        size: int | tuple[int, int] | None = None,
        *,
        resize_mask: bool = False,
        normalize: NormalizationLike = "imagenet",
    ) -> None:
        pair = None if size is None else checked_size("size", size)
        self.size = pair[0] if pair and not isinstance(size, Sequence) else pair
        self.resize_mask = resize_mask
        self.normalize = Normalization.of(normalize)

    def _size_for(self, height: int, width: int) -> tuple[int, int]:
        if self.size is None:
            return height, width
        if isinstance(self.size, int):
            shorter = min(height, width)
            return self.size * height // shorter, self.size * width // shorter
        return self.size

    def _apply(self, images: Tensor, masks: Tensor | None) -> Pair:
        size = self._size_for(*images.shape[-2:])
        images, white = self.normalize.checked(images)
        images = self.normalize(resize_image(images, size), white)
        if masks is None:
            return images, None
        masks = nearest(checked_labels(masks), size) if self.resize_mask else checked_labels(masks)
        return images, masks.to(torch.int64, copy=True)


class SalientTrain(Preset):
    """Training of salient object detection: resize, random crop and flip, then normalisation.

    Defaults are those of U²-Net's training but for the flip, which there is ``hflip=0.0, vflip=0.5``, and the division
    by the picture's largest value, ``normalize=model.preprocessing``. Of a batch, every picture has random numbers of
    its own.

    Args:
        resize: Height and width that the picture is resized to, or one number for both (the sides' ratio is lost, as
            in the field's protocols); None: as it is.
        crop: Height and width of the crop, or one number for both, its place uniform; None: no crop.
        hflip: How probable it is that left and right are exchanged.
        vflip: Likewise, top and bottom.
        ignore_index: A label that integer masks may hold beside 0 and 1, and that stays as it is; None: there is none.
        normalize: As in :class:`SemanticTrain`.
        generator: As in :class:`SemanticTrain`.

    Raises:
        ValueError: For arguments that do not fit, in one sentence.

    Source:
        Qin et al., U²-Net, Pattern Recognition 2020, implementation details: 320 × 320, random vertical flip,
        crop of 288 × 288.

    Examples:
        >>> transform = SalientTrain()
        >>> image = torch.randint(256, (3, 300, 400), dtype=torch.uint8)
        >>> x, target = transform(image, torch.ones(300, 400, dtype=torch.uint8))
        >>> x.shape, target.shape, target.dtype
        (torch.Size([3, 288, 288]), torch.Size([1, 288, 288]), torch.float32)
    """

    def __init__(
        self,
        resize: int | tuple[int, int] | None = 320,
        crop: int | tuple[int, int] | None = 288,
        *,
        hflip: float = 0.5,
        vflip: float = 0.0,
        ignore_index: int | None = None,
        normalize: NormalizationLike = "imagenet",
        generator: torch.Generator | None = None,
    ) -> None:
        self.resize = None if resize is None else checked_size("resize", resize)
        self.crop = None if crop is None else checked_size("crop", crop)
        if self.resize and self.crop and (self.crop[0] > self.resize[0] or self.crop[1] > self.resize[1]):
            raise ValueError(f"crop is {self.crop}, which is larger than resize, {self.resize}")
        self.hflip = checked_probability("hflip", hflip)
        self.vflip = checked_probability("vflip", vflip)
        self.ignore_index = None if ignore_index is None else checked_label("ignore_index", ignore_index)
        self.normalize = Normalization.of(normalize)
        self.generator = generator

    def _apply(self, images: Tensor, masks: Tensor | None) -> Pair:
        size = self.resize or (images.shape[-2], images.shape[-1])
        crop = self.crop or size
        if crop[0] > size[0] or crop[1] > size[1]:
            raise ValueError(f"image is {list(images.shape[-2:])}, smaller than crop, {self.crop}, and resize is None")
        images, white = self.normalize.checked(images)
        images = resize_image(images, size)
        masks = None if masks is None else _resized(checked_salient(masks, self.ignore_index), size)
        seen: list[Tensor] = []
        cut: list[Tensor] = []
        for i, image in enumerate(images):
            top, left, hflip, vflip = uniform(4, self.generator)
            row, column = int(top * (size[0] - crop[0] + 1)), int(left * (size[1] - crop[1] + 1))
            window = (slice(None), slice(row, row + crop[0]), slice(column, column + crop[1]))
            flips = [dim for dim, flip in ((-1, hflip < self.hflip), (-2, vflip < self.vflip)) if flip]
            seen.append(_flipped(image[window], flips))
            if masks is not None:
                cut.append(_flipped(masks[i][window], flips))
        return self.normalize(stacked(seen), white), stacked(cut).to(torch.float32) if cut else None


class SalientEval(Preset):
    """Evaluation of salient object detection: the picture resized and normalised, the mask as it is.

    With ``normalize=model.preprocessing`` and its ``size`` the picture is exactly what
    :func:`segzoo.inference.preprocess` makes of it.

    Args:
        size: Height and width, or one number for both (the sides' ratio is lost, as in the field's protocols); None:
            as it is.
        resize_mask: Also resize the target (nearest; soft masks bilinear), for batches while training. Else it keeps
            its size: figures are measured at the size of the ground truth, to which predictions are resized.
        ignore_index: As in :class:`SalientTrain`.
        normalize: As in :class:`SemanticTrain`.

    Raises:
        ValueError: For arguments that do not fit, in one sentence.

    Examples:
        >>> transform = SalientEval(320)
        >>> image = torch.randint(256, (3, 300, 400), dtype=torch.uint8)
        >>> x, target = transform(image, torch.ones(300, 400, dtype=torch.uint8))
        >>> x.shape, target.shape, target.dtype
        (torch.Size([3, 320, 320]), torch.Size([1, 300, 400]), torch.float32)
    """

    def __init__(
        self,
        size: int | tuple[int, int] | None = 320,
        *,
        resize_mask: bool = False,
        ignore_index: int | None = None,
        normalize: NormalizationLike = "imagenet",
    ) -> None:
        self.size = None if size is None else checked_size("size", size)
        self.resize_mask = resize_mask
        self.ignore_index = None if ignore_index is None else checked_label("ignore_index", ignore_index)
        self.normalize = Normalization.of(normalize)

    def _apply(self, images: Tensor, masks: Tensor | None) -> Pair:
        size = self.size or (images.shape[-2], images.shape[-1])
        images, white = self.normalize.checked(images)
        images = self.normalize(resize_image(images, size), white)
        if masks is None:
            return images, None
        masks = checked_salient(masks, self.ignore_index)
        masks = _resized(masks, size) if self.resize_mask else masks[:, None]
        return images, masks.to(torch.float32, copy=True)


def _resized(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks ``[N, H, W]`` of objects at ``size``, ``[N, 1, h, w]``: integers by nearest, soft ones bilinear."""
    if not masks.is_floating_point():
        return nearest(masks, size)[:, None]
    return resize(masks[:, None].to(torch.float32), size).clamp(0, 1)


def _flipped(part: Tensor, dims: list[int]) -> Tensor:
    return part.flip(dims) if dims else part


def _between(where: float, low: float, high: float) -> float:
    """From a number in 0…1; exactly ``low`` where both are the same."""
    return low + where * (high - low)
