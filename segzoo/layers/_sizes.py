"""A model's layers at other numbers of channels: what pruning makes, and what loading a pruned model needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

__all__ = ["assign", "fit"]


def assign(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors of other sizes in the place of parameters and buffers, and let their modules know.

    Args:
        model: Changed in place. Parameters stay parameters, and are trained or not as before.
        tensors: By name. Names that share one parameter get the same tensor, and share it again.

    Examples:
        >>> conv = nn.Conv2d(3, 8, 1)
        >>> assign(conv, {"weight": torch.zeros(5, 3, 1, 1), "bias": torch.zeros(5)})
        >>> conv
        Conv2d(3, 5, kernel_size=(1, 1), stride=(1, 1))
    """
    parameters: dict[int, nn.Parameter] = {}
    before: dict[nn.Module, torch.Size] = {}
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        old = getattr(module, leaf)
        if leaf == "weight":
            before[module] = old.shape
        if isinstance(old, nn.Parameter):
            tensor = parameters.setdefault(id(tensor), nn.Parameter(tensor, requires_grad=old.requires_grad))
        setattr(module, leaf, tensor)
    for module, shape in before.items():
        _tell(module, shape)


def _tell(module: nn.Module, before: torch.Size) -> None:
    """Set a module's numbers of channels by its new weight; those of a kind that is not known stay."""
    shape = cast(Tensor, module.weight).shape
    if isinstance(module, _ConvNd):
        if 1 < module.groups == before[0] == module.in_channels:  # depthwise: a group is a channel
            module.groups = shape[0]
        taken, made = (shape[0], shape[1]) if module.transposed else (shape[1], shape[0])
        module.in_channels = taken * (1 if module.transposed else module.groups)
        module.out_channels = made * (module.groups if module.transposed else 1)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif len(shape) == 1:
        if isinstance(module, nn.GroupNorm):  # groups stay as large as they were
            size = before[0] // module.num_groups
            module.num_groups = shape[0] // size if shape[0] % size == 0 else 1
        for name in ("num_features", "num_channels"):
            if getattr(module, name, None) == before[0]:
                setattr(module, name, shape[0])


def fit(model: nn.Module, usual: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Bring a new model to the sizes of a saved one that was pruned; its values there are not yet anything.

    Args:
        model: Changed in place; it may have other heads, another stem or another norm than the saved one.
        usual: The tensors that the saved model's architecture has when it is not pruned.
        saved: Its own.

    Examples:
        >>> model = nn.Conv2d(8, 4, 1)
        >>> fit(model, {"weight": torch.empty(2, 8, 1, 1)}, {"weight": torch.empty(2, 6, 1, 1)})
        >>> model
        Conv2d(6, 4, kernel_size=(1, 1), stride=(1, 1))
    """
    resized: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in usual and name in saved and usual[name].ndim == saved[name].ndim == tensor.ndim:
            sizes = zip(tensor.shape, usual[name].shape, saved[name].shape)
            shape = [own if old == new else new for own, old, new in sizes]
            if shape != list(tensor.shape):
                part = tensor.detach()[tuple(slice(length) for length in shape)]  # fresh heads stay as they begin
                grown = [max(new - old, 0) for new, old in zip(shape, part.shape)]
                resized[name] = part.clone() if not any(grown) else part.new_zeros(shape)
    assign(model, resized)
