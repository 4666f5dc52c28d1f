"""U²-Net: a U of residual U-blocks for salient object detection.

Source: Qin et al., "U²-Net: Going Deeper with Nested U-Structure for Salient Object Detection", 2020
(arXiv 2005.09007), Fig. 5 and Table 1. State-dict keys are those of the well-known PyTorch tutorial implementation; the
official ones are converted (``segzoo.weights.convert.u2net_from_official``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from segzoo.layers import RSU, RSU4F, SideFusion
from segzoo.layers.fusion import FusedSides
from segzoo.layers.norm import Norm
from segzoo.models.base import SegmentationModel, build_model
from segzoo.ops import resize_to
from segzoo.registry import register_model
from segzoo.weights.catalog import U2NET_PREPROCESSING

__all__ = ["U2Net", "u2net_full", "u2net_lite"]


class Stage(NamedTuple):
    """One row of the paper's Table 1."""

    height: int | str  # of an RSU, or "4F"
    in_channels: int
    mid_channels: int
    out_channels: int

    def build(self, norm: Norm) -> nn.Module:
        """The stage as a module."""
        if self.height == "4F":
            return RSU4F(*self[1:], norm=norm)
        return RSU(int(self.height), *self[1:], norm=norm)


FULL_ENCODER = (  # En_1 … En_6, each but the first on the one above it, pooled by 2
    Stage(7, 3, 32, 64),
    Stage(6, 64, 32, 128),
    Stage(5, 128, 64, 256),
    Stage(4, 256, 128, 512),
    Stage("4F", 512, 256, 512),
    Stage("4F", 512, 256, 512),
)
FULL_DECODER = (  # De_5 … De_1, each on the stage below it, upsampled, beside the encoder stage of its size
    Stage("4F", 1024, 256, 512),
    Stage(4, 1024, 128, 256),
    Stage(5, 512, 64, 128),
    Stage(6, 256, 32, 64),
    Stage(7, 128, 16, 64),
)
LITE_ENCODER = (
    Stage(7, 3, 16, 64),
    Stage(6, 64, 16, 64),
    Stage(5, 64, 16, 64),
    Stage(4, 64, 16, 64),
    Stage("4F", 64, 16, 64),
    Stage("4F", 64, 16, 64),
)
LITE_DECODER = (
    Stage("4F", 128, 16, 64),
    Stage(4, 128, 16, 64),
    Stage(5, 128, 16, 64),
    Stage(6, 128, 16, 64),
    Stage(7, 128, 16, 64),
)


class NestedU(SegmentationModel):
    """The U of residual U-blocks with a head on every decoder stage: what U²-Net and IS-Net share.

    Args:
        encoder: En_1 … En_6.
        decoder: De_5 … De_1.
        num_classes: Output channels of every head.
        in_channels: Channels of the pictures; what the first stage takes is in its row.
        norm: See ``segzoo.layers.get_norm``.
        multilabel: Whether classes may overlap.
    """

    default_num_classes = 1

    def __init__(
        self,
        encoder: Sequence[Stage],
        decoder: Sequence[Stage],
        *,
        num_classes: int,
        in_channels: int,
        norm: Norm,
        multilabel: bool,
    ) -> None:
        super().__init__(num_classes, in_channels, multilabel=multilabel)
        self.encode_modules = nn.ModuleList(row.build(norm) for row in encoder)
        self.decode_modules = nn.ModuleList(row.build(norm) for row in decoder)
        self.pool = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        # Deepest first: En_6, De_5 … De_1.
        self.side_modules = nn.ModuleList(
            nn.Conv2d(row.out_channels, num_classes, 3, padding=1) for row in (encoder[-1], *decoder)
        )

    def features(self, x: Tensor) -> list[Tensor]:
        """The input of the first stage to what the side heads see: the outputs of En_6, De_5 … De_1."""
        skips: list[Tensor] = []
        for i, encode in enumerate(self.encode_modules):
            x = encode(self.pool(x) if i else x)
            skips.append(x)
        features = [skips.pop()]
        for decode in self.decode_modules:
            skip = skips.pop()
            features.append(decode(torch.cat([resize_to(features[-1], skip), skip], 1)))
        return features

    def side_maps(self, features: Sequence[Tensor], picture: Tensor) -> list[Tensor]:
        """The logits of De_1 … De_5, En_6, each resized to the picture ``[N, in_channels, H, W]``."""
        sides = [side(x) for side, x in zip(self.side_modules, features)]
        return [resize_to(side, picture) for side in reversed(sides)]

    def fuse_for_inference(self) -> None:
        """The sums in the residual U-blocks overwrite one of their inputs."""
        for module in (*self.encode_modules, *self.decode_modules):
            module.in_place = True


class U2Net(NestedU):
    """U²-Net from its two tables of stages.

    Args:
        encoder: En_1 … En_6; the first row's input channels give way to ``in_channels``.
        decoder: De_5 … De_1.
        num_classes: Output channels; 1 is the saliency map of the paper.
        in_channels: Input channels.
        norm: See ``segzoo.layers.get_norm``.
        multilabel: Whether classes may overlap: probabilities are then a sigmoid each.

    In eval mode ``model(x)`` gives the logits ``[N, num_classes, H, W]`` of S_fuse; in train mode the list
    ``[S_fuse, De_1, De_2, …, De_5, En_6]`` of such tensors, which the paper supervises with one loss each.

    Source: arXiv 2005.09007, Fig. 5 and Table 1.

    Examples:
        >>> model = U2Net(LITE_ENCODER, LITE_DECODER, num_classes=2, in_channels=4, norm="group")
        >>> [list(x.shape) for x in model(torch.zeros(1, 4, 33, 47))][:2]
        [[1, 2, 33, 47], [1, 2, 33, 47]]
    """

    heads = ("side_modules.", "out_conv.")
    stem = "encode_modules.0.conv_in.conv.weight"
    default_preprocessing = U2NET_PREPROCESSING

    def __init__(
        self,
        encoder: Sequence[Stage] = FULL_ENCODER,
        decoder: Sequence[Stage] = FULL_DECODER,
        *,
        num_classes: int = 1,
        in_channels: int = 3,
        norm: Norm = "batch",
        multilabel: bool = False,
    ) -> None:
        super().__init__(
            [encoder[0]._replace(in_channels=in_channels), *encoder[1:]],
            decoder,
            num_classes=num_classes,
            in_channels=in_channels,
            norm=norm,
            multilabel=multilabel,
        )
        self.out_conv = SideFusion(len(self.side_modules), num_classes)
        self.fused_sides: FusedSides | None = None

    def fuse_for_inference(self) -> None:
        """As ``NestedU``'s, and in eval mode the side heads are one with their fusion."""
        super().fuse_for_inference()
        _fuse_sides(self)
        self.register_load_state_dict_post_hook(_fuse_sides)  # what is fused are copies

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``[N, in_channels, H, W]`` to logits ``[N, num_classes, H, W]``; to a list of them in train mode."""
        self.check_input(x)
        features = self.features(x)
        if self.fused_sides is not None and not self.training:
            return self.fused_sides(features, x)  # type: ignore[no-any-return]
        maps = self.side_maps(features, x)
        fused: Tensor = self.out_conv(maps)
        return [fused, *maps] if self.training else fused


def _fuse_sides(model: U2Net, missing: object = None) -> None:
    heads = (*model.side_modules, model.out_conv)
    if all(head.weight.dtype == heads[0].weight.dtype for head in heads):  # else some must stay wide
        model.fused_sides = FusedSides([cast(nn.Conv2d, side) for side in model.side_modules], model.out_conv)


@register_model("salient")
def u2net_full(
    weights: str | os.PathLike[str] | None = "duts",
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    norm: Norm = "batch",
    progress: bool = True,
) -> U2Net:
    """U²-Net (43,995,469 parameters), by default with the official weights trained on DUTS.

    Those are 176 MB, downloaded on first use. Their batch norms are folded: good to predict with as they are; to train
    further, ``segzoo.weights.recalibrate`` first.

    Args:
        weights: ``"duts"``, ``"human"`` (people, trained on Supervisely Person), ``"hf-hub:org/repo[@revision]"``,
            ``"local-dir:PATH"``, a path to a ``.safetensors``, ``.pth`` or ``.onnx`` file, or None: random
            initialisation.
        num_classes: None means the checkpoint's, or 1. Another number starts the heads afresh.
        in_channels: Another number than 3 adapts the first convolution.
        norm: Another than ``"batch"`` keeps γ and β, drops the statistics, and warns.
        progress: Whether a download shows a progress bar.

    Raises:
        ValueError: For unknown weights, with the nearest name, or a file that does not fit, with the keys.
        ConnectionError: If the weights are not on this machine and could not be downloaded.

    Source: arXiv 2005.09007, Table 1, row "U²-Net".

    Examples:
        >>> sum(p.numel() for p in u2net_full(weights=None).parameters())
        43995469
    """
    return build_model(
        U2Net,
        "u2net_full",
        weights,
        encoder=FULL_ENCODER,
        decoder=FULL_DECODER,
        num_classes=num_classes,
        in_channels=in_channels,
        norm=norm,
        progress=progress,
    )


@register_model("salient")
def u2net_lite(
    weights: str | os.PathLike[str] | None = "duts",
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    norm: Norm = "batch",
    progress: bool = True,
) -> U2Net:
    """U²-Net† (1,128,333 parameters), by default with the official weights trained on DUTS, which are in the package.

    Args:
        weights: ``"duts"``, ``"hf-hub:org/repo[@revision]"``, ``"local-dir:PATH"``, a path to a ``.safetensors``,
            ``.pth`` or ``.onnx`` file, or None: random initialisation.
        num_classes: None means the checkpoint's, or 1. Another number starts the heads afresh.
        in_channels: Another number than 3 adapts the first convolution.
        norm: Another than ``"batch"`` keeps γ and β, drops the statistics, and warns.
        progress: Whether a download shows a progress bar (these weights need none).

    Raises:
        ValueError: For unknown weights, with the nearest name, or a file that does not fit, with the keys.

    Source: arXiv 2005.09007, Table 1, row "U²-Net†".

    Examples:
        >>> sum(p.numel() for p in u2net_lite().parameters())
        1128333
    """
    return build_model(
        U2Net,
        "u2net_lite",
        weights,
        encoder=LITE_ENCODER,
        decoder=LITE_DECODER,
        num_classes=num_classes,
        in_channels=in_channels,
        norm=norm,
        progress=progress,
    )
