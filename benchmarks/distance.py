"""``distance_to`` and ``signed_distance`` against SciPy's distance transform, map by map: interleaved in one process.

    OMP_NUM_THREADS=2 python benchmarks/distance.py --json benchmarks/results/distance.json

Medians in milliseconds; the ratio is the median of the pairs' ratios, above 1 where ours is faster. SciPy takes a map
at a time on one thread; of the batch of 8 × 21 maps it takes one after the other. "indices" asks both for the nearest
site as well; "signed" is the convention of the boundary loss, which takes two transforms. What else runs on the machine
slows ours more than SciPy, as its threads wait for each other: measure on an idle one.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import torch
from _machine import machine
from _results import result_file, write_results
from _timing import interleaved
from scipy.ndimage import distance_transform_edt

from segzoo.ops import distance_to, signed_distance


def blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Four objects of uneven outline."""
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), bool)
    for _ in range(4):
        down, right = y - rng.uniform(0, height), x - rng.uniform(0, width)
        turned, long, short = rng.uniform(0, np.pi), *rng.uniform(0.03, 0.2, 2) * min(height, width)
        u, v = right * np.cos(turned) + down * np.sin(turned), down * np.cos(turned) - right * np.sin(turned)
        mask |= (u / long) ** 2 + (v / short) ** 2 < 1 + 0.3 * np.sin(5 * np.arctan2(v, u) + turned)
    return mask


def disc(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(height, width) / 5) ** 2


def outlines(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    mask = blobs(rng, height, width)
    return mask ^ np.roll(mask, 1, 0)


def one_pixel(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[rng.integers(height), rng.integers(width)] = True
    return mask


MASKS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "blobs": blobs,
    "their surroundings": lambda rng, height, width: ~blobs(rng, height, width),
    "their outlines": outlines,
    "a disc": disc,
    "sparse points": lambda rng, height, width: rng.random((height, width)) < 2e-4,
    "one pixel": one_pixel,
    "noise, 5 %": lambda rng, height, width: rng.random((height, width)) < 0.05,
}


def scipy_signed(mask: np.ndarray) -> np.ndarray:
    return distance_transform_edt(~mask) * ~mask - (distance_transform_edt(mask) - 1) * mask


def compare(name: str, theirs: Callable[[], object], ours: Callable[[], object], repeats: int) -> dict[str, float]:
    times = interleaved({"scipy": theirs, "ours": ours}, repeats)
    scipy, mine = (1000 * statistics.median(times[who]) for who in ("scipy", "ours"))
    ratio = statistics.median(a / b for a, b in zip(times["scipy"], times["ours"]))
    print(f"{name:44} SciPy {scipy:8.1f} ms, ours {mine:8.1f} ms: {ratio:.2f}×", flush=True)
    return {"scipy_ms": scipy, "ours_ms": mine, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=result_file, help="write the results to this file too")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    results: dict[str, object] = {}
    for height, width in ((512, 512), (1024, 2048)):
        for name, make in MASKS.items():
            mask = make(rng, height, width)
            sites, title = torch.from_numpy(mask), f"{height}×{width} {name}"
            results[title] = compare(
                title, lambda m=~mask: distance_transform_edt(m), lambda s=sites: distance_to(s), args.repeats
            )
        mask = blobs(rng, height, width)
        sites = torch.from_numpy(mask)
        results[f"{height}×{width} blobs, indices"] = compare(
            f"{height}×{width} blobs, indices",
            lambda m=~mask: distance_transform_edt(m, return_indices=True),
            lambda s=sites: distance_to(s, return_indices=True),
            args.repeats,
        )
        results[f"{height}×{width} blobs, signed"] = compare(
            f"{height}×{width} blobs, signed",
            lambda m=mask: scipy_signed(m),
            lambda s=sites: signed_distance(s),
            args.repeats,
        )
    makers = list(MASKS.values())
    masks = np.stack([makers[i % len(makers)](rng, 512, 512) for i in range(8 * 21)])
    sites = torch.from_numpy(masks).view(8, 21, 512, 512)
    results["8×21 maps of 512×512, all kinds"] = compare(
        "8×21 maps of 512×512, all kinds",
        lambda: [distance_transform_edt(~mask) for mask in masks],
        lambda: distance_to(sites),
        max(2, args.repeats // 5),
    )
    print(machine())
    if args.json:
        write_results(args.json, {**results, "repeats": args.repeats}, seed=0, peers=["scipy"])


if __name__ == "__main__":
    main()
