"""Leaving out activations after certain norms, and only there: a model often has one ReLU for several places."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from segzoo.layers.trace import ActivationCall, Trace, Visit

__all__ = ["Edit", "SharedActivation", "plan_leaving_out"]


class SharedActivation(nn.Module):
    """An activation that is called several times in its owner's forward, and skipped in some of them.

    Args:
        act: The activation.
        skip: For each call in one forward of the owner, in order, whether it gives its input as it is; after the last
            it begins anew.

    ``restart_before`` each forward of the owner, so that one which broke off does no harm. Calls are counted for each
    thread by itself. ``torch.compile`` and ``torch.export(strict=False)`` see a constant.

    Examples:
        >>> act = SharedActivation(nn.ReLU(), skip=(True, False))
        >>> [act(torch.tensor(-1.0)).item() for _ in range(4)]
        [-1.0, 0.0, -1.0, 0.0]
    """

    def __init__(self, act: nn.Module, skip: Sequence[bool]) -> None:
        super().__init__()
        self.act = act
        self.skip = tuple(skip)
        self.calls: dict[int, int] = {}

    def restart(self) -> None:
        """The next call is the first."""
        self.calls.pop(_thread(), None)

    def restart_before(self, owner: nn.Module, path: str) -> None:
        """Restart before each forward of ``owner``, whose submodule ``path`` this is."""
        owner.register_forward_pre_hook(partial(_restart, tuple(path.split("."))))

    def forward(self, x: Tensor) -> Tensor:
        """``x``, activated unless this call is to be skipped."""
        call = self.calls.pop(_thread(), 0)
        if call + 1 < len(self.skip):
            self.calls[_thread()] = call + 1
        out: Tensor = x if self.skip[call] else self.act(x)
        return out

    def extra_repr(self) -> str:
        """Which calls are skipped."""
        return f"skip={self.skip}"


def _thread() -> int:
    # A graph that is being captured cannot ask for it, and is captured by one thread.
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


def _restart(path: tuple[str, ...], owner: nn.Module, args: Any) -> None:
    # By name, so that it holds for copies of the owner; what someone has put there since may be no SharedActivation.
    module = owner
    for name in path:
        module = getattr(module, name)
    if isinstance(module, SharedActivation):
        module.restart()


class Edit(NamedTuple):
    """One module to be put in the place of another: ``path`` below ``owner``, which is where it is called."""

    owner: nn.Module
    path: str
    successor: nn.Module

    def apply(self) -> None:
        """Do it."""
        parent, _, name = self.path.rpartition(".")
        self.owner.get_submodule(parent)._modules[name] = self.successor
        if isinstance(self.successor, SharedActivation):
            self.successor.restart_before(self.owner, self.path)


def plan_leaving_out(trace: Trace) -> tuple[set[nn.Module], list[Edit]]:
    """The norms whose activation can be left out, and the edits that do it for activations that are modules.

    A norm counts if activations, and only they, took its output in every call. It does not where leaving out cannot be
    told from keeping: an activation that has parameters and serves elsewhere too, is no submodule of what calls it, or
    is called in another order each time.

    Examples:
        >>> from segzoo.layers.trace import trace_activations
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU())
        >>> norms, edits = plan_leaving_out(trace_activations(model, [model[1]]))
        >>> len(norms), edits[0].path, edits[0].successor
        (1, '2', Identity())
    """
    followed = {call.norm for call in trace.norms} - {call.norm for call in trace.norms if not call.followed}
    calls: dict[nn.Module, list[ActivationCall]] = {}
    for call in trace.activations:
        calls.setdefault(call.act, []).append(call)
    while True:
        edits: list[Edit] = []
        impossible: set[nn.Module] = set()
        for act, its_calls in calls.items():
            its_norms = {call.source.norm for call in its_calls if call.source} & followed
            its_edits = _edits(act, its_calls, its_norms) if its_norms else []
            if its_edits is None:
                impossible |= its_norms
            else:
                edits += its_edits
        if not impossible:
            return followed, edits
        followed -= impossible


def _edits(act: nn.Module, calls: Iterable[ActivationCall], norms: set[nn.Module]) -> list[Edit] | None:
    """What skips the activation after these norms and nowhere else, or None where nothing does."""
    visits: dict[Visit, list[bool]] = {}
    for call in calls:
        if call.caller is not None:
            visits.setdefault(call.caller, []).append(call.source is not None and call.source.norm in norms)
    claims: dict[tuple[nn.Module, str], list[tuple[nn.Module, str, list[bool]]]] = {}
    for owner in dict.fromkeys(visit.module for visit in visits):
        runs = [skips for visit, skips in visits.items() if visit.module is owner]
        skips = max(runs, key=len)
        paths = [path for path, module in owner.named_modules(remove_duplicate=False) if module is act]
        paths = [path for path in paths if "." not in path] or paths
        if any(skips[: len(run)] != run for run in runs) or (any(skips) and not paths):
            return None
        for path in paths:
            parent, _, name = path.rpartition(".")
            claims.setdefault((owner.get_submodule(parent), name), []).append((owner, path, skips))

    edits: list[Edit] = []
    shared: dict[nn.Module, SharedActivation] = {}
    has_keys = bool(act.state_dict())  # they would move to the wrapper's child
    for claimants in claims.values():
        owner, path, skips = claimants[0]
        wanted = {skip for _, _, its_skips in claimants for skip in its_skips}
        if wanted == {True}:
            edits.append(Edit(owner, path, nn.Identity()))
        elif wanted == {True, False}:
            if len(claimants) > 1 or has_keys:
                return None
            edits.append(Edit(owner, path, shared.setdefault(owner, SharedActivation(act, skips))))
    return edits
