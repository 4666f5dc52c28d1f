"""Another norm in a finished model, whoever wrote it."""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from segzoo._errors import some_of
from segzoo.layers.leave_out import Edit, SharedActivation, plan_leaving_out
from segzoo.layers.norm import BatchNorm, FrozenBatchNorm, Norm, SyncBatchNorm, get_norm
from segzoo.layers.trace import is_activation, trace_activations

__all__ = ["replace_norm"]

logger = logging.getLogger(__name__)


def replace_norm(
    model: nn.Module,
    norm: Norm,
    *,
    evo_everywhere: bool = False,
    example: Tensor | tuple[Any, ...] | None = None,
) -> nn.Module:
    """Replace every 2-D batch norm of a model, in place; an EvoNorm also takes the place of the activation after it.

    Batch norms are torch's, synchronised and frozen ones too, torchvision's, timm's (what they hold of dropout and
    activation follows the new norm) and ours; other norms stay. γ and β stay as they are, the same parameters, and so
    do the statistics, eps and momentum where the new norm is a batch norm by name. All other state-dict keys stay, but
    those of a PReLU that is left out.

    What directly follows each norm is found by a trial run on the meta device (``segzoo.layers.trace``), for EvoNorms
    only. There an activation module is left out (``nn.Identity``), or skipped where it serves elsewhere too, as after
    a residual sum (``segzoo.layers.leave_out.SharedActivation``). Where none follows, or something else takes the
    norm's output as well, the EvoNorm is γ and β only. An activation written as a function stays, with a warning.

    Args:
        model: Any module; one that is a norm itself is returned replaced.
        norm: See ``segzoo.layers.get_norm``. A callable decides by itself what it gives where no activation follows;
            None takes the norms out, γ and β with them.
        evo_everywhere: The full EvoNorm also where no activation follows.
        example: An input for the trial run, a tensor or a tuple of positional arguments, for models that pictures
            ``[2, C, 224, 224]`` do not fit.

    Returns:
        The model.

    Raises:
        ValueError: For an unknown norm; for a batch norm that is lazy, or has no statistics to freeze; if the trial run
            did not reach some norms. The model is then unchanged.

    Warns:
        UserWarning: For activations that are written as functions.

    Source: Liu et al., "Evolving Normalization-Activation Layers", 2020 (arXiv 2004.02967).

    Examples:
        >>> replace_norm(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()), "evo_s0")
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), bias=False)
          (1): EvoNormS0(8, eps=1e-05, act=True)
          (2): Identity()
        )
    """
    if norm is None or isinstance(norm, str) or not callable(norm):
        get_norm(norm, 1)  # refuses what it does not know, for a model without norms too
    names = _batch_norms(model)
    for old, name in names.items():
        _refuse(old, name, norm)
    new = {old: _successor(model, old, norm) for old in names}
    if isinstance(norm, str):
        new = {old: successor for old, successor in new.items() if type(successor) is not type(old)}

    edits: list[Edit] = []
    if any(_includes_act(successor) for successor in new.values()):
        followed = {old for old in new if is_activation(_own_activation(old))}
        bare = [old for old in new if isinstance(_own_activation(old), nn.Identity)]
        if bare and model not in new:
            trace = trace_activations(model, bare, example)
            before_activations, edits = plan_leaving_out(trace)
            followed |= before_activations
            by_function = {call.norm for call in trace.norms if "function" in call.takers} & before_activations
            if by_function:
                warnings.warn(
                    f"the activation after {some_of([names[old] for old in bare if old in by_function])} is written as "
                    "a function and stays, after an EvoNorm that has its own: write it as a module to have it left out",
                    UserWarning,
                    stacklevel=2,
                )
        if not evo_everywhere:
            new |= {old: _successor(model, old, norm, act=False) for old in new if old not in followed}

    for old, successor in new.items():
        _carry_over(old, successor, by_name=isinstance(norm, str))
        _attach_activation(old, successor)
    _report(model, norm, new, edits, already=len(names) - len(new))
    for parent in list(model.modules()):
        parent._modules.update({name: new[m] for name, m in parent._modules.items() if m is not None and m in new})
    for edit in edits:
        edit.apply()
    return new.get(model, model)


def _is_batch_norm(module: nn.Module) -> bool:
    """Also frozen ones of torchvision, timm and others: by name, as importing those to ask would be slow."""
    if isinstance(module, (nn.BatchNorm2d, nn.LazyBatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm)):
        return True
    tensors = (getattr(module, name, None) for name in ("weight", "bias", "running_mean", "running_var"))
    return any("FrozenBatchNorm" in c.__name__ for c in type(module).__mro__) and all(
        isinstance(x, Tensor) for x in tensors
    )


def _batch_norms(model: nn.Module) -> dict[nn.Module, str]:
    """All batch norms and their (first) names; none that is part of another."""
    found: dict[nn.Module, str] = {}
    seen: set[nn.Module] = set()

    def visit(module: nn.Module, name: str) -> None:
        if module in seen:
            return
        seen.add(module)
        if _is_batch_norm(module):
            found[module] = name or "the model"
            return
        for child_name, child in module.named_children():
            visit(child, f"{name}.{child_name}" if name else child_name)

    visit(model, "")
    return found


def _refuse(old: nn.Module, name: str, norm: Norm) -> None:
    if isinstance(old, nn.LazyBatchNorm2d):
        raise ValueError(f"{name} is a lazy batch norm without channels yet: run the model once, and then replace it")
    if norm == "frozen_batch" and old.running_mean is None:
        raise ValueError(f"{name} has no running statistics to freeze (track_running_stats=False)")


def _successor(model: nn.Module, old: nn.Module, norm: Norm, *, act: bool = True) -> nn.Module:
    """A fresh norm of the same channels, device, dtype and mode."""
    own = (x for x in (old.weight, old.running_mean) if isinstance(x, Tensor))
    reference = next(chain(own, model.parameters()), torch.empty(0))
    channels = int(getattr(old, "num_features", 0)) or len(reference)
    with torch.device(reference.device):
        successor = get_norm(norm, channels, act=act)
    if not isinstance(successor, nn.Module):
        raise TypeError(f"norm must give a module for a number of channels, not {type(successor).__name__}")
    return successor.to(reference.device, reference.dtype).train(old.training)


def _includes_act(norm: nn.Module) -> bool:
    return bool(getattr(norm, "includes_act", False))


def _own_activation(norm: nn.Module) -> nn.Module:
    """The activation that a norm of timm's holds, an identity for all others."""
    act = getattr(norm, "act", None)
    return act if isinstance(act, nn.Module) else nn.Identity()


def _carry_over(old: nn.Module, new: nn.Module, *, by_name: bool) -> None:
    """γ and β, and between batch norms the statistics and, where the new one was asked for by name, the options."""
    for name in ("weight", "bias"):
        given, fresh = getattr(old, name, None), getattr(new, name, None)
        if not (isinstance(given, Tensor) and isinstance(fresh, Tensor) and given.shape == fresh.shape):
            continue
        if name in new._buffers:
            setattr(new, name, given.detach().clone())
        else:  # the same parameter, so that optimizers keep it; what was frozen by being a buffer may train now
            setattr(new, name, given if isinstance(given, nn.Parameter) else nn.Parameter(given.detach().clone()))
    if isinstance(old.weight, nn.Parameter) and not old.weight.requires_grad:
        new.requires_grad_(False)  # what was frozen stays so, what is new in it too
    if all(new._buffers.get(name) is not None for name in ("running_mean", "running_var")):
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            if name in new._buffers and isinstance(getattr(old, name, None), Tensor):
                setattr(new, name, getattr(old, name))
    if by_name and isinstance(new, (BatchNorm, SyncBatchNorm, FrozenBatchNorm)):
        new.eps = getattr(old, "eps", new.eps)
    if by_name and isinstance(new, (BatchNorm, SyncBatchNorm)):
        _carry_options(old, new)


def _carry_options(old: nn.Module, new: BatchNorm | SyncBatchNorm) -> None:
    """What may be off in the old batch norm is off in the new one: γ, β, statistics."""
    for name in ("momentum", "track_running_stats", "process_group"):
        if hasattr(old, name) and hasattr(new, name):
            setattr(new, name, getattr(old, name))
    new.affine = old.weight is not None
    for name in ("weight", "bias", "running_mean", "running_var"):
        if getattr(old, name) is None:
            setattr(new, name, None)
    if old.running_mean is None:
        new.num_batches_tracked = None


def _attach_activation(old: nn.Module, new: nn.Module) -> None:
    """Let the dropout and the activation that a norm of timm's holds follow its successor, under the same names."""
    act = getattr(old, "act", None)
    if not isinstance(act, nn.Module):
        return
    drop = getattr(old, "drop", None)
    takes_over = _includes_act(new) and is_activation(act)
    held = {"drop": drop if isinstance(drop, nn.Module) else nn.Identity(), "act": nn.Identity() if takes_over else act}
    calls_them = isinstance(getattr(new, "act", None), nn.Module)  # a norm of timm's again
    for name, module in held.items():
        if calls_them or not hasattr(new, name) or not isinstance(module, nn.Identity):
            setattr(new, name, module)
    if not calls_them and not all(isinstance(module, nn.Identity) for module in held.values()):
        new.register_forward_hook(_drop_and_activate)


def _drop_and_activate(norm: nn.Module, args: Any, output: Tensor) -> Tensor:
    for module in (norm.drop, norm.act):
        if isinstance(module, nn.Module):  # an EvoNorm's act is a bool
            output = module(output)
    return output


def _report(model: nn.Module, norm: Norm, new: dict[nn.Module, nn.Module], edits: list[Edit], *, already: int) -> None:
    """One line in the log."""
    name = norm if isinstance(norm, str) else getattr(norm, "__name__", repr(norm))
    affine_only = sum(
        _includes_act(successor) and getattr(successor, "act", None) is False for successor in new.values()
    )
    lost = sum(getattr(successor, "weight", None) is None for successor in new.values())
    own = sum(_includes_act(successor) and is_activation(_own_activation(old)) for old, successor in new.items())
    acts = {edit.successor for edit in edits}
    left_out = own + sum(sum(act.skip) if isinstance(act, SharedActivation) else 1 for act in acts)
    others = Counter(
        type(module).__name__
        for module in model.modules()
        if re.search(r"Norm(\dd)?$", type(module).__name__)
        and not _is_batch_norm(module)
        and not any(module.children())
    )
    notes = [
        f"replaced {len(new)} norms by {name}" + (f" ({affine_only} of them γ and β only)" if affine_only else ""),
        f"left out {left_out} activations" if left_out else "",
        f"γ and β of {lost} norms are lost" if lost else "",
        f"skipped {already} that were {name} already" if already else "",
        f"skipped {', '.join(f'{count} {kind}' for kind, count in others.items())}" if others else "",
    ]
    logger.info("; ".join(filter(None, notes)))
