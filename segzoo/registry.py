"""Names to factories: register_model, create_model, list_models. Models are imported when they are asked for."""

from __future__ import annotations

import fnmatch
import functools
import importlib
import inspect
import os
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

if TYPE_CHECKING:
    from torch import nn

__all__ = ["create_model", "list_models", "register_model"]

Task = Literal["salient", "semantic", "instance"]
TASKS: tuple[Task, ...] = ("salient", "semantic", "instance")

Factory = TypeVar("Factory", bound=Callable[..., Any])

_factories: dict[str, Callable[..., Any]] = {}
_tasks: dict[str, Task] = {}


def register_model(task: Task) -> Callable[[Factory], Factory]:
    """Decorator that makes a factory known under its own name, and its models ones that can be saved.

    The models remember the arguments of the call, for ``save_pretrained``; ``weights="local-dir:PATH"`` and
    ``"hf-hub:org/repo"`` bring back those of a model that was saved, and published weights those they need, but for the
    ones that are given. For that a factory ends in ``segzoo.models.base.build_model``.

    Args:
        task: ``"salient"``, ``"semantic"`` or ``"instance"``.

    Examples:
        >>> @register_model("salient")
        ... def my_net(weights=None, *, num_classes=None, in_channels=3, norm="batch", progress=True): ...
        >>> "my_net" in list_models()
        True
        >>> del _factories["my_net"], _tasks["my_net"]
    """
    if task not in TASKS:
        raise _unknown("task", task, TASKS)

    def register(factory: Factory) -> Factory:
        if factory.__name__ in _factories:
            raise ValueError(f"a model {factory.__name__!r} is registered already")
        remembering = cast(Factory, _remembering(factory))
        _factories[factory.__name__] = remembering
        _tasks[factory.__name__] = task
        return remembering

    return register


def _remembering(factory: Callable[..., Any]) -> Callable[..., Any]:
    """The factory, whose models know how they were made. Only here is it known which arguments were given."""
    name, signature = factory.__name__, inspect.signature(factory)

    @functools.wraps(factory)
    def build(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError:
            return factory(*args, **kwargs)  # refused in Python's own words, with the factory's name
        given = _completed(name, given)
        model = factory(*given.args, **given.kwargs)
        given.apply_defaults()
        if hasattr(model, "remember_call"):
            model.remember_call(name, _named(given))
        return model

    return build


def _named(call: inspect.BoundArguments) -> dict[str, Any]:
    """{argument: value}, those of ``**arguments`` among the others."""
    named: dict[str, Any] = {}
    for parameter in call.signature.parameters.values():
        if parameter.name in call.arguments:
            value = call.arguments[parameter.name]
            named |= value if parameter.kind is parameter.VAR_KEYWORD else {parameter.name: value}
    return named


def _completed(name: str, given: inspect.BoundArguments) -> inspect.BoundArguments:
    """The call with the arguments that its weights bring, but for those that are given, and a saved model as read."""
    from segzoo.weights.folder import Checkpoint
    from segzoo.weights.hub import Access
    from segzoo.weights.resolve import arguments_of, is_saved, read_saved

    signature, named = given.signature, _named(given)
    if "weights" not in signature.parameters:
        return given
    weights = named.get("weights", signature.parameters["weights"].default)
    if is_saved(weights):
        weights = read_saved(weights, access=Access(progress=named.get("progress", True)))
    if isinstance(weights, Checkpoint):
        brought, saved = dict(weights.arguments), weights.saved
        if saved is not None and saved.architecture != name:
            raise ValueError(
                f"{weights.origin} holds a {saved.architecture}, not a {name}: "
                f"segzoo.create_model({weights.origin!r}) gives it"
            )
    else:
        brought = arguments_of(name, weights)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    unknown = [argument for argument in brought if argument not in signature.parameters]
    if unknown and not takes_any:
        origin = weights.origin if isinstance(weights, Checkpoint) else weights
        raise ValueError(f"{origin} has arguments that {name} does not take: {', '.join(unknown)}")
    return signature.bind(**{**brought, **named, "weights": weights})


def find_factory(name: str) -> Callable[..., Any] | None:
    """The factory of that name, or None."""
    _import_models()
    return _factories.get(name)


def default_weights(name: str) -> str | None:
    """What a factory's ``weights=`` is where it is not given: the tag of published weights, or None.

    Examples:
        >>> default_weights("u2net_lite")
        'duts'
    """
    parameter = inspect.signature(_factories[name]).parameters.get("weights")
    return None if parameter is None else parameter.default


def task_of(name: str) -> Task:
    """What a registered model is for."""
    _import_models()
    return _tasks[name]


def create_model(
    name: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A model by name: ``create_model("u2net_lite")`` is ``segzoo.u2net_lite()``, default weights and all.

    Args:
        name: A factory's name, or with the tag of its weights: ``"u2net_lite.duts"``; or a model that
            ``save_pretrained`` wrote: ``"local-dir:PATH"``, or ``"hf-hub:org/repo"`` and
            ``"hf-hub:org/repo@revision"`` on the Hugging Face Hub.
        revision: Of a repository of the Hub: a branch, a tag or a commit; None: the one in the name, else ``main``.
        cache_dir: Where downloaded files are kept; None: the caches of huggingface_hub (``HF_HOME``) and of torch
            (``TORCH_HOME``).
        force_download: Whether to ask the network again for what is kept: a branch of the Hub, which is otherwise what
            it was when it was first fetched.
        local_files_only: Whether to use only what is on this machine; with ``HF_HUB_OFFLINE=1`` it always is so.
        token: For the Hub; None: the one of ``hf auth login`` or ``HF_TOKEN``.
        **kwargs: The factory's arguments, as ``weights=None``, ``num_classes=2``, ``norm="group"``; of a saved model
            those that shall be other than saved.

    Raises:
        ValueError: For an unknown name or tag, with the nearest one, or a folder whose files do not belong together.
        FileNotFoundError: If there is no such folder, with the nearest one, or no such repository or revision.
        PermissionError: If the repository may not be read.
        ConnectionError: If the weights are not on this machine and could not be downloaded.
        TypeError: If weights are given twice, or the factory has no such argument.

    Examples:
        >>> create_model("u2net_lite.duts").num_classes
        1
    """
    if not isinstance(name, str):
        raise TypeError(f"a model's name is a str, got {type(name).__name__}")
    from segzoo.weights.hub import Access
    from segzoo.weights.resolve import is_saved, read_checkpoint, read_saved

    access = Access(cache_dir, force_download, local_files_only, token, kwargs.get("progress", True))
    if is_saved(name):
        checkpoint = read_saved(name, revision=revision, access=access)
        assert checkpoint.saved is not None
        architecture, weights = checkpoint.saved.architecture, cast(Any, checkpoint)
    else:
        architecture, _, weights = name.partition(".")
    factory = find_factory(architecture)
    if factory is None:
        from segzoo.weights.convert import SUFFIXES
        from segzoo.weights.folder import LOCAL_DIR

        if is_saved(name):
            raise ValueError(f"{name} holds a {architecture!r}, which is no registered model: import what registers it")
        if name.lower().endswith(SUFFIXES):
            raise ValueError(f"{name!r} is a weights file: name its model, as in segzoo.u2net_lite(weights={name!r})")
        if Path(name).is_dir():
            raise ValueError(f"{name!r} is a folder: {LOCAL_DIR + name!r} is the model that was saved in it")
        raise _unknown("model", architecture, _factories)
    if weights:
        if "weights" in kwargs:
            raise TypeError(f"{name!r} names its weights already; got weights={kwargs['weights']!r} too")
        kwargs["weights"] = weights
    else:
        weights = kwargs.get("weights", default_weights(architecture))
    options = {"revision": revision, "cache_dir": cache_dir, "force_download": force_download, "token": token}
    if weights is None and (given := [key for key, value in options.items() if value not in (None, False)]):
        raise ValueError(f"{given[0]}={options[given[0]]!r} is for weights, and {name!r} is made without")
    if weights is None and local_files_only and kwargs.get("encoder_weights", "") is not None:
        raise ValueError(
            f"local_files_only is for weights, and {name!r} is made without; its encoder's are timm's or torchvision's "
            "to fetch, which HF_HUB_OFFLINE=1 forbids, or encoder_weights=None"
        )
    if (revision is not None or access != Access(progress=access.progress)) and isinstance(weights, (str, os.PathLike)):
        kwargs["weights"] = read_checkpoint(architecture, weights, revision=revision, access=access)
    model: nn.Module = factory(**kwargs)
    return model


def create_untrained(name: str, **kwargs: Any) -> nn.Module:
    """A model by name with random weights, its encoder's too: nothing is read or downloaded.

    Args:
        name: A factory's name.
        **kwargs: The factory's arguments.

    Examples:
        >>> create_untrained("fpn", num_classes=5).num_classes
        5
    """
    factory = find_factory(name)
    if factory is None:
        raise _unknown("model", name, _factories)
    untrained = {key: None for key in ("weights", "encoder_weights") if key in inspect.signature(factory).parameters}
    model: nn.Module = factory(**{**untrained, **kwargs})
    return model


def list_models(pattern: str = "*", *, task: Task | None = None, pretrained: bool | None = None) -> list[str]:
    """The names of all models that match, sorted.

    Args:
        pattern: With wildcards: ``"u2net*"``.
        task: Only those for ``"salient"``, ``"semantic"`` or ``"instance"`` segmentation.
        pretrained: True for those with published weights, False for those without.

    Raises:
        ValueError: For an unknown task.

    Examples:
        >>> list_models("u2net*")
        ['u2net_full', 'u2net_lite']
    """
    if task is not None and task not in TASKS:
        raise _unknown("task", task, TASKS)
    _import_models()
    names = [name for name in _factories if fnmatch.fnmatchcase(name, pattern) and task in (None, _tasks[name])]
    if pretrained is not None:
        from segzoo.weights.catalog import list_weights

        names = [name for name in names if bool(list_weights(name)) == pretrained]
    return sorted(names)


def _import_models() -> None:
    package = importlib.import_module("segzoo.models")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith("_"):
            continue  # a part of another that is imported when it is needed
        importlib.import_module(f"segzoo.models.{module.name}")


def _unknown(kind: str, given: object, known: Any) -> ValueError:
    from segzoo._errors import unknown_name

    return unknown_name(kind, given, known)
