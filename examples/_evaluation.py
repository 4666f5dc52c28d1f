"""A model's logits for every picture of a data set, dealt to the processes of a run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from _processes import Processes, leave_signals
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from segzoo._progress import progress_bar
from segzoo.models.base import evaluating

Forward = Callable[[nn.Module, Tensor], Tensor]


class Seen(Dataset[tuple[Tensor, Tensor]]):
    """Pictures as the model sees them, with their masks as they are.

    Args:
        dataset: With ``read(index)``: picture and mask.
        transform: Of ``segzoo.transforms``.
        indices: Which of them.
    """

    def __init__(self, dataset: Any, transform: Callable[..., Any], indices: range) -> None:
        self.dataset, self.transform, self.indices = dataset, transform, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        image, target = self.transform(*self.dataset.read(self.indices[item]))
        return image.as_subclass(Tensor), target.as_subclass(Tensor)


@torch.no_grad()
def forward_all(
    model: nn.Module,
    dataset: Any,
    transform: Callable[..., Any],
    args: argparse.Namespace,
    processes: Processes,
    forward: Forward | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits ``[1, C, h, w]`` and the mask of each of this process's pictures, on its device, in its order.

    In float32 whatever ``--amp`` is: figures are the weights', not half precision's.

    Args:
        model: In whatever mode; it has it again afterwards.
        dataset: With ``read(index)``: picture and mask.
        transform: To what the model sees; masks keep their size.
        args: The options: ``batch_size`` (of pictures of one size), ``workers``.
        processes: This process and the others.
        forward: From the model and its input to logits, or to probabilities; None: ``model(x)``.
    """
    pictures = Seen(dataset, transform, processes.share(len(dataset)))
    loader = DataLoader(
        pictures,
        batch_size=args.batch_size,
        num_workers=args.workers,
        collate_fn=list,
        worker_init_fn=leave_signals,
        generator=torch.Generator().manual_seed(args.seed),  # or it would draw from the global one
    )
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if processes.device.type == "cuda" else None
    with exact or nullcontext(), evaluating(model), progress_bar(len(pictures), processes.main) as bar:
        bar.set_description("evaluation")
        for batch in loader:
            for group in _of_one_size(batch):
                x = torch.stack([image for image, _ in group]).to(processes.device, memory_format=layout)
                logits = model(x) if forward is None else forward(model, x)
                for i, (_, mask) in enumerate(group):
                    yield logits[i : i + 1].float(), mask.to(processes.device)
                bar.update(len(group))


def _of_one_size(batch: list[tuple[Tensor, Tensor]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The pictures that can go through the model together."""
    start = 0
    for i in range(1, len(batch) + 1):
        if i == len(batch) or batch[i][0].shape != batch[start][0].shape:
            yield batch[start:i]
            start = i
