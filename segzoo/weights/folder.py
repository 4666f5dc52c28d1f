"""A model in a folder: ``config.json``, ``model.safetensors`` and ``README.md``, which belong together or are refused.

``config.json`` says how the model is built, what pictures go through before it, under which licence it is and on what
it was trained; it holds the sha256 of ``model.safetensors``. ``README.md`` is the model card (``segzoo.weights.card``).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from segzoo._files import write_whole
from segzoo.weights.convert import StateDict
from segzoo.weights.digests import WrongFile, check_open
from segzoo.weights.record import Source, Weights
from segzoo.weights.saved import SavedModel
from segzoo.weights.tensors import read_tensors
from segzoo.weights.writing import standing_alone

__all__ = [
    "FILES",
    "LOCAL_DIR",
    "Checkpoint",
    "Damaged",
    "models_in",
    "read_config",
    "read_folder",
    "record_of",
    "write_folder",
]

LOCAL_DIR = "local-dir:"
FILES = CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FORMAT = "segzoo"
FORMAT_VERSION = 1
CARD_MARK = "library_name: segzoo"
_OTHERS = {  # what other libraries' config.json have
    "model_type": "transformers",
    "pretrained_cfg": "timm",
    "_model_class": "segmentation_models_pytorch",
    "encoder_name": "segmentation_models_pytorch",
}
COPY_AGAIN = "; copy the folder again"
_TRIES = 6
_PATIENCE = 0.2  # seconds, for a writer that is between its files


class Damaged(ValueError):
    """Files of a model that are not whole, or not of one model."""


class NotOurs(ValueError):
    """A ``config.json`` of another library, whose name is ``library`` where it can be told."""

    def __init__(self, message: str, library: str | None) -> None:
        super().__init__(message)
        self.library = library


class Checkpoint(NamedTuple):
    """Weights, and what is known of them.

    Args:
        saved: The ``config.json`` of a saved model; None for any other.
        state: The weights, by our keys or their publisher's.
        origin: What messages call them.
        record: Of a published checkpoint; of a saved model the same in that form; None for a file.
    """

    saved: SavedModel | None
    state: StateDict
    origin: str
    record: Weights | None

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of the factory's call that made the saved model, or that the record says."""
        if self.saved is not None:
            return {"in_channels": self.saved.in_channels, **self.saved.arguments}
        return dict(self.record.arguments) if self.record is not None else {}


def write_folder(folder: str | os.PathLike[str], saved: SavedModel, state: Mapping[str, Tensor], card: str) -> None:
    """Write a model into a folder, all three files or none.

    They are written beside those of an older model and then take their places, ``config.json`` last: a reader in
    between, or after a crash in between, finds a sha256 that does not fit, never one model's weights in another's
    network.

    Args:
        folder: Made if it is not there, with the folders above it.
        saved: What goes into ``config.json``.
        state: The weights; values that lie on a GPU or in strides of their own come to the CPU in order.
        card: What goes into ``README.md``.

    Raises:
        FileExistsError: If there is a ``config.json`` or a ``README.md`` of something else.
        OSError: If the folder cannot be written.
    """
    from safetensors.torch import save

    folder = Path(folder).expanduser()
    _refuse_others_files(folder)
    weights = save(standing_alone(state), {"format": "pt"})
    config = {"format": FORMAT, "format_version": FORMAT_VERSION, **saved.to_json()}
    config["weights"] = {"file": WEIGHTS, "sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights)}
    text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    contents = {CONFIG: text.encode(), WEIGHTS: weights, CARD: card.encode()}
    with _made(folder), ExitStack() as stack:
        files = {name: stack.enter_context(write_whole(folder / name)) for name in contents}
        for name, file in files.items():  # a disk that is full says so here, before any file takes its place
            file.write(contents[name])
            file.flush()


def read_folder(path: str | os.PathLike[str], *, origin: str | None = None, source: Source | None = None) -> Checkpoint:
    """Read what ``write_folder`` wrote.

    Args:
        path: The folder, with ``local-dir:`` before it or without.
        origin: What messages and the record call it; None: ``local-dir:`` and its path.
        source: Where its weights came from; None: their path.

    Raises:
        FileNotFoundError: If there is no such folder or no model in it, with the nearest one that there is.
        NotADirectoryError: If it is a file.
        Damaged: If the files are not whole or do not belong together; a ValueError.
        ValueError: If they are a newer segzoo's, or another library's.
    """
    folder = _find(path)
    saved, expected = read_config(folder)
    for tries in reversed(range(_TRIES)):
        try:
            state = _read_weights(folder, expected)
            break
        except Damaged:  # perhaps another process is saving a better model right now
            before = expected
            time.sleep(_PATIENCE)
            saved, expected = read_config(folder)
            if tries == 0 or (expected == before and tries < _TRIES - 1):
                raise
    origin = origin or f"{LOCAL_DIR}{folder}"
    source = replace(source or Source("url", (folder / WEIGHTS).resolve().as_uri(), None), sha256=expected["sha256"])
    return Checkpoint(saved, state, origin, record_of(saved, origin, source))


def record_of(saved: SavedModel, origin: str, source: Source) -> Weights:
    """A saved model's config in the form of a published checkpoint's record."""
    measured = {
        data_set: {name: value for name, value in values.items() if value is not None}
        for data_set, values in saved.metrics.items()
    }
    return Weights(
        name=f"{saved.architecture}.{origin}",
        num_classes=saved.num_classes,
        in_channels=saved.in_channels,
        classes=saved.classes or (),
        sources=(source,),
        license=saved.license_name or saved.license,
        source=saved.name,
        training_data=saved.trained_on(),
        data_license="",
        code_license="",
        commercial=None,
        paper="",
        arguments=saved.arguments,
        preprocessing=saved.preprocessing,
        protocol=saved.protocol or "",
        threshold=saved.threshold,
        metrics=measured,
    )


def _find(path: str | os.PathLike[str]) -> Path:
    """The folder, or the sentence that says why it is none."""
    text = os.fspath(path).removeprefix(LOCAL_DIR)
    if not text:
        raise ValueError(f"no folder is named, expected the path of one that save_pretrained wrote, as {LOCAL_DIR}PATH")
    folder = Path(text).expanduser()
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file, expected the folder that save_pretrained wrote")
    if not folder.is_dir():
        near = difflib.get_close_matches(folder.name, models_in(folder.parent), n=1, cutoff=0.5)
        hint = f": did you mean {folder.parent / near[0]}?" if near else ", expected one that save_pretrained wrote"
        raise FileNotFoundError(f"there is no folder {folder}{hint}")
    if not (folder / CONFIG).is_file():
        inside = models_in(folder)
        hint = f": did you mean {' or '.join(str(folder / name) for name in inside[:2])}?" if inside else ""
        raise FileNotFoundError(f"{folder} holds no model, as it has no {CONFIG}{hint}")
    return folder


def models_in(folder: Path) -> list[str]:
    """The names of the saved models in a folder."""
    try:
        return sorted(child.name for child in folder.iterdir() if (child / CONFIG).is_file())
    except OSError:
        return []


def read_config(folder: Path) -> tuple[SavedModel, dict[str, Any]]:
    """A folder's saved model without its weights, and the sha256 and length that they must have."""
    path = folder / CONFIG
    config = _parse(path)
    if config.pop("format", None) != FORMAT:
        theirs = next((library for mark, library in _OTHERS.items() if mark in config), None)
        hint = (
            f" and looks like {theirs}'s: give the path of its weights file to a factory, as weights=" if theirs else ""
        )
        raise NotOurs(f'{path} is not segzoo\'s: it has no "format": "{FORMAT}"{hint}', theirs)
    version = config.pop("format_version", None)
    if type(version) is not int or version < 1:
        raise ValueError(f"{path}: format_version must be an int from 1 on, got {version!r}")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path} is of a newer segzoo (format version {version}, this one reads up to {FORMAT_VERSION}): update it"
        )
    expected = config.pop("weights", None)
    kinds = {"file": str, "sha256": str, "bytes": int}
    fits = isinstance(expected, dict) and {key: type(value) for key, value in expected.items()} == kinds
    if not fits or expected["file"] != WEIGHTS:
        raise ValueError(f"{path}: weights must be the file {WEIGHTS}, its sha256 and bytes, got {expected!r}")
    try:
        return SavedModel.from_json(config), expected
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _parse(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number")

    try:
        config = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is not JSON that can be read ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, expected an object")
    return config


def _read_weights(folder: Path, expected: Mapping[str, Any]) -> StateDict:
    """What was checked is what is loaded, whatever takes the file's place meanwhile."""
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise FileNotFoundError(f"{folder} has a {CONFIG} and no {WEIGHTS}: copy the folder again")
    advice = f"cut short, damaged or of another model{COPY_AGAIN}"
    with weights.open("rb") as file:
        if (size := os.fstat(file.fileno()).st_size) != expected["bytes"]:
            raise Damaged(f"{weights} has {size:,} bytes, {CONFIG} says {expected['bytes']:,}: {advice}")
        try:
            check_open(file, expected["sha256"])
            return read_tensors(file)
        except WrongFile as error:
            raise Damaged(f"{error} as {CONFIG} says: {advice}") from error
        except ValueError as error:
            raise Damaged(str(error)) from error


def _refuse_others_files(folder: Path) -> None:
    """Raise FileExistsError where a file that is not ours would be lost: a project's README, another's config."""
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file, expected a folder to save the model in")
    marks = {CONFIG: f'"format": "{FORMAT}"', CARD: CARD_MARK}
    for name, mark in marks.items():
        path = folder / name
        if path.is_file() and mark not in path.read_text(encoding="utf-8", errors="replace"):
            raise FileExistsError(f"{path} is there and is not save_pretrained's: choose another folder")
    if (folder / CONFIG).is_file() or not (folder / WEIGHTS).exists():
        return
    if not (folder / CARD).is_file():  # neither a model of ours nor the first half of one
        raise FileExistsError(f"{folder / WEIGHTS} is there and is not save_pretrained's: choose another folder")


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The folder, made where it is not there; what was made for nothing is taken away again."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for place in made:
            try:
                place.rmdir()
            except OSError:  # was not made, or something else is in it by now
                break
        raise
