"""Values of rembg's own u2netp.onnx in onnxruntime, for tests/test_u2net.py.

python tests/data/make_reference.py u2netp.onnx
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from segzoo import get_weights
from segzoo.inference import preprocess, read_picture

HERE = Path(__file__).resolve().parent


def main(onnx: str) -> None:
    session = onnxruntime.InferenceSession(onnx)

    def run(x: torch.Tensor) -> list[list[float]]:
        out: np.ndarray = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        return np.round(out[0, 0, ::16, ::16].astype(float), 8).tolist()

    def random_input(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(1, 3, 320, 320, generator=generator, dtype=torch.float64).float()

    coffee = read_picture(HERE.parent.parent / "examples/images/coffee.jpg")
    x = preprocess(coffee, get_weights("u2net_lite.duts").preprocessing)[None]
    reference = {"random": {str(seed): run(random_input(seed)) for seed in (0, 1)}, "coffee": run(x)}
    (HERE / "u2netp_reference.json").write_text(json.dumps(reference) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
