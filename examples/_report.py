"""What a run leaves: models that can be loaded, with their cards, and results.json."""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchvision
from _data import Data
from _engine import Run, plain
from _journal import Row
from safetensors.torch import load_file
from torch import nn

import segzoo
from segzoo._files import write_whole

Judge = Callable[[nn.Module], dict[str, Any]]


def export(data: Data, args: argparse.Namespace, protocol: str) -> Callable[..., None]:
    """A function that writes a model as a folder for ``local-dir:FOLDER``: of model, folder and figures.

    Args:
        data: What was learned, for the card.
        args: The options: ``license``.
        protocol: How the figures are measured, in words.
    """
    chosen_on = "training pictures that were held out" if not args.overfit else "the training pictures themselves"

    def write(model: Any, folder: Path, row: Row, test: Mapping[str, Any] | None = None) -> None:
        measured = {chosen_on: _figures(row), "test pictures": _figures(test or {})}
        figures = {where: values for where, values in measured.items() if values}
        model.save_pretrained(
            folder,
            license=args.license or "other",
            license_name=None if args.license else "not stated by whoever trained it",
            training_data={data.title: data.licence},
            metrics=figures or None,
            protocol=protocol if figures else None,
        )

    return write


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    """What was measured: neither where training was nor what is not defined."""
    return {k: v for k, v in row.items() if k not in _NO_FIGURES and isinstance(v, float) and not math.isnan(v)}


_NO_FIGURES = {"epoch", "train_loss", "train_accuracy", "lr"}


def finish(run: Run, data: Data, judge: Judge | None, **more: Judge | None) -> dict[str, Any]:
    """After the last epoch: the last model as a folder, the figures on the test pictures, and results.json.

    Args:
        run: At its end.
        data: What it read.
        judge: From a model to its figures on the test pictures, the same in every process; None: there are none.
            Figures are floats; what else it gives, such as those of each class, is only in results.json.
        **more: Further ones, by what they are in results.json: ``test_mst=…``, or ``held_out=…`` of those pictures.

    Returns:
        What is in results.json.
    """
    last = run.history[-1]
    if run.processes.main and run.recipe.export is not None:
        run.recipe.export(run.evaluated, run.folder / "last", last)
    results: dict[str, Any] = {"last": last, "best": run.best}
    judges = {name: one for name, one in {"test": judge, **more}.items() if one is not None}
    same = run.best is None or run.best["epoch"] == last["epoch"]
    best = run.evaluated if same or not judges else _best(run)
    for name, one in judges.items():
        part = data.held_out if name.startswith("held_out") else data.test
        results[name] = {"pictures": len(part or ()), "last": one(run.evaluated)}
        if run.best is not None:
            results[name]["best"] = results[name]["last"] if same else one(best)
    if run.processes.main and run.recipe.export is not None and "test" in results:  # the cards say these figures too
        test = results["test"]
        run.recipe.export(run.evaluated, run.folder / "last", last, test["last"])
        if run.best is not None:
            run.recipe.export(best, run.folder / "best", run.best, test["best"])
    results |= {
        "training": {"title": data.title, "pictures": len(data.train), "held_out": len(data.held_out or ())},
        "parameters": sum(p.numel() for p in run.raw.parameters()),
        "processes": run.processes.count,
        "device": _device(run.processes.device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "segzoo": segzoo.__version__,
        },
        "arguments": plain(run.args),
        "history": run.history,
    }
    if run.processes.main:
        with write_whole(run.folder / "results.json") as file:
            file.write((json.dumps(_finite(results), indent=2) + "\n").encode())
        for name in judges:
            for which in [key for key in ("last", "best") if key in results[name]]:
                figures = {k: v for k, v in results[name][which].items() if isinstance(v, float)}
                words = " ".join(f"{run.recipe.labels.get(k, k)}: {v:.4f}" for k, v in figures.items())
                print(f"[{name}, {which} epoch] {words}", flush=True)
    return results


def _best(run: Run) -> nn.Module:
    """The best epoch's model in every process, from the folder that the first one wrote."""
    model = copy.deepcopy(run.evaluated)
    if run.processes.main:
        model.load_state_dict(load_file(run.folder / "best" / "model.safetensors"))
    if run.processes.count > 1:
        for value in model.state_dict().values():
            dist.broadcast(value, 0)
    return model


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _finite(value: Any) -> Any:
    """JSON knows no NaN: None."""
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
