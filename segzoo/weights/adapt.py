"""Fitting a checkpoint to a model that differs from it in its classes, its channels or its norm, and nothing else."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping

from torch import Tensor

from segzoo._errors import caller_level, some_of

__all__ = ["adapt_state_dict", "adapt_stem", "refuse_misfits"]

logger = logging.getLogger(__name__)

# What a norm may have beside γ and β, and the sets in which the norms of this library have it.
_COUNTER = "num_batches_tracked"
_STATISTICS = {"running_mean", "running_var", "v", _COUNTER}
_COMPLETE: tuple[set[str], ...] = ({"running_mean", "running_var"}, {"running_var", "v"}, {"v"}, set())


def adapt_state_dict(
    state: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    *,
    heads: Iterable[str],
    stem: str | Iterable[str],
    optional: Iterable[str] = (),
    origin: str = "the checkpoint",
) -> dict[str, Tensor]:
    """A state dict that fits ``target`` exactly, made of ``state`` where it fits and of ``target`` where it may not.

    Four differences are bridged, the first three logged: another number of classes (the heads keep ``target``'s
    values), another number of input channels (the stem's filters are summed to one, or repeated and scaled by
    given/wanted, as timm does), an optional part that one side lacks, another norm (γ and β are kept, statistics
    dropped).

    Args:
        state: The checkpoint.
        target: The state dict of the model, freshly initialised.
        heads: Prefixes of the keys whose shapes depend on the number of classes.
        stem: Key of the first convolution's weight, ``[out, in, k, k]``, or keys of all that see the picture.
        optional: Prefixes of whole parts (auxiliary heads) that either side may lack: what the checkpoint has too many
            is left out, what it lacks starts afresh.
        origin: What the messages call the checkpoint.

    Returns:
        A dict with the keys and shapes of ``target``.

    Raises:
        ValueError: For any other difference; it lists the keys.

    Warns:
        UserWarning: If statistics of a norm were dropped or made up: the model needs fine-tuning.
    """
    adapted = dict(state)
    heads = tuple(heads)
    notes = []
    for part in optional:
        have, want = (any(key.startswith(part) for key in keys) for keys in (adapted, target))
        if have and not want:
            adapted = {key: value for key, value in adapted.items() if not key.startswith(part)}
            notes.append(f"a part this model was built without: {part.strip('.')} is left out")
        elif want and not have:
            adapted |= {key: value for key, value in target.items() if key.startswith(part)}
            notes.append(f"no {part.strip('.')}: it starts afresh")
    if _other_classes(adapted, target, heads):
        # A head is kept or replaced as a whole: half a head would be neither the checkpoint's nor a fresh one.
        adapted |= {key: value for key, value in target.items() if key.startswith(heads)}
        notes.append(f"another number of classes: {', '.join(h.strip('.') for h in heads)} start afresh")
    for key in [stem] if isinstance(stem, str) else stem:
        if key in adapted and key in target and adapted[key].shape[1] != target[key].shape[1]:
            given, wanted = adapted[key].shape[1], target[key].shape[1]
            adapted[key] = adapt_stem(adapted[key], wanted)
            notes.append(f"{given} input channels: {key} was adapted to {wanted}")
    other_norm = _adapt_norms(adapted, target)

    refuse_misfits(adapted, target, origin)
    for note in notes:
        logger.warning("%s has %s", origin, note)
    if other_norm:
        message = (
            f"{origin} has another norm: γ and β were kept, its statistics were not; the model needs fine-tuning "
            "(with an EvoNorm, nearly from scratch)"
        )
        warnings.warn(message, UserWarning, stacklevel=caller_level())
    return adapted


def _other_classes(state: Mapping[str, Tensor], target: Mapping[str, Tensor], heads: tuple[str, ...]) -> bool:
    biases = [key for key in target if key.startswith(heads) and key.endswith(".bias") and key in state]
    return any(len(state[key]) != len(target[key]) for key in biases)


def adapt_stem(weight: Tensor, channels: int) -> Tensor:
    """``[out, in, k, k]`` for another ``in``: the sum for one channel, else repeats scaled by given/wanted.

    Examples:
        >>> import torch
        >>> adapt_stem(torch.ones(1, 3, 1, 1), 4).sum().item()
        3.0
    """
    given = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeats = -(-channels // given)
    repeated = weight.repeat(1, repeats, 1, 1)[:, :channels]
    return repeated * (given / channels)


def _adapt_norms(adapted: dict[str, Tensor], target: Mapping[str, Tensor]) -> bool:
    """Bridge a change of norm, in place; whether statistics were dropped or made up.

    A checkpoint of another norm differs in the statistics of every norm, and in nothing else. Where some norms fit as
    they are, or one lacks γ or half its statistics, it is a damaged checkpoint and stays as it is, to be refused.
    """
    have, want = _modules_of(adapted), _modules_of(target)
    both = {norm: (have.get(norm, set()), want.get(norm, set())) for norm in have | want}
    if any(h - _STATISTICS != w - _STATISTICS for h, w in both.values()):
        return False
    statistics = {n: (h & _STATISTICS - {_COUNTER}, w & _STATISTICS - {_COUNTER}) for n, (h, w) in both.items()}
    for norm, (h, w) in both.items():  # a counter alone says nothing: it may come and go
        if statistics[norm][0] == statistics[norm][1]:
            _replace(adapted, target, norm, h ^ w)
    changed = {norm for norm, (h, w) in statistics.items() if h != w}
    fitting = any(h == w and w for h, w in statistics.values())
    if fitting or any(statistics[norm][0] not in _COMPLETE for norm in changed):
        return False
    for norm in changed:
        _replace(adapted, target, norm, _STATISTICS)
    return bool(changed)


def _modules_of(keys: Iterable[str]) -> dict[str, set[str]]:
    """{module: names of its parameters}, of all modules: those that are no norm have the same on both sides."""
    modules: dict[str, set[str]] = {}
    for key in keys:
        module, _, name = key.rpartition(".")
        modules.setdefault(module, set()).add(name)
    return modules


def _replace(adapted: dict[str, Tensor], target: Mapping[str, Tensor], norm: str, names: Iterable[str]) -> None:
    """Give the named parameters of a norm the values of ``target``, or take them away where it has none."""
    for key in (f"{norm}.{name}" for name in names):
        adapted.pop(key, None)
        if key in target:
            adapted[key] = target[key]


def refuse_misfits(adapted: Mapping[str, Tensor], target: Mapping[str, Tensor], origin: str) -> None:
    """Raise ValueError where keys or shapes differ; it lists them."""
    missing = [key for key in target if key not in adapted]
    unexpected = [key for key in adapted if key not in target]
    shapes = [
        f"{key} {list(adapted[key].shape)} for {list(target[key].shape)}"
        for key in target
        if key in adapted and adapted[key].shape != target[key].shape
    ]
    kinds = [
        f"{key} {str(adapted[key].dtype).removeprefix('torch.')}"
        for key in target
        if key in adapted and target[key].is_floating_point() and not adapted[key].is_floating_point()
    ]
    lists = {"missing keys": missing, "unexpected keys": unexpected, "other shapes": shapes, "other kinds": kinds}
    problems = [f"{len(keys)} {what} ({some_of(keys)})" for what, keys in lists.items() if keys]
    if problems:
        raise ValueError(f"{origin} does not fit this model: {'; '.join(problems)}")
