"""FPN: a feature pyramid network and the semantic branch that reads it.

Source: Kirillov et al., "Panoptic Feature Pyramid Networks", 2019 (arXiv 1901.02446), Fig. 3; Lin et al., "Feature
Pyramid Networks for Object Detection", 2017 (arXiv 1612.03144), Fig. 3: the pyramid.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from segzoo._errors import unknown_name
from segzoo.encoders import Encoder, get_encoder
from segzoo.layers import ConvNormAct
from segzoo.layers.norm import Norm
from segzoo.models.base import EncoderModel, build_model, check_positive
from segzoo.ops import resize_to
from segzoo.registry import register_model
from segzoo.weights.catalog import SEMANTIC_PREPROCESSING
from segzoo.weights.smp_keys import fpn_from_smp, is_smp

__all__ = ["FPN", "fpn"]

Merge = Literal["add", "concat"]

_BATCH_NORMS = ("batch", "sync_batch", "frozen_batch")


class FPN(EncoderModel):
    """A feature pyramid network with the semantic branch of Panoptic FPN, on any encoder.

    The encoder's last four maps, through 1×1 convolutions and each with the coarser one added to it (nearest), are the
    pyramid. Every level of it climbs to the size of the finest by 3×3 convolutions, each followed by bilinear
    upsampling to the next level's size; the results are merged, and a 1×1 convolution gives the logits.

    Args:
        encoder: A timm name or an ``Encoder``.
        encoder_weights: ``"imagenet"``, a path, or None.
        pyramid_channels: Of the pyramid.
        decoder_channels: Of the semantic branch.
        dropout: Probability that a channel is left out before the head.
        merge: ``"add"``, as the paper, or ``"concat"``.
        decoder_norm: Of the semantic branch. ``"auto"`` is the paper's group norm where ``norm`` is a batch norm, else
            ``norm`` itself.
        num_classes: Output channels.
        in_channels: Input channels.
        norm: See ``segzoo.layers.get_norm``.
        multilabel: Whether classes may overlap: probabilities are then a sigmoid each.

    Bilinear upsampling is with ``align_corners=True``, dropout 0.2 by default, as in segmentation_models_pytorch; the
    paper speaks of neither.

    State-dict keys: ``encoder.*``, ``lateral.{level}.*`` and ``branches.{level}.{step}.*`` (the coarsest level first),
    ``head.*``.

    Source: arXiv 1901.02446, Fig. 3 and Section 3.

    Examples:
        >>> model = FPN("resnet10t", pyramid_channels=16, decoder_channels=8, num_classes=5).eval()
        >>> model(torch.zeros(1, 3, 33, 47)).shape, [len(branch) for branch in model.branches]
        (torch.Size([1, 5, 33, 47]), [3, 2, 1, 1])
    """

    heads = ("head.",)
    default_num_classes = 21
    default_preprocessing = SEMANTIC_PREPROCESSING
    align_corners = True

    def __init__(
        self,
        encoder: str | Encoder = "resnet34",
        *,
        encoder_weights: str | os.PathLike[str] | None = None,
        pyramid_channels: int = 256,
        decoder_channels: int = 128,
        dropout: float = 0.2,
        merge: Merge = "add",
        decoder_norm: Norm = "auto",
        num_classes: int = 21,
        in_channels: int = 3,
        norm: Norm = "batch",
        multilabel: bool = False,
    ) -> None:
        super().__init__(num_classes, in_channels, multilabel=multilabel)
        if merge not in get_args(Merge):
            raise unknown_name("merge", merge, get_args(Merge))
        check_positive(pyramid_channels=pyramid_channels, decoder_channels=decoder_channels)
        if decoder_norm == "auto":
            decoder_norm = "group" if norm in _BATCH_NORMS else norm
        self.encoder = get_encoder(encoder, weights=encoder_weights, in_channels=in_channels, norm=norm)
        channels = self.encoder.channels[:-5:-1]
        self.encoder.train_for(range(-len(channels), 0))
        self.lateral = nn.ModuleList(nn.Conv2d(c, pyramid_channels, 1) for c in channels)
        self.branches = nn.ModuleList(
            nn.ModuleList(
                ConvNormAct(decoder_channels if step else pyramid_channels, decoder_channels, norm=decoder_norm)
                for step in range(max(1, finer))
            )
            for finer in reversed(range(len(channels)))
        )
        self.merge = merge
        self.dropout = nn.Dropout2d(dropout)
        merged = decoder_channels * (len(channels) if merge == "concat" else 1)
        self.head = nn.Conv2d(merged, num_classes, 1)

    @classmethod
    def convert(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """segmentation_models_pytorch's ``FPN`` in our keys; ours come back as they are."""
        return fpn_from_smp(state) if is_smp(state) else dict(state)

    def decode(self, features: list[Tensor], x: Tensor) -> list[Tensor]:
        """Logits at the stride of the pyramid's finest level."""
        pyramid: list[Tensor] = []  # the coarsest first
        for lateral, feature in zip(self.lateral, reversed(features)):
            level = lateral(feature)
            pyramid.append(level + resize_to(pyramid[-1], level, "nearest") if pyramid else level)
        maps = []
        for i, branch in enumerate(self.branches):
            y = pyramid[i]
            for step, conv in enumerate(cast(nn.ModuleList, branch), start=i + 1):
                y = conv(y)
                if step < len(pyramid):
                    y = resize_to(y, pyramid[step], align_corners=True)
            maps.append(y)
        merged = torch.cat(maps, 1) if self.merge == "concat" else sum(maps[1:], maps[0])
        return [self.head(self.dropout(merged))]


@register_model("semantic")
def fpn(
    encoder: str | Encoder = "resnet34",
    *,
    encoder_weights: str | os.PathLike[str] | None = "imagenet",
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    in_channels: int = 3,
    norm: Norm = "batch",
    pyramid_channels: int = 256,
    decoder_channels: int = 128,
    dropout: float = 0.2,
    merge: Merge = "add",
    decoder_norm: Norm = "auto",
    progress: bool = True,
) -> FPN:
    """A feature pyramid network with the semantic branch of Panoptic FPN, on any encoder.

    Args:
        encoder: A timm name, ``"mit_b0"`` …, or a ``segzoo.encoders.Encoder``.
        encoder_weights: ``"imagenet"`` (timm's, downloaded on first use), a path, or None: random initialisation.
        weights: ``"hf-hub:org/repo[@revision]"``, ``"local-dir:PATH"``, a path, or None. A state dict of
            segmentation_models_pytorch's ``FPN`` is converted.
        num_classes: None means the checkpoint's, or 21.
        in_channels: Input channels.
        norm: Of the encoder, and of the decoder unless ``decoder_norm`` says otherwise.
        pyramid_channels: Of the pyramid.
        decoder_channels: Of the semantic branch.
        dropout: Probability that a channel is left out before the head.
        merge: ``"add"`` or ``"concat"``.
        decoder_norm: Of the semantic branch. ``"auto"`` is the paper's group norm where ``norm`` is a batch norm, else
            ``norm`` itself.
        progress: Whether a download shows a progress bar.

    Raises:
        ValueError: For an unknown encoder, with the nearest name, or weights that do not fit, with the keys.
        ConnectionError: If weights could not be downloaded.

    Source: arXiv 1901.02446, Fig. 3.

    Examples:
        >>> fpn("resnet10t", encoder_weights=None, norm="evo_s0").branches[0][0].bn
        EvoNormS0(128, eps=1e-05, act=True)
    """
    return build_model(
        FPN,
        "fpn",
        weights,
        encoder=encoder,
        encoder_weights=encoder_weights,
        pyramid_channels=pyramid_channels,
        decoder_channels=decoder_channels,
        dropout=dropout,
        merge=merge,
        decoder_norm=decoder_norm,
        num_classes=num_classes,
        in_channels=in_channels,
        norm=norm,
        progress=progress,
    )
