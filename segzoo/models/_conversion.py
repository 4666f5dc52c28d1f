"""Other people's checkpoints as files of ours: read, identified, converted, checked against the model, written."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segzoo._errors import some_of, unknown_name
from segzoo.models.base import SegmentationModel
from segzoo.registry import create_untrained, find_factory, list_models
from segzoo.weights.adapt import refuse_misfits
from segzoo.weights.catalog import get_weights, list_weights
from segzoo.weights.convert import ARCHITECTURE, ARGUMENTS, read_raw, unified
from segzoo.weights.digests import sha256_of
from segzoo.weights.identify import NO_ENCODER, OWN_ENCODER, Found, identify
from segzoo.weights.record import Weights
from segzoo.weights.saved import NO_ARGUMENTS, plain
from segzoo.weights.writing import check_target, write_state_dict

__all__ = ["Conversion", "convert_checkpoint"]

_COUNTER = "num_batches_tracked"
_REASONS = (  # of keys that are not in the result as they were; None: their values are, in another form
    (r".*running_mean|decoder\.psp\..*\.bias|.*\.attn\.[kv]\..*|.*\.attention\..*(?:key|value|[kv]_proj)\..*", None),
    (r".*\.conv(?:_s1)?\.bias", "folded into the running mean of the norm after it"),
    (r"decode_head\.conv_seg\..*", "the head of NVIDIA's framework, which SegFormer has not in use"),
    (r"encoder\.layer\d\..*", "a stage of the encoder that this PSPNet does not use"),
    (r"classification_head\..*", "a classifier of whole pictures"),
    (rf".*{_COUNTER}", "a counter that the norms of this model have not"),
)


@dataclass(frozen=True)
class Conversion:
    """What was converted, from what and into what.

    Args:
        source: The file that was read.
        out: The safetensors file that was written.
        format: Whose keys the source had: ``"official U²-Net"``, ``"torchvision"`` …
        architecture: The factory whose model takes the result.
        arguments: Of that factory, as far as they are not its defaults; they are in the file, too.
        num_classes: The checkpoint's.
        in_channels: The checkpoint's.
        parameters: How many the model has.
        converted: How many tensors of the source are in the result.
        dropped: {key of the source: why it is not}.
        added: Keys of the result that the source lacks: counters.
        notes: What else there is to know, a sentence each.
        source_sha256: Of the source.
        sha256: Of the result.
    """

    source: Path
    out: Path
    format: str
    architecture: str
    arguments: Mapping[str, Any]
    num_classes: int
    in_channels: int
    parameters: int
    converted: int
    dropped: Mapping[str, str]
    added: tuple[str, ...]
    notes: tuple[str, ...]
    source_sha256: str
    sha256: str

    def call(self) -> str:
        """The line of Python that builds the model with the converted weights; the file brings the other arguments."""
        channels = "" if self.in_channels == 3 else f", in_channels={self.in_channels}"
        return f"segzoo.{self.architecture}(weights={os.fspath(self.out)!r}{channels})"

    def report(self) -> str:
        """What was done, in a few lines."""
        classes = f"{self.num_classes} class{'es' * (self.num_classes > 1)}"
        channels = f"{self.in_channels} channel{'s' * (self.in_channels > 1)}"
        lines = [
            f"{self.source}: {self.format}, {self.architecture}, {classes}, {channels}, {self.parameters:,} parameters",
            f"  sha256 {self.source_sha256}",
            f"{self.out}: {self.converted} tensors",
            f"  sha256 {self.sha256}",
        ]
        for reason in dict.fromkeys(self.dropped.values()):
            keys = [key for key, why in self.dropped.items() if why == reason]
            lines.append(f"left out: {len(keys)} tensors ({some_of(keys, 2)}): {reason}")
        lines += [f"added: {len(self.added)} counters"] if self.added else []
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        lines += [f"arguments in the file: {given}"] if given else []
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, f"use: {self.call()}"])

    def to_json(self) -> dict[str, Any]:
        """The same in values that JSON has."""
        return {**asdict(self), "source": str(self.source), "out": str(self.out), "arguments": plain(self.arguments)}


def convert_checkpoint(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    overwrite: bool = False,
    **arguments: Any,
) -> Conversion:
    """Convert a checkpoint, ours or another's, into a safetensors file in our keys that says what it is.

    The file gives the model that ``weights=`` makes of the checkpoint itself, bit by bit; where keys do not tell what
    that was built with (rates, strides, how a decoder enlarges maps), the report says what was taken. It is in the
    header, and is used where a factory's argument is None.

    Args:
        path: A file as ``weights=`` takes it: ``.safetensors``, ``.pth``, ``.pt``, ``.ckpt``, ``.bin`` or ``.onnx``.
        out: Where to; it ends in ``.safetensors``.
        architecture: The factory's name. None: as the keys tell.
        overwrite: Whether a file at ``out`` is replaced.
        **arguments: Of the factory, where the keys do not tell them: ``encoder="efficientnet_b0"``, ``rates=(6, 12)``.

    Raises:
        FileNotFoundError, FileExistsError: If there is no such file, or one at ``out``.
        ValueError: If the file cannot be read, is of no known network, or does not fit its model, with the keys.
        TypeError: For an argument that the architecture does not take. Nothing is written.

    Examples:
        >>> import tempfile, segzoo
        >>> folder = tempfile.mkdtemp()
        >>> torch.save({"model": segzoo.u2net_lite().state_dict()}, f"{folder}/a.pth")
        >>> convert_checkpoint(f"{folder}/a.pth", f"{folder}/a.safetensors").architecture
        'u2net_lite'
    """
    source, target = Path(path), check_target(out, path, overwrite=overwrite)
    contents = read_raw(source)
    found = identify(contents.state)
    if source.suffix.lower() == ".onnx":
        found = found._replace(format="ONNX")
    name = found.architecture if architecture is None else architecture
    if name is None:
        why = "; ".join(found.notes)
        advice = "; where you know what it is, give its architecture" if found.format == "unknown" else ""
        raise ValueError(f"{source} cannot be converted: {why}{advice}")
    source_sha256 = sha256_of(source)
    records = _published(source_sha256)
    known = {key: value for r in records if r.architecture == name for key, value in r.arguments.items()}
    given = {**known, **_checked_arguments(source, name, found, arguments)}
    model, state = _fitting_model(name, unified(contents.state), found, given)
    try:
        fitted, added = _fit(state, model, f"{source} (as {name})")
    except ValueError as error:
        raise ValueError("; ".join([str(error), *found.notes])) from None
    given = {key: value for key, value in given.items() if value is not None}
    metadata = {
        ARCHITECTURE: name,
        ARGUMENTS: json.dumps(plain(given), sort_keys=True),
        "converted_from": found.format,
        "source_sha256": source_sha256,
    }
    dropped = {**contents.dropped, **_dropped(contents.state, fitted)}
    said = {**known, **arguments}
    open_notes = [note for note in found.notes if not any(f"{argument}=" in note for argument in said)]
    open_notes += [f"these are the published weights {record.name} ({record.license})" for record in records]
    return Conversion(
        source=source,
        out=target,
        format=found.format,
        architecture=name,
        arguments=given,
        num_classes=model.num_classes,
        in_channels=model.in_channels,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        converted=len(contents.state) + len(contents.dropped) - len(dropped),
        dropped=dropped,
        added=added,
        notes=(*contents.notes, *open_notes),
        source_sha256=source_sha256,
        sha256=write_state_dict(fitted, target, metadata),
    )


def _checked_arguments(source: Path, name: str, found: Found, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the factory: those that were found, and in their place those that were given."""
    factory = find_factory(name)
    if factory is None:
        raise unknown_name("model", name, list_models())
    for argument in NO_ARGUMENTS:
        if argument in arguments:
            raise TypeError(f"{argument} is none of a conversion's arguments: it is what the checkpoint has")
    parameters = inspect.signature(factory).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for argument, value in arguments.items():
        if argument not in parameters and not takes_any:
            raise TypeError(f"{name} takes no argument {argument!r}")
        try:
            plain(value)
        except TypeError as error:
            raise TypeError(f"{argument} cannot be written into a file: {error}") from error
    if "encoder" not in arguments and (lacking := [n for n in found.notes if n in (NO_ENCODER, OWN_ENCODER)]):
        raise ValueError(f"{source} cannot be converted: {lacking[0]}")
    same = found.architecture in (name, None)
    return {**(found.arguments if same else {}), **arguments}


def _fitting_model(
    name: str, state: Mapping[str, Tensor], found: Found, given: dict[str, Any]
) -> tuple[SegmentationModel, dict[str, Tensor]]:
    """The model without values, and the state dict in its keys; ``given`` gets what the checkpoint implies."""
    sizes = {"num_classes": found.num_classes or 2, "in_channels": found.in_channels or 3}
    model = _without_values(name, {**given, **sizes})
    implied = type(model).implied(state)
    converted = type(model).convert(state)
    heads = [value for key, value in converted.items() if key.startswith(model.heads) and key.endswith(".bias")]
    stems = [converted[key] for key in model.stems() if key in converted and converted[key].ndim == 4]
    more = {key: value for key, value in implied.items() if given.get(key) is None}
    actual = {
        "num_classes": len(heads[-1]) if heads else sizes["num_classes"],
        "in_channels": int(stems[0].shape[1]) if stems else sizes["in_channels"],
    }
    given |= more
    return (model if not more and actual == sizes else _without_values(name, {**given, **actual})), converted


def _without_values(name: str, arguments: Mapping[str, Any]) -> SegmentationModel:
    if "encoder" in arguments:
        import timm  # noqa: F401 - torch 2.6 cannot import its compiler, which timm does, under the meta device
    with torch.device("meta"):
        model: Any = create_untrained(name, **arguments)
    return model  # type: ignore[no-any-return]


def _fit(
    state: Mapping[str, Tensor], model: SegmentationModel, origin: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict in the model's order, with its counters; anything else that does not fit is an error."""
    target = model.state_dict()
    added = tuple(key for key in target if key.endswith(_COUNTER) and key not in state)
    fitted = {key: value for key, value in state.items() if key in target or not key.endswith(_COUNTER)}
    fitted |= {key: torch.tensor(0) for key in added}
    refuse_misfits(fitted, target, origin)
    return {key: fitted[key] for key in target}, added


def _dropped(source: Mapping[str, Tensor], result: Mapping[str, Tensor]) -> dict[str, str]:
    """{key: why} of the source's tensors of which nothing is in the result."""
    kept = {id(value) for value in result.values()}
    dropped = {}
    for key in (key for key, value in source.items() if id(value) not in kept):
        reasons = [reason for pattern, reason in _REASONS if re.fullmatch(pattern, key)]
        if reason := reasons[0] if reasons else "no part of the network":
            dropped[key] = reason
    return dropped


def _published(sha256: str) -> list[Weights]:
    """The catalogue's records of a file with that digest."""
    records = [get_weights(name) for name in list_weights()]
    return [r for r in records if any(s.sha256 and sha256.startswith(s.sha256) for s in r.sources)]
