"""A folder of large pictures to masks, and the first mask of a fresh process, against a rembg-style loop in one run.

    SEGZOO_U2NETP_ONNX=…/u2netp.onnx OMP_NUM_THREADS=2 python benchmarks/end_to_end.py --json out.json

"folder": JPEG pictures of 1 to 12 megapixels (those of ECSSD enlarged, quality 90, made anew in a temporary folder) are
decoded, segmented and written as PNG masks of their own size: by ``segzoo.inference.predict_folder``, and by the loop
that rembg runs of each picture, on rembg's own file in onnxruntime: open, turn upright, Lanczos to 320×320, normalise,
run, stretch to 0…1, Lanczos to the picture's size, save. In turn, a chunk of pictures each; every second chunk the
other one is first. "model alone" is the network on a picture in memory, in the same turns; what is left of a picture's
time is "outside the model", which may be hidden behind it in threads.

"first picture": seconds from the start of a process to a written mask of a small picture, and the most memory it held:
``python -m segzoo predict``, in torch and from an ONNX file of the same model, and the loop above as a script that
imports nothing else. Fresh processes, in turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from _results import ROOT, result_file, write_results
from PIL import Image, ImageOps

PICTURE = ROOT / "examples/images/coffee.jpg"
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def rembg_style(session: Any, source: Path, target: Path) -> None:
    """One picture, by what rembg does: written after its behaviour."""
    with Image.open(source) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    x = np.asarray(image.resize((320, 320), Image.Resampling.LANCZOS)).astype(np.float32)
    x = ((x / max(x.max(), 1e-6) - MEAN) / STD).transpose(2, 0, 1)[None]
    scores = session.run(None, {session.get_inputs()[0].name: x})[0][0, 0]
    low, high = scores.min(), scores.max()
    mask = Image.fromarray(((scores - low) / (high - low) * 255).astype(np.uint8))
    mask.resize(image.size, Image.Resampling.LANCZOS).save(target)


def large_pictures(data: Path, folder: Path, count: int) -> Iterator[Path]:
    """JPEG files of 1 to 12 megapixels, sizes and pictures in a fixed random order."""
    sources = sorted(data.rglob("*.jpg"))
    if not sources:
        raise SystemExit(f"there is no JPEG file in {data}: give --data")
    random = np.random.default_rng(0)
    chosen = random.permutation(len(sources))
    for i, megapixels in enumerate(random.permutation(np.linspace(1, 12, count))):
        with Image.open(sources[chosen[i % len(sources)]]) as image:
            picture = image.convert("RGB")
        factor = (megapixels * 1e6 / (picture.width * picture.height)) ** 0.5
        picture = picture.resize(
            (round(picture.width * factor), round(picture.height * factor)), Image.Resampling.BICUBIC
        )
        path = folder / f"{i:03}.jpg"
        picture.save(path, quality=90)
        yield path


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - started)


def compare_folder(args: argparse.Namespace, session: Any) -> dict[str, Any]:
    """Pictures per second of all candidates, and what their models take alone."""
    import torch

    from segzoo import Predictor
    from segzoo.inference import predict_folder

    makers: dict[str, Callable[[], Predictor]] = {
        "float32": lambda: Predictor("u2net_lite.duts", device="cpu", precision="fp32"),
        "bf16": lambda: Predictor("u2net_lite.duts", device="cpu", precision="bf16"),
        "onnxruntime": lambda: Predictor("u2net_lite.duts", backend="onnxruntime"),
        "openvino": lambda: Predictor("u2net_lite.duts", backend="openvino"),
    }
    predictors = {name: makers[name]() for name in args.candidates}
    x = np.zeros((1, 3, 320, 320), np.float32)
    name_of_input = session.get_inputs()[0].name
    models: dict[str, Callable[[], object]] = {"rembg": lambda: session.run(None, {name_of_input: x})}
    for name, predictor in predictors.items():
        given: Any = torch.from_numpy(x) if predictor.backend == "torch" else x
        models[name] = lambda p=predictor, v=given: p.scores(v)  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in models}
    alone: dict[str, list[float]] = {name: [] for name in models}
    with tempfile.TemporaryDirectory() as place:
        folder, results = Path(place), Path(place, "masks")
        results.mkdir()
        pictures = list(large_pictures(args.data, folder, args.pictures))

        def run(name: str, chunk: list[Path]) -> None:
            if name != "rembg":
                predict_folder(predictors[name], chunk, results / name, workers=args.workers)
                return
            for path in chunk:
                rembg_style(session, path, results / f"{path.stem}.png")

        for name in models:
            run(name, pictures[:2])
        for start in range(0, len(pictures), args.chunk):
            chunk = pictures[start : start + args.chunk]
            order = list(models) if start // args.chunk % 2 else list(models)[::-1]
            for name in order:
                with timed(times[name]):
                    run(name, chunk)
                for _ in range(3):
                    with timed(alone[name]):
                        models[name]()
        agreement = {name: statistics.mean(agreeing(results, name, path) for path in pictures) for name in predictors}
    table: dict[str, Any] = {"pictures": len(pictures), "chunk": args.chunk, "workers": args.workers, "rows": {}}
    for name, seconds in times.items():
        per_picture, model = sum(seconds) / len(pictures), statistics.median(alone[name])
        row = {
            "per_second": 1 / per_picture,
            "ms": 1000 * per_picture,
            "model_alone_ms": 1000 * model,
            "outside": 1 - model / per_picture,
        }
        line = (
            f"{name:12} {row['per_second']:6.2f} pictures/s, {row['ms']:6.1f} ms each, model alone "
            f"{row['model_alone_ms']:6.1f} ms, outside it {row['outside']:5.1%}"
        )
        if name != "rembg":
            row["ratio"] = statistics.median(a / b for a, b in zip(times["rembg"], seconds))
            row["mask_agreement"] = agreement[name]
            line += f", {row['ratio']:.2f}× the loop; masks agree in {agreement[name]:.2%} of the pixels"
        print(line, flush=True)
        table["rows"][name] = row
    return table


def agreeing(results: Path, name: str, path: Path) -> float:
    """Which share of pixels a candidate's mask and the loop's have alike."""
    with Image.open(results / name / f"{path.stem}.png") as ours, Image.open(results / f"{path.stem}.png") as theirs:
        small = [np.asarray(mask.resize((320, 320), Image.Resampling.NEAREST)) > 127 for mask in (ours, theirs)]
    return float((small[0] == small[1]).mean())


BY_HAND = """
import sys
import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from pathlib import Path
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
source, target = Path(sys.argv[2]), Path(sys.argv[3])
"""


def by_hand() -> str:
    """The loop's one picture as a script of its own."""
    import inspect

    function = inspect.getsource(rembg_style).replace(": Any", "")
    return f"{BY_HAND}{function}\nrembg_style(session, source, target)\n"


def compare_first(args: argparse.Namespace, model: str) -> dict[str, Any]:
    """Seconds and peak memory of fresh processes."""
    with tempfile.TemporaryDirectory() as place:
        target = str(Path(place, "mask.png"))
        commands = {"onnxruntime by hand": [sys.executable, "-c", by_hand(), model, str(PICTURE), target]}
        predict = [sys.executable, "-m", "segzoo", "predict", "--quiet", str(PICTURE), target]
        commands["segzoo, torch"] = predict
        if exported := onnx_file(Path(place)):
            commands["segzoo, onnxruntime"] = [*predict, "--model", str(exported)]
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for i in range(args.repeats + 1):  # the first round fills the disk's cache and writes bytecode
            for name, command in commands.items() if i % 2 else reversed(commands.items()):
                Path(target).unlink(missing_ok=True)
                measured = process(command)
                if not Path(target).exists():
                    raise SystemExit(f"{name} wrote no mask")
                if i:
                    runs[name].append(measured)
    rows = {}
    for name, measured_runs in runs.items():
        pairs = zip(measured_runs, runs["onnxruntime by hand"])
        rows[name] = {
            "seconds": statistics.median(seconds for seconds, _ in measured_runs),
            "peak_mb": statistics.median(megabytes for _, megabytes in measured_runs),
            "ratio": statistics.median(mine / theirs for (mine, _), (theirs, _) in pairs),
        }
        print(
            f"first picture, {name:20} {rows[name]['seconds']:6.2f} s, {rows[name]['ratio']:.2f} times by hand, "
            f"peak {rows[name]['peak_mb']:.0f} MB",
            flush=True,
        )
    return rows


def onnx_file(folder: Path) -> Path | None:
    """The bundled model as a file, where this version exports."""
    try:
        from segzoo.export import to_onnx
    except ImportError:
        return None
    path = folder / "u2net_lite.onnx"
    to_onnx("u2net_lite.duts", path)
    return path


LAUNCHER = """
import os, subprocess, sys, time
started = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(time.perf_counter() - started, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def process(command: list[str]) -> tuple[float, float]:
    """Seconds and megabytes of one process; started by a small one, as the system counts its parent's memory too."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    launched = [sys.executable, "-c", LAUNCHER, *command]
    done = subprocess.run(launched, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode} of {' '.join(command[:5])}")
    seconds, megabytes = map(float, done.stdout.split())
    return seconds, megabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("SEGZOO_DATA", "../shared/data")) / "ecssd"
    parser.add_argument("--data", type=Path, default=default, help="any folder of JPEG files; default: %(default)s")
    parser.add_argument("--u2netp", default=os.environ.get("SEGZOO_U2NETP_ONNX"), help="rembg's file of the same model")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--chunk", type=int, default=10, help="pictures of one turn")
    parser.add_argument("--workers", type=int, default=2, help="of predict_folder")
    parser.add_argument("--candidates", nargs="+", default=["float32"], help="float32, bf16, onnxruntime, openvino")
    parser.add_argument("--repeats", type=int, default=7, help="fresh processes of each")
    parser.add_argument("--only", choices=["folder", "first"])
    parser.add_argument("--json", type=result_file, help="write the results to this file too")
    args = parser.parse_args()
    if not args.u2netp:
        parser.error("no u2netp.onnx: give --u2netp or SEGZOO_U2NETP_ONNX (CONTRIBUTING.md says where it is)")
    results: dict[str, Any] = {}
    if args.only != "first":
        import onnxruntime

        session = onnxruntime.InferenceSession(args.u2netp, providers=["CPUExecutionProvider"])
        results["folder"] = compare_folder(args, session)
    if args.only != "folder":
        results["first"] = compare_first(args, args.u2netp)
    from _machine import machine

    print(machine())
    if args.json:
        write_results(args.json, {**results, "repeats": args.repeats}, seed=0, peers=("onnxruntime", "pillow"))


if __name__ == "__main__":
    main()
