"""A file from a URL: with time limits, a bar, and from where it broke off."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path

__all__ = ["download"]

_TIMEOUT = 30.0  # seconds without a byte
_TRIES = 3  # in a row that bring nothing new
_MOST = 50  # in all
_PAUSE = 1.0  # seconds
_BLOCK = 1 << 18
_OVERLOADED = {429, 500, 502, 503, 504}


def download(url: str, path: Path, *, progress: bool) -> None:
    """Fetch a URL into a file. What a broken connection left is kept, and the rest is asked for.

    Args:
        url: ``http:`` or ``https:``.
        path: The file, which is not there yet or is the beginning of this URL's.
        progress: Whether there is a bar on stderr.

    Raises:
        ConnectionError: If the server did not give the whole file; it says what it answered.
        OSError: If the file cannot be written.
    """
    failed = longest = 0
    for _ in range(_MOST):
        before = _length(path)
        try:
            _append(url, path, progress)
            return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and before:  # the beginning is no beginning of this file
                path.unlink()
            reason, retry = f"the server answered {error.code}", error.code in _OVERLOADED or error.code == 416
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason, retry = _words(error), True
        failed = failed + 1 if _length(path) <= longest else 0
        longest = max(longest, _length(path))
        if not retry or failed >= _TRIES:
            break
        time.sleep(_PAUSE)
    raise ConnectionError(reason)


def _append(url: str, path: Path, progress: bool) -> None:
    from tqdm import tqdm

    have = _length(path)
    request = urllib.request.Request(
        url, headers={"User-Agent": "segzoo"} | ({"Range": f"bytes={have}-"} if have else {})
    )
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
        if answer.status != 206:  # the whole file, whatever was asked for
            have = 0
        given = answer.headers.get("Content-Length")
        total = have + int(given) if given and given.isdecimal() else None
        bar = tqdm(
            total=total, initial=have, unit="B", unit_scale=True, desc=path.name, disable=None if progress else True
        )
        with bar, path.open("ab" if have else "wb") as file:
            while block := answer.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
    if total is not None and _length(path) < total:
        raise ConnectionError(f"the connection was lost after {_length(path):,} of {total:,} bytes")


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _words(error: BaseException) -> str:
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    if isinstance(error, TimeoutError):
        return f"no answer for {_TIMEOUT:.0f} seconds"
    return " ".join(str(error).split()) or type(error).__name__
