"""What ``import segzoo`` adds to ``import torch``, in fresh processes, interleaved.

python benchmarks/import_time.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

from _machine import machine
from _results import result_file, write_results

CODE = "import time; a = time.perf_counter(); {}; print(time.perf_counter() - a)"
IMPORTS = {
    "import torch": "import torch",
    "import torch, segzoo": "import torch, segzoo",
    "import segzoo": "import segzoo",
    "import torch; from segzoo import u2net_lite": "import torch; from segzoo import u2net_lite",
}


def seconds(statement: str) -> float:
    """One import, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", CODE.format(statement)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--json", type=result_file, help="write the results to this file too")
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for name in IMPORTS:
        seconds(IMPORTS[name])  # bytecode and disk cache
    for _ in range(args.repeats):
        for name, statement in IMPORTS.items():
            times[name].append(seconds(statement))
    medians = {name: 1000 * statistics.median(values) for name, values in times.items()}
    for name, value in medians.items():
        print(f"{name:46}{value:9.1f} ms")
    pairs = zip(times["import torch, segzoo"], times["import torch"])
    added = 1000 * statistics.median(both - torch for both, torch in pairs)
    print(f"import segzoo adds to import torch (median of pairs): {added:.1f} ms; alone it takes "
          f"{medians['import segzoo']:.1f} ms\n{machine()}")  # fmt: skip
    if args.json:
        write_results(args.json, {"added_ms": added, "medians_ms": medians, "repeats": args.repeats})


if __name__ == "__main__":
    main()
