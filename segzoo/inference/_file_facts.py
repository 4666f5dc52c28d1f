"""What is known of an ONNX file beside its network: what it says of itself, or the catalogue of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from segzoo.weights.preprocessing import Preprocessing

__all__ = ["OUTPUTS", "Known", "published", "said_of"]

OUTPUTS = ("logits", "probabilities")


class Known(NamedTuple):
    """What there is to know of a file beside its network; None is unknown."""

    preprocessing: Preprocessing | None = None
    output: str | None = None
    num_classes: int | None = None
    classes: tuple[str, ...] | None = None
    multilabel: bool = False
    threshold: float = 0.5
    weights: str = ""


def said_of(metadata: Mapping[str, str], name: str) -> Known | None:
    """What the metadata of ``segzoo.export`` say; None of a file without."""
    if not metadata.get("producer", "").startswith("segzoo"):  # others may have keys of the same names
        return None
    try:
        rule = json.loads(metadata.get("preprocessing", "null"))
        classes = json.loads(metadata.get("classes", "null"))
        known = Known(
            preprocessing=None if rule is None else Preprocessing(**{k: _frozen(v) for k, v in rule.items()}),
            output=metadata.get("output"),
            num_classes=int(metadata["num_classes"]) if "num_classes" in metadata else None,
            classes=None if classes is None else tuple(str(each) for each in classes),
            multilabel=json.loads(metadata.get("multilabel", "false")) is True,
            threshold=float(metadata.get("threshold", "0.5")),
            weights=metadata.get("weights", ""),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{name} says of itself what cannot be read ({error}): export it again") from None
    if known.output == "detections":
        raise ValueError(f"{name} finds instances, which the Predictor runs in torch only")
    if known.output not in (None, *OUTPUTS):
        raise ValueError(f"{name} says that its output is {known.output!r}, expected logits or probabilities")
    return known


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def published(file: Path | bytes) -> Known:
    """What the catalogue knows of its own files, which say nothing of themselves: they end in a sigmoid."""
    import hashlib

    from segzoo.weights.catalog import get_weights, list_weights

    size = len(file) if isinstance(file, bytes) else file.stat().st_size
    records = [get_weights(name) for name in list_weights()]
    known = {s.sha256: r for r in records for s in r.sources if s.location.endswith(".onnx") and s.size == size}
    if not known:
        return Known()
    digest = hashlib.sha256(file if isinstance(file, bytes) else file.read_bytes()).hexdigest()
    record = known.get(digest)
    if record is None:
        return Known()
    return Known(
        record.preprocessing, "probabilities", record.num_classes, record.classes, False, record.threshold, record.name
    )
