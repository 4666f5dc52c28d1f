"""Other people's checkpoints in our keys. Functions from state dict to state dict; none of them knows a model."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from segzoo._errors import some_of
from segzoo.weights.onnx_reader import read_convolutions
from segzoo.weights.reading import SUFFIXES, check_weights_file, read_contents
from segzoo.weights.saved import NO_ARGUMENTS
from segzoo.weights.tensors import read_metadata
from segzoo.weights.torchvision_keys import mask_rcnn_from_older
from segzoo.weights.unwrap import Contents, StateDict
from segzoo.weights.writing import write_state_dict

__all__ = [
    "ARCHITECTURE",
    "ARGUMENTS",
    "SUFFIXES",
    "StateDict",
    "isnet_from_official",
    "isnet_from_onnx",
    "read_arguments",
    "read_raw",
    "read_state_dict",
    "u2net_from_official",
    "u2net_from_onnx",
    "unified",
    "write_state_dict",
]

logger = logging.getLogger(__name__)

ARCHITECTURE = "segzoo_architecture"  # in a converted file's header: the factory's name
ARGUMENTS = "segzoo_arguments"  # in a converted file's header: a JSON object

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
    return _folded({keys[key]: value for key, value in state.items()}, f"official {network.name}")


def _folded(state: StateDict, origin: str) -> StateDict:
    """Without the biases that a norm takes away again: they go into its running mean."""
    for key in [key for key in state if key.endswith(".conv.bias")]:
        running_mean = key.removesuffix("conv.bias") + "bn.running_mean"
        if running_mean not in state:
            raise ValueError(f"not a whole state dict of the {origin}: {running_mean} is missing")
        state[running_mean] = state[running_mean] - state.pop(key)
    return state


def u2net_from_onnx(path: str | os.PathLike[str]) -> StateDict:
    """The state dict, in our keys, of a U²-Net that was exported to ONNX with its batch norms folded.

    The file's 119 convolutions are the module's, in order of execution. What the folding left, a convolution with a
    bias, becomes a convolution without one and a batch norm whose statistics do nothing (mean 0, variance 1, the
    weight making up for ε): right in eval mode; ``segzoo.weights.recalibrate`` makes it fit to train.

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
    """The state dict in a file, in our keys. What was taken of a file with more in it is logged.

    Args:
        path: A ``.safetensors`` file; a ``.pth``, ``.pt``, ``.ckpt`` or ``.bin`` file (loaded with
            ``weights_only=True``: it cannot run code); or the ``.onnx`` file of a U²-Net or an IS-Net. A wrapping
            ``{"model": …}``, ``{"state_dict": …}`` or the like is taken off (plain weights before averaged ones), and
            so are the prefixes that DistributedDataParallel, torch.compile and Lightning put before every key, and
            the buffers of losses beside them. The official U²-Net's and IS-Net's keys are converted; other keys stay
            as they are.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read as one: what it is in its place, or what its pickle would have called.
    """
    contents = read_raw(path)
    for note in contents.notes:
        logger.info("%s: %s", path, note)
    return unified(contents.state)


def read_raw(path: str | os.PathLike[str]) -> Contents:
    """The state dict in a file in the keys of whoever saved it, or an ONNX file's in ours.

    Args:
        path: As ``read_state_dict`` takes it.

    Raises:
        FileNotFoundError, ValueError: As ``read_state_dict``.
    """
    if Path(path).suffix.lower() == ".onnx":
        return Contents(_from_onnx(check_weights_file(path), _U2NET, _ISNET))
    return read_contents(path)


def unified(state: Mapping[str, Tensor]) -> StateDict:
    """A state dict whose keys alone say how to convert it, in ours; any other as it is.

    Those are the official U²-Net's and IS-Net's, those of their tutorial implementation with biases before its norms,
    and torchvision's Mask R-CNN's of before 2022. What else is converted, a model's class converts.

    Examples:
        >>> list(unified({"rpn.head.conv.bias": torch.zeros(1)}))
        ['rpn.head.conv.0.0.bias']
    """
    for network, mark in ((_U2NET, "outconv.weight"), (_ISNET, "conv_in.weight")):
        if {mark, "side1.weight"} <= state.keys():
            return _from_official(state, network)
    if {"encode_modules.0.conv_in.conv.bias", "side_modules.0.weight"} <= state.keys():
        return _folded(dict(state), "U²-Net")
    return mask_rcnn_from_older(state)


def read_arguments(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The factory's arguments that a converted file brings along: what its network was built with, but for its sizes.

    Args:
        path: A safetensors file; those of others, and files of another kind, have none.

    Raises:
        ValueError: If the header's arguments are no JSON object.
    """
    text = read_metadata(path).get(ARGUMENTS, "{}")
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = None
    if isinstance(arguments, dict) and (strange := [name for name in NO_ARGUMENTS if name in arguments]):
        raise ValueError(
            f"{path}: {ARGUMENTS} in its header must not hold {', '.join(strange)}: convert the file again"
        )
    if not isinstance(arguments, dict):
        raise ValueError(f"{path}: {ARGUMENTS} in its header is no JSON object: convert the file again")
    return arguments
