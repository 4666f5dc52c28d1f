"""What every loss asks of its inputs: shapes, dtypes, labels, and which pixels count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from segzoo._errors import unknown_name

__all__ = [
    "Auto",
    "Inputs",
    "Loss",
    "check_choice",
    "is_number",
    "listed",
    "nonnegative_weights",
    "safe_divide",
    "unwrapped",
]

Auto = Literal["auto"]
_BARELY_SUPPORTED = (torch.uint16, torch.uint32, torch.uint64)  # torch stores them, and computes next to nothing
MODES = ("multiclass", "binary", "multilabel")


@dataclass(frozen=True)
class Inputs:
    """Checked inputs, pixels in one axis: what is ignored has no label left, and ``valid`` says where it was."""

    logits: Tensor
    """``[N, C, H·W]``, as given (an ignored pixel may still hold anything)."""
    target: Tensor
    """Multiclass: int64 ``[N, H·W]``; else ``[N, C, H·W]`` in 0…1, of the dtype given. 0 where ignored."""
    valid: Tensor | None
    """bool, of the target's shape; None: everything counts."""
    size: tuple[int, int]
    """Height and width."""

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in: float64 for float64 logits, else float32."""
        return torch.promote_types(self.logits.dtype, torch.float32)

    def counted(self) -> Tensor:
        """How many entries of the target count, 0-dimensional, in the computing dtype."""
        if self.valid is None:
            return torch.full((), self.target.numel(), dtype=self.dtype, device=self.logits.device)
        return self.valid.sum().to(self.dtype)

    def map(self, values: Tensor) -> Tensor:
        """``[…, H·W]`` back to ``[…, H, W]``."""
        result: Tensor = values.unflatten(-1, self.size)
        return result


class Loss(nn.Module):
    """The base of the losses: the mode, what is ignored, and the checks of ``forward``'s arguments.

    Args:
        mode: ``"multiclass"``, ``"binary"`` or ``"multilabel"``.
        ignore_index: The label that does not count. ``"auto"``: 255 in ``"multiclass"``, None elsewhere.
    """

    modes: ClassVar[tuple[str, ...]] = MODES
    hard_targets: ClassVar[bool] = False
    """Whether binary and multilabel targets have to be 0 or 1, nothing between."""

    def __init__(self, mode: str, ignore_index: int | Auto | None) -> None:
        super().__init__()
        if mode not in MODES:
            raise unknown_name("mode", mode, self.modes)
        name = type(self).__name__
        if mode not in self.modes:
            raise ValueError(f"{name} has no mode {mode!r}, expected {' or '.join(map(repr, self.modes))}")
        if ignore_index not in ("auto", None) and (
            not isinstance(ignore_index, Integral) or isinstance(ignore_index, bool)
        ):
            raise ValueError(f"ignore_index is {ignore_index!r}, expected an integer, None or 'auto'")
        self.mode = mode
        self.ignore_index = (255 if mode == "multiclass" else None) if ignore_index == "auto" else ignore_index

    def extra_repr(self) -> str:
        """The mode and what is ignored, then what else the loss was made with."""
        settings = {"mode": self.mode, "ignore_index": self.ignore_index, **self._settings()}
        return ", ".join(f"{name}={value!r}" for name, value in settings.items() if value is not None)

    def _settings(self) -> dict[str, object]:
        return {}

    def _inputs(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Inputs:
        """The checked inputs of ``forward``."""
        _check_logits(logits, self.mode)
        channels = logits.shape[1]
        weight, classes = getattr(self, "weight", None), self._classes_of_weight(channels)
        if isinstance(weight, Tensor) and len(weight) != classes:
            raise ValueError(f"the loss has weights for {len(weight)} classes, but the logits have {classes}")
        target = _shaped_target(target, logits, self.mode).detach()
        if target.dtype in _BARELY_SUPPORTED:
            target = target.long()
        valid = _shaped_mask(mask, target, logits.device, self.mode)
        if self.ignore_index is not None and _can_hold(target.dtype, self.ignore_index):
            kept = target != self.ignore_index
            valid = kept if valid is None else valid & kept
        if valid is not None and valid.device.type == "cpu" and not torch.compiler.is_compiling():
            valid = None if unwrapped(valid).all() else valid  # spares a copy of the target
        if valid is not None:
            target = target.masked_fill(~valid, 0)
        self._check_values(target, channels)
        if self.mode == "multiclass":
            target = target.long()
        size = (logits.shape[2], logits.shape[3])
        return Inputs(logits.flatten(2), target.flatten(-2), None if valid is None else valid.flatten(-2), size)

    def _classes_of_weight(self, channels: int) -> int:
        return channels

    def _check_values(self, target: Tensor, channels: int) -> None:
        """Labels out of range are an error: at once on the CPU, an asynchronous assertion elsewhere."""
        if target.dtype == torch.bool or target.numel() == 0:
            return
        if self.mode == "multiclass":
            highest = channels - 1
            expected = f"0…{highest}" + ("" if self.ignore_index is None else f" or ignore_index={self.ignore_index}")
        else:
            highest = 1
            expected = "0 or 1" if self.hard_targets else "0…1"
        if torch.compiler.is_compiling() or target.device.type == "cuda":
            fits = self._fitting(target, highest)
            fits = (fits if torch.compiler.is_compiling() else unwrapped(fits)).all()
            torch._assert_async(fits, f"the target holds a value that is not in {expected}")
            return
        target = unwrapped(target)
        low, high = (value.item() for value in target.aminmax())  # both are NaN where a value is
        if low >= 0 and high <= highest and not (self._needs_each and not self._fitting(target, highest).all()):
            return
        worst = target[~self._fitting(target, highest)].flatten()[0].item()
        hint = ": divide by 255" if self.mode != "multiclass" and high == 255 else ""
        raise ValueError(f"the target holds {worst}, expected {expected}{hint}")

    @property
    def _needs_each(self) -> bool:
        """Whether a value between good ones may be wrong."""
        return self.hard_targets and self.mode != "multiclass"

    def _fitting(self, target: Tensor, highest: int) -> Tensor:
        if self._needs_each:
            return (target == 0) | (target == 1)
        # int8 and uint8 are too narrow to be compared with any number of classes.
        wide = target if target.is_floating_point() else target.long()
        return (wide >= 0) & (wide <= highest)


def _can_hold(dtype: torch.dtype, value: int) -> bool:
    """Whether a tensor of this dtype can hold the value: comparing uint8 with -1 would find 255."""
    if dtype == torch.bool:
        return value in (0, 1)
    limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return limits.min <= value <= limits.max


def unwrapped(x: Tensor) -> Tensor:
    """The tensor under ``torch.func``'s wrappers: values can be looked at in there, also below vmap."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        x = functorch.get_unwrapped(x)
    return x


def _check_logits(logits: Tensor, mode: str) -> None:
    if not isinstance(logits, Tensor):
        raise ValueError(f"logits are a {type(logits).__name__}, expected a tensor [N, C, H, W]")
    if logits.ndim != 4:
        raise ValueError(f"logits have the shape {list(logits.shape)}, expected [N, C, H, W]")
    if not logits.is_floating_point():
        raise ValueError(f"logits are {logits.dtype}, expected a floating point dtype")
    channels = logits.shape[1]
    if mode == "multiclass" and channels < 2:
        raise ValueError(f"logits have {channels} channel, mode 'multiclass' expects 2 or more: use mode='binary'")
    if mode == "binary" and channels != 1:
        raise ValueError(
            f"logits have {channels} channels, mode 'binary' expects 1: use mode='multiclass' or 'multilabel'"
        )
    if channels < 1:
        raise ValueError("logits have no channel")


def _shaped_target(target: Tensor, logits: Tensor, mode: str) -> Tensor:
    if not isinstance(target, Tensor):
        raise ValueError(f"the target is a {type(target).__name__}, expected a tensor")
    if target.device != logits.device:
        raise ValueError(f"the target is on {target.device}, the logits are on {logits.device}")
    n, c, h, w = logits.shape
    if mode == "multiclass":
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise ValueError(f"the target is {target.dtype}, mode 'multiclass' expects integer labels")
        if target.shape != (n, h, w):
            hint = ": squeeze(1) it" if target.shape == (n, 1, h, w) else ""
            raise ValueError(
                f"the target has the shape {list(target.shape)}, expected {[n, h, w]} for logits {[n, c, h, w]}{hint}"
            )
        return target
    if target.is_complex():
        raise ValueError(f"the target is {target.dtype}, expected float, bool or integer in 0…1")
    if mode == "binary" and target.shape == (n, h, w):
        target = target.unsqueeze(1)
    if target.shape != logits.shape:
        forms = f"{[n, h, w]} or {[n, 1, h, w]}" if mode == "binary" else f"{[n, c, h, w]}"
        raise ValueError(f"the target has the shape {list(target.shape)}, expected {forms}")
    return target


def _shaped_mask(mask: Tensor | None, target: Tensor, device: torch.device, mode: str) -> Tensor | None:
    """The mask at the target's shape."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"the mask is {given}, expected a bool tensor that is True where a pixel counts")
    if mask.device != device:
        raise ValueError(f"the mask is on {mask.device}, the logits are on {device}")
    n, h, w = target.shape[0], target.shape[-2], target.shape[-1]
    if mask.shape not in {(n, h, w), (n, 1, h, w), target.shape}:
        forms = f"{[n, h, w]} or {[n, 1, h, w]}" + (f" or {list(target.shape)}" if mode == "multilabel" else "")
        raise ValueError(f"the mask has the shape {list(mask.shape)}, expected {forms}")
    if mode == "multiclass":
        return mask.reshape(n, h, w)
    return (mask if mask.ndim == 4 else mask.unsqueeze(1)).expand_as(target)


def nonnegative_weights(name: str, values: Tensor | Sequence[float] | None) -> Tensor | None:
    """Weights of classes as a float tensor ``[C]``; not a number, negative or infinite: ValueError."""
    if values is None:
        return None
    weights = torch.as_tensor(values).detach().float()
    if weights.ndim != 1 or len(weights) == 0:
        raise ValueError(f"{name} has the shape {list(weights.shape)}, expected one number for each class")
    if not (weights.isfinite() & (weights >= 0)).all():
        raise ValueError(f"{name} is {weights.tolist()}, expected finite numbers of at least 0")
    return weights.clone()


def is_number(value: object) -> bool:
    """Whether it is a real number, Python's or NumPy's."""
    return isinstance(value, Real) and not isinstance(value, bool)


def listed(values: Tensor | None) -> list[float] | None:
    """Numbers as ``extra_repr`` shows them."""
    return None if values is None else [round(value, 6) for value in values.tolist()]


def check_choice(name: str, value: str, known: Sequence[str]) -> str:
    """``value`` if it is one of ``known``, else a ValueError that names the nearest."""
    if value not in known:
        raise unknown_name(name, value, known)
    return value


def safe_divide(total: Tensor, divisor: Tensor, otherwise: float = 0.0) -> Tensor:
    """``total / divisor``; ``otherwise`` where the divisor is 0, with a gradient of 0 instead of NaN."""
    positive = divisor > 0
    quotient = total / torch.where(positive, divisor, torch.ones_like(divisor))
    return torch.where(positive, quotient, torch.full_like(quotient, otherwise))
