"""A picture to the tensor that a model takes: against scikit-image, and JPEGs decoded at a fraction of their size.

    OMP_NUM_THREADS=2 python benchmarks/preprocessing.py --json benchmarks/results/preprocessing.json

"small": pictures of ECSSD (300×400 and the like): resized to 320×320 and normalised from pixels in memory, by
``segzoo.inference.preprocess`` and by ``skimage.transform.resize`` (smoothed, too; then the same formula in NumPy); and
the same from the file. "large": a JPEG file of 12 megapixels to the tensor, decoded whole and decoded as
the model needs it (``at_least``). Interleaved in one process; medians, and the pairs' median ratio.

"masks": what the smaller decoding changes: pictures enlarged to 12 megapixels with noise added, JPEG of quality 90; the
mean difference of the bundled model's probabilities to those of the whole decoding, and the share of the mask's pixels
that flip; beside it the same for a change that nobody minds, the file saved again at quality 85.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import skimage.io
import skimage.transform
import torch
from _machine import machine
from _results import result_file, write_results
from _timing import interleaved
from PIL import Image

from segzoo import Predictor
from segzoo.inference import Picture, preprocess, read_picture
from segzoo.weights import Preprocessing


def with_skimage(pixels: np.ndarray, rule: Preprocessing) -> torch.Tensor:
    resized = skimage.transform.resize(pixels, rule.size, anti_aliasing=True)
    normalised = (resized / resized.max() - np.array(rule.mean)) / np.array(rule.std)
    return torch.from_numpy(normalised.transpose(2, 0, 1).astype(np.float32))


def enlarged(path: Path, megapixels: float, quality: int) -> bytes:
    """A picture as a large JPEG; the noise keeps it from being smoother than a photo."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    factor = (megapixels * 1e6 / (picture.width * picture.height)) ** 0.5
    size = round(picture.width * factor), round(picture.height * factor)
    pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
    pixels += np.random.default_rng(0).integers(-6, 7, pixels.shape, dtype=np.int16)
    return as_jpeg(pixels.clip(0, 255).astype(np.uint8), quality)


def as_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def speeds(paths: list[Path], rule: Preprocessing, repeats: int) -> dict[str, Any]:
    pictures = [read_picture(path) for path in paths]
    large = enlarged(paths[0], 12, 90)

    def of_all(work: Callable[[Any], object], items: list[Any]) -> Callable[[], object]:
        return lambda: [work(item) for item in items]

    def from_file(at_least: int | tuple[int, int] | None) -> Callable[[], object]:
        return lambda: preprocess(read_picture(io.BytesIO(large), at_least=at_least), rule)

    cases: dict[str, dict[str, Callable[[], object]]] = {
        "small, from memory": {
            "skimage": of_all(lambda picture: with_skimage(picture.pixels, rule), pictures),
            "segzoo": of_all(lambda picture: preprocess(picture, rule), pictures),
        },
        "small, from the file": {
            "skimage": of_all(lambda path: with_skimage(skimage.io.imread(path), rule), paths),
            "segzoo": of_all(lambda path: preprocess(read_picture(path, at_least=rule.size), rule), paths),
        },
        "large, from the file": {"whole": from_file(None), "segzoo": from_file(rule.size)},
    }
    rows = {}
    for name, candidates in cases.items():
        count = len(paths) if name.startswith("small") else 1
        times = interleaved(candidates, repeats)
        other = next(iter(candidates))
        ratio = statistics.median(a / b for a, b in zip(times[other], times["segzoo"]))
        ms = {kind: 1000 * statistics.median(seconds) / count for kind, seconds in times.items()}
        rows[name] = {**{f"{kind}_ms": value for kind, value in ms.items()}, "ratio": ratio}
        print(f"{name:22} {other} {ms[other]:7.2f} ms, segzoo {ms['segzoo']:6.2f} ms: {ratio:.1f}×", flush=True)
    return rows


def changes(paths: list[Path], rule: Preprocessing) -> dict[str, Any]:
    predictor = Predictor("u2net_lite.duts", device="cpu", precision="fp32")

    def scores(picture: Picture) -> torch.Tensor:
        return predictor.scores(preprocess(picture, rule)[None])

    found: dict[str, list[tuple[float, float]]] = {"a fraction of the size": [], "saved again at quality 85": []}
    for path in paths:
        content = enlarged(path, 12, 90)
        whole = read_picture(io.BytesIO(content))
        reference = scores(whole)
        others: tuple[Any, Any] = (read_picture(io.BytesIO(content), at_least=rule.size), as_jpeg(whole.pixels, 85))
        for name, other in zip(found, others):
            changed = scores(other if isinstance(other, Picture) else read_picture(io.BytesIO(other)))
            flipped = ((changed > 0.5) != (reference > 0.5)).float().mean().item()
            found[name].append(((changed - reference).abs().mean().item(), flipped))
    rows = {}
    for name, values in found.items():
        difference, flipped = (statistics.mean(column) for column in zip(*values))
        worst = max(share for _, share in values)
        rows[name] = {"mean_difference": difference, "flipped": flipped, "worst_flipped": worst}
        print(f"masks, {name:26} mean |Δp| {difference:.5f}, flipped {flipped:.3%}, at worst {worst:.2%}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("SEGZOO_DATA", "../shared/data")) / "ecssd"
    parser.add_argument("--data", type=Path, default=default, help="any folder of JPEG files; default: %(default)s")
    parser.add_argument("--pictures", type=int, default=20, help="for the masks; half as many for the times")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=result_file, help="write the results to this file too")
    args = parser.parse_args()
    sources = sorted(args.data.rglob("*.jpg"))
    if not sources:
        parser.error(f"there is no JPEG file in {args.data}")
    chosen = [sources[i] for i in np.random.default_rng(0).permutation(len(sources))[: args.pictures]]
    rule = Preprocessing(scale="max")
    results = {"speed": speeds(chosen[: max(1, len(chosen) // 2)], rule, args.repeats), "masks": changes(chosen, rule)}
    print(machine())
    if args.json:
        peers = ("scikit-image", "pillow")
        write_results(args.json, {**results, "pictures": len(chosen), "repeats": args.repeats}, seed=0, peers=peers)


if __name__ == "__main__":
    main()
