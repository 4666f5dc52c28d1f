"""Which activation follows which norm, and which norm which convolution: found by running the model, not by its order.

The forward pass runs on the meta device (shapes without values), on stand-ins of parameters and buffers: it costs
milliseconds and changes nothing. The output of each norm is followed by its identity through all that takes it in.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from segzoo._errors import some_of

__all__ = ["ActivationCall", "NormCall", "Trace", "Visit", "is_activation", "trace_activations", "trace_pairs"]

_ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Softplus,
)
# By name, for the classes that timm and others have of their own ("Me": timm's memory-efficient ones).
_ACTIVATION_NAMES = {c.__name__.lower() for c in _ACTIVATIONS} | {"swish", "hardmish", "gelutanh", "quickgelu"}
_ACTIVATION_FUNCTIONS = {c.__name__.lower() for c in _ACTIVATIONS} | {"leaky_relu"}
_DROP_NAMES = {"DropPath", "StochasticDepth", "DropBlock2d", "DropBlock3d"}
# What gives out the values it takes in, or none of them.
_TRANSPARENT_FUNCTIONS = {"contiguous", "to", "clone", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"} | {
    f"dropout{suffix}" for suffix in ("", "_", "1d", "2d", "3d")
}


def is_activation(module: nn.Module) -> bool:
    """Whether the module is an activation that an EvoNorm takes the place of: ReLU and the like, but no gate.

    Examples:
        >>> [is_activation(module) for module in (nn.ReLU6(), nn.SiLU(), nn.Sigmoid(), nn.Identity())]
        [True, True, False, False]
    """
    return isinstance(module, _ACTIVATIONS) or type(module).__name__.removesuffix("Me").lower() in _ACTIVATION_NAMES


def _is_drop(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ in _DROP_NAMES


@dataclass(eq=False)
class Visit:
    """One run of a module's forward."""

    module: nn.Module


@dataclass(eq=False)
class NormCall:
    """One call of a norm (or of whatever is followed), and what took its output.

    Takers are ``"module"`` and ``"function"`` (activations), ``"other"``, or the module itself in ``trace_pairs``.
    """

    norm: nn.Module
    takers: set[str | nn.Module] = field(default_factory=set)

    @property
    def followed(self) -> bool:
        """Whether activations took the output, and nothing else did."""
        return bool(self.takers) and "other" not in self.takers


@dataclass(eq=False)
class ActivationCall:
    """One call of an activation module: in which forward, and of which norm's output (or None)."""

    act: nn.Module
    caller: Visit | None
    source: NormCall | None


@dataclass(eq=False)
class Trace:
    """All calls of norms and activations, in their order."""

    norms: list[NormCall] = field(default_factory=list)
    activations: list[ActivationCall] = field(default_factory=list)
    fed: dict[nn.Module, set[nn.Module | None]] = field(default_factory=dict)  # whose outputs a second module took


def trace_activations(
    model: nn.Module, norms: Sequence[nn.Module], example: Tensor | tuple[Any, ...] | None = None
) -> Trace:
    """Run the model in train and in eval mode, and note what takes the outputs of the norms.

    Where the meta device cannot run the model to all norms, one real forward pass in eval mode is tried. In either case
    parameters, buffers, modes, attributes and the random state are afterwards what they were. What an activation
    overwrote (``inplace``), and what an ``nn.Identity``, a dropout or a copy lie in between of, counts as it should.

    Args:
        model: Any module.
        norms: Those of its modules whose outputs are to be followed.
        example: The input, a tensor or a tuple of positional arguments. Default: ``[2, C, 224, 224]`` with the C of the
            first convolution.

    Raises:
        ValueError: If no pass reached some of the norms; it names them.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.ReLU())
        >>> [call.takers for call in trace_activations(model, [model[1]]).norms]
        [{'module'}, {'module'}]
    """
    tensors = [*model.parameters(), *model.buffers()]
    lazy = next((name for name, p in model.named_parameters() if is_lazy(p)), None)
    if lazy is not None:
        raise ValueError(f"{lazy} has no shape yet: run the model once, to make its lazy modules, and then replace")
    args = _guess(model) if example is None else example if isinstance(example, tuple) else (example,)
    trace, error = Trace(), None

    def attempt(training: bool, real: torch.device | None) -> None:
        nonlocal error
        try:
            recorder = _run(model, norms, args, training, real)
        except Exception as reason:  # whatever a forward may raise: another pass may reach the norms
            error = reason
        else:
            trace.norms += recorder.norms
            trace.activations += recorder.activations

    def unreached() -> list[nn.Module]:
        reached = {call.norm for call in trace.norms}
        return [norm for norm in norms if norm not in reached]

    attempt(training=True, real=None)
    attempt(training=False, real=None)
    if unreached() and not any(t.is_meta for t in tensors):
        attempt(training=False, real=tensors[0].device if tensors else torch.device("cpu"))
    if missing := unreached():
        names = {module: name for name, module in model.named_modules()}
        raise ValueError(
            f"a trial run reached {len(norms) - len(missing)} of {len(norms)} norms, not "
            f"{some_of([names[norm] for norm in missing])}: give example=, an input that runs through them"
        ) from error
    return trace


def trace_pairs(
    model: nn.Module,
    first: Sequence[nn.Module],
    second: Sequence[nn.Module],
    example: Tensor | tuple[Any, ...] | None = None,
) -> list[tuple[nn.Module, nn.Module]]:
    """Those of ``first`` whose output goes into one of ``second`` alone, which takes nothing else; in eval mode.

    Args:
        model: Any module; it stays as it is.
        first: Some of its modules, convolutions.
        second: Others, norms.
        example: The input, a tensor or a tuple of positional arguments. Default: ``[2, C, 224, 224]`` with the C of the
            first convolution.

    Returns:
        The pairs, in the order of ``first``; none, where the model does not run.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Identity(), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8))
        >>> trace_pairs(model, [model[0]], [model[2], model[4]]) == [(model[0], model[2])]
        True
    """
    args = _guess(model) if example is None else example if isinstance(example, tuple) else (example,)
    tensors = [*model.parameters(), *model.buffers()]
    places = (
        [None] if any(t.is_meta for t in tensors) else [None, tensors[0].device if tensors else torch.device("cpu")]
    )
    for real in places:
        try:
            recorder = _run(model, first, args, False, real, second)
        except Exception:  # whatever a forward may raise on the meta device
            continue
        takers: dict[nn.Module, set[str | nn.Module]] = {}
        for call in recorder.norms:
            takers.setdefault(call.norm, set()).update(call.takers)
        alone = {module: next(iter(taken)) for module, taken in takers.items() if len(taken) == 1}
        return [
            (module, norm)
            for module in first
            if isinstance(norm := alone.get(module), nn.Module) and recorder.fed[norm] == {module}
        ]
    return []


def _guess(model: nn.Module) -> tuple[Tensor]:
    conv = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    channels, dtype = (conv.in_channels, conv.weight.dtype) if conv is not None else (3, None)
    said = getattr(model, "in_channels", None)  # the first in the order of modules may not be the first to run
    channels = said if isinstance(said, int) else channels
    return (torch.empty(2, channels, 224, 224, dtype=dtype, device="meta"),)


def _run(
    model: nn.Module,
    norms: Iterable[nn.Module],
    args: tuple[Any, ...],
    training: bool,
    real: torch.device | None,
    second: Iterable[nn.Module] = (),
) -> Trace:
    """One forward pass on the meta device, or on a ``real`` one."""

    def place(x: Tensor) -> Tensor:
        if real is None:
            return x.detach().to("meta")
        return torch.zeros_like(x, device=real) if x.is_meta else x.detach().to(real)

    with _unchanged(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again when the model runs in earnest
        for module in model.modules():
            module.training = training
        recorder = _Recorder(model, norms, second)
        inputs = tree_map_only(Tensor, place, args)
        stand_ins = _stand_ins(model, meta=real is None)
        with recorder:
            output = torch.func.functional_call(model, stand_ins, inputs)
        recorder.take(_tensors(output), "other")
    return recorder.trace


def _stand_ins(model: nn.Module, *, meta: bool) -> dict[str, Tensor]:
    """Copies of what a forward could change: on the meta device of all tensors, else of the buffers."""
    copies: dict[int, Tensor] = {}

    def stand_in(x: Tensor) -> Tensor:
        if not meta:
            return x.clone()
        # A counter keeps a value: a batch norm with momentum=None divides by its own.
        is_counter = x.ndim == 0 and not x.is_floating_point()
        return torch.zeros_like(x, device="cpu") if is_counter else torch.empty_like(x, device="meta")

    named = list(model.named_buffers(remove_duplicate=False))
    if meta:
        named += model.named_parameters(remove_duplicate=False)
    for _, x in named:
        if id(x) not in copies:
            copies[id(x)] = stand_in(x.detach())
    return {name: copies[id(x)] for name, x in named}


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Afterwards every attribute of every module, hooks and modes among them, is what it was before."""
    attributes = [(module.__dict__, dict(module.__dict__)) for module in model.modules()]
    dicts = [(value, dict(value)) for _, saved in attributes for value in saved.values() if isinstance(value, dict)]
    lists = [(value, list(value)) for _, saved in attributes for value in saved.values() if isinstance(value, list)]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for table, before in [*attributes, *dicts]:
            table.clear()
            table.update(before)
        for values, contents in lists:
            values[:] = contents


def _tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class _Recorder(TorchFunctionMode):
    """Sees modules through hooks, and functions as a mode.

    What happens inside a norm, an activation or a dropout does not count, only what goes in and comes out.
    """

    def __init__(self, model: nn.Module, norms: Iterable[nn.Module], second: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self.trace = Trace()
        self.leaves: dict[nn.Module, Callable[[nn.Module, list[Tensor], Any], None]] = {}
        self.visits: list[Visit] = []
        self.depth = 0  # of the leaves we are in
        self.sources: dict[int, NormCall] = {}  # by the id of the tensor that has the norm's output
        self.alive: list[Tensor] = []  # so that no id comes twice
        for module in model.modules():
            if is_activation(module):
                self.leaves[module] = self._activated
            elif _is_drop(module):
                self.leaves[module] = self._dropped
        self.leaves |= dict.fromkeys(norms, self._normed) | dict.fromkeys(second, self._fed)
        for module in model.modules():
            module.register_forward_pre_hook(self._enter, with_kwargs=True)
            module.register_forward_hook(self._leave, with_kwargs=True)

    def take(self, tensors: Iterable[Tensor], taker: str | nn.Module) -> None:
        """Note who took these tensors, those of them that are a norm's output."""
        for x in tensors:
            if id(x) in self.sources:
                self.sources[id(x)].takers.add(taker)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.depth == 0:
            self._called(getattr(func, "__name__", "").partition(".")[0], _tensors((args, kwargs)), result)
        return result

    def _called(self, name: str, inputs: list[Tensor], result: Any) -> None:
        outputs = _tensors(result)
        inputs = [x for x in inputs if id(x) in self.sources]
        if not inputs or not (outputs or name == "__setitem__"):  # a size, a device …: nobody took the values
            return
        if name in _TRANSPARENT_FUNCTIONS:
            self._bind(outputs, self.sources[id(inputs[0])])
            return
        self.take(inputs, "function" if name.removesuffix("_") in _ACTIVATION_FUNCTIONS else "other")
        for x in inputs[:1] if name == "__setitem__" else outputs:
            self.sources.pop(id(x), None)  # overwritten

    def _bind(self, tensors: Iterable[Tensor], source: NormCall) -> None:
        for x in tensors:
            self.sources[id(x)] = source
            self.alive.append(x)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.visits.append(Visit(module))
        self.depth += module in self.leaves

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.visits.pop()
        if module in self.leaves:
            self.depth -= 1
            if self.depth == 0:
                self.leaves[module](module, _tensors((args, kwargs)), output)

    def _normed(self, norm: nn.Module, inputs: list[Tensor], output: Any) -> None:
        self.take(inputs, "other")
        self.trace.norms.append(NormCall(norm))
        self._bind(_tensors(output), self.trace.norms[-1])

    def _fed(self, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        sources = [self.sources.get(id(x)) for x in inputs]
        self.trace.fed.setdefault(module, set()).update(call.norm if call else None for call in sources)
        self.take(inputs, module)
        for x in _tensors(output):
            self.sources.pop(id(x), None)

    def _dropped(self, drop: nn.Module, inputs: list[Tensor], output: Any) -> None:
        for x in inputs:
            if id(x) in self.sources:
                self._bind(_tensors(output), self.sources[id(x)])

    def _activated(self, act: nn.Module, inputs: list[Tensor], output: Any) -> None:
        source = self.sources.get(id(inputs[0])) if inputs else None
        self.take(inputs, "module")
        self.trace.activations.append(ActivationCall(act, self.visits[-1] if self.visits else None, source))
        for x in _tensors(output):
            self.sources.pop(id(x), None)  # overwritten, where the activation is in place
