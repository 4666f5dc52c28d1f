"""The bundled cut-out model with fewer channels, fine-tuned on pictures of your own.

python examples/prune.py pictures masks --output smaller
python examples/prune.py pictures masks --output smaller --amount 0.5 --epochs 20 --device cuda

A mask is a grey picture with its picture's name: white where the object is. A fifth of the pairs, the last by name, is
kept aside, and all figures are of these: of the whole model, of the pruned one, of the pruned one after its batch norms
have measured anew what they now see, and of the fine-tuned one. The more pictures and epochs, the more comes back: a
few hundred pictures and minutes on a CPU mend little of 30 %. OUTPUT/start is the pruned model, OUTPUT/best the
fine-tuned one; either is used as any model, and --model local-dir:smaller/best prunes it further:

segzoo cutout --model local-dir:smaller/best photo.jpg out.png
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import finetune_cutout
import torch
import train_salient
from _data import read_data
from _launch import launch
from _options import make_parser, positive, positive_number
from _processes import Processes
from torch import nn
from torch.utils.data import Subset
from torch.utils.flop_counter import FlopCounterMode

import segzoo
from segzoo.export import prune
from segzoo.inference import optimize_for_inference
from segzoo.models.base import SegmentationModel
from segzoo.transforms import SalientEval
from segzoo.weights.folder import LOCAL_DIR

MEASURED = 64  # pictures for the norms: their statistics are over all pixels
ROUNDS = 7


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = make_parser("prune", __doc__)
    parser.add_argument("pictures", type=Path, help="a folder")
    parser.add_argument("masks", type=Path, help="a folder with a mask for each, of the same name")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the models and figures go here")
    parser.add_argument("--model", default="u2net_lite.duts", help="what to prune (default: %(default)s)")
    parser.add_argument("--amount", type=float, default=0.3, help="share of channels that go (default: %(default)s)")
    parser.add_argument("--by", choices=["scale", "l1", "l2"], default="scale", help="(default: scale)")
    parser.add_argument("--scope", choices=["layer", "global"], default="layer", help="(default: layer)")
    parser.add_argument("--round-to", type=positive, default=8, help="channels stay in multiples of it (default: 8)")
    parser.add_argument("--epochs", type=positive, default=10, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=8, help="pictures at once (default: 8)")
    parser.add_argument("--lr", type=positive_number, default=3e-4, help="(default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--license", help="of the new weights, for the model card, such as mit")
    return parser.parse_args(arguments)


def main(args: argparse.Namespace, processes: Processes) -> None:
    """Prune, fine-tune, and say what it cost and what it gave."""
    whole: Any = segzoo.create_model(args.model).eval()
    size = whole.preprocessing.size
    smaller = prune(whole, args.amount, by=args.by, scope=args.scope, round_to=args.round_to)
    words = [str(args.pictures), str(args.masks), "--output", str(args.output), "--epochs", str(args.epochs)]
    words += ["--batch-size", str(args.batch_size), "--lr", str(args.lr), "--device", args.device]
    words += ["--seed", str(args.seed), *(["--license", args.license] if args.license else [])]
    start = args.output / "start"

    def save() -> None:
        terms = {"license": "other", "license_name": "that of the weights it was pruned from"}
        smaller.save_pretrained(start, training_data={"nothing new": "only pruned"}, **terms)

    def save_once() -> None:
        """By one process, before any of the others reads it."""
        if processes.main:
            save()
        if processes.count > 1:
            torch.distributed.barrier()

    save_once()
    settings = finetune_cutout.parse([*words, "--model", f"{LOCAL_DIR}{start}", "--norm", "batch"])
    data = read_data(settings, task="salient")
    seen = SalientEval(settings.resize, normalize=whole.preprocessing)

    def report(name: str, model: Any) -> None:
        figures = train_salient.evaluate(model.to(processes.device), data.held_out, seen, settings, processes)
        if processes.main:
            print(f"[{name}] MAE: {figures['mae']:.4f} maxF1: {figures['max_f']:.4f}", flush=True)

    report("whole", whole)
    report("pruned", smaller)
    measure(smaller, data.train, seen, settings)
    report("pruned, norms measured anew", smaller)
    save_once()
    finetune_cutout.main(settings, processes)
    tuned: Any = segzoo.create_model(f"{LOCAL_DIR}{args.output / 'best'}")
    report("fine-tuned", tuned)
    if processes.main:
        print(gain(whole, tuned, size if isinstance(size, tuple) else (320, 320)))


@torch.no_grad()
def measure(model: SegmentationModel, dataset: Any, seen: SalientEval, args: argparse.Namespace) -> None:
    """Let every batch norm take the mean and variance of what it is now given: other channels are gone."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    step = max(1, len(dataset) // MEASURED)
    pictures = Subset(dataset, range(0, len(dataset), step)[:MEASURED])
    place = next(model.parameters()).device
    model.train()
    for first in range(0, len(pictures), args.batch_size):
        indices = pictures.indices[first : first + args.batch_size]
        model(torch.stack([seen(*dataset.read(i))[0] for i in indices]).to(place))
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    model.eval()


def gain(whole: SegmentationModel, smaller: SegmentationModel, size: tuple[int, int]) -> str:
    """Parameters, arithmetic and time of both, on the CPU, in turn."""
    x = torch.randn(1, whole.in_channels, *size)
    parts = []
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (whole, smaller)]
    parts.append(f"{counts[0]:,} → {counts[1]:,} parameters")
    operations = []
    times: list[list[float]] = [[], []]
    with torch.inference_mode():
        for model in (whole.cpu().eval(), smaller.cpu().eval()):
            with FlopCounterMode(display=False) as counter:
                model(x)
            operations.append(counter.get_total_flops())
        fast = [optimize_for_inference(model, "fp32") for model in (whole, smaller)]
        pairs = list(zip(fast, times))
        for model in fast:
            model(x)
        for i in range(ROUNDS):
            for model, taken in pairs if i % 2 else reversed(pairs):
                started = time.perf_counter()
                model(x)
                taken.append(time.perf_counter() - started)
    parts.append(f"{operations[0] / 1e9:.1f} → {operations[1] / 1e9:.1f} GFLOP")
    ratio = statistics.median(a / b for a, b in zip(*times))
    ms = [1000 * statistics.median(taken) for taken in times]
    return ", ".join([*parts, f"{ms[0]:.0f} → {ms[1]:.0f} ms ({ratio:.2f}×) at {size[0]}×{size[1]} on the CPU"])


if __name__ == "__main__":
    options = parse()
    options.compile, options.recompute, options.resume = False, False, "auto"
    sys.exit(launch(main, options, "prune"))
