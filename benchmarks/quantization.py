"""What eight bits cost and gain: U²-Net lite on ECSSD, and its speed beside onnxruntime's float32 on rembg's own file.

    pip install ".[benchmark,export]" openvino
    export SEGZOO_U2NETP_ONNX=u2netp.onnx            # rembg's file; the speeds need it
    python benchmarks/quantization.py --part accuracy --data DIR     # DIR/ecssd and, to calibrate with, DIR/camvid
    OMP_NUM_THREADS=2 python benchmarks/quantization.py --part speed

Calibrated on the pictures of examples/images, of scikit-image and scikit-learn, and on training pictures of CamVid:
none of ECSSD. Accuracy by the protocol of benchmarks/ecssd.py. Speed: one picture of 320×320, one forward pass each,
in turn in one process; medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import machine
from _results import read_results, result_file, write_results
from _timing import interleaved
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from segzoo.export import to_onnx
from segzoo.export.quantize import quantize
from segzoo.inference import Prediction, preprocess, read_picture
from segzoo.inference.runtimes import FileModel
from segzoo.metrics import SaliencyMetrics

Array = NDArray[np.float32]

ROOT = Path(__file__).resolve().parent.parent
PHOTOGRAPHS = {
    "skimage": ("data", ["chelsea.png", "rocket.jpg", "motorcycle_left.png", "camera.png", "horse.png", "retina.jpg"]),
    "sklearn": ("datasets/images", ["flower.jpg", "china.jpg"]),
}
STREETS = 22
ACCURACY = {
    "float32, onnxruntime": ("float", "onnxruntime"),
    "int8, onnxruntime": ("int8", "onnxruntime"),
    "int8, OpenVINO": ("int8", "openvino"),
    "int8 throughout, onnxruntime": ("throughout", "onnxruntime"),
}
SPEED = {
    "onnxruntime float32, rembg's file": ("published", "onnxruntime"),
    "onnxruntime float32": ("float", "onnxruntime"),
    "onnxruntime int8": ("int8", "onnxruntime"),
    "onnxruntime int8 throughout": ("throughout", "onnxruntime"),
    "OpenVINO float32 file, its default": ("float", "openvino"),
    "OpenVINO int8": ("int8", "openvino"),
}


def calibration_pictures(data: Path) -> list[Path]:
    """Photographs of many kinds, and as many streets; none of them is in ECSSD."""
    found = sorted((ROOT / "examples/images").glob("*.jpg"))
    for package, (folder, names) in PHOTOGRAPHS.items():
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            found += [Path(spec.origin).parent / folder / name for name in names]
    streets = sorted((data / "camvid/train/images").glob("*.*"))
    return found + streets[:: max(1, len(streets) // STREETS)][:STREETS]


def write_files(folder: Path, model: str, pictures: list[Path], throughout: bool) -> dict[str, Path]:
    """The float file and the quantised ones; those that are there already stay."""
    files = {name: folder / f"{model}.{name}.onnx" for name in ("float", "int8", "throughout")}
    if not files["float"].exists():
        to_onnx(model, files["float"])
    if not files["int8"].exists():
        print(quantize(files["float"], pictures, files["int8"]))
    if throughout and not files["throughout"].exists():
        print(quantize(files["float"], pictures, files["throughout"], keep_float=()))
    return files


def accuracy(
    files: dict[str, Path], rows: list[str], data: Path, limit: int | None, threads: int
) -> dict[str, dict[str, float]]:
    paths = sorted((data / "ecssd/images").glob("*.jpg"))[:limit]
    rule = FileModel(files["float"]).preprocessing
    models = {row: runner(files[ACCURACY[row][0]], ACCURACY[row][1], threads) for row in rows}
    metrics = {row: SaliencyMetrics("paper", measures=("f_measure", "mae")) for row in rows}
    for path in tqdm(paths, unit=" pictures", disable=None):
        picture = read_picture(path)
        x = preprocess(picture, rule)[None].numpy()
        mask = np.asarray(Image.open(data / "ecssd/masks" / f"{path.stem}.png").convert("L")) > 127
        for row, model in models.items():
            probabilities = torch.from_numpy(model(x)[0]).sigmoid()
            metrics[row].update(Prediction(picture, probabilities).evaluation_map(), mask)
    computed = {row: metric.compute() for row, metric in metrics.items()}
    return {row: {"mae": one["mae"], "max_f": one["max_f"], "pictures": len(paths)} for row, one in computed.items()}


def runner(path: Path, backend: str, threads: int) -> Callable[[Array], Array]:
    """Logits of a picture of 320×320."""
    if backend == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        output = session.get_outputs()[0].name  # rembg's file gives the side outputs, too
        return lambda x: session.run([output], {name: x})[0]
    import openvino

    # With H and W free, OpenVINO 2026.4 gives wrong masks of quantised files: joined tensors overwrite each other.
    core = openvino.Core()
    network = core.read_model(path)
    network.reshape([1, 3, 320, 320])
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
    if ".float." not in path.name:  # its default is bfloat16, in which what was left in float is lost again
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    request = core.compile_model(network, "CPU", settings).create_infer_request()
    return lambda x: request.infer([x])[0]


def speed(files: dict[str, Path], repeats: int, threads: int) -> dict[str, dict[str, float]]:
    x = np.random.default_rng(0).standard_normal((1, 3, 320, 320)).astype(np.float32)
    runners = {row: runner(files[name], backend, threads) for row, (name, backend) in SPEED.items()}
    times = interleaved({row: partial(run, x) for row, run in runners.items()}, repeats)
    medians = {row: statistics.median(seconds) for row, seconds in times.items()}
    first = next(iter(times.values()))
    ratios = {row: statistics.median(a / b for a, b in zip(first, seconds)) for row, seconds in times.items()}
    return {row: {"ms": 1000 * median, "times_as_fast": ratios[row]} for row, median in medians.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("SEGZOO_DATA", "../shared/data"))
    parser.add_argument("--part", choices=["accuracy", "speed"], required=True)
    parser.add_argument("--data", type=Path, default=default, help="default: %(default)s")
    parser.add_argument("--model", default="u2net_lite")
    parser.add_argument("--files", type=Path, help="a folder to keep the ONNX files in; what is there is used again")
    parser.add_argument("--rows", nargs="+", choices=ACCURACY, default=list(ACCURACY), help="of the accuracy table")
    parser.add_argument("--limit", type=int, help="only the first N pictures of ECSSD")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=result_file, help="write the results to this file too, beside what is in it")
    args = parser.parse_args()

    published = os.environ.get("SEGZOO_U2NETP_ONNX")
    if args.part == "speed" and not published:
        parser.error("the speeds are beside rembg's u2netp.onnx: set SEGZOO_U2NETP_ONNX to it")
    before = read_results(args.json)
    with tempfile.TemporaryDirectory() as temporary:
        pictures = calibration_pictures(args.data)
        throughout = args.part == "speed" or any(ACCURACY[row][0] == "throughout" for row in args.rows)
        files = write_files(args.files or Path(temporary), args.model, pictures, throughout)
        if args.part == "accuracy":
            found = accuracy(files, args.rows, args.data, args.limit, args.threads)
            print(f"\n{args.model} on ECSSD\n{'':34}{'pictures':>10}{'MAE':>10}{'max F':>10}")
            for row, one in found.items():
                print(f"{row:34}{one['pictures']:10}{one['mae']:10.4f}{one['max_f']:10.4f}")
        else:
            found = speed({**files, "published": Path(published or "")}, args.repeats, args.threads)
            print(f"\n{args.model}, 320×320, batch 1, {args.threads} threads\n{'':38}{'ms':>8}{'× rembg':>10}")
            for row, one in found.items():
                print(f"{row:38}{one['ms']:8.1f}{one['times_as_fast']:10.2f}")
    print(machine())
    if args.json:
        results = {
            name: before[name]
            for name in ("accuracy", "accuracy_settings", "speed", "speed_settings")
            if name in before
        }
        results |= {"model": args.model, args.part: {**before.get(args.part, {}), **found}}
        results[f"{args.part}_settings"] = {"threads": args.threads, "calibration_pictures": len(pictures)}
        write_results(args.json, results, seed=0, peers=["onnxruntime", "openvino", "onnx"], kept=before)


if __name__ == "__main__":
    main()
