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
        size: Height and width in pixels that the picture is resized to, or None to keep its own.
        interpolation: ``"bilinear"`` (with anti-aliasing when the picture shrinks).
        scale: ``"255"``, or ``"max"``: the picture's own largest value, over all its channels (1 if it is all black).
        mean: Per channel, subtracted after scaling.
        std: Per channel.
    """

    size: tuple[int, int] | None = (320, 320)
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    scale: Literal["255", "max"] = "255"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

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
        sha256: Of that very file, 64 hex digits.
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
        precision_ok: Precisions in which the metrics were checked to hold.
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
    precision_ok: tuple[str, ...] = ("fp32",)
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

U2NET_PREPROCESSING = Preprocessing(scale="max")

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
