"""How fast a forward pass is: ours against the authors' or the peer's module and the other runtimes, paired.

    OMP_NUM_THREADS=2 python benchmarks/inference.py --json benchmarks/results/inference.json
    python benchmarks/inference.py --models deeplabv3_resnet50 --compile
    python benchmarks/inference.py --device cuda --batch 1 8 64 --json benchmarks/results/inference_cuda.json

Every model, batch and allocator setting is a process of its own; in it all candidates take turns. "peer" is the module
as its authors (U²-Net, written again in _official_u2net.py), torchvision or segmentation_models_pytorch built it, in
eval mode, float32, NCHW, in inference mode; "fp32" and "bf16" (on a GPU "fp16" too) are ``optimize_for_inference``.
"onnxruntime" runs ``SEGZOO_U2NETP_ONNX``, the file that rembg uses for u2net_lite, and OpenVINO the same one: by its
default (bfloat16, where the processor has it) and in float32. ``tuned`` rows have glibc's allocator tuned for the whole
process, so for the peers too.

A ratio is the median of the pairs' ratios, the other's time by ours. ``of_peak`` is the share of the convolution peak
that was measured in the same process in that type: a 3×3 convolution, 128 to 64 channels, channels-last.

Weights are random but for u2net_lite's: speed does not depend on their values.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _machine import machine
from _official_u2net import OfficialU2Net
from _results import read_results, result_file, write_results
from _timing import interleaved
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import segzoo
from segzoo.inference import optimize_for_inference
from segzoo.weights.convert import u2net_from_official

SALIENT = ("u2net_lite", "u2net_full")
SEMANTIC = ("deeplabv3_resnet50", "fcn_resnet50", "unet", "deeplabv3plus")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def peer_of(name: str) -> nn.Module:
    if name in SALIENT:
        return OfficialU2Net(lite=name == "u2net_lite")
    if name in ("deeplabv3_resnet50", "fcn_resnet50"):
        from torchvision.models import segmentation

        return getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=21)
    import segmentation_models_pytorch as smp

    kind = {"unet": smp.Unet, "deeplabv3plus": smp.DeepLabV3Plus}[name]
    return kind("resnet34", encoder_weights=None, classes=21)


@torch.no_grad()
def ours_of(name: str, peer: nn.Module, side: int) -> Any:
    """The same architecture of ours: U²-Net lite with its published weights, the full one with the peer's."""
    if name == "u2net_lite":
        return segzoo.u2net_lite().eval()
    encoder = {"encoder": "resnet34", "encoder_weights": None} if name in ("unet", "deeplabv3plus") else {}
    model = segzoo.create_model(name, weights=None, **({} if name in SALIENT else {"num_classes": 21}), **encoder)
    if name in SALIENT:
        model.load_state_dict(u2net_from_official(peer.state_dict()))
        return model.eval()
    model.train()
    model(torch.randn(2, 3, side // 4, side // 4))  # norms that have seen something: their outputs are of usual sizes
    return model.eval()


def peak(dtype: torch.dtype, device: torch.device) -> float:
    """GFLOP/s of the best of some runs of a large convolution."""
    side, batch = 320, 16 if device.type == "cuda" else 1
    x = torch.randn(batch, 128, side, side, device=device).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(64, 128, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        F.conv2d(x, weight, padding=1)
        done(device)
        seconds.append(time.perf_counter() - started)
    return 2 * 9 * 128 * 64 * batch * side * side / min(seconds) / 1e9


def done(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def sessions(name: str, x: Tensor) -> dict[str, Callable[[], Any]]:
    """The other runtimes on rembg's file, where there are both."""
    path = os.environ.get("SEGZOO_U2NETP_ONNX")
    if name != "u2net_lite" or not path:
        return {}
    pixels, threads = x.numpy(), torch.get_num_threads()
    found: dict[str, Callable[[], Any]] = {}
    try:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        taken = session.get_inputs()[0]
        if len(pixels) == 1 or not isinstance(taken.shape[0], int):
            found["onnxruntime"] = lambda: session.run(None, {taken.name: pixels})
    except ImportError:
        pass
    try:
        import openvino

        core = openvino.Core()
        for label, config in (("openvino", {}), ("openvino fp32", {"INFERENCE_PRECISION_HINT": "f32"})):
            read = core.read_model(path)
            read.reshape(list(pixels.shape))
            compiled = core.compile_model(read, "CPU", {"INFERENCE_NUM_THREADS": threads, **config})
            found[label] = partial(compiled.create_infer_request().infer, [pixels])
    except ImportError:
        pass
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All candidates of one model, batch and setting, in this process."""
    device = torch.device(args.device)
    name, batch = args.models[0], args.batch[0]
    side = 320 if name in SALIENT else 512
    torch.manual_seed(args.seed)
    peer = peer_of(name).eval()
    model = ours_of(name, peer, side)
    # The bundled weights have their norms folded; the official module with random weights is as slow as any.
    tuned = False
    if args.tuned:
        from segzoo.inference._allocator import tune_allocator

        tuned = tune_allocator()
    x = torch.rand(batch, 3, side, side)
    on_device = x.to(device)
    fast = on_device.contiguous(memory_format=torch.channels_last)
    peer.to(device)

    def under(mode: Callable[[], Any], module: Any, inputs: Tensor) -> Callable[[], Any]:
        def run() -> Any:
            with mode():
                result = module(inputs)
            done(device)
            return result

        return run

    candidates: dict[str, Callable[[], Any]] = {"peer": under(torch.inference_mode, peer, on_device)}
    if args.compile:
        candidates["peer compiled"] = under(torch.inference_mode, torch.compile(peer), on_device)
    candidates |= sessions(name, x) if device.type == "cpu" else {}
    precisions = ["fp32", "bf16"] + (["fp16"] if device.type == "cuda" else [])
    with torch.no_grad():
        expected = model(x)
    differences = {}
    for precision in precisions:
        ready = optimize_for_inference(model, precision, device=device)
        candidates[precision] = under(torch.inference_mode, ready, fast)
        got = candidates[precision]().float().cpu()
        differences[precision] = float((got - expected).abs().max() / (expected.max() - expected.min()))
        if args.compile:
            compiled = optimize_for_inference(model, precision, device=device, compile=True)
            candidates[f"{precision} compiled"] = under(torch.inference_mode, compiled, fast)
    times = interleaved(candidates, args.repeats)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)  # oneDNN's own operators are not known to the counter
    gflop = counter.get_total_flops() / 1e9
    peaks = {precision: peak(DTYPES[precision], device) for precision in precisions}
    rows: dict[str, Any] = {}
    for label, seconds in times.items():
        precision = label.split()[0]
        row = {
            "ms": 1000 * statistics.median(seconds),
            "pictures_per_second": batch / statistics.median(seconds),
            "ratios": {other: paired(times[other], seconds) for other in times if other not in precisions},
        }
        if precision in precisions:
            row["of_peak"] = gflop / statistics.median(seconds) / peaks[precision]
            row["difference"] = differences.get(label)
        rows[label] = row
    return {"rows": rows, "gflop": gflop, "peak_gflops": peaks, "tuned": tuned, "side": side, "batch": batch}


def paired(theirs: list[float], ours: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(theirs, ours))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["u2net_lite"], choices=[*SALIENT, *SEMANTIC])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--allocators", nargs="+", default=["default", "tuned"], choices=["default", "tuned"])
    parser.add_argument("--compile", action="store_true", help="compiled forms too: minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=result_file, help="write the results to this file too; other rows of it stay")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--tuned", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args)))
        return
    kept = read_results(args.json)
    results: dict[str, Any] = dict(kept.get("runs", {}))
    allocators = args.allocators if args.device == "cpu" else ["default"]
    gpu = torch.cuda.get_device_name() if args.device.startswith("cuda") else None
    for name in args.models:
        for batch in args.batch:
            for allocator in allocators:
                options = ["--models", name, "--batch", str(batch), "--device", args.device]
                options += ["--repeats", str(args.repeats), "--seed", str(args.seed), "--child"]
                options += ["--compile"] * args.compile + ["--tuned"] * (allocator == "tuned")
                command = [sys.executable, str(Path(__file__).resolve()), *options]
                answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                run = json.loads(answer.splitlines()[-1])
                results[f"{name} batch {batch} {allocator}"] = run
                show(f"{name}, batch {batch}, {run['side']}×{run['side']}, allocator {allocator}", run)
                if args.json:
                    write_results(args.json, {"runs": results}, seed=args.seed, gpu=gpu, kept=kept,
                                  peers=("onnxruntime", "openvino", "segmentation-models-pytorch"))  # fmt: skip
    print(machine(gpu))


def show(title: str, run: dict[str, Any]) -> None:
    peaks = ", ".join(f"{name} {value:.0f}" for name, value in run["peak_gflops"].items())
    print(f"{title}: {run['gflop']:.1f} GFLOP; peak of a convolution, GFLOP/s: {peaks}")
    for label, row in run["rows"].items():
        ratios = ", ".join(f"{other} {value:.2f}×" for other, value in row["ratios"].items() if other != label)
        share = f", {100 * row['of_peak']:.0f} % of peak" if "of_peak" in row else ""
        off = f", difference {row['difference']:.1e}" if row.get("difference") is not None else ""
        print(f"  {label:16}{row['ms']:9.1f} ms  {ratios}{share}{off}")


if __name__ == "__main__":
    main()
