"""Fitting a checkpoint to a model that differs from it in its classes, its channels or its norm, and nothing else."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping

from torch import Tensor

__all__ = ["adapt_state_dict"]

logger = logging.getLogger(__name__)

# Parameters that only norms have: P.running_mean makes P a norm.
_NORM_MARKS = ("running_mean", "running_var", "v")


def adapt_state_dict(
    state: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    *,
    heads: Iterable[str],
    stem: str,
    origin: str = "the checkpoint",
) -> dict[str, Tensor]:
    """A state dict that fits ``target`` exactly, made of ``state`` where it fits and of ``target`` where it may not.

    Three differences are bridged, each logged: another number of classes (the heads keep ``target``'s values), another
    number of input channels (the stem's filters are summed to one, or repeated and scaled so that the sum of a
    filter stays), another norm (γ and β are kept, statistics dropped).

    Args:
        state: The checkpoint.
        target: The state dict of the model, freshly initialised.
        heads: Prefixes of the keys whose shapes depend on the number of classes.
        stem: Key of the first convolution's weight, ``[out, in, k, k]``.
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
    reset = [k for k in target if k.startswith(heads) and k in adapted and adapted[k].shape != target[k].shape]
    if reset:
        # A head is kept or replaced as a whole: half a head would be neither the checkpoint's nor a fresh one.
        for key in target:
            if key.startswith(heads):
                adapted[key] = target[key]
        logger.info("%s has another number of classes: %s start afresh", origin, ", ".join(heads))

    if stem in adapted and stem in target and adapted[stem].shape[1] != target[stem].shape[1]:
        channels = target[stem].shape[1]
        logger.info(
            "%s has %d input channels: its first convolution was adapted to %d",
            origin,
            adapted[stem].shape[1],
            channels,
        )
        adapted[stem] = _adapt_stem(adapted[stem], channels)

    if _adapt_norms(adapted, target):
        message = f"{origin} has another norm: γ and β were kept, its statistics were not; the model needs fine-tuning"
        logger.info(message)
        warnings.warn(message, UserWarning, stacklevel=2)

    _refuse_misfits(adapted, target, origin)
    return adapted


def _adapt_stem(weight: Tensor, channels: int) -> Tensor:
    """``[out, in, k, k]`` for another ``in``: one channel gets the sum, more get repeats whose sum stays the same.

    Example:
        >>> import torch
        >>> _adapt_stem(torch.ones(1, 3, 1, 1), 4).sum().item()
        3.0
    """
    given = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeats = -(-channels // given)
    repeated = weight.repeat(1, repeats, 1, 1)[:, :channels]
    return repeated * (given / channels)


def _adapt_norms(adapted: dict[str, Tensor], target: Mapping[str, Tensor]) -> bool:
    """Make the norms' keys those of ``target``, in place; whether any statistics that matter were lost or made up."""
    norms = {
        key.rpartition(".")[0] for keys in (adapted, target) for key in keys if key.rpartition(".")[2] in _NORM_MARKS
    }
    changed = False
    for norm in norms:
        have, want = ({k for k in keys if k.rpartition(".")[0] == norm} for keys in (adapted, target))
        if want == have or not want:
            continue
        changed |= bool((have ^ want) - {f"{norm}.num_batches_tracked"})
        for key in have - want:
            del adapted[key]
        for key in want - have:
            adapted[key] = target[key]
    return changed


def _refuse_misfits(adapted: Mapping[str, Tensor], target: Mapping[str, Tensor], origin: str) -> None:
    missing = [key for key in target if key not in adapted]
    unexpected = [key for key in adapted if key not in target]
    shapes = [
        f"{key} {list(adapted[key].shape)} for {list(target[key].shape)}"
        for key in target
        if key in adapted and adapted[key].shape != target[key].shape
    ]
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:4])}{' …' if len(keys) > 4 else ''})"
        for what, keys in (("missing keys", missing), ("unexpected keys", unexpected), ("other shapes", shapes))
        if keys
    ]
    if problems:
        raise ValueError(f"{origin} does not fit this model: {'; '.join(problems)}")
