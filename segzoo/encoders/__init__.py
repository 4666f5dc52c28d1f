"""Backbones as feature pyramids: any of timm's, torchvision's dilated ResNets and MobileNetV3, SegFormer's MiT."""

from __future__ import annotations

import os

from segzoo.encoders.base import Encoder
from segzoo.encoders.late_fusion import LateFusion
from segzoo.encoders.mit import MiT
from segzoo.encoders.timm_encoder import TimmEncoder
from segzoo.encoders.torchvision_encoders import MobileNetV3Encoder, ResNetEncoder
from segzoo.layers.norm import Norm

__all__ = ["Encoder", "LateFusion", "MiT", "MobileNetV3Encoder", "ResNetEncoder", "TimmEncoder", "get_encoder"]


def get_encoder(
    encoder: str | Encoder,
    *,
    weights: str | os.PathLike[str] | None = "imagenet",
    in_channels: int = 3,
    norm: Norm = "batch",
    depth: int = 5,
    output_stride: int = 32,
    dilate_first: bool = False,
) -> Encoder:
    """An encoder by name.

    Args:
        encoder: Any timm name whose network has a feature pyramid, ``"mit_b0"`` to ``"mit_b5"``, or an ``Encoder``:
            that comes back as it is, whatever norm, depth and output stride it was made with.
        weights: ``"imagenet"``, the path of a file, or None: random initialisation. See ``TimmEncoder`` and ``MiT``.
        in_channels: Input channels.
        norm: In the place of the network's batch norms: see ``segzoo.layers.get_norm``.
        depth: How many times the input is halved at most: 5 is down to stride 32.
        output_stride: Where it is less than 2 ** depth, strides beyond it become dilations.
        dilate_first: See ``TimmEncoder``.

    Raises:
        ValueError: For an unknown name, with the nearest one, or what that network cannot do.
        ConnectionError: If weights could not be downloaded.

    Examples:
        >>> get_encoder("resnet18", weights=None, output_stride=16).strides
        (2, 4, 8, 16, 16)
    """
    if isinstance(encoder, Encoder):
        if encoder.in_channels != in_channels:
            raise ValueError(f"the encoder takes {encoder.in_channels} channels, got in_channels={in_channels}")
        if weights not in (None, "imagenet"):
            raise ValueError(f"an Encoder comes with its weights: encoder_weights={os.fspath(weights)!r} is for names")
        return encoder
    if not isinstance(encoder, str):
        raise TypeError(f"encoder is a name or a segzoo.encoders.Encoder, got {type(encoder).__name__}")
    if encoder.startswith("mit_b"):
        if output_stride < 32 or depth < 5:
            raise ValueError(f"{encoder} cannot be dilated or cut: output_stride=32 and depth=5 only")
        return MiT(encoder, weights=weights, in_channels=in_channels)
    return TimmEncoder(
        encoder,
        weights=weights,
        in_channels=in_channels,
        norm=norm,
        depth=depth,
        output_stride=output_stride,
        dilate_first=dilate_first,
    )
