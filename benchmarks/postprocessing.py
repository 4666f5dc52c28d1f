"""What helps on ECSSD after, or around, the model: flips, scales, the guided filter, the CRF, some of them together.

    python benchmarks/postprocessing.py --data DIR --cache FOLDER --json benchmarks/results/postprocessing.json

Predictions are those of ``segzoo.Predictor``, not stretched, at each picture's full size; all rows are scored the same
way: `SaliencyMetrics("paper", normalize=False)` and `BoundaryMetrics()`. "Thresholded" is the plain row's mask, 0 or 1:
what a row gains in MAE and weighted F beside plain, but not beside this one, it gains by being surer, not righter.
Seconds are a picture's, the model's and what comes after, on the machine that the last line names.

The defaults of `refine_edges` and `crf` were chosen on the odd ones of the pictures 0801 to 0839; those are left out,
unless --tuned asks for them alone. What the model says is kept in the ``--cache`` folder, if there is one, so that a
run that was stopped goes on where it was; delete it when the model changes. The file of --json has measures and seconds
apart, as they come from runs of their own (--seconds, without --cache).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import machine
from _results import read_results, result_file, write_results
from PIL import Image
from tqdm import tqdm

import segzoo
from segzoo.inference import crf, read_picture, refine_edges
from segzoo.metrics import BoundaryMetrics, SaliencyMetrics
from segzoo.ops import resize

Step = Callable[[torch.Tensor, np.ndarray], torch.Tensor]  # scores [1, h, w] and pixels [H, W, 3] to [1, H, W]
TUNED = {f"{number:04d}" for number in range(801, 841, 2)}
VIEWS: dict[str, Any] = {"plain": None, "flip": "flip", "3 scales": (0.75, 1.0, 1.25), "8 scales": "multi-scale"}
COLUMNS = {
    "max_f": "max F",
    "mae": "MAE",
    "s_measure": "S",
    "weighted_f": "weighted F",
    "boundary_f1": "boundary F",
    "relaxed_f": "relaxed F",
    "boundary_iou": "boundary IoU",
    "seconds": "s / picture",
}


def full_size(scores: torch.Tensor, pixels: np.ndarray) -> torch.Tensor:
    return resize(scores[None], pixels.shape[:2])[0].clamp(0, 1)


ROWS: dict[str, tuple[str, Step]] = {
    "plain": ("plain", full_size),
    "plain, thresholded": ("plain", lambda scores, pixels: (full_size(scores, pixels) > 0.5).float()),
    "flip": ("flip", full_size),
    "3 scales and flip": ("3 scales", full_size),
    "8 scales and flip": ("8 scales", full_size),
    "guided filter": ("plain", refine_edges),
    "CRF": ("plain", crf),
    "CRF, then guided filter": ("plain", lambda scores, pixels: refine_edges(crf(scores, pixels), pixels)),
    "flip, guided filter": ("flip", refine_edges),
    "flip, CRF": ("flip", crf),
    "3 scales and flip, guided filter": ("3 scales", refine_edges),
    "3 scales and flip, CRF": ("3 scales", crf),
}


class Maps:
    """What the model says about pictures, from the cache where it is there.

    Args:
        model: Its name.
        cache: A folder, or None.
    """

    def __init__(self, model: str, cache: Path | None) -> None:
        self.model, self.cache = model, cache
        self.predictors: dict[str, segzoo.Predictor] = {}

    def __call__(self, path: Path, view: str) -> tuple[torch.Tensor, float]:
        """Scores ``[1, h, w]`` in 65536 levels, and the seconds they took."""
        file = self.cache / view.replace(" ", "_") / f"{path.stem}.npz" if self.cache else None
        if file and file.exists():
            with np.load(file) as saved:
                return torch.from_numpy(saved["scores"].astype(np.float32) / 65535), float(saved["seconds"])
        if view not in self.predictors:
            self.predictors[view] = segzoo.Predictor(self.model, precision="fp32", tta=VIEWS[view])
            self.predictors[view](path)  # the first call is a slow one
        started = time.perf_counter()
        scores = self.predictors[view](path).scores
        seconds = time.perf_counter() - started
        levels = (scores * 65535).round().numpy().astype(np.uint16)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".part")
            with partial.open("wb") as stream:
                np.savez_compressed(stream, scores=levels, seconds=seconds)
            partial.replace(file)
        return torch.from_numpy(levels.astype(np.float32) / 65535), seconds


def measured(paths: list[Path], data: Path, maps: Maps, rows: list[str]) -> dict[str, dict[str, float]]:
    saliency = {row: SaliencyMetrics("paper", normalize=False) for row in rows}
    boundary = {row: BoundaryMetrics() for row in rows}
    seconds = dict.fromkeys(rows, 0.0)
    for path in tqdm(paths, unit=" pictures", disable=None):
        pixels = read_picture(path).pixels
        mask = np.asarray(Image.open(data / "masks" / f"{path.stem}.png").convert("L")) > 127
        for row in rows:
            view, step = ROWS[row]
            scores, spent = maps(path, view)
            started = time.perf_counter()
            result = step(scores, pixels)[0]
            seconds[row] += spent + time.perf_counter() - started
            saliency[row].update(result, mask)
            boundary[row].update(result, mask)
    results = {}
    for row in rows:
        values = {**saliency[row].compute(), **boundary[row].compute(), "seconds": seconds[row] / len(paths)}
        results[row] = {name: float(values[name]) for name in COLUMNS}
    return results


def table(results: dict[str, dict[str, float]]) -> str:
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---:|" * len(COLUMNS)]
    for row, values in results.items():
        cells = [f"{values[name]:.2f}" if name == "seconds" else f"{values[name]:.4f}" for name in COLUMNS]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def merged(
    kept: dict[str, Any], results: dict[str, dict[str, float]], model: str, run: str, only_seconds: bool
) -> dict[str, Any]:
    """The rows of a file, with those of this run, or the seconds of this run, in their place."""
    old = {name: dict(rows) for name, rows in kept.items() if isinstance(rows, dict) and kept.get("model") == model}
    title = f"seconds a picture, {run}, {torch.get_num_threads()} threads" if only_seconds else run
    for row, values in results.items():
        measures = {name: value for name, value in values.items() if name != "seconds"}
        old.setdefault(title, {})[row] = values["seconds"] if only_seconds else measures
    return {"model": model, **old}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("SEGZOO_DATA", "../shared/data")) / "ecssd"
    parser.add_argument("--data", type=Path, default=default, help="default: %(default)s")
    parser.add_argument("--model", default="u2net_lite.duts")
    parser.add_argument("--pictures", type=int, help="so many, spread evenly over the data set; default: all")
    parser.add_argument("--tuned", action="store_true", help="the pictures the defaults were chosen on, instead")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="ROW", help="only these")
    parser.add_argument("--cache", type=Path, help="a folder for what the model says")
    parser.add_argument("--seconds", action="store_true", help="write down only the seconds: for an idle machine")
    parser.add_argument("--json", type=result_file, help="figures of other runs that are in the file stay")
    args = parser.parse_args()
    paths = [path for path in sorted((args.data / "images").glob("*.jpg")) if (path.stem in TUNED) == args.tuned]
    if args.pictures:
        paths = [paths[i * len(paths) // args.pictures] for i in range(min(args.pictures, len(paths)))]
    if not paths:
        parser.error(f"no pictures in {args.data / 'images'}")
    results = measured(paths, args.data, Maps(args.model, args.cache), args.rows)
    print(f"{args.model} on {len(paths)} pictures of ECSSD\n\n{table(results)}\n\n{machine()}")
    if args.json:
        kept = read_results(args.json)
        run = f"{len(paths)} pictures" + (", those of the defaults" if args.tuned else "")
        write_results(args.json, merged(kept, results, args.model, run, args.seconds), kept=kept)


if __name__ == "__main__":
    main()
