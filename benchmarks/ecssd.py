"""U²-Net's row on ECSSD: max F, MAE, weighted F and S-measure by the published protocol, beside the published figures.

    pip install ".[benchmark]"
    python benchmarks/ecssd.py --data DIR        # DIR/images/*.jpg and DIR/masks/*.png, all 1000

Protocol: the picture resized bilinearly to 320×320 and divided by its own maximum, normalised; the prediction
stretched to 0…1 (min-max), 8 bit, bilinearly back to the picture's size; mask > 127 is foreground. Max F (β² = 0.3) is
the maximum of F over the data set's mean precision and recall curves, as in the paper: `SaliencyMetrics("paper")`. What
py_sod_metrics calls so, the maximum of the mean of the pictures' F curves, is printed beside it. Both stretch each
prediction once more.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from _machine import machine
from _results import result_file, write_results
from PIL import Image
from tqdm import tqdm

import segzoo
from segzoo.inference.picture import Picture, read_picture
from segzoo.inference.predictor import Prediction
from segzoo.metrics import SaliencyMetrics

PUBLISHED_NAMES = {"max_f": "max F", "mae": "MAE", "weighted_f": "weighted F", "s_measure": "S-measure"}


def skimage_input(picture: Picture) -> torch.Tensor:
    """The official code's input: scikit-image's resize in floating point, then the division by the maximum."""
    from skimage import transform

    resized = transform.resize(picture.pixels, (320, 320), mode="constant")
    x = torch.from_numpy((resized / max(resized.max(), 1e-6)).transpose(2, 0, 1).astype(np.float32))
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (x - mean) / std


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("SEGZOO_DATA", "../shared/data")) / "ecssd"
    parser.add_argument("--data", type=Path, default=default, help="default: %(default)s")
    parser.add_argument("--model", default="u2net_lite.duts")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--resize", default="segzoo", choices=["segzoo", "skimage"], help="who resizes the input")
    parser.add_argument(
        "--no-min-max", action="store_true", help="score the probabilities as they are: no min-max anywhere, no 8 bit"
    )
    parser.add_argument("--limit", type=int, help="only the first N pictures")
    parser.add_argument("--json", type=result_file, help="write the results to this file too")
    args = parser.parse_args()

    predictor = segzoo.Predictor(args.model, precision=args.precision)
    record = segzoo.get_weights(args.model)
    paths = sorted((args.data / "images").glob("*.jpg"))[: args.limit]
    if not paths:
        parser.error(f"no pictures in {args.data / 'images'}")
    normalize, seconds = not args.no_min_max, 0.0
    metrics = SaliencyMetrics("paper", normalize=normalize)
    pysod = SaliencyMetrics("pysod", normalize=normalize, measures="f_measure")
    for path in tqdm(paths, unit=" pictures", disable=None):
        started = time.perf_counter()
        if args.resize == "skimage":
            picture = read_picture(path)
            prediction = Prediction(picture, predictor.scores(skimage_input(picture)[None])[0])
        else:
            prediction = predictor(path)
        scored = prediction.evaluation_map() if normalize else prediction.probabilities[0]
        seconds += time.perf_counter() - started
        mask = np.asarray(Image.open(args.data / "masks" / f"{path.stem}.png").convert("L"))
        metrics.update(scored, mask > 127)
        pysod.update(scored, mask > 127)

    computed = metrics.compute()
    results = {name: computed[name] for name in PUBLISHED_NAMES}
    results["max_f_of_mean_curves_per_picture"] = pysod.compute()["max_f"]
    print(
        f"\n{args.model} on ECSSD, {len(paths)} pictures, {args.precision}, resized by {args.resize}, "
        f"{'no min-max' if args.no_min_max else 'min-max'}; {len(paths) / seconds:.1f} pictures/s"
    )
    print(f"protocol: {'the probabilities as they are' if args.no_min_max else record.protocol}")
    print(f"{'':14}{'measured':>10}{'published':>11}")
    published = record.published_metrics.get("ECSSD", {})
    for key, name in PUBLISHED_NAMES.items():
        print(f"{name:14}{results[key]:10.4f}{published.get(key, float('nan')):11.3f}")
    print(f"(py_sod_metrics' own max F: {results['max_f_of_mean_curves_per_picture']:.4f})\n{machine()}")
    if args.json:
        settings = {
            "model": args.model,
            "pictures": len(paths),
            "precision": args.precision,
            "resize": args.resize,
            "min_max": not args.no_min_max,
        }
        write_results(args.json, {**settings, **results}, peers=["scikit-image"])


if __name__ == "__main__":
    main()
