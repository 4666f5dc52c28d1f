"""From a record to a file on this machine: the bundled file, the Hub's, or its publisher's. The digests decide."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from segzoo._files import write_whole
from segzoo.weights.convert import StateDict, read_state_dict, write_state_dict
from segzoo.weights.digests import WrongFile, cache_folder, check_file, check_source, sha256_of
from segzoo.weights.hub import FULL_DISK, Access, Unreachable, hub_digest, hub_file
from segzoo.weights.record import Source, Weights
from segzoo.weights.segformer_keys import segformer_from_others
from segzoo.weights.urls import download

__all__ = ["fetch"]

logger = logging.getLogger(__name__)

_CONVERSION = 1  # of how files are converted: what was kept by another is converted anew

# What a file's reader leaves in its publisher's keys, by architecture.
_CONVERTERS: dict[str, Callable[[StateDict], StateDict]] = {"segformer": segformer_from_others}


def fetch(
    record: Weights,
    *,
    progress: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """The safetensors file, in our keys, of a published checkpoint.

    A file inside the package needs no network. Any other is fetched from the first of the record's sources that gives
    it, checked, converted once and kept: the next time nothing is asked of the network.

    Args:
        record: From ``segzoo.get_weights``.
        progress: Whether a download shows a progress bar on stderr.
        cache_dir: Where files are kept; None: what is converted in torch's hub folder (``TORCH_HOME``), what comes from
            the Hub in huggingface_hub's cache, too (``HF_HOME``).
        force_download: Whether to fetch a file again that is kept already.
        local_files_only: Whether to use only what is on this machine; with ``HF_HUB_OFFLINE=1`` it always is so.
        token: For the Hub; None: the one of ``hf auth login`` or ``HF_TOKEN``.

    Raises:
        FileNotFoundError: If the file is not on this machine and nothing may be downloaded.
        ConnectionError: If none of the record's sources gave the file; it says what each answered.

    Examples:
        >>> from segzoo import get_weights
        >>> fetch(get_weights("u2net_lite.duts")).name
        'u2net_lite.duts.safetensors'
    """
    access = Access(cache_dir, force_download, local_files_only, token, progress)
    remote = [source for source in record.sources if source.kind != "bundled"]
    failures: dict[str, Exception] = {}
    for source in record.sources:
        if source.kind == "bundled":
            try:
                return _bundled(source)
            except (OSError, ValueError) as error:
                failures[str(source)] = error
    kept = [_kept(record, source, access) for source in remote]
    if (found := _found(kept, access, failures)) is not None:
        return found
    if access.offline:  # nothing is written, no lock either, where there is nothing to convert
        remote = [source for source in remote if source.kind == "hub" and _at_the_hubs_cache(source, access)]
        kept = [_kept(record, source, access) for source in remote]
    if remote:
        with _alone(cache_folder(cache_dir) / f"{record.name}.lock"):
            if (found := _found(kept, access, failures)) is not None:
                return found  # another process has fetched it meanwhile
            for source, place in zip(remote, kept):
                if source.kind == "hub" and any(isinstance(error, Unreachable) for error in failures.values()):
                    continue
                try:
                    path = _fetched(record, source, place, access)
                except (OSError, ValueError, RuntimeError) as error:
                    if isinstance(error, OSError) and error.errno in FULL_DISK:
                        raise  # another source would not help
                    failures[str(source)] = error
                    continue
                for failed, why in failures.items():
                    logger.warning("%s: %s failed (%s); %s was used", record.name, failed, _reason(why), source)
                return path
    if access.offline and all(isinstance(error, FileNotFoundError) for error in failures.values()):
        raise FileNotFoundError(
            f"the weights {record.name} are not on this machine, and {access.why_offline}: fetch them where there is a "
            f"network, with `segzoo download {record.name}`"
        )
    tried = "; ".join(f"{source} ({_reason(error)})" for source, error in failures.items())
    raise ConnectionError(
        f"could not get the weights {record.name}: {tried}; where the file is at hand, pass its path as weights="
    )


def _reason(error: Exception) -> str:
    reason = error.reason if isinstance(error, Unreachable) else str(error)
    return " ".join(reason.split()) or type(error).__name__


def _bundled(source: Source) -> Path:
    path = Path(__file__).with_name(source.location)
    if not path.is_file():
        raise FileNotFoundError("not in this installation")
    check_source(path, source)
    return path


def _kept(record: Weights, source: Source, access: Access) -> Path:
    """Where the converted file is kept, by what was published: two places of one file are one."""
    key = source.sha256[:16] if source.sha256 else f"{source.repo}-{source.revision or 'main'}".replace("/", "-")
    return cache_folder(access.cache_dir) / f"{record.name}-{key}-{_CONVERSION}.safetensors"


def _noted(kept: Path) -> Path:
    """The file with the sha256 of the converted one, written after it: without it, or with another, it is not used."""
    return kept.with_suffix(".sha256")


def _found(kept: Iterable[Path], access: Access, failures: dict[str, Exception]) -> Path | None:
    """The first of these files that is there and as it was when it was converted; a damaged one is a failure."""
    for path in () if access.force_download else dict.fromkeys(kept):
        try:
            check_file(path, _noted(path).read_text().strip(), access.cache_dir)
        except WrongFile as error:
            failures["what was kept"] = error
        except (OSError, ValueError):
            continue
        else:
            return path
    return None


def _fetched(record: Weights, source: Source, kept: Path, access: Access) -> Path:
    """Fetch, check, convert and keep; a wrong file is fetched once more."""
    if record.commercial is False:
        logger.warning("%s: for non-commercial use only (%s)", record.name, record.license)
    for attempt, force in enumerate((access.force_download, True)):
        try:
            with _at_hand(source, kept, replace(access, force_download=force)) as file:
                digest = check_source(file, source)
                state = read_state_dict(file)
        except WrongFile as error:
            if attempt or access.offline:
                # What came from a URL is not kept: its path would lead nowhere.
                raise WrongFile(str(error).replace(str(_passing(source, kept)), "the file")) from error
            logger.warning("%s: %s gave a wrong file: once more", record.name, source)
            continue
        break
    state = _CONVERTERS.get(record.architecture, dict)(state)
    converted = write_state_dict(state, kept, {"weights": record.name, "source_sha256": digest})
    with write_whole(_noted(kept)) as note:
        note.write(converted.encode())
    return kept


@contextmanager
def _at_hand(source: Source, kept: Path, access: Access) -> Iterator[Path]:
    """The source's own file: in the Hub's cache, or in a folder that goes away again."""
    if source.kind == "hub":
        assert source.repo is not None
        path = hub_file(source.repo, source.location, revision=source.revision, access=access)
        if source.sha256 is None:
            _check_by_the_hub(path, source, access)
        yield path
        return
    if access.offline:
        raise FileNotFoundError("nothing may be downloaded")
    path = _passing(source, kept)  # one process at a time is here; what a killed one left is overwritten
    folder = path.parent
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        logger.info("downloading %s", source.location)
        download(source.location, path, progress=access.progress)
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _passing(source: Source, kept: Path) -> Path:
    """Where a publisher's own file is while it is checked and converted."""
    return kept.with_suffix(".download") / source.location.rpartition("/")[2]


def _at_the_hubs_cache(source: Source, access: Access) -> bool:
    try:
        hub_file(source.repo or "", source.location, revision=source.revision, access=access)
    except OSError:
        return False
    return True


def _check_by_the_hub(path: Path, source: Source, access: Access) -> None:
    """Of a large file the Hub tells the sha256, and huggingface_hub's cache has it as the name of what it keeps.

    Where it has no links (Windows), the Hub is asked; without an answer nothing is converted.
    """
    told: str | None = path.resolve().name
    if not _is_sha256(told) and not access.offline:
        told = hub_digest(source.repo or "", source.location, revision=source.revision, access=access)
    if not _is_sha256(told):
        raise WrongFile(f"{path} cannot be checked, as nobody here knows its sha256: fetch it again with a network")
    if (found := sha256_of(path)) != told:
        raise WrongFile(f"{path} has sha256 {found}, and the Hub says {told}")


def _is_sha256(text: str | None) -> bool:
    return text is not None and re.fullmatch(r"[0-9a-f]{64}", text) is not None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time: others wait, and find what this one has fetched."""
    from huggingface_hub import utils

    lock: Any = utils
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise type(error)(
            f"{path.parent} cannot be written ({error.strerror or error}): set TORCH_HOME, or give cache_dir="
        ) from error
    with lock.WeakFileLock(path):
        yield
