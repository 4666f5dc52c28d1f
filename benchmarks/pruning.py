"""What pruning gives: parameters, arithmetic and time of a model and of what is left of it, in turn in one process.

    python benchmarks/pruning.py
    python benchmarks/pruning.py --models unet deeplabv3_resnet50 --amounts 0.3 0.5 --size 512

With --json benchmarks/results/pruning.json the figures are kept. Weights are random where a model has none in the
package: neither time nor size depends on them. Both are as `optimize_for_inference` makes them, on the CPU, batch 1,
float32. The ratio is the median of the ratios of neighbouring calls; that of times is below that of the arithmetic
where layers become too narrow to fill the processor, or where resizing and pooling are what is left.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from _machine import machine
from _results import read_results, result_file, write_results
from _timing import interleaved
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import segzoo
from segzoo.export import prune
from segzoo.inference import optimize_for_inference
from segzoo.registry import create_untrained


def made(name: str) -> Any:
    return segzoo.u2net_lite().eval() if name == "u2net_lite" else create_untrained(name).eval()


def flops(model: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()


@torch.inference_mode()
def compare(name: str, amount: float, round_to: int, size: int, repeats: int) -> dict[str, float]:
    """The whole model against the pruned one."""
    with torch.inference_mode(False):
        whole = made(name)
        models = {"whole": whole, "pruned": prune(whole, amount, round_to=round_to)}
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    row: dict[str, float] = {"repeats": repeats}
    for what, model in models.items():
        row[f"{what}_parameters"] = sum(parameter.numel() for parameter in model.parameters())
        row[f"{what}_gflop"] = flops(model, x) / 1e9
    fast = {what: optimize_for_inference(model, "fp32") for what, model in models.items()}
    x = x.contiguous(memory_format=torch.channels_last)
    times = interleaved({what: lambda model=model: model(x) for what, model in fast.items()}, repeats)
    row |= {f"{what}_ms": 1000 * statistics.median(taken) for what, taken in times.items()}
    row["faster"] = statistics.median(a / b for a, b in zip(times["whole"], times["pruned"]))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["u2net_lite"], help="names without weights' tags")
    parser.add_argument("--amounts", nargs="+", type=float, default=[0.3, 0.5])
    parser.add_argument("--round-to", nargs="+", type=int, default=[8], help="1: exactly as many as the amount says")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds, after two that are not")
    parser.add_argument("--json", type=result_file, help="figures of other cases that are in the file stay")
    args = parser.parse_args()
    kept = read_results(args.json)
    cases = dict(kept.get("cases", {}))
    print("| model | amount | multiples of | parameters | GFLOP | ms | faster |\n|---|---|---|---|---|---|---|")
    for name in args.models:
        for amount in args.amounts:
            for round_to in args.round_to:
                row = compare(name, amount, round_to, args.size, args.repeats)
                cases[f"{name} {args.size}×{args.size}, amount {amount:g}, round_to {round_to}"] = row
                print(
                    f"| {name} | {amount:g} | {round_to} "
                    f"| {row['whole_parameters']:,} → {row['pruned_parameters']:,} "
                    f"| {row['whole_gflop']:.1f} → {row['pruned_gflop']:.1f} "
                    f"| {row['whole_ms']:.0f} → {row['pruned_ms']:.0f} | {row['faster']:.2f}× |",
                    flush=True,
                )
                if args.json:
                    write_results(args.json, {"cases": cases}, seed=0, kept=kept)
    print(machine())


if __name__ == "__main__":
    main()
