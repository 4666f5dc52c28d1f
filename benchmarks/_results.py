"""Result files: the figures of a run, and where they come from. docs/benchmarks.md is made from nothing else.

Every script here has ``--json PATH``. What it writes there is a JSON object with its own figures and, added by
`write_results`: ``machine``, ``versions``, ``commit`` (with "-dirty" where what was measured is not what is committed,
null outside a clone), ``date`` (UTC), ``command`` (without this machine's folders), ``seed`` (null where nothing is
drawn), and ``earlier``, the same of earlier runs, where figures of theirs are still in the file.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from _machine import machine

import segzoo
from segzoo._files import check_writable, write_whole

ROOT = Path(__file__).resolve().parent.parent
ALWAYS = ("torchvision", "numpy", "timm")
MEASURED = ("segzoo", "benchmarks", "examples", "pyproject.toml", ":(exclude)benchmarks/results")
"""What a figure may depend on, as git's path patterns."""
PROVENANCE = ("machine", "versions", "commit", "date", "command", "seed")
FOLDERS = re.compile(
    r"""(?!file:)\b\w[\w+.-]+://\S* | (?:^|(?<=[\s=:,;"'(\[]))    # a URL stays; else after what can come before a path
    (?:file:/+|~\w*/|(?:\.\./)+|[A-Za-z]:[\\/]|/+)[^\s,;:"')\]]+""",
    re.VERBOSE,
)


def result_file(text: str) -> Path:
    """The ``type=`` of ``--json``: a file that cannot be written is an error before the measuring, not after."""
    try:
        check_writable(text)
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)


def read_results(path: Path | None) -> dict[str, Any]:
    """What a file has so far; an empty dictionary where there is none yet."""
    return json.loads(path.read_text("utf-8")) if path and path.exists() else {}


def write_results(
    path: str | os.PathLike[str],
    results: Mapping[str, Any],
    *,
    seed: int | Sequence[int] | None = None,
    peers: Sequence[str] = (),
    gpu: str | None = None,
    kept: Mapping[str, Any] | None = None,
) -> None:
    """Write figures with their provenance, the whole file or nothing.

    Args:
        path: The JSON file, by custom ``benchmarks/results/NAME.json``.
        results: Figures by name. Arrays and tensors become lists, what is not finite null; folders of this machine are
            taken out of every string.
        seed: What the run's random numbers began with.
        peers: Distributions (``"monai"``) whose versions count too.
        gpu: Its name, where processes that this one started have used it; what this one used itself is known.
        kept: The file as it was before the run (`read_results`), when ``results`` has figures of it still.
    """
    known = {"python": platform.python_version(), "torch": torch.__version__, "segzoo": segzoo.__version__}
    versions = known | {name: version(name) for name in (*ALWAYS, *peers)}
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    origin = {"machine": machine(gpu), "versions": versions, "commit": commit(), "date": now, "command": command()}
    own = {name: value for name, value in results.items() if name not in PROVENANCE}
    content = {**clean(own), **origin, "seed": clean(results.get("seed") if seed is None else seed)}
    if kept and set(figures(kept)) & set(figures(content)):
        before = {name: kept[name] for name in (*PROVENANCE, "recorded") if name in kept}
        content["earlier"] = [*kept.get("earlier", []), before]
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with write_whole(path) as file:
        file.write(text.encode())


def version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit(root: Path = ROOT) -> str | None:
    """The commit that was measured; ``SEGZOO_COMMIT`` says it for a copy without its git folder."""
    top = git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:
        return os.environ.get("SEGZOO_COMMIT")
    head = git(root, "rev-parse", "HEAD")
    return f"{head}-dirty" if head and git(root, "status", "--porcelain", "--", *MEASURED) else head


def git(root: Path, *arguments: str) -> str | None:
    """What git answers, None where it cannot."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def command() -> str:
    """The command line that runs, from the repository's folder; of places outside it only the last name."""
    start = "python"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        nodes = f"--nnodes {everywhere // here} " if everywhere > here else ""
        start = f"torchrun {nodes}--nproc-per-node {here}"
    words = [shlex.quote(shortened(word) if is_place(word) else without_folders(word)) for word in sys.argv]
    return " ".join([start, *words])


def is_place(word: str) -> bool:
    """Whether all of it is one path, spaces and all."""
    return bool(re.match(r"(?:[/~]|\.\./|[A-Za-z]:[\\/])[^=:,;]*$", word))


def without_folders(text: str) -> str:
    """The text with paths inside the repository relative to it, and of any other the last name alone."""
    return FOLDERS.sub(lambda found: shortened(found[0]), text)


def shortened(place: str) -> str:
    place = re.sub(r"^file:/+", "/", place)
    if re.match(r"\w[\w+.-]+://", place):
        return place
    if re.match(r"~|[A-Za-z]:[\\/]", place):
        return PureWindowsPath(place).name
    resolved = Path(place).resolve()
    return resolved.relative_to(ROOT).as_posix() if resolved.is_relative_to(ROOT) else Path(place).name or place


def clean(value: Any) -> Any:
    """As JSON can say it, and without folders."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {without_folders(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, os.PathLike):
        return shortened(os.fspath(value)) if is_place(os.fspath(value)) else os.fspath(value)
    return without_folders(value) if isinstance(value, str) else value


def figures(value: Any, at: str = "") -> Iterator[tuple[str, float]]:
    """Every measured number and where it stands; whole ones, settings mostly, are equal too often to say anything."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from figures(item, f"{at}/{key}")
    elif isinstance(value, list):
        for item in value:  # rows may have moved
            yield from figures(item, f"{at}/*")
    elif isinstance(value, float) and not value.is_integer():
        yield at, value
