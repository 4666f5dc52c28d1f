"""Normalisation layers under one name each, and one rule for maps too small to have statistics.

``norm=`` is an argument of every model here. A name becomes a layer through ``get_norm``.

A statistic over one single value says nothing (its variance is zero, and the layer would erase its input): a 1×1 map at
batch 1 in training is such a case, and U²-Net's deepest stages reach it below about 17×17 pixels. There, batch
normalisation uses its running statistics without updating them; group, instance and layer normalisation leave the
value as it is and apply only γ and β.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segzoo._errors import unknown_name

__all__ = [
    "BatchNorm",
    "EvoNormB0",
    "EvoNormS0",
    "FrozenBatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "Norm",
    "SyncBatchNorm",
    "get_norm",
]

Norm = str | Callable[[int], nn.Module] | None
"""What ``norm=`` takes: a name, a callable from the number of channels to a module, or None for no norm."""


def _values_per_channel(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def _by_running_statistics(norm: nn.BatchNorm2d | nn.SyncBatchNorm | FrozenBatchNorm, x: Tensor) -> Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that also trains on a single value per channel.

    As ``torch.nn.BatchNorm2d``, on ``[N, C, H, W]``. Where N·H·W = 1 in training, the running statistics are used
    and not updated (torch raises an error there).

    Source: Ioffe & Szegedy, "Batch Normalization", 2015, Algorithm 1.

    Examples:
        >>> BatchNorm(8).train()(torch.zeros(1, 8, 1, 1)).shape
        torch.Size([1, 8, 1, 1])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[N, C, H, W]``."""
        if self.training and _values_per_channel(x) == 1 and self.running_mean is not None:
            return _by_running_statistics(self, x)
        return super().forward(x)


class SyncBatchNorm(nn.SyncBatchNorm):
    """Batch normalisation with statistics over all processes; ``BatchNorm`` where there is only one process."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[N, C, H, W]``."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        alone = not distributed or torch.distributed.get_world_size(self.process_group) == 1
        if self.training and alone and _values_per_channel(x) == 1 and self.running_mean is not None:
            return _by_running_statistics(self, x)
        return super().forward(x)


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with everything fixed: statistics, γ and β are buffers, in training too.

    Takes the state dict of a ``BatchNorm`` (its batch counter is left out).

    Args:
        num_features: C of the input ``[N, C, H, W]``.
        eps: Added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[N, C, H, W]``."""
        return _by_running_statistics(self, x)

    def extra_repr(self) -> str:
        """As ``BatchNorm2d`` prints itself."""
        return f"{self.num_features}, eps={self.eps}"


def legal_groups(num_channels: int, groups: int = 32) -> int:
    """The largest divisor d of ``num_channels`` with d ≤ ``groups`` and at least two channels a group (or 1).

    Examples:
        >>> [legal_groups(c) for c in (16, 64, 48, 7, 1)]
        [8, 32, 24, 1, 1]
    """
    fits = (d for d in range(min(groups, num_channels // 2), 0, -1) if num_channels % d == 0)
    return next(fits, 1)


class GroupNorm(nn.GroupNorm):
    """Group normalisation with a legal number of groups for any number of channels.

    Args:
        num_channels: C of the input ``[N, C, H, W]``.
        groups: Asked number of groups; see ``legal_groups``.
        eps: Added to the variance.

    Source: Wu & He, "Group Normalization", 2018.

    Examples:
        >>> GroupNorm(16).num_groups
        8
    """

    def __init__(self, num_channels: int, groups: int = 32, eps: float = 1e-5) -> None:
        super().__init__(legal_groups(num_channels, groups), num_channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[N, C, H, W]``."""
        if self.num_channels // self.num_groups * x.shape[2] * x.shape[3] == 1:
            return _affine(x, self.weight, self.bias)
        return super().forward(x)


class InstanceNorm(nn.InstanceNorm2d):
    """Instance normalisation with γ and β and no running statistics; a 1×1 map passes with γ and β alone.

    Source: Ulyanov et al., "Instance Normalization", 2016.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[N, C, H, W]``."""
        if x.shape[2] * x.shape[3] == 1:
            return _affine(x, self.weight, self.bias)
        return super().forward(x)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel of ``[N, C, H, W]`` (as ConvNeXt and timm's LayerNorm2d).

    Source: Ba et al., "Layer Normalization", 2016; Liu et al., "A ConvNet for the 2020s", 2022.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__(num_channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[N, C, H, W]``."""
        if x.shape[1] == 1:
            return _affine(x, self.weight, self.bias)
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _EvoNorm(nn.Module):
    """What both EvoNorms share: γ, β and v; without ``act`` only γ and β are left, as in the paper's code."""

    includes_act = True

    def __init__(self, num_channels: int, eps: float, act: bool) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.eps = eps
        self.act = act
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.v = nn.Parameter(torch.ones(num_channels)) if act else None

    def extra_repr(self) -> str:
        return f"{self.num_channels}, eps={self.eps}, act={self.act}"


class EvoNormS0(_EvoNorm):
    """EvoNorm-S0, norm and activation in one: x·σ(v·x) / √(group variance + ε)·γ + β.

    Args:
        num_channels: C of the input ``[N, C, H, W]``.
        groups: Asked number of groups; see ``legal_groups``.
        eps: Added to the biased variance, which is computed in float32.
        act: False where no activation follows: then x·γ + β.

    Where a group has only a few values, nearly equal by chance, the division is by nearly nothing: training U²-Net with
    it on pictures of a few pixels at batch 1 overflows. From about 64×64 on it does not.

    Source: Liu et al., "Evolving Normalization-Activation Layers", 2020 (arXiv 2004.02967), Table 1 and Appendix C.

    Examples:
        >>> EvoNormS0(16)(torch.randn(2, 16, 5, 5)).shape
        torch.Size([2, 16, 5, 5])
    """

    def __init__(self, num_channels: int, groups: int = 32, eps: float = 1e-5, act: bool = True) -> None:
        super().__init__(num_channels, eps, act)
        self.groups = legal_groups(num_channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate ``[N, C, H, W]``."""
        if self.v is None:
            return _affine(x, self.weight, self.bias)
        n, c, h, w = x.shape
        gated = x * torch.sigmoid(x * _per_channel(self.v, x))
        if c // self.groups * h * w > 1:
            grouped = _statistics(x).reshape(n, self.groups, -1)
            inverse_std = (grouped.var(2, correction=0) + self.eps).rsqrt().to(x.dtype)
            gated = gated * inverse_std.repeat_interleave(c // self.groups, 1).reshape(n, c, 1, 1)
        return _affine(gated, self.weight, self.bias)


class EvoNormB0(_EvoNorm):
    """EvoNorm-B0, norm and activation in one: x / max(√(batch variance + ε), v·x + √(instance variance + ε))·γ + β.

    Args:
        num_channels: C of the input ``[N, C, H, W]``.
        momentum: Of the running batch variance, used in eval mode.
        eps: Added to the biased variances, which are computed in float32.
        act: False where no activation follows: then x·γ + β.

    Source: Liu et al., "Evolving Normalization-Activation Layers", 2020 (arXiv 2004.02967), Table 1 and Appendix C.
    """

    running_var: Tensor | None

    def __init__(self, num_channels: int, momentum: float = 0.1, eps: float = 1e-5, act: bool = True) -> None:
        super().__init__(num_channels, eps, act)
        self.momentum = momentum
        self.register_buffer("running_var", torch.ones(num_channels) if act else None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate ``[N, C, H, W]``."""
        if self.v is None or self.running_var is None:
            return _affine(x, self.weight, self.bias)
        values = _statistics(x)
        if self.training and _values_per_channel(x) > 1:
            batch_var = values.var((0, 2, 3), correction=0)
            with torch.no_grad():
                self.running_var.lerp_(batch_var.detach().to(self.running_var.dtype), self.momentum)
        else:
            batch_var = self.running_var.to(values.dtype)
        batch_std = (batch_var + self.eps).sqrt().reshape(1, -1, 1, 1)
        instance_std = (values.var((2, 3), correction=0, keepdim=True) + self.eps).sqrt()
        denominator = torch.maximum(batch_std, _per_channel(self.v, values) * values + instance_std)
        return _affine((values / denominator).to(x.dtype), self.weight, self.bias)


def _per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.to(x.dtype).reshape(1, -1, 1, 1)


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x * _per_channel(weight, x) + _per_channel(bias, x)


def _statistics(x: Tensor) -> Tensor:
    """The values in the precision that statistics need: float32, or float64 where the input has it."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": BatchNorm,
    "sync_batch": SyncBatchNorm,
    "frozen_batch": FrozenBatchNorm,
    "group": GroupNorm,
    "instance": InstanceNorm,
    "layer": LayerNorm,
    "evo_s0": EvoNormS0,
    "evo_b0": EvoNormB0,
}


def get_norm(norm: Norm, num_channels: int, *, act: bool = True) -> nn.Module:
    """The normalisation layer of that name for ``[N, num_channels, H, W]``.

    Args:
        norm: ``"batch"``, ``"sync_batch"``, ``"frozen_batch"``, ``"group"``, ``"instance"``, ``"layer"``, ``"evo_s0"``,
            ``"evo_b0"``, a callable from the number of channels to a module, or None (an identity).
        num_channels: C.
        act: Whether an activation follows directly. EvoNorms take its place (their ``includes_act`` is True) and
            are γ and β only where none follows; the other norms do not care.

    Raises:
        ValueError: For an unknown name, with the nearest one.

    Examples:
        >>> get_norm("group", 16)
        GroupNorm(8, 16, eps=1e-05, affine=True...)
    """
    if norm is None:
        return nn.Identity()
    if not isinstance(norm, str):
        if not callable(norm):
            raise TypeError(f"norm must be a name, a callable or None, not {type(norm).__name__}: {norm!r}")
        return norm(num_channels)
    if norm not in _NORMS:
        raise unknown_name("norm", norm, _NORMS)
    if norm in ("evo_s0", "evo_b0"):
        return (EvoNormS0 if norm == "evo_s0" else EvoNormB0)(num_channels, act=act)
    return _NORMS[norm](num_channels)
