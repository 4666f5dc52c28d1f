"""What all metrics share: exact sums, merging, several processes, and checkpoints."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segzoo.metrics import BoundaryMetrics, Metric, SaliencyMetrics, SegmentationMetrics
from segzoo.metrics.base import exact_mean, fixed, fixed_mean, fixed_zeros

METRICS = (SaliencyMetrics, BoundaryMetrics, lambda: SegmentationMetrics(3))


@given(st.lists(st.floats(-3, 3, allow_subnormal=False), max_size=30), st.randoms())
def test_fixed_sums_are_exact_in_any_order(values: list[float], random: Any) -> None:
    totals = []
    for _ in range(2):
        total = fixed_zeros(1)
        for value in values:
            total = total + fixed(torch.tensor([value], dtype=torch.float64))
        totals.append(total)
        random.shuffle(values)
    assert torch.equal(*totals)
    if values:
        exact = float(sum(Fraction(value) for value in values) / len(values))
        assert fixed_mean(totals[0], len(values)).item() == pytest.approx(exact, abs=2**-51)
    else:
        assert fixed_mean(totals[0], 0).isnan().all()


def test_fixed_sums_of_very_many() -> None:
    values = torch.tensor([1.0, 0.999, 0.1, 2.0 - 2**-52], dtype=torch.float64)
    total = fixed(values)
    for _ in range(26):
        total = total + total
    assert (fixed_mean(total, 2**26) - values).abs().max() < 2**-51
    assert exact_mean(torch.tensor([0.1] * 10, dtype=torch.float64)) == 0.1
    assert math.isnan(exact_mean(torch.zeros(0)))


def feed(metric: Metric, number: int) -> None:
    """One picture, known by its number."""
    rng = np.random.default_rng(number)
    target = np.add.outer(np.arange(12), np.arange(10)) // (5 + number % 4) % 3
    if isinstance(metric, SegmentationMetrics):
        metric.update(rng.integers(0, 3, target.shape), target)
    elif isinstance(metric, BoundaryMetrics):
        metric.update(rng.random(target.shape) < 0.4, target == 1)
    else:
        metric.update(rng.integers(0, 256, target.shape).astype(np.uint8), target == 1)


def same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, str):
            assert value == second[key]
        else:
            assert np.array_equal(np.asarray(value), np.asarray(second[key]), equal_nan=True), key


SHARDS = ([0, 1, 2, 3], [], [4])  # uneven, and one process sees nothing

PROCESS = """
import sys
import torch, torch.distributed as dist
sys.path.insert(0, {tests!r})
from segzoo.metrics import SegmentationMetrics
from test_metrics_base import METRICS, SHARDS, feed
rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method={store!r}, rank=rank, world_size=len(SHARDS))
results = []
for make in METRICS:
    metric = make()
    for number in SHARDS[rank]:
        feed(metric, number)
    metric.sync().sync()
    results.append((metric.compute(), metric.per_picture()))
    try:
        feed(metric, 0)
        raise SystemExit("an update after sync was taken in")
    except RuntimeError as error:
        assert "reset() it before update()" in str(error)
    try:
        make().merge(metric)
        raise SystemExit("the sum of all was merged")
    except RuntimeError as error:
        assert "the metric to merge holds what all processes have seen" in str(error)
    metric.reset()
    metric.sync()
    assert metric.compute()["pictures"] == 0
    metric.reset()
    feed(metric, 0)
    assert metric.compute()["pictures"] == 1
group = dist.new_group([0, 2])
if rank != 1:
    metric = METRICS[2]()
    feed(metric, rank)
    assert metric.sync(group).compute()["pictures"] == 2
try:
    SegmentationMetrics(3 + rank).sync()
    raise SystemExit("different settings were added up")
except ValueError as error:
    assert "all need the same settings" in str(error)
torch.save(results, sys.argv[2])
dist.destroy_process_group()
"""


def test_several_processes_are_bit_for_bit_one(tmp_path: Path) -> None:
    code = PROCESS.format(tests=str(Path(__file__).parent), store=(tmp_path / "store").as_uri())
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(rank), str(tmp_path / f"{rank}.pt")], stderr=subprocess.PIPE)
        for rank in range(len(SHARDS))
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    for rank in range(len(SHARDS)):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for make, (values, rows) in zip(METRICS, results):
            whole = make()
            for number in range(5):
                feed(whole, number)
            same(values, whole.compute())
            same(rows, whole.per_picture())


@pytest.mark.parametrize("make", METRICS)
def test_merging_is_associative(make: Any) -> None:
    def part(*numbers: int) -> Metric:
        metric = make()
        for number in numbers:
            feed(metric, number)
        return metric

    left = part(0, 1).merge(part()).merge(part(2))
    right = part(0, 1).merge(part().merge(part(2)))
    same(left.compute(), right.compute())
    same(left.compute(), part(0, 1, 2).compute())
    same(part(2).merge(part(1, 0)).compute(), left.compute())


def test_the_curves_of_very_many_pictures() -> None:
    one = SaliencyMetrics(measures="f_measure")
    one.update(np.arange(100, dtype=np.uint8).reshape(10, 10), np.eye(10, dtype=bool))
    expected = one.compute()
    for _ in range(13):
        other = SaliencyMetrics(measures="f_measure")
        other.load_state_dict(one.state_dict())
        one.merge(other)
    assert one.compute()["pictures"] == 2**13
    assert torch.equal(one.compute()["precision"], expected["precision"])


@pytest.mark.parametrize("make", METRICS)
def test_computing_changes_nothing_and_reset_forgets(make: Any) -> None:
    metric, other = make(), make()
    for number in range(3):
        feed(metric, number)
        metric.compute()
        feed(other, number)
    same(metric.compute(), other.compute())
    metric.reset()
    assert metric.compute()["pictures"] == 0
    feed(metric, 5)
    assert metric.compute()["pictures"] == 1
    assert metric.sync() is metric  # one process: nothing to do


@pytest.mark.parametrize("make", METRICS)
def test_states_are_copies(make: Any) -> None:
    metric, other = make(), make()
    feed(metric, 0)
    state = metric.state_dict()
    other.load_state_dict(state)
    expected = other.compute()
    for kind in ("counts", "rows"):
        for part in state[kind].values():
            part.fill_(7)
    same(metric.compute(), expected)
    same(other.compute(), expected)
    broken = metric.state_dict()
    broken["rows"] = {name: part[:, :1] for name, part in broken["rows"].items()}
    with pytest.raises(ValueError, match="this is the state of another metric"):
        other.load_state_dict(broken)
    same(other.compute(), expected)


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(ValueError, match="SaliencyMetrics merges with its like, got BoundaryMetrics"):
        SaliencyMetrics().merge(BoundaryMetrics())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the metric to merge has num_classes 4, this SegmentationMetrics has 3"):
        SegmentationMetrics(3).merge(SegmentationMetrics(4))
    with pytest.raises(ValueError, match="this is no state of a metric: it has weight"):
        SaliencyMetrics().load_state_dict({"weight": 1})
    with pytest.raises(ValueError, match="the state to load has num_classes none"):
        SegmentationMetrics(3).load_state_dict(SaliencyMetrics().state_dict())
    assert repr(SegmentationMetrics(3)).startswith("SegmentationMetrics(num_classes=3")
