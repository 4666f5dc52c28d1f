"""Other people's checkpoints in our keys. Functions from state dict to state dict; none of them knows a model."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segzoo._errors import some_of
from segzoo._files import write_whole
from segzoo.weights.onnx_reader import read_convolutions

__all__ = ["read_state_dict", "u2net_from_official", "u2net_from_onnx", "write_state_dict"]

# The heights of U²-Net's stages: encoder 1 to 6, then decoder 5 to 1, as they are executed.
_STAGES = (
    ("1", 7),
    ("2", 6),
    ("3", 5),
    ("4", 4),
    ("5", 4),
    ("6", 4),
    ("5d", 4),
    ("4d", 4),
    ("3d", 5),
    ("2d", 6),
    ("1d", 7),
)
_HEIGHTS = dict(_STAGES)
_BATCH_NORM_EPS = 1e-5

StateDict = dict[str, Tensor]

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".onnx")
_WRAPPERS = ("model", "state_dict", "model_state_dict")


def _u2net_official_convolutions() -> list[str]:
    """The official module's convolutions in order of execution: ``stage1.rebnconvin.conv_s1`` … ``outconv``."""
    names = []
    for stage, height in _STAGES:
        down = [str(j) for j in range(1, height + 1)]
        up = [f"{j}d" for j in range(height - 1, 0, -1)]
        names += [f"stage{stage}.rebnconv{level}.conv_s1" for level in ["in", *down, *up]]
    return names + [f"side{k}" for k in range(1, 7)] + ["outconv"]


def _u2net_key(key: str) -> str | None:
    """One key of the official U²-Net in our names, or None if it is not one of its keys."""
    if match := re.fullmatch(r"(side([1-6])|outconv)\.(weight|bias)", key):
        module = f"side_modules.{6 - int(match[2])}" if match[2] else "out_conv"
        return f"{module}.{match[3]}"
    match = re.fullmatch(r"stage(\dd?)\.rebnconv(in|\dd?)\.(conv|bn)_s1\.(\w+)", key)
    if match is None or match[1] not in _HEIGHTS:
        return None
    stage, level, layer, parameter = match.groups()
    number = int(stage[0])
    prefix = f"decode_modules.{5 - number}" if stage.endswith("d") else f"encode_modules.{number - 1}"
    if level == "in":
        block = "conv_in"
    elif level.endswith("d"):
        block = f"decode_modules.{_HEIGHTS[stage] - 1 - int(level[0])}"
    else:
        block = f"encode_modules.{int(level) - 1}"
    return f"{prefix}.{block}.{layer}.{parameter}"


def u2net_from_official(state: Mapping[str, Tensor]) -> StateDict:
    """The official U²-Net or U²-Netp state dict in our keys.

    Its convolutions have biases that the batch norm after them takes away; ours have none:
    ``running_mean -= bias`` keeps the function.

    Args:
        state: Keys as ``stage1.rebnconvin.conv_s1.weight``, ``side1.weight``, ``outconv.weight``.

    Raises:
        ValueError: For keys that are not U²-Net's; it lists them.
    """
    converted = {_u2net_key(key): value for key, value in state.items()}
    if None in converted:
        strange = [key for key in state if _u2net_key(key) is None]
        raise ValueError(f"not a state dict of the official U²-Net: {len(strange)} unknown keys, {some_of(strange)}")
    result: StateDict = {key: value for key, value in converted.items() if key is not None}
    for key in [key for key in result if key.endswith(".conv.bias")]:
        running_mean = key.removesuffix("conv.bias") + "bn.running_mean"
        if running_mean not in result:
            raise ValueError(f"not a whole state dict of the official U²-Net: {running_mean} is missing")
        result[running_mean] = result[running_mean] - result.pop(key)
    return result


def u2net_from_onnx(path: str | os.PathLike[str]) -> StateDict:
    """The state dict, in our keys, of a U²-Net that was exported to ONNX with its batch norms folded.

    The file's 119 convolutions are the module's, in order of execution. What the folding left, a convolution with a
    bias, becomes a convolution without one and a batch norm whose statistics do nothing (mean 0, variance 1, the
    weight making up for ε): right in eval mode; ``segzoo.weights.calibrate.calibrate`` makes it fit to train.

    Args:
        path: Such as rembg's ``u2netp.onnx`` and ``u2net.onnx``.

    Raises:
        ValueError: If the file is no ONNX file of a U²-Net.
    """
    names = _u2net_official_convolutions()
    convolutions = read_convolutions(path)
    if len(convolutions) != len(names) or any(bias is None for _, bias in convolutions):
        raise ValueError(
            f"{path} is no U²-Net with folded norms: it has {len(convolutions)} convolutions, "
            f"expected {len(names)}, all with a bias"
        )
    result: StateDict = {}
    for name, (weight, bias) in zip(names, convolutions):
        assert bias is not None
        key = _u2net_key(f"{name}.weight")
        assert key is not None
        result[key] = weight
        module = key.removesuffix(".weight")
        if not module.endswith(".conv"):
            result[f"{module}.bias"] = bias
            continue
        norm = module.removesuffix("conv") + "bn"
        result[f"{norm}.weight"] = torch.full_like(bias, (1 + _BATCH_NORM_EPS) ** 0.5)
        result[f"{norm}.bias"] = bias
        result[f"{norm}.running_mean"] = torch.zeros_like(bias)
        result[f"{norm}.running_var"] = torch.ones_like(bias)
        result[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    return result


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """The state dict in a file, in our keys.

    Args:
        path: A ``.safetensors`` file; a ``.pth``, ``.pt`` or ``.ckpt`` file (loaded with ``weights_only=True``: it
            cannot run code); or the ``.onnx`` file of a U²-Net. A wrapping ``{"model": …}`` or ``{"state_dict": …}`` is
            taken off, and so are the prefixes that DistributedDataParallel, torch.compile and Lightning put before
            every key; the official U²-Net's keys are converted; other keys stay as they are.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read as one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: a weights file ends in {', '.join(SUFFIXES)}")
    if suffix == ".onnx":
        return u2net_from_onnx(path)
    if suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            loaded: Any = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file that can be read ({error})") from error
    else:
        loaded = _load_pickle(path)
    state = _unwrap(path, loaded)
    return u2net_from_official(state) if "outconv.weight" in state else state


def write_state_dict(state: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: dict[str, str]) -> str:
    """Write a state dict as safetensors, whole or not at all.

    Args:
        state: Names to tensors.
        path: Where to.
        metadata: Goes into the file's header, beside the format's own.

    Returns:
        The file's sha256, 64 hex digits.
    """
    from safetensors.torch import save

    content = save({key: value.contiguous() for key, value in state.items()}, metadata={"format": "pt", **metadata})
    with write_whole(path) as file:
        file.write(content)
    return hashlib.sha256(content).hexdigest()


def _load_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the broken bytes lead to
        raise ValueError(
            f"{path} cannot be loaded as plain tensors ({type(error).__name__}): "
            "it is no PyTorch file, or holds more than tensors; save model.state_dict(), not the model"
        ) from error


def _unwrap(path: Path, loaded: Any) -> StateDict:
    for key in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(
            f"{path} holds no state dict: names to tensors, bare or under {', '.join(map(repr, _WRAPPERS))}"
        )
    state = {str(key): value for key, value in loaded.items()}
    for prefix in ("module.", "_orig_mod.", "model."):  # DistributedDataParallel, torch.compile, Lightning
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
