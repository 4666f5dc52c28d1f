"""torchvision's ResNets with replaced strides, and its MobileNetV3, under torchvision's keys."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segzoo._errors import some_of, unknown_name
from segzoo.encoders.base import Encoder
from segzoo.layers.norm import Norm
from segzoo.layers.replace import replace_norm
from segzoo.weights.adapt import adapt_stem
from segzoo.weights.convert import StateDict, read_state_dict
from segzoo.weights.hub import Access

__all__ = ["MobileNetV3Encoder", "ResNetEncoder"]

RESNETS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)
_LAYERS = ("layer1", "layer2", "layer3", "layer4")


class ResNetEncoder(Encoder):
    """torchvision's ResNet without its classifier: maps after the first ReLU and after each of the four stages.

    Args:
        name: ``"resnet50"``, ``"resnet101"``, … as in torchvision.
        weights: ``"imagenet"`` (torchvision's newest, downloaded on first use), a path, or None: random.
        in_channels: Input channels.
        norm: See ``segzoo.layers.get_norm``.
        output_stride: 32, or 16 or 8: the last one or two stages are dilated instead of strided, each from its second
            block on, as torchvision and DeepLab's own code do.

    Raises:
        ValueError: For an unknown name or output stride, or one that the network does not have: those of basic blocks
            (ResNet-18 and -34) cannot be dilated here; ``segzoo.encoders.get_encoder`` can.

    State-dict keys: torchvision's (``conv1.weight``, ``layer1.0.conv1.weight``, …).

    Source: He et al., "Deep Residual Learning for Image Recognition", 2015, Table 1; Chen et al., "Rethinking Atrous
    Convolution for Semantic Image Segmentation", 2017 (arXiv 1706.05587), Section 3.1.

    Examples:
        >>> ResNetEncoder("resnet50", output_stride=8).strides
        (2, 4, 8, 8, 8)
    """

    def __init__(
        self,
        name: str = "resnet50",
        *,
        weights: str | os.PathLike[str] | None = None,
        in_channels: int = 3,
        norm: Norm = "batch",
        output_stride: int = 32,
    ) -> None:
        super().__init__()
        if not isinstance(name, str) or name not in RESNETS:
            given = name if isinstance(name, str) else type(name).__name__
            raise unknown_name("torchvision ResNet", given, RESNETS)
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride is 8, 16 or 32, got {output_stride!r}")
        if output_stride < 32 and name in ("resnet18", "resnet34"):
            raise ValueError(f"torchvision's {name} cannot be dilated: take output_stride=32 or a resnet50")
        dilated = [False, output_stride < 16, output_stride < 32]
        import torchvision  # takes a second: only who needs it waits

        net: Any = torchvision.models.get_model(name, weights=None, replace_stride_with_dilation=dilated)
        for child, module in net.named_children():
            if child not in ("avgpool", "fc"):
                self.add_module(child, module)
        self.in_channels = in_channels
        self.channels = (64, *(_out_channels(getattr(net, layer)[-1]) for layer in _LAYERS))
        self.strides = (2, 4, *(min(stride, output_stride) for stride in (8, 16, 32)))
        set_stem(self, "conv1", in_channels)
        if weights is not None:
            load_imagenet(self, name, weights, in_channels=in_channels, without=("fc.",))
        replace_norm(self, norm)

    def forward(self, x: Tensor, wanted: Collection[int] = range(5)) -> list[Tensor]:
        """``[N, in_channels, H, W]`` to five maps, the finest first, or those that are ``wanted`` of them."""
        parts = dict(self.named_children())
        maps: list[Tensor] = []
        for level, layer in enumerate((("conv1", "bn1", "relu"), ("maxpool", "layer1"), *((n,) for n in _LAYERS[1:]))):
            for name in layer:
                x = parts[name](x)
            if level in wanted:  # the others are let go of: their memory is used again
                maps.append(x)
        return maps


class MobileNetV3Encoder(Encoder):
    """torchvision's MobileNetV3-Large without its classifier, its last stage dilated (or not).

    Args:
        weights: ``"imagenet"`` (torchvision's newest, downloaded on first use), a path, or None: random.
        in_channels: Input channels.
        norm: See ``segzoo.layers.get_norm``.
        output_stride: 16 (as in the paper's segmentation models) or 32.

    State-dict keys: those of torchvision's ``features`` (``0.0.weight``, ``1.block.0.0.weight``, …).

    Source: Howard et al., "Searching for MobileNetV3", 2019 (arXiv 1905.02244), Table 1 and Section 6.4.

    Examples:
        >>> encoder = MobileNetV3Encoder()
        >>> encoder.channels, encoder.strides
        ((16, 24, 40, 80, 960), (2, 4, 8, 16, 16))
    """

    def __init__(
        self,
        *,
        weights: str | os.PathLike[str] | None = None,
        in_channels: int = 3,
        norm: Norm = "batch",
        output_stride: int = 16,
    ) -> None:
        super().__init__()
        if output_stride not in (16, 32):
            raise ValueError(f"output_stride is 16 or 32, got {output_stride!r}")
        import torchvision

        net: Any = torchvision.models.mobilenet_v3_large(weights=None, dilated=output_stride == 16)
        for child, module in net.features.named_children():
            self.add_module(child, module)
        self.in_channels = in_channels
        # The first block of each stage, as torchvision takes its maps; the stem; the last convolution.
        strided = [int(child) for child, module in self.named_children() if getattr(module, "_is_cn", False)]
        self._taps = (0, *strided[:3], len(net.features) - 1)
        self.channels = tuple(_out_channels(self.get_submodule(str(tap))) for tap in self._taps)
        self.strides = (2, 4, 8, 16, output_stride)
        set_stem(self, "0.0", in_channels)
        if weights is not None:
            load_imagenet(
                self,
                "mobilenet_v3_large",
                weights,
                in_channels=in_channels,
                without=("classifier.",),
                prefix="features.",
            )
        replace_norm(self, norm)

    def forward(self, x: Tensor, wanted: Collection[int] = range(5)) -> list[Tensor]:
        """``[N, in_channels, H, W]`` to five maps, the finest first, or those that are ``wanted`` of them."""
        taps = [self._taps[level] for level in wanted]
        maps = []
        for i, module in enumerate(self.children()):
            x = module(x)
            if i in taps:
                maps.append(x)
        return maps


def _out_channels(block: nn.Module) -> int:
    return [module for module in block.modules() if isinstance(module, nn.Conv2d)][-1].out_channels


def set_stem(encoder: nn.Module, name: str, in_channels: int) -> None:
    """Give the first convolution, which has three input channels, the number that was asked for."""
    old = encoder.get_submodule(name)
    assert isinstance(old, nn.Conv2d)
    if in_channels == old.in_channels:
        return
    layout: dict[str, Any] = {"kernel_size": old.kernel_size, "stride": old.stride, "padding": old.padding}
    new = nn.Conv2d(in_channels, old.out_channels, bias=False, **layout)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    parent, _, child = name.rpartition(".")
    encoder.get_submodule(parent).add_module(child, new)


def load_imagenet(
    encoder: nn.Module,
    name: str,
    weights: str | os.PathLike[str],
    *,
    in_channels: int,
    without: tuple[str, ...],
    prefix: str = "",
) -> None:
    """ImageNet weights into a torchvision backbone, whose norms are still torchvision's."""
    state = imagenet_state(name) if weights == "imagenet" else read_state_dict(weights)
    state = {key.removeprefix(prefix): value for key, value in state.items() if not key.startswith(without)}
    target = encoder.state_dict()
    stem = next(iter(target))
    if stem in state:
        state[stem] = adapt_stem(state[stem], in_channels)
    strange = sorted(set(state) ^ set(target)) + [k for k in target if k in state and state[k].shape != target[k].shape]
    if strange:
        raise ValueError(f"{weights} does not fit torchvision's {name}: {len(strange)} keys differ, {some_of(strange)}")
    encoder.load_state_dict(state)


def imagenet_state(name: str) -> StateDict:
    """torchvision's newest ImageNet weights of one of its classifiers, by its own download and cache."""
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    kept = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if not kept.is_file() and Access().offline:
        raise FileNotFoundError(
            f"torchvision's ImageNet weights of {name} are not on this machine ({kept}), and HF_HUB_OFFLINE is set; "
            "pass encoder_weights=None, or the path of a file"
        )
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except OSError as error:
        raise ConnectionError(
            f"could not get torchvision's ImageNet weights of {name} from {weights.url} ({error}); "
            "pass encoder_weights=None, or the path of the file"
        ) from error
