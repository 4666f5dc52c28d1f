"""The Hugging Face Hub: files and saved models from it, and models to it. huggingface_hub does the work.

It has the cache, the locks, the tokens, ``HF_ENDPOINT``, ``HF_HUB_OFFLINE`` and ``HF_HOME``. Here are the names
``hf-hub:org/repo@revision``, the choice to ask nothing of the network for what is in the cache, and its errors, each in
one sentence that says what to do.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "FULL_DISK",
    "HF_HUB",
    "Access",
    "Unreachable",
    "full_name",
    "hub_digest",
    "hub_file",
    "hub_folder",
    "parse_name",
    "push_folder",
]

logger = logging.getLogger(__name__)

HF_HUB = "hf-hub:"
_FILES = ("config.json", "model.safetensors")
_REPO = re.compile(r"\b[\w.-]+\b/\b[\w.-]{1,96}\b", re.ASCII)
FULL_DISK = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS)
_KNOCK = 5.0  # seconds for the Hub's address to answer at all
_TRIES = 3
_PAUSE = 1.0  # seconds between two of them
_PATIENCE = 5.0  # seconds that huggingface_hub may have tried on its own for us to try again: before 1.0 it does not


class Unreachable(ConnectionError):
    """The Hub did not answer, or not as it should; ``reason`` says how."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Access:
    """How files are fetched from the network.

    Args:
        cache_dir: Where they are kept; None: huggingface_hub's own cache, and torch's hub folder for what is converted.
        force_download: Whether to fetch them again where they are in the cache.
        local_files_only: Whether to look at the cache only. ``HF_HUB_OFFLINE=1`` does that everywhere.
        token: For repositories that are private or gated; None: the one of ``hf auth login`` or ``HF_TOKEN``.
        progress: Whether a download shows a progress bar.
    """

    cache_dir: str | os.PathLike[str] | None = None
    force_download: bool = False
    local_files_only: bool = False
    token: str | bool | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.force_download and self.local_files_only:
            raise ValueError("force_download fetches files again and local_files_only fetches none: give one of them")
        if self.force_download and self.offline:
            raise ValueError("force_download fetches files again, and HF_HUB_OFFLINE is set: unset it")

    @property
    def offline(self) -> bool:
        """Whether nothing may be asked of the network."""
        from huggingface_hub import constants

        return self.local_files_only or bool(constants.HF_HUB_OFFLINE)

    @property
    def why_offline(self) -> str:
        """What forbids it, for a message."""
        return "local_files_only was given" if self.local_files_only else "HF_HUB_OFFLINE is set"


def parse_name(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """``hf-hub:org/repo@revision`` as its repository and its revision.

    Args:
        name: With ``hf-hub:`` before it or without.
        revision: Given apart, in the place of one in the name.

    Raises:
        ValueError: If it is no such name, or the two revisions differ.

    Examples:
        >>> parse_name("hf-hub:org/repo@v1.0")
        ('org/repo', 'v1.0')
    """
    repo, at, named = name.removeprefix(HF_HUB).partition("@")
    if not _REPO.fullmatch(repo) or any(x in repo for x in ("--", "..")) or (at and not named):
        raise ValueError(f"{name!r} is no repository of the Hugging Face Hub, expected {HF_HUB}org/repo or …@revision")
    if named and revision is not None and revision != named:
        raise ValueError(f"{name!r} names a revision already; got revision={revision!r} too")
    return repo, named or revision


def hub_folder(name: str, *, revision: str | None = None, access: Access | None = None) -> Path:
    """The folder, in the cache, of a model that was saved on the Hub: its config and weights, of one commit.

    What is in the cache is taken without a request: a commit never changes, and a branch is what it was when it was
    fetched, until ``force_download`` asks again.

    Args:
        name: ``"hf-hub:org/repo"`` or ``"hf-hub:org/repo@revision"``.
        revision: A branch, a tag or a commit; None: the one in the name, else ``main``.
        access: How it is fetched.

    Raises:
        FileNotFoundError: If there is no such repository or revision, or no model in it.
        PermissionError: If it may not be read.
        ConnectionError: If the Hub could not be reached and the model is not in the cache.
    """
    repo, revision = parse_name(name, revision)
    access = access or Access()
    config_file, *others = _FILES
    cached = [_cached(repo, file, revision, access) for file in _FILES]
    whole = {path.parent for path in cached if path} if None not in cached else set()
    before = whole.pop() if len(whole) == 1 else None
    if before is not None and not access.force_download:
        return before
    place = _place(repo, revision)
    if access.offline and (last := _last_whole(repo, revision, access)) is not None:
        return last
    try:
        folder = _file(repo, config_file, revision, access, place).parent
        for file in others:  # of the very commit of the config, wherever a branch has moved to meanwhile
            _file(repo, file, folder.name, access, place)
    except BaseException:  # a Ctrl-C too: the branch means again what is whole
        ref = before.parents[1] / "refs" / (revision or "main") if before is not None else None
        if before is not None and ref is not None and ref.is_file():
            ref.write_text(before.name)
        raise
    return folder


def _last_whole(repo: str, revision: str | None, access: Access) -> Path | None:
    """Of a branch whose newest commit is here in part only: the folder of the last one that is here wholly."""
    config = _cached(repo, _FILES[0], revision, access)
    if config is None or config.parent.name == revision:
        return None
    others = [folder for folder in config.parents[1].iterdir() if all((folder / file).is_file() for file in _FILES)]
    if not others:
        return None
    last = max(others, key=lambda folder: folder.stat().st_mtime)
    logger.warning(
        "%s: of commit %s not all is on this machine; %s is used", _place(repo, revision), config.parent.name, last.name
    )
    return last


def hub_digest(repo: str, file: str, *, revision: str | None = None, access: Access | None = None) -> str | None:
    """The sha256 of a file that the Hub tells of large ones, by one request; of others, and without an answer, None."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        told = get_hf_file_metadata(hf_hub_url(repo, file, revision=revision), token=(access or Access()).token).etag
    except Exception:  # the Hub's own errors, or its HTTP library's
        return None
    return told


def full_name(repo: str, token: str | bool | None = None) -> str:
    """``"repo"`` of one's own as ``"me/repo"``.

    Raises:
        ValueError: If it is no name of a repository.
        PermissionError: Without a token.
    """
    if "/" in repo:
        return parse_name(repo)[0]
    from huggingface_hub import HfApi

    _knock(repo, "", pushing=True)
    try:
        owner = HfApi(token=token).whoami()["name"]
    except Exception as error:
        raise _explained(error, repo, "", pushing=True) from error
    return parse_name(f"{owner}/{repo}")[0]


def hub_file(repo: str, file: str, *, revision: str | None = None, access: Access | None = None) -> Path:
    """One file of a repository, from the cache where it is there, else from the Hub.

    Args:
        repo: ``"org/repo"``.
        file: Its path in the repository.
        revision: A branch, a tag or a commit; None: ``main``.
        access: How it is fetched.

    Raises:
        FileNotFoundError, PermissionError, ConnectionError: As ``hub_folder``.
    """
    return _file(repo, file, revision, access or Access(), _place(repo, revision))


def _place(repo: str, revision: str | None) -> str:
    return f"{HF_HUB}{repo}{f'@{revision}' if revision else ''}"


def _file(repo: str, file: str, revision: str | None, access: Access, place: str) -> Path:
    """As ``hub_file``; ``place`` is what messages call the repository."""
    cached = _cached(repo, file, revision, access)
    if not access.force_download and cached is not None:
        return cached
    if access.offline:
        raise FileNotFoundError(
            f"{place}: {file} is not on this machine, and {access.why_offline}: fetch it where there is a network"
            + (f", with `segzoo download {place}`" if file in _FILES else "")
        )
    from huggingface_hub import hf_hub_download

    _knock(place, file)
    for attempt in range(1, _TRIES + 1):
        begun = time.monotonic()
        try:
            with _bars(access.progress), _replaced(cached):
                return Path(
                    hf_hub_download(
                        repo,
                        file,
                        revision=revision,
                        cache_dir=None if access.cache_dir is None else os.fspath(access.cache_dir),
                        force_download=access.force_download,
                        token=access.token,
                        library_name="segzoo",
                    )
                )
        except Exception as error:  # the Hub's own, or its HTTP library's, which changes with its version
            if attempt == _TRIES or not _passing(error) or time.monotonic() - begun > _PATIENCE:
                raise _explained(error, place, file) from error
        time.sleep(_PAUSE)
    raise AssertionError("not reached")


def push_folder(
    folder: str | os.PathLike[str],
    repo: str,
    *,
    commit_message: str,
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
    allow_patterns: Sequence[str] | str | None = None,
    ignore_patterns: Sequence[str] | str | None = None,
    delete_patterns: Sequence[str] | str | None = None,
) -> str:
    """Push a folder as one commit; the repository, and the branch, are made where they are not there.

    Args:
        folder: Whose files are pushed.
        repo: ``"org/repo"``, or ``"repo"``: the user's own.
        commit_message: Of the commit.
        private: Whether a repository that is made is private; None: as its owner has it.
        token: None: the one of ``hf auth login`` or ``HF_TOKEN``.
        branch: None: ``main``.
        create_pr: Whether the commit goes into a pull request instead.
        allow_patterns: Only files that match are pushed.
        ignore_patterns: Files that match are not.
        delete_patterns: Files in the repository that match are deleted by the same commit.

    Returns:
        The commit's URL.

    Raises:
        PermissionError: Without a token that may write there.
        ConnectionError: If the Hub could not be reached.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise ConnectionError(f"{repo} cannot be pushed to: HF_HUB_OFFLINE is set")
    _knock(f"{HF_HUB}{repo}", "", pushing=True)
    api = HfApi(token=token, library_name="segzoo")
    try:
        with _bars(True):
            repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
            if branch is not None and not create_pr:
                api.create_branch(repo, branch=branch, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=os.fspath(folder),
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
                allow_patterns=_listed(allow_patterns),
                ignore_patterns=_listed(ignore_patterns),
                delete_patterns=_listed(delete_patterns),
            )
    except Exception as error:
        raise _explained(error, f"{HF_HUB}{repo}", "", pushing=True) from error
    if not create_pr:  # what this machine knows of the branch is of before
        ref = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "refs" / (branch or "main")
        with suppress(OSError):
            ref.unlink(missing_ok=True)
    return str(getattr(commit, "pr_url", None) or commit.commit_url)


def _listed(patterns: Sequence[str] | str | None) -> list[str] | str | None:
    return patterns if patterns is None or isinstance(patterns, str) else list(patterns)


def _cached(repo: str, file: str, revision: str | None, access: Access) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    cache = None if access.cache_dir is None else Path(access.cache_dir).expanduser()
    found = try_to_load_from_cache(repo, file, cache_dir=cache, revision=revision)
    return Path(found) if isinstance(found, str) else None  # or a mark that the file is known not to exist


@contextmanager
def _replaced(cached: Path | None) -> Iterator[None]:
    """Where the cache has no links (Windows), its client leaves a file that is there as it is: it goes aside."""
    if cached is None or cached.is_symlink() or not cached.is_file():
        yield
        return
    aside = cached.with_name(f".{cached.name}.old")
    cached.replace(aside)
    try:
        yield
    finally:
        if cached.is_file():
            aside.unlink()
        else:
            aside.replace(cached)


@contextmanager
def _bars(show: bool) -> Iterator[None]:
    from huggingface_hub import utils

    bars: Any = utils
    if show or bars.are_progress_bars_disabled():
        yield
        return
    bars.disable_progress_bars()
    try:
        yield
    finally:
        bars.enable_progress_bars()


def _knock(place: str, file: str, *, pushing: bool = False) -> None:
    """Raise at once where nobody answers at the Hub's address: its client would try again for half a minute."""
    from huggingface_hub import constants

    address = urllib.parse.urlsplit(constants.ENDPOINT)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError(f"HF_ENDPOINT is {constants.ENDPOINT!r}, expected an address such as https://hf-mirror.com")
    host, port = address.hostname or "", address.port or {"http": 80}.get(address.scheme, 443)
    if {address.scheme, "all"} & urllib.request.getproxies().keys() and not urllib.request.proxy_bypass(host):
        return  # the proxy looks the address up
    try:
        socket.create_connection((host, port), timeout=_KNOCK).close()
    except TimeoutError:
        return  # slow, perhaps
    except OSError as error:
        reason = f"{host} cannot be reached ({error.strerror or error})"
        raise _unreachable(place, file, reason, pushing=pushing) from error


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that an error or one of its causes tells of."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__ or error.__context__
    return None


def _passing(error: BaseException) -> bool:
    """Whether it may go better in a moment: an overloaded server, or a download that broke off and can go on."""
    return _status(error) in (500, 502, 503, 504) or type(error).__name__ == "ChunkedEncodingError"


def _explained(error: Exception, place: str, file: str, *, pushing: bool = False) -> Exception:
    """One sentence of what happened and what to do."""
    from huggingface_hub import errors

    known: Any = errors
    status = _status(error)
    log_in = "log in with `hf auth login`, or pass a token"
    if isinstance(error, known.GatedRepoError):
        return PermissionError(f"{place} is gated: accept its terms on its page, then {log_in} (token=)")
    if isinstance(error, known.LocalTokenNotFoundError) or (pushing and status == 401):
        return PermissionError(f"{place} cannot be pushed to without a token that may write there: {log_in} (token=)")
    if isinstance(error, known.RevisionNotFoundError):
        return FileNotFoundError(f"{place}: the repository has no such branch, tag or commit")
    if isinstance(error, known.RepositoryNotFoundError):
        return FileNotFoundError(
            f"{place}: there is no such repository, or it is private: check the name, or {log_in} (token=)"
        )
    if isinstance(error, known.EntryNotFoundError) and not isinstance(error, known.LocalEntryNotFoundError):
        hints = {
            "config.json": ": it is no model that segzoo saved",
            "model.safetensors": ": its push was not finished",
        }
        hint = hints.get(file, "")
        return FileNotFoundError(f"{place} has no {file}{hint}")
    if isinstance(error, known.HFValidationError):
        return ValueError(f"{place} is no name that the Hugging Face Hub takes: {_first(error)}")
    if status == 401:
        return PermissionError(
            f"{place} may not be read: the token is not valid; {log_in.replace('pass a', 'pass another')}"
        )
    if status == 403:
        return PermissionError(f"{place} may not be {'written' if pushing else 'read'} with this token: {log_in}")
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return OSError(error.errno, error.strerror, error.filename or "the cache of the Hugging Face Hub")
    if isinstance(error, OSError) and not isinstance(error, ConnectionError) and error.filename:
        return type(error)(error.errno, error.strerror, error.filename)  # this machine's: no space, no permission
    return _unreachable(place, file, _reason(error), pushing=pushing)


def _unreachable(place: str, file: str, reason: str, *, pushing: bool = False) -> Unreachable:
    what = "pushed to" if pushing else "fetched"
    return Unreachable(
        f"{place} could not be {what}{f' ({file})' if file else ''}: {reason}; "
        "check the network (and HF_ENDPOINT, where it is set) and try again",
        reason,
    )


def _reason(error: BaseException) -> str:
    """What the innermost of an error's causes says, for the Hub's own errors say what they were asked for first."""
    status = _status(error)
    if status is not None:
        return f"the server answered {status}"
    if "Consistency check failed" in str(error):
        return "the file came incomplete"
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return _first(error)


def _first(error: BaseException) -> str:
    return (" ".join(str(error).split()).partition(". ")[0] or type(error).__name__).rstrip(".")
