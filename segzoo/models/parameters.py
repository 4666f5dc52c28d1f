"""Parameters in groups for an optimiser."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

__all__ = ["param_groups"]

logger = logging.getLogger(__name__)


def param_groups(
    model: nn.Module, *, lr: float | None = None, weight_decay: float = 0.01, encoder_lr_scale: float = 1.0
) -> list[dict[str, Any]]:
    """A model's trainable parameters in groups for ``torch.optim``: no decay on norms and biases, a slower encoder.

    Args:
        model: One of this library's, or any: its encoder is what it has as ``encoder`` or ``backbone``.
        lr: Learning rate of all but the encoder. None leaves the rate to the optimiser, which then knows nothing of
            ``encoder_lr_scale``: only ``lr_scale`` in each group tells (timm's schedulers read it).
        weight_decay: Of convolutions and matrices; vectors (γ, β, v, biases) get none.
        encoder_lr_scale: The encoder's learning rate, as a multiple of ``lr``.

    Returns:
        Up to four dictionaries with ``params``, ``weight_decay``, ``lr_scale``, ``name`` and, if given, ``lr``.

    Raises:
        ValueError: For a negative number.

    Examples:
        >>> import torch
        >>> from segzoo import deeplabv3_resnet50
        >>> model = deeplabv3_resnet50(weights=None)
        >>> optimizer = torch.optim.AdamW(param_groups(model, lr=1e-3, weight_decay=0.05, encoder_lr_scale=0.1))
        >>> [(group["name"], group["weight_decay"], group["lr"]) for group in optimizer.param_groups]
        [('encoder, decay', 0.05, 0.0001), ('encoder, no decay', 0.0, 0.0001),
         ('rest, decay', 0.05, 0.001), ('rest, no decay', 0.0, 0.001)]
    """
    for name, value in (("lr", lr), ("weight_decay", weight_decay), ("encoder_lr_scale", encoder_lr_scale)):
        if value is not None and not (isinstance(value, (int, float)) and value >= 0):
            raise ValueError(f"{name} must be a number that is not negative, got {value!r}")
    if lr is None and encoder_lr_scale != 1:
        logger.warning("param_groups without lr: a plain optimiser does not read lr_scale, pass lr as well")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    encoder = getattr(model, "encoder", None) or getattr(model, "backbone", None)
    if encoder_lr_scale != 1 and not isinstance(encoder, nn.Module):
        logger.warning("%s has no encoder: encoder_lr_scale does nothing", type(model).__name__)
    inside = {id(parameter) for parameter in encoder.parameters()} if isinstance(encoder, nn.Module) else set()
    groups: list[dict[str, Any]] = []
    for part, in_encoder in (("encoder", True), ("rest", False)):
        scale = encoder_lr_scale if in_encoder else 1.0
        for kind, decayed in (("decay", True), ("no decay", False)):
            parameters = [
                p
                for p in model.parameters()
                if p.requires_grad and (id(p) in inside) == in_encoder and (p.ndim > 1) == decayed
            ]
            if parameters:
                group = {"params": parameters, "weight_decay": weight_decay if decayed else 0.0, "lr_scale": scale}
                groups.append(group | {"name": f"{part}, {kind}"} | ({} if lr is None else {"lr": lr * scale}))
    return groups
