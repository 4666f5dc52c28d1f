"""The published checkpoints: one immutable record each, from which tables, cards and ``segzoo info`` are made."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal

from segzoo._errors import unknown_name

__all__ = ["Preprocessing", "Source", "Weights", "get_weights", "list_weights"]


@dataclass(frozen=True)
class Preprocessing:
    """What a picture goes through before a model sees it.

    The picture (8 bit) is resized, divided by ``scale``, and normalised per channel: (x − mean) / std.

    Args:
        size: Height and width in pixels that the picture is resized to; or one int: its shorter side; or None to keep
            its own size.
        interpolation: ``"bilinear"`` (with anti-aliasing when the picture shrinks).
        scale: ``"255"``, or ``"max"``: the picture's own largest value, over all its channels (1 if it is all black).
        mean: Per channel, subtracted after scaling.
        std: Per channel.
    """

    size: tuple[int, int] | int | None = (320, 320)
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    scale: Literal["255", "max"] = "255"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def size_for(self, size: tuple[int, int]) -> tuple[int, int]:
        """The height and width that a picture of ``size`` (height, width) is resized to.

        Examples:
            >>> Preprocessing(size=520).size_for((1040, 2081))
            (520, 1040)
        """
        if self.size is None:
            return size
        if isinstance(self.size, int):
            shorter = min(size)
            height, width = (self.size * side // shorter for side in size)
            return height, width
        return self.size

    def for_channels(self, channels: int) -> Preprocessing:
        """The same for another number of channels: further ones, or all of fewer, get the average mean and std.

        Examples:
            >>> Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2)).for_channels(1).mean
            (0.5,)
        """
        if channels == len(self.mean):
            return self
        mean, std = (self._extended(values, channels) for values in (self.mean, self.std))
        return replace(self, mean=mean, std=std)

    @staticmethod
    def _extended(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
        average = (round(sum(values) / len(values), 6),)
        more = channels - len(values)
        return values + average * more if more > 0 else average * channels


@dataclass(frozen=True)
class Source:
    """One place a checkpoint's file is at.

    Args:
        kind: ``"bundled"`` (a file inside the package) or ``"url"`` (its publisher's).
        location: The file's name, or the whole URL.
        sha256: Of that very file: 64 hex digits, or the first 8 where its publisher gives no more (torchvision).
    """

    kind: Literal["bundled", "url"]
    location: str
    sha256: str


@dataclass(frozen=True)
class Weights:
    """The record of one published checkpoint.

    Args:
        name: ``"architecture.tag"``.
        num_classes: Output channels.
        in_channels: Input channels.
        classes: Their names; one class is the foreground.
        sources: Where the file is, tried in this order; each with its sha256.
        license: Of the weights, as an SPDX name.
        source: Who published them, where.
        training_data: With its licence.
        paper: Where the model and its figures were published.
        preprocessing: What a picture goes through before.
        protocol: What the published evaluation adds to a plain prediction, in words.
        min_max: Whether that includes stretching every prediction to 0…1.
        threshold: Probability above which a pixel is foreground in a mask.
        calibration: Of checkpoints whose batch norms had been folded into the convolutions: which pictures the
            statistics were measured on again; None where they were not. Empty where the norms are the publisher's own.
        precision_ok: Precisions in which the metrics were checked to hold, here.
        metrics: {data set: {metric: value}}, measured with this project's own code by the protocol.
        published_metrics: The same as its publishers give them.

    Examples:
        >>> get_weights("u2net_lite.duts").license
        'Apache-2.0'
    """

    name: str
    num_classes: int
    in_channels: int
    classes: tuple[str, ...]
    sources: tuple[Source, ...]
    license: str
    source: str
    training_data: str
    paper: str
    preprocessing: Preprocessing
    protocol: str
    min_max: bool = False
    threshold: float = 0.5
    calibration: str | None = ""
    precision_ok: tuple[str, ...] = ()
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    published_metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("metrics", "published_metrics"):
            tables = {data_set: MappingProxyType(dict(v)) for data_set, v in getattr(self, name).items()}
            object.__setattr__(self, name, MappingProxyType(tables))

    def __hash__(self) -> int:
        return hash((self.name, self.sources))

    def __reduce__(self) -> tuple[Any, ...]:  # read-only mappings cannot be pickled or copied as they are
        return _rebuild, (self._plain(),)

    def _plain(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("metrics", "published_metrics"):
            values[name] = {data_set: dict(v) for data_set, v in values[name].items()}
        return values

    def to_dict(self) -> dict[str, Any]:
        """The record as plain dictionaries, for ``json.dumps``.

        Examples:
            >>> get_weights("u2net_lite.duts").to_dict()["preprocessing"]["size"]
            (320, 320)
        """
        values = self._plain()
        values["preprocessing"] = asdict(self.preprocessing)
        values["sources"] = [asdict(source) for source in self.sources]
        return values

    @property
    def architecture(self) -> str:
        """The factory's name: ``"u2net_lite"``."""
        return self.name.partition(".")[0]

    @property
    def tag(self) -> str:
        """What ``weights=`` takes: ``"duts"``."""
        return self.name.partition(".")[2]

    @property
    def sha256(self) -> str:
        """Of the first source's file."""
        return self.sources[0].sha256


def _rebuild(values: dict[str, Any]) -> Weights:
    return Weights(**values)


_SALIENT = ("foreground",)
_U2NET_PAPER = (
    "Qin et al., U²-Net: Going Deeper with Nested U-Structure for Salient Object Detection, 2020, arXiv:2005.09007"
)
_DUTS = "DUTS-TR (10,553 pictures; Wang et al. 2017; published for research, pictures from ImageNet)"
_REMBG = "https://github.com/danielgatis/rembg/releases/download/v0.0.0/"
_U2NET_PROTOCOL = (
    "U²-Net's own evaluation: min-max of each 320×320 prediction, 8 bit, bilinear back to the picture's size; "
    "max F (β² = 0.3) is the maximum of F over the data set's mean precision and recall curves"
)

_ISNET_PROTOCOL = (
    "IS-Net's own inference: the picture squashed to 1024×1024 (bilinear without anti-aliasing, cut to 8 bit), the "
    "map bilinear back to the picture's size, then min-max"
)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


_VOC = _names(
    "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, dining table, dog, horse, "
    "motorbike, person, potted plant, sheep, sofa, train, tv monitor"
)
# Names of categories that COCO's annotations leave out keep their numbers.
_COCO = _names(
    "background, person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire "
    "hydrant, N/A, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, "
    "giraffe, N/A, backpack, umbrella, N/A, N/A, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, "
    "kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, N/A, wine glass, cup, "
    "fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, "
    "chair, couch, potted plant, bed, N/A, dining table, N/A, N/A, toilet, N/A, tv, laptop, mouse, remote, "
    "keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, N/A, book, clock, vase, scissors, teddy "
    "bear, hair drier, toothbrush"
)
_TORCHVISION = (
    "torchvision, {}, https://github.com/pytorch/vision; it publishes 8 digits of the sha256, and no licence of the "
    "weights apart from its code's"
)


def _torchvision(architecture: str, file: str, sha256: str, miou: float, pixel_accuracy: float, paper: str) -> Weights:
    """One of torchvision's segmentation checkpoints; they differ in little."""
    return Weights(
        name=f"{architecture}.coco_voc",
        num_classes=21,
        in_channels=3,
        classes=_VOC,
        sources=(Source("url", f"https://download.pytorch.org/models/{file}-{sha256}.pth", sha256),),
        license="BSD-3-Clause",
        source=_TORCHVISION.format("COCO_WITH_VOC_LABELS_V1"),
        training_data=(
            "pictures of COCO train2017 with classes of Pascal VOC (annotations CC BY 4.0, pictures under Flickr's "
            "terms); backbone from ImageNet-1k (research only)"
        ),
        paper=paper,
        preprocessing=Preprocessing(size=520),
        protocol="torchvision's references: shorter side 520, COCO val2017 with Pascal VOC's labels, mean IoU",
        published_metrics={"COCO val2017, VOC labels": {"miou": miou, "pixel_accuracy": pixel_accuracy}},
    )


_FCN = "Long et al., Fully Convolutional Networks for Semantic Segmentation, 2015, arXiv:1411.4038"
_DEEPLAB = "Chen et al., Rethinking Atrous Convolution for Semantic Image Segmentation, 2017, arXiv:1706.05587"
_MOBILENET = "Howard et al., Searching for MobileNetV3, 2019, arXiv:1905.02244"

SEMANTIC_PREPROCESSING = Preprocessing(size=None)
U2NET_PREPROCESSING = Preprocessing(scale="max")
# By 255, as the authors' code divides in training, evaluation and inference; rembg divides by the picture's largest
# value, as for U²-Net, which shows the network dark pictures brighter than it has learnt them.
ISNET_PREPROCESSING = Preprocessing(size=(1024, 1024), mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))

_RECORDS = (
    Weights(
        name="u2net_lite.duts",
        num_classes=1,
        in_channels=3,
        classes=_SALIENT,
        sources=(
            Source(
                "bundled",
                "u2net_lite.duts.safetensors",
                sha256="273639a5008fbad0f55e2fb1944ad8b043ccba6ed4cf3ccdbeff24127c460f27",
            ),
            Source(
                "url",
                _REMBG + "u2netp.onnx",
                sha256="309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
            ),
        ),
        license="Apache-2.0",
        source="X. Qin et al., U²-Netp (U²-Net†), https://github.com/xuebinqin/U-2-Net, from rembg's ONNX file",
        training_data=_DUTS,
        paper=_U2NET_PAPER,
        preprocessing=U2NET_PREPROCESSING,
        protocol=_U2NET_PROTOCOL,
        min_max=True,
        precision_ok=("fp32",),
        calibration="ECSSD 0001 to 0797, every fourth picture (200), at 320×320: means and variances only",
        metrics={"ECSSD": {"max_f": 0.9430, "mae": 0.0412, "weighted_f": 0.8847, "s_measure": 0.9175}},
        published_metrics={"ECSSD": {"max_f": 0.943, "mae": 0.041, "weighted_f": 0.885, "s_measure": 0.918}},
    ),
    Weights(
        name="u2net_full.duts",
        num_classes=1,
        in_channels=3,
        classes=_SALIENT,
        sources=(
            Source(
                "url",
                _REMBG + "u2net.onnx",
                sha256="8d10d2f3bb75ae3b6d527c77944fc5e7dcd94b29809d47a739a7a728a912b491",
            ),
        ),
        license="Apache-2.0",
        source="X. Qin et al., U²-Net, https://github.com/xuebinqin/U-2-Net, as rembg's ONNX file",
        training_data=_DUTS,
        paper=_U2NET_PAPER,
        preprocessing=U2NET_PREPROCESSING,
        protocol=_U2NET_PROTOCOL,
        min_max=True,
        calibration=None,
        published_metrics={"ECSSD": {"mae": 0.033}},
    ),
    Weights(
        name="isnet.general",
        num_classes=1,
        in_channels=3,
        classes=_SALIENT,
        sources=(
            Source(
                "url",
                _REMBG + "isnet-general-use.onnx",
                sha256="60920e99c45464f2ba57bee2ad08c919a52bbf852739e96947fbb4358c0d964a",
            ),
        ),
        license="Apache-2.0",
        source=(
            "X. Qin et al., IS-Net for general use, https://github.com/xuebinqin/DIS, as rembg's ONNX file; the "
            "repository's licence names its code and metric, and nothing is said of the weights apart"
        ),
        training_data=(
            "DIS5K (5,470 pictures; non-commercial research and education only, by its terms of use); its publisher "
            "does not say what else these weights were trained on"
        ),
        paper="Qin et al., Highly Accurate Dichotomous Image Segmentation, ECCV 2022, arXiv:2203.03041",
        preprocessing=ISNET_PREPROCESSING,
        protocol=_ISNET_PROTOCOL,
        min_max=True,
        calibration=None,
        # The paper's figures on DIS5K are of another checkpoint, isnet.pth.
    ),
    _torchvision("fcn_resnet50", "fcn_resnet50_coco", "1167a1af", 0.605, 0.914, _FCN),
    _torchvision("fcn_resnet101", "fcn_resnet101_coco", "7ecb50ca", 0.637, 0.919, _FCN),
    _torchvision("deeplabv3_resnet50", "deeplabv3_resnet50_coco", "cd0a2569", 0.664, 0.924, _DEEPLAB),
    _torchvision("deeplabv3_resnet101", "deeplabv3_resnet101_coco", "586e9e4e", 0.674, 0.924, _DEEPLAB),
    _torchvision("deeplabv3_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fc3c493d", 0.603, 0.912, _DEEPLAB),
    _torchvision("lraspp_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "d234d4ea", 0.579, 0.912, _MOBILENET),
    Weights(
        name="mask_rcnn_resnet50_fpn.coco",
        num_classes=91,
        in_channels=3,
        classes=_COCO,
        sources=(
            Source("url", "https://download.pytorch.org/models/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", "bf2d0c1e"),
        ),
        license="BSD-3-Clause",
        source=_TORCHVISION.format("COCO_V1"),
        training_data=(
            "COCO train2017 (annotations CC BY 4.0, pictures under Flickr's terms); backbone from ImageNet-1k "
            "(research only)"
        ),
        paper="He et al., Mask R-CNN, 2017, arXiv:1703.06870",
        preprocessing=Preprocessing(size=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        protocol="torchvision's references: COCO val2017, average precision over IoU 0.5 to 0.95",
        published_metrics={"COCO val2017": {"box_map": 0.379, "mask_map": 0.346}},
    ),
)

_CATALOG: Mapping[str, Weights] = MappingProxyType({record.name: record for record in _RECORDS})


def get_weights(name: str) -> Weights:
    """The record of a checkpoint.

    Args:
        name: ``"architecture.tag"``.

    Raises:
        ValueError: For an unknown name, with the nearest one.

    Examples:
        >>> get_weights("u2net_lite.duts").preprocessing.size
        (320, 320)
    """
    if name not in _CATALOG:
        raise unknown_name("weights", name, _CATALOG)
    return _CATALOG[name]


def list_weights(pattern: str = "*") -> list[str]:
    """The names of all published checkpoints that match.

    Args:
        pattern: An architecture (``"u2net_lite"``: all its checkpoints) or a pattern with wildcards on the whole name.

    Examples:
        >>> list_weights("u2net_lite")
        ['u2net_lite.duts']
    """
    return sorted(
        name for name, record in _CATALOG.items() if pattern == record.architecture or fnmatch.fnmatch(name, pattern)
    )
