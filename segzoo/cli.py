"""The command line: each command is one call of the library, and every error one sentence."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segzoo.inference.prediction import Prediction
    from segzoo.inference.predictor import Predictor

# torch takes more than a second to import, so that --help and a wrong argument do without it.

__all__ = ["main", "run"]

_DONE, _SOME_FAILED, _BAD_INPUT, _INTERRUPTED = 0, 1, 2, 130
_MOST_NAMED = 20  # of the files without a partner, which may be a whole data set


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        self.exit(_BAD_INPUT, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="segzoo", description="Image segmentation: cut-outs, masks, and the models that make them.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    cutout = commands.add_parser(
        "cutout",
        help="cut the foreground out of pictures",
        description="Cut the foreground out of a picture, or of every picture in a folder.\n"
        "Works offline: the default model's weights are part of the package.",
        epilog="examples:\n  segzoo cutout photo.jpg out.png\n  segzoo cutout photo.jpg out.jpg --background white\n"
        "  segzoo cutout holiday/ holiday-cut/\n  cat photo.jpg | segzoo cutout - - > out.png\n"
        "  segzoo cutout photo.jpg out.png --refine guided --largest --clean-rim",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_picture_arguments(cutout)
    cutout.add_argument(
        "--background", metavar="COLOUR", help="put a colour behind (white, '#20a0ff') instead of transparency"
    )
    cutout.add_argument(
        "--classes", metavar="A,B", help="what to keep, by name or index, of a model with several classes"
    )
    cutout.add_argument("--hard", action="store_true", help="a hard rim instead of a soft one")
    cutout.add_argument(
        "--clean-rim", action="store_true", help="take the old background's colours out of the soft rim"
    )
    cutout.set_defaults(run=_cutout)

    predict = commands.add_parser(
        "predict",
        help="write masks of pictures",
        description="Write the mask of a picture, or of every picture in a folder.",
        epilog="examples:\n  segzoo predict photo.jpg mask.png\n  segzoo predict photo.jpg tinted.jpg --kind overlay",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_picture_arguments(predict)
    predict.add_argument(
        "--kind",
        choices=["mask", "probability", "overlay"],
        default="mask",
        help="mask: 0 or 255 (a palette of class indices where there are several); probability: grey 0 to 255; "
        "overlay: the picture, tinted (default: %(default)s)",
    )
    predict.set_defaults(run=_predict)

    _add_evaluate(commands)

    listing = commands.add_parser(
        "list", help="list the models", description="List the models and their published weights."
    )
    listing.add_argument("pattern", nargs="?", default="*", help="such as 'u2net*'")
    listing.add_argument("--task", help="only those for this task: salient, semantic or instance")
    listing.add_argument("--pretrained", action="store_true", help="only those with published weights")
    listing.set_defaults(run=_list)

    info = commands.add_parser(
        "info",
        help="show what is known of a model or of weights",
        description="Show what is known of a model (u2net_lite), of published weights (u2net_lite.duts) or of a saved "
        "model (local-dir:PATH, hf-hub:org/repo): licence, source, training data, preprocessing, figures.",
    )
    info.add_argument("name", metavar="NAME", help="u2net_lite, u2net_lite.duts, local-dir:PATH or hf-hub:org/repo")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(run=_info)

    download = commands.add_parser(
        "download",
        help="fetch weights now, to work without a network later",
        description="Fetch weights, check them and keep them: this machine can then load them without a network.",
        epilog="examples:\n  segzoo download u2net_full\n  segzoo download u2net_full.duts isnet.general\n"
        "  segzoo download hf-hub:org/repo@v1.0\n\n"
        "Files are kept where huggingface_hub (HF_HOME) and torch (TORCH_HOME) keep theirs; HF_ENDPOINT names a mirror "
        "of the\nHub, HF_TOKEN is for private repositories. What is kept already is not fetched again.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    download.add_argument(
        "names", metavar="NAME", nargs="+", help="u2net_full.duts, u2net_full (its default weights), hf-hub:org/repo"
    )
    download.add_argument("--force", action="store_true", help="fetch again what is kept: a branch that has moved on")
    download.add_argument(
        "--cache-dir",
        metavar="FOLDER",
        help="keep the files there instead: create_model(…, cache_dir=FOLDER) loads them",
    )
    download.add_argument("--quiet", action="store_true", help="no progress bar")
    download.set_defaults(run=_download)

    convert = commands.add_parser(
        "convert",
        help="convert other people's checkpoints",
        description="Convert a checkpoint into a safetensors file that this library loads: official U²-Net and IS-Net "
        "(.pth, .onnx), the\nU²-Net tutorial's, torchvision's, segmentation_models_pytorch's, NVIDIA's and "
        "transformers' SegFormer. Whose it is,\nits keys tell; nothing in the file is run.",
        epilog="examples:\n  segzoo convert u2net.pth u2net.safetensors\n"
        "  segzoo convert smp_unet.pth unet.safetensors --json\n"
        "  segzoo convert mine.ckpt mine.safetensors --architecture deeplabv3plus --encoder resnet50\n\n"
        "then: segzoo.unet(weights='unet.safetensors'), or\n"
        "segzoo cutout --model u2net_full --weights u2net.safetensors photo.jpg out.png",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    convert.add_argument("input", metavar="IN", help="a .pth, .pt, .ckpt, .bin, .onnx or .safetensors file")
    convert.add_argument("output", metavar="OUT.safetensors", help="the file to write")
    convert.add_argument("--architecture", metavar="NAME", help="the model, where the keys do not tell (segzoo list)")
    convert.add_argument("--encoder", metavar="NAME", help="its encoder, where the keys do not tell")
    convert.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other argument of the model that keys do not tell: --set rates=6,12,18 --set norm=group",
    )
    convert.add_argument("--overwrite", action="store_true", help="replace OUT where it is there")
    convert.add_argument("--json", action="store_true", help="what was done, as JSON")
    convert.set_defaults(run=_convert)

    _add_export(commands)
    return parser


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="write a model as a file for other runtimes",
        description="Write a model as an ONNX file (onnxruntime, OpenVINO, TensorRT) or as a program of torch.export, "
        "once it has given\nthe same numbers: what OUT ends in says which. It takes some seconds to half a minute.",
        epilog="examples:\n  segzoo export u2net_lite u2net_lite.onnx\n"
        "  segzoo export u2net_lite small.onnx --int8 photos/            eight bits, by some pictures of yours\n"
        "  segzoo export unet unet.onnx --weights mine.safetensors --size 512x512 --batch 4 --probabilities\n"
        "  segzoo export u2net_lite u2net_lite.pt2\n\n"
        "then: segzoo cutout --model u2net_lite.onnx photo.jpg out.png",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    export.add_argument("model", metavar="MODEL", help="see segzoo list; or local-dir:PATH, hf-hub:org/repo")
    export.add_argument("output", metavar="OUT", help="a .onnx or a .pt2 file")
    export.add_argument("--weights", metavar="FILE", help="your own weights for it: .safetensors, .pth or .onnx")
    export.add_argument(
        "--size", type=_size, metavar="HxW", help="of all pictures; by default both are free, from 33 pixels on"
    )
    export.add_argument("--batch", type=int, metavar="N", help="pictures at once, with --size (default: 1)")
    export.add_argument("--opset", type=int, metavar="N", help="of ONNX, 18 to 23 (default: 20)")
    export.add_argument(
        "--probabilities", action="store_true", help="with the sigmoid or softmax in it, instead of logits"
    )
    export.add_argument("--int8", metavar="PICTURES", help="quantize, by a folder of pictures of the usual kind")
    export.add_argument("--overwrite", action="store_true", help="replace OUT where it is there")
    export.set_defaults(run=_export)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no size, expected HxW as in 512x512")
    return int(height), int(width)


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="score predictions, or a model, against masks",
        description="Score a folder of predictions against a folder of masks, or a model on a folder of pictures.\n"
        "Files belong together by their names without the ending: maps/0001.png and masks/0001.png.",
        epilog="examples:\n"
        "  segzoo evaluate maps/ masks/                                 grey maps of salient objects\n"
        "  segzoo evaluate maps/ masks/ --json scores.json --csv pictures.csv\n"
        "  segzoo evaluate photos/ masks/ --model u2net_lite.duts       predict, then score\n"
        "  segzoo evaluate labels/ truth/ --num-classes 11 --ignore-index 11 --boundary\n\n"
        "exit code: 0 all were scored; 1 some failed or have no partner (they are named); 2 wrong arguments",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate.add_argument(
        "predictions", metavar="PREDICTIONS", help="a folder of predictions, or one; with --model, of pictures"
    )
    evaluate.add_argument("masks", metavar="MASKS", help="a folder of masks, or one")
    evaluate.add_argument("--boundary", action="store_true", help="measure the rims, too: Hausdorff distance, …")
    evaluate.add_argument(
        "--tolerance", type=float, metavar="PIXELS", help="up to which rims agree, with --boundary (default: 2)"
    )
    evaluate.add_argument(
        "--resize",
        action="store_true",
        help="resize predictions to their masks (bilinear; labels nearest) instead of refusing other sizes",
    )
    evaluate.add_argument("--recursive", action="store_true", help="follow folders in the folders")
    evaluate.add_argument(
        "--workers", type=int, default=2, metavar="N", help="threads that read (default: %(default)s)"
    )
    evaluate.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help="open pictures of up to N pixels, if you trust them (default: what Pillow opens, about 179 million)",
    )
    evaluate.add_argument("--quiet", action="store_true", help="no progress bar; failures are still named")
    output = evaluate.add_argument_group("output", "The table goes to standard output.")
    output.add_argument("--json", metavar="FILE", help="write everything, curves too; - for standard output")
    output.add_argument("--csv", metavar="FILE", help="write a row for each picture; - for standard output")
    salient = evaluate.add_argument_group("salient objects (grey predictions 0…255, the default)")
    salient.add_argument(
        "--protocol", metavar="NAME", help="whose digits: pysod, paper or tutorial (default: pysod, PySODMetrics)"
    )
    salient.add_argument(
        "--no-normalize", action="store_true", help="predictions as they are, not stretched to 0…1 each"
    )
    classes = evaluate.add_argument_group("classes (label maps: grey or palette pictures whose values are classes)")
    classes.add_argument("--num-classes", type=int, metavar="N", help="how many; 1 is an object, 0/1 or 0…255")
    classes.add_argument("--classes", metavar="A,B", help="their names, in order")
    classes.add_argument(
        "--ignore-index", metavar="N", help="label in the masks that does not count, or none (default: 255)"
    )
    model = evaluate.add_argument_group("a model to predict with")
    model.add_argument("--model", metavar="NAME", help="see segzoo list; or a .onnx file")
    model.add_argument("--weights", metavar="FILE", help="your own weights for it: .safetensors, .pth or .onnx")
    _add_backend(model)
    model.add_argument("--device", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    model.add_argument(
        "--precision", choices=["auto", "fp32", "bf16", "fp16"], help="of the computation (default: fp32)"
    )
    model.add_argument("--batch-size", type=int, metavar="N", help="pictures at once (default: 1)")
    _add_better(model)
    evaluate.set_defaults(run=_evaluate)


def _add_picture_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", metavar="IN", nargs="+", help="a picture, several, a folder, or - for standard input")
    parser.add_argument(
        "output",
        metavar="OUT",
        help="a file, whose ending names the format; a folder for several; or - for standard output (PNG)",
    )
    parser.add_argument(
        "--model",
        default="u2net_lite.duts",
        metavar="NAME",
        help="see segzoo list; or a .onnx file (default: %(default)s)",
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="your own weights for that model: .safetensors, .pth or .onnx"
    )
    _add_backend(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace OUT where it lies beside the picture")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    parser.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "fp32", "bf16", "fp16"],
        help="of the computation; the narrow ones change results a little (default: %(default)s, a narrow one where "
        "that was checked on a data set and the machine computes in it)",
    )
    parser.add_argument(
        "--min-max", action="store_true", help="stretch each prediction to 0…1, as U²-Net's evaluation does"
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help="open pictures of up to N pixels, if you trust them (default: what Pillow opens, about 179 million)",
    )
    _add_better(parser.add_argument_group("better masks, for more time"))
    folder = parser.add_argument_group("several pictures")
    folder.add_argument("--recursive", action="store_true", help="follow folders in the folder")
    folder.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="pictures at once (default: %(default)s)"
    )
    folder.add_argument(
        "--workers", type=int, default=2, metavar="N", help="threads to read and write (default: %(default)s)"
    )
    folder.add_argument("--suffix", default=".png", help="ending of the results (default: %(default)s)")
    folder.add_argument("--quiet", action="store_true", help="no progress bar and no summary; failures are still named")


def _add_backend(parser: Any) -> None:
    parser.add_argument(
        "--backend",
        choices=["torch", "onnxruntime", "openvino"],
        help="what runs the model, with the results of torch in fp32 (default: onnxruntime for a .onnx file, else "
        "torch)",
    )


def _add_better(parser: Any) -> None:
    """What a prediction is put together from, and what becomes of it."""
    parser.add_argument(
        "--tta",
        metavar="HOW",
        help="the mean of several looks: flip (mirrored, too), multi-scale (eight scales, mirrored), or scales such "
        "as 0.75,1,1.25",
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="look at the picture at its own size, in overlapping windows: for models of small things",
    )
    parser.add_argument(
        "--refine",
        choices=["guided", "crf"],
        help="draw rims to the picture's edges: by a guided filter (quick), or a conditional random field (seconds for "
        "each megapixel)",
    )
    parser.add_argument(
        "--largest", action="store_true", help="keep the largest connected part of each object only; not with classes"
    )
    parser.add_argument(
        "--min-area",
        type=float,
        metavar="A",
        help="fill holes and drop specks smaller than A pixels; below 1: than that share of the picture",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 some pictures failed, 2 bad input."""
    parser = _build_parser()
    args = parser.parse_args(arguments)
    if args.version:
        from segzoo import __version__

        print(f"segzoo {__version__}")
        return _DONE
    if args.command is None:
        parser.print_help(sys.stderr)
        return _BAD_INPUT
    try:
        code: int = args.run(args)
        return code
    except BrokenPipeError:
        raise
    except (OSError, ValueError, TypeError, RuntimeError, MemoryError, ImportError) as error:
        print(f"segzoo: error: {_sentence(error)}", file=sys.stderr)
        return _BAD_INPUT


def run() -> None:
    """The console script: ``main`` with the manners of a Unix program about Ctrl-C and closed pipes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without β or … shows a ?, not an error
    try:
        code = main()
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except BrokenPipeError:  # the reader has gone: nothing more to say, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _SOME_FAILED
    sys.exit(code)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return "not enough memory"
    text = " ".join(str(error).split()) or type(error).__name__
    return text.replace("raise PIL.Image.MAX_IMAGE_PIXELS", "use --max-pixels")


def _cutout(args: argparse.Namespace) -> int:
    classes = [int(c) if c.isdecimal() else c for c in args.classes.split(",")] if args.classes else None
    return _pictures(
        args, "cutout", background=args.background, hard=args.hard, clean_rim=args.clean_rim, classes=classes
    )


def _predict(args: argparse.Namespace) -> int:
    return _pictures(args, args.kind)


def _pictures(args: argparse.Namespace, kind: Any, **options: Any) -> int:
    """One picture to one file, or several to a folder; what can be checked without the model is checked first."""
    if "" in (*args.inputs, args.output):
        raise ValueError("a path is empty: IN and OUT are a picture, a folder or -")
    if len(args.inputs) > 1 or Path(args.inputs[0]).is_dir():
        if "-" in args.inputs:
            raise ValueError("- (standard input) is one picture and goes alone")
        if args.output == "-":
            raise ValueError("several pictures go to a folder, not to standard output")
        if Path(args.output).exists() and not Path(args.output).is_dir():
            raise ValueError(f"{args.output} is a file; several pictures go to a folder")
        return _folder(args, _predictor(args), kind, options)
    if args.inputs[0] != "-" and not Path(args.inputs[0]).exists():
        raise FileNotFoundError(f"there is no picture {args.inputs[0]}")
    background = options.get("background")
    if background is not None:
        from segzoo.inference.colours import parse_colour

        parse_colour(background)
    target = _standard_output() if args.output == "-" else _target_file(args, kind, background)
    source = _standard_input() if args.inputs[0] == "-" else args.inputs[0]
    _predictor(args)(source).save(target, kind, **options)
    return _DONE


def _standard_input() -> IO[bytes]:
    """What comes in through the pipe, whole: a picture needs seeking, and a pipe has none."""
    content = sys.stdin.buffer.read() if sys.stdin is not None else b""
    if not content:
        raise ValueError("standard input is empty, expected a picture")
    stream = io.BytesIO(content)
    stream.name = "standard input"
    return stream


def _standard_output() -> IO[bytes]:
    if sys.stdout is None:
        raise ValueError("standard output is closed")
    if sys.stdout.isatty():
        raise ValueError("standard output is a terminal: send the picture on, as in … - > out.png")
    return sys.stdout.buffer


def _target_file(args: argparse.Namespace, kind: Any, background: str | None) -> str:
    """The file that one picture becomes, refused now if it cannot be written."""
    from segzoo.inference.picture import check_output
    from segzoo.inference.prediction import output_mode

    path = Path(args.output)
    if args.output.endswith(("/", os.sep)) and not path.is_dir():
        raise FileNotFoundError(f"there is no folder {args.output}")
    if path.is_dir():
        name = "stdin" if args.inputs[0] == "-" else Path(args.inputs[0]).stem
        path /= f"{name}{args.suffix}"
    check_output(path, output_mode(kind, background))
    if args.inputs[0] == "-" or not path.exists():
        return str(path)
    if path.samefile(args.inputs[0]):
        raise ValueError(f"{path} is the picture itself: choose another output")
    if path.resolve().parent == Path(args.inputs[0]).resolve().parent and not args.overwrite:
        # a pattern like *.png that happens to match two pictures must not cost one of them
        raise ValueError(
            f"{path} is there already, beside the picture: --overwrite replaces it; several go to a folder"
        )
    return str(path)


def _open_as_asked(args: argparse.Namespace) -> None:
    """What pictures Pillow opens, and what it says of them."""
    from PIL import Image

    if args.max_pixels is not None:
        if args.max_pixels < 1:
            raise ValueError(f"--max-pixels must be at least 1, got {args.max_pixels}")
        Image.MAX_IMAGE_PIXELS = -(-args.max_pixels // 2)  # Pillow refuses above twice this number
    # Pillow warns of large pictures and of damaged metadata; what cannot be read is an error anyway.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _predictor(args: argparse.Namespace) -> Predictor:
    import segzoo
    from segzoo.inference.runtimes import backend_for

    _open_as_asked(args)
    model: Any = _with_weights(args)
    postprocess = _postprocess(args)
    predictor = segzoo.Predictor(
        model,
        backend=args.backend,
        device=args.device,
        precision=args.precision,
        tta=_tta(args.tta),
        tile=args.tile,
        batch_size=args.batch_size,
        min_max=args.min_max,
        postprocess=postprocess,
        progress=args.tile is not None and not args.quiet and _one_picture(args),
        tune_allocator=backend_for(model, args.backend) == "torch",  # the process is ours alone
    )
    if args.largest and predictor.shares_pixels:
        raise ValueError(f"--largest keeps one object, and {args.model} has several classes: give --min-area")
    return predictor


def _with_weights(args: argparse.Namespace) -> Any:
    """The model's name, or with ``--weights`` the model."""
    if not args.weights:
        return args.model
    import segzoo
    from segzoo.inference.runtimes import is_onnx
    from segzoo.weights.resolve import is_saved

    if is_saved(args.model) or is_onnx(args.model):
        raise ValueError(f"--weights is for a model by name, and {args.model} brings its own")
    return segzoo.create_model(args.model.partition(".")[0], weights=args.weights)


def _one_picture(args: argparse.Namespace) -> bool:
    """Several have a bar of their own."""
    inputs: list[str] = getattr(args, "inputs", [])
    return len(inputs) == 1 and not Path(inputs[0]).is_dir()


def _tta(how: str | None) -> Any:
    """The word or the scales that ``Predictor`` takes."""
    if how is None or how in ("flip", "multi-scale"):
        return how
    try:
        return tuple(float(scale) for scale in how.split(","))
    except ValueError:
        raise ValueError(f"--tta is {how!r}, expected flip, multi-scale, or scales such as 0.75,1,1.25") from None


def _postprocess(args: argparse.Namespace) -> Callable[[Prediction], Prediction] | None:
    """What becomes of each prediction before it is written."""
    refine, largest, min_area = args.refine, args.largest, args.min_area
    if min_area is not None and not 0 <= min_area < float("inf"):
        raise ValueError(f"--min-area is {min_area:g}, expected pixels, or a share of the picture below 1")
    if not (refine or largest or min_area):
        return None

    def better(prediction: Prediction) -> Prediction:
        prediction = prediction.refined(refine) if refine else prediction
        return prediction.tidied(largest=largest, min_area=min_area or 0) if largest or min_area else prediction

    steps = {f"refine {refine}": refine, "largest": largest, f"min-area {min_area}": min_area}
    better.__name__ = ", ".join(step for step, taken in steps.items() if taken)
    return better


def _folder(args: argparse.Namespace, predictor: Predictor, kind: Any, options: dict[str, Any]) -> int:
    from segzoo.inference import predict_folder

    report = predict_folder(
        predictor,
        args.inputs if len(args.inputs) > 1 else args.inputs[0],
        args.output,
        kind,
        suffix=args.suffix,
        recursive=args.recursive,
        workers=args.workers,
        progress=not args.quiet,
        **options,
    )
    _name_failed(report.failed)
    if not args.quiet:
        failed = f", {len(report.failed)} failed" if report.failed else ""
        print(f"{len(report.written)} written to {args.output}{failed}", file=sys.stderr)
    return _SOME_FAILED if report.failed else _DONE


def _name_failed(failed: Mapping[Path, Exception]) -> None:
    for source, error in failed.items():
        sentence = _sentence(error)
        named = sentence if str(source) in sentence else f"{source}: {sentence}"
        print(f"segzoo: skipped: {named}", file=sys.stderr)


def _evaluate(args: argparse.Namespace) -> int:
    _check_outputs(args)
    model_only = {"--weights": args.weights, "--backend": args.backend, "--device": args.device}
    model_only |= {"--precision": args.precision, "--batch-size": args.batch_size, "--tta": args.tta}
    model_only |= {"--tile": args.tile, "--refine": args.refine, "--largest": args.largest or None}
    model_only |= {"--min-area": args.min_area}
    if given := [name for name, value in model_only.items() if value is not None and args.model is None]:
        raise ValueError(f"{given[0]} is for a model to predict with: give --model, too")
    from segzoo.inference import evaluate

    options = _evaluate_options(args)
    model: Predictor | None = None
    if args.model is None:
        _open_as_asked(args)
    else:
        for path in (args.predictions, args.masks):  # a model takes time to load
            if not path or not Path(path).exists():
                raise FileNotFoundError(f"there is no folder or picture {path}")
        args.device, args.precision = args.device or "auto", args.precision or "fp32"
        args.batch_size, args.min_max = 1 if args.batch_size is None else args.batch_size, False
        model = _predictor(args)
    found = evaluate(
        args.predictions,
        args.masks,
        model=model,
        boundary=args.boundary,
        resize=args.resize,
        recursive=args.recursive,
        workers=args.workers,
        progress=not args.quiet,
        **options,
    )
    if args.weights:
        found.settings |= {"model": args.model, "weights": args.weights}
    _name_failed(found.failed)
    pictures = "picture" if args.model else "prediction"
    _name_unmatched(found.unmatched_predictions, "mask")
    _name_unmatched(found.unmatched_masks, pictures)
    for path, text, write in (
        (args.json, found.to_json, found.write_json),
        (args.csv, found.to_csv, found.write_csv),
    ):
        if path == "-":
            print(text(), end="")
        elif path:
            write(path)
    if "-" not in (args.json, args.csv):
        print(found.table())
    return _DONE if found.complete else _SOME_FAILED


def _evaluate_options(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that the library has defaults of its own for."""
    options: dict[str, Any] = {"num_classes": args.num_classes}
    if args.no_normalize:
        options["normalize"] = False
    if args.classes is not None:
        options["class_names"] = [name.strip() for name in args.classes.split(",")]
    if args.ignore_index is not None:
        try:
            options["ignore_index"] = None if args.ignore_index == "none" else int(args.ignore_index)
        except ValueError:
            raise ValueError(f"--ignore-index is {args.ignore_index!r}, expected a label or none") from None
    for name in ("protocol", "tolerance"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    return options


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuse now what could not be written after the work."""
    from segzoo._files import check_writable

    paths = [path for path in (args.json, args.csv) if path is not None]
    for path in paths:
        if path != "-":
            check_writable(path)
        elif sys.stdout is None:
            raise ValueError("standard output is closed")
    if len(paths) == 2 and (paths[0] == paths[1] or Path(paths[0]).resolve() == Path(paths[1]).resolve()):
        raise ValueError(f"--json and --csv are both {paths[0]}: give each a file of its own")


def _name_unmatched(paths: Sequence[Path], partner: str) -> None:
    for path in paths[:_MOST_NAMED]:
        print(f"segzoo: skipped: {path} has no {partner}", file=sys.stderr)
    if (rest := len(paths) - _MOST_NAMED) > 0:
        print(f"segzoo: skipped: {rest:,} more have no {partner} (--json names them)", file=sys.stderr)


def _list(args: argparse.Namespace) -> int:
    import segzoo
    from segzoo.registry import task_of

    names = segzoo.list_models(args.pattern, task=args.task, pretrained=True if args.pretrained else None)
    if not names:
        raise ValueError(f"no model matches {args.pattern!r}; segzoo list shows all")
    rows = [("MODEL", "TASK", "PARAMETERS", "WEIGHTS")]
    for name in names:
        first, *more = segzoo.list_weights(name) or ["-"]
        rows.append((name, task_of(name), f"{_parameters(name):,}", first))
        rows += [("", "", "", weights) for weights in more]
    print(_table(rows))
    return _DONE


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def _parameters(name: str) -> int:
    import torch

    from segzoo.registry import create_untrained

    with torch.device("meta"):
        model = create_untrained(name)
    return sum(p.numel() for p in model.parameters())


def _convert(args: argparse.Namespace) -> int:
    from segzoo.models import convert_checkpoint

    arguments = {} if args.encoder is None else {"encoder": args.encoder}
    arguments |= dict(_setting(text) for text in args.set)
    if Path(args.output).is_file() and not args.overwrite:
        raise FileExistsError(f"{args.output} is there already: name another file, or replace it with --overwrite")
    done = convert_checkpoint(
        args.input, args.output, architecture=args.architecture, overwrite=args.overwrite, **arguments
    )
    print(_json(done.to_json()) if args.json else done.report())
    return _DONE


def _export(args: argparse.Namespace) -> int:
    kind = Path(args.output).suffix.lower()
    if kind not in (".onnx", ".pt2"):
        raise ValueError(f"{args.output} ends in {kind or 'nothing'}, expected .onnx or .pt2")
    if kind == ".pt2" and (args.opset is not None or args.int8):
        raise ValueError(f"{'--int8' if args.int8 else '--opset'} is of .onnx files")
    if args.int8 and (args.size or args.batch is not None or args.opset is not None or args.probabilities):
        raise ValueError("--int8 makes a file of free sizes with logits: leave out --size, --batch, --opset and so on")
    if args.batch is not None and args.size is None:
        raise ValueError("--batch is of a file of one size: give --size, too")
    if Path(args.output).exists() and not args.overwrite:
        raise FileExistsError(f"{args.output} is there already: name another file, or replace it with --overwrite")
    if args.int8 and not Path(args.int8).is_dir():
        raise FileNotFoundError(f"there is no folder {args.int8}")
    from segzoo.export import quantize, to_onnx, to_program

    model: Any = _with_weights(args)
    if args.int8:
        print(quantize(model, args.int8, args.output))
        return _DONE
    batch = 1 if args.batch is None else args.batch
    fixed = {} if args.size is None else {"dynamic": False, "size": args.size, "batch": batch}
    if kind == ".pt2":
        to_program(model, args.output, include_postprocessing=args.probabilities, **fixed)
        agrees = "agrees with the model to 1e-4 of its outputs' range"
    else:
        options = {} if args.opset is None else {"opset": args.opset}
        difference = to_onnx(model, args.output, include_postprocessing=args.probabilities, **fixed, **options)
        agrees = f"differs from the model by {difference:.0e} of its outputs' range"
    free = "N, H and W free (from 33 pixels on)"
    if args.size is not None:
        free = f"{batch} picture{'s' if batch > 1 else ''} of {args.size[0]}×{args.size[1]}"
    print(f"{args.output}: {Path(args.output).stat().st_size / 1e6:.1f} MB, {free}, {agrees}")
    return _DONE


def _setting(text: str) -> tuple[str, Any]:
    """``rates=6,12,18`` as an argument's name and value: JSON, several of it, or a word."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"--set is {text!r}, expected NAME=VALUE, as norm=group")

    def read(word: str) -> Any:
        try:
            return json.loads(word)
        except ValueError:
            return {"True": True, "False": False, "None": None}.get(word, word)

    several = [read(word) for word in value.split(",")]
    return name, several if "," in value and not value.startswith("[") else read(value)


def _download(args: argparse.Namespace) -> int:
    from segzoo.weights import download

    failed = 0
    for name in [_weights_of(name) for name in args.names]:  # a wrong name is said before anything is fetched
        try:
            path = download(name, cache_dir=args.cache_dir, force_download=args.force, progress=not args.quiet)
        except (OSError, ValueError) as error:
            print(f"segzoo: error: {_sentence(error)}", file=sys.stderr)
            failed += 1
        else:
            print(f"{name}  {path}")
    return _DONE if not failed else _SOME_FAILED if failed < len(args.names) else _BAD_INPUT


def _weights_of(name: str) -> str:
    """The name of weights; a model's means those its factory loads."""
    import segzoo
    from segzoo.registry import default_weights

    if ":" in name or "." in name or name not in segzoo.list_models():
        if ":" not in name:
            segzoo.get_weights(name)
        return name
    default = default_weights(name)
    if default is None:
        known = ", ".join(segzoo.list_weights(name))
        raise ValueError(f"{name} loads no weights by default{f', expected one of {known}' if known else ''}")
    return f"{name}.{default}"


def _info(args: argparse.Namespace) -> int:
    import segzoo
    from segzoo.registry import find_factory, task_of
    from segzoo.weights.resolve import describe, is_saved

    if is_saved(args.name) or "." in args.name:
        record = describe(args.name) if is_saved(args.name) else segzoo.get_weights(args.name)
        print(_json(record.to_dict()) if args.json else _table(_record_rows(record)))
        return _DONE
    factory = find_factory(args.name)
    if factory is None:
        from segzoo._errors import unknown_name

        raise unknown_name("model", args.name, [*segzoo.list_models(), *segzoo.list_weights()])
    records = [segzoo.get_weights(name) for name in segzoo.list_weights(args.name)]
    about = {
        "model": args.name,
        "about": (factory.__doc__ or "").strip().splitlines()[0],
        "task": task_of(args.name),
        "parameters": _parameters(args.name),
    }
    if args.json:
        print(_json({**about, "weights": [record.to_dict() for record in records]}))
        return _DONE
    print(_table([(key, f"{value:,}" if isinstance(value, int) else value) for key, value in about.items()]))
    for record in records:
        print("\n" + _table(_record_rows(record)))
    return _DONE


def _json(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False)


def _record_rows(record: Any) -> list[tuple[str, str]]:
    p = record.preprocessing
    scale = "its own maximum" if p.scale == "max" else "255"
    if isinstance(p.size, int):
        size = f"shorter side {p.size} ({p.interpolation}), "
    else:
        size = f"resized to {p.size[0]}×{p.size[1]} ({p.interpolation}), " if p.size else ""
    rows = [
        ("weights", record.name),
        ("licence", record.license + ("" if record.commercial is not False else " — NOT FOR COMMERCIAL USE")),
        (
            "",
            ""
            if record.commercial is not None or not record.code_license
            else "(its code's: of the weights apart their publisher says nothing)",
        ),
        ("code", record.code_license),
        ("source", record.source),
        ("trained on", record.training_data),
        ("data licence", record.data_license),
        ("paper", record.paper),
        ("classes", ", ".join(record.classes)),
        ("input", f"{record.in_channels} channels, {size}divided by {scale}, mean {p.mean}, std {p.std}"),
        ("threshold", f"{record.threshold:g}"),
        ("precision", f"{', '.join(record.precision_ok)} checked" if record.precision_ok else "not measured here"),
    ]
    if record.arguments:
        rows.insert(1, ("built with", ", ".join(f"{name}={value!r}" for name, value in record.arguments.items())))
    if record.calibration != "":
        rows.append(("norms", f"folded by the publisher; statistics {_calibrated(record.calibration)}"))
    for origin, tables in (("measured here", record.metrics), ("published", record.published_metrics)):
        for data_set, values in tables.items():
            figures = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            rows.append((data_set, f"{figures} ({origin})"))
    rows.append(("protocol", record.protocol))
    for source in record.sources:
        size = f", {source.size:,} bytes" if source.size else ""
        rows.append(("file", f"{source if source.kind == 'hub' else f'{source.kind}: {source}'}{size}"))
        if source.sha256 is None:
            rows.append(("", "sha256 not published; the Hub's own is checked"))
        else:
            rows.append(("", f"sha256 {source.sha256}{'' if len(source.sha256) == 64 else '… (its first digits)'}"))
        if source.md5:
            rows.append(("", f"md5 {source.md5}"))
    return [row for row in rows if row[1]]


def _calibrated(calibration: str | None) -> str:
    return (
        f"measured again on {calibration}"
        if calibration
        else "not measured again: segzoo.weights.recalibrate before training"
    )
