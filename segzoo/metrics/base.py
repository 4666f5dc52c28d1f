"""What all metrics share: state that adds up exactly, over batches, processes and checkpoints."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from segzoo._errors import some_of

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Metric", "exact_mean", "fixed", "fixed_mean", "fixed_zeros"]


class Metric(ABC):
    """Something measured over many pictures: ``update`` with some, as often as you like, then ``compute``.

    The state is of two kinds. Counts are int64 tensors that add up; rows are float64 tensors ``[pictures, …]``, a row
    for each picture, that are put one after the other. Neither is rounded on the way, so that it does not matter how
    pictures are dealt to batches, metrics or processes: `merge` is associative and `sync` gives the same digits as one
    process that saw everything. No picture is kept.
    """

    def __init__(self, **settings: Any) -> None:
        """``settings`` are what two metrics must have in common to be merged; they go into `state_dict`.

        They are plain values. A subclass sets what its `_start` needs before it comes here.
        """
        self._settings = settings
        self._counts: dict[str, Tensor] = {}
        self._rows: dict[str, list[Tensor]] = {}
        self._synced = False
        self.reset()

    @abstractmethod
    def update(self, prediction: Any, target: Any) -> None:
        """Take in a picture or a batch of them."""

    @abstractmethod
    def compute(self) -> dict[str, Any]:
        """The values over all pictures so far; NaN where there are none. The state stays as it is."""

    @abstractmethod
    def _start(self) -> tuple[dict[str, Tensor], dict[str, int | None]]:
        """The counts at the start, and the rows: how many values each has, None for one without a dimension."""

    def reset(self) -> None:
        """Forget all pictures."""
        self._counts, widths = self._start()
        self._rows = {
            name: [torch.zeros((0,) if width is None else (0, width), dtype=torch.float64, device="cpu")]
            for name, width in widths.items()
        }
        self._synced = False

    def merge(self, other: Self) -> Self:
        """Take in what ``other`` has seen; it stays as it is.

        Args:
            other: A metric of the same class with the same settings.

        Returns:
            This metric.

        Raises:
            ValueError: Class or settings differ.
            RuntimeError: One of the two holds the sum of all processes already.
        """
        if type(other) is not type(self):
            raise ValueError(f"{type(self).__name__} merges with its like, got {type(other).__name__}")
        self._same_settings(other._settings, "the metric to merge")
        self._open_for("merge")
        if other._synced:
            raise RuntimeError("the metric to merge holds what all processes have seen, this one's pictures among them")
        for name, count in other._counts.items():
            self._counts[name] = self._counts[name] + count.to(self._counts[name].device)
        for name, rows in other._rows.items():
            self._rows[name] += list(rows)
        return self

    def sync(self, group: dist.ProcessGroup | None = None) -> Self:
        """Make this the metric of what all processes have seen together, in every one of them.

        Each process of the group has to call it. How many pictures each has seen does not matter, nor that some have
        seen none; a picture that a sampler deals twice counts twice. Afterwards the metric takes nothing more in until
        `reset`, as it would be counted again by the next ``sync``; a second call changes nothing. Where
        ``torch.distributed`` is not initialised, nothing happens.

        Args:
            group: The processes, all by default. ``gloo`` and ``nccl`` work.

        Returns:
            This metric, for ``metric.sync().compute()``.

        Raises:
            ValueError: The processes' metrics have different settings.
        """
        if self._synced or not (dist.is_available() and dist.is_initialized()):
            return self
        mine = repr(self)
        everyone: list[str] = [""] * dist.get_world_size(group)
        dist.all_gather_object(everyone, mine, group=group)
        for rank, other in enumerate(everyone):
            if other != mine:
                raise ValueError(f"process {rank} has {other}, this one has {mine}: all need the same settings")
        nccl = dist.get_backend(group) == "nccl"
        device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
        counts, rows = {}, {}
        for name, count in self._counts.items():
            total = count.to(device, copy=True)
            dist.all_reduce(total, group=group)
            counts[name] = total.to(count.device)
        for name, parts in self._rows.items():
            rows[name] = [_gathered(torch.cat([part.cpu() for part in parts]).to(device), group).cpu()]
        self._counts, self._rows, self._synced = counts, rows, True
        return self

    def state_dict(self) -> dict[str, Any]:
        """Settings and state, of tensors and plain values: ``torch.load(…, weights_only=True)`` brings it back."""
        return {
            "settings": dict(self._settings),
            "counts": {name: count.cpu().clone() for name, count in self._counts.items()},
            "rows": {name: torch.cat([part.cpu() for part in rows]) for name, rows in self._rows.items()},
            "synced": self._synced,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: It was taken from a metric with other settings, or is none.
        """
        expected = {"settings", "counts", "rows", "synced"}
        if not isinstance(state, Mapping) or set(state) != expected:
            keys = some_of([str(key) for key in state]) if isinstance(state, Mapping) else type(state).__name__
            wanted = ", ".join(sorted(expected))
            raise ValueError(f"this is no state of a metric: it has {keys or 'nothing'}, expected {wanted}")
        self._same_settings(state["settings"], "the state to load")
        counts, widths = self._start()
        shapes = {name: (torch.int64, count.shape) for name, count in counts.items()}
        rows = {name: (torch.float64, () if width is None else (width,)) for name, width in widths.items()}
        fits = set(state["counts"]) == set(shapes) and set(state["rows"]) == set(rows)
        fits = fits and all(_is(state["counts"][name], *kind) for name, kind in shapes.items())
        if not fits or not all(_is(state["rows"][name], *kind, rows=True) for name, kind in rows.items()):
            raise ValueError(f"this is the state of another metric than {type(self).__name__}")
        self._counts = {name: state["counts"][name].to(count.device, copy=True) for name, count in counts.items()}
        self._rows = {name: [state["rows"][name].clone()] for name in widths}
        self._synced = bool(state["synced"])

    def _row(self, name: str) -> Tensor:
        """The rows of this name, of all pictures, on the CPU."""
        self._rows[name] = [torch.cat([part.cpu() for part in self._rows[name]])]
        return self._rows[name][0]

    def _open_for(self, what: str) -> None:
        if self._synced:
            raise RuntimeError(f"this metric holds what all processes have seen: reset() it before {what}()")

    def _same_settings(self, other: Mapping[str, Any], where: str) -> None:
        for name, mine in self._settings.items():
            if name not in other or other[name] != mine:
                theirs = repr(other[name]) if name in other else "none"
                raise ValueError(f"{where} has {name} {theirs}, this {type(self).__name__} has {mine!r}")

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self._settings.items())
        return f"{type(self).__name__}({settings})"


def _is(value: object, dtype: torch.dtype, shape: Sequence[int], *, rows: bool = False) -> bool:
    if not isinstance(value, Tensor) or value.dtype != dtype:
        return False
    return list(value.shape[1:] if rows and value.ndim else value.shape) == list(shape)


def _gathered(rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The rows of all processes, in the order of their ranks."""
    world = dist.get_world_size(group)
    lengths = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world)]
    dist.all_gather(lengths, torch.tensor([len(rows)], device=rows.device), group=group)
    longest = max(int(length) for length in lengths)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    everyone = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(everyone, padded, group=group)
    return torch.cat([part[: int(length)] for part, length in zip(everyone, lengths)])


def exact_mean(values: Tensor) -> float:
    """Mean of float64 values, correctly rounded before the division: in any order the same. NaN of none.

    Examples:
        >>> exact_mean(torch.tensor([1e16, 1.0, -1e16, 3.0], dtype=torch.float64))
        1.0
    """
    return math.fsum(values.tolist()) / len(values) if len(values) else math.nan


# Sums of real numbers that are exact, so that they are associative: whole numbers of 2**-26, and what is left in whole
# numbers of 2**-52. There is room for 2**27 numbers.
_BITS = 26


def fixed_zeros(*shape: int) -> Tensor:
    """An exact sum of nothing: int64 ``[2, *shape]``. Sums of sums are sums.

    Examples:
        >>> total = fixed_zeros(1)
        >>> for _ in range(10):
        ...     total = total + fixed(torch.tensor([0.1], dtype=torch.float64))
        >>> fixed_mean(total, 10)
        tensor([0.1000], dtype=torch.float64)
    """
    return torch.zeros((2, *shape), dtype=torch.int64, device="cpu")


def fixed(values: Tensor) -> Tensor:
    """Float64 values of less than 1024, rounded to 2**-52, as exact sums of one."""
    scaled = values * 2.0**_BITS
    whole = scaled.floor()
    return torch.stack((whole, ((scaled - whole) * 2.0**_BITS).round_())).long()


def fixed_mean(total: Tensor, count: int) -> Tensor:
    """An exact sum, divided by the number of its terms; NaN of none."""
    whole, rest = total[0] + (total[1] >> _BITS), total[1] & (2**_BITS - 1)
    one = whole >> _BITS  # apart, as a double has not the bits for all of it
    exact: Tensor = one.double() + ((whole & (2**_BITS - 1)).double() + rest.double() / 2.0**_BITS) / 2.0**_BITS
    return exact.div_(count if count else math.nan)
