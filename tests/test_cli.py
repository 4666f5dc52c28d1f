"""The command line as its users meet it: whole processes, exit codes, and one sentence for each mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from test_pictures import BAD, bad_files

import segzoo
from segzoo.cli import main


def segzoo_process(*arguments: object, **kwargs: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "segzoo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=120, **kwargs)  # type: ignore[call-overload]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]):
    """Run a command in this process (torch is imported already) and return its exit code and what it said."""

    def run(*arguments: object) -> tuple[int, str]:
        code = main([str(a) for a in arguments])
        return code, capsys.readouterr().err

    return run


def alpha_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "RGBA"
        return np.asarray(image)[:, :, 3]


def the_cup_is_cut_out(alpha: np.ndarray) -> None:
    assert alpha.shape == (400, 600)
    assert alpha[150:250, 200:400].min() > 200  # the cup
    assert alpha[:, :20].max() < 30 and alpha[:, -60:].max() < 30  # the table
    assert 0.3 < (alpha > 127).mean() < 0.5


def test_cutout_of_a_real_picture_in_a_process_of_its_own(coffee: Path, tmp_path: Path) -> None:
    done = segzoo_process("cutout", coffee, tmp_path / "out.png")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    the_cup_is_cut_out(alpha_of(tmp_path / "out.png"))
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]


def test_through_pipes(coffee: Path, tmp_path: Path) -> None:
    done = segzoo_process("cutout", "-", "-", input=coffee.read_bytes())
    assert done.returncode == 0 and done.stderr == b""
    (tmp_path / "out.png").write_bytes(done.stdout)
    the_cup_is_cut_out(alpha_of(tmp_path / "out.png"))
    empty = segzoo_process("cutout", "-", "-", input=b"")
    assert (empty.returncode, empty.stdout) == (2, b"")
    assert empty.stderr.decode() == "segzoo: error: standard input is empty, expected a picture\n"


@pytest.mark.parametrize("name", ["out.png", "out.webp", "out.jpg"])
def test_formats_and_backgrounds(said, coffee: Path, tmp_path: Path, name: str) -> None:
    assert said("cutout", coffee, tmp_path / name, "--background", "white") == (0, "")
    with Image.open(tmp_path / name) as image:
        assert image.mode == "RGB" and min(image.getpixel((2, 2))) > 245


def test_predict_kinds(said, coffee: Path, tmp_path: Path) -> None:
    images = {}
    for kind in ("mask", "probability", "overlay"):
        assert said("predict", coffee, tmp_path / f"{kind}.png", "--kind", kind) == (0, "")
        with Image.open(tmp_path / f"{kind}.png") as image:
            images[kind] = (image.mode, np.asarray(image))
    assert images["mask"][0] == images["probability"][0] == "L" and images["overlay"][0] == "RGB"
    assert set(np.unique(images["mask"][1])) == {0, 255}
    np.testing.assert_array_equal(images["mask"][1] == 255, images["probability"][1] > 127)


def test_into_a_folder_that_is_there(said, coffee: Path, tmp_path: Path) -> None:
    assert said("cutout", coffee, tmp_path) == (0, "")
    the_cup_is_cut_out(alpha_of(tmp_path / "coffee.png"))


def test_one_bad_picture_in_a_folder(said, coffee: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "good.jpg").write_bytes(coffee.read_bytes())
    (source / "half.jpg").write_bytes(coffee.read_bytes()[:20_000])
    code, err = said("cutout", source, out, "--quiet")
    assert code == 1 and err.count("\n") == 1
    assert err.startswith(f"segzoo: skipped: {source / 'half.jpg'} is broken or cannot be decoded (")
    assert [p.name for p in out.iterdir()] == ["good.png"]
    the_cup_is_cut_out(alpha_of(out / "good.png"))
    code, err = said("predict", source / "good.jpg", source / "half.jpg", out, "--batch-size", 2)
    assert code == 1 and f"1 written to {out}, 1 failed" in err


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures(said, coffee: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bad_files(coffee)[name][0])
    code, err = said("cutout", tmp_path / name, tmp_path / "out.png")
    assert code == 2 and err.count("\n") == 1
    assert err.startswith(f"segzoo: error: {tmp_path / name} is ")
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cutout", "{tmp}/nothing.jpg", "{tmp}/out.png"], "there is no picture {tmp}/nothing.jpg"),
        (["cutout", "{coffee}", "{tmp}/no/out.png"], "{tmp}/no/out.png cannot be written: there is no folder {tmp}/no"),
        (["cutout", "{coffee}", "{tmp}/out.jpg"], "JPEG has no transparency"),
        (["cutout", "{coffee}", "{tmp}/out.pgn"], "unknown picture format '.pgn': did you mean '.png'"),
        (["cutout", "{coffee}", "{tmp}/out"], "no ending that names a picture format"),
        (["cutout", "{coffee}", "{tmp}/out.png", "--model", "u2net_lit"], "'u2net_lit': did you mean 'u2net_lite'"),
        (["cutout", "{coffee}", "{tmp}/out.png", "--model", "u2net_lite.dust"], "did you mean 'duts'"),
        (["cutout", "{coffee}", "{tmp}/out.png", "--device", "cuda:9"], "'cuda:9' was asked for and is not there"),
        (["cutout", "{coffee}", "{tmp}/out.png", "--background", "withe"], "'withe': did you mean 'white'"),
        (["cutout", "{coffee}", "{tmp}/out.png", "--batch-size", "0"], "batch_size must be a positive int, got 0"),
        (["cutout", "{coffee}", "{tmp}/out.png", "--max-pixels", "1000"], "use --max-pixels for pictures you trust"),
        (["cutout", "{coffee}", ""], "a path is empty"),
        (["cutout", "{coffee}", "{tmp}/new/"], "there is no folder {tmp}/new/"),
        (["cutout", "{coffee}", "{coffee}", "{tmp}/out", "--suffix", "jpg"], "suffix 'jpg' names no picture format"),
        (["cutout", "{tmp}/no/", "{tmp}/out"], "there is no picture {tmp}/no/"),
        (["cutout", "{coffee}", "{coffee}", "{tmp}/out", "--suffix", ".jpg"], "JPEG has no transparency"),
        (["cutout", "{coffee}", "{tmp}/out.png", "--device", "meta"], "'meta' was asked for and is not there"),
        (["cutout", "{coffee}", "{tmp}/out.png", "--max-pixels", "0"], "--max-pixels must be at least 1"),
        (["cutout", "{coffee}", "{tmp}/out.png", "--classes", "person"], "unknown class 'person': Known: foreground"),
        (["cutout", "{tmp}", "{tmp}/out"], "there is no picture in the folder {tmp}"),
        (["cutout", "{tmp}", "-"], "several pictures go to a folder"),
        (["cutout", "-", "{coffee}", "{tmp}/out"], "- (standard input) is one picture"),
        (["list", "resnet*"], "no model matches 'resnet*'"),
        (["list", "--task", "salent"], "unknown task 'salent': did you mean 'salient'"),
        (["info", "u2net"], "unknown model 'u2net': did you mean 'u2net_full' or 'u2net_lite'"),
        (["info", "u2net_lite.dust"], "unknown weights 'u2net_lite.dust': did you mean 'u2net_lite.duts'"),
    ],
)  # fmt: skip
def test_mistakes_get_one_sentence(
    said, coffee: Path, tmp_path: Path, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # --max-pixels is for one process
    code, err = said(*(a.format(tmp=tmp_path, coffee=coffee) for a in arguments))
    assert code == 2 and err.count("\n") == 1 and err.startswith("segzoo: error: ")
    assert words.format(tmp=tmp_path) in err
    assert list(tmp_path.iterdir()) == []


def test_a_pattern_that_matches_two_pictures_costs_none(said, coffee: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        with Image.open(coffee) as image:
            image.save(tmp_path / name)
    before = (tmp_path / "b.png").read_bytes()
    code, err = said("cutout", tmp_path / "a.png", tmp_path / "b.png")
    assert code == 2 and "b.png is there already, beside the picture: --overwrite replaces it" in err
    assert (tmp_path / "b.png").read_bytes() == before
    assert said("cutout", tmp_path / "a.png", tmp_path / "b.png", "--overwrite") == (0, "")
    the_cup_is_cut_out(alpha_of(tmp_path / "b.png"))
    (tmp_path / "out").mkdir()
    for _ in range(2):  # results elsewhere are made again as they are asked for
        assert said("cutout", tmp_path / "a.png", tmp_path / "out" / "a.png") == (0, "")


def test_weights_of_ones_own(said, coffee: Path, tmp_path: Path) -> None:
    save_file(segzoo.u2net_lite().state_dict(), tmp_path / "mine.safetensors")
    assert said("cutout", coffee, tmp_path / "out.png", "--weights", tmp_path / "mine.safetensors") == (0, "")
    the_cup_is_cut_out(alpha_of(tmp_path / "out.png"))
    code, err = said("cutout", coffee, tmp_path / "no.png", "--weights", tmp_path / "no.safetensors")
    assert code == 2 and "there is no weights file" in err
    code, err = said("cutout", coffee, tmp_path / "no.png", "--model", "mine.safetensors")
    assert code == 2 and "is a weights file: name its model" in err


def test_the_picture_itself_is_never_overwritten(said, coffee: Path, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.open(coffee).save(path)
    before = path.read_bytes()
    for target in (path, tmp_path):
        code, err = said("cutout", path, target)
        assert code == 2 and "is the picture itself: choose another output" in err
    assert path.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(coffee: Path) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "segzoo", "cutout", str(coffee), "-"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == 2
    assert done.stderr.decode().count("\n") == 1 and "No space left on device" in done.stderr.decode()


def test_what_may_not_be_read_or_written(said, coffee: Path, tmp_path: Path) -> None:
    picture, folder, locked = tmp_path / "photo.jpg", tmp_path / "folder", tmp_path / "locked"
    picture.write_bytes(coffee.read_bytes())
    folder.mkdir()
    locked.mkdir()
    picture.chmod(0)
    folder.chmod(0)
    locked.chmod(0o555)
    if os.access(picture, os.R_OK):
        pytest.skip("root reads everything")
    for arguments, words in [
        ((picture, tmp_path / "out.png"), f"{picture} cannot be read: permission denied"),
        ((folder, tmp_path / "out"), f"{folder} cannot be read: Permission denied"),
        ((coffee, locked / "out.png"), f"{locked / 'out.png'} cannot be written: permission denied"),
        ((coffee, coffee.with_name("astronaut.jpg"), locked), "cannot be written: permission denied"),
    ]:
        code, err = said("cutout", *arguments)
        assert code == 2 and err.count("\n") == 1 and words in err
        folder.chmod(0)
    folder.chmod(0o755)
    assert list(tmp_path.rglob("*.png")) == []


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-"])
def test_closed_streams(coffee: Path, tmp_path: Path, closed: str) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[bytes]:
        command = " ".join(["exec", sys.executable, "-m", "segzoo", *map(str, arguments), closed])
        return subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, timeout=120)

    done = run("cutout", coffee, tmp_path / "out.png")
    assert (done.returncode, done.stderr) == (0, b"") and (tmp_path / "out.png").is_file()
    done = run("cutout", "-" if "<" in closed else coffee, "-" if ">" in closed else tmp_path / "x.png")
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"standard " in done.stderr


def test_a_terminal_without_the_letters(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    for arguments in (["--help"], ["cutout", "--help"], ["info", "u2net_lite"]):
        done = segzoo_process(*arguments, env=environment)
        assert done.returncode == 0 and done.stdout and done.stderr == b""


def test_wrong_arguments_and_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["cutout", "--modle", "x"])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("segzoo cutout: error: ") and err.count("\n") == 1
    assert main([]) == 2
    assert "cutout" in capsys.readouterr().err


def test_help_and_version_are_quick_and_need_no_torch() -> None:
    code = (
        "import sys; from segzoo.cli import main\ntry: main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules"
    )
    for arguments in (["--help"], ["cutout", "--help"], ["predict", "--help"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, timeout=60)
        assert done.returncode == 0 and done.stdout.strip() and done.stderr == b""
    assert segzoo.__version__.encode() in done.stdout


def test_list_and_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    listing = capsys.readouterr().out
    for name in segzoo.list_models():
        assert name in listing
    assert "1,128,333" in listing and "43,995,469" in listing
    assert main(["list", "--pretrained", "--task", "salient", "u2net_l*"]) == 0
    assert capsys.readouterr().out.count("\n") == 2
    for name in [*segzoo.list_models(), *segzoo.list_weights()]:
        assert main(["info", name]) == 0
        out = capsys.readouterr().out
        for record in [segzoo.get_weights(n) for n in segzoo.list_weights() if name in (n, n.partition(".")[0])]:
            for known in (
                record.license,
                record.training_data,
                record.paper,
                record.sha256 or "sha256 not",
                record.protocol,
            ):
                assert known in out
        assert main(["info", name, "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        for record in [shown] if "." in name else shown["weights"]:
            assert record["license"] and {"sha256", "repo", "location"} <= record["sources"][0].keys()
        assert "." in name or f"{shown['parameters']:,}" in listing
    assert main(["info", "u2net_lite"]) == 0
    out = capsys.readouterr().out
    for known in ("Apache-2.0", "DUTS-TR", "arXiv:2005.09007", "sha256", "320×320", "1,128,333"):
        assert known in out
    assert main(["info", "fcn_resnet50"]) == 0
    assert "shorter side 520" in capsys.readouterr().out


def test_a_killed_run_leaves_whole_files_only(coffee: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for i in range(40):
        (source / f"{i:02}.jpg").write_bytes(coffee.read_bytes())
    process = subprocess.Popen([sys.executable, "-m", "segzoo", "cutout", str(source), str(out), "--quiet"])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (out.is_dir() and len(list(out.glob("[!.]*.png"))) >= 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    written = sorted(out.glob("[!.]*.png"))
    assert 2 <= len(written) < 40
    for path in written:
        the_cup_is_cut_out(alpha_of(path))


def test_an_interrupted_run_says_nothing_and_leaves_whole_files(coffee: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for i in range(40):
        (source / f"{i:02}.jpg").write_bytes(coffee.read_bytes())
    command = [sys.executable, "-m", "segzoo", "cutout", str(source), str(out), "--quiet"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (out.is_dir() and any(out.glob("[!.]*.png"))):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == b""
    assert list(out.glob(".*")) == []
    assert all(alpha_of(path).shape == (400, 600) for path in out.iterdir())
