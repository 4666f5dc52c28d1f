"""What calibrating the bundled weights' batch norms is worth: train mode's prediction against eval mode's.

    python benchmarks/calibration.py --data DIR [--onnx u2netp.onnx]     # DIR/images/*.jpg of ECSSD

On ECSSD pictures 0801 to 1000, which did not calibrate: the mean of |train − eval| of the probabilities at 320×320, and
the mean prediction in each mode, by batch size. With the published ONNX file also of its plain conversion, whose
norms do nothing, and how far the bundled weights in eval mode are from onnxruntime on that file.
"""

from __future__ import annotations

import argparse
import copy
import os
from pathlib import Path

import torch
from _machine import machine
from _results import result_file, write_results
from torch import Tensor, nn

import segzoo
from segzoo.inference import preprocess, read_picture


@torch.no_grad()
def train_against_eval(model: nn.Module, pictures: Tensor, batch_size: int) -> dict[str, float]:
    """Means over all pictures; every batch meets the statistics as they were loaded."""
    trained, expected = [], []
    for batch in pictures.split(batch_size):
        trained.append(copy.deepcopy(model).train()(batch)[0].sigmoid())
        expected.append(model.eval()(batch).sigmoid())
    a, b = torch.cat(trained), torch.cat(expected)
    return {"difference": (a - b).abs().mean().item(), "train_mean": a.mean().item(), "eval_mean": b.mean().item()}


@torch.no_grad()
def against_onnxruntime(model: nn.Module, onnx: Path, pictures: Tensor) -> dict[str, float]:
    """Largest and mean difference of the probabilities."""
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx)
    name = session.get_inputs()[0].name
    theirs = torch.cat([torch.from_numpy(session.run(None, {name: x[None].numpy()})[0]) for x in pictures])
    ours = torch.cat([model.eval()(x[None]).sigmoid() for x in pictures])
    return {"largest": (ours - theirs).abs().max().item(), "mean": (ours - theirs).abs().mean().item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("SEGZOO_DATA", "../shared/data")) / "ecssd"
    parser.add_argument("--data", type=Path, default=default, help="default: %(default)s")
    parser.add_argument("--onnx", type=Path, help="the published u2netp.onnx")
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--json", type=result_file, help="write the results to this file too")
    args = parser.parse_args()

    bundled = segzoo.u2net_lite()
    paths = sorted((args.data / "images").glob("*.jpg"))[800:]
    paths = paths[:: max(len(paths) // args.pictures, 1)][: args.pictures]
    pictures = torch.stack([preprocess(read_picture(path), bundled.preprocessing) for path in paths])
    results: dict[str, object] = {"pictures": len(paths)}
    models = {"bundled": bundled}
    if args.onnx:
        models["plain conversion"] = segzoo.u2net_lite(args.onnx)
    for name, model in models.items():
        for batch_size in (2, 8):
            found = train_against_eval(model, pictures, batch_size)
            results[f"{name}, batch {batch_size}"] = found
            print(f"{name}, batch {batch_size}: |train - eval| {found['difference']:.4f}, mean prediction "
                  f"{found['train_mean']:.4f} in train mode, {found['eval_mean']:.4f} in eval mode")  # fmt: skip
    if args.onnx:
        results["eval against onnxruntime"] = apart = against_onnxruntime(bundled, args.onnx, pictures)
        print(f"bundled, eval, against onnxruntime: {apart['largest']:.1e} at most, {apart['mean']:.1e} in the mean")
        noise = torch.randn(4, 3, 320, 320, generator=torch.Generator().manual_seed(0))
        results["the same on random input"] = apart = against_onnxruntime(bundled, args.onnx, noise)
        print(f"the same on random input: {apart['largest']:.1e} at most, {apart['mean']:.1e} in the mean")
    print(f"{len(paths)} pictures of ECSSD; {machine()}")
    if args.json:
        write_results(args.json, results, seed=0, peers=["onnxruntime"])


if __name__ == "__main__":
    main()
