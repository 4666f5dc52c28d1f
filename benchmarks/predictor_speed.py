"""The Predictor against the same module's plain eager forward: interleaved in one process, medians, paired ratios.

    OMP_NUM_THREADS=2 python benchmarks/predictor_speed.py

"forward" is one preprocessed picture at 320×320: ``model(x)`` of the module as the factory built it, in eval mode,
against ``predictor.scores(x)``; "no_grad" is the same with ``model(x)`` under ``torch.no_grad()``. "picture" is a JPEG
file to a mask at its size: the plain module in the loop that a tutorial would write (Pillow, resize, normalise, forward
under no_grad, sigmoid, resize) against ``predictor(path).mask``.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from _machine import machine
from _results import result_file, write_results
from _timing import interleaved
from PIL import Image

import segzoo

PICTURE = Path(__file__).resolve().parent.parent / "examples/images/coffee.jpg"


def tutorial_loop(model: torch.nn.Module, path: Path) -> np.ndarray:
    """A mask of a picture as one would write it by hand."""
    image = Image.open(path).convert("RGB")
    x = np.asarray(image.resize((320, 320), Image.Resampling.BILINEAR)).astype(np.float32)
    x = (x / x.max() - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    with torch.no_grad():
        probabilities = torch.sigmoid(model(torch.from_numpy(x.transpose(2, 0, 1)[None].astype(np.float32))))
    full = torch.nn.functional.interpolate(probabilities, (image.height, image.width), mode="bilinear")
    return (full[0, 0] > 0.5).numpy()


def compare(name: str, repeats: int) -> dict[str, dict[str, float]]:
    """Both comparisons of one model; the ratio is the median of the pairs' ratios."""
    # Speed does not depend on the weights' values: a model whose file is not here is timed with random ones.
    model = segzoo.create_model(name, **({} if name == "u2net_lite" else {"weights": None})).eval()
    predictor = segzoo.Predictor(model, device="cpu", precision="fp32")
    x = torch.rand(1, 3, 320, 320)

    def no_grad() -> torch.Tensor:
        with torch.no_grad():
            return model(x)

    def ours() -> torch.Tensor:
        return predictor.scores(x)

    rounds = interleaved({"forward": lambda: model(x), "no_grad": no_grad, "ours": ours}, repeats)
    pictures = interleaved(
        {"eager": lambda: tutorial_loop(model, PICTURE), "ours": lambda: predictor(PICTURE).mask}, repeats
    )
    pairs = {
        "forward": (rounds["forward"], rounds["ours"]),
        "no_grad": (rounds["no_grad"], rounds["ours"]),
        "picture": (pictures["eager"], pictures["ours"]),
    }
    results = {}
    for what, (theirs, mine) in pairs.items():
        ratio = statistics.median(a / b for a, b in zip(theirs, mine))
        eager, ours_ms = 1000 * statistics.median(theirs), 1000 * statistics.median(mine)
        results[f"{name} {what}"] = {"eager_ms": eager, "predictor_ms": ours_ms, "ratio": ratio}
        print(f"{name:12} {what:8} plain eager {eager:7.1f} ms, Predictor {ours_ms:7.1f} ms: {ratio:.2f}×")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["u2net_lite"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=result_file, help="write the results to this file too")
    args = parser.parse_args()
    results: dict[str, object] = {}
    for name in args.models:
        results |= compare(name, args.repeats)
    print(machine())
    if args.json:
        write_results(args.json, {**results, "repeats": args.repeats})


if __name__ == "__main__":
    main()
