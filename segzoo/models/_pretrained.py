"""Models that are saved into a folder and built again from it: what is common to those of every kind."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import nn

from segzoo import __version__
from segzoo._errors import some_of
from segzoo.registry import create_model, task_of
from segzoo.weights.card import check_license, model_card
from segzoo.weights.catalog import Weights
from segzoo.weights.folder import LOCAL_DIR, Checkpoint, write_folder
from segzoo.weights.saved import SavedModel, plain

__all__ = ["Call", "Pretrained", "origin_of"]

# Arguments of a factory that are not the architecture's: numbers that have fields of their own, and where weights were.
_ELSEWHERE = {"num_classes", "in_channels", "weights", "encoder_weights", "progress"}
_PACKAGES = ("torch", "torchvision", "timm")  # whose networks a model may be made of

# What of a module without parameters decides what it computes. Of dropout nothing does, in eval mode.
_DECISIVE = ("stride", "padding", "dilation", "groups", "num_groups", "ceil_mode", "act", "upscale_factor")

Model = TypeVar("Model", bound="Pretrained")


@dataclass(frozen=True)
class Call:
    """The call of a factory that made a model, in values that JSON has.

    Args:
        architecture: The factory's name.
        arguments: By name.
        refused: {argument: what it is}, of those that cannot be written down.
        structure: Of the model as it was made: see ``structure_of``.
    """

    architecture: str
    arguments: Mapping[str, Any]
    refused: Mapping[str, str]
    structure: Mapping[str, str]


class Pretrained:
    """``save_pretrained`` and ``from_pretrained``, of models that a registered factory makes."""

    num_classes: int
    in_channels: int
    made_by: Call | None = None
    implied_arguments: Mapping[str, Any] = {}
    started_from: str | None = None

    def remember_call(self, architecture: str, arguments: Mapping[str, Any]) -> None:
        """Keep what ``save_pretrained`` writes down of a factory's call; the registry calls this.

        Args:
            architecture: The factory's name.
            arguments: All of them, defaults too.
        """
        given: dict[str, Any] = {}
        refused: dict[str, str] = {}
        implied = {name: value for name, value in self.implied_arguments.items() if name in arguments}
        for name, value in {**arguments, **implied}.items():
            if name in _ELSEWHERE:
                continue
            try:
                given[name] = plain(value)
            except TypeError:
                refused[name] = type(value).__name__
        self.made_by = Call(architecture, given, refused, structure_of(self))

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        license: str,
        training_data: Mapping[str, str],
        metrics: Mapping[str, Mapping[str, float]] | None = None,
        protocol: str | None = None,
        name: str | None = None,
        description: str | None = None,
        limits: str | None = None,
        license_name: str | None = None,
        license_link: str | None = None,
    ) -> None:
        """Save the model into a folder that ``from_pretrained`` and ``create_model("local-dir:PATH")`` read.

        The folder has ``config.json`` (how the model is built, classes, preprocessing, threshold, and all that is given
        here), ``model.safetensors`` and ``README.md``, a model card. An older model there is replaced, all three files
        or none. Nothing is asked of the network. Weights keep their dtype in the file; a model that is built again is
        float32.

        Args:
            save_directory: The folder, made if it is not there.
            license: Of the weights, by a name that the Hugging Face Hub knows, as ``"apache-2.0"``, ``"cc-by-nc-4.0"``;
                or ``"other"``, with ``license_name``.
            training_data: {name: its licence or terms}, as ``{"CamVid": "CC BY-NC-SA 4.0"}``. What the weights were
                trained on before (``segzoo``'s published ones, ImageNet) is added.
            metrics: {data set: {metric: value}}, as ``{"CamVid test": {"miou": 0.65}}``, or None: not measured.
            protocol: How ``metrics`` were measured, in words; needed with them.
            name: What people call it. None: the architecture's name.
            description: A sentence or more for the card. None: one is made up.
            limits: The same, of what it is not good at.
            license_name: With ``license="other"``.
            license_link: Where the licence can be read.

        Raises:
            ValueError: For a licence unknown or missing, no training data, metrics without a protocol; for a model that
                no factory made, whose arguments cannot be written down (a callable norm, an encoder that is a module)
                or that was changed since it was made.
            FileExistsError: If the folder has a ``config.json`` or a ``README.md`` of something else.
            OSError: If it cannot be written.

        Examples:
            >>> import tempfile
            >>> from segzoo import u2net_lite
            >>> folder = tempfile.mkdtemp()
            >>> u2net_lite().save_pretrained(folder, license="apache-2.0", training_data={"my cups": "CC0-1.0"})
            >>> u2net_lite(weights=f"local-dir:{folder}").weights.training_data[:17]
            'my cups (CC0-1.0)'
        """
        call = self._checked_call()
        model: Any = self
        saved = SavedModel(
            architecture=call.architecture,
            arguments=call.arguments,
            num_classes=self.num_classes,
            in_channels=self.in_channels,
            multilabel=getattr(model, "multilabel", False),
            classes=None if model.classes is None else tuple(model.classes),
            preprocessing=model.preprocessing,
            threshold=model.threshold,
            score_threshold=getattr(model, "score_threshold", None),
            name=call.architecture if name is None else name,
            license=check_license(license, license_name),
            license_name=license_name,
            license_link=license_link,
            training_data=training_data,
            started_from=self.started_from,
            metrics=_numbers(metrics),
            protocol=protocol,
            description=description,
            limits=limits,
            made_with={"segzoo": __version__, **{package: version(package) for package in _PACKAGES}},
        )
        parameters = sum(parameter.numel() for parameter in model.parameters())
        card = model_card(saved, task=task_of(call.architecture), parameters=parameters)
        write_folder(save_directory, saved, model.state_dict(), card)

    @classmethod
    def from_pretrained(
        cls: type[Model], pretrained_model_name_or_path: str | os.PathLike[str], **overrides: Any
    ) -> Model:
        """The model of a folder that ``save_pretrained`` wrote, in eval mode.

        Args:
            pretrained_model_name_or_path: The folder, with ``local-dir:`` before it or without.
            **overrides: Arguments of its factory in the place of those it was made with: ``num_classes``,
                ``in_channels`` and ``norm`` adapt the weights as those of any checkpoint; others must fit them.

        Returns:
            A model of the folder's architecture, which must be one of this class.

        Raises:
            FileNotFoundError: If there is no such folder or no model in it, with the nearest one that there is.
            ValueError: If its files are not whole, do not belong together, are a newer segzoo's, or hold another
                class's model.

        Examples:
            >>> import tempfile
            >>> from segzoo.models import SegmentationModel, UNet
            >>> from segzoo import unet
            >>> folder = tempfile.mkdtemp()
            >>> unet(base_channels=8).save_pretrained(folder, license="mit", training_data={"none": "random weights"})
            >>> type(SegmentationModel.from_pretrained(folder)) is UNet
            True
        """
        path = os.fspath(pretrained_model_name_or_path).removeprefix(LOCAL_DIR)
        model = create_model(f"{LOCAL_DIR}{path}", **overrides)
        if not isinstance(model, cls):
            raise ValueError(
                f"{path} holds a {type(model).__name__}, which is no {cls.__name__}: "
                f"segzoo.create_model({LOCAL_DIR + path!r}) gives it"
            )
        model.eval()  # type: ignore[attr-defined]
        return model

    def take_over(self, checkpoint: Checkpoint) -> None:
        """What a folder says beside what a record of the catalogue does."""
        for name in ("multilabel", "score_threshold"):
            if hasattr(self, name):
                setattr(self, name, getattr(checkpoint.saved, name))

    def _checked_call(self) -> Call:
        """The call that made this model, or the sentence that says why it could not make it again."""
        call = self.made_by
        kind = type(self).__name__
        if call is None:
            raise ValueError(
                f"this {kind} was made from its class, not by a factory, so that no name says how to build it again: "
                "make it with segzoo.create_model, or register a factory of yours with segzoo.register_model"
            )
        if any(value.is_meta for value in cast(nn.Module, self).state_dict().values()):
            raise ValueError(f"this {kind} is on the meta device and has no weights to save")
        for name, given in call.refused.items():
            hint = "a norm by name" if name == "norm" else "a name" if name == "encoder" else "plain values"
            raise ValueError(
                f"this {kind} cannot be saved: its {name} is a {given}, which config.json cannot hold; give {hint}"
            )
        now = structure_of(self)
        changed = [part for part in {**call.structure, **now} if call.structure.get(part) != now.get(part)]
        if changed:
            was, new = (parts.get(changed[0], "nothing") for parts in (call.structure, now))
            raise ValueError(
                f"this {kind} was changed after {call.architecture}() had made it and could not be built again: "
                f"{some_of(changed)} ({was} became {new}); give the factory what you want instead, as its norm"
            )
        return call


def structure_of(model: object) -> dict[str, str]:
    """{part: what it is} of a model: what has to be the same for weights to mean the same.

    Batch norms that differ in what they do in training only (synchronised, frozen) are one kind, and dropout is none.

    Examples:
        >>> structure_of(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Dropout(), nn.SyncBatchNorm(8)))["2"]
        'batch norm, eps 1e-05'
    """
    if not isinstance(model, nn.Module):
        return {}
    parts = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if any(True for _ in module.children()) or kind == "Identity" or "Drop" in kind:
            continue
        values = vars(module)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or "FrozenBatchNorm" in kind:
            kind = "batch norm"
        given = [f"{key} {values[key]}" for key in _DECISIVE if key in values and values[key] is not None]
        parts[name] = ", ".join([kind, *given, *([f"eps {values['eps']}"] if "eps" in values else [])])
    counter = "num_batches_tracked"
    return parts | {
        key: str(tuple(value.shape)) for key, value in model.state_dict().items() if not key.endswith(counter)
    }


def origin_of(weights: str | os.PathLike[str] | Checkpoint, record: Weights | None) -> str:
    """What a card says of the weights that a training started from, without naming places on this machine."""
    if isinstance(weights, Checkpoint):
        saved = weights.saved
        return f'"{saved.name}" ({saved.license_name or saved.license}), trained on {saved.trained_on()}'
    if record is not None:
        return f"{record.name} ({record.license}), trained on {record.training_data}"
    return f"the weights in {Path(weights).name}, whose training data are not recorded"


def _numbers(metrics: object) -> dict[str, dict[str, float | None]]:
    """Plain numbers of metrics that may be numpy's or torch's; one that is not finite is not defined: None."""
    if metrics is None:
        return {}
    tables: dict[str, dict[str, float | None]] = {}
    try:
        for data_set, values in dict(metrics).items():  # type: ignore[call-overload]
            numbers = {key: float(value) for key, value in values.items()}
            tables[data_set] = {key: x if math.isfinite(x) else None for key, x in numbers.items()}
    except (TypeError, ValueError, AttributeError, RuntimeError):
        raise ValueError(
            f"metrics must be {{data set: {{metric: number}}}}, as {{'ECSSD': {{'mae': 0.041}}}}, got {metrics!r}"
        ) from None
    return tables
