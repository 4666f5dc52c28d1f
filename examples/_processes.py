"""The processes of a run: this one alone, or those that torchrun started on one machine or many."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

_TORCHRUN = ("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)
_ONE = 1.0  # seconds: what a whole group of processes was sent, torchrun sends to its own a second time


@dataclass(frozen=True)
class Processes:
    """This process and how many there are: one, or torchrun's.

    Args:
        rank: Of this process, over all machines.
        count: How many there are.
        device: Where this one computes.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def share(self, total: int) -> range:
        """This process's part of ``total`` pictures to evaluate: none twice, none left out."""
        return range(self.rank, total, self.count)

    def added(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.count > 1:
            dist.all_reduce(values)
        return values


@contextlib.contextmanager
def processes(device: str = "auto") -> Iterator[Processes]:
    """The processes that torchrun started, connected while the block lasts; without torchrun this one alone.

    Args:
        device: ``"auto"``: a GPU for each process where there is one, else the CPU; ``"cpu"``, ``"cuda"``, ``"mps"``.

    Raises:
        ValueError: There is no such device for this process.
    """
    rank, count, local = (int(os.environ.get(name, default)) for name, default in _TORCHRUN)
    if device == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        device = "cpu" if found == "mps" and count > 1 else found
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ValueError(f"--device is {device!r}, expected auto, cpu, cuda or mps") from None
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"--device is {device}, and there is no such GPU here")
    if place.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"--device is {device}, and there is no GPU that torch can use here")
        place = torch.device("cuda", local) if place.index is None else place
        if (place.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"process {rank} would be on GPU {place.index}, and there are {torch.cuda.device_count()}")
        torch.cuda.set_device(place)
    if count == 1:
        yield Processes(0, 1, place)
        return
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(rank, count, place)
    finally:
        dist.destroy_process_group()


class Asked:
    """Notes SIGTERM and SIGINT while the block lasts; another one, a second later or more, ends the process at once.

    Attributes:
        number: Of the signal that came, or 0.
    """

    def __init__(self) -> None:
        self.number, self._since = 0, 0.0

    def __enter__(self) -> Asked:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in self._before:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if not self.number:
            self.number, self._since = number, time.monotonic()
        elif time.monotonic() > self._since + _ONE:
            self.__exit__()
            signal.raise_signal(number)


def leave_signals(worker: int = 0) -> None:
    """For a ``DataLoader``'s workers: what a whole group is sent is for the process that trains, and may need them.

    They end with it, or half a minute later.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))
