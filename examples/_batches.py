"""Batches that depend on seed, epoch and picture alone: the same however often a run is interrupted.

N processes with batches of b see together what one process sees with batches of N·b.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler


def seed_of(*parts: object) -> int:
    """A seed of 63 bits that is a function of the parts."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Pictures as a step sees them: item ``(epoch, index)`` is the same in whatever process and order it is made.

    Args:
        dataset: With ``read(index)``: picture and mask.
        transform: Of ``segzoo.transforms``; if it has a ``generator`` it is set for each item.
        seed: Of the run.
    """

    def __init__(self, dataset: Any, transform: Callable[..., Any], seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = item
        if hasattr(self.transform, "generator"):
            self.transform.generator = torch.Generator().manual_seed(seed_of(self.seed, "picture", epoch, index))
        image, target = self.transform(*self.dataset.read(index))
        return image.as_subclass(Tensor), target.as_subclass(Tensor)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """This process's batches of an epoch, for a ``DataLoader``: ``(epoch, index)`` of each picture.

    An epoch is as many whole updates as the pictures give, in an order of its own; what is left over waits for another
    epoch. Fewer pictures than one update needs are repeated.

    Args:
        pictures: How many there are.
        seed: Of the run.
        batch_size: Pictures of this process at once.
        accumulate: Batches of an update.
        rank: Of this process.
        count: Of processes.

    Raises:
        ValueError: There are no pictures.

    Attributes:
        epoch: Which epoch comes next.
        skip: How many updates of it are done already.
    """

    def __init__(self, pictures: int, seed: int, batch_size: int, accumulate: int = 1, rank: int = 0, count: int = 1):
        if pictures < 1:
            raise ValueError("there is no picture to learn")
        self.pictures, self.seed = pictures, seed
        self.batch_size, self.accumulate, self.rank, self.count = batch_size, accumulate, rank, count
        self.epoch, self.skip = 0, 0

    @property
    def updates(self) -> int:
        """Of the optimiser in an epoch."""
        return max(1, self.pictures // (self.batch_size * self.accumulate * self.count))

    def __len__(self) -> int:
        return (self.updates - self.skip) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, "order", self.epoch))
        order = torch.randperm(self.pictures, generator=generator).tolist()
        together = self.batch_size * self.count
        needed = self.updates * self.accumulate * together
        order = (order * math.ceil(needed / len(order)))[:needed]
        for start in range(self.skip * self.accumulate * together, needed, together):
            first = start + self.rank * self.batch_size
            yield [(self.epoch, index) for index in order[first : first + self.batch_size]]
