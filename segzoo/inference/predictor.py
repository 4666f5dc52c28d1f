"""From pictures to masks and cut-outs in one call."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import IO, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from segzoo._errors import unknown_name
from segzoo.inference.colours import colour_map, parse_colour
from segzoo.inference.optimize import optimize_for_inference
from segzoo.inference.picture import Picture, PictureLike, read_picture, save_image
from segzoo.inference.preprocess import preprocess
from segzoo.models.base import SegmentationModel
from segzoo.ops import resize
from segzoo.registry import create_model

__all__ = ["KINDS", "Prediction", "Predictor"]

Kind = Literal["mask", "probability", "cutout", "overlay"]
KINDS: tuple[Kind, ...] = ("mask", "probability", "cutout", "overlay")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Prediction:
    """What a model says about one picture; maps are computed when they are asked for, at the picture's size.

    Args:
        picture: The picture.
        scores: Probabilities ``[C, h, w]`` at the size the model ran at.
        threshold: Of the foreground's probability, where there is one class.
        classes: Their names, or None.
        multilabel: Whether classes may overlap.
    """

    def __init__(
        self,
        picture: Picture,
        scores: Tensor,
        *,
        threshold: float = 0.5,
        classes: tuple[str, ...] | None = None,
        multilabel: bool = False,
    ) -> None:
        self.picture = picture
        self.scores = scores
        self.threshold = threshold
        self.classes = classes
        self.multilabel = multilabel

    def __repr__(self) -> str:
        height, width = self.picture.size
        return f"Prediction({len(self.scores)} classes, {height}×{width} pixels)"

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """float32 ``[C, H, W]`` in 0…1 at the picture's size, resized bilinearly, not stretched."""
        return self._resized(self.scores)

    @cached_property
    def mask(self) -> NDArray[np.uint8]:
        """uint8 ``[H, W]``: 1 where the foreground's probability exceeds the threshold, or the class index.

        A multilabel model's is ``[C, H, W]``, 0 or 1 for each class.
        """
        if len(self.scores) > 256:
            raise ValueError(f"a uint8 mask holds 256 classes, this model has {len(self.scores)}: use .probabilities")
        if self.multilabel:
            mask = self.probabilities > self.threshold
        elif len(self.scores) == 1:
            mask = self.probabilities[0] > self.threshold
        else:
            mask = self.probabilities.argmax(0)
        return mask.astype(np.uint8)

    def evaluation_map(self) -> NDArray[np.uint8]:
        """uint8 ``[H, W]``: the saliency map that salient-object papers score, by U²-Net's own evaluation code.

        The model's map is stretched to 0…1 (min-max), made 8 bit, and resized bilinearly to the picture's size. A
        constant map has nothing to stretch and stays as it is.
        """
        self._one_class("an evaluation map")
        eight_bit = (stretch(self.scores)[0] * 255).to(torch.uint8).numpy()
        height, width = self.picture.size
        return np.asarray(Image.fromarray(eight_bit).resize((width, height), Image.Resampling.BILINEAR))

    def cutout(
        self, *, background: str | None = None, hard: bool = False, classes: Sequence[int | str] | None = None
    ) -> Image.Image:
        """The picture with everything but the foreground transparent.

        Args:
            background: A colour (``"white"``, ``"#20a0ff"``) to put behind; None leaves it transparent.
            hard: Cut along the mask; by default the rim is as soft as the probabilities.
            classes: What to keep, by index or name, of a model with several classes.

        Returns:
            A PIL image at the picture's size: RGBA, or RGB with a ``background``. Transparency that the
            picture had stays.

        Raises:
            ValueError: For an unknown colour or class, or several classes and no choice.
        """
        alpha = self._foreground(classes, hard)
        if self.picture.alpha is not None:
            alpha = (alpha.astype(np.uint16) * self.picture.alpha // 255).astype(np.uint8)
        image = self.picture.rgb()
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
        classes: Sequence[int | str] | None = None,
    ) -> Image.Image:
        """One of the pictures that can be made of a prediction.

        Args:
            kind: ``"mask"`` (grey 0 or 255; a palette of class indices where there are several), ``"probability"``
                (grey 0 to 255, of one class), ``"cutout"`` or ``"overlay"``.
            background: See :meth:`cutout`.
            hard: See :meth:`cutout`.
            classes: See :meth:`cutout`.
        """
        if kind == "cutout":
            return self.cutout(background=background, hard=hard, classes=classes)
        if kind == "overlay":
            return self.overlay()
        if kind == "probability":
            self._one_class("a probability picture")
            return Image.fromarray(_to_byte(self.probabilities[0]))
        if kind != "mask":
            raise unknown_name("kind of picture", kind, KINDS)
        if len(self.scores) == 1:
            return Image.fromarray(self.mask.reshape(self.mask.shape[-2:]) * np.uint8(255))
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
        classes: Sequence[int | str] | None = None,
    ) -> None:
        """Write :meth:`render`'s picture to a file, whole or not at all; cut-outs keep the picture's colour profile.

        Args:
            path: Its ending names the format; an open binary file gets PNG.
            kind: See :meth:`render`.
            background: See :meth:`cutout`.
            hard: See :meth:`cutout`.
            classes: See :meth:`cutout`.
        """
        image = self.render(kind, background=background, hard=hard, classes=classes)
        profile = self.picture.icc_profile if kind in ("cutout", "overlay") else None
        save_image(image, path, icc_profile=profile)

    def _resized(self, scores: Tensor) -> NDArray[np.float32]:
        values: NDArray[np.float32] = resize(scores[None], self.picture.size)[0].clamp(0, 1).numpy()
        return values

    def _one_class(self, what: str) -> None:
        if len(self.scores) != 1:
            raise ValueError(f"{what} is of one class, this model has {len(self.scores)}")

    def _foreground(self, classes: Sequence[int | str] | None, hard: bool) -> NDArray[np.uint8]:
        """uint8 ``[H, W]``, 255 where the picture is kept."""
        if len(self.scores) == 1 and classes is None:
            return self.mask.reshape(self.mask.shape[-2:]) * np.uint8(255) if hard else _to_byte(self.probabilities[0])
        if not classes:
            known = ", ".join(self.classes or map(str, range(len(self.scores))))
            raise ValueError(f"say which classes the cut-out keeps, as classes=[…], of: {known}")
        kept = [self._class_index(c) for c in classes]
        total = self._resized(self.scores[kept].sum(0, keepdim=True).clamp_max(1))[0]
        return np.where(total > 0.5, 255, 0).astype(np.uint8) if hard else _to_byte(total)

    def _class_index(self, name: int | str) -> int:
        names = self.classes or ()
        if isinstance(name, str) and name in names:
            return names.index(name)
        if isinstance(name, int) and 0 <= name < len(self.scores):
            return name
        raise unknown_name("class", name, names or map(str, range(len(self.scores))))

    def _index_map(self) -> NDArray[np.uint8]:
        if not self.multilabel:
            return self.mask
        best = self.probabilities.argmax(0)
        return np.where(self.mask.any(0), best + 1, 0).astype(np.uint8)


class Predictor:
    """A model made ready for pictures: preprocessing, device, batches, and masks at each picture's own size.

    Args:
        model: A name (``"u2net_lite"``, ``"u2net_lite.duts"``) or a :class:`segzoo.models.SegmentationModel`, which is
            copied and stays as it is.
        device: ``"auto"`` (a CUDA GPU, else Apple's, else the CPU) or a torch device, which must be there.
        precision: ``"auto"`` (float32), ``"fp32"``, ``"bf16"`` or ``"fp16"``. The narrow ones move results: the
            record's ``precision_ok`` says where that was checked.
        batch_size: How many pictures of a list or folder go through the model at once.
        min_max: Stretch each prediction to 0…1, as the published evaluation of U²-Net does (the record's ``protocol``).
            Off by default: a picture without any object would get one.

    Raises:
        ValueError: For an unknown model, device or precision.

    Example:
        >>> predictor = Predictor("u2net_lite.duts")
        >>> prediction = predictor(np.zeros((60, 80, 3), np.uint8))
        >>> prediction.mask.shape, prediction.cutout().mode
        ((60, 80), 'RGBA')
    """

    def __init__(
        self,
        model: str | SegmentationModel,
        *,
        device: str | torch.device = "auto",
        precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
        batch_size: int = 1,
        min_max: bool = False,
    ) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a positive int, got {batch_size!r}")
        if precision != "auto" and precision not in _DTYPES:
            raise unknown_name("precision", precision, ["auto", *_DTYPES])
        self.device = _find_device(device)
        self.dtype = _DTYPES["fp32" if precision == "auto" else precision]
        self.batch_size = batch_size
        self.min_max = min_max
        if isinstance(model, str):
            loaded: nn.Module = create_model(model)
        else:
            loaded = model
        if not isinstance(loaded, SegmentationModel):
            raise TypeError(f"model is a name or a segzoo model, got {type(model).__name__}")
        self.model = optimize_for_inference(loaded, device=self.device, dtype=self.dtype)

    @overload
    def __call__(self, pictures: list[PictureLike] | tuple[PictureLike, ...]) -> list[Prediction]: ...
    @overload
    def __call__(self, pictures: PictureLike) -> Prediction: ...

    def __call__(
        self, pictures: PictureLike | list[PictureLike] | tuple[PictureLike, ...]
    ) -> Prediction | list[Prediction]:
        """Predict one picture, or a list of them.

        Args:
            pictures: A path, an open file, a PIL image, an array ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]``, or a
                tensor ``[H, W]`` or ``[C, H, W]``; or a list. Arrays and tensors are uint8, or floating point in 0…1.

        Returns:
            A :class:`Prediction`, or a list in the same order.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no picture, or broken.
        """
        if isinstance(pictures, (list, tuple)):
            return [p for p in self.stream(pictures) if isinstance(p, Prediction)]
        return self._predict([self._load(pictures)])[0]

    def stream(
        self, pictures: Iterable[PictureLike], *, workers: int = 2, errors: Literal["raise", "return"] = "raise"
    ) -> Iterator[Prediction | Exception]:
        """Predict many pictures, decoding ahead in threads; holds a few in memory at a time.

        Args:
            pictures: Any iterable, endless ones too; read a few ahead.
            workers: Threads that decode.
            errors: With ``"return"`` a bad picture gives its exception in its place, and the rest goes on.

        Yields:
            A :class:`Prediction` for each picture, in order.

        Example:
            >>> pictures = (np.zeros((20, 30 + i, 3), np.uint8) for i in range(3))
            >>> [p.mask.shape for p in Predictor("u2net_lite").stream(pictures)]
            [(20, 30), (20, 31), (20, 32)]
        """
        if errors not in ("raise", "return"):
            raise unknown_name("value of errors", errors, ["raise", "return"])
        source = iter(pictures)
        waiting: deque[Future[tuple[Picture, Tensor]]] = deque()
        pool = ThreadPoolExecutor(max(workers, 1), thread_name_prefix="segzoo-decode")
        try:
            exhausted = False
            while True:
                while not exhausted and len(waiting) < self.batch_size + max(workers, 1):
                    try:
                        waiting.append(pool.submit(self._load, next(source)))
                    except StopIteration:
                        exhausted = True
                if not waiting:
                    return
                batch = [waiting.popleft() for _ in range(min(self.batch_size, len(waiting)))]
                failures = [future.exception() for future in batch]
                if errors == "raise" and any(failures):
                    raise next(failure for failure in failures if failure)
                predictions = iter(self._predict([f.result() for f, failure in zip(batch, failures) if not failure]))
                for failure in failures:
                    if failure is None:
                        yield next(predictions)
                    elif isinstance(failure, Exception):
                        yield failure
                    else:
                        raise failure
        finally:
            pool.shutdown(cancel_futures=True)

    def _load(self, source: PictureLike) -> tuple[Picture, Tensor]:
        picture = read_picture(source, in_channels=self.model.in_channels)
        return picture, preprocess(picture, self.model.preprocessing)

    def _predict(self, loaded: Sequence[tuple[Picture, Tensor]]) -> list[Prediction]:
        """Predictions of preprocessed pictures: one batch where all have one size, else one by one."""
        inputs = [x for _, x in loaded]
        one_size = len({x.shape for x in inputs}) == 1
        batches = [torch.stack(inputs)] if one_size else [x[None] for x in inputs]
        scores = [score for batch in batches for score in self.scores(batch)]
        model = self.model
        return [
            Prediction(
                picture,
                stretch(score) if self.min_max else score,
                threshold=model.threshold,
                classes=model.classes,
                multilabel=model.multilabel,
            )
            for (picture, _), score in zip(loaded, scores)
        ]

    @torch.inference_mode()
    def scores(self, x: Tensor) -> Tensor:
        """Probabilities, float32 ``[N, C, h, w]`` on the CPU, of preprocessed pictures ``[N, in_channels, h, w]``."""
        x = x.to(device=self.device, dtype=self.dtype, memory_format=torch.channels_last)
        return self.model.probabilities(self.model(x)).cpu()


def stretch(scores: Tensor) -> Tensor:
    """Each map ``[…, h, w]`` linearly to 0…1; a constant map stays as it is.

    Example:
        >>> stretch(torch.tensor([[[0.2, 0.4]]])).tolist(), stretch(torch.full((1, 1, 2), 0.5)).tolist()
        ([[[0.0, 1.0]]], [[[0.5, 0.5]]])
    """
    low, high = scores.amin((-2, -1), keepdim=True), scores.amax((-2, -1), keepdim=True)
    return torch.where(high > low, (scores - low) / (high - low), scores)


def _to_byte(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    rounded: NDArray[np.uint8] = (probabilities * 255 + 0.5).astype(np.uint8)
    return rounded


def _find_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise unknown_name("device", device, ["auto", "cpu", "cuda", "cuda:0", "mps"]) from None
    missing = (found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count()) or (
        found.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise ValueError(f"device {str(device)!r} was asked for and is not there; device='auto' takes what is")
    return found
