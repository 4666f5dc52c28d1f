"""The line that names the machine under every figure."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def machine(gpu: str | None = None) -> str:
    """Processor, threads and versions, in one line; first the GPU, the given one or that which this process used."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    processor = names[0] if names else platform.processor() or platform.machine()
    if gpu is None and torch.cuda.is_initialized():
        gpu = torch.cuda.get_device_name()
    return (
        f"{f'{gpu}; ' if gpu else ''}{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )
