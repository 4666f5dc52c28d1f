"""Names to factories: register_model, create_model, list_models. Models are imported when they are asked for."""

from __future__ import annotations

import fnmatch
import functools
import importlib
import inspect
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

    The models remember the arguments of the call, for ``save_pretrained``, and ``weights="local-dir:PATH"`` brings back
    those of a model that was saved, but for the ones that are given. For that a factory ends in
    ``segzoo.models.base.build_model``.

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
        from segzoo.weights.folder import LOCAL_DIR

        weights = given.arguments.get("weights")
        if isinstance(weights, str) and weights.startswith(LOCAL_DIR):
            given = signature.bind(**_from_folder(name, signature, weights, _named(given)))
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


def _from_folder(name: str, signature: inspect.Signature, weights: str, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a saved model, those that were given in their place, and its weights as they were read."""
    from segzoo.weights.folder import read_folder

    checkpoint = read_folder(weights)
    saved = checkpoint.saved
    if saved.architecture != name:
        raise ValueError(
            f"{weights} holds a {saved.architecture}, not a {name}: segzoo.create_model({weights!r}) gives it"
        )
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    unknown = [argument for argument in saved.arguments if argument not in signature.parameters]
    if unknown and not takes_any:
        raise ValueError(f"{weights} has arguments that {name} does not take: {', '.join(unknown)}")
    return {"in_channels": saved.in_channels, **saved.arguments, **given, "weights": checkpoint}


def find_factory(name: str) -> Callable[..., Any] | None:
    """The factory of that name, or None."""
    _import_models()
    return _factories.get(name)


def task_of(name: str) -> Task:
    """What a registered model is for."""
    _import_models()
    return _tasks[name]


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """A model by name: ``create_model("u2net_lite")`` is ``segzoo.u2net_lite()``, default weights and all.

    Args:
        name: A factory's name, or with the tag of its weights: ``"u2net_lite.duts"``; or ``"local-dir:PATH"``: the
            model in a folder that ``save_pretrained`` wrote.
        **kwargs: The factory's arguments, as ``weights=None``, ``num_classes=2``, ``norm="group"``; of a folder's model
            those that shall be other than saved.

    Raises:
        ValueError: For an unknown name or tag, with the nearest one, or a folder whose files do not belong together.
        FileNotFoundError: If there is no such folder, with the nearest one.
        TypeError: If weights are given twice, or the factory has no such argument.

    Examples:
        >>> create_model("u2net_lite.duts").num_classes
        1
    """
    if not isinstance(name, str):
        raise TypeError(f"a model's name is a str, got {type(name).__name__}")
    from segzoo.weights.folder import LOCAL_DIR, read_architecture

    if name.startswith(LOCAL_DIR):
        architecture, dot, tag = read_architecture(name), ".", name
    else:
        architecture, dot, tag = name.partition(".")
    factory = find_factory(architecture)
    if factory is None:
        from segzoo.weights.convert import SUFFIXES

        if name == tag:
            raise ValueError(f"{name} holds a {architecture!r}, which is no registered model: import what registers it")
        if name.lower().endswith(SUFFIXES):
            raise ValueError(f"{name!r} is a weights file: name its model, as in segzoo.u2net_lite(weights={name!r})")
        if Path(name).is_dir():
            raise ValueError(f"{name!r} is a folder: {LOCAL_DIR + name!r} is the model that was saved in it")
        raise _unknown("model", architecture, _factories)
    if dot:
        if "weights" in kwargs:
            raise TypeError(f"{name!r} names its weights already; got weights={kwargs['weights']!r} too")
        kwargs["weights"] = tag
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
