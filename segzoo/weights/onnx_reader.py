"""The convolutions of an ONNX file, read from the protobuf wire format: no ``onnx`` package at run time.

Only what a converter of weights needs: the graph's nodes in order of execution and its float32 initialisers. Field
numbers are those of ``onnx.proto`` (ModelProto.graph = 7, GraphProto.node = 1 and .initializer = 5, …).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["read_convolutions"]

_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
_NODE_INPUT, _NODE_OP_TYPE = 1, 4
_TENSOR_DIMS, _TENSOR_DATA_TYPE, _TENSOR_FLOAT_DATA, _TENSOR_NAME, _TENSOR_RAW_DATA = 1, 2, 4, 8, 9
_TENSOR_DATA_LOCATION = 14
_FLOAT32 = 1


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The base-128 number at ``at`` and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise IndexError("a number longer than 64 bits")


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Each field of a message as (number, value): an int for numbers, bytes for everything else."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire_type = tag & 7
        if wire_type == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if wire_type == 2:
            length, at = _varint(data, at)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise IndexError(f"wire type {wire_type}")
        if at + length > len(data):
            raise IndexError("a field that is longer than the file")
        yield tag >> 3, data[at : at + length]
        at += length


def _numbers(value: int | memoryview) -> list[int]:
    """A repeated integer field, packed or not."""
    if isinstance(value, int):
        return [value]
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(number)
    return numbers


def _text(value: int | memoryview) -> str:
    return bytes(value).decode() if isinstance(value, memoryview) else ""


def _tensor(data: memoryview) -> tuple[str, Tensor | None]:
    """An initialiser's name and, if it is float32 inside this file, its values."""
    name, dims, data_type, external = "", list[int](), 0, False
    raw, floats = b"", b""
    for number, value in _fields(data):
        if number == _TENSOR_DIMS:
            dims += _numbers(value)
        elif number == _TENSOR_NAME:
            name = _text(value)
        elif number == _TENSOR_DATA_TYPE and isinstance(value, int):
            data_type = value
        elif number == _TENSOR_DATA_LOCATION:
            external = value == 1
        elif number == _TENSOR_RAW_DATA and isinstance(value, memoryview):
            raw = bytes(value)
        elif number == _TENSOR_FLOAT_DATA and isinstance(value, memoryview):
            floats += bytes(value)
    if data_type != _FLOAT32 or external:
        return name, None
    values = torch.frombuffer(bytearray(raw or floats), dtype=torch.float32) if raw or floats else torch.empty(0)
    return name, values.reshape(dims)


def read_convolutions(path: str | os.PathLike[str]) -> list[tuple[Tensor, Tensor | None]]:
    """The (weight, bias) of every convolution of an ONNX file, in order of execution.

    Args:
        path: An ONNX file whose convolutions have float32 weights stored in it.

    Returns:
        One pair a ``Conv`` node; bias is None where the node has none.

    Raises:
        ValueError: If the file is not ONNX, has no convolution or a batch norm (a convolution alone would then be half
            the truth), or keeps a convolution's weights in another form.
    """
    try:
        graph = [v for n, v in _fields(memoryview(Path(path).read_bytes())) if n == _GRAPH]
        parts = [(n, v) for g in graph if isinstance(g, memoryview) for n, v in _fields(g) if isinstance(v, memoryview)]
        initializers = dict(_tensor(v) for n, v in parts if n == _INITIALIZER)
        nodes = [list(_fields(v)) for n, v in parts if n == _NODE]
    except (IndexError, UnicodeDecodeError, RuntimeError) as error:
        raise ValueError(f"{path} is not an ONNX file that can be read ({error})") from error
    convolutions: list[tuple[Tensor, Tensor | None]] = []
    for node in nodes:
        operator = next((_text(v) for n, v in node if n == _NODE_OP_TYPE), "")
        if operator == "BatchNormalization":
            raise ValueError(f"{path} has batch norms of its own: export it in eval mode, with the norms folded")
        if operator != "Conv":
            continue
        inputs = [_text(v) for n, v in node if n == _NODE_INPUT]
        weight, *bias = (initializers.get(name) for name in inputs[1:])
        if weight is None or (bias and bias[0] is None):
            raise ValueError(f"{path} keeps the weights of convolution {len(convolutions)} in a form not read here")
        convolutions.append((weight, bias[0] if bias else None))
    if not convolutions:
        raise ValueError(f"{path} is not an ONNX file with convolutions")
    return convolutions
