"""The scripts in examples/: as a user runs them, on small things made here."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import save_file

import segzoo
from segzoo.inference import InstancePrediction, Prediction, sliding_window
from segzoo.inference.picture import Picture, read_picture
from segzoo.models.base import SegmentationModel
from segzoo.weights.catalog import Preprocessing

SCRIPTS = sorted(path.stem for path in (ROOT / "examples").glob("[!_]*.py"))  # _engine.py and such are their parts
WIDTH, HEIGHT = 65, 47  # odd, as H.264 does not like it

needs_ffmpeg = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="no ffmpeg and ffprobe on this machine"
)


def load(name: str) -> ModuleType:
    """A script as a module; it finds its parts beside it, as when it is run."""
    if str(ROOT / "examples") not in sys.path:
        sys.path.insert(0, str(ROOT / "examples"))
    spec = importlib.util.spec_from_file_location(name, ROOT / f"examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where a dataclass looks for its own annotations
    spec.loader.exec_module(module)
    return module


class Bright(SegmentationModel):
    """Foreground is where a pixel is brighter than half: what a mask must be is known."""

    heads = ()
    stem = "conv.weight"
    default_num_classes = 1

    def __init__(self) -> None:
        super().__init__(1, 3)
        self.preprocessing = Preprocessing(size=None, mean=(0.0,) * 3, std=(1.0,) * 3)
        self.conv = torch.nn.Conv2d(3, 1, 1)
        torch.nn.init.constant_(self.conv.weight, 20.0)
        torch.nn.init.constant_(self.conv.bias, -30.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.check_input(x)
        return self.conv(x)


@pytest.fixture
def bright(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = segzoo.Predictor
    monkeypatch.setattr(segzoo, "Predictor", lambda model, **options: predictor(Bright(), **options))


@pytest.fixture
def video(bright: None) -> ModuleType:
    return load("predict_video")


def frame(i: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Dark blue, with a bright orange square that moves to the right."""
    pixels = np.full((height, width, 3), (10, 20, 60), np.uint8)
    pixels[16:32, 8 + 4 * i : 24 + 4 * i] = (255, 200, 160)
    return pixels


def square(i: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    return frame(i, width, height)[:, :, 0] > 127


def make_frames(folder: Path, count: int = 4) -> Path:
    folder.mkdir()
    for i in range(count):
        Image.fromarray(frame(i)).save(folder / f"{8 + i}.png")  # 8, 9, 10, 11: not the order of letters
    return folder


def ffmpeg(*arguments: object) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True, timeout=60)


def make_clip(path: Path, *options: str, size: tuple[int, int] = (64, 48), count: int = 6, rate: str = "25") -> Path:
    """A lossless clip of `frame`s, with a tone."""
    pixels = b"".join(frame(i, *size).tobytes() for i in range(count))
    raw = path.with_suffix(".raw")
    raw.write_bytes(pixels)
    picture = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", rate, "-i", raw)
    tone = ("-f", "lavfi", "-t", float(count / Fraction(rate)), "-i", "sine")
    ffmpeg(*picture, *tone, "-c:v", "libx264", "-qp", "0", "-pix_fmt", "yuv444p", "-c:a", "aac", *options, path)
    raw.unlink()
    return path


def probe(path: Path) -> SimpleNamespace:
    """The first video stream, with the number of frames that are really there, and the codecs of the sound."""
    asked = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", str(path)]
    streams = json.loads(subprocess.run(asked, capture_output=True, check=True, timeout=60).stdout)["streams"]
    found: dict[str, Any] = next(stream for stream in streams if stream["codec_type"] == "video")
    sound = [stream["codec_name"] for stream in streams if stream["codec_type"] == "audio"]
    return SimpleNamespace(**found, sound=sound, frames=int(found["nb_read_frames"]))


def decode(path: Path, mode: str, *options: str) -> np.ndarray:
    """All frames ``[n, H, W, C]``."""
    found = probe(path)
    once = ["-r", "25", "-vf", "settb=AVTB,setpts=N/25/TB"]  # each frame, whatever its time
    form = ["-map", "0:v", "-f", "rawvideo", "-pix_fmt", mode]
    command = ["ffmpeg", "-v", "error", *options, "-i", str(path), *form, *once, "-"]
    pixels = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    return np.frombuffer(pixels, np.uint8).reshape(found.frames, found.height, found.width, -1)


def read_image(path: Path, mode: str | None = None) -> np.ndarray:
    with Image.open(path) as image:
        assert mode is None or image.mode == mode
        return np.asarray(image)


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", SCRIPTS)
def test_docstring_shows_commands_that_parse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = load(name)
    lines = script.__doc__.replace("\\\n", "").splitlines()
    shown = re.compile(rf"(python|torchrun\b.*) examples/{name}\.py (?P<own>.*?)(  #.*| -- .*)?$")  # --: another script
    commands = [found for line in lines if (found := shown.match(line))]
    parse = getattr(script, "parse", script.main)
    assert len(commands) >= 2
    with pytest.raises(SystemExit, match="0"):
        parse(["--help"])
    assert commands[0].string in capsys.readouterr().out.replace("\\\n", "")
    for command in commands:
        words = command["own"].replace('"', "").split()
        options = [word for word in words if word.startswith("--")]
        with pytest.raises(SystemExit, match="0"):
            parse([*words, "--help"])
        helped = capsys.readouterr().out
        assert all(f"{option} " in helped or f"{option}]" in helped for option in options), command.string


@pytest.mark.slow
def test_a_folder_as_a_user_runs_it(tmp_path: Path) -> None:
    """The one that starts Python and the real model."""
    (tmp_path / "in").mkdir()
    shutil.copy(ROOT / "examples/images/coffee.jpg", tmp_path / "in")
    command = [sys.executable, str(ROOT / "examples/predict_folder.py"), "in", "objects.csv"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    (row,) = read_table(tmp_path / "objects.csv")
    assert row["picture"] == "coffee.jpg" and row["class"] == "foreground" and 0.4 < float(row["share"]) < 0.55


def test_the_table_has_each_object(bright: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.zeros((40, 50, 3), np.uint8)
    pixels[2:12, 3:8] = 255  # 50 pixels
    pixels[20:40, 30:50] = 255  # 400, up to the rim
    pixels[0, 49] = 255
    make_frames(tmp_path / "in", 1)
    Image.fromarray(pixels).save(tmp_path / "in/a.png")
    (tmp_path / "in/broken.jpg").write_bytes(b"no picture")
    (tmp_path / "in/._a.png").write_bytes(b"a Mac's note")
    assert load("predict_folder").main([str(tmp_path / "in"), str(tmp_path / "out.csv")]) == 1
    said = capsys.readouterr().err
    assert "broken.jpg is not a picture" in said and said.count("\n") == 1
    rows = read_table(tmp_path / "out.csv")
    found = [[row["picture"], *(int(row[k]) for k in ("pixels", "left", "top", "right", "bottom"))] for row in rows]
    assert found == [["8.png", 256, 8, 16, 24, 32], ["a.png", 400, 30, 20, 50, 40], ["a.png", 50, 3, 2, 8, 12]]
    assert float(rows[1]["share"]) == 0.2 and float(rows[1]["confidence"]) > 0.99


def blank(height: int, width: int) -> Picture:
    return read_picture(np.zeros((height, width, 3), np.uint8))


def test_the_table_of_a_detector_has_its_own_boxes_names_and_confidences() -> None:
    masks = torch.zeros(4, 1, 20, 30)
    masks[0, 0, 2:8, 3:13] = 0.9  # 60 pixels, and beside it 2 more of the same object
    masks[0, 0, 15, 3:5] = 0.9
    masks[1, 0, 6:16, 10:20] = 0.8  # overlaps it
    masks[2, 0, 0, 0] = 1.0  # too small
    masks[3] = 1.0  # unsure
    boxes = torch.tensor([[2.7, 2.2, 13.1, 16.0], [9.9, 6.1, 20.2, 15.8], [0, 0, 1, 1], [0, 0, 30, 20]])
    found = {"boxes": boxes, "labels": torch.tensor([3, 1, 3, 2]), "scores": torch.tensor([0.75, 0.99, 0.6, 0.1])}
    names = ("background", "person", "dog", "cat")
    prediction = InstancePrediction(blank(20, 30), {**found, "masks": masks}, classes=names)
    assert list(load("predict_folder").objects(prediction, 5)) == [
        ["person", 100, f"{100 / 600:.4f}", 10, 6, 20, 16, "0.990"],
        ["cat", 62, f"{62 / 600:.4f}", 3, 2, 13, 16, "0.750"],
    ]


@pytest.mark.parametrize("classes", [("road", "car", "person"), None])
def test_the_table_of_classes_that_overlap_goes_class_by_class(classes: tuple[str, ...] | None) -> None:
    scores = torch.zeros(3, 20, 30)
    scores[0, 10:] = 0.75  # the first class is one like the others
    scores[2, 12:16, 4:8] = 1.0
    scores[2, 2:10, 4:8] = 0.875
    names = classes or (0, 1, 2)
    prediction = Prediction(blank(20, 30), scores, multilabel=True, classes=classes)
    assert list(load("predict_folder").objects(prediction, 5)) == [
        [names[0], 300, "0.5000", 0, 10, 30, 20, "0.750"],
        [names[2], 32, f"{32 / 600:.4f}", 4, 2, 8, 10, "0.875"],
        [names[2], 16, f"{16 / 600:.4f}", 4, 12, 8, 16, "1.000"],
    ]


def test_the_table_of_several_classes() -> None:
    scores = torch.nn.functional.one_hot(torch.tensor([[0, 0, 2, 2], [1, 0, 0, 2]]), 3).permute(2, 0, 1) * 0.5
    prediction = Prediction(blank(2, 4), scores, classes=("background", "dog", "cat"))
    assert list(load("predict_folder").objects(prediction, 1)) == [
        ["cat", 3, "0.3750", 2, 0, 4, 2, "0.500"],
        ["dog", 1, "0.1250", 0, 1, 1, 2, "0.500"],
    ]


def test_a_folder_of_pictures_and_what_cannot_be(
    bright: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, source = load("predict_folder"), str(make_frames(tmp_path / "in"))
    assert script.main([source, str(tmp_path / "cut"), "--kind", "cutout", "--batch-size", "3"]) == 0
    alpha = read_image(tmp_path / "cut/9.png")[..., 3]
    assert np.array_equal(alpha > 127, square(1))
    for arguments in (
        ["nowhere", "out"],
        ["nowhere", "out.csv"],
        [source, "out", "--kind", "cutout", "--background", "w"],
    ):
        capsys.readouterr()
        assert script.main([arguments[0], str(tmp_path / arguments[1]), *arguments[2:]]) == 2
        assert capsys.readouterr().err.startswith("predict_folder: error: ")


def test_frames_in_and_out_need_no_ffmpeg(video: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    source, target = make_frames(tmp_path / "in"), tmp_path / "out"
    (source / "._8.png").write_bytes(b"a Mac's note")
    assert video.main([str(source), str(target), "--batch-size", "3", "--quiet"]) == 0
    assert sorted(path.name for path in target.iterdir()) == ["10.png", "11.png", "8.png", "9.png"]
    for i in range(4):
        assert np.array_equal(read_image(target / f"{8 + i}.png"), square(i) * np.uint8(255))


class Opposites(Bright):
    """Two classes, dark and bright, which have names of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes, self.classes = 2, ("1", "0")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        return torch.cat([-logits, logits], 1)


def test_digits_are_the_indices_of_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = segzoo.Predictor
    monkeypatch.setattr(segzoo, "Predictor", lambda model, **options: predictor(Opposites(), **options))
    source, video = make_frames(tmp_path / "in", 2), load("predict_video")
    for classes, expected in (("1", square(1)), ("0", ~square(1)), ("0,1", np.ones((HEIGHT, WIDTH), bool))):
        target = tmp_path / classes
        arguments = [str(source), f"{target}/", "--kind", "cutout", "--classes", classes, "--quiet"]
        assert video.main(arguments) == 0
        assert np.array_equal(read_image(target / "9.png", "RGBA")[..., 3] > 127, expected)


def test_smoothing_is_the_exponential_average(video: ModuleType) -> None:
    scores = [torch.full((1, 2, 2), value) for value in (1.0, 0.0, 0.0)] + [torch.zeros(1, 3, 3)]
    predictions = [SimpleNamespace(scores=value) for value in scores]
    smooth = [float(p.scores.mean()) for p in video.smoothed(predictions, 0.75)]
    assert smooth == [1.0, 0.75, 0.5625, 0.0]  # another size begins anew


def test_threads_keep_the_order_and_run_only_a_little_ahead(video: ModuleType) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(20):
            taken.append(i)
            yield i

    def late(i: int) -> int:
        time.sleep(0.002 * (i % 3))
        return i

    for expected, i in enumerate(video.in_threads(late, items())):
        assert i == expected and len(taken) <= i + 4
    assert len(taken) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.mp4", "out/"], "there is no video nowhere.mp4"),
        (["in", "in"], "is the source itself"),
        (["in", "out/", "--smooth", "1"], "--smooth lies in 0…1"),
        (["in", "out/", "--rate", "0"], "--rate is a positive number"),
        (["in", "out/", "--rate", ""], "--rate is a positive number"),
        (["some.mp4", "out/", "--rate", "3"], "--rate is of a folder of frames: some.mp4 is a video"),
        (["in", "out/", "--kind", "mask", "--background", "white"], "are a cut-out's, not of --kind mask"),
        (["in", "out/", "--kind", "overlay", "--classes", "0"], "are a cut-out's, not of --kind overlay"),
        (["in", "out/", "--kind", "cutout", "--classes", "7"], "unknown class 7"),
        (["twins", "out/"], "twins/1.bmp and twins/1.png have one name: which of them is frame '1'?"),
        (["in", "out.avi"], "is written as .mkv, .mov, .mp4, .webm, or as a folder"),
        (["in", "out.mp4", "--kind", "cutout"], "with transparency (--background puts a colour behind) is written as"),
        (["in", "no/out.mp4"], "there is no folder no"),
        (["in", "out/", "--kind", "cutout", "--background", "blu"], "did you mean 'blue'"),
        (["empty", "out/"], "there is no frame to write"),
        (["in", "out.mp4"], "writing a video takes the program ffmpeg"),
        (["some.mp4", "out/"], "reading a video takes the programs ffmpeg and ffprobe, or the package torchcodec"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    video: ModuleType,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    make_frames(tmp_path / "in", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "twins").mkdir()
    for name in ("1.png", "1.bmp", "2.png"):
        Image.fromarray(frame(0)).save(tmp_path / "twins" / name)
    (tmp_path / "some.mp4").touch()
    assert video.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("predict_video: error: ") and error.count("\n") == 1 and message in error


def test_rates(video: ModuleType) -> None:
    given = ["30000/1001", "25", "29.97002997002997", "0/0", "-3", "often", "1/0"]
    assert list(map(video.to_rate, given)) == [Fraction(30000, 1001), 25, Fraction(30000, 1001), *[None] * 4]


@needs_ffmpeg
def test_masks_of_a_video_are_exact_in_a_lossless_file(video: ModuleType, tmp_path: Path) -> None:
    """Count, rate, size (odd), and each frame's mask; the sound as it was."""
    clip = make_clip(tmp_path / "in.mp4", size=(WIDTH, HEIGHT), rate="30000/1001")
    assert video.main([str(clip), str(tmp_path / "out.mkv"), "--batch-size", "4", "--quiet"]) == 0
    found = probe(tmp_path / "out.mkv")
    assert (found.frames, found.width, found.height, found.sound) == (6, WIDTH, HEIGHT, ["aac"])
    assert found.avg_frame_rate == "30000/1001"
    # What came out goes in: a sound that begins before the picture adds no frame.
    assert video.main([str(tmp_path / "out.mkv"), str(tmp_path / "again.mov"), "--quiet"]) == 0
    assert probe(tmp_path / "again.mov").frames == 6
    masks = decode(tmp_path / "out.mkv", "rgb24")
    assert np.array_equal(masks, np.stack([square(i) for i in range(6)])[..., None].repeat(3, 3) * np.uint8(255))
    assert leftovers(tmp_path) == []


@needs_ffmpeg
@pytest.mark.parametrize("ending", [".webm", ".mov"])
def test_cutouts_of_a_rotated_video_are_transparent(video: ModuleType, tmp_path: Path, ending: str) -> None:
    make_clip(tmp_path / "in.mp4", count=3)
    ffmpeg("-i", tmp_path / "in.mp4", "-c", "copy", "-metadata:s:v:0", "rotate=90", tmp_path / "turned.mp4")
    rotated = tmp_path / "turned.mp4"
    if "side_data_list" not in vars(probe(rotated)):  # newer programs say it otherwise
        ffmpeg("-display_rotation", "90", "-i", tmp_path / "in.mp4", "-c", "copy", rotated)
    target = tmp_path / f"out{ending}"
    assert video.main([str(rotated), str(target), "--kind", "cutout", "--quiet"]) == 0
    options = ("-c:v", "libvpx-vp9") if ending == ".webm" else ()  # ffmpeg's own decoder drops transparency
    frames = decode(target, "rgba", *options)
    assert frames.shape == (3, 64, 48, 4)
    assert probe(target).sound == (["opus"] if ending == ".webm" else ["aac"])
    for i, cut in enumerate(frames):
        expected = np.rot90(square(i, 64, 48))
        assert (cut[..., 3] > 127)[expected].mean() > 0.97 and (cut[..., 3] < 128)[~expected].mean() > 0.99
        assert np.abs(cut[expected][:, :3].mean(0) - (255, 200, 160)).max() < 12


@needs_ffmpeg
def test_colours_stay_and_odd_sizes_become_even_in_h264(video: ModuleType, tmp_path: Path) -> None:
    tags = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709")
    clip = make_clip(tmp_path / "in.mp4", "-vf", "scale=out_color_matrix=bt709", *tags, size=(WIDTH, HEIGHT))
    assert video.main([str(clip), str(tmp_path / "out.mp4"), "--kind", "overlay", "--quiet", "--mute"]) == 0
    found = probe(tmp_path / "out.mp4")
    assert (found.width, found.height, found.color_space, found.sound) == (WIDTH + 1, HEIGHT + 1, "bt709", [])
    picture = decode(tmp_path / "out.mp4", "rgb24")[0].astype(int)
    assert np.abs(picture[2:12, 2:60] - (10, 20, 60)).max() < 6
    assert np.abs(picture[20:28, 12:20].mean((0, 1)) - ((255 + 128) / 2, 100, 80)).max() < 6
    assert np.abs(picture[-1] - picture[-2]).max() < 6  # the last row again, not black


@needs_ffmpeg
def test_a_variable_rate_keeps_its_duration(video: ModuleType, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "all.mp4", count=9, rate="10")
    keep = "select='not(eq(n,2)+eq(n,3)+eq(n,6))'"
    ffmpeg("-i", clip, "-vf", keep, "-vsync", "vfr", "-c:v", "libx264", "-an", tmp_path / "in.mp4")
    assert video.main([str(tmp_path / "in.mp4"), str(tmp_path / "out.mkv"), "--quiet"]) == 0
    rate = Fraction(probe(tmp_path / "out.mkv").avg_frame_rate)
    assert probe(tmp_path / "in.mp4").frames == 6
    assert abs(probe(tmp_path / "out.mkv").frames / rate - Fraction("0.9")) <= 1 / rate


@needs_ffmpeg
def test_a_broken_video_leaves_the_older_result(
    video: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.mp4").write_bytes(b"no video" * 100)
    (tmp_path / "out.mp4").write_bytes(b"older")
    assert video.main([str(tmp_path / "in.mp4"), str(tmp_path / "out.mp4"), "--quiet"]) == 2
    assert "predict_video: error: ffprobe: " in capsys.readouterr().err
    source = make_frames(tmp_path / "frames")
    assert (
        video.main([str(source), str(tmp_path / "out.mp4"), "--ffmpeg=-c:v nonsense", "--quiet"]) == 2
    )  # a broken pipe
    assert "nonsense" in capsys.readouterr().err
    Image.new("RGB", (20, 20)).save(source / "12.png")
    assert video.main([str(source), str(tmp_path / "out.mp4"), "--quiet"]) == 2
    assert "another size" in capsys.readouterr().err
    assert (tmp_path / "out.mp4").read_bytes() == b"older" and leftovers(tmp_path) == []


@needs_ffmpeg
def test_what_stops_half_way_leaves_nothing(video: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make_clip(tmp_path / "in.mp4", count=9)
    render, seen = segzoo.inference.Prediction.render, []

    def interrupted(self: Any, *arguments: Any, **options: Any) -> Image.Image:
        seen.append(self)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return render(self, *arguments, **options)

    monkeypatch.setattr(segzoo.inference.Prediction, "render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        video.main([str(clip), str(tmp_path / "out.mp4"), "--quiet"])
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.slow
@needs_ffmpeg
def test_ctrl_c(tmp_path: Path) -> None:
    make_clip(tmp_path / "in.mp4", count=100)
    command = [sys.executable, str(ROOT / "examples/predict_video.py"), "in.mp4", "out.mp4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    for _ in range(1000):
        if leftovers(tmp_path):
            break
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    assert (running.communicate(timeout=60)[1], running.returncode) == (b"", 130)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


@pytest.fixture
def bands() -> ModuleType:
    return load("predict_bands")


def two_classes(bands: int) -> torch.nn.Conv2d:
    """Class 1 where the last band is above its mean."""
    model = torch.nn.Conv2d(bands, 2, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
        model.weight[1, -1] = 1
    return model


@pytest.mark.parametrize("form", ["npy", "first.npy", "tif"])
def test_bands_of_any_file_to_labels(
    bands: ModuleType, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    picture = rng.integers(1, 5000, (45, 70, 5)).astype(np.uint16)
    picture[:10, :20] = 0
    path, options = tmp_path / f"scene.{form}", ["--classes", "2", "--window", "32", "--nodata", "0", "--device", "cpu"]
    if form == "tif":
        pytest.importorskip("tifffile").imwrite(path, picture, planarconfig="contig")
    else:
        np.save(path, picture.transpose(2, 0, 1) if form == "first.npy" else picture)
        options += ["--channels-first"] if form == "first.npy" else []
    monkeypatch.setattr(bands, "build_model", lambda args, count: two_classes(count))
    assert bands.main([str(path), str(tmp_path / "labels.png"), *options]) == 0
    values = picture[..., -1]
    expected = np.where(values == 0, 255, values > values[values > 0].mean())
    assert np.array_equal(read_image(tmp_path / "labels.png", "P"), expected)
    assert leftovers(tmp_path) == []


def test_bands_with_a_random_model_and_statistics_of_a_file(
    bands: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bands.main(["scene.npy", "--make-demo"]) == 0
    demo = np.load("scene.npy")
    assert demo.dtype == np.uint16 and demo.shape == (400, 600, 6) and demo.max() > 5000
    np.save("small.npy", demo[100:140, 200:280])
    Path("train.json").write_text(json.dumps({"mean": [4000] * 6, "std": [2000] * 6}))
    options = ["--classes", "3", "--window", "48", "--overlap", "0.25", "--batch-size", "4", "--device", "cpu"]
    assert bands.main(["small.npy", "labels.npy", "--statistics", "train.json", *options]) == 0
    said = capsys.readouterr()
    assert "the model is random and its labels mean nothing" in said.err and "%" in said.out
    labels = np.load("labels.npy")
    assert labels.dtype == np.uint8 and labels.shape == (40, 80) and labels.max() < 3


@pytest.mark.parametrize(
    ("nodata", "dtype", "form"),
    [
        ("nan", np.float32, "npy"),
        ("NaN", np.float32, "tif"),
        ("-3.4028234663852886e38", np.float32, "npy"),
        ("-3.4e38", np.float32, "npy"),
        ("-1.7976931348623157e308", np.float64, "npy"),
        ("-9999", np.int16, "npy"),
        ("2147483647", np.int32, "npy"),
    ],
)
def test_what_has_no_data_does_not_reach_its_neighbours(
    bands: ModuleType,
    nodata: str,
    dtype: type,
    form: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
) -> None:
    """Labels around a hole are those of the same picture with the hole at the mean, for a model that looks around."""
    torch.manual_seed(0)
    model = torch.nn.Conv2d(4, 3, 5, padding=2)
    monkeypatch.setattr(bands, "build_model", lambda args, count: model)
    picture = rng.integers(0, 200, (40, 50, 4)).astype(dtype)
    if np.issubdtype(dtype, np.floating):
        picture /= 256  # deviations below 1: dividing float32's least value by them overflows
    hole = np.zeros((40, 50), bool)
    hole[5:20, 10:30] = hole[39, 49] = True
    mean, std = picture[~hole].mean(0, np.float64), picture[~hole].std(0, dtype=np.float64)
    (tmp_path / "train.json").write_text(json.dumps({"mean": mean.tolist(), "std": std.tolist()}))
    filled = picture.astype(np.float64)
    filled[hole] = mean
    filled[0, 0, 1] = mean[1]  # one band alone has none
    np.save(tmp_path / "filled.npy", filled)
    picture[hole] = picture[0, 0, 1] = float(nodata)
    if form == "tif":
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(tmp_path / "scene.tif", picture, planarconfig="contig", photometric="minisblack")
    else:
        np.save(tmp_path / "scene.npy", picture)
    options = ["--classes", "3", "--window", "32", "--device", "cpu", "--statistics", str(tmp_path / "train.json")]
    labels, expected = tmp_path / "labels.npy", tmp_path / "expected.npy"
    assert bands.main([str(tmp_path / f"scene.{form}"), str(labels), *options, f"--nodata={nodata}"]) == 0
    assert bands.main([str(tmp_path / "filled.npy"), str(expected), *options]) == 0
    assert np.array_equal(np.load(labels), np.where(hole, 255, np.load(expected)))
    if dtype in (np.float32, np.int16):  # what data sets hold, where the picture's own statistics come from
        assert bands.main([str(tmp_path / f"scene.{form}"), str(labels), *options[:6], f"--nodata={nodata}"]) == 0
        measured = np.load(labels)
        assert np.array_equal(measured == 255, hole) and (measured == np.load(expected))[~hole].mean() > 0.99


def test_the_readme_line_for_bands_works_as_written(
    bands: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.strip().startswith("python examples/predict_bands.py ")]
    words = line.partition("#")[0].split()[2:]
    monkeypatch.chdir(tmp_path)
    picture = rng.integers(0, 5000, (64, 48, 5)).astype(np.uint16)
    np.save(words[0], picture)
    torch.manual_seed(0)
    model = segzoo.u2net_lite(weights=None, in_channels=5).eval()
    pixels = picture.astype(np.float64)
    x = torch.from_numpy((pixels - pixels.mean((0, 1))) / pixels.std((0, 1))).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = sliding_window(model, x, 512)[0, 0].numpy()
        middle = float(np.median(logits))
        model.out_conv.bias -= middle  # half of the pixels are the object's
    expected = logits > middle
    save_file(model.state_dict(), words[words.index("--weights") + 1])
    assert bands.main(words) == 0
    assert 0.4 < expected.mean() < 0.6 and (read_image(Path(words[1]), "P") == expected).mean() > 0.99


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.npy", "out.png"], "there is no picture nowhere.npy"),
        (["flat.npy", "out.png"], "expected numbers [H, W, bands]"),
        (["scene.npy", "out.jpg"], "labels are written as .png or .npy"),
        (["scene.npy", "no/out.png"], "there is no folder no"),
        (["scene.npy", "scene.npy"], "is the picture itself"),
        (["scene.npy", "out.png", "--classes", "0"], "--classes lies in"),
        (["scene.npy", "out.png", "--statistics", "train.json"], "has 2 means and 2 deviations, the picture 3 bands"),
        (["scene.npy", "out.png", "--model", "u2net_lit"], "did you mean 'u2net_lite'"),
        (["scene.npy", "out.png", "--weights", "mine.pth"], "mine.pth"),
    ],
)
def test_what_cannot_be_done_with_bands_is_one_sentence(
    bands: ModuleType,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("flat.npy", np.zeros((3, 4)))
    np.save("scene.npy", np.zeros((30, 40, 3), np.uint16))
    Path("train.json").write_text('{"mean": [1, 2], "std": [1, 2]}')
    assert bands.main(arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out.png").exists() and leftovers(tmp_path) == []
