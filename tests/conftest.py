"""What the tests share: real data where it is at hand, and pictures the tests make."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_client import client, hub  # noqa: F401, fixtures
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
U2NETP_SHA256 = "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8"

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # processes that share the cores
    torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))

# A first example may load weights; a time limit on it would only say how busy the machine is.
settings.register_profile("segzoo", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("segzoo")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(autouse=True)
def forget_compiled_code() -> Iterator[None]:
    """Each test compiles afresh: torch gives up on code that was compiled for too many models."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small networks are faster on one thread than on two that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of the real data sets, or a skip."""
    place = Path(os.environ.get("SEGZOO_DATA", ROOT.parent / "shared" / "data"))
    if not (place / "ecssd").is_dir():
        pytest.skip("no real data: set SEGZOO_DATA to a folder with ecssd/")
    return place


@pytest.fixture(scope="session")
def u2netp_onnx() -> Path:
    """The published ONNX file of U²-Netp, or a skip."""
    place = os.environ.get("SEGZOO_U2NETP_ONNX")
    if not place or not Path(place).is_file():
        pytest.skip("no u2netp.onnx: set SEGZOO_U2NETP_ONNX to rembg's file (CONTRIBUTING.md says where it is)")
    assert hashlib.sha256(Path(place).read_bytes()).hexdigest() == U2NETP_SHA256, "another file than the published one"
    return Path(place)


@pytest.fixture(scope="session")
def coffee() -> Path:
    """A real photograph that is in the repository, 600 × 400, of a cup in the middle."""
    return ROOT / "examples/images/coffee.jpg"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
