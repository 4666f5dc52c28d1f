"""From what ``weights=`` takes to a checkpoint: a tag, the Hub, a folder or a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from segzoo._errors import unknown_name
from segzoo.weights.catalog import get_weights, list_weights
from segzoo.weights.convert import ARCHITECTURE, SUFFIXES, read_arguments, read_state_dict
from segzoo.weights.fetch import fetch
from segzoo.weights.folder import (
    CONFIG,
    COPY_AGAIN,
    LOCAL_DIR,
    WEIGHTS,
    Checkpoint,
    Damaged,
    NotOurs,
    read_config,
    read_folder,
    record_of,
)
from segzoo.weights.hub import HF_HUB, Access, hub_file, hub_folder, parse_name
from segzoo.weights.record import Source, Weights
from segzoo.weights.tensors import read_metadata

__all__ = [
    "arguments_of",
    "describe",
    "download",
    "find_record",
    "is_saved",
    "read_checkpoint",
    "read_hub",
    "read_saved",
]


def download(
    name: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    token: str | bool | None = None,
    progress: bool = True,
) -> Path:
    """Fetch a checkpoint, check it and keep it: this machine can then load it without a network.

    Args:
        name: Of published weights (``"u2net_full.duts"``), or ``"hf-hub:org/repo[@revision]"``.
        revision: Of a repository of the Hub.
        cache_dir: Where files are kept; None: the caches of huggingface_hub (``HF_HOME``) and of torch
            (``TORCH_HOME``).
        force_download: Whether to fetch again what is kept already.
        token: For the Hub; None: the one of ``hf auth login`` or ``HF_TOKEN``.
        progress: Whether there is a bar on stderr.

    Returns:
        The safetensors file of published weights; the folder of a model from the Hub.

    Raises:
        ValueError: For an unknown name, with the nearest one.
        FileNotFoundError, PermissionError, ConnectionError: If the files cannot be had.

    Examples:
        >>> download("u2net_lite.duts").suffix  # in the package
        '.safetensors'
    """
    access = Access(cache_dir, force_download, False, token, progress)
    if name.startswith(HF_HUB):
        read_hub(name, revision=revision, access=access)
        kept = Access(cache_dir, False, True, token, progress)
        return hub_folder(name, revision=revision, access=kept)
    if revision is not None:
        raise ValueError(f"revision={revision!r} is for {HF_HUB}org/repo, and {name} has the one of its record")
    return fetch(get_weights(name), **vars(access))


def is_saved(weights: object) -> bool:
    """Whether these are a saved model's: ``"local-dir:PATH"`` or ``"hf-hub:org/repo"``."""
    return isinstance(weights, str) and weights.startswith((LOCAL_DIR, HF_HUB))


def find_record(architecture: str, weights: object) -> Weights | None:
    """The record that a tag (``"duts"``) or a name (``"u2net_lite.duts"``) means for an architecture, or None."""
    records = [get_weights(name) for name in list_weights(architecture)]
    return next((record for record in records if weights in (record.tag, record.name)), None)


def arguments_of(architecture: str, weights: object) -> dict[str, Any]:
    """The factory's arguments that published weights need, or that a converted file says; {} for any other."""
    record = find_record(architecture, weights)
    if record is not None:
        return dict(record.arguments)
    if not isinstance(weights, (str, os.PathLike)) or not Path(weights).is_file():
        return {}
    same = read_metadata(weights).get(ARCHITECTURE) == architecture
    return read_arguments(weights) if same else {}


def read_checkpoint(
    architecture: str,
    weights: str | os.PathLike[str],
    *,
    revision: str | None = None,
    access: Access | None = None,
) -> Checkpoint:
    """The checkpoint that ``weights=`` names.

    Args:
        architecture: The factory's name, whose tags are meant.
        weights: A tag of it, ``"architecture.tag"``, ``"hf-hub:org/repo[@revision]"``, ``"local-dir:PATH"``, or the
            path of a weights file.
        revision: Of a repository of the Hub.
        access: How files are fetched from the network.

    Raises:
        ValueError: For an unknown tag, with the nearest one, or what cannot be read.
        FileNotFoundError: If there is no such file or folder.
        ConnectionError: If it is not on this machine and could not be downloaded.
    """
    if not isinstance(weights, (str, os.PathLike)):
        raise TypeError(f"weights is a tag, a path or None, got {type(weights).__name__}")
    text = os.fspath(weights)
    if is_saved(text):
        return read_saved(text, revision=revision, access=access)
    record = find_record(architecture, text)
    if revision is not None:
        where = f"{record.name} has the revision of its record" if record else f"{text} is no repository of the Hub"
        raise ValueError(f"revision={revision!r} is for {HF_HUB}org/repo, and {where}")
    if record is not None:
        path = fetch(record, **vars(access or Access()))
        return Checkpoint(None, read_state_dict(path), record.name, record)
    text = str(Path(text).expanduser()) if text.startswith("~") else text
    if (Path(text) / CONFIG).is_file():
        raise ValueError(f"{text} is a folder: weights={LOCAL_DIR + text!r} loads the model in it")
    if not isinstance(weights, str) or len(Path(text).parts) > 1 or Path(text).suffix.lower() in SUFFIXES:
        return Checkpoint(None, read_state_dict(text), text, None)
    tags = [known for name in list_weights(architecture) for known in (name, name.partition(".")[2])]
    raise unknown_name(f"weights for {architecture}", text, tags)


def read_saved(name: str, *, revision: str | None = None, access: Access | None = None) -> Checkpoint:
    """The checkpoint of a model that ``save_pretrained`` wrote, in a folder or on the Hub.

    Args:
        name: ``"local-dir:PATH"`` or ``"hf-hub:org/repo[@revision]"``.
        revision: Of a repository of the Hub.
        access: How files are fetched from the network.
    """
    if name.startswith(HF_HUB):
        return read_hub(name, revision=revision, access=access)
    if revision is not None:
        raise ValueError(f"revision={revision!r} is for {HF_HUB}org/repo, and {name} is a folder")
    return read_folder(name)


def describe(name: str) -> Weights:
    """The record of a saved model, in a folder or on the Hub, whose weights are not fetched for it.

    Args:
        name: ``"local-dir:PATH"`` or ``"hf-hub:org/repo[@revision]"``.
    """
    if not name.startswith(HF_HUB):
        record = read_folder(name).record
        assert record is not None
        return record
    repo, revision = parse_name(name)
    config = hub_file(repo, CONFIG, revision=revision)
    with _named(repo, f"{HF_HUB}{repo}@{config.parent.name}") as origin:
        saved, expected = read_config(config.parent)
    source = Source("hub", WEIGHTS, expected["sha256"], repo=repo, revision=config.parent.name)
    return record_of(saved, origin, source)


def read_hub(name: str, *, revision: str | None = None, access: Access | None = None) -> Checkpoint:
    """The checkpoint of a model on the Hub; files that are damaged are fetched once more.

    Args:
        name: ``"hf-hub:org/repo"`` or ``"hf-hub:org/repo@revision"``.
        revision: A branch, a tag or a commit; None: the one in the name, else ``main``.
        access: How files are fetched from the network.

    Raises:
        ValueError: If the repository's files are not those of one saved model.
        FileNotFoundError, PermissionError, ConnectionError: As ``segzoo.weights.hub.hub_folder``.
    """
    access = access or Access()
    repo, _ = parse_name(name)
    folder = hub_folder(name, revision=revision, access=access)
    try:
        return _read_snapshot(repo, folder)
    except Damaged as damaged:
        if access.offline:
            raise
        first = damaged
    try:  # the same commit: damage is no reason to move on with a branch
        again = hub_folder(repo, revision=folder.name, access=replace(access, force_download=True))
    except OSError as error:
        raise Damaged(f"{first}; fetching it once more failed, too: {error}") from error
    try:
        return _read_snapshot(repo, again)
    except Damaged as damaged:
        raise Damaged(
            f"{damaged} (fetched twice): its files do not fit each other, or something on the way changes them"
        ) from damaged


def _read_snapshot(repo: str, folder: Path) -> Checkpoint:
    commit = folder.name
    with _named(repo, f"{HF_HUB}{repo}@{commit}") as origin:
        return read_folder(folder, origin=origin, source=Source("hub", WEIGHTS, None, repo=repo, revision=commit))


@contextmanager
def _named(repo: str, origin: str) -> Iterator[str]:
    """Errors name the repository, not only a file in a cache."""
    try:
        yield origin
    except NotOurs as error:
        whose = f"is a model of {error.library}, not one" if error.library else "is no model"
        raise ValueError(
            f"{HF_HUB}{repo} {whose} that segzoo saved: download the file of its weights, and give its path to a "
            "factory, as weights="
        ) from error
    except ValueError as error:
        kind = Damaged if isinstance(error, Damaged) else ValueError
        raise kind(f"{origin}: {str(error).removesuffix(COPY_AGAIN)}") from error
