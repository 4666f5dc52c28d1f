"""A model as a program of ``torch.export``: no Python of ours is needed to run it."""

from __future__ import annotations

import io
import json
import os
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from segzoo._files import check_writable, write_whole
from segzoo.export._prepared import (
    SMALLEST,
    Exported,
    compare,
    compared_shapes,
    described,
    noise,
    prepared,
    quiet,
    reason,
    traced_shape,
)
from segzoo.models.base import SegmentationModel

__all__ = ["METADATA", "captured", "to_program"]

METADATA = "segzoo.json"


def to_program(
    model: str | SegmentationModel,
    path: str | os.PathLike[str] | None = None,
    *,
    dynamic: bool = True,
    size: tuple[int, int] | None = None,
    batch: int = 1,
    include_postprocessing: bool = False,
) -> ExportedProgram:
    """A model as a program of ``torch.export``, compared with it at two sizes that were not traced.

    ``torch.export.load(path).module()(x)`` runs it, in a process without this library too: ``[N, in_channels, H, W]``,
    float32, normalised, to logits or probabilities ``[N, num_classes, H, W]``. Norms are folded into the convolutions.

    Args:
        model: A name (``"u2net_lite"``), ``"local-dir:PATH"``, ``"hf-hub:org/repo"``, or a model; it stays as it is.
        path: A ``.pt2`` file to write, or None. What is known of the model is in it as ``segzoo.json``:
            ``torch.export.load(path, extra_files=files)`` puts it into ``files = {"segzoo.json": ""}``.
        dynamic: Whether N is free, and H and W from 33 pixels on (a SegFormer's and an IS-Net's from 65: torch
            guards their programs against fewer); else ``batch`` and ``size`` are fixed.
        size: Height and width of a program that is not dynamic. None: those of the model's preprocessing.
        batch: N of a program that is not dynamic.
        include_postprocessing: Whether a sigmoid or softmax is part of it.

    Returns:
        The program; where it was written, as it was read again.

    Raises:
        ValueError: If torch cannot export it, or the program does not give the same to 1e-4 of the outputs' range;
            nothing is written then.
        TypeError: For a detector, what is no model, or one that is not in float32.
        OSError: If the file cannot be written.

    Examples:
        >>> program = to_program("u2net_lite", dynamic=False, size=(40, 48))  # doctest: +SKIP
        >>> program.module()(torch.zeros(1, 3, 40, 48)).shape  # doctest: +SKIP
        torch.Size([1, 1, 40, 48])
    """
    if path is not None:
        check_writable(path)
    exported = prepared(model, include_postprocessing)
    traced = traced_shape(exported.model, dynamic, size, batch)
    program = captured(exported, traced, dynamic)
    written = io.BytesIO()
    with quiet():
        if path is not None:
            known = json.dumps(described(exported.model, exported.output), ensure_ascii=False)
            torch.export.save(program, written, extra_files={METADATA: known})
            written.seek(0)
            program = torch.export.load(written)
        module = program.module()
        for shape in compared_shapes(traced, dynamic, _smallest(program)):
            x = noise(shape)
            compare(f"the program at {shape[2]}×{shape[3]}", exported(x), _run(module, x))
    if path is not None:
        with write_whole(path) as file:
            file.write(written.getbuffer())
    return program


def captured(exported: Exported, traced: tuple[int, ...], dynamic: bool) -> ExportedProgram:
    """The network as ``torch.export`` sees it.

    Raises:
        ValueError: If it cannot, in one sentence.
    """
    free = {0: Dim.DYNAMIC, 2: _at_least(SMALLEST), 3: _at_least(SMALLEST)} if dynamic else None
    try:
        with quiet():
            return torch.export.export(
                exported, (noise(traced),), dynamic_shapes=(free,) if free else None, strict=False
            )
    except Exception as error:  # of many kinds, and pages long
        name = exported.model.made_by.architecture if exported.model.made_by else type(exported.model).__name__
        way = "with free sizes (dynamic=False and a size may work)" if dynamic else f"at {traced[2]}×{traced[3]}"
        raise ValueError(f"torch {torch.__version__} cannot export this {name} {way}: {reason(error)}") from error


def _at_least(pixels: int) -> Any:
    """A free size with a lower bound, where torch has such: 2.6 finds bounds by itself."""
    return Dim.DYNAMIC(min=pixels) if callable(Dim.DYNAMIC) else Dim.DYNAMIC


def _smallest(program: ExportedProgram) -> int:
    """Of either side: more than was asked for where the network's own steps leave nothing of so few pixels."""
    return max([SMALLEST, *(int(bounds.lower) for bounds in program.range_constraints.values())])


def _run(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    try:
        result: torch.Tensor = module(x)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"the program does not take {list(x.shape)}: {reason(error)}") from error
    return result
