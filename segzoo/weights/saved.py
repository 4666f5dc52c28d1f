"""What a folder's ``config.json`` says of a model, checked when it is written and when it is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from segzoo._errors import some_of
from segzoo.weights.preprocessing import Preprocessing, check_preprocessing, is_count, is_number

__all__ = ["NO_ARGUMENTS", "SavedModel", "plain"]


# Arguments of a factory that are not the architecture's: numbers that have fields of their own, and where weights were.
NO_ARGUMENTS = ("num_classes", "in_channels", "weights", "encoder_weights", "progress")


@dataclass(frozen=True)
class SavedModel:
    """All that there is to know of a saved model but its weights.

    Args:
        architecture: The factory that makes it: ``"u2net_lite"``.
        arguments: The factory's, by name, but for the numbers below and for where weights come from.
        num_classes: Output channels.
        in_channels: Input channels.
        multilabel: Whether classes may overlap.
        classes: Their names, or None.
        preprocessing: What a picture goes through before.
        threshold: Of a pixel's probability, for masks.
        score_threshold: Of a detector's confidence, for what it shows; None for other models.
        name: What people call it.
        license: Of the weights: a name the Hugging Face Hub knows (``"apache-2.0"``), or ``"other"``.
        license_name: With ``"other"``: its name.
        license_link: Where it can be read, or None.
        training_data: {name: its licence}.
        started_from: Whose weights the training began with, and what those were trained on; None: from scratch.
        metrics: {data set: {metric: value, or None where it is not defined}}.
        protocol: How they were measured; None where nothing was.
        description: A sentence or more for the card; None for one that is made up.
        limits: The same, of what it is not good at.
        made_with: {package: version}.
        pruned: Whether layers have fewer channels than the factory gives them: as many as their weights.

    Raises:
        ValueError: For a field that holds anything else.
    """

    architecture: str
    arguments: Mapping[str, Any]
    num_classes: int
    in_channels: int
    multilabel: bool
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing
    threshold: float
    score_threshold: float | None
    name: str
    license: str
    license_name: str | None
    license_link: str | None
    training_data: Mapping[str, str]
    started_from: str | None
    metrics: Mapping[str, Mapping[str, float | None]]
    protocol: str | None
    description: str | None
    limits: str | None
    made_with: Mapping[str, str] = field(default_factory=dict)
    pruned: bool = False

    def __post_init__(self) -> None:
        for name, (fits, expected) in _FIELDS.items():
            value = getattr(self, name)
            if not fits(value):
                raise ValueError(f"{name} must be {expected}, got {value!r}")
        check_preprocessing(self.preprocessing, self.in_channels)
        if self.classes is not None and len(self.classes) != self.num_classes:
            raise ValueError(f"classes must be {self.num_classes} names or None, got {len(self.classes)}")
        if self.metrics and not self.protocol:
            raise ValueError("metrics come with a protocol that says how they were measured, got none")

    def trained_on(self) -> str:
        """The training data with their licences, those of the weights it started from too, in one line."""
        own = "; ".join(f"{name} ({terms})" for name, terms in self.training_data.items())
        return f"{own}; started from {self.started_from}" if self.started_from else own

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``json.dumps``."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "pruned" or self.pruned}
        return {name: plain(value) for name, value in {**values, "preprocessing": asdict(self.preprocessing)}.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SavedModel:
        """What ``to_json`` gave; lists come back as tuples.

        Raises:
            ValueError: For unknown or missing fields, or one that holds what it should not.
        """
        _check_names("field", {"pruned": False, **values}, [f.name for f in fields(cls)])
        given = {name: _frozen(value) for name, value in values.items()}
        arguments = given["arguments"]
        if isinstance(arguments, dict) and (strange := [name for name in NO_ARGUMENTS if name in arguments]):
            raise ValueError(f"arguments must not hold {', '.join(strange)}: numbers have fields of their own")
        preprocessing = given["preprocessing"]
        if not isinstance(preprocessing, dict):
            raise ValueError(f"preprocessing must be an object, got {preprocessing!r}")
        _check_names("field of preprocessing", preprocessing, [f.name for f in fields(Preprocessing)])
        return cls(**{**given, "preprocessing": Preprocessing(**preprocessing)})


def plain(value: Any) -> Any:
    """``value`` as JSON has it: None, bool, int, float, str, and lists and dictionaries of such.

    Raises:
        TypeError: For anything else, and for numbers that are not finite.

    Examples:
        >>> plain({"rates": (6, 12)})
        {'rates': [6, 12]}
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value} is no number that JSON has")
        return float(value)
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {key: plain(item) for key, item in value.items()}
    raise TypeError(f"a {type(value).__name__} is nothing that JSON has")


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return {key: _frozen(item) for key, item in value.items()} if isinstance(value, dict) else value


def _check_names(kind: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    missing = [name for name in known if name not in given]
    unknown = [name for name in given if name not in known]
    if missing:
        raise ValueError(f"the {kind} {some_of(missing)} is missing")
    if unknown:
        raise ValueError(f"unknown {kind} {some_of(unknown)}, expected {', '.join(known)}")


def _text(value: object) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _text_or_none(value: object) -> bool:
    return value is None or _text(value)


def _share(value: object) -> bool:
    return is_number(value) and 0 <= value <= 1  # type: ignore[operator]


def _texts(value: object) -> bool:
    return isinstance(value, Mapping) and all(_text(key) and _text(item) for key, item in value.items())


def _tables(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        _text(data_set)
        and isinstance(values, Mapping)
        and all(_text(name) and (x is None or is_number(x)) for name, x in values.items())
        for data_set, values in value.items()
    )


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "architecture": (_text, "a model's name"),
    "arguments": (lambda value: isinstance(value, Mapping), "{argument: value}"),
    "num_classes": (is_count, "a positive int"),
    "in_channels": (is_count, "a positive int"),
    "multilabel": (lambda value: isinstance(value, bool), "true or false"),
    "classes": (lambda value: value is None or (isinstance(value, tuple) and all(map(_text, value))), "names or None"),
    "threshold": (_share, "a number in 0…1"),
    "score_threshold": (lambda value: value is None or _share(value), "a number in 0…1 or None"),
    "name": (_text, "a text"),
    "license": (_text, "a licence's name"),
    "license_name": (_text_or_none, "a text or None"),
    "license_link": (_text_or_none, "a text or None"),
    "training_data": (
        lambda value: _texts(value) and bool(value),
        "{name: its licence} of at least one data set, as {'DUTS-TR': 'research only'}",
    ),
    "started_from": (_text_or_none, "a text or None"),
    "metrics": (_tables, "{data set: {metric: number}}, as {'ECSSD': {'mae': 0.041}}"),
    "protocol": (_text_or_none, "a text or None"),
    "description": (_text_or_none, "a text or None"),
    "limits": (_text_or_none, "a text or None"),
    "made_with": (_texts, "{package: version}"),
    "pruned": (lambda value: isinstance(value, bool), "true or false"),
}
