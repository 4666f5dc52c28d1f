"""Rows of a table of trained models: each a run of a script of examples/, that goes on where it was stopped."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _results import ROOT, commit, read_results, result_file, write_results

from segzoo._files import write_whole

STOPPED = 143


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Args:
        name: Of the row, and of its runs' folders.
        options: Of the script, beside those that all rows have.
        main: Whether it belongs to the table's main rows, for which more seeds are run.
    """

    name: str
    options: Sequence[str]
    main: bool = False


def arguments(about: str, data: str) -> argparse.ArgumentParser:
    """The options that both tables have."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("SEGZOO_DATA", "../shared/data")) / data
    parser.add_argument("--data", type=Path, default=default, help="default: %(default)s")
    parser.add_argument("--scale", choices=["full", "cpu"], required=True, help="cpu: smaller, for hours not days")
    parser.add_argument("--rows", nargs="+", help="only these")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the main rows; others have the first")
    parser.add_argument("--runs", type=Path, required=True, help="the runs' folder: started again, they go on")
    parser.add_argument("--workers", type=int, default=0, help="of each run, to read and augment")
    parser.add_argument("--minutes", type=float, help="stop in time, in the middle of a run; the next call goes on")
    parser.add_argument("--list", action="store_true", help="print the commands of the runs instead")
    parser.add_argument("--json", type=result_file, help="write the results of finished runs to this file too")
    return parser


def run_rows(script: str, rows: Sequence[Row], common: Sequence[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what is not finished yet, and return the results of what is.

    Args:
        script: In examples/.
        rows: The table.
        common: Options of all rows.
        args: Of ``arguments``.
    """
    names = [row.name for row in rows]
    for name in args.rows or ():
        if name not in names:
            raise SystemExit(f"there is no row {name!r}, expected some of {', '.join(names)}")
    end = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    found = []
    for row in rows:
        if args.rows and row.name not in args.rows:
            continue
        for seed in args.seeds if row.main else args.seeds[:1]:
            folder = args.runs / re.sub(r"\W+", "_", f"{args.scale} {row.name} seed {seed}")
            own = [f"examples/{script}", "--data", str(args.data), *common, *row.options, "--seed", str(seed)]
            if args.list:
                print("python", *own, "--output", folder)
                continue
            origin = _origin(folder, [*common, *row.options, "--seed", str(seed)])
            if not (folder / "results.json").exists():
                command = [*own, "--workers", str(args.workers), "--output", str(folder), "--resume", "auto"]
                if not _run(command, end):
                    print(f"stopped in time, in {folder.name}; the same command goes on", file=sys.stderr)
                    return found
            found.append(_result(row, seed, folder) | {"commit": origin["commit"], "date": origin["date"]})
            write(args, common, found)
    return found


def _run(command: Sequence[str], end: float | None) -> bool:
    """Whether the run came to its end."""
    if end is not None and time.monotonic() > end:
        return False
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    try:
        process.wait(None if end is None else max(1.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise SystemExit(130) from None
    if process.returncode in (STOPPED, -signal.SIGTERM):
        return False
    if process.returncode:
        raise SystemExit(f"the run failed with exit code {process.returncode}: {' '.join(command)}")
    return True


def _origin(folder: Path, options: Sequence[str]) -> dict[str, Any]:
    """The options, commit and date that a run was started with, which its folder keeps."""
    note = folder / "row.json"
    if not note.exists():
        folder.mkdir(parents=True, exist_ok=True)
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        with write_whole(note) as file:
            file.write(json.dumps({"options": list(options), "commit": commit(), "date": now}).encode())
    origin: dict[str, Any] = json.loads(note.read_text("utf-8"))
    if origin["options"] != list(options):
        raise SystemExit(
            f"{folder} has a run with other options, {' '.join(origin['options'])}: expected another --runs"
        )
    return origin


def _result(row: Row, seed: int, folder: Path) -> dict[str, Any]:
    results = json.loads((folder / "results.json").read_text("utf-8"))
    kept = ("last", "best", "test", "test_mst", "training", "parameters", "processes", "device")
    log = (folder / "train.log").read_text("utf-8").splitlines()
    options = " ".join(row.options)
    return (
        {"row": row.name, "seed": seed, "options": options}
        | {k: results[k] for k in kept if k in results}
        | {"log": log}
    )


def write(args: argparse.Namespace, common: Sequence[str], found: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows to ``--json``: beside those that are there, in their place where they are the same."""
    if args.json is None or not found:
        return
    before = read_results(args.json)
    settings = {"scale": args.scale, "common": " ".join(common)}
    if before and {name: before.get(name) for name in settings} != settings:
        raise SystemExit(f"{args.json} has rows of other settings, {before.get('common')}: expected another --json")
    rows = {(row["row"], row["seed"]): row for row in (*before.get("rows", []), *found)}
    seeds = sorted({row["seed"] for row in rows.values()})
    gpu = next((row["device"] for row in found if row["device"] != "cpu"), None)
    kept = before if len(rows) > len(found) else None
    write_results(args.json, settings | {"rows": list(rows.values())}, seed=seeds, gpu=gpu, kept=kept)
