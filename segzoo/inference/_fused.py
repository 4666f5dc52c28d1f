"""A convolution and the ReLU after it in one pass over memory, on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segzoo.layers import ConvNormAct

__all__ = ["ConvReLU", "fuse_activations"]


class ConvReLU(nn.Conv2d):
    """``relu(conv(x))``: by oneDNN's own fusion, where torch has it and no gradient is asked for.

    Examples:
        >>> conv = ConvReLU(3, 8, 3).requires_grad_(False)
        >>> x = torch.rand(1, 3, 20, 30)
        >>> torch.allclose(conv(x), nn.Conv2d.forward(conv, x).relu())
        True
    """

    def forward(self, input: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` to ``[N, out_channels, …]``, nowhere below 0."""
        if not _can_fuse(self, input):
            return super().forward(input).relu_()
        fused: Tensor = torch.ops.mkldnn._convolution_pointwise(
            input, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups, "relu", [], None
        )
        return fused


def _can_fuse(conv: nn.Conv2d, x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == conv.weight.dtype
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.compiler.is_compiling()  # which fuses by itself
        and not (torch.is_grad_enabled() and (x.requires_grad or conv.weight.requires_grad))
    )


def fuse_activations(model: nn.Module) -> int:
    """Make every ``ConvNormAct`` without a norm whose activation is a ReLU one module, in place.

    Returns:
        How many; 0 where this build of torch has no such fusion.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return 0
    fused = 0
    for block in model.modules():
        if (
            isinstance(block, ConvNormAct)
            and type(block.conv) is nn.Conv2d
            and block.conv.padding_mode == "zeros"
            and type(block.bn) is nn.Identity
            and type(block.act) is nn.ReLU
        ):
            block.conv.__class__ = ConvReLU  # with its parameters, hooks and place in the state dict
            block.act = nn.Identity()
            fused += 1
    return fused
