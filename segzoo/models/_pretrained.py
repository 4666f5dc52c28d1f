"""Models that are saved into a folder and built again from it: what is common to those of every kind."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import nn

from segzoo import __version__
from segzoo._errors import some_of
from segzoo.registry import create_model, task_of
from segzoo.weights.card import check_license, model_card
from segzoo.weights.folder import FILES, LOCAL_DIR, Checkpoint, models_in, write_folder
from segzoo.weights.hub import HF_HUB, full_name, parse_name, push_folder
from segzoo.weights.saved import NO_ARGUMENTS, SavedModel, plain

__all__ = ["Call", "Pretrained", "origin_of"]

_PACKAGES = ("torch", "torchvision", "timm")  # whose networks a model may be made of

# What of a module without parameters decides what it computes. Of dropout nothing does, in eval mode.
_DECISIVE = ("stride", "padding", "dilation", "groups", "num_groups", "ceil_mode", "act", "upscale_factor")

_MESSAGE = "Push model using segzoo."
_PUSH = (
    *("commit_message", "private", "token", "branch", "create_pr"),
    *("allow_patterns", "ignore_patterns", "delete_patterns"),
)

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
    pruned: bool = False  # fewer channels than the factory gives: segzoo.export.prune

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
            if name in NO_ARGUMENTS:
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
        repo_id: str | None = None,
        push_to_hub: bool = False,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Save the model into a folder that ``from_pretrained`` and ``create_model("local-dir:PATH")`` read.

        The folder has ``config.json`` (how the model is built, classes, preprocessing, threshold, and all that is given
        here), ``model.safetensors`` and ``README.md``, a model card. An older model there is replaced, all three files
        or none. Nothing is asked of the network but for ``push_to_hub``. Weights keep their dtype in the file; a model
        that is built again is float32.

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
            repo_id: ``"org/repo"``: where on the Hugging Face Hub the model is going to be, for the card to say; None:
                nowhere yet, or with ``push_to_hub`` the folder's name among the user's own.
            push_to_hub: Whether to push the folder there, too.
            **push_to_hub_kwargs: With it: ``commit_message``, ``private``, ``token``, ``branch``, ``create_pr``,
                ``allow_patterns``, ``ignore_patterns``, ``delete_patterns``, as in ``push_to_hub``.

        Returns:
            The commit's URL with ``push_to_hub``, else None.

        Raises:
            ValueError: For a licence unknown or missing, no training data, metrics without a protocol; for a model that
                no factory made, whose arguments cannot be written down (a callable norm, an encoder that is a module)
                or that was changed since it was made.
            FileExistsError: If the folder has a ``config.json`` or a ``README.md`` of something else.
            OSError: If it cannot be written; ``PermissionError`` and ``ConnectionError`` if it cannot be pushed.

        Examples:
            >>> import tempfile
            >>> from segzoo import u2net_lite
            >>> folder = tempfile.mkdtemp()
            >>> u2net_lite().save_pretrained(folder, license="apache-2.0", training_data={"my cups": "CC0-1.0"})
            >>> u2net_lite(weights=f"local-dir:{folder}").weights.training_data[:17]
            'my cups (CC0-1.0)'
        """
        if unknown := [name for name in push_to_hub_kwargs if name not in _PUSH or not push_to_hub]:
            hint = f"push_to_hub takes {', '.join(_PUSH)}" if push_to_hub else "it is for push_to_hub=True"
            raise TypeError(f"save_pretrained got an unexpected argument {unknown[0]!r}: {hint}")
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
            threshold=model.threshold.item() if hasattr(model.threshold, "item") else model.threshold,  # numpy's
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
            pruned=self.pruned,
        )
        parameters = sum(parameter.numel() for parameter in model.parameters())
        if push_to_hub:
            repo_id = full_name(repo_id or Path(save_directory).resolve().name, push_to_hub_kwargs.get("token"))
        elif repo_id is not None:
            parse_name(repo_id)
        branch = None if push_to_hub_kwargs.get("create_pr") else push_to_hub_kwargs.get("branch")
        place = f"{repo_id}@{branch}" if repo_id and branch else repo_id
        card = model_card(saved, task=task_of(call.architecture), parameters=parameters, repo=place)
        write_folder(save_directory, saved, model.state_dict(), card)
        if not push_to_hub:
            return None
        assert repo_id is not None
        # Only what was written: a folder may have logs and checkpoints beside it.
        options = {"commit_message": _MESSAGE, "allow_patterns": list(FILES), **push_to_hub_kwargs}
        return push_folder(save_directory, repo_id, **options)

    def push_to_hub(
        self,
        repo_id: str,
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
        commit_message: str = _MESSAGE,
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        allow_patterns: Sequence[str] | str | None = None,
        ignore_patterns: Sequence[str] | str | None = None,
        delete_patterns: Sequence[str] | str | None = None,
    ) -> str:
        """Save the model on the Hugging Face Hub: ``create_model("hf-hub:org/repo")`` loads it anywhere.

        Args:
            repo_id: ``"org/repo"``, or ``"repo"`` of your own; made if it is not there.
            license: As of ``save_pretrained``, and so are all to ``license_link``.
            training_data: {name: its licence or terms}.
            metrics: {data set: {metric: value}}, or None: not measured.
            protocol: How ``metrics`` were measured, in words; needed with them.
            name: What people call it. None: the architecture's name.
            description: A sentence or more for the card. None: one is made up.
            limits: The same, of what it is not good at.
            license_name: With ``license="other"``.
            license_link: Where the licence can be read.
            commit_message: Of the commit, one for all files.
            private: Whether a repository that is made is private; None: as its owner has it.
            token: That may write there; None: the one of ``hf auth login`` or ``HF_TOKEN``.
            branch: Made if it is not there; None: ``main``.
            create_pr: Whether to open a pull request instead.
            allow_patterns: Only files that match are pushed.
            ignore_patterns: Files that match are not.
            delete_patterns: Files in the repository that match are deleted by the same commit.

        Returns:
            The URL of the commit, or of the pull request.

        Raises:
            ValueError: As ``save_pretrained``.
            PermissionError: Without a token that may write there.
            ConnectionError: If the Hub could not be reached.

        Examples:
            >>> from segzoo import u2net_lite
            >>> model = u2net_lite()
            >>> url = model.push_to_hub("me/cups", license="cc-by-4.0", training_data={"my cups": "CC0-1.0"})
            ... # doctest: +SKIP
        """
        with tempfile.TemporaryDirectory() as folder:
            url = self.save_pretrained(
                Path(folder) / "model",
                license=license,
                training_data=training_data,
                metrics=metrics,
                protocol=protocol,
                name=name,
                description=description,
                limits=limits,
                license_name=license_name,
                license_link=license_link,
                repo_id=repo_id,
                push_to_hub=True,
                commit_message=commit_message,
                private=private,
                token=token,
                branch=branch,
                create_pr=create_pr,
                allow_patterns=allow_patterns,
                ignore_patterns=ignore_patterns,
                delete_patterns=delete_patterns,
            )
        assert url is not None
        return url

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **overrides: Any,
    ) -> Model:
        """The model that ``save_pretrained`` or ``push_to_hub`` wrote, in eval mode.

        Args:
            pretrained_model_name_or_path: A folder, with ``local-dir:`` before it or without; or a repository of the
                Hugging Face Hub, ``"org/repo"`` or ``"org/repo@revision"``, with ``hf-hub:`` before it or without. A
                folder that is there, or beside which there are saved models, goes first.
            force_download: Whether to ask the Hub again for what is in the cache.
            token: For private repositories; None: the one of ``hf auth login`` or ``HF_TOKEN``.
            cache_dir: Where files of the Hub are kept; None: huggingface_hub's own cache.
            local_files_only: Whether to look at the cache only.
            revision: A branch, a tag or a commit of the repository; None: ``main``.
            **overrides: Arguments of its factory in the place of those it was made with: ``num_classes``,
                ``in_channels`` and ``norm`` adapt the weights as those of any checkpoint; others must fit them.

        Returns:
            A model of the saved architecture, which must be one of this class.

        Raises:
            FileNotFoundError: If there is no such folder or no model in it, with the nearest one that there is; or no
                such repository or revision.
            PermissionError: If the repository may not be read.
            ConnectionError: If the Hub could not be reached and the model is not in the cache.
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
        name = os.fspath(pretrained_model_name_or_path)
        guessed = not name.startswith((LOCAL_DIR, HF_HUB))
        if guessed:
            name = f"{HF_HUB if _is_repository(pretrained_model_name_or_path) else LOCAL_DIR}{name}"
        try:
            model = create_model(
                name,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                **overrides,
            )
        except FileNotFoundError as error:
            if not guessed or not name.startswith(HF_HUB):
                raise
            raise FileNotFoundError(f"{error}; and there is no folder {pretrained_model_name_or_path}") from error
        if not isinstance(model, cls):
            raise ValueError(
                f"{name} holds a {type(model).__name__}, which is no {cls.__name__}: "
                f"segzoo.create_model({name!r}) gives it"
            )
        model.eval()  # type: ignore[attr-defined]
        return model

    def take_over(self, saved: SavedModel) -> None:
        """What a saved model's config says beside what a record of the catalogue does."""
        for name in ("multilabel", "score_threshold"):
            if hasattr(self, name):
                setattr(self, name, getattr(saved, name))

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


def _is_repository(name: str | os.PathLike[str]) -> bool:
    """Whether a name without a prefix is meant to be one of the Hub: of its form, and no place on this machine."""
    if not isinstance(name, str) or Path(name).expanduser().exists():
        return False
    try:
        parse_name(name)
    except ValueError:
        return False
    return not name.startswith(("./", "../")) and not models_in(Path(name).parent)


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


def origin_of(weights: Checkpoint) -> str:
    """What a card says of the weights that a training started from, without naming places on this machine."""
    saved, record = weights.saved, weights.record
    if saved is not None:
        return f'"{saved.name}" ({saved.license_name or saved.license}), trained on {saved.trained_on()}'
    if record is not None:
        return f"{record.name} ({record.license}), trained on {record.training_data} ({record.data_license})"
    return f"the weights in {Path(weights.origin).name}, whose training data are not recorded"


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
