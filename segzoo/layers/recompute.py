"""Training in less memory: what is cheap to compute again is not kept for the backward pass.

Of what autograd keeps of a segmentation network, convolutions' outputs are the smaller part; the rest follows from them
by normalisation, activation, sums, concatenation, resizing and pooling, which take little time. While the model runs
forward, each such operation is noted with its inputs. Where autograd then asks to keep a tensor that was noted and
whose origins are kept anyway, only the note is kept, and the backward pass runs the noted operations again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["recompute_activations"]

SMALL = 1 << 14
"""Bytes of a tensor that is not worth a note: statistics, γ and β, maps of a few pixels."""
MOST_WORK = 8
"""Bytes that may be written to make a tensor again, for each byte that this saves."""

_BATCH_NORMS = {"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"}
_CHEAP = _BATCH_NORMS | {
    "batch_norm_elemt",
    "native_group_norm",
    "native_layer_norm",
    "hardswish",
    "hardswish_",
    "cat",
    "stack",
    "upsample_bilinear2d",
    "upsample_nearest2d",
    "_upsample_nearest_exact2d",
    "max_pool2d_with_indices",
    "avg_pool2d",
    "constant_pad_nd",
    "replication_pad2d",
    "reflection_pad2d",
    "pixel_shuffle",
    "repeat",
    "roll",
    "_to_copy",
    "_unsafe_view",
}
"""Beside these, everything that torch marks as elementwise, and every view."""


def recompute_activations(model: nn.Module, enable: bool = True) -> nn.Module:
    """Let a model keep less for the backward pass: cheap operations run again there instead.

    For any module: the convolutions', linear layers' and attentions' outputs are kept as ever, what norms,
    activations, sums, concatenations, resizing and pooling make of them is not. Outputs and gradients are the same to
    the last bit, running statistics are updated once, dropout drops once, and neither parameters nor keys change.
    Without gradients (``eval()`` under ``no_grad``), and under ``torch.compile`` and ``torch.export``, nothing is
    different: a compiler chooses by itself what to compute again. Nor is it under ``torch.func``, which forbids it.
    Works with autocast, ``DistributedDataParallel`` (not ``DataParallel``, whose replicas share one forward) and
    double backward.

    Args:
        model: Changed in place; copies of it (``copy.deepcopy``) do the same, unpickled ones do not. Models in models
            may both do it.
        enable: False undoes it.

    Returns:
        The same model.

    Raises:
        TypeError: If ``model`` is no module.
        ValueError: If something else has replaced the ``forward`` of this very object.
        RuntimeError: In the backward pass, as of autograd itself, if a tensor it needs was changed in place meanwhile.

    Source: in the manner of Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016 (arXiv 1604.06174),
    Section 3: results of operations with low computational cost are dropped.

    Examples:
        >>> from segzoo import u2net_lite
        >>> model = recompute_activations(u2net_lite()).train()
        >>> loss = sum(logits.mean() for logits in model(torch.rand(1, 3, 64, 64)))
        >>> loss.backward()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"recompute_activations takes a torch.nn.Module, got {type(model).__name__}")
    own = model.__dict__.get("forward")  # of this object, not of its class
    code = getattr(own, "__func__", None)
    if own is not None and code is not type(model).forward and not hasattr(code, _MARK):
        raise ValueError(f"this {type(model).__name__}'s forward has been replaced already, by {own!r}; do this first")
    if own is not None:
        del model.forward
    if enable:
        model.forward = MethodType(_taking_notes(type(model).forward), model)
    return model


_MARK = "_takes_notes"


def _taking_notes(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A model class's ``forward`` that takes notes while it runs; of no object, so that copies can have it too."""

    @functools.wraps(plain)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # One after the other, as a compiler must not look at the last.
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return plain(self, *args, **kwargs)
        if torch.jit.is_tracing():  # type: ignore[attr-defined]
            return plain(self, *args, **kwargs)
        notes = _Notes()
        with ExitStack() as stack:
            with suppress(RuntimeError):  # within torch.func, which allows no hooks
                stack.enter_context(torch.autograd.graph.saved_tensors_hooks(notes.pack, _unpack))
                stack.callback(notes.storages.clear)  # the graph holds on to its hooks, and they to the notes
                stack.enter_context(notes)
            return plain(self, *args, **kwargs)

    setattr(forward, _MARK, True)
    return forward


class _Kept:
    """A tensor as it was; autograd's own check for changes in place does not see what hooks keep."""

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.version = _version(tensor)

    def get(self) -> Tensor:
        if _version(self.tensor) != self.version:
            raise RuntimeError(
                f"a tensor of shape {list(self.tensor.shape)} that the backward pass needs has been changed in place: "
                f"it is at version {_version(self.tensor)}, expected version {self.version}"
            )
        return self.tensor


class _Step:
    """One noted operation: what to call, on what, and how often its result is asked for."""

    __slots__ = ("args", "func", "in_place", "kwargs", "packs", "users", "values", "view", "waiting", "work")

    def __init__(self, func: Any, args: Any, kwargs: dict[str, Any], work: int) -> None:
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.in_place = func._schema.is_mutable
        self.view = func.is_view or _name(func) == "_unsafe_view"  # shares memory with what it is made from
        self.work = work  # bytes written by it and by all it needs
        self.users = 0
        self.packs = 0
        self.waiting: set[int] = set()
        self.values: Sequence[Tensor] | None = None

    def run(self, made: dict[_Step, Sequence[Tensor]]) -> Sequence[Tensor]:
        """Its results, made again, unless they are there."""
        values = self.values or made.get(self)
        if values is None:
            args = _map(self.args, lambda source: source.get(made) if isinstance(source, _Result) else source.get())
            if self.in_place and not (isinstance(self.args[0], _Result) and self.args[0].step.users == 1):
                args = (args[0].clone(), *args[1:])
            out = self.func(*args, **self.kwargs)
            values = made[self] = (out,) if isinstance(out, Tensor) else out
        return values


class _Result(NamedTuple):
    """One of the outputs of a step."""

    step: _Step
    output: int

    def get(self, made: dict[_Step, Sequence[Tensor]]) -> Tensor:
        return self.step.run(made)[self.output]


class _Note(NamedTuple):
    """What is kept in the place of a tensor."""

    result: _Result
    number: int  # among those kept in the place of outputs of this step
    device: str

    def get(self) -> Tensor:
        """The tensor; its step's results stay until all who wait for them have come, which is mostly at once."""
        step = self.result.step
        with torch.no_grad(), torch.autocast(self.device, enabled=False):
            values = step.run({})
        step.waiting.discard(self.number)
        step.values = values if step.waiting else None
        if not step.waiting:
            step.waiting = set(range(step.packs))
        return values[self.result.output]


def _unpack(packed: _Kept | _Note) -> Tensor:
    return packed.get()


def _map(args: Any, change: Callable[[Any], Any]) -> Any:
    """``args`` with ``change`` done to each tensor, or what stands for one, also in lists."""
    if isinstance(args, (Tensor, _Kept, _Result)):
        return change(args)
    if isinstance(args, (list, tuple)):
        return type(args)(_map(arg, change) for arg in args)
    return args


class _Storage:
    """What is noted of the tensors in one piece of memory: results, by version and place."""

    __slots__ = ("alive", "kept", "results")

    def __init__(self, tensor: Tensor) -> None:
        # A weak reference keeps the address from being given to another storage, so that it can be the key.
        self.alive = StorageWeakRef(tensor.untyped_storage())
        self.kept = False
        self.results: dict[Any, _Result] = {}


class _Notes(TorchDispatchMode):
    """Notes what can be made again while a forward pass runs, and decides what autograd keeps.

    This sits below autograd and autocast: it sees what is really computed, in the type it is computed in.
    """

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, _Storage] = {}
        self.look_again = 64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        in_place = func._schema.is_mutable
        if types or not _cheap(func) or (in_place and not self.known(args[0])):
            return func(*args, **kwargs)
        sources = _map(args, self.source)  # before it runs, as it may change its first argument
        out = func(*args, **kwargs)
        self.note(func, sources, kwargs, out, in_place)
        return out

    def note(self, func: Any, sources: Any, kwargs: dict[str, Any], out: Any, in_place: bool) -> None:
        """Note that ``func`` made ``out``, if that is worth it."""
        outputs = (out,) if isinstance(out, Tensor) else out
        size = sum(_bytes(output) for output in outputs)
        if size < SMALL or any(output.layout is not torch.strided for output in outputs):
            return
        steps = [source.step for source in _sources(sources) if isinstance(source, _Result)]
        work = sum(step.work for step in steps) + (0 if func.is_view else size)
        if work > MOST_WORK * size:
            return
        if _name(func) in _BATCH_NORMS and sources[5]:  # the running statistics are not to be updated again
            sources = (*sources[:3], None, None, *sources[5:])
        step = _Step(func, sources, kwargs, work)
        for source in steps:
            source.users += 1
        for index, output in enumerate(outputs):
            if _bytes(output) >= SMALL:
                # The version counts changes in place; this one is counted only after we return.
                self.storage(output).results[_place(output, int(in_place))] = _Result(step, index)
        self.forget_the_freed()

    def pack(self, tensor: Tensor) -> _Kept | _Note:
        """What autograd shall keep of a tensor that it will need."""
        if _bytes(tensor) < SMALL or tensor.layout is not torch.strided:
            return _Kept(tensor)
        result = self.result(tensor)
        if result is not None and torch.amp.is_autocast_available(tensor.device.type):
            origins = list({id(kept): kept for kept in _origins(result)}.values())
            new = [kept.tensor for kept in origins if _bytes(kept.tensor) >= SMALL and not self.kept(kept.tensor)]
            if 2 * sum(map(_bytes, new)) <= _bytes(tensor):
                for kept in origins:
                    kept.tensor = kept.tensor.detach()  # what is kept is its values, not what made it
                for origin in new:
                    self.storage(origin).kept = True
                step = result.step
                step.users += 1
                step.waiting.add(step.packs)
                step.packs += 1
                return _Note(result, step.packs - 1, tensor.device.type)
        storage = self.storage(tensor)
        storage.kept = True
        storage.results.clear()
        return _Kept(tensor)

    def source(self, tensor: Tensor) -> _Result | _Kept:
        return self.result(tensor) or _Kept(tensor)

    def result(self, tensor: Tensor) -> _Result | None:
        if tensor.layout is not torch.strided:
            return None
        storage = self.storages.get(tensor.untyped_storage()._cdata)
        return storage.results.get(_place(tensor)) if storage and storage.results else None

    def kept(self, tensor: Tensor) -> bool:
        """Whether autograd keeps its memory already."""
        storage = self.storages.get(tensor.untyped_storage()._cdata)
        return storage is not None and storage.kept

    def known(self, tensor: Tensor) -> bool:
        """Whether a tensor that is about to be changed in place can be made again, apart from all else."""
        result = self.result(tensor)
        return result is not None and not result.step.view

    def storage(self, tensor: Tensor) -> _Storage:
        key = tensor.untyped_storage()._cdata
        if key not in self.storages:
            self.storages[key] = _Storage(tensor)
        return self.storages[key]

    def forget_the_freed(self) -> None:
        """Let go of what only tensors that are gone were noted for, now and then."""
        if len(self.storages) >= self.look_again:
            for key in [key for key, storage in self.storages.items() if storage.alive.expired()]:
                del self.storages[key]
            self.look_again = 2 * len(self.storages) + 64


@functools.cache
def _cheap(func: Any) -> bool:
    """Whether an operation takes little time, gives the same each time, and changes nothing but its first argument."""
    if torch.Tag.nondeterministic_seeded in func.tags or (func._schema.is_mutable and not _name(func).endswith("_")):
        return False
    if func is torch.ops.aten.detach.default:  # one for each tensor that autograd keeps: nothing is made by it
        return False
    return torch.Tag.pointwise in func.tags or func.is_view or _name(func) in _CHEAP


def _name(func: Any) -> str:
    name: str = func._schema.name
    return name.removeprefix("aten::")


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _version(tensor: Tensor) -> int:
    """How often it has been changed in place; tensors of the inference mode do not count it."""
    return 0 if tensor.is_inference() else tensor._version


def _place(tensor: Tensor, later: int = 0) -> Any:
    """Which part of its storage a tensor is, and at which version."""
    return _version(tensor) + later, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _sources(args: Any) -> Iterator[_Result | _Kept]:
    if isinstance(args, (_Result, _Kept)):
        yield args
    elif isinstance(args, (list, tuple)):
        for arg in args:
            yield from _sources(arg)


def _origins(result: _Result) -> Iterator[_Kept]:
    """The tensors that a result is made from."""
    for source in _sources(result.step.args):
        if isinstance(source, _Kept):
            yield source
        else:
            yield from _origins(source)
