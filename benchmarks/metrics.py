"""The metrics beside their peers, paired in one process: the whole salient set, the confusion matrix, HD95 and ASSD.

    pip install ".[benchmark]"
    OMP_NUM_THREADS=2 python benchmarks/metrics.py --json benchmarks/results/metrics.json

Medians in milliseconds a picture; the ratio is the median of the pairs' ratios, peer to ours: above 1 ours is faster.
Before anything is timed, both have to agree. The pictures are made here, unless --data names a folder with ecssd/: then
the masks are ECSSD's, enlarged where they have to be, and the predictions blurred and noisy versions of them.

- Saliency: `SaliencyMetrics.update` on eight pictures, one after the other, against the five steps of py_sod_metrics
  (F, MAE, S, E, weighted F) on the same eight, 8 bit; with OpenCV and as if it were not installed.
- Confusion: one `SegmentationMetrics.update` of a 1024×2048 label map of 19 classes, a tenth of it ignored, against
  torchmetrics' `MulticlassConfusionMatrix` with its defaults and against the usual NumPy line.
- Boundary: one `BoundaryMetrics.update` with all its nine measures, 512×512, against MONAI's HD95 and ASSD alone.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import machine
from _results import result_file, write_results
from _timing import interleaved
from PIL import Image
from scipy import ndimage

from segzoo.metrics import BoundaryMetrics, SaliencyMetrics, SegmentationMetrics, _weighted_f

warnings.filterwarnings("ignore")  # the peers' own
SCALARS = ("mae", "max_f", "mean_f", "adaptive_f", "weighted_f", "s_measure", "max_e", "mean_e", "adaptive_e")


def smooth(rng: np.random.Generator, height: int, width: int, sigma: float) -> np.ndarray:
    """Noise without detail, mean 0, deviation 1."""
    small = rng.normal(size=(max(2, int(height / sigma)), max(2, int(width / sigma))))
    grown = ndimage.zoom(small, (height / small.shape[0], width / small.shape[1]), order=3)[:height, :width]
    return (grown - grown.mean()) / grown.std()


def salient_pair(rng: np.random.Generator, height: int, width: int, data: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """A prediction of 8 bits with grey all over, and its mask."""
    if data is None:
        truth = smooth(rng, height, width, min(height, width) / 3) > 0.6
    else:
        path = sorted((data / "ecssd" / "masks").glob("*.png"))[int(rng.integers(1000))]
        truth = np.asarray(Image.open(path).convert("L").resize((width, height))) > 127
    mask = np.where(truth, 255, 0).astype(np.uint8)
    soft = ndimage.gaussian_filter(mask * 0.85, height / 60) + 10 + 25 * smooth(rng, height, width, 20)
    return np.clip(soft + rng.normal(0, 2, mask.shape), 0, 255).astype(np.uint8), mask


def saliency(repeats: int, data: Path | None, opencv: bool) -> list[dict[str, Any]]:
    import py_sod_metrics as peer

    def reference(prediction: np.ndarray, mask: np.ndarray) -> list[Any]:
        steps = [peer.Fmeasure(), peer.MAE(), peer.Smeasure(), peer.Emeasure(), peer.WeightedFmeasure()]
        for step in steps:
            step.step(prediction, mask)
        return steps

    def agree(prediction: np.ndarray, mask: np.ndarray) -> None:
        f, mae, s, e, weighted = (step.get_results() for step in reference(prediction, mask))
        curve, e_curve = f["fm"]["curve"], e["em"]["curve"]
        expected = (mae["mae"], curve.max(), curve.mean(), f["fm"]["adp"], weighted["wfm"], s["sm"])
        metrics = SaliencyMetrics()
        metrics.update(prediction, mask)
        result = metrics.compute()
        for name, value in zip(SCALARS, (*expected, e_curve.max(), e_curve.mean(), e["em"]["adp"])):
            assert abs(result[name] - value) < 1e-9, (name, result[name], value)

    if not opencv:
        _weighted_f._opencv = lambda: None
    rows = []
    for height, width in ((300, 400), (1024, 1024)):
        rng = np.random.default_rng(0)
        pictures = [salient_pair(rng, height, width, data) for _ in range(8)]
        for prediction, mask in pictures:
            agree(prediction, mask)
        metrics = SaliencyMetrics()

        def peer_run(pictures: list[Any] = pictures) -> None:
            for prediction, mask in pictures:
                reference(prediction, mask)

        def our_run(pictures: list[Any] = pictures, metrics: SaliencyMetrics = metrics) -> None:
            for prediction, mask in pictures:
                metrics.update(prediction, mask)

        name = f"saliency, {height}×{width}, {'OpenCV' if opencv else 'without OpenCV'}"
        rows.append(row(name, "py_sod_metrics", measure(peer_run, our_run, repeats, len(pictures))))
    return rows


def label_pair(rng: np.random.Generator, dtype: type) -> tuple[torch.Tensor, torch.Tensor]:
    """Label maps of 1024×2048, 19 classes in patches, of which the prediction has most right; a tenth is ignored."""
    fields = np.stack([smooth(rng, 1024, 2048, 80) for _ in range(19)])
    target = fields.argmax(0)
    prediction = (fields + 0.3 * np.stack([smooth(rng, 1024, 2048, 40) for _ in range(19)])).argmax(0)
    target[smooth(rng, 1024, 2048, 60) > 1.28] = 255
    return torch.from_numpy(prediction.astype(dtype)), torch.from_numpy(target.astype(dtype))


def confusion(repeats: int) -> list[dict[str, Any]]:
    from torchmetrics.classification import MulticlassConfusionMatrix

    def by_numpy(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        valid = (target >= 0) & (target < 19)
        return np.bincount(19 * target[valid].astype(int) + prediction[valid], minlength=19**2).reshape(19, 19)

    rows = []
    for dtype in (np.uint8, np.int64):
        prediction, target = label_pair(np.random.default_rng(0), dtype)
        peer = MulticlassConfusionMatrix(19, ignore_index=255)
        ours = SegmentationMetrics(19)
        peer.update(prediction, target)
        ours.update(prediction, target)
        expected = by_numpy(prediction.numpy(), target.numpy())
        assert np.array_equal(ours.compute()["confusion_matrix"].numpy(), expected)
        assert np.array_equal(peer.compute().numpy(), expected)
        for name, run in (
            ("torchmetrics", lambda p=prediction, t=target, metric=peer: metric.update(p, t)),
            ("numpy.bincount", lambda p=prediction, t=target: by_numpy(p.numpy(), t.numpy())),
        ):
            pairs = measure(run, lambda p=prediction, t=target, metric=ours: metric.update(p, t), repeats)
            rows.append(row(f"confusion matrix, {np.dtype(dtype).name}", name, pairs))
    return rows


def boundary(repeats: int) -> list[dict[str, Any]]:
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    rng = np.random.default_rng(0)
    ground = smooth(rng, 512, 512, 120)
    target = torch.from_numpy(ground > 0.5)
    near = torch.from_numpy(ground + 0.05 * smooth(rng, 512, 512, 40) > 0.5)
    noisy = torch.from_numpy(ground + 0.15 * rng.normal(size=(512, 512)) > 0.5)
    rows = []
    for name, prediction in (
        ("rims that almost agree", near),
        ("moved by 30 pixels", target.roll(30, 1)),
        ("noise", noisy),
    ):

        def peer(p: torch.Tensor = prediction) -> tuple[torch.Tensor, torch.Tensor]:
            both = p[None, None].float(), target[None, None].float()
            options = {"include_background": True}
            return (
                compute_hausdorff_distance(*both, percentile=95, **options),
                compute_average_surface_distance(*both, symmetric=True, **options),
            )

        ours = BoundaryMetrics()
        ours.update(prediction, target)
        result, (hd95, assd) = ours.compute(), peer()
        assert abs(result["hd95"] - hd95.item()) < 1e-4 and abs(result["assd"] - assd.item()) < 1e-4
        pairs = measure(peer, lambda p=prediction, metric=ours: metric.update(p, target), repeats)
        rows.append(row(f"boundary, {name}", "monai", pairs))
    return rows


def measure(
    peer: Callable[[], object], ours: Callable[[], object], repeats: int, pictures: int = 1
) -> list[tuple[float, float]]:
    """Milliseconds a picture of both, pair by pair."""
    times = interleaved({"peer": peer, "ours": ours}, repeats)
    return [(1000 * a / pictures, 1000 * b / pictures) for a, b in zip(times["peer"], times["ours"])]


def row(name: str, peer: str, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    result = {
        "case": name,
        "peer": peer,
        "peer_ms": statistics.median(pair[0] for pair in pairs),
        "ours_ms": statistics.median(pair[1] for pair in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
        "lowest_ratio": min(a / b for a, b in pairs),
    }
    print(
        f"{name:44}{peer:16}{result['peer_ms']:9.2f}{result['ours_ms']:9.2f}{result['ratio']:8.2f}"
        f"{result['lowest_ratio']:8.2f}",
        flush=True,
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with ecssd/; else masks are made up")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=result_file, help="write the results to this file too")
    args = parser.parse_args()
    print(f"{'':44}{'peer':16}{'peer ms':>9}{'ours ms':>9}{'ratio':>8}{'lowest':>8}")
    rows = saliency(args.repeats, args.data, opencv=True) + saliency(args.repeats, args.data, opencv=False)
    rows += confusion(args.repeats) + boundary(args.repeats)
    print(machine())
    if args.json:
        masks = "ECSSD's" if args.data else "made up"
        results = {"rows": rows, "masks": masks, "repeats": args.repeats}
        write_results(args.json, results, seed=0, peers=["pysodmetrics", "torchmetrics", "monai"])


if __name__ == "__main__":
    main()
