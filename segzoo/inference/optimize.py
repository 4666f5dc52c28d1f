"""The same function, faster."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from segzoo._errors import unknown_name
from segzoo.inference._allocator import tune_allocator as _tune_allocator
from segzoo.inference._devices import DTYPES, Precision, find_device, is_fast
from segzoo.inference._fused import fuse_activations
from segzoo.inference._narrow import CastInputs, find_chains, narrow
from segzoo.layers import ConvNormAct, FrozenBatchNorm
from segzoo.layers.trace import trace_pairs
from segzoo.models.base import SegmentationModel

__all__ = ["chosen_dtype", "fold_norms", "optimize_for_inference"]


@torch.no_grad()
def fold_norms(model: nn.Module) -> int:
    """Fold every batch norm that alone takes a convolution's output into it, in place; eval output stays the same.

    Which those are, a trial run without values tells: any convolution (dilated, depthwise, transposed), in any module.
    Other norms depend on the picture and stay.

    Args:
        model: Any module; it can no longer be trained as before.

    Returns:
        How many were folded.

    Source: γ·(Wx − μ)/√(σ² + ε) + β = (γ/√(σ² + ε)·W)x + (β − γμ/√(σ² + ε)), computed in float64.

    Examples:
        >>> fold_norms(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)).eval())
        1
    """
    norms = {m for m in model.modules() if isinstance(m, (_BatchNorm, FrozenBatchNorm)) and m.running_mean is not None}
    pairs: dict[nn.Module, nn.Module] = {
        m.bn: m.conv for m in model.modules() if isinstance(m, ConvNormAct) and m.bn in norms
    }
    if norms - pairs.keys():  # of blocks that are not ours
        convs = [m for m in model.modules() if type(m) in _CONVOLUTIONS]
        pairs = {norm: conv for conv, norm in trace_pairs(model, convs, list(norms))} or pairs
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if norm in pairs:
                _fold(cast(nn.Conv2d, pairs[norm]), cast(_BatchNorm, norm))
                setattr(parent, name, _activation_in(norm))
    return len(pairs)


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _fold(conv: nn.Conv2d, norm: _BatchNorm) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    weight = conv.weight.double()
    ones = [1] * (weight.ndim - 2)
    if conv.transposed:  # [in, out / groups, …]
        grouped = weight.unflatten(0, (conv.groups, -1))
        weight = (grouped * scale.view(conv.groups, 1, -1, *ones)).flatten(0, 1)
    else:
        weight = weight * scale.view(-1, 1, *ones)
    bias = shift if conv.bias is None else conv.bias.double() * scale + shift
    dtype = conv.weight.dtype
    conv.weight, conv.bias = nn.Parameter(weight.to(dtype)), nn.Parameter(bias.to(dtype))


def _activation_in(norm: nn.Module) -> nn.Module:
    """What a norm does beside norming: timm's have an activation in them."""
    act = getattr(norm, "act", None)
    return act if isinstance(act, nn.Module) else nn.Identity()


def optimize_for_inference(
    model: SegmentationModel,
    precision: Precision = "auto",
    *,
    device: torch.device | str = "cpu",
    compile: bool = False,
    tune_allocator: bool = False,
    in_place: bool = False,
) -> SegmentationModel:
    """A copy of the model for prediction alone: eval mode, norms folded, channels-last, no gradients.

    Norms are folded in float32 before anything becomes narrower: unfolded ones lose accuracy in bfloat16. What lies
    between the maker and the taker of a channel that is nearly constant, which rounding would swallow, stays in
    float32. Outputs that do not reach the result are not computed; U²-Net's side heads are one with their fusion.

    Args:
        model: It stays as it is, but for ``in_place``.
        precision: Of its parameters, and so of its computation: ``"fp32"``, ``"bf16"`` or ``"fp16"``; or ``"auto"``, a
            narrow one where the record of the model's weights says that it was checked (``precision_ok``), they are
            still the published ones, and the device computes in it.
        device: Where the copy goes: ``"auto"`` (a GPU where there is one) or a torch device, which must be there.
        compile: Whether to run it through ``torch.compile`` too: tens of seconds at the first picture of a size. On a
            GPU with its autotuning and CUDA graphs, which pays for many pictures of one size.
        tune_allocator: Whether the process keeps the memory of each call for the next: up to a quarter of the time on
            a CPU. It is of the whole process, and of Linux with glibc; elsewhere nothing happens.
        in_place: Whether to change the model itself, for whoever has no other use for it: it takes half the memory.

    Raises:
        ValueError: For an unknown precision or device, or one that is not there.
        TypeError: For what is no segmentation model of this library.

    Examples:
        >>> from segzoo import u2net_lite
        >>> optimize_for_inference(u2net_lite(), "fp32").training
        False
    """
    if not isinstance(model, SegmentationModel):
        raise TypeError(f"model is a segmentation model of this library, got {type(model).__name__}")
    place = find_device(device)
    dtype = chosen_dtype(precision, model, place)
    optimized: SegmentationModel = (model if in_place else copy.deepcopy(model)).eval().requires_grad_(False)
    if optimized.inference_dtype is None:
        _make_ready(optimized, dtype, place)
    optimized.to(device=place)
    if tune_allocator:
        _tune_allocator()
    if compile:
        optimized.compile(mode="max-autotune" if place.type == "cuda" else None)
    return optimized


def _make_ready(model: SegmentationModel, dtype: torch.dtype, device: torch.device) -> None:
    fold_norms(model)
    model.to(device=device).to(memory_format=torch.channels_last)
    if dtype == torch.float32:
        model.to(dtype)
    else:
        narrow(model, dtype, find_chains(model, torch.finfo(dtype).eps / 2))
        model.register_forward_pre_hook(CastInputs(dtype), with_kwargs=True)  # so that nobody has to ask what it became
    model.fuse_for_inference()  # after that: what is fused is not seen by who looks at its parts
    fuse_activations(model)
    model.inference_dtype = dtype


def chosen_dtype(precision: str, model: SegmentationModel, device: torch.device) -> torch.dtype:
    """What a precision means for a model on a device.

    Examples:
        >>> from segzoo import unet
        >>> chosen_dtype("auto", unet(weights=None, base_channels=2), torch.device("cpu"))
        torch.float32
    """
    if precision != "auto" and precision not in DTYPES:
        raise unknown_name("precision", precision, ["auto", *DTYPES])
    made = model.inference_dtype
    if precision != "auto" and made not in (None, DTYPES[precision]):
        raise ValueError(f"this model was made {str(made)[6:]} for inference already: give the one it was made of")
    if made is not None:
        return made
    if precision != "auto":
        return DTYPES[precision]
    checked = model.checked_precisions()
    return next(
        (DTYPES[name] for name in ("bf16", "fp16") if name in checked and is_fast(DTYPES[name], device)), torch.float32
    )
