"""A training step: ours against the official module in a plain loop, in turn in one process; and the memory it takes.

    OMP_NUM_THREADS=2 python benchmarks/speed.py --json benchmarks/results/speed.json
    python benchmarks/speed.py --models u2net_full --variants bf16 --device cuda --batch 16

The plain loop has the module as its authors (U²-Net, written again in _official_u2net.py) or torchvision (DeepLabV3)
made it, float32, NCHW, ``torch.optim.AdamW`` with its defaults. Ours begins from the same weights; each variant says
what it changes. A step is forward, loss, ``zero_grad``, backward and the optimiser's step, on one batch that is there
already; the loss is BCE with logits on each of U²-Net's seven outputs, cross-entropy on DeepLabV3's and (0.5) its
auxiliary one.

``ratio`` is the median of the pairs' ratios, the plain loop's time by ours; ``recompute_takes`` that of the step with
`recompute_activations` by the same step without, in the same rounds. ``difference`` is the largest between the two
modules' outputs in eval mode, relative to the largest output. ``kept_mib`` is the memory that was made in the forward
pass and is still there after it, but for parameters and buffers: what is kept for the backward pass. ``peak_mib`` is
how far one step, forward and backward, raises the peak: of a process of its own (resident memory), or of the GPU's
allocator.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from _machine import machine
from _official_u2net import OfficialU2Net
from _results import read_results, result_file, write_results
from _timing import interleaved
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import segzoo
from segzoo.layers.recompute import recompute_activations
from segzoo.weights.convert import u2net_from_official

MIB = 2**20


class Variant(NamedTuple):
    """What a step does otherwise than the plain loop; with nothing said, only the module is ours."""

    channels_last: bool = True
    fused: bool = True
    recompute: bool = False
    dtype: torch.dtype | None = None  # of autocast
    compiled: bool = False


VARIANTS = {
    "nchw": Variant(channels_last=False, fused=False),
    "channels_last": Variant(fused=False),
    "fused": Variant(),  # channels-last and the fused optimiser
    "recompute": Variant(recompute=True),
    "bf16": Variant(dtype=torch.bfloat16),
    "bf16_recompute": Variant(dtype=torch.bfloat16, recompute=True),
    "fp16": Variant(dtype=torch.float16),
    "bf16_compile": Variant(dtype=torch.bfloat16, compiled=True),
    "fp16_compile": Variant(dtype=torch.float16, compiled=True),
    "compile": Variant(compiled=True),
}
ON_CPU = ("nchw", "channels_last", "fused", "recompute", "bf16", "bf16_recompute")
SIZES = {"u2net_full": 288, "deeplabv3_resnet50": 256}


def modules(name: str) -> tuple[nn.Module, nn.Module]:
    """The plain loop's module and ours, with the same weights."""
    torch.manual_seed(0)
    ours = segzoo.create_model(name, weights=None)
    if name == "u2net_full":
        plain: nn.Module = OfficialU2Net()
        ours.load_state_dict(u2net_from_official(plain.state_dict()))
    else:
        plain = torchvision.models.segmentation.deeplabv3_resnet50(
            weights=None, weights_backbone=None, num_classes=21, aux_loss=True
        )
        ours.load_state_dict(plain.state_dict())
    return plain, ours


def batch(name: str, size: int, images: int, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, 3, size, size, generator=generator)
    if name == "u2net_full":
        target = (torch.rand(images, 1, size, size, generator=generator) > 0.5).float()
    else:
        target = torch.randint(21, (images, size, size), generator=generator)
    return x.to(device), target.to(device)


def loss_of(outputs: Any, target: Tensor) -> Tensor:
    maps: Iterable[Tensor] = outputs.values() if isinstance(outputs, dict) else outputs  # torchvision's, main one first
    if target.dtype == torch.float32:
        return sum(F.binary_cross_entropy_with_logits(logits.float(), target) for logits in maps)
    return sum(weight * F.cross_entropy(logits.float(), target) for weight, logits in zip((1.0, 0.5), maps))


class Step:
    """One training step, of the plain loop or of ours."""

    def __init__(self, model: nn.Module, x: Tensor, target: Tensor, variant: Variant | None) -> None:
        self.device = x.device.type
        self.variant = variant or Variant(channels_last=False, fused=False)
        self.model = model.to(self.device).train()
        self.x, self.target = x, target
        if self.variant.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
            self.x = x.contiguous(memory_format=torch.channels_last)
        if self.variant.recompute:
            recompute_activations(self.model)
        self.called = torch.compile(self.model) if self.variant.compiled else self.model
        options = {"fused": True} if self.variant.fused else {}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), **options)
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.variant.dtype is torch.float16)

    def forward(self) -> Any:
        with torch.autocast(self.device, self.variant.dtype, enabled=self.variant.dtype is not None):
            return self.called(self.x)

    def backward(self, outputs: Any) -> None:
        loss = loss_of(outputs, self.target)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()

    def __call__(self) -> None:
        self.backward(self.forward())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.device == "cuda":
            torch.cuda.synchronize()


class Living(TorchDispatchMode):
    """The memory that is made within, and how much of it is still there."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.made.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        return out

    def bytes(self, model: nn.Module) -> int:
        own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
        return sum(size for key, (weak, size) in self.made.items() if key not in own and not weak.expired())


def kept(step: Step) -> float | None:
    """MiB that are kept from the forward pass to the backward pass."""
    if step.variant.compiled:  # its operations are not seen one by one
        if step.device == "cpu":
            return None
        before = torch.cuda.memory_allocated()
        outputs = step.forward()
        after = torch.cuda.memory_allocated() - before
        step.backward(outputs)
        return after / MIB
    with Living() as living:
        outputs = step.forward()
    size = living.bytes(step.model)
    step.backward(outputs)
    return size / MIB


def peak(step: Step) -> float:
    """MiB by which one forward and backward pass raise the peak; in a process that did nothing else before."""
    for parameter in step.model.parameters():  # gradients are there in every step but the first
        parameter.grad = torch.ones_like(parameter)
    if step.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step.backward(step.forward())
        return (torch.cuda.max_memory_allocated() - before) / MIB
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now
    before = resident()
    loss_of(step.forward(), step.target).backward()
    return resident() - before


def resident() -> float:
    """MiB of memory that this process had at most, on Linux. (``getrusage`` begins with that of its parent.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def peak_elsewhere(args: argparse.Namespace, name: str, variant: str) -> float:
    """`peak` in a process of its own."""
    options = ["--models", name, "--variants", variant, "--device", args.device, "--batch", str(args.batch), "--peak"]
    if args.size:
        options += ["--size", str(args.size)]
    return float(subprocess.check_output([sys.executable, __file__, *options], text=True))


def compare(args: argparse.Namespace, name: str, variant: str) -> dict[str, Any]:
    """The plain loop against one variant, in turn; where that recomputes, also against the same that does not."""
    x, target = batch(name, args.size or SIZES[name], args.batch, args.device)
    chosen = VARIANTS[variant]
    plain, ours = modules(name)
    steps = {"plain": Step(plain, x, target, None), "ours": Step(ours, x, target, chosen)}
    if chosen.recompute:
        steps["keeping"] = Step(modules(name)[1], x, target, chosen._replace(recompute=False))
    row: dict[str, Any] = {}
    if "time" in args.measure:
        row = {"repeats": args.repeats, "difference": difference(name)}
        candidates: dict[str, Callable[[], object]] = dict(steps)
        times = interleaved(candidates, args.repeats)
        row |= {f"{what}_ms": 1000 * statistics.median(seconds) for what, seconds in times.items()}
        row["ratio"] = statistics.median(a / b for a, b in zip(times["plain"], times["ours"]))
        if chosen.recompute:
            row["recompute_takes"] = statistics.median(a / b for a, b in zip(times["ours"], times["keeping"]))
    if "memory" in args.measure:
        row |= {f"{what}_kept_mib": kept(step) for what, step in steps.items()}
        row["plain_peak_mib"] = peak_elsewhere(args, name, "plain")
        row["ours_peak_mib"] = peak_elsewhere(args, name, variant)
    return row


def difference(name: str) -> float:
    """The largest difference of the two modules' outputs in eval mode, on a small picture, by their size."""
    plain, ours = modules(name)
    x, _ = batch(name, 65, 1, "cpu")
    with torch.no_grad():
        theirs, mine = plain.eval()(x), ours.eval()(x)
    first = theirs["out"] if isinstance(theirs, dict) else theirs[0]
    return ((first - mine).abs().max() / first.abs().max()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--variants", nargs="+", choices=["plain", *VARIANTS], help="default: all that the device has")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=2, help="pictures in a step")
    parser.add_argument("--size", type=int, help=f"their height and width; default: {SIZES}")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds, after two that are not")
    parser.add_argument("--measure", nargs="+", choices=["time", "memory"], default=["time", "memory"])
    parser.add_argument("--json", type=result_file, help="results; those of other models and variants there stay")
    parser.add_argument("--peak", action="store_true", help="print the peak of one step alone")
    args = parser.parse_args()
    variants = args.variants or (ON_CPU if args.device == "cpu" else tuple(VARIANTS))
    if args.peak:
        (name,), (variant,) = args.models, variants
        module = modules(name)[variant != "plain"]
        x, target = batch(name, args.size or SIZES[name], args.batch, args.device)
        print(peak(Step(module, x, target, VARIANTS.get(variant))))
        return
    before = read_results(args.json)
    results = dict(before)
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else None
    for name in args.models:
        for variant in variants:
            size = args.size or SIZES[name]
            key = f"{name} {args.batch}×{size}×{size} {gpu or 'cpu'} {variant}"
            row = compare(args, name, variant)
            results[key] = {**before.get(key, {}), **row}
            print(key, {what: round(value, 3) for what, value in row.items() if value is not None}, flush=True)
            if args.json:
                write_results(args.json, results, seed=0, gpu=gpu, kept=before)
    print(machine(gpu))


if __name__ == "__main__":
    main()
