"""Any timm backbone as a feature pyramid."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from segzoo._errors import some_of, unknown_name
from segzoo.encoders.base import Encoder
from segzoo.layers.norm import Norm
from segzoo.layers.replace import replace_norm
from segzoo.weights.adapt import adapt_stem
from segzoo.weights.convert import read_state_dict
from segzoo.weights.efficientnet_keys import efficientnet_to_timm

__all__ = ["TimmEncoder"]

_ONE_AT_A_TIME = threading.Lock()


class TimmEncoder(Encoder):
    """A timm backbone as a feature pyramid; ``.model`` is timm's own ``features_only`` module.

    Args:
        name: timm's, as ``"resnet34"`` or ``"convnext_tiny.fb_in22k"``.
        weights: ``"imagenet"`` (timm's default weights of that name, from the Hugging Face Hub's cache or the Hub), the
            path of a file in timm's keys (or of EfficientNet-PyTorch's, as EfficientNet-Lite's are published), or None.
        in_channels: Input channels; the weights' first convolution is adapted as timm does.
        norm: In the place of the network's batch norms, if it has any: see ``segzoo.layers.replace_norm``.
        depth: How many times the input is halved at most: 5 is down to stride 32.
        output_stride: Where it is less than 2 ** depth, the strides beyond it become dilations.
        dilate_first: Whether the first block of a dilated stage has the new dilation too, as all of
            segmentation_models_pytorch's own ResNets, or still the one before, as timm, torchvision and DeepLab do it.

    Raises:
        ValueError: For an unknown name; one without a pyramid (a plain ViT); one that cannot be dilated; a file that
            does not fit.
        ConnectionError: If weights could not be downloaded.

    Examples:
        >>> encoder = TimmEncoder("convnext_atto", weights=None, in_channels=4)
        >>> encoder.channels, encoder.strides
        ((40, 80, 160, 320), (4, 8, 16, 32))
    """

    def __init__(
        self,
        name: str,
        *,
        weights: str | os.PathLike[str] | None = "imagenet",
        in_channels: int = 3,
        norm: Norm = "batch",
        depth: int = 5,
        output_stride: int = 32,
        dilate_first: bool = False,
    ) -> None:
        super().__init__()
        check_depth(depth)
        if output_stride not in (4, 8, 16, 32):
            raise ValueError(f"output_stride is 4, 8, 16 or 32, got {output_stride!r}")
        self.in_channels = in_channels
        indices = _indices(name, depth)
        arguments: dict[str, Any] = {"in_chans": in_channels, "out_indices": indices}
        dilated = output_stride < 2**depth
        if dilated and not dilate_first and _dilates_itself(name, output_stride):
            arguments["output_stride"] = output_stride
        self.model = _create(name, weights, **arguments)
        _round_up(self.model)
        info = self.model.feature_info
        self.channels = tuple(info.channels())
        self.strides = tuple(info.reduction())
        self._channels_last = str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC")
        if output_stride < self.strides[-1]:
            _dilate(self, name, output_stride)
        replace_norm(self.model, norm, example=torch.zeros(2, in_channels, 224, 224, device="meta"))
        _find_sizes(self, name)

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[N, in_channels, H, W]`` to maps ``[N, C, h, w]``, the finest first."""
        with self._alone():
            maps: list[Tensor] = self.model(x)
        return [y.permute(0, 3, 1, 2) for y in maps] if self._channels_last else maps

    def _alone(self) -> AbstractContextManager[object]:
        """Some of timm's networks collect their maps in a place that all threads share: one at a time, then."""
        shared = type(self.model).__name__ == "FeatureHookNet" and not torch.compiler.is_compiling()
        return _ONE_AT_A_TIME if shared else nullcontext()


def check_depth(depth: int) -> None:
    """Raise ValueError unless ``depth`` is 1 to 5."""
    if not isinstance(depth, int) or isinstance(depth, bool) or not 1 <= depth <= 5:
        raise ValueError(f"depth is 1 to 5, got {depth!r}")


def _indices(name: str, depth: int) -> tuple[int, ...]:
    """Which of timm's feature maps to take: those of rising stride up to 2 ** depth."""
    import timm  # noqa: F401 - torch 2.6 cannot import its compiler, which timm does, under the meta device

    with torch.device("meta"):
        probe = _create(name, None)
    strides = probe.feature_info.reduction()
    if len(set(strides)) < 2:
        raise ValueError(
            f"timm's {name} gives maps of one scale only (stride {strides[-1]}): a decoder needs a pyramid; "
            "take resnet34, convnext_tiny, swin_tiny_patch4_window7_224 or the like"
        )
    taken = tuple(i for i, stride in enumerate(strides) if stride <= 2**depth)
    if not taken:
        raise ValueError(f"timm's {name} starts at stride {strides[0]}, beyond depth={depth}")
    return taken


def _create(name: str, weights: str | os.PathLike[str] | None, **arguments: Any) -> Any:
    import timm

    if not timm.is_model(name):
        raise unknown_name("encoder", name, timm.list_models())
    more: dict[str, Any] = {}
    if weights == "imagenet":
        more["pretrained"] = True
    elif weights is not None:
        state = _read(name, weights, arguments["in_chans"])
        overlay = {"state_dict": state, "input_size": (arguments["in_chans"], 224, 224)}
        more |= {"pretrained": True, "pretrained_cfg_overlay": overlay}
    # Windowed transformers take any size when told to; the others do not know the argument.
    flexible: dict[str, Any] = {"strict_img_size": False}
    try:
        with _quiet():
            try:
                return timm.create_model(name, features_only=True, **arguments, **more, **flexible)
            except TypeError:
                return timm.create_model(name, features_only=True, **arguments, **more)
    except OSError as error:
        raise ConnectionError(
            f"could not get timm's ImageNet weights of {name} ({str(error).splitlines()[0]}); "
            "pass encoder_weights=None, or the path of a file"
        ) from error
    except (RuntimeError, AttributeError, AssertionError, NotImplementedError) as error:
        if weights == "imagenet" and "pretrained" in str(error).lower():
            raise ValueError(f"timm has no ImageNet weights of {name}: pass encoder_weights=None or a file") from error
        raise ValueError(f"timm's {name} cannot give a feature pyramid ({str(error).splitlines()[0]})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """timm logs the keys of the classifier, which a pyramid has none of, as unexpected."""
    logger = logging.getLogger("timm.models._builder")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _read(name: str, path: str | os.PathLike[str], in_channels: int) -> dict[str, Tensor]:
    """A file's state dict in timm's keys, checked against the whole network (timm itself ignores what is missing)."""
    import timm

    state = efficientnet_to_timm(read_state_dict(path))
    with torch.device("meta"):
        whole: Any = timm.create_model(name)
    classifier = tuple(f"{part}." for part in _as_tuple(whole.default_cfg.get("classifier")))
    target = {key: value for key, value in whole.state_dict().items() if not key.startswith(classifier)}
    missing = [key for key in target if key not in state]
    known = {*target, *(key for key, _ in whole.named_buffers())}  # some buffers were saved by older versions
    unexpected = [key for key in state if key not in known and not key.startswith(classifier)]
    stem = next(key for key, value in target.items() if value.ndim == 4)
    if stem in state and state[stem].ndim == 4:
        state[stem] = adapt_stem(state[stem], in_channels)
        target[stem] = target[stem].new_empty(state[stem].shape)
    shapes = [key for key in target if key in state and state[key].shape != target[key].shape]
    if missing or unexpected or shapes:
        raise ValueError(
            f"{path} does not fit timm's {name}: {len(missing)} keys are missing, {len(unexpected)} too many and "
            f"{len(shapes)} have another shape ({some_of(missing + unexpected + shapes)})"
        )
    return {key: state[key] for key in target}


def _as_tuple(names: Any) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())


def _round_up(model: nn.Module) -> None:
    """Pools that would drop the last row of an odd map keep it; even maps stay as they are."""
    for module in model.modules():
        if not isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)) or module.padding not in (0, (0, 0)):
            continue
        if _pair(module.kernel_size) == _pair(module.stride):
            module.ceil_mode = True


def _dilates_itself(name: str, output_stride: int) -> bool:
    """Whether timm's own ``output_stride`` does for this network what it says."""
    import timm

    with torch.device("meta"), _quiet():
        try:
            model: Any = timm.create_model(name, features_only=True, output_stride=output_stride)
        except (TypeError, RuntimeError, AssertionError, ValueError):
            return False
        return bool(model.feature_info.reduction()[-1] == output_stride)


def _dilate(encoder: TimmEncoder, name: str, output_stride: int) -> None:
    """Turn the strides beyond ``output_stride`` into dilations where timm does not, by running the network on nothing.

    Every convolution whose output would be at stride s > ``output_stride`` gets dilation s / ``output_stride``.
    """
    expected = tuple(min(stride, output_stride) for stride in encoder.strides)
    beyond: dict[nn.Module, int] = {}
    size = 512

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        stride = size / output.shape[-1]
        if output.ndim == 4 and output.shape[-1] > 1 and stride > output_stride:
            beyond[module] = round(stride / output_stride)

    kinds = (nn.Conv2d, nn.AvgPool2d, nn.MaxPool2d)
    hooks = [m.register_forward_hook(note) for m in encoder.model.modules() if isinstance(m, kinds)]
    try:
        _maps_on_meta(encoder, size, size)
    finally:
        for hook in hooks:
            hook.remove()
    for module, dilation in beyond.items():
        _set_dilation(module, dilation)
    encoder.strides = expected
    try:
        maps = _maps_on_meta(encoder, size, size)
    except RuntimeError:
        maps = []
    if tuple(size // y.shape[-1] for y in maps) != expected:
        raise ValueError(f"timm's {name} cannot be dilated to output_stride={output_stride}: take a ResNet or the like")


def _set_dilation(module: nn.Module, dilation: int) -> None:
    if isinstance(module, nn.Conv2d):
        # Padding of "same" kinds of convolution is computed from these attributes at run time.
        module.stride = (1, 1)
        module.dilation = (dilation, dilation)
        if all(k % 2 == 0 for k in module.kernel_size):
            module.padding = "same"  # a patch convolution
        elif any(module.padding):
            module.padding = tuple(dilation * (k // 2) for k in module.kernel_size)  # type: ignore[assignment]
    elif _pair(module.stride) != (1, 1):
        # A pool in a shortcut: nothing is left for it to do but to keep the size.
        for attribute, value in (("stride", 1), ("kernel_size", 1), ("padding", 0)):
            setattr(module, attribute, value)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _find_sizes(encoder: TimmEncoder, name: str) -> None:
    """Set ``min_size`` and ``size_multiple``: the least padding with which the network takes any picture."""
    if _takes(encoder, 1, 1):
        return
    encoder.min_size = 32
    if _takes(encoder, 33, 47) and _takes(encoder, 32, 65):
        return
    for multiple in (32, 64, 128, 224, 256, 384, 448, 512):
        if _takes(encoder, multiple, 2 * multiple):
            encoder.size_multiple = multiple
            return
    raise ValueError(f"timm's {name} has no maps at its strides for pictures of any size: take another encoder")


def _takes(encoder: TimmEncoder, height: int, width: int) -> bool:
    def refuse_nothing(module: nn.Module, inputs: object, output: Tensor) -> None:
        if output.numel() == 0:  # a kernel larger than its map, which not every torch finds on the meta device
            raise RuntimeError("nothing is left of the map")

    hooks = [m.register_forward_hook(refuse_nothing) for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    try:
        maps = _maps_on_meta(encoder, height, width)
    except (RuntimeError, AssertionError, ValueError, TypeError):
        return False
    finally:
        for hook in hooks:
            hook.remove()
    # Sizes that round down would shift the coarse maps against the fine ones.
    return all(tuple(y.shape[-2:]) == (-(-height // s), -(-width // s)) for y, s in zip(maps, encoder.strides))


def _maps_on_meta(encoder: TimmEncoder, height: int, width: int) -> list[Tensor]:
    """The maps' shapes in eval mode; nothing is computed, nothing of the encoder changes."""
    training = encoder.training
    encoder.eval()
    try:
        return encoder.run_on_meta(torch.zeros(1, encoder.in_channels, height, width, device="meta"))[0]
    finally:
        encoder.train(training)
