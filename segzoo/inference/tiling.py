"""A model over a picture of any size, window by window, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, product
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segzoo._errors import unknown_name
from segzoo._progress import progress_bar
from segzoo.inference._forward import LogitsModel, main_logits, place_of
from segzoo.inference._sizes import size_pair
from segzoo.models.base import check_positive, evaluating
from segzoo.ops import resize

__all__ = ["Blend", "check_tiling", "size_pair", "sliding_window"]

Blend = Literal["gaussian", "constant"]
Size: TypeAlias = "int | tuple[int, int]"
_BLENDS = ("gaussian", "constant")


class _Span(NamedTuple):
    """One window along one axis.

    Args:
        start: The window's first pixel.
        extent: How many pixels it has.
        low: The first pixel of the picture that it says something about.
        high: One more than the last.
        weight: What it counts for there, float32 ``[high - low]``; at each pixel all windows' weights add up to 1.
    """

    start: int
    extent: int
    low: int
    high: int
    weight: Tensor


@torch.no_grad()
def sliding_window(
    model: LogitsModel,
    x: Tensor | NDArray[np.generic],
    size: Size,
    overlap: float = 0.5,
    margin: Size | None = None,
    blend: Blend = "gaussian",
    *,
    batch_size: int = 1,
    multiple: int = 32,
    pad: bool = False,
    prepare: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | str | None = None,
    out: Tensor | NDArray[np.floating] | None = None,
    progress: bool = False,
) -> Tensor:
    """Logits of a picture too large for a model, from overlapping windows that are blended.

    Windows begin at multiples of the stride; the last ones end where the picture ends, and may be a little smaller.
    One that is larger than the picture is as large as that. Beside ``x`` and the result there are only the windows of
    one batch and what the model makes of them. No gradients; every module's mode stays as it was.

    A model that looks no farther than the margin gives the whole picture's result, up to rounding, if ``multiple`` is a
    multiple of its strides.

    Args:
        model: As ``multi_scale`` takes it.
        x: A tensor ``[N, C, H, W]`` or ``[C, H, W]``, or an array ``[H, W]`` or ``[H, W, C]``, which may be
            memory-mapped: only windows of it are read. Normalised floating point values, or what ``prepare`` takes.
        size: Height and width of the windows in pixels, or one number for both.
        overlap: How much of a window its neighbour covers at least, from 0 to less than 1; the stride is the rest,
            rounded down to a ``multiple``.
        margin: How many pixels along edges inside the picture count for nothing, as a model knows least there; one
            number, or one for top and bottom and one for the sides. None: ``size // 8``, or half the overlap where that
            is less. Along the picture's own rim all pixels count.
        blend: What a window's pixels count for where windows overlap: ``"gaussian"``, most in its centre, with a
            standard deviation of an eighth of its size; or ``"constant"``, each the same.
        batch_size: How many windows go through the model at once.
        multiple: Windows begin at multiples of so many pixels, so that what a model with strides or pooling computes
            lies on one grid in all of them: the largest of its strides. Where the windows' stride is less, half of it,
            a quarter …; 1: anywhere. The last windows are smaller by less than that.
        pad: Fill smaller windows with zeros below and to the right, and smaller batches with windows of zeros, for a
            model that takes one size only. What it says along the picture's lower and right rim depends on these zeros.
        prepare: From a batch of windows ``[B, C, h, w]`` of ``x``, on the model's device, to what the model takes, of
            the same size; it normalises 8-bit pixels, for instance.
        device: Where the result is gathered; by default where ``x`` is (arrays: the CPU). Windows go to the device and
            the floating point type of the model's parameters, where it has any.
        out: What to gather the result in: a tensor or array of floating point numbers of the result's shape, which may
            be memory-mapped.
        progress: Whether to show a bar on stderr, where that is a terminal.

    Returns:
        float32 ``[N, classes, H, W]``, or ``[classes, H, W]`` of one picture ``[C, H, W]`` or an array; with ``out`` a
        tensor in its memory and of its type.

    Raises:
        ValueError: If ``x`` or ``out`` is of the wrong shape, an argument is out of range, the blend is unknown, or the
            margin is so large that there would be pixels that count in no window.
        TypeError: If ``x`` has integers and there is no ``prepare``, or the model returns no logits.

    Source:
        The weights are those of Isensee et al., "nnU-Net", Nature Methods 2021, Methods ("Inference"). They are a row's
        times a column's and windows lie on a full grid: each axis is normalised before, and the result is a plain sum.

    Examples:
        >>> sliding_window(torch.nn.Identity(), torch.ones(3, 5, 7), size=4).shape
        torch.Size([3, 5, 7])
    """
    window, strides, margins = check_tiling(size, overlap, margin, blend, multiple)
    check_positive(batch_size=batch_size)
    if out is not None and device is not None:
        raise ValueError("the result is gathered in out, or on a device: expected one of them")
    pictures = _Pictures(x, prepare)
    sides = (pictures.height, pictures.width)
    axes = [_spans(*of_axis, multiple, blend) for of_axis in zip(sides, window, strides, margins)]
    place, dtype = place_of(model)
    gathered = _Result(out, device if device is not None else pictures.device, pictures)
    with (
        evaluating(model),
        progress_bar(pictures.count * len(axes[0]) * len(axes[1]), progress, unit="windows") as bar,
    ):
        for some in _batches(pictures.count, axes, batch_size):
            extent = (some[0][1].extent, some[0][2].extent)
            windows = pictures.cut([(n, rows.start, columns.start) for n, rows, columns in some], extent)
            windows = windows.to(place) if place is not None else windows
            windows = _prepared(windows, prepare)
            windows = windows.to(dtype) if dtype is not None and windows.is_floating_point() else windows
            if pad:
                more = (window[0] - extent[0], window[1] - extent[1])
                windows = F.pad(windows, (0, more[1], 0, more[0], 0, 0, 0, batch_size - len(some)))
            logits = resize(main_logits(model, windows), (windows.shape[-2], windows.shape[-1]))
            for of_window, (n, rows, columns) in zip(logits, some):
                gathered.add(of_window, n, rows, columns)
            bar.update(len(some))
    return gathered.tensor()


def check_tiling(
    size: Size, overlap: float = 0.5, margin: Size | None = None, blend: str = "gaussian", multiple: int = 32
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Windows, strides and margins, each of height and width, of ``sliding_window``'s arguments; or its errors.

    Examples:
        >>> check_tiling(512)
        ((512, 512), (256, 256), (64, 64))
    """
    check_positive(multiple=multiple)
    window = size_pair("size", size)
    if isinstance(overlap, bool) or not isinstance(overlap, (int, float)) or not 0 <= overlap < 1:
        raise ValueError(f"overlap must be a number from 0 to less than 1, got {overlap!r}")
    if blend not in _BLENDS:
        raise unknown_name("blend", blend, _BLENDS)
    # What rounding took away from a whole number of pixels must not cost one: 10 · (1 − 0.8) is 1.9999999999999996.
    height, width = (max(1, int(side * (1 - overlap) + 1e-6)) for side in window)
    height, width = (stride - stride % _grid(stride, multiple) for stride in (height, width))
    most = ((window[0] - height) // 2, (window[1] - width) // 2)
    if margin is None:
        margins = (min(window[0] // 8, most[0]), min(window[1] // 8, most[1]))
    else:
        margins = size_pair("margin", margin, least=0)
        if margins[0] > most[0] or margins[1] > most[1]:
            allowed = most[0] if most[0] == most[1] else most
            raise ValueError(
                f"margin is {margin}, but beyond {allowed} there are pixels that count in no window of "
                f"{window[0]}×{window[1]} with overlap {overlap:g}: choose at most {allowed}, or a larger overlap"
            )
    return window, (height, width), margins


def _grid(stride: int, multiple: int) -> int:
    """What windows begin at multiples of: ``multiple``, or half of it, a quarter … where the stride is less."""
    while multiple > stride:
        multiple //= 2
    return multiple


def _spans(length: int, window: int, stride: int, margin: int, multiple: int, blend: str) -> list[_Span]:
    """The windows along an axis of ``length`` pixels, with weights that add up to 1 at each of them."""
    window = min(window, length)
    grid = _grid(stride, multiple)
    last = -(-(length - window) // grid) * grid
    spans = []
    total = torch.zeros(length, dtype=torch.float64)
    for start in [*range(0, last, stride), last]:
        extent = min(window, length - start)
        low = margin if start > 0 else 0
        high = extent - (margin if start < last else 0)
        weight = _weight(extent, blend)[low:high]
        total[start + low : start + high] += weight
        spans.append(_Span(start, extent, start + low, start + high, weight))
    return [span._replace(weight=(span.weight / total[span.low : span.high]).float()) for span in spans]


def _weight(extent: int, blend: str) -> Tensor:
    """What the pixels of a window count for along an axis, float64, before neighbours are looked at."""
    if blend == "constant":
        return torch.ones(extent, dtype=torch.float64)
    away = torch.arange(extent, dtype=torch.float64) - (extent - 1) / 2
    return torch.exp(-0.5 * (away / (extent / 8)) ** 2)


def _batches(count: int, axes: list[list[_Span]], batch_size: int) -> Iterator[list[tuple[int, _Span, _Span]]]:
    """Picture, rows and columns of the windows that go through the model together, which are of one size."""
    for rows, columns in product(*([[s for s in axis if s.extent == e] for e in _extents(axis)] for axis in axes)):
        grid = product(range(count), rows, columns)
        while some := list(islice(grid, batch_size)):
            yield some


def _extents(axis: list[_Span]) -> list[int]:
    return sorted({span.extent for span in axis}, reverse=True)


def _prepared(windows: Tensor, prepare: Callable[[Tensor], Tensor] | None) -> Tensor:
    if prepare is None:
        return windows
    prepared = prepare(windows)
    if not isinstance(prepared, Tensor):
        raise TypeError(f"prepare must return a tensor, got {type(prepared).__name__}")
    if prepared.ndim != 4 or len(prepared) != len(windows) or prepared.shape[-2:] != windows.shape[-2:]:
        raise ValueError(
            f"prepare must return windows of the size it was given, {list(windows.shape)}, got {list(prepared.shape)}"
        )
    return prepared


class _Pictures:
    """What windows are cut from: one or several pictures of one size, as a tensor or an array."""

    def __init__(self, x: Tensor | NDArray[np.generic], prepare: object) -> None:
        if not isinstance(x, (Tensor, np.ndarray)):
            raise TypeError(f"x is {type(x).__name__}, expected a tensor or an array; segzoo.Predictor takes pictures")
        is_tensor = isinstance(x, Tensor)
        if x.ndim not in ((3, 4) if is_tensor else (2, 3)) or 0 in x.shape:
            shapes = "[N, C, H, W] or [C, H, W]" if is_tensor else "[H, W] or [H, W, C]"
            kind = "a tensor" if is_tensor else "an array"
            raise ValueError(f"x is {kind} {list(x.shape)}, expected {shapes} without empty dimensions")
        floating = x.is_floating_point() if isinstance(x, Tensor) else x.dtype.kind == "f"
        if prepare is None and not floating:
            raise TypeError(
                f"x is {x.dtype}, and a model takes normalised floating point values: pass prepare=, a function of a "
                "batch of windows"
            )
        self.x = x
        self.batched = is_tensor and x.ndim == 4
        self.count = len(x) if self.batched else 1
        self.height: int
        self.width: int
        self.height, self.width = x.shape[-2:] if is_tensor else x.shape[:2]
        self.device = x.device if isinstance(x, Tensor) else torch.device("cpu")

    def cut(self, corners: list[tuple[int, int, int]], extent: tuple[int, int]) -> Tensor:
        """Windows ``[B, C, *extent]``, copied, from picture, row and column of their upper left corners."""
        return torch.stack(
            [
                self._window(n, slice(row, row + extent[0]), slice(column, column + extent[1]))
                for n, row, column in corners
            ]
        )

    def _window(self, n: int, rows: slice, columns: slice) -> Tensor:
        if isinstance(self.x, Tensor):
            return (self.x[n] if self.batched else self.x)[:, rows, columns]
        window = self.x[rows, columns]
        # torch has neither the other byte order nor floating point numbers of more than 64 bits.
        kind = window.dtype.newbyteorder("=") if window.dtype.itemsize <= 8 else np.float64
        window = window.astype(kind).reshape(*window.shape[:2], -1)
        return torch.from_numpy(window).permute(2, 0, 1)


class _Result:
    """What windows' logits are added up in."""

    def __init__(self, out: object, device: torch.device | str, pictures: _Pictures) -> None:
        self.pictures = pictures
        self.device = torch.device(device)
        self.total: Tensor | None = None
        self.given: Tensor | None = None
        if out is None:
            return
        if isinstance(out, np.ndarray):
            if not out.flags.writeable or not out.dtype.isnative:
                reason = "cannot be written to" if out.dtype.isnative else "has the other byte order"
                raise ValueError(f"out is an array that {reason}")
            out = torch.from_numpy(out)
        if not isinstance(out, Tensor) or not out.is_floating_point():
            kind = str(out.dtype) if isinstance(out, Tensor) else type(out).__name__
            raise TypeError(f"out is {kind}, expected a tensor or an array of floating point numbers")
        self._check(out, None)
        self.given = out if pictures.batched else out[None]

    def _check(self, out: Tensor, classes: int | None) -> None:
        pictures = self.pictures
        expected = [classes or "classes", pictures.height, pictures.width]
        expected = [pictures.count, *expected] if pictures.batched else expected
        shape = list(out.shape)
        if len(shape) != len(expected) or any(
            given != wanted for given, wanted in zip(shape, expected) if wanted != "classes"
        ):
            raise ValueError(f"out is {shape}, but the result is [{', '.join(map(str, expected))}]")

    def add(self, logits: Tensor, n: int, rows: _Span, columns: _Span) -> None:
        """Add a window's logits ``[classes, h, w]``, weighted, to picture ``n``."""
        if self.total is None:
            shape = (self.pictures.count, len(logits), self.pictures.height, self.pictures.width)
            if self.given is not None:
                self._check(self.given if self.pictures.batched else self.given[0], len(logits))
            self.total = torch.zeros(shape, device=self.device) if self.given is None else self.given.zero_()
        # Not a product with zero weights: what is not finite in the margin must not count either.
        inner = logits[
            :,
            rows.low - rows.start : rows.high - rows.start,
            columns.low - columns.start : columns.high - columns.start,
        ]
        weighted = (inner * rows.weight.to(inner.device)[:, None]).mul_(columns.weight.to(inner.device))
        self.total[n, :, rows.low : rows.high, columns.low : columns.high] += weighted.to(self.total.device)

    def tensor(self) -> Tensor:
        assert self.total is not None
        return self.total if self.pictures.batched else self.total[0]
