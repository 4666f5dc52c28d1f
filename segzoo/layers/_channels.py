"""Which channels of which parameters are one and the same: found by running the model.

The forward pass runs on the meta device (shapes without values), and every channel of every parameter has a number. A
sum makes two channels one, a concatenation puts them beside each other, a convolution takes some and makes others. What
is not understood (a channel that is split off, a norm over all channels, attention) is fixed: it must stay as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from segzoo.layers.trace import _guess, _is_drop, _stand_ins, _unchanged

__all__ = ["Channels", "Slot", "trace_channels"]

Labels = tuple[int, ...]


class Slot(NamedTuple):
    """One dimension of one parameter or buffer, which has a channel for each index."""

    name: str
    dim: int


@dataclass
class Channels:
    """The channels of a model's tensors. Those with the same number are one channel: all go, or all stay.

    Args:
        numbers: {slot: the number of each of its channels}.
        fixed: Numbers of channels that must stay.
        made: Slots of the weights of convolutions and linear layers, along what they give out.
        taken: The same, along what they take in.
        scales: Slots of γ of norms.
        shifts: {slot of γ: slot of β}, where a norm has both.
    """

    numbers: dict[Slot, Labels]
    fixed: set[int]
    made: set[Slot]
    taken: set[Slot]
    scales: set[Slot]
    shifts: dict[Slot, Slot] = field(default_factory=dict)

    def free(self) -> dict[Slot, list[int]]:
        """{slot of ``made``: its channels' numbers}, each once, of those slots whose channels may go."""
        return {
            slot: list(dict.fromkeys(n for n in numbers if n not in self.fixed))
            for slot, numbers in self.numbers.items()
            if slot in self.made and not self.fixed.issuperset(numbers)
        }


def trace_channels(model: nn.Module, example: Tensor | None = None) -> Channels:
    """Follow every channel through the model, in train and in eval mode.

    Parameters, buffers, modes, attributes and the random state are afterwards what they were.

    Args:
        model: Any module.
        example: Its input. Default: ``[1, C, 96, 128]`` with the C of the first convolution.

    Raises:
        ValueError: If the model does not run on the meta device.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
        >>> channels = trace_channels(model)
        >>> {slot.name: len(numbers) for slot, numbers in channels.free().items()}
        {'0.weight': 4}
        >>> channels.numbers[Slot("0.weight", 0)] == channels.numbers[Slot("3.weight", 1)]
        True
    """
    x = _guess(model)[0][:1, :, :96, :128] if example is None else example
    follower = _Follower()
    for training in (True, False):
        try:
            _run(model, x, training, follower)
        except Exception as error:  # whatever a forward may raise on the meta device
            raise ValueError(
                f"this {type(model).__name__} does not run without values in {'train' if training else 'eval'} mode, "
                f"as following its channels needs ({type(error).__name__}: {error})"
            ) from error
    return follower.channels()


def _run(model: nn.Module, x: Tensor, training: bool, follower: _Follower) -> None:
    with _unchanged(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again when the model runs in earnest
        for module in model.modules():
            module.training = training and not _is_drop(module)  # its mask is not the channels' own
        inputs = tree_map_only(Tensor, lambda tensor: tensor.detach().to("meta"), x)
        stand_ins = _stand_ins(model, meta=True)
        follower.begin(stand_ins)
        with follower:
            output = torch.func.functional_call(model, stand_ins, (inputs,))
        follower.fix(tensor for tensor in tree_leaves(output) if isinstance(tensor, Tensor))


class _Follower(TorchDispatchMode):
    """Sees every operation, and keeps for every tensor what numbers its channels have, by dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.parents: list[int] = []
        self.fixed: set[int] = set()
        self.parameters: dict[str, tuple[Labels | None, ...]] = {}
        self.made: set[Slot] = set()
        self.taken: set[Slot] = set()
        self.shifts: dict[Slot, Slot | None] = {}

    def begin(self, stand_ins: dict[str, Tensor]) -> None:
        """The tensors of one run, by name. What several names share is one."""
        self.names: dict[int, str] = {}
        self.followed: dict[int, tuple[Labels | None, ...]] = {}
        self.alive: list[Tensor] = list(stand_ins.values())  # so that no id comes twice
        self.transposed: dict[int, str] = {}  # weights of linear layers, as a matrix product takes them
        shared: dict[int, str] = {}
        for name, tensor in stand_ins.items():
            first = shared.setdefault(id(tensor), name)
            if name not in self.parameters:
                same = self.parameters.get(first)
                self.parameters[name] = same or tuple(self._new(n) if n > 1 else None for n in tensor.shape)
            self.names.setdefault(id(tensor), name)
            self.followed[id(tensor)] = self.parameters[name]

    def channels(self) -> Channels:
        """What is known after all runs."""
        numbers = {
            Slot(name, dim): tuple(map(self._root, labels))
            for name, dims in self.parameters.items()
            for dim, labels in enumerate(dims)
            if labels is not None
        }
        fixed = {self._root(label) for label in self.fixed}
        made, taken = self.made & numbers.keys(), self.taken & numbers.keys()
        both = {scale: shift for scale, shift in self.shifts.items() if shift in numbers and scale in numbers}
        return Channels(numbers, fixed, made, taken, self.shifts.keys() & numbers.keys(), both)  # type: ignore[arg-type]

    def fix(self, tensors: Iterable[Tensor]) -> None:
        """All channels of these stay."""
        for tensor in tensors:
            for labels in self._of(tensor):
                self._fix(labels)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        result = _shaped(name, args)
        if result is None:
            result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(label is not None for x in inputs for label in self._of(x)):
            return result
        rule = _RULES.get(name) or _RULES.get(name.removesuffix("_"))
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = _pointwise
        if rule is None or not rule(self, args, kwargs, outputs):
            self.fix(inputs)
            for output in outputs:
                self._bind(output, (None,) * output.ndim)
        return result

    def _of(self, x: Tensor) -> tuple[Labels | None, ...]:
        return self.followed.get(id(x), (None,) * x.ndim)

    def _bind(self, x: Tensor, labels: Sequence[Labels | None]) -> None:
        self.followed[id(x)] = tuple(labels)
        self.alive.append(x)

    def _new(self, count: int) -> Labels:
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        return tuple(range(first, first + count))

    def _root(self, label: int) -> int:
        while self.parents[label] != label:
            self.parents[label] = self.parents[self.parents[label]]
            label = self.parents[label]
        return label

    def _fix(self, labels: Labels | None) -> None:
        if labels is not None:
            self.fixed.update(labels)

    def _join(self, *several: Labels | None) -> Labels | None:
        """Channels that are one by one the same; where one side is unknown, the others stay."""
        known = [labels for labels in several if labels is not None]
        if len(known) < len(several):
            for labels in known:
                self._fix(labels)
        for labels in known[1:]:
            if labels is known[0] or labels == known[0]:
                continue
            for a, b in zip(known[0], labels):
                self.parents[self._root(b)] = self._root(a)
        return known[0] if known else None

    def _note_norm(self, args: tuple[Any, ...]) -> None:
        scale, shift = (None if x is None else self._slot(x, 0) for x in args[1:3])
        if scale is not None:
            self.shifts[scale] = shift

    def _slot(self, x: Tensor, dim: int) -> Slot | None:
        return Slot(self.names[id(x)], dim) if id(x) in self.names else None


def _shaped(name: str, args: tuple[Any, ...]) -> Any:
    """What an operation gives without values, or None: torch's own way takes milliseconds with these, nine tenths."""
    if name in ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"):
        return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
    if name == "upsample_bilinear2d" and isinstance(args[1], (list, tuple)):
        return args[0].new_empty(*args[0].shape[:2], *args[1])
    return None


Rule = Callable[[_Follower, tuple[Any, ...], dict[str, Any], list[Tensor]], bool]
"""What an operation does to channels: takes it, its arguments and outputs; whether it was understood."""


def _pointwise(follower: _Follower, args: Any, kwargs: Any, outputs: list[Tensor]) -> bool:
    """Each value of the result from the values at the same place, by broadcasting."""
    inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    for output in outputs:
        labels: list[Labels | None] = []
        for dim in range(-output.ndim, 0):
            size = output.shape[dim]
            beside = [follower._of(x)[dim] for x in inputs if x.ndim >= -dim and x.shape[dim] == size]
            labels.append(follower._join(*beside) if any(beside) else None)
        follower._bind(output, labels)
    return True


def _like(follower: _Follower, args: Any, kwargs: Any, outputs: list[Tensor]) -> bool:
    """A tensor of the same shape."""
    follower._bind(outputs[0], follower._of(args[0]))
    return True


def _spatial(follower: _Follower, args: Any, kwargs: Any, outputs: list[Tensor]) -> bool:
    """Each channel of ``[N, C, H, W]`` by itself: pooling, resizing, padding."""
    x = args[0]
    labels = follower._of(x)
    if x.ndim != 4 or any(labels[2:]):
        return False
    for output in outputs:
        follower._bind(output, (*labels[:2], None, None))
    return True


def _pad(follower: _Follower, args: Any, kwargs: Any, outputs: list[Tensor]) -> bool:
    labels = follower._of(args[0])
    padded = range(len(labels) - len(args[1]) // 2, len(labels))
    if any(labels[dim] and args[1][2 * (len(labels) - 1 - dim) :][:2] != [0, 0] for dim in padded):
        return False
    follower._bind(outputs[0], labels)
    return True


def _convolution(follower: _Follower, args: Any, kwargs: Any, outputs: list[Tensor]) -> bool:
    x, weight, bias, _, _, _, transposed, _, groups = args
    (out,) = outputs
    taking, making = follower._of(weight)[:2][:: 1 if transposed else -1]
    taken = follower._of(x)[1]
    if groups == 1:
        _note(follower.taken, follower._slot(weight, 0 if transposed else 1))
        _note(follower.made, follower._slot(weight, 1 if transposed else 0))
        if taking is not None or taken is not None:
            follower._join(taken, taking)
    elif groups == x.shape[1] == weight.shape[0] and weight.shape[1] == 1 and not transposed:
        making = follower._join(taken, making)  # a channel each
    else:
        return False
    if bias is not None and making is not None:
        follower._join(making, follower._of(bias)[0])
    follower._bind(out, (None, making, *[None] * (out.ndim - 2)))
    return True


def _matrix_product(follower: _Follower, args: Any, kwargs: Any, outputs: list[Tensor]) -> bool:
    """``[L, C_in] · [C_in, C_out]``, and a bias before them."""
    bias = args[0] if len(args) == 3 else None
    a, b = args[-2:]
    (rows, taken), (taking, making) = follower._of(a), follower._of(b)
    if rows is not None:
        return False
    if id(b) in follower.transposed:
        weight = follower.transposed[id(b)]
        _note(follower.taken, Slot(weight, 1))
        _note(follower.made, Slot(weight, 0))
    if taken is not None or taking is not None:
        follower._join(taken, taking)
    if bias is not None and making is not None:
        follower._join(making, follower._of(bias)[-1])
    follower._bind(outputs[0], (None, making))
    return True


def _batch_norm(follower: _Follower, args: Any, kwargs: Any, outputs: list[Tensor]) -> bool:
    """By channel; instance norms come here too, as those of a batch of one."""
    labels = follower._of(args[0])
    own = [x for x in args[1:5] if isinstance(x, Tensor)]
    follower._join(labels[1], *(follower._of(x)[0] for x in own))
    follower._note_norm(args)
    follower._bind(outputs[0], labels)
    return not any(labels[:1] + labels[2:])


def _group_norm(follower: _Follower, args: Any, kwargs: Any, outputs: list[Tensor]) -> bool:
    """Only whole groups can go."""
    labels, groups = follower._of(args[0]), args[6]
    channels = labels[1]
    if channels is None or groups == 1:
        return False
    follower._join(channels, *(follower._of(x)[0] for x in args[1:3] if x is not None))
    size = len(channels) // groups
    for start in range(0, len(channels), size):
        for label in channels[start + 1 : start + size]:
            follower._join((channels[start],), (label,))
    follower._note_norm(args)
    follower._bind(outputs[0], labels)
    return True


def _layer_norm(follower: _Follower, args: Any, kwargs: Any, outputs: list[Tensor]) -> bool:
    labels = follower._of(args[0])
    if any(labels[len(labels) - len(args[1]) :]):
        return False
    follower._bind(outputs[0], labels)
    return True


def _along(follower: _Follower, args: Any, kwargs: Any, outputs: list[Tensor]) -> bool:
    """Of the same shape, made along one dimension that must not be the channels'."""
    labels = follower._of(args[0])
    if labels[args[1]] is not None:
        return False
    follower._bind(outputs[0], labels)
    return True


def _reduction(follower: _Follower, args: Any, kwargs: Any, outputs: list[Tensor]) -> bool:
    labels = follower._of(args[0])
    given = args[1] if len(args) > 1 else None
    if given is None:
        return False
    gone = {dim % len(labels) for dim in ([given] if isinstance(given, int) else given)}
    if not gone or any(labels[dim] for dim in gone):
        return False
    kept = outputs[0].ndim == len(labels)
    left = [None if dim in gone else own for dim, own in enumerate(labels) if kept or dim not in gone]
    for output in outputs:
        follower._bind(output, left)
    return True


def _cat(follower: _Follower, args: Any, kwargs: Any, outputs: list[Tensor]) -> bool:
    tensors = args[0]
    along = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % outputs[0].ndim
    if any(x.ndim != outputs[0].ndim for x in tensors):
        return False
    labels: list[Labels | None] = []
    for dim in range(outputs[0].ndim):
        several = [follower._of(x)[dim] for x in tensors]
        if not any(several):
            labels.append(None)
        elif dim != along:
            labels.append(follower._join(*several))
        else:
            beside: list[int] = []
            for x, own in zip(tensors, several):
                if own is None:
                    own = follower._new(x.shape[dim])
                    follower._fix(own)
                beside.extend(own)
            labels.append(tuple(beside))
    follower._bind(outputs[0], labels)
    return True


def _view(follower: _Follower, args: Any, kwargs: Any, outputs: list[Tensor]) -> bool:
    """Channels stay channels where as many values lie before them as did; not where they are split or merged."""
    (output,), x = outputs, args[0]
    labels: list[Labels | None] = [None] * output.ndim
    for dim, own in enumerate(follower._of(x)):
        if own is None:
            continue
        before = prod(x.shape[:dim])
        found = [i for i, n in enumerate(output.shape) if n == len(own) and prod(output.shape[:i]) == before]
        if not found:
            return False
        labels[found[0]] = own
    follower._bind(output, labels)
    return True


def _repeat(follower: _Follower, args: Any, kwargs: Any, outputs: list[Tensor]) -> bool:
    if any(n != 1 for n in args[1]) or len(args[1]) != args[0].ndim:
        return False
    follower._bind(outputs[0], follower._of(args[0]))
    if id(args[0]) in follower.names:
        follower.names[id(outputs[0])] = follower.names[id(args[0])]
    return True


def _permute(follower: _Follower, args: Any, kwargs: Any, outputs: list[Tensor]) -> bool:
    labels = follower._of(args[0])
    follower._bind(outputs[0], [labels[dim] for dim in args[1]])
    return True


def _transpose(follower: _Follower, args: Any, kwargs: Any, outputs: list[Tensor]) -> bool:
    labels = list(follower._of(args[0]))
    a, b = args[1:3] if len(args) > 1 else (0, 1)
    labels[a], labels[b] = labels[b], labels[a]
    follower._bind(outputs[0], labels)
    if id(args[0]) in follower.names and len(labels) == 2:
        follower.transposed[id(outputs[0])] = follower.names[id(args[0])]
    return True


def _expand(follower: _Follower, args: Any, kwargs: Any, outputs: list[Tensor]) -> bool:
    labels = follower._of(args[0])
    follower._bind(outputs[0], (*[None] * (outputs[0].ndim - len(labels)), *labels))
    return True


def _slice(follower: _Follower, args: Any, kwargs: Any, outputs: list[Tensor]) -> bool:
    """All of the channels, or none of this is understood."""
    labels = follower._of(args[0])
    dim = args[1] if len(args) > 1 else 0
    if labels[dim] is not None and outputs[0].shape[dim] != args[0].shape[dim]:
        return False
    follower._bind(outputs[0], labels)
    return True


def _split(follower: _Follower, args: Any, kwargs: Any, outputs: list[Tensor]) -> bool:
    labels = follower._of(args[0])
    if labels[args[2] if len(args) > 2 else 0] is not None:
        return False
    for output in outputs:
        follower._bind(output, labels)
    return True


def _select(follower: _Follower, args: Any, kwargs: Any, outputs: list[Tensor]) -> bool:
    labels = list(follower._of(args[0]))
    if labels.pop(args[1]) is not None:
        return False
    follower._bind(outputs[0], labels)
    return True


def _note(slots: set[Slot], slot: Slot | None) -> None:
    if slot is not None:
        slots.add(slot)


_RULES: dict[str, Rule] = {
    "convolution": _convolution,
    "addmm": _matrix_product,
    "mm": _matrix_product,
    "native_group_norm": _group_norm,
    "native_layer_norm": _layer_norm,
    "cat": _cat,
    "repeat": _repeat,
    "permute": _permute,
    "transpose": _transpose,
    "t": _transpose,
    "expand": _expand,
    "slice": _slice,
    "select": _select,
    "constant_pad_nd": _pad,
    "hardswish": _pointwise,
}
_BATCH_NORMS = ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training")
_SPATIAL = ("max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d")
_RESIZING = ("upsample_bilinear2d", "upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bicubic2d")
for _names, _rule in (
    ((*_BATCH_NORMS, "_batch_norm_with_update", "_batch_norm_no_update", "cudnn_batch_norm"), _batch_norm),
    ((*_SPATIAL, *_RESIZING, "_upsample_bilinear2d_aa", "replication_pad2d", "reflection_pad2d"), _spatial),
    (("mean", "sum", "amax", "amin", "var", "std", "var_mean", "std_mean"), _reduction),
    (("_softmax", "_safe_softmax", "_log_softmax"), _along),
    (("view", "_unsafe_view", "reshape", "squeeze", "unsqueeze"), _view),
    (("split", "split_with_sizes"), _split),
    (("detach", "alias", "_to_copy", "clone", "contiguous", "empty_like", "zeros_like", "ones_like"), _like),
):
    _RULES |= dict.fromkeys(_names, _rule)
