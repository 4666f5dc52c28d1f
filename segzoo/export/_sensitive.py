"""What passes through a network in an ONNX file, and which of its nodes eight bits would ruin.

Eight bits of a tensor have one step for all its channels. A nearly constant and large channel, 226 ± 0.2 say, which a
bias takes away again, makes that step 0.9: it is lost in it, and so is much of all others. From what makes such a
channel to what takes it everything has to stay in float, resizing and concatenation too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Channels", "channels_of", "ranges_of", "sensitive_nodes"]

_STEPS = 255
_HARM = 0.25  # of an output's standard deviation, by the rounding of one input channel: others add up to less
_SWALLOWED = 0.25  # of a channel's own standard deviation, by its rounding
_SHARE = 0.5  # of a channel's mean, in those of the summands that it comes from

_MIXING = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")  # what makes channels of all that it takes
_ELEMENTWISE = ("Add", "Sub", "Mul")

Array = NDArray[np.floating[Any]]


class Channels(NamedTuple):
    """Mean and standard deviation of each channel of a tensor ``[N, C, H, W]``, over pictures and pixels."""

    mean: Array
    deviation: Array


def ranges_of(network: Any, inputs: Iterable[Array]) -> dict[str, tuple[float, float]]:
    """The smallest and the largest value of every float tensor of a network.

    Args:
        network: An ``onnx.ModelProto``, its shapes inferred.
        inputs: What it is given, ``[N, C, H, W]``, one after the other.
    """
    asked = [(name, ("ReduceMin", "ReduceMax")) for name, _ in _float_tensors(network)]
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for found in _runs(network, asked, inputs):
        for name, (smallest, largest) in found.items():
            low[name] = min(low.get(name, np.inf), float(smallest))
            high[name] = max(high.get(name, -np.inf), float(largest))
    return {name: (low[name], high[name]) for name in low}


def channels_of(network: Any, inputs: Iterable[Array]) -> dict[str, Channels]:
    """Mean and deviation of every channel of every float tensor of four dimensions.

    Args:
        network: As for ``ranges_of``.
        inputs: As for ``ranges_of``; a few are enough, since nearly constant channels hardly depend on them.
    """
    asked = [(name, ("mean", "variance")) for name, rank in _float_tensors(network) if rank == 4]
    means: dict[str, list[Array]] = {}
    variances: dict[str, list[Array]] = {}
    for found in _runs(network, asked, inputs):
        for name, (mean, variance) in found.items():
            means.setdefault(name, []).extend(mean[:, :, 0, 0].astype(np.float64))
            variances.setdefault(name, []).extend(variance[:, :, 0, 0].astype(np.float64))
    return {
        name: Channels(np.mean(means[name], 0), np.sqrt(np.mean(variances[name], 0) + np.var(means[name], 0)))
        for name in means
    }


def _float_tensors(network: Any) -> list[tuple[str, int]]:
    """Names and ranks of the float tensors that are computed, and of the input."""
    from onnx import TensorProto

    graph = network.graph
    made = {name for node in graph.node if node.op_type != "Constant" for name in node.output}
    made |= {value.name for value in graph.input} - {value.name for value in graph.initializer}
    return [
        (value.name, len(value.type.tensor_type.shape.dim))
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.name in made and value.type.tensor_type.elem_type == TensorProto.FLOAT
    ]


def _runs(
    network: Any, asked: list[tuple[str, tuple[str, str]]], inputs: Iterable[Array]
) -> Iterable[dict[str, list[Array]]]:
    """For each input what two measures say of each tensor; only they leave the runtime, not the tensors."""
    import onnx
    import onnxruntime

    wanted = dict(asked)
    measured = onnx.ModelProto()
    measured.CopyFrom(network)
    graph = measured.graph
    nodes = list(graph.node)
    del graph.node[:], graph.output[:]
    for name in (value.name for value in network.graph.input):
        graph.node.extend(_measures(name, wanted.get(name)))
    for node in nodes:
        graph.node.append(node)
        for name in node.output:
            graph.node.extend(_measures(name, wanted.get(name)))
    names = [f"{name}/{measure}" for name, measures in asked for measure in measures]
    graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(measured.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for x in inputs:
        values = session.run(names, {network.graph.input[0].name: x})
        yield {name: values[2 * i : 2 * i + 2] for i, (name, _) in enumerate(asked)}


def _measures(name: str, measures: tuple[str, str] | None) -> list[Any]:
    from onnx.helper import make_node

    if measures is None:
        return []
    if measures != ("mean", "variance"):
        return [make_node(measure, [name], [f"{name}/{measure}"], keepdims=0) for measure in measures]
    mean, off, square = (f"{name}/{what}" for what in ("mean", "off", "square"))
    return [  # the mean is taken away before squaring: 226 ± 0.2 has none left in float32 otherwise
        make_node("GlobalAveragePool", [name], [mean]),
        make_node("Sub", [name, mean], [off]),
        make_node("Mul", [off, off], [square]),
        make_node("GlobalAveragePool", [square], [f"{name}/variance"]),
    ]


def sensitive_nodes(
    network: Any, ranges: Mapping[str, tuple[float, float]], channels: Mapping[str, Channels]
) -> dict[str, str]:
    """The nodes that have to stay in float, by name, and why.

    A convolution is harmed by channel c of its input if the rounding of c, half a step of eight bits over the tensor's
    range, moves an output by more than a quarter of its standard deviation (rounding · ‖w‖₁ against sd), and c is
    nearly constant: even half a step over its own mean is more than a quarter of its deviation.

    Args:
        network: An ``onnx.ModelProto``.
        ranges: From ``ranges_of``.
        channels: From ``channels_of``.
    """
    from onnx import numpy_helper

    weights = {value.name: value for value in network.graph.initializer}
    makers = {name: node for node in network.graph.node for name in node.output}
    found: dict[str, str] = {}
    for node in network.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose") or node.input[1] not in weights:
            continue
        if node.input[0] not in channels or node.output[0] not in channels:
            continue
        x, y = channels[node.input[0]], channels[node.output[0]]
        step = _step(ranges[node.input[0]])
        reach = _reach(numpy_helper.to_array(weights[node.input[1]]), node)
        for channel in _harmed(x, y, step, reach):
            size = f"{x.mean[channel]:.3g} ± {x.deviation[channel]:.2g}"
            found[node.name] = f"takes a channel of {size}, of which eight bits leave steps of {step:.2g}"
            _trace(node.input[0], int(channel), makers, channels, found, size)
    return {node.name: found[node.name] for node in network.graph.node if node.name in found}


def _step(limits: tuple[float, float]) -> float:
    return (max(limits[1], 0.0) - min(limits[0], 0.0)) / _STEPS


def _reach(weight: Array, node: Any) -> Array:
    """How far each input channel of a group can move each of its outputs: ``[groups, outputs, inputs]``."""
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    total = np.abs(weight.astype(np.float64)).reshape(*weight.shape[:2], -1).sum(2)
    split: Array = total.reshape(groups, -1, total.shape[1])
    return split if node.op_type == "Conv" else split.transpose(0, 2, 1)


def _harmed(x: Channels, y: Channels, step: float, reach: Array) -> NDArray[np.intp]:
    groups = len(reach)
    error = np.minimum(step / 2, np.hypot(x.mean, x.deviation))
    spread = np.maximum(y.deviation, np.finfo(np.float32).tiny)
    harm = error.reshape(groups, 1, -1) * reach / spread.reshape(groups, -1, 1)
    flat = np.abs(x.mean) / _STEPS / 2 > _SWALLOWED * x.deviation
    return np.flatnonzero((harm.max(1).ravel() > _HARM) & flat)


def _trace(
    tensor: str,
    channel: int,
    makers: Mapping[str, Any],
    channels: Mapping[str, Channels],
    found: dict[str, str],
    size: str,
) -> None:
    """Note what hands a channel on, back to what makes it."""
    node = makers.get(tensor)
    if node is None:  # the picture itself
        return
    count = len(channels[tensor].mean) if tensor in channels else 0
    same = [name for name in node.input if name in channels and len(channels[name].mean) == count]
    if node.op_type in _MIXING:
        sources = []
    elif node.op_type == "Concat" and all(name in channels for name in node.input):
        ends = np.cumsum([len(channels[name].mean) for name in node.input])
        which = int(np.searchsorted(ends, channel, side="right"))
        sources = [(node.input[which], channel - (int(ends[which - 1]) if which else 0))]
    elif node.op_type in _ELEMENTWISE:
        least = _SHARE * abs(channels[tensor].mean[channel])
        alike = [name for name in node.input if name in channels and channel < len(channels[name].mean)]
        sources = [(name, channel) for name in alike if abs(channels[name].mean[channel]) >= least]
    else:  # activations, pooling, padding, resizing …
        sources = [(same[0], channel)] if len(same) == 1 else []
    found.setdefault(node.name, f"{'hands on' if sources else 'makes'} a channel of {size}")
    for name, place in sources:
        _trace(name, place, makers, channels, found, size)
