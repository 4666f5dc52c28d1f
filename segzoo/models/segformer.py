"""SegFormer: a Mix Transformer and a decoder of linear layers.

Source: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers", 2021
(arXiv 2105.15203), Fig. 2. Checkpoints of the authors' code and of transformers are converted
(``segzoo.weights.segformer_keys``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from segzoo.encoders.base import Encoder
from segzoo.encoders.mit import MiT
from segzoo.layers import ConvNormAct
from segzoo.layers.norm import Norm
from segzoo.models.base import EncoderModel, build_model
from segzoo.ops import resize_to
from segzoo.registry import register_model
from segzoo.weights.catalog import SEMANTIC_PREPROCESSING
from segzoo.weights.convert import StateDict
from segzoo.weights.segformer_keys import segformer_from_others

__all__ = ["AllMLPHead", "SegFormer", "segformer"]

DECODER_CHANNELS = {"mit_b0": 256, "mit_b1": 256}  # and 768 with the larger ones


class AllMLPHead(nn.Module):
    """SegFormer's decoder: every map projected to the same channels, resized to the finest, and all fused by 1×1.

    Args:
        in_channels: Of each map ``[N, C, h, w]``, the finest first.
        channels: Of what they are all projected to.
        num_classes: Channels of the output.
        norm: See ``segzoo.layers.get_norm``.
        dropout: Of whole channels, before the classifier.

    Source: arXiv 2105.15203, Section 3.2, equation 4.

    Examples:
        >>> AllMLPHead((8, 16), 4, num_classes=3)([torch.zeros(1, 8, 9, 5), torch.zeros(1, 16, 5, 3)]).shape
        torch.Size([1, 3, 9, 5])
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        channels: int,
        num_classes: int,
        *,
        norm: Norm = "batch",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(c, channels) for c in in_channels)
        self.fuse = ConvNormAct(len(in_channels) * channels, channels, 1, norm=norm)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, the finest first, to logits ``[N, num_classes, h, w]`` of the finest one's size."""
        maps = [project(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for x, project in zip(features, self.projections)]
        resized = [maps[0], *(resize_to(y, maps[0]) for y in maps[1:])]
        # Deepest first: the order that the published convolutions were trained with.
        logits: Tensor = self.classifier(self.dropout(self.fuse(torch.cat(resized[::-1], 1))))
        return logits


class SegFormer(EncoderModel):
    """SegFormer: a Mix Transformer and an all-MLP decoder.

    Args:
        encoder: ``"mit_b0"`` … ``"mit_b5"``, or any ``segzoo.encoders.Encoder``.
        encoder_weights: Of a named encoder: ``"imagenet"``, a path, or None. See ``segzoo.encoders.MiT``.
        decoder_channels: None means the paper's: 256 with the two smallest encoders, 768 with the other four (and 256
            with an encoder of your own).
        dropout: Of whole channels, before the classifier.
        num_classes: Output channels.
        in_channels: Input channels.
        norm: Of the decoder: see ``segzoo.layers.get_norm``. The encoder's are layer norms whatever it is.
        multilabel: Whether classes may overlap: probabilities are then a sigmoid each.

    ``decode`` gives the logits at a quarter of the picture's size; ``model(x)`` those at its own, bilinear.

    Source: arXiv 2105.15203, Fig. 2 and Section 3.

    Examples:
        >>> from segzoo.encoders.mit import Variant
        >>> tiny = MiT(Variant((8, 16, 24, 32), (1, 1, 1, 1), heads=(1, 2, 3, 4)))
        >>> SegFormer(tiny, decoder_channels=16, num_classes=5, norm="group")(torch.zeros(1, 3, 33, 47)).shape
        torch.Size([1, 5, 33, 47])
    """

    heads: ClassVar[tuple[str, ...]] = ("decode_head.classifier.",)
    default_num_classes = 21
    default_preprocessing = SEMANTIC_PREPROCESSING

    def __init__(
        self,
        encoder: str | Encoder = "mit_b0",
        *,
        encoder_weights: str | os.PathLike[str] | None = None,
        decoder_channels: int | None = None,
        dropout: float = 0.1,
        num_classes: int = 21,
        in_channels: int = 3,
        norm: Norm = "batch",
        multilabel: bool = False,
    ) -> None:
        super().__init__(num_classes, in_channels, multilabel=multilabel)
        if isinstance(encoder, Encoder):
            if encoder.in_channels != in_channels:
                raise ValueError(f"the encoder takes {encoder.in_channels} channels, got in_channels={in_channels}")
            self.encoder = encoder
        else:
            self.encoder = MiT(encoder, weights=encoder_weights, in_channels=in_channels)
        if decoder_channels is None:
            decoder_channels = DECODER_CHANNELS.get(encoder, 768) if isinstance(encoder, str) else 256
        elif not isinstance(decoder_channels, int) or isinstance(decoder_channels, bool) or decoder_channels < 1:
            raise ValueError(f"decoder_channels must be a positive int or None, got {decoder_channels!r}")
        self.decode_head = AllMLPHead(self.encoder.channels, decoder_channels, num_classes, norm=norm, dropout=dropout)

    @classmethod
    def convert(cls, state: Mapping[str, Tensor]) -> StateDict:
        """The authors' keys, or transformers', in ours."""
        return segformer_from_others(state)

    def decode(self, features: list[Tensor], x: Tensor) -> list[Tensor]:
        """The logits at the size of the finest map, in a list."""
        return [self.decode_head(features)]


@register_model("semantic")
def segformer(
    encoder: str | Encoder = "mit_b0",
    *,
    encoder_weights: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    in_channels: int = 3,
    norm: Norm = "batch",
    dropout: float = 0.1,
    decoder_channels: int | None = None,
    progress: bool = True,
) -> SegFormer:
    """SegFormer-B0 to -B5, by default with random weights.

    Random, because none of the published ones is open: the encoders that NVIDIA trained on ImageNet and the models it
    trained on ADE20K and Cityscapes are under the NVIDIA Source Code License, **for non-commercial use only**. Where
    that suits you, ``encoder_weights="imagenet"`` fetches the former from the Hugging Face Hub, and
    ``weights="b0_ade20k"`` … ``"b5_cityscapes"`` the latter, with their encoder.

    Args:
        encoder: ``"mit_b0"`` (3.7 million parameters with its decoder) … ``"mit_b5"`` (84.6 million), or any
            ``segzoo.encoders.Encoder``.
        encoder_weights: With ``weights=None``: ``"imagenet"`` (non-commercial, see above), the path of a checkpoint
            whose Mix Transformer is taken (NVIDIA's, transformers' or ours, with or without a head), or None.
        weights: ``"b0_ade20k"`` … (``segzoo.list_weights("segformer")``; non-commercial, see above),
            ``"hf-hub:org/repo[@revision]"``, ``"local-dir:PATH"``, the path of a whole SegFormer of that encoder, in
            NVIDIA's, transformers' or our keys, or None.
        num_classes: None means the checkpoint's, or 21. Another number starts the classifier afresh.
        in_channels: Another number than 3 adapts the first convolution.
        norm: Of the decoder. Another than ``"batch"`` keeps γ and β, drops the statistics, and warns.
        dropout: Of whole channels, before the classifier.
        decoder_channels: None means the paper's: 256 with the two smallest encoders, 768 with the other four.
        progress: Whether a download of ``weights`` shows a progress bar.

    Raises:
        ValueError: For an unknown encoder or weights, with the nearest name, or a file that does not fit, with the
            keys.
        ConnectionError: If the ImageNet weights are not on this machine and could not be downloaded.

    Source: arXiv 2105.15203, Table 1 and Table 6.

    Examples:
        >>> sum(p.numel() for p in segformer(num_classes=150).parameters())
        3752694
    """
    return build_model(
        SegFormer,
        "segformer",
        weights,
        encoder=encoder,
        encoder_weights=encoder_weights,
        decoder_channels=decoder_channels,
        dropout=dropout,
        num_classes=num_classes,
        in_channels=in_channels,
        norm=norm,
        progress=progress,
    )
