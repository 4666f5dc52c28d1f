"""examples/predict_folder.py in several processes, and going on where one stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_examples import Bright, leftovers, load, make_frames, read_image, read_table

import segzoo
from segzoo.inference import FolderReport, predict_folder

SCRIPT = ROOT / "examples/predict_folder.py"

# The script with a model that is known; its second process dies after two pictures where the environment says so.
DRIVER = """
import os, signal, sys
sys.path[:0] = {paths!r}
import segzoo
from test_examples import Bright, load

script, make = load("predict_folder"), segzoo.Predictor
segzoo.Predictor = lambda model, **options: make(Bright(), **options)
if os.environ["RANK"] == "1" and "DIE" in os.environ:
    whole = script.predict_folder
    def dying(predictor, *args, **options):
        stream = predictor.stream
        def two(pictures, **options):
            for i, outcome in enumerate(stream(pictures, **options)):
                if i == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield outcome
        predictor.stream = two
        return whole(predictor, *args, **options)
    script.predict_folder = dying
sys.exit(script.main())
"""


def torchrun(folder: Path, *words: str, processes: int = 2, **environment: str) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *words]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, *launch], cwd=folder, capture_output=True, text=True, timeout=240, env=settings
    )


def said(output: str) -> list[str]:
    """What the script said, without what torchrun says of a process's exit code."""
    return [line for line in output.splitlines() if line.startswith("predict_folder: ")]


@pytest.fixture
def quick() -> segzoo.Predictor:
    return segzoo.Predictor(Bright(), device="cpu")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Seven pictures, two of which share a stem and lie in different shares, and two that are none."""
    folder = make_frames(tmp_path / "in", 5)
    with Image.open(folder / "8.png") as image:
        image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(folder / "twin.bmp")
        image.save(folder / "twin.png")
    for name in ("10b.jpg", "9b.jpg"):
        (folder / name).write_bytes(b"no picture")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_processes_write_the_table_of_one(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = torchrun(tmp_path, str(SCRIPT), "in", "two.csv", "--device", "cpu")
    assert done.returncode == 1 and done.stdout == "", done.stderr
    assert load("predict_folder").main([str(pictures), str(tmp_path / "one.csv"), "--device", "cpu"]) == 1
    rows, expected = read_table(tmp_path / "two.csv"), read_table(tmp_path / "one.csv")
    assert rows == expected and len({row["picture"] for row in rows}) == 7
    # 10b is the second process's, 9b the first's.
    assert sorted(said(done.stderr)) == sorted(
        f"predict_folder: skipped: in/{name} is not a picture in a format that Pillow reads"
        for name in ("9b.jpg", "10b.jpg")
    )
    assert leftovers(tmp_path) == []


def test_only_the_first_process_writes_the_table(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor, script = segzoo.Predictor, load("predict_folder")
    monkeypatch.setattr(segzoo, "Predictor", lambda model, **options: predictor(Bright(), **options))
    sent: list[Any] = []
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(script.distributed, name, lambda *args, **options: None)
    monkeypatch.setattr(script.distributed, "gather_object", lambda share, places: sent.append((share, places)))
    monkeypatch.setattr(script.distributed, "broadcast_object_list", lambda codes: codes.__setitem__(0, 1))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert script.main([str(pictures), str(tmp_path / "out.csv"), "--device", "cpu"]) == 1  # as the first one says
    ((share, places),) = sent
    assert [rows[0][0] for rows in share.rows if rows] == ["12.png", "9.png", "twin.bmp"]
    assert places is None and not (tmp_path / "out.csv").exists() and capsys.readouterr().err == ""


@pytest.mark.slow
def test_when_one_process_is_killed_the_next_run_goes_on(pictures: Path, tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER.format(paths=[str(ROOT / "tests")]))
    for name in ("9b.jpg", "10b.jpg"):
        (pictures / name).unlink()
    alone = predict_folder(segzoo.Predictor(Bright(), device="cpu"), pictures, tmp_path / "one")
    assert len(alone.written) == 7 and not alone.failed
    died = torchrun(tmp_path, "driver.py", "in", "two", "--device", "cpu", DIE="1")
    assert died.returncode == 1 and said(died.stderr) == []
    found = files(tmp_path / "two")
    assert len(found) < 7 and found.items() <= files(tmp_path / "one").items()
    kept = next(iter(found))
    (tmp_path / "two" / kept).write_bytes(b"is left alone")
    done = torchrun(tmp_path, "driver.py", "in", "two", "--device", "cpu", "--skip-existing", processes=3)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "two") == {**files(tmp_path / "one"), kept: b"is left alone"}


@pytest.mark.slow
def test_what_is_wrong_in_every_process_is_said_once(pictures: Path, tmp_path: Path) -> None:
    done = torchrun(tmp_path, str(SCRIPT), "nowhere", "out", "--device", "cpu")
    assert done.returncode == 1 and said(done.stderr) == ["predict_folder: error: there is no folder nowhere"]
    done = torchrun(tmp_path, str(SCRIPT), "in", "out.csv", "--skip-existing")
    assert done.returncode == 1 and len(said(done.stderr)) == 1 and not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("of", [1, 2, 3, 5, 12])
def test_shares_write_together_what_one_call_writes(
    quick: segzoo.Predictor, pictures: Path, tmp_path: Path, of: int
) -> None:
    alone = predict_folder(quick, pictures, tmp_path / "one", "overlay")
    # The last first: a share must not depend on what others have written by then.
    shares = [
        predict_folder(quick, pictures, tmp_path / "all", "overlay", shard=(which, of), skip_existing=True)
        for which in reversed(range(of))
    ]
    assert files(tmp_path / "all") == files(tmp_path / "one") and "twin.bmp.png" in files(tmp_path / "all")
    done = [path for share in shares for path in (*share.written, *share.failed)]
    assert sorted(done) == sorted([*alone.written, *alone.failed]) and not any(share.skipped for share in shares)
    sizes = [len(share.written) + len(share.failed) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("shard", [(1, 1), (-1, 2), (0, 0), (2, -1)])
def test_a_share_that_does_not_exist(
    quick: segzoo.Predictor, pictures: Path, tmp_path: Path, shard: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match=r"shard is \(which, of\) with 0 <= which < of, got"):
        predict_folder(quick, pictures, tmp_path / "out", shard=shard)
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_left_alone(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[FolderReport] = []
    predictor, script = segzoo.Predictor, load("predict_folder")
    monkeypatch.setattr(segzoo, "Predictor", lambda model, **options: predictor(Bright(), **options))
    whole = script.predict_folder
    monkeypatch.setattr(script, "predict_folder", lambda *a, **k: seen.append(whole(*a, **k)) or seen[-1])
    out = tmp_path / "out"
    out.mkdir()
    (out / "9.png").write_bytes(b"done by hand")
    (out / "10.png").mkdir()  # no result
    for _ in range(2):
        assert script.main([str(pictures), str(out), "--skip-existing", "--device", "cpu"]) == 1
    assert (out / "9.png").read_bytes() == b"done by hand"
    first, second = seen
    assert {path.name for path in first.skipped} == {"9.png"} and len(first.written) == 5
    assert second.skipped == first.skipped | first.written and not second.written
    assert {path.name for path in second.failed} == {"10.png", "9b.jpg", "10b.jpg"}
    assert np.array_equal(np.unique(read_image(out / "8.png")), [0, 255])
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        script.main([str(pictures), "out.csv", "--skip-existing"])
    assert "--skip-existing is for a folder of results" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "asked", "expected"),
    [(1, "auto", "auto"), (4, "auto", "cuda:1"), (4, "cuda", "cuda:1"), (4, "cpu", "cpu"), (4, "cuda:0", "cuda:0")],
)
def test_each_process_has_its_own_gpu(count: int, asked: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load("predict_folder")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for name, value in (("RANK", 7), ("LOCAL_RANK", 3), ("WORLD_SIZE", count)):
        monkeypatch.setenv(name, str(value))
    assert script.Processes().device(asked) == expected
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert script.Processes().device(asked) == asked
