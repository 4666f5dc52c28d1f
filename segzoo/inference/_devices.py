"""Where a model can run, and how narrow it may be there."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

from segzoo._errors import unknown_name

__all__ = ["DTYPES", "Precision", "find_device", "is_fast"]

Precision: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def find_device(device: str | torch.device) -> torch.device:
    """The device, which is there; of ``"auto"`` a CUDA GPU, else Apple's, else the CPU.

    Raises:
        ValueError: If there is no such device: whoever asks for a GPU must not wait for a CPU.

    Examples:
        >>> find_device("cpu")
        device(type='cpu')
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise unknown_name("device", device, ["auto", "cpu", "cuda", "cuda:0", "mps"]) from None
    try:
        torch.zeros(1, device=found).cpu()  # asking is the only way to know, and torch's refusals have many types
    except Exception:
        message = f"device {str(device)!r} was asked for and is not there; device='auto' takes what is"
        raise ValueError(message) from None
    return found


def is_fast(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device computes in this half precision itself, instead of by way of float32."""
    if device.type == "cuda":
        at_least = (8, 0) if dtype == torch.bfloat16 else (7, 0)
        return torch.cuda.get_device_capability(device) >= at_least
    if device.type == "cpu" and dtype == torch.bfloat16:
        instructions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, bool)() for name in instructions)
    return False
