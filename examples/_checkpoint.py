"""A run on disk: one file that is whole or not at all, from which training goes on as if it had never stopped."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from segzoo._files import write_whole

FORMAT = 1
NAME = "checkpoint.pt"


def save(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the run's state as ``folder/checkpoint.pt``; until it is whole, the one before stays.

    Raises:
        OSError: The disk is full or the folder not writable; the checkpoint before is as it was.
    """
    # In memory first: torch's own writer turns a full disk into an error that does not say so.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    with writing("the checkpoint", folder), write_whole(folder / NAME) as file:
        file.write(buffer.getbuffer())


@contextlib.contextmanager
def writing(what: str, folder: Path) -> Iterator[None]:
    """An OSError in the block says what could not be written, and whether there is a checkpoint from before."""
    try:
        yield
    except OSError as error:
        kept = "; the last checkpoint is as it was" if (folder / NAME).exists() else ""
        raise OSError(error.errno, f"{what} could not be written: {error.strerror or error}{kept}") from error


def load(path: Path) -> dict[str, Any]:
    """The state in a checkpoint's file, on the CPU. Only tensors and plain values are read, never code.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: It is no checkpoint of these scripts.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    with path.open("rb") as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a zip file's, a pickle's or torch's own, which advises to run what is in the file
            raise ValueError(
                f"{path} is no checkpoint of a training run: it is damaged, or holds more than tensors and plain values"
            ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format", "none") if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path} is no checkpoint of this version: its format is {found}, expected {FORMAT}")
    return state


def seed_generators(seed: int) -> None:
    """Set the global generators of torch, NumPy and Python: dropout and first weights draw from them."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - a user's code may draw from it
    random.seed(seed)


def random_state() -> list[Any]:
    """Where the global generators of torch (of this process's GPU too), NumPy and Python are, in every process."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - a user's code may draw from it
    mine = {
        "python": random.getstate(),
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }
    if not dist.is_initialized():
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def set_random_state(states: list[Any], rank: int) -> None:
    """Put the generators where they were. Where there were fewer processes, the new ones stay as they are seeded."""
    if rank >= len(states):
        return
    mine = states[rank]
    random.setstate(mine["python"])
    name, keys, *rest = mine["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(mine["torch"])
    if mine["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(mine["cuda"])


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], free: set[str]) -> None:
    """Raise ValueError for the first argument that is not what the run was started with.

    Args:
        before: The arguments in the checkpoint.
        now: Those of this start.
        free: Names of arguments that may change: they have no part in what is learned.
    """
    for name in sorted(({*before, *now}) - free):
        if before.get(name) != now.get(name):
            option = "--" + name.replace("_", "-")
            raise ValueError(
                f"the run was started with {option} {before.get(name)!r} and is to go on with {now.get(name)!r}: "
                "give what it was started with, or another --output for a new run"
            )
