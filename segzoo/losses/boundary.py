"""The boundary loss: how far from the true boundary probability lies."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from segzoo.losses._inputs import Auto, Inputs, Loss, safe_divide
from segzoo.losses._kernels import SigmoidOverlap, SoftmaxProduct, evaluate
from segzoo.losses.region import Classes, checked_classes, chosen
from segzoo.ops.distance import signed_distance

__all__ = ["BoundaryLoss"]


class BoundaryLoss(Loss):
    """Boundary loss: the mean of ``φ p``, the probabilities weighted by their signed distance to the true boundary.

    φ is in pixels, positive outside of the object, as in the paper's code: the distance to the nearest object pixel
    outside, 1 minus the distance to the nearest other pixel inside, 0 where a class has no boundary in a picture.
    The lowest value, of a perfect prediction, is the mean of min(φ, 0), 0 or below; the highest puts
    all probability where φ is largest. It says nothing about where there is no boundary: use it beside a region loss,
    as :class:`CombinedLoss`. Batches split over processes average to the same gradient where each has equally many
    counted pixels.

    Args:
        mode: ``"multiclass"`` (softmax, integer target ``[N, H, W]``), ``"binary"`` or ``"multilabel"`` (sigmoid, 0
            and 1).
        classes: ``"all"``, or a list of class indices (the paper's leaves out the background).
        ignore_index: The label that does not count, nor as a neighbour; ``"auto"``: 255 in multiclass, None elsewhere.

    Raises:
        ValueError: For arguments, shapes, dtypes or labels that do not fit, in one sentence that says which.

    Source:
        Kervadec et al.: Boundary loss for highly unbalanced segmentation, MIDL 2019, equation 5.

    Examples:
        >>> import torch
        >>> target = torch.tensor([[[1, 1, 0, 0]]])
        >>> BoundaryLoss("binary")(torch.zeros(1, 1, 1, 4), target)  # half of (-1 + 0 + 1 + 2) / 4
        tensor(0.2500)
    """

    hard_targets = True

    def __init__(
        self,
        mode: Literal["multiclass", "binary", "multilabel"] = "multiclass",
        *,
        classes: Classes = "all",
        ignore_index: int | Auto | None = "auto",
    ) -> None:
        super().__init__(mode, ignore_index)
        self.classes = checked_classes(classes)
        if self.classes == "present":
            raise ValueError("classes is 'present', expected 'all' or a list: a class without a boundary adds 0 anyway")

    def forward(
        self, logits: Tensor, target: Tensor, mask: Tensor | None = None, *, distance: Tensor | None = None
    ) -> Tensor:
        """The loss of logits ``[N, C, H, W]``.

        Args:
            logits: ``[N, C, H, W]``.
            target: As the mode says; with ``distance`` only its ignored pixels matter.
            mask: bool ``[N, H, W]``: False does not count.
            distance: φ ``[N, C, H, W]``, made beforehand (:func:`segzoo.ops.signed_distance` of each class's mask),
                so that the training loop does not wait for it; None: computed here.
        """
        inputs = self._inputs(logits, target, mask)
        channels = logits.shape[1]
        wanted = list(range(channels)) if isinstance(self.classes, str) else sorted(self.classes)
        counts = torch.ones(channels, device=logits.device)
        if not isinstance(self.classes, str):
            counts = chosen(self.classes, channels, logits.device).float()
        if distance is None:
            phi = self._distances(inputs, wanted)
        else:
            if not isinstance(distance, Tensor):
                raise ValueError(f"distance is a {type(distance).__name__}, expected a tensor {list(logits.shape)}")
            if distance.shape != logits.shape or not distance.is_floating_point():
                given = f"{distance.dtype} {list(distance.shape)}"
                raise ValueError(f"distance is {given}, expected floating point {list(logits.shape)}")
            phi = distance.detach().flatten(2)
            if len(wanted) < channels:
                phi = torch.where(counts.unsqueeze(1) > 0, phi, 0)
        if self.mode == "multiclass":
            total = evaluate(SoftmaxProduct(), inputs.logits, phi, inputs.valid).sum()
            entries = inputs.counted() * len(wanted)
        else:
            if inputs.valid is not None:
                phi = torch.where(inputs.valid, phi, 0)
            total = evaluate(SigmoidOverlap(), inputs.logits, phi, inputs.valid)[:, 0].sum()
            entries = self._counted_entries(inputs, counts)
        return safe_divide(total, entries)

    def _distances(self, inputs: Inputs, wanted: list[int]) -> Tensor:
        """φ ``[N, C, H·W]`` in float32."""
        target, valid = inputs.map(inputs.target), None if inputs.valid is None else inputs.map(inputs.valid)
        if self.mode == "multiclass":
            objects = torch.stack([target == c for c in wanted], 1)
            valid = None if valid is None else valid.unsqueeze(1)
        else:
            objects = torch.stack([target[:, c] == 1 for c in wanted], 1)
            valid = None if valid is None else torch.stack([valid[:, c] for c in wanted], 1)
        phi = signed_distance(objects, valid).flatten(2)
        channels = inputs.logits.shape[1]
        if len(wanted) == channels:
            return phi
        maps = dict(zip(wanted, phi.unbind(1)))
        nothing = torch.zeros_like(phi[:, 0])
        return torch.stack([maps.get(c, nothing) for c in range(channels)], 1)

    def _counted_entries(self, inputs: Inputs, counts: Tensor) -> Tensor:
        if inputs.valid is None:
            return counts.to(inputs.dtype).sum() * (inputs.target.shape[0] * inputs.target.shape[2])
        return (inputs.valid.sum((0, 2)) * counts).sum().to(inputs.dtype)

    def _settings(self) -> dict[str, object]:
        return {"classes": self.classes if self.mode != "binary" else None}
