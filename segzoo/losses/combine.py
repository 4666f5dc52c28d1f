"""Losses made of losses: weighted sums, and one loss for many outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from segzoo._errors import unknown_name
from segzoo.losses._inputs import is_number

__all__ = ["CombinedLoss", "DeepSupervisionLoss"]

Parts = dict[str, Tensor]
_TAKEN = ("mask", "return_parts")


class CombinedLoss(nn.Module):
    """A weighted sum of losses that reports its parts by name.

    Args:
        parts: Name → (loss, weight). The weights may be changed later, in ``weights``, such as once an epoch.

    Raises:
        ValueError: For no parts, a name that is not an identifier, a weight that is not a finite number.

    Examples:
        >>> import torch
        >>> from segzoo.losses import CrossEntropyLoss, DiceLoss
        >>> loss = CombinedLoss({"ce": (CrossEntropyLoss(), 1.0), "dice": (DiceLoss(), 0.5)})
        >>> total, parts = loss(torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 8).long(), return_parts=True)
        >>> parts["ce"]
        tensor(1.3863)
    """

    def __init__(self, parts: Mapping[str, tuple[nn.Module, float]]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("parts is empty, expected name → (loss, weight)")
        self.losses = nn.ModuleDict()
        self.weights: dict[str, float] = {}
        for name, part in parts.items():
            if not isinstance(name, str) or not name.isidentifier() or hasattr(self.losses, name) or name in _TAKEN:
                raise ValueError(f"a part is named {name!r}, expected a plain name such as 'dice'")
            if not isinstance(part, Sequence) or len(part) != 2 or not isinstance(part[0], nn.Module):
                raise ValueError(f"part {name!r} is {part!r}, expected (loss, weight)")
            self.losses[name] = part[0]
            self.weights[name] = _finite(f"the weight of {name!r}", part[1])

    @overload
    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        mask: Tensor | None = ...,
        *,
        return_parts: Literal[False] = ...,
        **options: Any,
    ) -> Tensor: ...

    @overload
    def forward(
        self, logits: Tensor, target: Tensor, mask: Tensor | None = ..., *, return_parts: Literal[True], **options: Any
    ) -> tuple[Tensor, Parts]: ...

    def forward(
        self, logits: Tensor, target: Tensor, mask: Tensor | None = None, *, return_parts: bool = False, **options: Any
    ) -> Tensor | tuple[Tensor, Parts]:
        """The weighted sum.

        Args:
            logits: As the parts expect.
            target: As the parts expect.
            mask: Where pixels count, for every part.
            return_parts: Also return each part's own value by name, without its weight and without gradient.
            options: Keyword arguments of one part, by its name: ``boundary={"distance": distance}``.
        """
        for name in options:
            if name not in self.losses:
                raise unknown_name("part", name, self.losses)
        given = _given(logits, target, mask)
        values = {name: loss(*given, **options.get(name, {})) for name, loss in self.losses.items()}
        total = torch.stack([self.weights[name] * value for name, value in values.items()]).sum(0)
        return (total, {name: value.detach() for name, value in values.items()}) if return_parts else total

    def extra_repr(self) -> str:
        """The weights."""
        return f"weights={self.weights}"


class DeepSupervisionLoss(nn.Module):
    """One loss for every output of a model in train mode: the main one, side outputs, auxiliary heads.

    Args:
        loss: A loss, such as ``BCELoss()``; called with each output and the same target.
        weights: One number for each output, the main one first; None: 1 for each, the plain sum of the U²-Net paper's
            equation 1.

    Raises:
        ValueError: Where there are more or fewer outputs than weights.

    Examples:
        >>> import torch
        >>> from segzoo.losses import BCELoss
        >>> outputs = [torch.zeros(1, 1, 8, 8)] * 7  # a U²-Net's, in train mode
        >>> DeepSupervisionLoss(BCELoss())(outputs, torch.ones(1, 8, 8))  # 7 log 2
        tensor(4.8520)
    """

    def __init__(self, loss: nn.Module, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.weights = None if weights is None else [_finite("a weight", weight) for weight in weights]

    def forward(
        self, outputs: Tensor | Sequence[Tensor], target: Tensor, mask: Tensor | None = None, **options: Any
    ) -> Tensor | tuple[Tensor, Parts]:
        """The weighted sum over the outputs; of a single tensor (eval mode) its loss, without a weight.

        Args:
            outputs: A tensor ``[N, C, H, W]`` or a list of such, each at the target's size.
            target: As the loss expects.
            mask: Where pixels count.
            options: More arguments of the loss. With a :class:`CombinedLoss` and ``return_parts=True`` the parts are
                weighted sums over the outputs too.
        """
        if isinstance(outputs, Tensor):
            return self.loss(*_given(outputs, target, mask), **options)  # type: ignore[no-any-return]
        weights = [1.0] * len(outputs) if self.weights is None else self.weights
        if len(weights) != len(outputs) or not outputs:
            expected = "at least one" if self.weights is None else f"{len(weights)}, one for each weight"
            raise ValueError(f"there are {len(outputs)} outputs, expected {expected}")
        results = [self.loss(*_given(output, target, mask), **options) for output in outputs]
        if isinstance(results[0], Tensor):
            return _weighted_sum(results, weights)
        total = _weighted_sum([result[0] for result in results], weights)
        names = results[0][1]
        return total, {name: _weighted_sum([result[1][name] for result in results], weights) for name in names}

    def extra_repr(self) -> str:
        """The weights."""
        return "" if self.weights is None else f"weights={self.weights}"


def _given(logits: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    """The arguments of a loss, which may be another library's and know of no mask."""
    return (logits, target) if mask is None else (logits, target, mask)


def _weighted_sum(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([weight * value for value, weight in zip(values, weights)]).sum(0)


def _finite(name: str, value: float) -> float:
    if not is_number(value) or not abs(value) < float("inf"):
        raise ValueError(f"{name} is {value!r}, expected a finite number")
    return float(value)
