"""What sliding_window costs on a picture of 100 megapixels: time, and peak memory beside input, result and model.

    python benchmarks/sliding_window.py --models "three convolutions" --overlap 0.25
    python benchmarks/sliding_window.py --models u2net_lite --windows 512 --storage "in memory" --overlap 0

With --json benchmarks/results/sliding_window.json the figures are kept.

A picture of 8-bit noise, three bands, normalised window by window (``prepare``); one class comes out. Every case runs
in a process of its own (Linux), with nothing warmed up: memory is the peak from the call to its end, less what was
resident before it, less the result. "in memory" the picture is an array that was resident before, and the peak that of
the resident set. "mapped" picture and result are files mapped to memory, whose pages the system may drop at any time:
there the peak is that of anonymous memory, looked at every 5 ms."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from _machine import machine
from _results import read_results, result_file, write_results
from torch import Tensor, nn

import segzoo
from segzoo.inference import optimize_for_inference, sliding_window

MODELS = ("three convolutions", "u2net_lite")
STORAGE = ("in memory", "mapped")


def make_model(name: str) -> nn.Module:
    if name == "u2net_lite":
        return optimize_for_inference(segzoo.u2net_lite(), "fp32")
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Conv2d(16, 1, 3, padding=1)).requires_grad_(False)


def prepare(windows: Tensor) -> Tensor:
    """8 bit to roughly normalised, as models of this library are fed on the CPU."""
    return windows.float().div_(255).sub_(0.45).div_(0.226).contiguous(memory_format=torch.channels_last)


def resident(field: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


class AnonymousPeak:
    """The most anonymous memory of this process inside the block, in KiB."""

    def __enter__(self) -> AnonymousPeak:
        self.peak = self.before = resident("RssAnon")
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.005):
            self.peak = max(self.peak, resident("RssAnon"))

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()


def run_case(model_name: str, window: int, storage: str, side: int, overlap: float, folder: Path) -> dict[str, float]:
    """Seconds and MiB of one call, in this process."""
    model = make_model(model_name)
    rng = np.random.default_rng(0)
    result_kib = 4 * side * side / 1024
    if storage == "mapped":
        x = np.memmap(folder / "picture.raw", np.uint8, "w+", shape=(side, side, 3))
        out = np.memmap(folder / "logits.raw", np.float32, "w+", shape=(1, side, side))
    else:
        x, out = np.empty((side, side, 3), np.uint8), None
    for top in range(0, side, 500):
        x[top : top + 500] = rng.integers(0, 256, x[top : top + 500].shape, np.uint8)
    if storage == "mapped":
        x.flush()
        x = np.memmap(folder / "picture.raw", np.uint8, "r", shape=(side, side, 3))
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    started = time.perf_counter()
    with AnonymousPeak() as anonymous:
        sliding_window(model, x, window, overlap, prepare=prepare, out=out)
    seconds = time.perf_counter() - started
    peak = anonymous.peak - anonymous.before if out is not None else resident("VmHWM") - before - result_kib
    return {"seconds": seconds, "seconds_per_megapixel": seconds / side**2 * 1e6, "extra_mib": peak / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--windows", nargs="*", type=int, default=[512, 1024])
    parser.add_argument("--storage", nargs="*", default=list(STORAGE), choices=STORAGE)
    parser.add_argument("--side", type=int, default=10_000, help="height and width of the picture")
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--json", type=result_file, help="figures of other cases that are in the file stay")
    parser.add_argument("--here", action="store_true", help="run the first case in this process and print its figures")
    args = parser.parse_args()
    if args.here:
        with tempfile.TemporaryDirectory() as folder:
            case = (args.models[0], args.windows[0], args.storage[0], args.side, args.overlap, Path(folder))
            print(json.dumps(run_case(*case)))
        return
    kept = read_results(args.json)
    cases = dict(kept.get("cases", {}))
    print(
        "| model | picture | storage | window | overlap | time | per megapixel | memory beside input, result, model |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for model in args.models:
        for window in args.windows:
            for storage in args.storage:
                options = ["--models", model, "--windows", str(window), "--storage", storage]
                options += ["--side", str(args.side), "--overlap", str(args.overlap)]
                done = subprocess.run(
                    [sys.executable, __file__, "--here", *options], check=True, stdout=subprocess.PIPE, text=True
                )
                figures = json.loads(done.stdout)
                name = f"{model}, {args.side}×{args.side} {storage}, window {window}, overlap {args.overlap:g}"
                cases[name] = figures
                print(
                    f"| {model} | {args.side}×{args.side} | {storage} | {window} | {args.overlap:g} "
                    f"| {figures['seconds']:.1f} s | {figures['seconds_per_megapixel']:.2f} s "
                    f"| {figures['extra_mib']:.0f} MiB |",
                    flush=True,
                )
                if args.json:
                    write_results(args.json, {"cases": cases}, seed=0, kept=kept)
    print(machine())


if __name__ == "__main__":
    main()
