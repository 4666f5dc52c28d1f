"""From nothing to a model: a process's first prediction, and a file of 176 MB against merely reading it.

    OMP_NUM_THREADS=2 python benchmarks/loading.py --onnx u2netp.onnx --json benchmarks/results/loading.json
    python benchmarks/loading.py --parts file --rounds 5

"start": fresh processes in turn, each from its start to the mask of one photograph by the bundled weights. It says by
itself when it had imported what it needs, loaded the model and made the mask; ``exit`` is when it was gone. With --onnx
also a plain script that does the same with onnxruntime, on as many threads, whose mask has to agree; ``segzoo cutout``,
of which only the end is known; ``import torch`` and a bare interpreter.

"file": ``u2net_full`` from its 176 MB, random weights in a safetensors file: by its path, as a folder that
``save_pretrained`` wrote, and by its name, from the cache, as if it had been fetched. Ours is over when a number of
every page of every tensor was looked at: what is only mapped is not loaded. Against it ``read_bytes``, and ``readinto``
a buffer whose pages are there already, as no program has them the first time. The file is in the page cache.
All are in turn in one process, after two rounds that are not counted. ``ratio`` is the median of the rounds' ratios to
``read_bytes`` of the same round. "fresh": the same, each first in a process of its own, imports not counted, and then
``read_bytes`` in that process too, for the ratio.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from _machine import machine
from _results import read_results, result_file, write_results

import segzoo

PICTURE = Path(__file__).resolve().parent.parent / "examples/images/coffee.jpg"
PAGE = 4096
PARTS = ("start", "file", "fresh")

SAY = "print(json.dumps([imported, loaded, done, share]))"
CODE = {
    "Predictor": """
import json, sys, time
from segzoo import Predictor
imported = time.monotonic()
predictor = Predictor("u2net_lite.duts", device="cpu")
loaded = time.monotonic()
mask = predictor(sys.argv[1]).mask
done = time.monotonic()
share = float(mask.mean())
""",
    "onnxruntime": """
import json, os, sys, time
import numpy as np
import onnxruntime
from PIL import Image
imported = time.monotonic()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", 0))
session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
loaded = time.monotonic()
image = Image.open(sys.argv[1]).convert("RGB")
x = np.asarray(image.resize((320, 320), Image.Resampling.BILINEAR), np.float32)
x = (x / x.max() - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
found = session.run(None, {session.get_inputs()[0].name: x.transpose(2, 0, 1)[None]})[0][0, 0]
mask = np.asarray(Image.fromarray(found).resize(image.size, Image.Resampling.BILINEAR)) > 0.5
done = time.monotonic()
share = float(mask.mean())
""",
    "import torch": """
import json, time
import torch
imported = loaded = done = time.monotonic()
share = 0
""",
    "python": """
import json, time
imported = loaded = done = time.monotonic()
share = 0
""",
}


def start(name: str, onnx: Path | None, out: Path) -> dict[str, float]:
    """Seconds of one process: of each step, of all to the mask, and until it was gone."""
    command = ["-m", "segzoo", "cutout", str(PICTURE), str(out)]
    if name in CODE:
        command = ["-c", CODE[name] + SAY, str(PICTURE), str(onnx)]
    began = time.monotonic()
    told = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, check=True).stdout
    gone = time.monotonic()
    if name not in CODE:
        return {"first": gone - began, "exit": gone - began}
    imported, loaded, done, share = json.loads(told)
    steps = {"import": imported - began, "load": loaded - imported, "predict": done - loaded}
    return {**steps, "first": done - began, "exit": gone - began, "share": share}


def compare_starts(rounds: int, onnx: Path | None) -> dict[str, Any]:
    names = [name for name in (*CODE, "segzoo cutout") if onnx or name != "onnxruntime"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.png"
        runs = in_turn({name: lambda name=name: start(name, onnx, out) for name in names}, rounds, uncounted=1)
    if onnx:
        ours, theirs = (runs[name][0]["share"] for name in ("Predictor", "onnxruntime"))
        if abs(ours - theirs) > 0.002:
            raise RuntimeError(f"the masks do not agree: {ours:.4f} and {theirs:.4f} of the picture")
    rows = []
    for name in names:
        row: dict[str, Any] = {"case": name}
        for step in ("import", "load", "predict", "first", "exit"):
            if step in runs[name][0]:
                row[step] = statistics.median(run[step] for run in runs[name])
        row["lowest_first"], row["highest_first"] = (pick(run["first"] for run in runs[name]) for pick in (min, max))
        for peer in ("onnxruntime", "import torch"):
            if peer in runs:  # the command is over when it is gone, and so is then the peer
                end = "first" if name in CODE else "exit"
                row[f"to {peer}"] = paired((run[end] for run in runs[name]), (run[end] for run in runs[peer]))
        rows.append(row)
        print(
            f"{name:16}" + "".join(f"{key} {row[key]:7.3f}  " for key in row if isinstance(row[key], float)), flush=True
        )
    return {"picture": PICTURE.name, "rounds": rounds, "rows": rows}


def prepare(folder: Path) -> Path:
    """A saved model with random weights, and the same file where a fetched ``u2net_full.duts`` would be kept."""
    torch.manual_seed(0)
    segzoo.u2net_full(weights=None).save_pretrained(
        folder / "model", license="cc0-1.0", training_data={"none": "CC0-1.0"}
    )
    file = folder / "model/model.safetensors"
    sha256 = next(source.sha256 for source in segzoo.get_weights("u2net_full.duts").sources if source.sha256)
    kept = folder / f"torch/hub/segzoo/u2net_full.duts-{sha256[:16]}.safetensors"
    kept.parent.mkdir(parents=True)
    shutil.copy(file, kept)
    kept.with_suffix(".sha256").write_text(hashlib.sha256(file.read_bytes()).hexdigest())
    return file


def look(model: torch.nn.Module) -> None:
    """At a number of every page of every parameter and buffer."""
    for value in (*model.parameters(), *model.buffers()):
        value.detach().flatten()[:: PAGE // value.element_size()].sum()


def ways(folder: Path) -> dict[str, Callable[[], object]]:
    """What is timed, by name; what each returns is freed after its time was taken."""
    os.environ |= {"TORCH_HOME": str(folder / "torch"), "HF_HUB_OFFLINE": "1"}
    file = folder / "model/model.safetensors"
    buffer = bytearray(file.read_bytes())

    def readinto() -> object:
        with file.open("rb", buffering=0) as opened:
            return opened.readinto(buffer)

    def loaded(make: Callable[[], torch.nn.Module]) -> Callable[[], torch.nn.Module]:
        def run() -> torch.nn.Module:
            model = make()
            look(model)
            return model

        return run

    return {
        "read_bytes": file.read_bytes,
        "readinto a buffer": readinto,
        "path": loaded(lambda: segzoo.u2net_full(weights=str(file))),
        "local-dir": loaded(lambda: segzoo.create_model(f"local-dir:{file.parent}")),
        "name, cached": loaded(lambda: segzoo.u2net_full()),
    }


def seconds(run: Callable[[], object]) -> float:
    gc.collect()
    began = time.perf_counter()
    kept = run()
    taken = time.perf_counter() - began
    del kept
    return taken


def elsewhere(name: str, folder: Path) -> tuple[float, float]:
    """The same, first of all in a process of its own, and `read_bytes` after it in that process."""
    command = [sys.executable, __file__, "--one", name, "--folder", str(folder)]
    ours, reading = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    return float(ours), float(reading)


def compare_reading(rounds: int, *, fresh: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        size = prepare(folder).stat().st_size
        time.sleep(3)  # a file that was written just now is not yet trusted to stay as it is
        timed: dict[str, Callable[[], Any]] = {}
        for name, run in ways(folder).items():
            timed[name] = (lambda name=name: elsewhere(name, folder)) if fresh else (lambda run=run: seconds(run))
        runs = in_turn(timed, rounds, uncounted=1 if fresh else 2)
        if not fresh:
            runs = {name: list(zip(taken, runs["read_bytes"])) for name, taken in runs.items()}
    rows = []
    for name, pairs in runs.items():
        values, ratios = [ours for ours, _ in pairs], [ours / reading for ours, reading in pairs]
        row = {"case": name, "ms": 1000 * statistics.median(values)}
        row |= {"lowest_ms": 1000 * min(values), "highest_ms": 1000 * max(values)}
        row |= {"ratio": statistics.median(ratios), "lowest_ratio": min(ratios), "highest_ratio": max(ratios)}
        rows.append(row)
        spread = f"({row['lowest_ms']:.0f} to {row['highest_ms']:.0f})"
        ratio = f"{row['ratio']:.2f} ({row['lowest_ratio']:.2f} to {row['highest_ratio']:.2f}) × read_bytes"
        print(f"{'fresh' if fresh else 'file':6}{name:18}{row['ms']:6.0f} ms {spread:16} {ratio}", flush=True)
    return {"bytes": size, "rounds": rounds, "rows": rows}


def in_turn(candidates: dict[str, Callable[[], Any]], rounds: int, *, uncounted: int) -> dict[str, list[Any]]:
    """What each candidate says of itself, round by round; every second round goes backwards."""
    told: dict[str, list[Any]] = {name: [] for name in candidates}
    order = list(candidates.items())
    for i in range(uncounted + rounds):
        for name, run in order if i % 2 else reversed(order):
            said = run()
            if i >= uncounted:
                told[name].append(said)
    return told


def paired(ours: Iterable[float], theirs: Iterable[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--onnx", type=Path, help="the published u2netp.onnx, for onnxruntime's part")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=result_file, help="write the results to this file; other parts there stay")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        timed = ways(args.folder)
        import safetensors.torch  # noqa: F401  imports are not counted

        segzoo.u2net_full  # noqa: B018  the same of our own, which come with the name

        print(seconds(timed[args.one]), seconds(timed["read_bytes"]))
        return
    before = read_results(args.json)
    results = dict(before)
    if "start" in args.parts:
        results["start"] = compare_starts(args.rounds, args.onnx)
    for part in ("file", "fresh"):
        if part in args.parts:
            results[part] = compare_reading(args.rounds, fresh=part == "fresh")
    print(machine())
    if args.json:
        write_results(args.json, results, seed=0, peers=["onnxruntime", "safetensors"], kept=before)


if __name__ == "__main__":
    main()
