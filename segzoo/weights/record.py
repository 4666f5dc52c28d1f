"""What is known of a published checkpoint: its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal

from segzoo.weights.preprocessing import Preprocessing

__all__ = ["Preprocessing", "Source", "Weights"]


@dataclass(frozen=True)
class Source:
    """One place a checkpoint's file is at.

    Args:
        kind: ``"bundled"`` (a file inside the package), ``"hub"`` (in a repository of the Hugging Face Hub) or
            ``"url"`` (its publisher's).
        location: The file's name, its path in the repository, or the whole URL.
        sha256: Of that very file: 64 hex digits; the first 8 where its publisher gives no more (torchvision); None
            where nobody published it, and then the Hub's own is all there is.
        md5: The same, where its publisher gives it; both are checked.
        size: Bytes, where they are known; nothing is decided by them.
        repo: Of the Hub: ``"org/name"``.
        revision: Of the Hub: a commit; None is the branch ``main``.

    Examples:
        >>> str(Source("hub", "u2net.onnx", None, repo="org/name", revision="0123abc"))
        'hf-hub:org/name@0123abc/u2net.onnx'
    """

    kind: Literal["bundled", "hub", "url"]
    location: str
    sha256: str | None
    md5: str | None = None
    size: int | None = None
    repo: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"hf-hub:{self.repo}{at}/{self.location}" if self.kind == "hub" else self.location


@dataclass(frozen=True)
class Weights:
    """The record of one published checkpoint.

    Args:
        name: ``"architecture.tag"``.
        num_classes: Output channels.
        in_channels: Input channels.
        classes: Their names; one class is the foreground.
        sources: Where the file is, tried in this order; each with its sha256.
        license: Of the weights: an SPDX name, or its own.
        source: Who published them, where.
        training_data: What they were trained on.
        data_license: Of that: the terms its pictures and labels are under.
        code_license: Of the publisher's code, an SPDX name or its own.
        commercial: Whether the licence of the weights allows commercial use; None where their publisher does not say
            what it is.
        paper: Where the model and its figures were published.
        preprocessing: What a picture goes through before.
        protocol: What the published evaluation adds to a plain prediction, in words.
        arguments: Of the factory, where they are other than its defaults: ``{"encoder": "mit_b2"}``.
        min_max: Whether that includes stretching every prediction to 0…1.
        threshold: Probability above which a pixel is foreground in a mask.
        calibration: Of checkpoints whose batch norms had been folded into the convolutions: which pictures the
            statistics were measured on again; None where they were not. Empty where the norms are the publisher's own.
        precision_ok: Precisions in which the metrics were checked to hold, here.
        metrics: {data set: {metric: value}}, measured with this project's own code by the protocol.
        published_metrics: The same as its publishers give them.

    Examples:
        >>> from segzoo import get_weights
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
    data_license: str
    code_license: str
    commercial: bool | None
    paper: str
    preprocessing: Preprocessing
    protocol: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    min_max: bool = False
    threshold: float = 0.5
    calibration: str | None = ""
    precision_ok: tuple[str, ...] = ()
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    published_metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", MappingProxyType(dict(self.arguments)))
        for name in ("metrics", "published_metrics"):
            tables = {data_set: MappingProxyType(dict(v)) for data_set, v in getattr(self, name).items()}
            object.__setattr__(self, name, MappingProxyType(tables))

    def __hash__(self) -> int:
        return hash((self.name, self.sources))

    def __reduce__(self) -> tuple[Any, ...]:  # read-only mappings cannot be pickled or copied as they are
        return _rebuild, (self._plain(),)

    def _plain(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["arguments"] = dict(self.arguments)
        for name in ("metrics", "published_metrics"):
            values[name] = {data_set: dict(v) for data_set, v in values[name].items()}
        return values

    def to_dict(self) -> dict[str, Any]:
        """The record as plain dictionaries, for ``json.dumps``.

        Examples:
            >>> from segzoo import get_weights
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
    def sha256(self) -> str | None:
        """Of the first source's file."""
        return self.sources[0].sha256


def _rebuild(values: dict[str, Any]) -> Weights:
    return Weights(**values)
