"""Other people's checkpoints in our keys. Functions from state dict to state dict; none of them knows a model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from segzoo._errors import some_of
from segzoo._files import write_whole
from segzoo.weights.onnx_reader import read_convolutions

__all__ = [
    "isnet_from_official",
    "isnet_from_onnx",
    "read_state_dict",
    "u2net_from_official",
    "u2net_from_onnx",
    "write_state_dict",
]

# The stages of U²-Net and of IS-Net with their heights: encoder 1 to 6, then decoder 5 to 1, as they are executed.
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
_CONV_PARAMETERS = ("weight", "bias")
_NORM_PARAMETERS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_BATCH_NORM_EPS = 1e-5

StateDict = dict[str, Tensor]

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".onnx")
_WRAPPERS = ("model", "state_dict", "model_state_dict")


def _stage_blocks() -> dict[str, str]:
    """The blocks (convolution, norm, ReLU) of all stages in order of execution: the official name to ours."""
    blocks = {}
    for stage, height in _STAGES:
        number = int(stage[0])
        place = f"decode_modules.{5 - number}" if stage.endswith("d") else f"encode_modules.{number - 1}"
        blocks[f"stage{stage}.rebnconvin"] = f"{place}.conv_in"
        for j in range(1, height + 1):
            blocks[f"stage{stage}.rebnconv{j}"] = f"{place}.encode_modules.{j - 1}"
        for j in range(height - 1, 0, -1):
            blocks[f"stage{stage}.rebnconv{j}d"] = f"{place}.decode_modules.{height - 1 - j}"
    return blocks


_BLOCKS = _stage_blocks()
_SIDES = {f"side{k}": f"side_modules.{6 - k}" for k in range(1, 7)}


class _Network(NamedTuple):
    """One of the two official modules: the same U between other ends."""

    name: str
    convolutions: dict[str, str]  # in order of execution: the official name to ours; those of _BLOCKS have a norm
    last_kernel: tuple[int, int]  # both have 119 convolutions; U²-Net ends in a 1×1, IS-Net in a 3×3

    def keys(self) -> dict[str, str]:
        """Every key of the official state dict to ours."""
        keys: dict[str, str] = {}
        for theirs, ours in self.convolutions.items():
            if theirs in _BLOCKS:
                keys |= {f"{theirs}.conv_s1.{name}": f"{ours}.conv.{name}" for name in _CONV_PARAMETERS}
                keys |= {f"{theirs}.bn_s1.{name}": f"{ours}.bn.{name}" for name in _NORM_PARAMETERS}
            else:
                keys |= {f"{theirs}.{name}": f"{ours}.{name}" for name in _CONV_PARAMETERS}
        return keys


_U2NET = _Network("U²-Net", {**_BLOCKS, **_SIDES, "outconv": "out_conv"}, (1, 1))
_ISNET = _Network("IS-Net", {"conv_in": "conv_in", **_BLOCKS, **_SIDES}, (3, 3))


def u2net_from_official(state: Mapping[str, Tensor]) -> StateDict:
    """The official U²-Net or U²-Netp state dict in our keys.

    Its convolutions have biases that the batch norm after them takes away; ours have none:
    ``running_mean -= bias`` keeps the function.

    Args:
        state: Keys as ``stage1.rebnconvin.conv_s1.weight``, ``side1.weight``, ``outconv.weight``.

    Raises:
        ValueError: For keys that are not U²-Net's; it lists them.
    """
    return _from_official(state, _U2NET)


def isnet_from_official(state: Mapping[str, Tensor]) -> StateDict:
    """The official IS-Net state dict (``isnet.pth``, ``isnet-general-use.pth``) in our keys.

    The biases of convolutions before a norm go where U²-Net's go; ``conv_in`` and the side heads keep theirs.

    Args:
        state: Keys as ``conv_in.weight``, ``stage1.rebnconvin.conv_s1.weight``, ``side1.weight``.

    Raises:
        ValueError: For keys that are not IS-Net's; it lists them.
    """
    return _from_official(state, _ISNET)


def _from_official(state: Mapping[str, Tensor], network: _Network) -> StateDict:
    keys = network.keys()
    strange = [key for key in state if key not in keys]
    if strange:
        raise ValueError(
            f"not a state dict of the official {network.name}: {len(strange)} unknown keys, {some_of(strange)}"
        )
    result = {keys[key]: value for key, value in state.items()}
    for key in [key for key in result if key.endswith(".conv.bias")]:
        running_mean = key.removesuffix("conv.bias") + "bn.running_mean"
        if running_mean not in result:
            raise ValueError(f"not a whole state dict of the official {network.name}: {running_mean} is missing")
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
    return _from_onnx(path, _U2NET)


def isnet_from_onnx(path: str | os.PathLike[str]) -> StateDict:
    """The state dict, in our keys, of an IS-Net that was exported to ONNX with its batch norms folded.

    As ``u2net_from_onnx``; the first convolution and the six side heads had no norm and are as they were.

    Args:
        path: Such as rembg's ``isnet-general-use.onnx``.

    Raises:
        ValueError: If the file is no ONNX file of an IS-Net.
    """
    return _from_onnx(path, _ISNET)


def _from_onnx(path: str | os.PathLike[str], *networks: _Network) -> StateDict:
    """The state dict, in our keys, of the one of these networks that is in the file."""
    convolutions = read_convolutions(path)
    count, kernel = len(convolutions), tuple(convolutions[-1][0].shape[2:])
    found = next((n for n in networks if (len(n.convolutions), n.last_kernel) == (count, kernel)), None)
    if found is None or any(bias is None for _, bias in convolutions):
        expected = " or ".join(f"{len(n.convolutions)} with {list(n.last_kernel)}" for n in networks)
        raise ValueError(
            f"{path} is no {' or '.join(n.name for n in networks)} with folded norms: it has {count} convolutions, "
            f"the last with kernel {list(kernel)}, expected {expected}, all with a bias"
        )
    result: StateDict = {}
    for (theirs, ours), (weight, bias) in zip(found.convolutions.items(), convolutions):
        assert bias is not None
        if theirs not in _BLOCKS:
            result |= {f"{ours}.weight": weight, f"{ours}.bias": bias}
            continue
        result[f"{ours}.conv.weight"] = weight
        result |= norm_that_adds(bias, f"{ours}.bn")
    return result


def norm_that_adds(bias: Tensor, norm: str) -> StateDict:
    """The entries of a batch norm called ``norm`` that in eval mode only adds ``bias``.

    Examples:
        >>> list(norm_that_adds(torch.zeros(4), "bn"))
        ['bn.weight', 'bn.bias', 'bn.running_mean', 'bn.running_var', 'bn.num_batches_tracked']
    """
    zeros, ones = torch.zeros_like(bias), torch.ones_like(bias)
    values = (ones * (1 + _BATCH_NORM_EPS) ** 0.5, bias, zeros, ones, torch.tensor(0))
    return {f"{norm}.{name}": value for name, value in zip(_NORM_PARAMETERS, values)}


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """The state dict in a file, in our keys.

    Args:
        path: A ``.safetensors`` file; a ``.pth``, ``.pt``, ``.ckpt`` or ``.bin`` file (loaded with
            ``weights_only=True``: it cannot run code); or the ``.onnx`` file of a U²-Net or an IS-Net. A wrapping
            ``{"model": …}`` or ``{"state_dict": …}`` is taken off, and so are the prefixes that
            DistributedDataParallel, torch.compile and Lightning put before every key; the official U²-Net's and
            IS-Net's keys are converted; other keys stay as they are.

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
        return _from_onnx(path, _U2NET, _ISNET)
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
    for network, mark in ((_U2NET, "outconv.weight"), (_ISNET, "conv_in.weight")):
        if {mark, "side1.weight"} <= state.keys():
            return _from_official(state, network)
    return state


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
