"""What a model says about one picture, and the pictures that can be made of it."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segzoo._errors import unknown_name
from segzoo.inference._masking import classes_at, mask_at
from segzoo.inference._resizing import resize_maps
from segzoo.inference.colours import colour_map, parse_colour
from segzoo.inference.picture import Picture, save_image

if TYPE_CHECKING:
    from torch import Tensor

# torch, and what computes with it, is imported where it is needed: a plain mask of an ONNX file is made without.

__all__ = ["KINDS", "Kind", "Prediction", "check_cutout_options", "output_mode", "stretch"]

Kind = Literal["mask", "probability", "cutout", "overlay"]
KINDS: tuple[Kind, ...] = ("mask", "probability", "cutout", "overlay")
_REFINERS = ("guided", "crf")
Self = TypeVar("Self", bound="Prediction")


class Prediction:
    """What a model says about one picture; maps are computed when they are asked for, at the picture's size.

    Args:
        picture: The picture.
        scores: Probabilities ``[C, h, w]`` at the size the model ran at, a tensor or an array.
        threshold: Of the foreground's probability, where there is one class.
        classes: Their names, or None.
        multilabel: Whether classes may overlap.
    """

    def __init__(
        self,
        picture: Picture,
        scores: Tensor | NDArray[np.float32],
        *,
        threshold: float = 0.5,
        classes: tuple[str, ...] | None = None,
        multilabel: bool = False,
    ) -> None:
        self.picture = picture
        self._scores = scores
        self.threshold = threshold
        self.classes = classes
        self.multilabel = multilabel

    def __repr__(self) -> str:
        height, width = self.picture.size
        return f"Prediction({len(self._scores)} classes, {height}×{width} pixels)"

    @property
    def scores(self) -> Tensor:
        """Probabilities ``[C, h, w]`` at the size the model ran at; a tensor, whatever ran it. May be assigned."""
        if isinstance(self._scores, np.ndarray):
            import torch

            self._scores = torch.from_numpy(np.require(self._scores, requirements=["C", "W"]))
        return self._scores

    @scores.setter
    def scores(self, scores: Tensor | NDArray[np.float32]) -> None:
        for cached in ("probabilities", "mask"):
            self.__dict__.pop(cached, None)
        self._scores = scores if isinstance(scores, np.ndarray) else scores.detach().float().cpu()

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """float32 ``[C, H, W]`` in 0…1 at the picture's size, resized bilinearly, not stretched."""
        return self._resized(self._scores)

    @cached_property
    def mask(self) -> NDArray[np.uint8]:
        """uint8 ``[H, W]``: 1 where the foreground's probability exceeds the threshold, or the class index.

        A multilabel model's is ``[C, H, W]``, 0 or 1 for each class.
        """
        if len(self._scores) > 256:
            raise ValueError(f"a uint8 mask holds 256 classes, this model has {len(self._scores)}: use .probabilities")
        maps = np.asarray(self._scores)
        if not self._overlapping:
            return classes_at(maps, self.picture.size)
        mask = mask_at(maps, self.picture.size, self.threshold).view(np.uint8)
        return mask if self.multilabel else mask[0]

    def refined(self: Self, method: Literal["guided", "crf"] = "guided", **options: Any) -> Self:
        """The prediction with rims that follow the picture's edges, at the picture's size.

        Args:
            method: ``"guided"`` (``segzoo.inference.refine_edges``: quick) or ``"crf"`` (``segzoo.inference.crf``).
            **options: Of that function: ``radius``, ``eps`` … but for ``multilabel``, which the prediction knows.

        Returns:
            A new prediction; this one stays as it is.

        Raises:
            ValueError: For an unknown method or option, or a value that does not fit.

        Examples:
            >>> from segzoo import Predictor
            >>> Predictor("u2net_lite")(np.zeros((40, 60, 3), np.uint8)).refined().scores.shape
            torch.Size([1, 40, 60])
        """
        if method not in _REFINERS:
            raise unknown_name("way to refine", method, _REFINERS)
        refine = _refiner(method)
        known = {name for name, x in inspect.signature(refine).parameters.items() if x.kind is x.KEYWORD_ONLY}
        for name in options:
            if name not in known - {"multilabel"}:
                raise unknown_name(f"option of refined({method!r})", name, known - {"multilabel"})
        if not len(self.scores):
            return self
        import torch

        picture = torch.from_numpy(np.require(self.picture.over_white(), requirements=["C", "W"])).permute(2, 0, 1)
        return self._with(refine(self.scores, picture, multilabel=self._overlapping, **options))

    def tidied(self: Self, *, largest: bool = False, min_area: float = 0, holes: float | None = None) -> Self:
        """The prediction without specks, holes or further objects, at the picture's size.

        Args:
            largest: Whether only the largest object stays; not where several classes share the picture.
            min_area: Specks smaller than this go, in pixels or, below 1, as a share of the picture; of several classes,
                patches take the label of the nearest pixel that stays.
            holes: The same for holes of an object; None: as ``min_area``. Of several classes that share the picture a
                hole is a patch as any other.

        Returns:
            A new prediction; this one stays as it is. Soft rims stay with the objects they belong to.

        Raises:
            ValueError: For a negative area, or ``largest`` or ``holes`` with several classes that do not overlap.
        """
        if largest and not self._overlapping:
            raise ValueError(f"largest keeps one object, this model has {len(self._scores)} classes: give min_area")
        if holes is not None and not self._overlapping:
            raise ValueError(f"holes are one object's, this model has {len(self._scores)} classes: give min_area")
        if not len(self.scores):
            return self
        import torch

        from segzoo.inference.tidying import tidied_probabilities

        probabilities = torch.from_numpy(self.probabilities)
        return self._with(
            tidied_probabilities(
                probabilities,
                threshold=self.threshold if self._overlapping else None,
                largest=largest,
                min_area=min_area,
                holes=holes,
            )
        )

    def _with(self: Self, scores: Tensor) -> Self:
        changed = copy.copy(self)
        changed.scores = scores
        return changed

    @property
    def _overlapping(self) -> bool:
        """Whether each map is a mask of its own."""
        return self.multilabel or len(self._scores) == 1

    def evaluation_map(self) -> NDArray[np.uint8]:
        """uint8 ``[H, W]``: the saliency map that salient-object papers score, by U²-Net's own evaluation code.

        The model's map is stretched to 0…1 (min-max), made 8 bit, and resized bilinearly to the picture's size. A
        constant map has nothing to stretch and stays as it is.
        """
        self._one_class("an evaluation map")
        eight_bit = np.asarray(stretch(self._scores)[0] * 255).astype(np.uint8)
        height, width = self.picture.size
        return np.asarray(Image.fromarray(eight_bit).resize((width, height), Image.Resampling.BILINEAR))

    def cutout(
        self,
        *,
        background: str | None = None,
        hard: bool = False,
        clean_rim: bool = False,
        classes: Sequence[int | str] | int | str | None = None,
    ) -> Image.Image:
        """The picture with everything but the foreground transparent.

        Args:
            background: A colour (``"white"``, ``"#20a0ff"``) to put behind; None leaves it transparent.
            hard: Cut along the mask; by default the rim is as soft as the probabilities.
            clean_rim: Take the old background's colours out of the soft rim
                (``segzoo.inference.estimate_foreground``); not with ``hard``.
            classes: What to keep, by index or name, of a model with several classes.

        Returns:
            A PIL image at the picture's size: RGBA, or RGB with a ``background``. Transparency that the
            picture had stays.

        Raises:
            ValueError: For an unknown colour or class, several classes and no choice, or ``hard`` with ``clean_rim``.
        """
        check_cutout_options("cutout", background, hard, clean_rim, classes)
        alpha = self._foreground(classes, hard)
        if self.picture.alpha is not None:
            alpha = (alpha.astype(np.uint16) * self.picture.alpha // 255).astype(np.uint8)
        image = self.picture.rgb()
        if clean_rim:
            from segzoo.inference.foreground import estimate_foreground

            image = Image.fromarray(estimate_foreground(np.array(image), alpha))
        if background is None:
            image.putalpha(Image.fromarray(alpha))
            return image
        behind = Image.new("RGB", image.size, parse_colour(background))
        return Image.composite(image, behind, Image.fromarray(alpha))

    def overlay(self, *, opacity: float = 0.5) -> Image.Image:
        """The picture as RGB, each class but the background tinted with its colour.

        Args:
            opacity: Of the tint, 0 to 1.
        """
        if not 0 <= opacity <= 1:
            raise ValueError(f"opacity lies in 0…1, got {opacity}")
        image = self.picture.rgb()
        index = self._index_map()
        tint = Image.fromarray(colour_map()[index])
        opaque = np.where(index > 0, round(255 * opacity), 0).astype(np.uint8)
        return Image.composite(tint, image, Image.fromarray(opaque))

    def render(
        self,
        kind: Kind = "mask",
        *,
        background: str | None = None,
        hard: bool = False,
        clean_rim: bool = False,
        classes: Sequence[int | str] | int | str | None = None,
    ) -> Image.Image:
        """One of the pictures that can be made of a prediction.

        Args:
            kind: ``"mask"`` (grey 0 or 255; a palette of class indices where there are several), ``"probability"``
                (grey 0 to 255, of one class), ``"cutout"`` or ``"overlay"``.
            background: See ``cutout``.
            hard: See ``cutout``.
            clean_rim: See ``cutout``.
            classes: See ``cutout``.
        """
        check_cutout_options(kind, background, hard, clean_rim, classes)
        if kind == "cutout":
            return self.cutout(background=background, hard=hard, clean_rim=clean_rim, classes=classes)
        if kind == "overlay":
            return self.overlay()
        if kind == "probability":
            self._one_class("a probability picture")
            return Image.fromarray(_to_byte(self.probabilities[0]))
        if kind != "mask":
            raise unknown_name("kind of picture", kind, KINDS)
        if len(self._scores) == 1:
            return Image.fromarray(self._foreground(None, hard=True))
        image = Image.fromarray(self._index_map())
        image.putpalette(colour_map().tobytes())
        return image

    def save(
        self,
        path: str | os.PathLike[str] | IO[bytes],
        kind: Kind = "mask",
        *,
        background: str | None = None,
        hard: bool = False,
        clean_rim: bool = False,
        classes: Sequence[int | str] | int | str | None = None,
    ) -> None:
        """Write ``render``'s picture to a file, whole or not at all; cut-outs keep the picture's colour profile.

        Args:
            path: Its ending names the format; an open binary file gets PNG.
            kind: See ``render``.
            background: See ``cutout``.
            hard: See ``cutout``.
            clean_rim: See ``cutout``.
            classes: See ``cutout``.
        """
        image = self.render(kind, background=background, hard=hard, clean_rim=clean_rim, classes=classes)
        profile = self.picture.icc_profile if kind in ("cutout", "overlay") else None
        save_image(image, path, icc_profile=profile)

    def _resized(self, scores: Tensor | NDArray[np.float32]) -> NDArray[np.float32]:
        given = np.asarray(scores)
        resized = resize_maps(given, self.picture.size)
        return np.clip(resized, 0, 1, out=None if resized is given else resized)

    def _one_class(self, what: str) -> None:
        if len(self._scores) != 1:
            raise ValueError(f"{what} is of one class, this model has {len(self._scores)}")

    def _foreground(self, classes: Sequence[int | str] | int | str | None, hard: bool) -> NDArray[np.uint8]:
        """uint8 ``[H, W]``, 255 where the picture is kept."""
        if isinstance(classes, (str, int)):
            classes = [classes]
        kept = [self._class_index(c) for c in classes or ()]
        if len(self._scores) == 1:
            return self.mask.reshape(self.mask.shape[-2:]) * np.uint8(255) if hard else _to_byte(self.probabilities[0])
        if not kept:
            known = ", ".join(self.classes or map(str, range(len(self._scores))))
            raise ValueError(f"say which classes the cut-out keeps, as classes=[…], of: {known}")
        if hard:
            inside = self.mask[kept].any(0) if self.multilabel else np.isin(self.mask, kept)
            return np.where(inside, 255, 0).astype(np.uint8)
        return _to_byte(self._resized(self._scores[kept].sum(0)[None].clip(max=1))[0])

    def _class_index(self, name: int | str) -> int:
        names = self.classes or ()
        if isinstance(name, str) and name in names:
            return names.index(name)
        if isinstance(name, int) and 0 <= name < len(self._scores):
            return name
        raise unknown_name("class", name, names or map(str, range(len(self._scores))))

    def _index_map(self) -> NDArray[np.uint8]:
        if not self.multilabel:
            return self.mask
        best = self.probabilities.argmax(0)
        return np.where(self.mask.any(0), best + 1, 0).astype(np.uint8)


def check_cutout_options(kind: str, background: object, hard: bool, clean_rim: bool, classes: object) -> None:
    """Raise ValueError for options of a cut-out that another kind of picture has not, or that exclude each other.

    Examples:
        >>> check_cutout_options("mask", "white", False, False, None)
        Traceback (most recent call last):
        ValueError: background, hard, clean_rim and classes are a cut-out's, not of kind='mask'
    """
    if kind != "cutout" and (background is not None or hard or clean_rim or classes is not None):
        raise ValueError(f"background, hard, clean_rim and classes are a cut-out's, not of kind={kind!r}")
    if hard and clean_rim:
        raise ValueError("clean_rim is of soft rims, a hard cut-out has none: give one of the two")


def output_mode(kind: Kind, background: str | None) -> str:
    """The PIL mode to ask a file format for, before there is a prediction: RGBA where the picture is transparent."""
    return "RGBA" if kind == "cutout" and background is None else "RGB"


def _refiner(method: str) -> Callable[..., Tensor]:
    if method == "guided":
        from segzoo.inference.edges import refine_edges

        return refine_edges
    from segzoo.inference.crf import crf

    return crf


@overload
def stretch(scores: Tensor) -> Tensor: ...
@overload
def stretch(scores: NDArray[np.float32]) -> NDArray[np.float32]: ...


def stretch(scores: Tensor | NDArray[np.float32]) -> Tensor | NDArray[np.float32]:
    """Each map ``[…, h, w]`` linearly to 0…1, of a tensor or an array; a constant map stays as it is.

    Examples:
        >>> import torch
        >>> stretch(torch.tensor([[[0.2, 0.4]]])).tolist(), stretch(torch.full((1, 1, 2), 0.5)).tolist()
        ([[[0.0, 1.0]]], [[[0.5, 0.5]]])
    """
    if isinstance(scores, np.ndarray):
        least, most = scores.min((-2, -1), keepdims=True), scores.max((-2, -1), keepdims=True)
        spread = np.where(most > least, most - least, 1)
        stretched: NDArray[np.float32] = np.where(most > least, (scores - least) / spread, scores)
        return stretched
    import torch

    low, high = scores.amin((-2, -1), keepdim=True), scores.amax((-2, -1), keepdim=True)
    return torch.where(high > low, (scores - low) / (high - low), scores)


def _to_byte(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    rounded: NDArray[np.uint8] = (probabilities * 255 + 0.5).astype(np.uint8)
    return rounded
