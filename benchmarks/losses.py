"""What each loss costs beside its peers: time and peak extra memory of forward and backward.

    pip install -e ".[test,benchmark]"
    OMP_NUM_THREADS=2 python benchmarks/losses.py --json benchmarks/results/losses.json
    python benchmarks/losses.py --device cuda --repeats 20 --json benchmarks/results/losses_cuda.json

Random logits in float32, a tenth of the pixels ignored (MONAI has no ignore_index: its labels are all valid). All
candidates of a loss take turns in one process; times are medians of the rounds that count, "ratio" the median of the
rounds' own ratios of ours to the fastest peer's. Memory is what comes on top of logits and target from the call of
the loss to the end of backward, the gradient itself included: on the CPU the peak of the resident set (Linux), on a
GPU that of the allocator. The peers' defaults are kept, but for what makes them compute the same (see each docstring
of segzoo.losses for what differs)."""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from _machine import machine
from _results import read_results, result_file, write_results
from _timing import interleaved
from torch import Tensor

from segzoo import losses

PEERS = ("monai", "segmentation-models-pytorch")
SIZES = {"8×21×512×512": (8, 21, 512, 512), "4×19×1024×2048": (4, 19, 1024, 2048)}
Loss = Callable[[Tensor, Tensor], Tensor]
Candidates = dict[str, tuple[str, Loss]]
"""Name → which of the targets it takes, and the loss."""


def candidates() -> dict[str, tuple[str, Candidates]]:
    """Loss → the mode of its logits, and who computes it; ours first."""
    from monai import losses as monai
    from segmentation_models_pytorch import losses as smp
    from torchvision.ops import sigmoid_focal_loss

    def one_hot_labels(loss: Loss) -> Loss:
        return lambda logits, target: loss(logits, target.unsqueeze(1))

    softmax = {"to_onehot_y": True, "softmax": True}
    return {
        "CrossEntropyLoss": (
            "multiclass",
            {
                "segzoo": ("ignored", losses.CrossEntropyLoss()),
                "torch": ("ignored", torch.nn.CrossEntropyLoss(ignore_index=255)),
                "smp": ("ignored", smp.SoftCrossEntropyLoss(smooth_factor=0.0, ignore_index=255)),
            },
        ),
        "OhemCrossEntropyLoss": (
            "multiclass",
            {
                "segzoo": ("ignored", losses.OhemCrossEntropyLoss()),
                "sorting by hand": ("ignored", ohem_by_hand),
            },
        ),
        "BCELoss": (
            "multilabel",
            {
                "segzoo": ("masks", losses.BCELoss("multilabel")),
                "torch": ("masks", torch.nn.BCEWithLogitsLoss()),
                "smp": ("masks", smp.SoftBCEWithLogitsLoss(ignore_index=None)),
            },
        ),
        "FocalLoss, multiclass": (
            "multiclass",
            {
                "segzoo": ("ignored", losses.FocalLoss()),
                "smp": ("ignored", smp.FocalLoss("multiclass", ignore_index=255)),
                "monai": ("labels", one_hot_labels(monai.FocalLoss(to_onehot_y=True, use_softmax=True))),
            },
        ),
        "FocalLoss, multilabel": (
            "multilabel",
            {
                "segzoo": ("masks", losses.FocalLoss("multilabel", alpha=0.25)),
                "torchvision": ("masks", lambda x, t: sigmoid_focal_loss(x, t, reduction="mean")),
                "smp": ("masks", smp.FocalLoss("multilabel", alpha=0.25)),
                "monai": ("masks", monai.FocalLoss(alpha=0.25)),
            },
        ),
        "DiceLoss": (
            "multiclass",
            {
                "segzoo": ("ignored", losses.DiceLoss()),
                "smp": ("ignored", smp.DiceLoss("multiclass", ignore_index=255)),
                "monai": ("labels", one_hot_labels(monai.DiceLoss(batch=True, **softmax))),
            },
        ),
        "JaccardLoss": (
            "multiclass",
            {
                "segzoo": ("ignored", losses.JaccardLoss()),
                "smp": ("labels", smp.JaccardLoss("multiclass")),
                "monai": ("labels", one_hot_labels(monai.DiceLoss(jaccard=True, batch=True, **softmax))),
            },
        ),
        "TverskyLoss": (
            "multiclass",
            {
                "segzoo": ("ignored", losses.TverskyLoss()),
                "smp": ("ignored", smp.TverskyLoss("multiclass", ignore_index=255, alpha=0.3, beta=0.7)),
                "monai": ("labels", one_hot_labels(monai.TverskyLoss(batch=True, alpha=0.3, beta=0.7, **softmax))),
            },
        ),
        "FocalTverskyLoss": (
            "multiclass",
            {
                "segzoo": ("ignored", losses.FocalTverskyLoss()),
                "smp": ("ignored", smp.TverskyLoss("multiclass", ignore_index=255, alpha=0.3, beta=0.7, gamma=0.75)),
            },
        ),
        "LovaszLoss, multiclass": (
            "multiclass",
            {
                "segzoo": ("ignored", losses.LovaszLoss()),
                "smp": ("ignored", smp.LovaszLoss("multiclass", ignore_index=255)),
            },
        ),
        "LovaszLoss, binary": (
            "binary",
            {
                "segzoo": ("masks", losses.LovaszLoss("binary")),
                "smp": ("masks", smp.LovaszLoss("binary")),
            },
        ),
        "BoundaryLoss, distance given": (
            "multiclass",
            {
                "segzoo": ("boundary", BoundaryWithDistance()),
                "by hand": ("boundary", lambda x, given: (x.softmax(1) * given[1]).mean()),
            },
        ),
        "SSIMLoss": (
            "multilabel",
            {
                "segzoo": ("masks", losses.SSIMLoss("multilabel")),
                "monai": ("masks", lambda x, t: monai_ssim(monai, x, t)),
            },
        ),
        "HybridSaliencyLoss": (
            "binary",
            {
                "segzoo": ("masks", losses.HybridSaliencyLoss()),
                "torch + monai + monai": ("masks", lambda x, t: hybrid_by_hand(monai, x, t)),
            },
        ),
    }


class BoundaryWithDistance:
    """The loss of a target with its distance map."""

    def __init__(self) -> None:
        self.loss = losses.BoundaryLoss(ignore_index=None)

    def __call__(self, logits: Tensor, given: tuple[Tensor, Tensor]) -> Tensor:
        return self.loss(logits, given[0], distance=given[1])


def monai_ssim(monai, logits: Tensor, target: Tensor) -> Tensor:
    return monai.SSIMLoss(spatial_dims=2)(logits.sigmoid(), target)


def hybrid_by_hand(monai, logits: Tensor, target: Tensor) -> Tensor:
    iou = monai.DiceLoss(sigmoid=True, jaccard=True, smooth_nr=0)(logits, target)
    return F.binary_cross_entropy_with_logits(logits, target) + monai_ssim(monai, logits, target) + iou


def ohem_by_hand(logits: Tensor, target: Tensor) -> Tensor:
    """As training scripts have it: sort the probabilities of the labels, cut, take the mean of what is below."""
    loss = F.cross_entropy(logits, target, ignore_index=255, reduction="none").flatten()
    valid = (target != 255).flatten()
    label = torch.where(target == 255, 0, target).unsqueeze(1)
    p = logits.softmax(1).gather(1, label).flatten()[valid]
    ordered, order = p.sort()
    cut = ordered[min(100_000, p.numel() - 1)].clamp_min(0.7)
    return loss[valid][order][ordered < cut].mean()


def make_inputs(mode: str, size: tuple[int, ...], device: str) -> tuple[Tensor, dict[str, object]]:
    """Logits and the targets that candidates ask for."""
    generator = torch.Generator().manual_seed(0)
    n, c, h, w = size if mode != "binary" else (size[0], 1, *size[2:])
    logits = torch.randn(n, c, h, w, generator=generator).to(device)
    if mode != "multiclass":
        return logits, {"masks": (torch.rand(n, c, h, w, generator=generator) < 0.3).float().to(device)}
    labels = torch.randint(0, c, (n, h, w), generator=generator).to(device)
    ignored = labels.clone()
    ignored[(torch.rand(n, h, w, generator=generator) < 0.1).to(device)] = 255
    return logits, {"labels": labels, "ignored": ignored}


def backward(loss: Loss, logits: Tensor, target: object) -> None:
    x = logits.detach().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss(x, target).backward()
    if x.is_cuda:
        torch.cuda.synchronize()


def peak_extra_memory(run: Callable[[], None], device: str) -> float:
    """MiB that come on top while ``run`` runs."""
    gc.collect()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return (resident("VmHWM") - before) / 2**10


def resident(field: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def compare(
    mode: str, who: Candidates, size: tuple[int, ...], device: str, repeats: int
) -> dict[str, dict[str, float]]:
    logits, targets = make_inputs(mode, size, device)
    if any(kind == "boundary" for kind, _ in who.values()):
        targets["boundary"] = (targets["labels"], torch.randn_like(logits))
    runs = {
        name: (lambda kind=kind, loss=loss: backward(loss, logits, targets[kind])) for name, (kind, loss) in who.items()
    }
    memory = {}
    for name, run in runs.items():
        run()
        memory[name] = peak_extra_memory(run, device)
    times = interleaved(runs, repeats)
    return {
        name: {
            "ms": 1000 * statistics.median(times[name]),
            "mib": memory[name],
            "time_ratio": statistics.median(ours / theirs for ours, theirs in zip(times["segzoo"], times[name])),
            "memory_ratio": memory["segzoo"] / memory[name],
        }
        for name in runs
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--losses", nargs="*", default=[], help="words of the names; default: all")
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--json", type=result_file, help="figures of other losses that are in the file stay")
    args = parser.parse_args()
    kept = read_results(args.json)
    sizes = copy.deepcopy(kept.get("sizes", {}))
    for name, (mode, who) in candidates().items():
        if args.losses and not any(word in name for word in args.losses):
            continue
        for size in args.sizes:
            figures = compare(mode, who, SIZES[size], args.device, args.repeats)
            sizes.setdefault(size, {})[name] = figures
            fastest = min((peer for peer in figures if peer != "segzoo"), key=lambda peer: figures[peer]["ms"])
            print(f"{name}, {size}" + (" (1 channel)" if mode == "binary" else ""))
            for peer, figure in figures.items():
                ratios = "" if peer == "segzoo" else (
                    f"; ours takes {figure['time_ratio']:.2f} of the time, {figure['memory_ratio']:.2f} of the memory"
                )  # fmt: skip
                mark = " (fastest peer)" if peer == fastest and len(figures) > 2 else ""
                print(f"    {peer:22} {figure['ms']:9.1f} ms {figure['mib']:8.0f} MiB{ratios}{mark}", flush=True)
            if args.json:
                results = {"repeats": args.repeats, "sizes": sizes}
                write_results(args.json, results, seed=0, peers=PEERS, kept=kept)
    print(machine())


if __name__ == "__main__":
    main()
