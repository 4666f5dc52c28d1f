"""What the architectures cost: building all of them without numbers, and a forward pass beside torchvision's.

    OMP_NUM_THREADS=2 python benchmarks/architectures.py

"build" makes every model of the registry on the meta device, in one process, imports apart. "forward" is the same
random state dict in torchvision's model and in ours, eval mode, under no_grad, one picture of 512×512, the two in turn:
medians, and the median of the pairs' ratios (below 1: ours is faster).
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torchvision
from _machine import machine
from _results import result_file, write_results
from _timing import interleaved

import segzoo
from segzoo.registry import create_untrained

PARITY = [
    "fcn_resnet50",
    "fcn_resnet101",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
]


def build_all() -> dict[str, float]:
    """Seconds that each model of the registry takes to build."""
    import timm  # noqa: F401  imports are paid once, whatever is built

    seconds = {}
    for name in segzoo.list_models():
        started = time.perf_counter()
        with torch.device("meta"):
            create_untrained(name)
        seconds[name] = time.perf_counter() - started
    return seconds


def compare(name: str, size: int, repeats: int) -> dict[str, float]:
    """Our forward pass against torchvision's, in milliseconds."""
    theirs = torchvision.models.get_model(name, weights=None, weights_backbone=None, aux_loss=None).eval()
    arguments = {} if name.startswith("lraspp") else {"aux": False}
    ours = segzoo.create_model(name, weights=None, **arguments).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected = theirs(x)["out"]
        assert (ours(x) - expected).abs().max() <= 1e-5 * expected.abs().max().clamp_min(1)
        times = interleaved({"torchvision": lambda: theirs(x), "segzoo": lambda: ours(x)}, repeats)
    ratio = statistics.median(a / b for a, b in zip(times["segzoo"], times["torchvision"]))
    medians = {f"{who}_ms": 1000 * statistics.median(values) for who, values in times.items()}
    return {**medians, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=result_file, help="write the results to this file too")
    args = parser.parse_args()
    seconds = build_all()
    print(f"build: {len(seconds)} models in {sum(seconds.values()):.1f} s, the slowest {max(seconds.values()):.2f} s")
    forward = {}
    for name in PARITY:
        forward[name] = figures = compare(name, args.size, args.repeats)
        print(
            f"{name:30} torchvision {figures['torchvision_ms']:7.1f} ms, segzoo {figures['segzoo_ms']:7.1f} ms, "
            f"ratio {figures['ratio']:.3f}"
        )
    print(machine())
    if args.json:
        results = {"build_seconds": seconds, "size": args.size, "repeats": args.repeats, "forward": forward}
        write_results(args.json, results)


if __name__ == "__main__":
    main()
