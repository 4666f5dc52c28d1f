"""The published checkpoints: one immutable record each, from which tables, cards and ``segzoo info`` are made."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from segzoo._errors import unknown_name
from segzoo.weights.class_names import ADE20K, CITYSCAPES, COCO, SALIENT, VOC
from segzoo.weights.record import Preprocessing, Source, Weights

__all__ = ["Preprocessing", "Source", "Weights", "get_weights", "list_weights"]

_U2NET_PAPER = (
    "Qin et al., U²-Net: Going Deeper with Nested U-Structure for Salient Object Detection, 2020, arXiv:2005.09007"
)
_DUTS = "DUTS-TR (10,553 pictures; Wang et al. 2017)"
_DUTS_LICENSE = "DUTS: free for academic research, its pictures are ImageNet's: non-commercial research and education"
_IMAGENET_LICENSE = "ImageNet-1k: non-commercial research and education"
_COCO_LICENSE = f"COCO: annotations CC BY 4.0, pictures under Flickr's terms; {_IMAGENET_LICENSE}"
_ADE20K_LICENSE = (
    "ADE20K: pictures for non-commercial research and education, annotations BSD-3-Clause; " + _IMAGENET_LICENSE
)
_CITYSCAPES_LICENSE = "Cityscapes: non-commercial, by its terms of use; " + _IMAGENET_LICENSE
_U2NET_PROTOCOL = (
    "U²-Net's own evaluation: min-max of each 320×320 prediction, 8 bit, bilinear back to the picture's size; "
    "max F (β² = 0.3) is the maximum of F over the data set's mean precision and recall curves"
)

_ISNET_PROTOCOL = (
    "IS-Net's own inference: the picture squashed to 1024×1024 (bilinear without anti-aliasing, cut to 8 bit), the "
    "map bilinear back to the picture's size, then min-max"
)
SEMANTIC_PREPROCESSING = Preprocessing(size=None)
U2NET_PREPROCESSING = Preprocessing(scale="max")
# By 255, as the authors' code divides in training, evaluation and inference; rembg divides by the picture's largest
# value, as for U²-Net, which shows the network dark pictures brighter than it has learnt them.
ISNET_PREPROCESSING = Preprocessing(size=(1024, 1024), mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))

_TORCHVISION = (
    "torchvision, {}, https://github.com/pytorch/vision; it publishes 8 digits of the sha256, and no licence of the "
    "weights apart from its code's"
)
_FCN = "Long et al., Fully Convolutional Networks for Semantic Segmentation, 2015, arXiv:1411.4038"
_DEEPLAB = "Chen et al., Rethinking Atrous Convolution for Semantic Image Segmentation, 2017, arXiv:1706.05587"
_MOBILENET = "Howard et al., Searching for MobileNetV3, 2019, arXiv:1905.02244"
_SEGFORMER = (
    "Xie et al., SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers, 2021, "
    "arXiv:2105.15203"
)


def _rembg(file: str, size: int, md5: str, sha256: str, *more: tuple[str, str]) -> tuple[Source, ...]:
    """The places of one of rembg's files: on the Hub, then in its release. The digests are the same everywhere."""
    known: dict[str, Any] = {"md5": md5, "sha256": sha256, "size": size}
    hub = (("tomjackson2023/rembg", "cd3a3d6767a7859efea31ef0f2f373582cf06d82"), *more)
    return (
        *(Source("hub", file, repo=repo, revision=revision, **known) for repo, revision in hub),
        Source("url", f"https://github.com/danielgatis/rembg/releases/download/v0.0.0/{file}", **known),
    )


def _u2net(tag: str, file: tuple[Source, ...], source: str, **fields: Any) -> Weights:
    """One of U²-Net's checkpoints in the format of rembg."""
    common: dict[str, Any] = {
        "num_classes": 1,
        "in_channels": 3,
        "classes": SALIENT,
        "license": "Apache-2.0",
        "source": f"X. Qin et al., {source}, https://github.com/xuebinqin/U-2-Net, as rembg's ONNX file",
        "training_data": _DUTS,
        "data_license": _DUTS_LICENSE,
        "code_license": "Apache-2.0",
        "commercial": True,
        "paper": _U2NET_PAPER,
        "preprocessing": U2NET_PREPROCESSING,
        "protocol": _U2NET_PROTOCOL,
        "min_max": True,
        "calibration": None,
    }
    return Weights(name=tag, sources=file, **{**common, **fields})


def _segformer(
    tag: str,
    repo: str,
    miou: float,
    *,
    revision: str | None = None,
    file: str = "pytorch_model.bin",
    sha256: str | None = None,
    size: int | None = None,
) -> Weights:
    """One of NVIDIA's SegFormers on the Hub: at a commit where one is known to hold it, else wherever ``main`` is."""
    variant, _, data = tag.partition("_")
    ade20k = data == "ade20k"
    shorter = 1024 if not ade20k else 640 if variant == "b5" else 512
    places = dict.fromkeys((revision, None))
    return Weights(
        name=f"segformer.{tag}",
        num_classes=150 if ade20k else 19,
        in_channels=3,
        classes=ADE20K if ade20k else CITYSCAPES,
        sources=tuple(
            Source("hub", file, sha256, size=size, repo=f"nvidia/segformer-{variant}-finetuned-{repo}", revision=place)
            for place in places
        ),
        license="NVIDIA Source Code License for SegFormer: research and evaluation only, non-commercial",
        source="NVIDIA, https://github.com/NVlabs/SegFormer, in transformers' keys on the Hugging Face Hub",
        training_data=f"{'ADE20K' if ade20k else 'Cityscapes'}; encoder from ImageNet-1k",
        data_license=_ADE20K_LICENSE if ade20k else _CITYSCAPES_LICENSE,
        code_license="NVIDIA Source Code License for SegFormer",
        commercial=False,
        paper=_SEGFORMER,
        preprocessing=Preprocessing(size=shorter),
        protocol=(
            f"the paper's: shorter side {shorter}, sides rounded up to multiples of 32, one scale"
            if ade20k
            else "the paper's: whole pictures of 1024×2048 in windows of 1024 every 768 pixels, one scale"
        ),
        arguments={"encoder": f"mit_{variant}"},
        published_metrics={"ADE20K val" if ade20k else "Cityscapes val": {"miou": miou}},
    )


def _torchvision(
    architecture: str, file: str, sha256: str, size: int | None, miou: float, pixel_accuracy: float, paper: str
) -> Weights:
    """One of torchvision's segmentation checkpoints; they differ in little."""
    url = f"https://download.pytorch.org/models/{file}-{sha256}.pth"
    return Weights(
        name=f"{architecture}.coco_voc",
        num_classes=21,
        in_channels=3,
        classes=VOC,
        sources=(Source("url", url, sha256, size=size),),
        license="BSD-3-Clause",
        source=_TORCHVISION.format("COCO_WITH_VOC_LABELS_V1"),
        training_data="pictures of COCO train2017 with classes of Pascal VOC; backbone from ImageNet-1k",
        data_license=_COCO_LICENSE,
        code_license="BSD-3-Clause",
        commercial=None,
        paper=paper,
        preprocessing=Preprocessing(size=520),
        protocol="torchvision's references: shorter side 520, COCO val2017 with Pascal VOC's labels, mean IoU",
        published_metrics={"COCO val2017, VOC labels": {"miou": miou, "pixel_accuracy": pixel_accuracy}},
    )


_RECORDS = (
    _u2net(
        "u2net_lite.duts",
        (
            Source(
                "bundled",
                "u2net_lite.duts.safetensors",
                "273639a5008fbad0f55e2fb1944ad8b043ccba6ed4cf3ccdbeff24127c460f27",
                size=4612444,
            ),
            *_rembg(
                "u2netp.onnx",
                4574861,
                "8e83ca70e441ab06c318d82300c84806",
                "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
            ),
        ),
        "U²-Netp (U²-Net†)",
        precision_ok=("fp32", "bf16"),
        calibration="ECSSD 0001 to 0797, every fourth picture (200), at 320×320: means and variances only",
        metrics={"ECSSD": {"max_f": 0.9430, "mae": 0.0412, "weighted_f": 0.8847, "s_measure": 0.9175}},
        published_metrics={"ECSSD": {"max_f": 0.943, "mae": 0.041, "weighted_f": 0.885, "s_measure": 0.918}},
    ),
    _u2net(
        "u2net_full.duts",
        _rembg(
            "u2net.onnx",
            175997641,
            "60024c5c889badc19c04ad937298a77b",
            "8d10d2f3bb75ae3b6d527c77944fc5e7dcd94b29809d47a739a7a728a912b491",
            ("Topurrra/u2net_onnx", "065dc383e4d551f458a30118b7d1570af4d868db"),
        ),
        "U²-Net",
        published_metrics={"ECSSD": {"mae": 0.033}},
    ),
    _u2net(
        "u2net_full.human",
        _rembg(
            "u2net_human_seg.onnx",
            175997641,
            "c09ddc2e0104f800e3e1bb4652583d1f",
            "01eb6a29a5c4d8edb30b56adad9bb3a2a0535338e480724a213e0acfd2d1c73c",
            ("davidfant/rembg-u2net", "82951e32735e4e6cd7bbf3e51279960d1ca3ef56"),
        ),
        "U²-Net for people",
        classes=("person",),
        training_data="Supervisely Person Dataset (5,711 pictures)",
        data_license="Supervisely Person: free for academic purposes; no formal licence was found",
        protocol=f"as published for objects: {_U2NET_PROTOCOL}",
    ),
    Weights(
        name="isnet.general",
        num_classes=1,
        in_channels=3,
        classes=SALIENT,
        sources=_rembg(
            "isnet-general-use.onnx",
            178648008,
            "fc16ebd8b0c10d971d3513d564d01e29",
            "60920e99c45464f2ba57bee2ad08c919a52bbf852739e96947fbb4358c0d964a",
        ),
        license="Apache-2.0",
        source=(
            "X. Qin et al., IS-Net for general use, https://github.com/xuebinqin/DIS, as rembg's ONNX file; the "
            "repository's licence names its code and metric, and nothing is said of the weights apart"
        ),
        training_data=("DIS5K (5,470 pictures); its publisher does not say what else these weights were trained on"),
        data_license="DIS5K: non-commercial research and education only, by its terms of use",
        code_license="Apache-2.0",
        commercial=None,
        paper="Qin et al., Highly Accurate Dichotomous Image Segmentation, ECCV 2022, arXiv:2203.03041",
        preprocessing=ISNET_PREPROCESSING,
        protocol=_ISNET_PROTOCOL,
        min_max=True,
        calibration=None,
        # The paper's figures on DIS5K are of another checkpoint, isnet.pth.
    ),
    _torchvision("fcn_resnet50", "fcn_resnet50_coco", "1167a1af", 141567418, 0.605, 0.914, _FCN),
    _torchvision("fcn_resnet101", "fcn_resnet101_coco", "7ecb50ca", 217800805, 0.637, 0.919, _FCN),
    _torchvision("deeplabv3_resnet50", "deeplabv3_resnet50_coco", "cd0a2569", 168312152, 0.664, 0.924, _DEEPLAB),
    _torchvision("deeplabv3_resnet101", "deeplabv3_resnet101_coco", "586e9e4e", 244545539, 0.674, 0.924, _DEEPLAB),
    _torchvision(
        "deeplabv3_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fc3c493d", 44356159, 0.603, 0.912, _DEEPLAB
    ),
    _torchvision(
        "lraspp_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "d234d4ea", 13097061, 0.579, 0.912, _MOBILENET
    ),
    Weights(
        name="mask_rcnn_resnet50_fpn.coco",
        num_classes=91,
        in_channels=3,
        classes=COCO,
        sources=(
            Source(
                "url",
                "https://download.pytorch.org/models/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
                "bf2d0c1e",
                size=178090079,
            ),
        ),
        license="BSD-3-Clause",
        source=_TORCHVISION.format("COCO_V1"),
        training_data="COCO train2017; backbone from ImageNet-1k",
        data_license=_COCO_LICENSE,
        code_license="BSD-3-Clause",
        commercial=None,
        paper="He et al., Mask R-CNN, 2017, arXiv:1703.06870",
        preprocessing=Preprocessing(size=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        protocol="torchvision's references: COCO val2017, average precision over IoU 0.5 to 0.95",
        arguments={"norm_eps": 0.0},  # of its frozen norms, as torchvision has it for these weights alone
        published_metrics={"COCO val2017": {"box_map": 0.379, "mask_map": 0.346}},
    ),
    _segformer(
        "b0_ade20k",
        "ade-512-512",
        0.374,
        revision="489d5cd81a0b59fab9b7ea758d3548ebe99677da",
        file="model.safetensors",
        sha256="6ae39addd01de6b1b8bde2cf677d43a5cd733424b8d186de3f95d1c51fee23f9",
        size=15036944,
    ),
    _segformer("b1_ade20k", "ade-512-512", 0.422),
    _segformer(
        "b2_ade20k",
        "ade-512-512",
        0.465,
        revision="de01bae28967510f9ddd496c60a969357195400c",
        sha256="187ca07bea003a5717c63d04ea90b07f33cd033c0ebf44b4b89fce5070d6c8f3",
        size=110000905,
    ),
    _segformer("b3_ade20k", "ade-512-512", 0.494, revision="a820c29fc1e53723079d94ca0e09a14d2657fae6"),
    _segformer("b4_ade20k", "ade-512-512", 0.503, revision="35a840011586188284a6feb47b78edc268a7473c"),
    _segformer("b5_ade20k", "ade-640-640", 0.510, revision="739f5d4692954e4a185eac280dec1ba5a7d52f1d"),
    _segformer(
        "b0_cityscapes",
        "cityscapes-1024-1024",
        0.762,
        revision="21b3847fae21ddee674abd31129307b6a1235bd9",
        sha256="027ed78d8ff9c535df5a66361c92b9673cca3cb923cbeb8c5802385b6b93194c",
        size=14957601,
    ),
    _segformer("b1_cityscapes", "cityscapes-1024-1024", 0.785, revision="ec86afeba68e656629ccf47e0c8d2902f964917b"),
    _segformer("b2_cityscapes", "cityscapes-1024-1024", 0.810, revision="d633b2072669ca68d8f8e309de9b52bfdbf6bf72"),
    _segformer("b3_cityscapes", "cityscapes-1024-1024", 0.817),
    _segformer("b4_cityscapes", "cityscapes-1024-1024", 0.823),
    _segformer("b5_cityscapes", "cityscapes-1024-1024", 0.824, revision="2c6f153e4c23c229e2fa2b188eb250607e030cd8"),
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
