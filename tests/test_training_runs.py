"""The training engine in processes of its own: what is interrupted goes on as if it had not been; N make one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from training_cases import ROOT, Net, Server, differences, iou, rows, server, state, write_discs

EVERYTHING = ["--mix", "--ema", "0.9", "--accumulate", "2", "--dropout", "0.3", "--epochs", "4"]  # 4 losses an epoch
STOPPED = {9: -9, 15: 143, 2: 130}
TWO = ["--optimizer", "sgd", "--lr", "0.1", "--plain", "--pictures", "16", "--epochs", "2", "--batch-size", "2"]


@pytest.fixture(scope="module")
def run() -> Iterator[Server]:
    with server() as mine:
        yield mine


@pytest.fixture(scope="module")
def uninterrupted(run: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    (ended,) = run(folder, *EVERYTHING)
    assert ended.status == 0 and not ended.err, ended
    return folder


def assert_same_run(folder: Path, as_in: Path) -> None:
    assert differences(state(folder), state(as_in)) == []
    for name in ("history.csv", "train.log"):
        assert (folder / name).read_bytes() == (as_in / name).read_bytes()
    best = [torch.load(place / "best/model.pt", weights_only=True) for place in (folder, as_in)]
    assert differences(*best) == []
    assert not list(folder.glob(".*.part"))


def test_the_uninterrupted_run(uninterrupted: Path) -> None:
    kept = state(uninterrupted)
    assert kept["epoch"] == 4 and kept["position"] == 0 and len(kept["history"]) == 4
    assert not all(torch.equal(kept["model"][name], kept["ema"][name]) for name in kept["model"])
    assert [row["epoch"] for row in rows(uninterrupted)] == ["1", "2", "3", "4"]
    first, *_ = (uninterrupted / "train.log").read_text().splitlines()
    assert first.startswith("[epoch: 1] train_loss: 0.") and "IoU: " in first and " lr: 0.0" in first


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("number", STOPPED)
def test_what_is_interrupted_in_an_epoch_gives_the_same_bits(
    run: Server, uninterrupted: Path, tmp_path: Path, number: int, workers: str
) -> None:
    folder, words = tmp_path / "run", [*EVERYTHING, "--workers", workers, "--resume", "auto"]
    (ended,) = run(folder, *words, LOSS=f"{number}@10")
    assert ended.status == STOPPED[number], ended
    kept = state(folder)
    assert (kept["epoch"], kept["position"]) == (2, 0 if number == 9 else 1)
    assert len(rows(folder)) == 2
    said = ended.err.splitlines()
    assert said == [] if number == 9 else len(said) == 1 and said[0].endswith("--resume auto goes on")
    (ended,) = run(folder, *words)
    assert ended.status == 0 and not ended.err, ended
    assert [line[:10] for line in ended.out.splitlines()[1:]] == ["[epoch: 3]", "[epoch: 4]"]
    assert_same_run(folder, uninterrupted)


def test_interrupted_again_and_again(run: Server, uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    troubles = [
        {"LOSS": "9@3"},  # before there is a checkpoint
        {"LOSS": "15@1"},
        {"EXPORT": "9@2"},  # the best epoch's model is written, its checkpoint is not; the first export is a trial
        {"LOSS": "2@2"},
        {"EVALUATION": "15@1"},
        {"EVALUATION": "9@1"},
        {"EVALUATION": "15@3"},
        {"LOSS": "15@4"},
    ]
    seen = []
    for trouble in troubles:
        (ended,) = run(folder, *EVERYTHING, "--resume", "auto", **trouble)
        seen.append(ended.status)
        for old in folder.glob("history.csv"):
            epochs = [row["epoch"] for row in rows(folder)]
            assert epochs == [str(i + 1) for i in range(len(epochs))], old
    (ended,) = run(folder, *EVERYTHING, "--resume", "auto")
    assert ended.status == 0 and set(seen) >= {-9, 143, 130}, seen
    assert_same_run(folder, uninterrupted)


def test_killed_between_the_last_checkpoint_and_the_logs(run: Server, uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    for name in ("history.csv", "train.log"):
        (folder / name).write_text("of the epoch before")
    (folder / f".{'0' * 32}.part").write_text("half a checkpoint")
    before = (folder / "checkpoint.pt").read_bytes()
    (ended,) = run(folder, *EVERYTHING, "--resume", "auto")
    assert ended.status == 0 and ended.out == "it begins\n", ended  # nothing is trained
    assert (folder / "checkpoint.pt").read_bytes() == before
    assert_same_run(folder, uninterrupted)


def test_a_second_signal(run: Server, uninterrupted: Path, tmp_path: Path) -> None:
    for i, (signals, status) in enumerate([("15++15", -15), ("2++15", -15), ("15++2", 130)]):
        (ended,) = run(tmp_path / f"{i}", *EVERYTHING, LOSS=f"{signals}@6")
        assert ended.status == status and "Traceback" not in ended.err, ended
        assert state(tmp_path / f"{i}")["position"] == 0  # ended at once, not saved
    # A whole group's signal comes from outside and once more from torchrun.
    (ended,) = run(tmp_path / "both", *EVERYTHING, LOSS="15+15@6")
    assert ended.status == 143 and state(tmp_path / "both")["position"] == 1, ended
    (ended,) = run(tmp_path / "both", *EVERYTHING, "--resume", "auto")
    assert_same_run(tmp_path / "both", uninterrupted)


def test_a_signal_in_an_evaluation(run: Server, uninterrupted: Path, tmp_path: Path) -> None:
    words = [*EVERYTHING, "--resume", "auto"]
    for at in (1, 1, 3):  # the fourth is the last
        (ended,) = run(tmp_path / "run", *words, EVALUATION=f"15@{at}")
        assert ended.status == 143 and "--resume auto goes on" in ended.err, ended
    assert state(tmp_path / "run")["position"] == 2
    (ended,) = run(tmp_path / "run", *words)
    assert ended.status == 0
    assert_same_run(tmp_path / "run", uninterrupted)


def exports(folder: Path) -> int:
    """How often a whole run exports a model: once for trial, and each time that an epoch is the best so far."""
    losses = [float(row["loss"]) for row in rows(folder)]
    return 1 + sum(loss == min(losses[: i + 1]) for i, loss in enumerate(losses))


def test_a_signal_while_the_last_epoch_is_written_is_not_forgotten(
    run: Server, uninterrupted: Path, tmp_path: Path
) -> None:
    assert state(uninterrupted)["best"]["epoch"] == 4
    (ended,) = run(tmp_path / "run", *EVERYTHING, EXPORT=f"15@{exports(uninterrupted)}")
    assert ended.status == 143 and len(rows(tmp_path / "run")) == 4
    (ended,) = run(tmp_path / "run", *EVERYTHING, "--resume", "auto")
    assert ended.status == 0
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("norm", ["group", "evo_s0"])
def test_two_processes_are_one_with_twice_the_batch(run: Server, tmp_path: Path, norm: str) -> None:
    words = [*TWO, "--norm", norm, "--accumulate", "2", "--ema", "0.9", "--l1", "0.001", "--clip-grad", "0.5"]
    first, second = run(tmp_path / "two", *words, processes=2)
    assert (first.status, second.status) == (0, 0) and second.out == "it begins\n", (first, second)
    (alone,) = run(tmp_path / "one", *words, "--batch-size", "4")
    assert alone.status == 0
    two, one = state(tmp_path / "two"), state(tmp_path / "one")
    for part in ("model", "ema"):
        for name in one[part]:
            # Float32 sums in another order, 4 updates long.
            torch.testing.assert_close(two[part][name], one[part][name], atol=2e-6, rtol=1e-5)
    for row, expected in zip(two["history"], one["history"], strict=True):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert (two["processes"], one["processes"]) == (2, 1)


def test_two_processes_measure_what_one_does_with_statistics_too(run: Server, tmp_path: Path) -> None:
    # Batch norm's: each process has those of its own pictures; judged and kept are the first one's.
    run(tmp_path / "run", *TWO, "--norm", "batch", "--epochs", "1", processes=2)
    kept = state(tmp_path / "run")
    model = Net("batch")
    model.load_state_dict(kept["model"])
    (row,) = kept["history"]
    assert {name: row[name] for name in ("iou", "loss")} == pytest.approx(iou(model), rel=1e-6)


def test_one_of_two_processes_is_asked_to_stop(run: Server, tmp_path: Path) -> None:
    words = [*TWO, "--norm", "group", "--dropout", "0.3", "--mix", "--resume", "auto"]
    run(tmp_path / "whole", *words, processes=2)
    ended = run(tmp_path / "run", *words, processes=2, LOSS_1="15@6")
    assert [process.status for process in ended] == [143, 143], ended
    assert len(ended[0].err.splitlines()) == 1 and not ended[1].err
    assert state(tmp_path / "run")["position"] == 2
    (alone,) = run(tmp_path / "run", *words)
    assert alone.status == 2 and "with 2 processes and is to go on with 1" in alone.err, alone
    ended = run(tmp_path / "run", *words, processes=2)
    assert [process.status for process in ended] == [0, 0], ended
    assert_same_but_for_sums(tmp_path / "run", tmp_path / "whole")


def assert_same_but_for_sums(folder: Path, as_in: Path) -> None:
    """The weights' bits are the same; an epoch's loss is the sum of the processes', added in another order."""
    kept, expected = state(folder), state(as_in)
    for row, right in zip(kept.pop("history"), expected.pop("history"), strict=True):
        assert row == pytest.approx(right, rel=1e-12)
    assert kept.pop("best") == pytest.approx(expected.pop("best"), rel=1e-12)
    assert differences(kept, expected) == []


def test_an_unwritable_folder_is_found_before_anything_is_read(run: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (ended,) = run(tmp_path / "x", "--output", str(tmp_path / "file/run"))
    assert ended.status == 2 and ended.out == "" and len(ended.err.splitlines()) == 1, ended
    assert "file" in ended.err and "cannot be made" in ended.err
    words = ["--output", str(tmp_path / "file/run"), "--data", "no such folder", "--model", "no such model"]
    (ended,) = run(tmp_path / "y", *words, script="train_salient")
    assert ended.status == 2 and ended.err.startswith("train_salient: error: ") and "cannot be made" in ended.err, ended
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        (ended,) = run(tmp_path / "closed", "--seed", "1")
        assert ended.status == 2 and "permission denied" in ended.err and ended.out == "", ended


@pytest.mark.parametrize("what", ["LOSS", "EXPORT"])
def test_a_full_disk_leaves_the_last_checkpoint(run: Server, uninterrupted: Path, tmp_path: Path, what: str) -> None:
    folder = tmp_path / "run"
    at = 6 if what == "LOSS" else exports(uninterrupted)
    (ended,) = run(folder, *EVERYTHING, **{what: f"full@{at}"})
    assert ended.status == 2 and len(ended.err.splitlines()) == 1, ended
    assert "could not be written: File too large; the last checkpoint is as it was" in ended.err, ended
    assert state(folder)["epoch"] == (1 if what == "LOSS" else 3) and not list(folder.glob(".*.part"))
    (ended,) = run(folder, *EVERYTHING, "--resume", "auto")
    assert ended.status == 0
    assert_same_run(folder, uninterrupted)


@pytest.mark.parametrize("trouble", ["nan", "gradient"])
def test_what_diverges_stops_and_keeps_what_was_before(
    run: Server, uninterrupted: Path, tmp_path: Path, trouble: str
) -> None:
    folder = tmp_path / "run"
    (ended,) = run(folder, *EVERYTHING, LOSS=f"{trouble}@8")  # the last of the second epoch
    assert ended.status == 1 and len(ended.err.splitlines()) == 1, ended
    what = "the loss is nan" if trouble == "nan" else "the weights are not finite"
    assert f"tiny: error: {what} in epoch 2, update 2 of 2, at lr 0.0" in ended.err
    assert "parameters are not finite, encoder.0.weight first" in ended.err and "--lr" in ended.err
    assert state(folder)["epoch"] == 1
    (ended,) = run(folder, *EVERYTHING, "--resume", "auto")
    assert ended.status == 0
    assert_same_run(folder, uninterrupted)


def test_a_broken_picture_is_said_in_one_sentence(run: Server, tmp_path: Path) -> None:
    (ended,) = run(tmp_path / "run", "--workers", "2", BROKEN=3)
    assert ended.status == 2 and ended.err == "tiny: error: picture 3 is broken\n", ended


def test_salient_discs_are_found_and_reported(run: Server, tmp_path: Path) -> None:
    write_discs(tmp_path / "data", 24)
    write_discs(tmp_path / "test", 4)
    words = "--model unet --model-option base_channels=4 --resize 48 --crop 40 --epochs 8 --batch-size 2 --lr 0.05"
    test = ["--test-images", str(tmp_path / "test/images"), "--test-masks", str(tmp_path / "test/masks")]
    words = ["--data", str(tmp_path / "data"), *test, *words.split(), "--device", "cpu", "--resume", "auto"]
    (ended,) = run(tmp_path / "run", *words, script="train_salient")
    assert ended.status == 0 and not ended.err, ended
    results = json.loads((tmp_path / "run/results.json").read_text())
    for figures in (results["test"]["last"], results["test"]["best"], results["last"]):
        assert figures["mae"] < 0.05 and figures["max_f"] > 0.95
    assert results["training"] == {"title": results["training"]["title"], "pictures": 22, "held_out": 2}
    assert len(results["history"]) == 8 and results["last"] == results["history"][-1]
    report = [line for line in ended.out.splitlines() if line.startswith("[test, ")]
    assert len(report) == 2
    (again,) = run(tmp_path / "run", *words, script="train_salient")
    assert again.status == 0 and again.out.splitlines() == report  # it only reports again
    assert json.loads((tmp_path / "run/results.json").read_text()) == results


def test_pictures_are_learned_by_heart(run: Server, tmp_path: Path) -> None:
    write_discs(tmp_path / "data", 6)
    words = ["--data", str(tmp_path / "data"), "--device", "cpu", "--overfit", "2", "--batch-size", "2"]
    words += ["--model", "unet", "--model-option", "base_channels=4", "--resize", "48", "--crop", "48"]
    words += ["--lr", "0.05", "--epochs", "50", "--eval-every", "25"]
    (ended,) = run(tmp_path / "run", *words, script="train_salient")
    assert ended.status == 0, ended
    middle, last = (row for row in rows(tmp_path / "run") if row["mae"])
    assert float(last["mae"]) < 0.05 < float(middle["mae"]) and float(last["max_f"]) > 0.98
    assert float(last["train_accuracy"]) > 0.98


def torchrun(folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [sys.executable, *launch, str(ROOT / "tests/training_cases.py"), "--output", str(folder), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
    )


def test_torchrun_is_asked_to_stop_and_goes_on(run: Server, tmp_path: Path) -> None:
    words = [*TWO, "--norm", "group", "--dropout", "0.3", "--mix", "--resume", "auto"]
    run(tmp_path / "whole", *words, processes=2)
    ready = tmp_path / "ready"
    with torchrun(tmp_path / "run", *words, LOSS="wait@6", READY=str(ready)) as process:
        while not all(ready.with_name(f"ready{rank}").exists() for rank in (0, 1)) and process.poll() is None:
            time.sleep(0.05)
        process.terminate()
        out, err = process.communicate()
    assert process.returncode != 0
    assert [line for line in err.splitlines() if line.startswith("tiny: ")] == [
        "tiny: stopped by SIGTERM; --resume auto goes on"
    ], err
    kept = state(tmp_path / "run")
    assert (kept["epoch"], kept["position"], kept["processes"]) == (1, 2, 2)
    ended = run(tmp_path / "run", *words, processes=2)
    assert [process.status for process in ended] == [0, 0], ended
    assert_same_but_for_sums(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_under_torchrun_what_is_wrong_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for folder, words, environment, expected in [
        (tmp_path / "file/run", TWO, {}, "cannot be made"),
        (tmp_path / "nan", TWO, {"LOSS": "nan@2"}, "the loss is nan in epoch 1, update 2 of 4"),
        (tmp_path / "broken", TWO, {"BROKEN": "3"}, "picture 3 is broken"),  # in one of them
        (tmp_path / "none", [*TWO, "--pictures", "0"], {}, "there is no picture to learn"),
    ]:
        with torchrun(folder, *words, **environment) as process:
            out, err = process.communicate()
        said = [line for line in err.splitlines() if line.startswith("tiny: error: ")]
        assert process.returncode == 1 and len(said) == 1 and expected in said[0], err
        assert err.count("Traceback") <= 1, err  # torchrun's own
