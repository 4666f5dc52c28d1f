"""From a record to a file on this machine: the bundled file, or its publisher's URL. The sha256 decides."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from pathlib import Path

import torch

from segzoo._files import write_whole
from segzoo.weights.catalog import Source, Weights
from segzoo.weights.convert import read_state_dict, write_state_dict

__all__ = ["fetch"]

logger = logging.getLogger(__name__)


def fetch(record: Weights, *, progress: bool = True) -> Path:
    """The safetensors file, in our keys, of a published checkpoint.

    A file inside the package needs no network. A downloaded one is checked, converted once and kept in torch's hub
    folder (``TORCH_HOME``), so that the next time needs no network either.

    Args:
        record: From ``segzoo.get_weights``.
        progress: Whether a download shows a progress bar on stderr.

    Raises:
        ConnectionError: If none of the record's sources gave the file; it says what each answered.

    Examples:
        >>> from segzoo import get_weights
        >>> fetch(get_weights("u2net_lite.duts")).name
        'u2net_lite.duts.safetensors'
    """
    failures = []
    for source in record.sources:
        try:
            return _bundled(source) if source.kind == "bundled" else _downloaded(record, source, progress)
        except (OSError, ValueError, RuntimeError) as error:
            logger.warning("%s: %s failed (%s)", record.name, source.location, error)
            failures.append(f"{source.location} ({str(error).strip() or type(error).__name__})")
    raise ConnectionError(
        f"could not get the weights {record.name}: {'; '.join(failures)}; "
        "where the file is at hand, pass its path as weights="
    )


def _bundled(source: Source) -> Path:
    path = Path(__file__).with_name(source.location)
    if not path.is_file():
        raise FileNotFoundError("not in this installation")
    digest = _sha256(path)
    if digest != source.sha256:
        raise ValueError(f"sha256 is {digest}, expected {source.sha256}")
    return path


def _downloaded(record: Weights, source: Source, progress: bool) -> Path:
    cache = Path(torch.hub.get_dir()) / "segzoo"
    cached = cache / f"{record.name}-{source.sha256[:16]}.safetensors"
    noted = cached.with_suffix(".sha256")  # of the converted file, noted when it was made of the checked one
    if cached.is_file() and noted.is_file() and noted.read_text().strip() == _sha256(cached):
        return cached
    cache.mkdir(parents=True, exist_ok=True)
    logger.info("downloading %s", source.location)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        file = Path(folder) / source.location.rpartition("/")[2]
        # torch checks the whole sha256 when the prefix is the whole of it, and moves the file into place afterwards
        torch.hub.download_url_to_file(source.location, str(file), hash_prefix=source.sha256, progress=progress)
        state = read_state_dict(file)
    digest = write_state_dict(state, cached, {"weights": record.name, "source_sha256": source.sha256})
    with write_whole(noted) as note:  # last: a file without its note is not used
        note.write(digest.encode())
    return cached


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
