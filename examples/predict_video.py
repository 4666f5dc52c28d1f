"""A video to a video of its masks, cut-outs or overlays, frame by frame, in bounded memory.

python examples/predict_video.py clip.mp4 tinted.mp4 --kind overlay
python examples/predict_video.py clip.mp4 cut.webm --kind cutout          # VP9 with transparency, for the web
python examples/predict_video.py clip.mp4 cut.mov --kind cutout           # ProRes 4444, for editing
python examples/predict_video.py clip.mp4 blue.mp4 --kind cutout --background "#20a0ff" --smooth 0.5
python examples/predict_video.py clip.mp4 mask.mkv                        # lossless, for further computing
python examples/predict_video.py clip.mp4 masks/                          # a PNG for each frame
python examples/predict_video.py frames/ masks/                           # needs no ffmpeg
python examples/predict_video.py frames/ mask.mp4 --rate 30000/1001

Video files are read and written by the programs ffmpeg and ffprobe; without them torchcodec reads, if it is installed,
and frames are written to a folder. Sound is copied, or encoded anew where the new file's format cannot hold it. A
variable frame rate becomes the mean one: frames are doubled or dropped, so that picture and sound stay together. The
new file appears whole at the end, or not at all.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import segzoo
from segzoo.inference import Prediction

X264 = ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p"]
VP9 = ["-c:v", "libvpx-vp9", "-crf", "24", "-b:v", "0", "-row-mt", "1"]
PRORES = ["-c:v", "prores_ks", "-profile:v", "4444", "-pix_fmt", "yuva444p10le"]
OPAQUE = {  # ending of the new file: how ffmpeg encodes it
    ".mp4": [*X264, "-movflags", "+faststart"],
    ".mov": X264,
    ".webm": [*VP9, "-pix_fmt", "yuv420p"],
    ".mkv": ["-c:v", "ffv1", "-pix_fmt", "bgr0"],
}
TRANSPARENT = {
    ".mov": PRORES,
    ".webm": [*VP9, "-pix_fmt", "yuva420p", "-auto-alt-ref", "0"],
    ".mkv": ["-c:v", "ffv1", "-pix_fmt", "bgra"],
}
SOUND = {  # ending: the sound that the format holds, and what other sound becomes
    ".mp4": ({"aac", "ac3", "alac", "eac3", "mp3"}, "aac"),
    ".mov": ({"aac", "ac3", "alac", "mp3", "pcm_s16le", "pcm_s24le"}, "aac"),
    ".webm": ({"opus", "vorbis"}, "libopus"),
    ".mkv": ({"aac", "ac3", "alac", "eac3", "flac", "mp3", "opus", "pcm_s16le", "pcm_s24le", "vorbis"}, "flac"),
}
PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@dataclass
class Clip:
    """What goes in: upright frames, and what the new file has to know of the old one."""

    frames: Generator[Any, None, None]  # of arrays uint8 [H, W, 3], tensors uint8 [3, H, W] or paths
    rate: Fraction
    count: int | None = None  # as the file says: for the progress bar
    names: list[str] | None = None  # of a folder's frames
    source: Path | None = None  # where the sound is
    sound: list[str] = field(default_factory=list)  # its codecs
    delay: float = 0.0  # seconds by which the first frame comes after the sound
    colours: list[str] = field(default_factory=list)  # ffmpeg's options: which YUV the file's colours are meant in


def open_clip(source: Path, rate: Fraction) -> Clip:
    """A folder of numbered frames, or a video file through whichever reader there is."""
    if source.is_dir():
        # Names that begin with a dot are other programs' notes, such as a Mac's ._1.png.
        frames = [p for p in source.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")]
        # By the numbers in the names: 2.png comes before 10.png.
        frames.sort(
            key=lambda path: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]
        )
        first: dict[str, Path] = {}
        for path in frames:
            if first.setdefault(path.stem, path) != path:
                raise ValueError(f"{first[path.stem]} and {path} have one name: which of them is frame {path.stem!r}?")
        return Clip((path for path in frames), rate, len(frames), names=list(first))
    if not source.exists():
        raise FileNotFoundError(f"there is no video {source}")
    if shutil.which("ffmpeg") and shutil.which("ffprobe"):
        return open_with_ffmpeg(source)
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError):  # not installed, or without the libraries of ffmpeg that it needs
        readers = "the programs ffmpeg and ffprobe, or the package torchcodec"
        raise RuntimeError(f"reading a video takes {readers}; a folder of frames takes neither") from None
    return open_with_torchcodec(source, VideoDecoder(str(source)))


def open_with_ffmpeg(source: Path) -> Clip:
    """What ffprobe says of a file, and its frames through a pipe."""
    with running(
        ["ffprobe", "-v", "error", "-show_streams", "-show_format", "-of", "json", f"file:{source}"]
    ) as ffprobe:
        found = json.load(ffprobe.stdout)
    streams = found.get("streams", [])
    video = next((s for s in streams if s["codec_type"] == "video" and not s["disposition"]["attached_pic"]), None)
    if video is None:
        raise ValueError(f"{source} has no video in it")
    mean, nominal = to_rate(video["avg_frame_rate"]), to_rate(video["r_frame_rate"])
    rate = mean or nominal or Fraction(25)
    duration = float(video.get("duration") or found["format"].get("duration") or 0)
    constant = nominal is not None and abs(nominal - rate) * max(duration, 1) <= 1  # no frame more or less in all
    starts = [float(place.get("start_time") or 0) for place in (video, found["format"])]
    return Clip(
        frames_from_ffmpeg(source, nominal if constant else rate, constant),
        nominal if constant else rate,
        count=round(duration * rate) or None,
        source=source,
        sound=[s.get("codec_name", "unknown") for s in streams if s["codec_type"] == "audio"],
        delay=max(0.0, starts[0] - starts[1]) if constant else 0.0,
        colours=colour_options(video),
    )


def frames_from_ffmpeg(source: Path, rate: Fraction, constant: bool) -> Generator[np.ndarray, None, None]:
    """Frames as PPM pictures, each of which says its size: turned upright, and with square pixels."""
    square = "scale=iw*sar:ih,setsar=1"
    # Of a constant rate every frame comes once; else ffmpeg doubles and drops frames by their times.
    timing = f",settb=AVTB,setpts=N/({rate})/TB" if constant else ""
    command = ["ffmpeg", "-v", "error", "-nostdin", "-i", f"file:{source}", "-map", "0:V:0", "-r", str(rate)]
    command += ["-vf", square + timing, "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-"]
    with running(command) as ffmpeg:
        while ffmpeg.stdout.readline():  # P6
            width, height = map(int, ffmpeg.stdout.readline().split())
            ffmpeg.stdout.readline()  # 255
            pixels = ffmpeg.stdout.read(width * height * 3)
            if len(pixels) < width * height * 3:  # it broke off, and its exit code says so
                break
            yield np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


def open_with_torchcodec(source: Path, decoder: Any) -> Clip:
    """The same with torchcodec: the frame that is shown at each moment of a constant rate."""
    about = decoder.metadata
    rate = to_rate(str(about.average_fps)) or Fraction(25)
    begin, end = about.begin_stream_seconds, about.end_stream_seconds
    count = max(1, math.ceil((end - begin) * rate - 0.5))
    # The middle of a frame's time: at its beginning, rounding might show the one before.
    frames = (decoder.get_frame_played_at(begin + (i + 0.5) / float(rate)).data for i in range(count))
    return Clip(frames, rate, count, source=source, sound=["unknown"])


def to_rate(text: str) -> Fraction | None:
    """ "30000/1001", "25" or "29.97002997" as the nearest usual fraction; None for "0/0"."""
    try:
        rate = Fraction(text).limit_denominator(1001)
    except (ValueError, ZeroDivisionError):
        return None
    return rate if rate > 0 else None


def colour_options(video: dict[str, Any]) -> list[str]:
    """The same kind of YUV for the new file, or the picture's colours would shift; where nothing is said, nothing."""
    space = video.get("color_space", "")
    matrix = "bt709" if space == "bt709" else "bt2020" if space.startswith("bt2020") else "bt601"
    says = {"color_space": "colorspace", "color_primaries": "color_primaries", "color_transfer": "color_trc"}
    known = {name: video[key] for key, name in says.items() if video.get(key, "unknown") not in ("unknown", "gbr")}
    # Twice, as some encoders look at the frames and others at the options.
    tags = f",setparams={':'.join(f'{name}={value}' for name, value in known.items())}" if known else ""
    options = [text for name, value in known.items() for text in (f"-{name}", value)]
    return ["-vf", f"scale=out_color_matrix={matrix}{tags}", *options]


@contextlib.contextmanager
def running(command: list[str], stdin: int = subprocess.DEVNULL) -> Iterator[Any]:
    """A program with pipes, over when the block is; what it complains of, if it fails, becomes an error."""
    with tempfile.TemporaryFile() as said:  # no pipe: it would block the program when it is full
        # A session of its own: Ctrl-C is this program's to answer.
        process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=said, start_new_session=True)
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended before its input did: its exit code says why
                yield process
                if process.stdin:
                    process.stdin.close()
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            for pipe in filter(None, (process.stdin, process.stdout)):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        said.seek(0)
        *_, last = ["", *said.read().decode(errors="replace").strip().splitlines()]
    if code:
        raise RuntimeError(f"{command[0]}: {last or f'it ended with exit code {code}'}")
    if last:
        print(f"predict_video: warning: {command[0]}: {last}", file=sys.stderr)


def smoothed(predictions: Iterable[Prediction], keep: float) -> Iterator[Prediction]:
    """Probabilities averaged over time, average = keep · average + (1 − keep) · frame: less flicker, and some lag."""
    average: torch.Tensor | None = None
    for prediction in predictions:
        if average is not None and average.shape == prediction.scores.shape:
            prediction.scores = torch.lerp(prediction.scores, average, keep)
        average = prediction.scores
        yield prediction


def in_threads(function: Callable[[Any], Any], items: Iterable[Any], workers: int = 2) -> Iterator[Any]:
    """``function(item)`` of each item, in order, a few ahead: pictures are made while the model runs."""
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def write_video(images: Iterator[Image.Image], target: Path, clip: Clip, transparent: bool, more: list[str]) -> int:
    """Encode images, all of the first one's size; returns how many."""
    first = next(images, None)
    if first is None:
        raise ValueError("there is no frame to write")
    encoding = (TRANSPARENT if transparent else OPAQUE)[target.suffix]
    even = "libx264" in encoding  # H.264 keeps colours at half the size: the last row and column are doubled
    right, below = (first.width % 2, first.height % 2) if even else (0, 0)
    size, pixel_format = f"{first.width + right}x{first.height + below}", "rgba" if transparent else "rgb24"
    command = ["ffmpeg", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", pixel_format, "-s", size]
    command += ["-r", str(clip.rate), "-itsoffset", str(clip.delay if clip.sound else 0), "-i", "-"]
    if clip.sound:
        held, other = SOUND[target.suffix]
        codec = "copy" if held.issuperset(clip.sound) else other
        command += ["-i", f"file:{clip.source}", "-map", "0:v", "-map", "1:a?", "-c:a", codec]
    command += [*encoding, *(clip.colours if "ffv1" not in encoding else []), *more]
    count = 0
    with whole(target) as part, running([*command, f"file:{part}"], stdin=subprocess.PIPE) as ffmpeg:
        for count, image in enumerate(itertools.chain([first], images), 1):
            if image.size != first.size:
                raise ValueError(f"frame {count} has another size, {image.size}, than the first, {first.size}")
            pixels = np.asarray(image.convert("RGBA" if transparent else "RGB"))
            ffmpeg.stdin.write(np.pad(pixels, ((0, below), (0, right), (0, 0)), "edge").tobytes())
    return count


def write_folder(images: Iterator[Image.Image], folder: Path, names: Iterable[str]) -> int:
    """A PNG for each image; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for image, name in zip(images, names):
        with whole(folder / f"{name}.png") as part:
            image.save(part)
        count += 1
    if count == 0:
        raise ValueError("there is no frame to write")
    return count


@contextlib.contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A path beside the target, which takes its place when the block ends well and is removed otherwise."""
    part = target.with_name(f".{uuid.uuid4().hex}{target.suffix}")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def check(args: argparse.Namespace) -> bool:
    """Refuse now what could not be done later; returns whether a video is written, not a folder."""
    if not 0 <= args.smooth < 1:
        raise ValueError(f"--smooth lies in 0…1, without 1, got {args.smooth}")
    if args.kind != "cutout" and (args.background is not None or args.classes is not None):
        raise ValueError(f"--background and --classes are a cut-out's, not of --kind {args.kind}")
    if args.rate is not None and to_rate(args.rate) is None:
        raise ValueError(f"--rate is a positive number or fraction, such as 25 or 30000/1001, got {args.rate}")
    if args.rate is not None and Path(args.source).is_file():
        raise ValueError(f"--rate is of a folder of frames: {args.source} is a video, which has its own")
    target = Path(args.target)
    if target.exists() and target.resolve() == Path(args.source).resolve():
        raise ValueError(f"{target} is the source itself: choose another target")
    if args.target.endswith("/") or target.is_dir() or not target.suffix:
        return False
    if not target.resolve().parent.is_dir():
        raise FileNotFoundError(f"{target} cannot be written: there is no folder {target.parent}")
    known = TRANSPARENT if args.kind == "cutout" and args.background is None else OPAQUE
    if target.suffix not in known:
        transparency = " with transparency (--background puts a colour behind)" if known is TRANSPARENT else ""
        endings = ", ".join(sorted(known))
        raise ValueError(f"a video{transparency} is written as {endings}, or as a folder/ of frames; got {target.name}")
    if not shutil.which("ffmpeg"):
        raise RuntimeError("writing a video takes the program ffmpeg; a folder/ of frames does not")
    return True


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    about, _, commands = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="predict_video", description=about, epilog=commands, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a video file, or a folder of numbered frames")
    parser.add_argument("target", help="a video file (.mp4, .mov, .webm, .mkv), replaced if it is there, or a folder/")
    parser.add_argument("--kind", choices=["mask", "probability", "cutout", "overlay"], default="mask")
    parser.add_argument("--background", metavar="COLOUR", help="behind a cut-out, instead of transparency")
    parser.add_argument("--classes", metavar="A,B", help="what a cut-out keeps, by name or index")
    parser.add_argument(
        "--smooth", type=float, default=0.0, metavar="0…1", help="share of the frames before in each mask (default: 0)"
    )
    parser.add_argument("--rate", help="frames a second of a folder of frames (default: 25)")
    parser.add_argument("--mute", action="store_true", help="without the sound")
    parser.add_argument("--ffmpeg", default="", metavar="OPTIONS", help="for the encoder, such as='-crf 28 -t 10'")
    parser.add_argument("--model", default="u2net_lite.duts", help="see segzoo list (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    parser.add_argument("--batch-size", type=int, default=1, help="frames at once (default: 1)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(arguments)


def convert(args: argparse.Namespace) -> int:
    """The work: returns how many frames were written."""
    target, writes_video = Path(args.target), check(args)
    clip = open_clip(Path(args.source), Fraction(25) if args.rate is None else to_rate(args.rate))
    if args.mute:
        clip.sound = []
    predictor = segzoo.Predictor(args.model, device=args.device, batch_size=args.batch_size)
    if args.smooth and predictor.finds_instances:
        raise ValueError("--smooth is for models of classes: a detector's objects change from frame to frame")
    options: dict[str, Any] = {}
    if args.kind == "cutout":
        classes = [int(c) if c.isdecimal() else c for c in args.classes.split(",")] if args.classes else None
        options = {"background": args.background, "classes": classes}
    with contextlib.closing(clip.frames):
        predictions = predictor.stream(clip.frames)
        shown = tqdm(predictions, total=clip.count, unit=" frames", disable=True if args.quiet else None)
        images = in_threads(lambda prediction: prediction.render(args.kind, **options), smoothed(shown, args.smooth))
        if not writes_video:
            return write_folder(images, target, clip.names or (f"{i:06d}" for i in itertools.count(1)))
        transparent = args.kind == "cutout" and args.background is None
        return write_video(images, target, clip, transparent, shlex.split(args.ffmpeg))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 not done, and why; Ctrl-C gives 130."""
    args = parse(arguments)
    try:
        count = convert(args)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"predict_video: error: {error}", file=sys.stderr)
        return 2
    if not args.quiet:
        print(f"{count} frames written to {args.target}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
