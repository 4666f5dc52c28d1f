"""The state dict inside what a training saved: under which entry, behind which prefixes, beside what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from segzoo._errors import some_of

__all__ = ["Contents", "unwrap"]

StateDict = dict[str, Tensor]

_PLAIN = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "params", "weights")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema_weights", "params_ema", "ema")

# What DistributedDataParallel, torch.compile, DeepSpeed and a LightningModule put before every key.
_PREFIXES = ("module.", "_orig_mod.", "_forward_module.", "model.", "net.", "network.")
# What is beside the network in such a module and in an averaged one: losses, metrics, a picture's mean, a second copy.
_ASIDE = re.compile(
    r".*(?:loss|criterion|metric).*|(?:train|valid|val|test)_.*|(?:.*_)?ema(?:_.*)?|(?:\w+_)?(?:mean|std)|n_averaged"
)
_DEEPEST = 8  # wrappers; a file may hold itself
_LOSSES = re.compile(r"(?:\w+_)?(?:loss|losses|criterion|metrics?)(?:_fn|_fct|_\d+)?")
_COUNTS = ("total_ops", "total_params")  # profilers leave these in every module


# What the keys of networks begin with themselves, alone where there is no head.
_PARTS = {"encoder", "decoder", "backbone", "segformer", "features", "body", "stages", "layers", "blocks", "0"}


class Contents(NamedTuple):
    """What a file holds.

    Args:
        state: Names to tensors, in the keys of whoever saved them.
        notes: What was taken and what was left, a phrase each.
        dropped: {key: why}, of what is no part of the network.
    """

    state: StateDict
    notes: tuple[str, ...] = ()
    dropped: Mapping[str, str] = {}


def unwrap(loaded: object, origin: str) -> Contents:
    """The state dict in what was loaded, without wrappers, prefixes and leftovers.

    Where several are there, plain weights are taken and not averaged ones (EMA).

    Args:
        loaded: A state dict, or a training's state with one in it, as ``{"epoch": 3, "state_dict": …}``.
        origin: What messages call it.

    Raises:
        ValueError: If there is none, or several of which no name says which one is meant.

    Examples:
        >>> import torch
        >>> unwrap({"epoch": 3, "model": {"module.fc.bias": torch.zeros(2)}}, "a.pth").state
        {'fc.bias': tensor([0., 0.])}
    """
    notes: list[str] = []
    value = loaded
    for _ in range(_DEEPEST):
        if _is_state(value):
            break
        if not isinstance(value, Mapping) or not value:
            names = ", ".join(map(repr, _PLAIN))
            raise ValueError(f"{origin} holds no state dict: names to tensors, bare or under one of {names}")
        entry, others = _entry(value, origin)
        kind = ", averaged weights: there are no plain ones" if entry in _AVERAGED else ""
        left = f", not {', '.join(map(repr, others))}" if others else ""
        notes.append(f"its entry {entry!r} was taken{kind}{left}")
        value = value[entry]
    else:
        raise ValueError(f"{origin} holds a state dict, if any, under {_DEEPEST} names or more: save it alone")
    items: Any = dict.items(value)  # type: ignore[arg-type]
    state = {key: Tensor.detach(tensor) for key, tensor in items if isinstance(tensor, Tensor)}
    _refuse_strange(state, origin)
    dropped: dict[str, str] = {}
    state = _without_prefixes(state, dropped, notes)
    for key in list(state):
        if _LOSSES.fullmatch(key.partition(".")[0]) or key.rpartition(".")[2] in _COUNTS:
            dropped[key] = "of a loss, a metric or a profiler, not of the network"
    kept = {key: tensor for key, tensor in state.items() if key not in dropped}
    if dropped:
        notes.append(f"{len(dropped)} tensors beside the network were left out ({some_of(list(dropped))})")
    return Contents(kept, tuple(notes), dropped)


def _is_state(value: Any) -> bool:
    """Names to tensors; a module's extra state, which may be anything, does not count."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False
    values = [tensor for key, tensor in value.items() if not key.endswith("_extra_state")]
    return bool(values) and all(isinstance(tensor, Tensor) for tensor in values)


def _refuse_strange(state: StateDict, origin: str) -> None:
    """Raise ValueError for tensors that are no plain numbers in memory."""
    strange = [
        key
        for key, value in state.items()
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized
    ]
    if strange:
        raise ValueError(
            f"{origin} has {len(strange)} tensors without plain values, sparse, quantised or of the meta device "
            f"({some_of(strange)}): save the state dict of the float model"
        )


def _holds_state(value: Any, depth: int = 3, seen: set[int] | None = None) -> bool:
    """Whether there is a state dict in it; each thing is looked at once, though a file may hold it many times."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return False
    seen.add(id(value))
    if _is_state(value):
        return True
    deeper = depth > 0 and isinstance(value, Mapping)
    return deeper and any(_holds_state(each, depth - 1, seen) for each in value.values())


def _entry(value: Mapping[Any, Any], origin: str) -> tuple[Any, list[str]]:
    """The entry to take, and the others with weights that are not."""
    known = [name for name in (*_PLAIN, *_AVERAGED) if _holds_state(value.get(name))]
    if known:
        return known[0], known[1:]
    networks = [name for name, each in value.items() if _is_state(each) and any(t.ndim > 1 for t in _tensors(each))]
    if len(networks) == 1:
        return networks[0], []
    if networks:
        raise ValueError(
            f"{origin} holds several state dicts, {some_of([repr(name) for name in networks])}: "
            "save the one that is meant alone"
        )
    entries = some_of([repr(name) for name in value])
    raise ValueError(
        f"{origin} holds no state dict: names to tensors, bare or under one of {', '.join(map(repr, _PLAIN))}; "
        f"it has {entries}"
    )


def _tensors(state: Mapping[str, Any]) -> list[Tensor]:
    return [value for value in state.values() if isinstance(value, Tensor)]


def _without_prefixes(state: StateDict, dropped: dict[str, str], notes: list[str]) -> StateDict:
    """Without what is before every key; what is beside the network in the same module goes to ``dropped``."""
    while True:
        for prefix in _PREFIXES:
            aside = [key for key in state if not key.startswith(prefix)]
            if len(aside) < len(state) and all(_ASIDE.fullmatch(key.partition(".")[0]) for key in aside):
                break
        else:
            first = {key.partition(".")[0] for key in state if not _ASIDE.fullmatch(key.partition(".")[0])}
            prefix = f"{next(iter(first), '')}."  # a LightningModule's own name for its network
            aside = [key for key in state if not key.startswith(prefix)]
            below = {key.removeprefix(prefix).partition(".")[0] for key in state if key not in aside}
            whole = all(key.removeprefix(prefix).count(".") for key in state if key not in aside) and len(below) > 1
            if len(first) != 1 or first & _PARTS or not whole:
                return state
        dropped |= dict.fromkeys(aside, "beside the network in the module that was saved")
        notes.append(f"the prefix {prefix!r} was taken off")
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
