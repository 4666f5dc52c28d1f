"""The options that every training script has, and the optimisers and schedules that they name."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler


def make_parser(prog: str, about: str | None, **options: Any) -> argparse.ArgumentParser:
    """A parser whose help is a script's docstring: its first paragraph above the options, the others below."""
    description, _, epilog = (about or "").partition("\n\n")
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(
        prog=prog, description=description, epilog=epilog, formatter_class=formatter, **options
    )


def add_arguments(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """The options that every training script has. ``defaults`` are the script's own."""
    run = parser.add_argument_group("the run")
    run.add_argument("--output", type=Path, required=True, metavar="DIR", help="everything goes here")
    run.add_argument(
        "--resume", default="never", metavar="auto|never|FILE",
        help="auto: go on with the run in --output, or start it; a file: go on from that checkpoint",
    )  # fmt: skip
    run.add_argument("--seed", type=int, default=0, help="(default: 0)")
    run.add_argument("--epochs", type=positive, default=100, help="(default: %(default)s)")
    run.add_argument(
        "--eval-every", type=positive, default=1, metavar="N", help="evaluate every N epochs, and the last"
    )
    run.add_argument(
        "--overfit", type=positive, metavar="N",
        help="a check of the set-up: learn N training pictures by heart and evaluate on them, without augmentation",
    )  # fmt: skip
    run.add_argument(
        "--license", help="of the weights, for the model card, as the Hub calls it, such as mit or cc-by-nc-4.0"
    )
    step = parser.add_argument_group("a step")
    step.add_argument("--batch-size", type=positive, default=8, help="pictures in each process at once (default: 8)")
    step.add_argument("--accumulate", type=positive, default=1, metavar="N", help="batches before each update")
    step.add_argument("--optimizer", choices=sorted(OPTIMIZERS), default="adamw", help="(default: %(default)s)")
    step.add_argument("--lr", type=positive_number, default=1e-3, help="after the warm-up (default: %(default)s)")
    step.add_argument(
        "--encoder-lr", type=not_negative, default=1.0, metavar="X", help="the encoder's, as a multiple of --lr"
    )
    step.add_argument(
        "--weight-decay", type=not_negative, default=1e-4, help="of all but biases and norms (default: %(default)s)"
    )
    step.add_argument("--schedule", choices=sorted(SCHEDULES), default="cosine", help="(default: %(default)s)")
    step.add_argument(
        "--warmup", type=not_negative, default=0.0, metavar="EPOCHS", help="of rising --lr (default: %(default)s)"
    )
    step.add_argument("--clip-grad", type=positive_number, metavar="NORM", help="longest gradient of all parameters")
    step.add_argument(
        "--ema", type=share, default=0.0, metavar="DECAY", help="average the weights, 0.999 or so; 0: do not"
    )
    machine = parser.add_argument_group("the machine")
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    machine.add_argument(
        "--workers", type=workers, default=0, help="processes that read and augment, for each (default: 0)"
    )
    machine.add_argument("--cache", metavar="memory|DIR", help="keep decoded pictures, in memory or in a folder")
    machine.add_argument(
        "--amp", choices=["auto", "off", "bf16", "fp16"], default="auto",
        help="half precision where it is safe; auto: bf16 or fp16 on a GPU, off elsewhere (default: auto)",
    )  # fmt: skip
    machine.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True)
    machine.add_argument("--compile", action="store_true", help="torch.compile: a minute first, then faster steps")
    machine.add_argument(
        "--recompute",
        action="store_true",
        help="less memory: norms and activations twice, not stored",
    )
    machine.add_argument("--deterministic", action="store_true", help="the same bits again on a GPU too, slower")
    parser.set_defaults(**defaults)


def positive(text: str) -> int:
    """For argparse: an int above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def positive_number(text: str) -> float:
    """For argparse: a finite number above 0."""
    number = float(text)
    if not (0 < number < math.inf):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return number


def workers(text: str) -> int:
    """For argparse: an int of at least 0."""
    return 0 if int(text) == 0 else positive(text)


def not_negative(text: str) -> float:
    """For argparse: a finite number of at least 0."""
    number = float(text)
    if not (0 <= number < math.inf):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of at least 0")
    return number


def share(text: str) -> float:
    """For argparse: a number of at least 0 and below 1."""
    number = float(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0 and below 1")
    return number


def _sgd(groups: Any, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, momentum=0.9, **options)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": _sgd,
}


def _cosine(optimizer: torch.optim.Optimizer, updates: int, **warmup: Any) -> Scheduler:
    return CosineLRScheduler(optimizer, t_initial=updates, warmup_prefix=True, **warmup)


def _poly(optimizer: torch.optim.Optimizer, updates: int, **warmup: Any) -> Scheduler:
    return PolyLRScheduler(optimizer, t_initial=updates, power=0.9, warmup_prefix=True, **warmup)


def _step(optimizer: torch.optim.Optimizer, updates: int, **warmup: Any) -> Scheduler:
    return StepLRScheduler(optimizer, decay_t=max(1, math.ceil(updates / 3)), decay_rate=0.1, **warmup)


def _constant(optimizer: torch.optim.Optimizer, updates: int, **warmup: Any) -> Scheduler:
    return StepLRScheduler(optimizer, decay_t=updates, decay_rate=1.0, **warmup)


SCHEDULES = {"cosine": _cosine, "poly": _poly, "step": _step, "constant": _constant}


def half_precision(amp: str, device: torch.device) -> torch.dtype | None:
    """The precision of autocast that ``--amp`` asks for, or None for none."""
    if amp == "auto":
        if device.type != "cuda":
            return None
        # Older GPUs only emulate bfloat16, slowly.
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
