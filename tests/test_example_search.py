"""examples/search.py: what is drawn, what ends early, and real processes that speak the training scripts' contract."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import random
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from test_examples import leftovers, load

search = load("search")
Trial, read_space, read_history = search.Trial, search.read_space, sys.modules["_search_trials"].read_history

# A training script without training: a trial is good near lr = 1e-3, and the worse the further away.
SCRIPT = """
import argparse, csv, json, math, os, signal, sys, time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path, required=True)
parser.add_argument("--resume", default="never")
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--loss", default="ce")
parser.add_argument("--epochs", type=int, default=4)
args = parser.parse_args()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
args.output.mkdir(exist_ok=True)
checkpoint, starts = args.output / "checkpoint", args.output / "starts"
rows = json.loads(checkpoint.read_text()) if checkpoint.exists() else []
if rows and args.resume != "auto":
    sys.exit("script: error: the folder has a run already")
(args.output / "pid").write_text(str(os.getpid()))
names = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"
with starts.open("a") as file:
    print(args.resume, *(os.environ.get(name, "-") for name in names), file=file)
if args.loss == "crash":
    sys.exit("script: error: the loss is not finite")
top = 0.9 - 0.2 * abs(math.log10(args.lr) + 3)
for epoch in range(len(rows) + 1, args.epochs + 1):
    value = top * (1 - 0.5**epoch) if epoch % 2 else ""  # every second epoch is not evaluated
    rows.append({"epoch": epoch, "train_loss": 1 / epoch, "lr": args.lr, "train_accuracy": 0.5, "miou": value})
    checkpoint.write_text(json.dumps(rows))
    with open(args.output / ".part", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    os.replace(args.output / ".part", args.output / "history.csv")
    if args.lr > 0.05 or (args.loss == "hang" and epoch == 2 and args.resume == "never"):
        time.sleep(100)  # until somebody ends it
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


def run(method: str, space: str, *options: str, fixed: str = "") -> int:
    """A search in this process, into ``out``, by ``miou``."""
    words = [method, "--out", "out", "--metric", "miou", "--poll", "0.02", *options, "--space", *space.split()]
    return search.main([*words, "--", "script.py", *fixed.split()])


def trials() -> list[dict[str, Any]]:
    found = json.loads(Path("out/trials.json").read_text())["trials"]
    with Path("out/trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == [trial["number"] for trial in found] == list(range(len(found)))
    assert [row["state"] for row in rows] == [trial["state"] for trial in found]
    assert leftovers(Path("out")) in ([], [".lock"])
    return found


def states() -> list[str]:
    return [trial["state"] for trial in trials()]


# What is drawn.


@given(
    low=st.floats(1e-6, 1e3),
    factor=st.floats(1.001, 1e6),
    log=st.booleans(),
    integer=st.booleans(),
    seed=st.integers(0, 9),
)
def test_ranges_stay_within(low: float, factor: float, log: bool, integer: bool, seed: int) -> None:
    high = low * factor
    if integer:
        low, high = math.ceil(low), math.ceil(low) + math.ceil(high)
    kinds = "log:" * log + "int:" * integer
    (values,) = read_space([f"x={kinds}{low!r}:{high!r}"]).values()
    for _ in range(20):
        text = values.draw(random.Random(seed))
        assert low <= float(text) <= high and (not integer or text == str(int(text)))
    (points,) = read_space([f"x={kinds}{low!r}:{high!r}:5"]).values()
    numbers = [float(text) for text in points.points()]
    expected = np.geomspace(low, high, 5) if log else np.linspace(low, high, 5)
    assert numbers == sorted(set(numbers)) and (len(numbers) == 5 or integer or factor < 1.01)
    if len(numbers) == 5:
        np.testing.assert_allclose(numbers, expected, rtol=1e-3, atol=0.51 if integer else 0)


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("log:1e-5:1e-1", ("loguniform", 1e-5, 1e-1)),
        ("-2:3", ("uniform", -2, 5)),
        ("int:1:6", None),
        ("log:int:1:3", None),
        ("a,b,c", None),
        ("flag", None),
    ],
)
def test_draws_follow_their_law(text: str, law: tuple[str, float, float] | None) -> None:
    stats = pytest.importorskip("scipy.stats")
    (values,) = read_space([f"x={text}"]).values()
    drawn = [values.draw(random.Random(f"{i}")) for i in range(2000)]
    if law is not None:
        assert stats.kstest([float(value) for value in drawn], law[0], args=law[1:]).pvalue > 1e-3
        return
    points = list(values.points())
    share = np.full(len(points), 1 / len(points))
    if text.startswith("log"):
        share = np.diff(np.log([1, 2, 3, 4])) / math.log(4)
    assert stats.chisquare([drawn.count(point) for point in points], 2000 * share).pvalue > 1e-3


def test_the_forms_of_values() -> None:
    space = read_space(["loss=ce,focal", "lr=1e-3,1e-2", "--recompute=flag", "n=int:2:4", "size=auto:5", "one=3"])
    assert {name: tuple(values.points()) for name, values in space.items()} == {
        "loss": ("ce", "focal"),
        "lr": ("1e-3", "1e-2"),
        "recompute": ("off", "on"),
        "n": ("2", "3", "4"),
        "size": ("auto:5",),
        "one": ("3",),
    }
    assert space["lr"].ordered and not space["loss"].ordered
    options = {"loss": "ce", "lr": "-1", "recompute": "on"}
    assert list(search.as_words(space, options)) == ["--loss", "ce", "--lr=-1", "--recompute"]
    assert list(search.as_words(space, {"recompute": "off"})) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lr", "expected an option and its values, such as lr=log:1e-4:1e-2"),
        ("lr=", "expected an option and its values"),
        ("lr=0:1 lr=1:2", "--space has lr twice"),
        ("lr=1:1", "1 is not below 1"),
        ("lr=log:0:1", "a logarithmic range lies above 0"),
        ("n=int:0:1.5", "expected whole numbers"),
        ("lr=0:1:1", "the number of points is 2 or more"),
        ("lr=0:1:2:3", "expected low:high"),
        ("lr=log:3", "expected low:high"),
        ("lr=log:a:b", "expected numbers as in log:1:10"),
        ("lr=log:1:inf", "expected numbers as in log:1:10"),
        ("loss=ce,,dice", "expected different words with commas"),
        ("loss=ce,ce", "expected different words with commas"),
    ],
)
def test_values_that_cannot_be_read(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_space(words.split())


def propose(strategy: Any, count: int) -> list[dict[str, str]]:
    made: list[Any] = []
    for number in range(count):
        made.append(Trial(number, strategy.propose(number, made), True))
    return [trial.options for trial in made]


def test_a_grid_has_every_combination_once() -> None:
    space = read_space(["lr=log:1e-4:1e-2:3", "loss=ce,dice", "wild=flag"])
    grid = search.Grid(space, search.never)
    expected = itertools.product(["0.0001", "0.001", "0.01"], ["ce", "dice"], ["off", "on"])
    assert [tuple(options.values()) for options in propose(grid, int(grid.total))] == list(expected)
    with pytest.raises(ValueError, match="lr is a range: write low:high:points"):
        search.Grid(read_space(["lr=0:1"]), search.never)


def test_random_draws_depend_on_the_seed_and_are_all_different() -> None:
    space = read_space(["a=1,2,3", "b=int:1:4"])
    drawn = propose(search.Random(space, search.never, 5), 12)
    assert len({tuple(options.values()) for options in drawn}) == 12 == search.Random(space, search.never).total
    assert propose(search.Random(space, search.never, 5), 7) == drawn[:7]
    assert propose(search.Random(space, search.never, 6), 7) != drawn[:7]
    free = propose(search.Random(read_space(["lr=0:1"]), search.never, 5), 9)
    more = propose(search.Random(read_space(["x=0:1", "lr=0:1"]), search.never, 5), 9)
    assert [options["lr"] for options in more] == [options["lr"] for options in free]


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_space_of_few_different_values_comes_to_its_end(
    script: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers are written with four digits: of 0.001 to 0.0010002 there is one, of log:int:1:300 there are 300."""
    if method == "bayes":
        pytest.importorskip("optuna")
    for _ in range(2):  # and the same command again
        assert run(method, "lr=0.001:0.0010002 loss=a,b", "--trials", "5", "--jobs", "3", "--prune", "none") == 0
        assert capsys.readouterr().err.count("search: the space has no more than 2 different trials\n") == 1
        assert states() == ["complete"] * 2 and {t["options"]["loss"] for t in trials()} == {"a", "b"}


def test_rare_values_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["_search_strategies"], "ATTEMPTS", 3)
    space = read_space(["n=log:int:1:30", "b=flag"])
    assert len({tuple(options.values()) for options in propose(search.Random(space, search.never), 60)}) == 60


# What ends early.

curves = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=9)


def made(curve: list[int], number: int, maximize: bool, every: int = 1) -> Any:
    trial = Trial(number, {}, maximize)
    trial.values = {every * epoch: float(value) for epoch, value in enumerate(curve, 1)}
    return trial


@settings(max_examples=200)
@given(curves=curves, maximize=st.booleans(), after=st.integers(1, 3), startup=st.integers(1, 4))
def test_the_median_rule_as_it_is_written(curves: list[list[int]], maximize: bool, after: int, startup: int) -> None:
    sign = 1 if maximize else -1
    trial, *others = (made(curve, i, maximize) for i, curve in enumerate(curves))
    epoch = len(curves[0])
    there = [max(sign * v for v in curve[:epoch]) for curve in curves[1:] if len(curve) >= epoch]
    bad = len(there) >= startup and epoch >= after and max(sign * v for v in curves[0]) < statistics.median(there)
    assert bool(search.median(after, startup)(trial, epoch, others)) == bad


@settings(max_examples=200)
@given(curves=curves, maximize=st.booleans(), after=st.integers(1, 2), every=st.integers(1, 3))
def test_halving_as_it_is_written(curves: list[list[int]], maximize: bool, after: int, every: int) -> None:
    sign, eta = (1 if maximize else -1), 2
    trial, *others = (made(curve, i, maximize, every) for i, curve in enumerate(curves))
    length = len(curves[0])
    epoch, before = every * length, every * (length - 1)
    at_rung = any(before < after * eta**k <= epoch for k in range(10))
    best = [max(sign * v for v in curve[:length]) for curve in curves if len(curve) >= length]
    places = len(best) // eta
    bad = at_rung and places > 0 and best[0] < sorted(best, reverse=True)[places - 1]
    assert bool(search.halving(after, eta)(trial, epoch, others)) == bad


def test_halving_ends_most_trials_and_keeps_the_best() -> None:
    """27 trials of 27 epochs, one after another, in the order that suits it: the best first."""
    judge, done = search.halving(1, 3), []
    for number in range(27):
        trial = Trial(number, {}, True)
        for epoch in range(1, 28):
            trial.values[epoch] = 1 - number / 100 - 1 / epoch
            if judge(trial, epoch, done):
                break
        done.append(trial)
    assert max(done[0].values) == 27 and sum(len(trial.values) for trial in done) < 27 * 27 / 4


# Optuna.


def value(options: dict[str, str]) -> float:
    return -abs(math.log10(float(options["lr"])) + 3) - (options["loss"] != "ce") - float(options["drop"])


def simulate(strategy: Any, trials: list[Any], until: int) -> list[Any]:
    """Trials without processes: every fifth fails, and what is pruned ends."""
    for number in range(len(trials), until):
        trial = Trial(number, strategy.propose(number, trials), True)
        trials.append(trial)
        strategy.started(trial)
        trial.state = "complete"
        for epoch in range(1, 5) if number % 5 != 4 else ():
            trial.values[epoch] = value(trial.options) - 1 / epoch
            if strategy.judge(trial, epoch, trials[:number]):
                trial.state = "pruned"
                break
        if not trial.values:
            trial.state = "failed"
        strategy.ended(trial)
    return trials


@pytest.mark.parametrize("pruner", ["median", "halving", "none"])
def test_a_bayesian_search_goes_on_as_it_would_have(pruner: str) -> None:
    pytest.importorskip("optuna")
    space = read_space(["lr=log:1e-6:1e-1", "loss=ce,dice,focal", "drop=0:0.5:6", "n=int:1:3"])

    def fresh(seed: int = 0) -> Any:
        return search.Bayes(space, pruner, seed, True, 1, 4, 2)

    whole = simulate(fresh(), [], 24)
    found = {trial.state for trial in whole}
    assert found == ({"complete", "failed"} if pruner == "none" else {"complete", "failed", "pruned"})
    assert len({tuple(trial.options.values()) for trial in whole}) == 24
    again, known = fresh(), whole[:13]
    for trial in known:  # as Search does
        again.started(trial)
        for epoch in trial.values:
            again.judge(trial, epoch, known)
        again.ended(trial)
    assert [t.options for t in simulate(again, list(known), 24)] == [t.options for t in whole]
    assert [t.options for t in simulate(fresh(1), [], 6)] != [t.options for t in whole[:6]]
    late, early = ([value(t.options) for t in part] for part in (whole[12:], whole[: search.Bayes.first]))
    assert statistics.mean(late) > statistics.mean(early)


def test_without_optuna_it_is_said(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert run("bayes", "lr=0:1") == 2
    assert capsys.readouterr().err == (
        "search: error: a Bayesian search takes the package optuna: pip install optuna\n"
    )
    assert not Path("out").exists()


# Whole searches.


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_search_from_end_to_end(script: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    if method == "bayes":
        pytest.importorskip("optuna")
    space, options = "lr=log:1e-5:1e-2 loss=ce,crash", ["--trials", "7", "--prune", "none"]
    assert run(method, space, *options) == 0
    said, found = capsys.readouterr(), trials()
    assert len(found) == 7 and {"complete", "failed"} == set(states())
    for trial in found:
        folder, lr = Path("out") / f"trial_{trial['number']:03d}", float(trial["options"]["lr"])
        assert (folder / "starts").read_text() == "never - -\n"
        if trial["options"]["loss"] == "crash":
            assert trial["state"] == "failed" and trial["note"] == "exit code 1: script: error: the loss is not finite"
        else:
            top = 0.9 - 0.2 * abs(math.log10(lr) + 3)
            assert trial["values"] == pytest.approx({"1": top / 2, "3": top * 7 / 8})
    best = max((t for t in found if t["state"] == "complete"), key=lambda t: t["values"]["3"])
    table, _, command = said.out.rstrip("\n").partition("\n\n")
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["trial", "state", "miou", "epoch", "lr", "loss", "seconds"]
    assert lines[1][:5] == ["1", str(best["number"]), "complete", f"{best['values']['3']:.4f}", "3"]
    figures = [float(line[3]) for line in lines[1:] if line[2] == "complete"]
    assert figures == sorted(figures, reverse=True)
    assert f"best: trial {best['number']}, miou {best['values']['3']:.4f} at epoch 3" in command
    words = shlex.split(command.splitlines()[-1])
    assert words == ["python", "script.py", *words[2:6], "--output", "out/best"]
    subprocess.run([sys.executable, *words[1:]], check=True, timeout=60)
    assert read_history(Path("out/best/history.csv"), "miou")[-1] == (3, best["values"]["3"])

    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    assert run(method, space, *options) == 0  # a finished search prints its table, no more
    assert capsys.readouterr() == (said.out, "")
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before
    assert (
        run(method, space, *options, "--trials", "8", "--quiet") == 0 and trials()[:7] == found and len(trials()) == 8
    )
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("method", ["median", "halving", "bayes"])
def test_a_bad_trial_is_asked_to_end(script: Path, method: str) -> None:
    """The last one would not end by itself."""
    if method == "bayes":
        pytest.importorskip("optuna")
    space = "lr=1e-3,2e-3,3e-3,1e-1"
    options = ["--startup", "3", "--eta", "4", "--prune", "halving" if method == "halving" else "median"]
    if method == "bayes":  # its first trials are random: with this seed the bad one is the last, as in the grid
        seeds = ((propose(search.Bayes(read_space([space]), "none", s, True, 1, 1, 2), 4), s) for s in range(99))
        options += ["--seed", str(next(seed for drawn, seed in seeds if drawn[-1] == {"lr": "1e-1"}))]
    assert run("bayes" if method == "bayes" else "grid", space, *options) == 0
    *_, last = found = trials()
    assert [trial["state"] for trial in found] == ["complete"] * 3 + ["pruned"]
    assert last["options"] == {"lr": "1e-1"} and last["values"] == {"1": pytest.approx(0.25)}
    middle = (0.9 - 0.2 * math.log10(2)) / 2
    assert (
        last["note"]
        == {
            "median": f"epoch 1: worse than {middle:.4g}, the median of 3 trials",
            "halving": "epoch 1: 3 of 3 trials are better, and 1 may go on",
            "bayes": "epoch 1: by Optuna's pruner",
        }[method]
    )


def start(space: str) -> subprocess.Popen[str]:
    """A search in a process of its own, once its first trial has come to its second epoch."""
    words = ["random", "--out", "out", "--metric", "miou", "--poll", "0.02", "--trials", "1", "--space", space]
    command = [sys.executable, str(ROOT / "examples/search.py"), *words, "--", "script.py", "--loss", "hang"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    wait_for(lambda: len(Path("out/trial_000/history.csv").read_text().splitlines()) == 3)
    return process


def wait_for(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if done():
                return
        except FileNotFoundError:
            pass
        time.sleep(0.02)
    raise TimeoutError


def test_a_search_that_is_stopped_goes_on(script: Path) -> None:
    process = start("lr=1e-4:1e-3")
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143 and "the trials that run are to save what they have and end" in said
    (first,) = trials()
    assert first["state"] == "unfinished"
    record = json.loads(Path("out/trials.json").read_text())
    record["trials"][0]["values"] = {"2": 9.0}  # its history knows better
    Path("out/trials.json").write_text(json.dumps(record))
    assert run("random", "lr=1e-4:1e-3", "--trials", "1", fixed="--loss hang") == 0
    assert Path("out/trial_000/starts").read_text() == "never - -\nauto - -\n"
    (after,) = trials()
    assert after["state"] == "complete" and after["options"] == first["options"]
    assert list(after["values"]) == ["1", "3"] and after["seconds"] > first["seconds"] > 0


def test_a_trial_that_somebody_else_stopped_is_not_over(script: Path) -> None:
    process = start("lr=1e-4:1e-3")
    os.kill(int(Path("out/trial_000/pid").read_text()), signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "was stopped; the same command goes on with it" in said
    assert states() == ["unfinished"]


TORCHRUN = """
import sys
print("script: the picture is stopped by SIGNS")
{said}
print("Traceback (most recent call last):\\n" + "  File\\n" * 40)
sys.exit("torch.distributed.elastic.multiprocessing.api.SignalException: {last}")
"""


@pytest.mark.parametrize(
    ("said", "last", "state"),
    [
        ("print('train_x: stopped by SIGTERM; --resume auto goes on')", "Process 7 died", "unfinished"),
        ("", "Process 7 got signal: 15", "unfinished"),
        ("", "Process 7 got signal: 11", "failed"),
        ("", "Process 7 died", "failed"),
    ],
)
def test_torchrun_that_was_stopped_is_not_over(script: Path, said: str, last: str, state: str) -> None:
    """It exits with 1 and a traceback, whatever ended it."""
    script.write_text(TORCHRUN.format(said=said, last=last))
    assert run("grid", "lr=1e-3") == 1 and states() == [state]
    # What an earlier start said is in the log too, and says nothing of this one.
    script.write_text("raise SystemExit('script: error: the loss is not finite')")
    assert run("grid", "lr=1e-3", "--retry-failed") == 1 and states() == ["failed"]
    assert trials()[0]["note"] == "exit code 1: script: error: the loss is not finite"


def test_a_trial_that_a_killed_search_left_behind_keeps_others_out(
    script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start("lr=1e-4:1e-3")
    process.kill()
    process.communicate(timeout=60)
    again = ["random", "lr=1e-4:1e-3", "--trials", "1", "--quiet"]
    assert run(*again, fixed="--loss hang") == 2
    assert "a trial that one left behind, is still running" in capsys.readouterr().err
    os.kill(int(Path("out/trial_000/pid").read_text()), signal.SIGTERM)
    wait_for(lambda: run(*again, fixed="--loss hang") == 0)
    assert states() == ["complete"]


def test_trials_at_once_share_devices_and_cores(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert run("grid", "lr=1e-3,2e-3,3e-3,4e-3", "--devices", "3,5", "--prune", "none") == 0
    starts = [Path(f"out/trial_{i:03d}/starts").read_text() for i in range(4)]
    assert states() == ["complete"] * 4
    assert starts[:2] == ["never 3 3\n", "never 5 3\n"] and set(starts) == set(starts[:2])


def test_when_all_trials_fail_it_is_not_what_was_drawn(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("grid", "lr=1e-3:1e-2:5", "--quiet", fixed="--loss crash") == 1
    said = "exit code 1: script: error: the loss is not finite"
    assert capsys.readouterr().err == f"search: error: 3 trials failed and none gave a value; the last said: {said}\n"
    assert states() == ["failed"] * 3
    script.write_text(SCRIPT.replace('"crash"', '"-"'))
    assert run("grid", "lr=1e-3:1e-2:5", "--retry-failed", "--prune", "none", fixed="--loss crash") == 0
    assert states() == ["complete"] * 5


def test_a_folder_has_one_search(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("grid", "lr=1e-3,2e-3", "--prune", "none") == 0
    assert run("grid", "lr=1e-3,3e-3") == 2
    assert "another space, lr=1e-3,2e-3 instead of lr=1e-3,3e-3: give it as it was" in capsys.readouterr().err
    assert run("grid", "lr=1e-3,2e-3", fixed="--epochs 9") == 2
    assert "another command, script.py instead of script.py --epochs 9" in capsys.readouterr().err
    Path("out/trials.json").write_text("{}")
    assert run("grid", "lr=1e-3,2e-3") == 2
    assert "trials.json is no record of a search" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--space lr=0:1 -- nowhere.py", "there is no script nowhere.py"),
        ("--space lr=0:1 -- no-such-program", "there is no command no-such-program"),
        ("--space lr=0:1 -- script.py --lr 3", "--lr is given after -- and drawn by --space"),
        ("--space lr=0:1 -- script.py --lr=3", "--lr is given after -- and drawn by --space"),
        ("--space lr=0:1 -- script.py --output a", "--output is the search's own: each trial has a folder in out"),
        ("--space resume=a,b -- script.py", "--resume is the search's own"),
        ("--space lr=1:0 -- script.py", "1 is not below 0"),
        ("--space lr=1:0 --", "what is to be run is missing"),
        ("--space lr=0:1 --eta 1 -- script.py", "--eta is 2 or more"),
        ("--space lr=0:1 --jobs 0 -- script.py", "0 is not above 0"),
        ("--space lr=1e-3 --metric mIoU -- script.py", "unknown metric 'mIoU': did you mean 'miou'?"),
        ("--space lr=1e-3 --out script.py/out -- script.py", "script.py/out"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(
    script: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["random", "--out", "out", "--metric", "miou", "--poll", "0.02", "--quiet", *words.split()]
    try:
        code = search.main(arguments)
    except SystemExit as error:
        code = error.code
    said = capsys.readouterr().err
    assert code == 2 and message in said and said.splitlines()[-1].startswith("search: error: ")


@pytest.mark.parametrize(
    ("metric", "given", "expected"),
    [
        ("miou", "", "maximize"),
        ("max_f", "", "maximize"),
        ("mae", "", "minimize"),
        ("train_loss", "", "minimize"),
        ("mae", "--direction maximize", "maximize"),
    ],
)
def test_the_direction_follows_from_the_metric(metric: str, given: str, expected: str) -> None:
    words = f"random --out out --space lr=0:1 --metric {metric} {given} -- script.py --direction x"
    args = search.parse(words.split())
    assert args.direction == expected and args.command == ["script.py", "--direction", "x"] and args.trials == 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, []),
        ("", []),
        ("epoch,train_loss,lr\n1,0.5,0.1\n", []),
        ("epoch,train_loss,mae,lr\n0,,0.4,\n1,2.0,,0.1\n2,2.0,0.25,0.1\n3,2.0,nan,0.1\n", [(2, 0.25)]),
        ("epoch,mae\n1,0.5\n2,0.2", [(1, 0.5)]),
        ("epoch,mae\n1.0,5e-1\n2\n", [(1, 0.5)]),
    ],
)
def test_a_history_is_read_while_it_is_written(
    tmp_path: Path, text: str | None, expected: list[tuple[int, float]]
) -> None:
    path = tmp_path / "history.csv"
    if text is not None:
        path.write_text(text)
    assert read_history(path, "mae", finished=False) == expected


def test_pruning_spares_the_last_epoch() -> None:
    number = search.fixed_number
    assert number(["a.py", "--epochs", "12"], "--epochs") == number(["a.py", "--epochs=12"], "--epochs") == 12
    assert number(["a.py", "--epochs"], "--epochs") is None is number(["a.py", "--lr", "12"], "--epochs")
