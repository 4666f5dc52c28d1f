"""IS-Net: U²-Net's U at half the picture's size, for highly accurate masks of large pictures.

Source: Qin et al., "Highly Accurate Dichotomous Image Segmentation", ECCV 2022 (arXiv 2203.03041), and its authors'
code (``ISNetDIS`` in https://github.com/xuebinqin/DIS). What is here is the segmentation network. The ground-truth
encoder, which supervises its features while the authors train and takes no part in a prediction, is left out;
``ISNet.features`` gives the features that it would be compared with.
State-dict keys are U²-Net's with ``conv_in`` before and no ``out_conv`` after; the official ones are converted
(``segzoo.weights.convert.isnet_from_official``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import Tensor, nn

from segzoo.layers.norm import Norm
from segzoo.models.base import build_model
from segzoo.models.u2net import FULL_DECODER, FULL_ENCODER, NestedU, Stage
from segzoo.ops import resize_to
from segzoo.registry import register_model
from segzoo.weights.catalog import ISNET_PREPROCESSING

__all__ = ["ISNet", "isnet"]

ENCODER = (FULL_ENCODER[0]._replace(in_channels=64), *FULL_ENCODER[1:])
DECODER = FULL_DECODER


class ISNet(NestedU):
    """IS-Net from its two tables of stages: a convolution of stride 2, then the U of U²-Net, without a fusion.

    Args:
        encoder: En_1 … En_6; the first row's input channels are what the first convolution gives out.
        decoder: De_5 … De_1.
        num_classes: Output channels; 1 is the mask of the paper.
        in_channels: Input channels.
        norm: See ``segzoo.layers.get_norm``.
        multilabel: Whether classes may overlap: probabilities are then a sigmoid each.

    In eval mode ``model(x)`` gives the logits ``[N, num_classes, H, W]`` of De_1; in train mode the list
    ``[De_1, De_2, …, De_5, En_6]`` of such tensors, which the paper supervises with one loss each.

    Source: arXiv 2203.03041, the network called IS-Net; its stages are those of U²-Net's Table 1 (arXiv 2005.09007).

    Examples:
        >>> import torch
        >>> from segzoo.models.u2net import LITE_DECODER, LITE_ENCODER
        >>> lite = (LITE_ENCODER[0]._replace(in_channels=16), *LITE_ENCODER[1:])
        >>> model = ISNet(lite, LITE_DECODER, num_classes=2, in_channels=4, norm="group")
        >>> [list(x.shape) for x in model(torch.zeros(1, 4, 33, 47))][:2]
        [[1, 2, 33, 47], [1, 2, 33, 47]]
    """

    heads = ("side_modules.",)
    stem = "conv_in.weight"
    default_preprocessing = ISNET_PREPROCESSING

    def __init__(
        self,
        encoder: Sequence[Stage] = ENCODER,
        decoder: Sequence[Stage] = DECODER,
        *,
        num_classes: int = 1,
        in_channels: int = 3,
        norm: Norm = "batch",
        multilabel: bool = False,
    ) -> None:
        super().__init__(
            encoder, decoder, num_classes=num_classes, in_channels=in_channels, norm=norm, multilabel=multilabel
        )
        self.conv_in = nn.Conv2d(in_channels, encoder[0].in_channels, 3, stride=2, padding=1)

    def features(self, x: Tensor) -> list[Tensor]:
        """``[N, in_channels, H, W]`` to what the side heads see: the outputs of En_6, De_5 … De_1."""
        return super().features(self.conv_in(x))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``[N, in_channels, H, W]`` to logits ``[N, num_classes, H, W]``; to a list of them in train mode."""
        self.check_input(x)
        features = self.features(x)
        if self.training:
            return self.side_maps(features, x)
        return resize_to(self.side_modules[-1](features[-1]), x)


@register_model("salient")
def isnet(
    weights: str | os.PathLike[str] | None = "general",
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    norm: Norm = "batch",
    progress: bool = True,
) -> ISNet:
    """IS-Net (44,032,390 parameters), by default with the official weights for general use.

    Those are 179 MB, downloaded on first use. Their batch norms are folded: good to predict with as they are; to train
    further, ``segzoo.weights.recalibrate`` first. Their record names the terms of their training data.

    Args:
        weights: ``"general"``, ``"hf-hub:org/repo[@revision]"``, ``"local-dir:PATH"``, a path to a ``.safetensors``,
            ``.pth`` or ``.onnx`` file, or None: random initialisation.
        num_classes: None means the checkpoint's, or 1. Another number starts the heads afresh.
        in_channels: Another number than 3 adapts the first convolution.
        norm: Another than ``"batch"`` keeps γ and β, drops the statistics, and warns.
        progress: Whether a download shows a progress bar.

    Raises:
        ValueError: For unknown weights, with the nearest name, or a file that does not fit, with the keys.
        ConnectionError: If the weights are not on this machine and could not be downloaded.

    Source: arXiv 2203.03041; widths from the authors' code.

    Examples:
        >>> sum(p.numel() for p in isnet(weights=None).parameters())
        44032390
    """
    return build_model(
        ISNet,
        "isnet",
        weights,
        num_classes=num_classes,
        in_channels=in_channels,
        norm=norm,
        progress=progress,
    )
