"""Structural similarity as a loss, and the hybrid loss of salient object detection."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from segzoo.losses._inputs import Auto, Loss, safe_divide
from segzoo.losses._kernels import Kernel, evaluate, masked
from segzoo.losses.combine import CombinedLoss
from segzoo.losses.pixel import BCELoss
from segzoo.losses.region import JaccardLoss, checked_number

__all__ = ["HybridSaliencyLoss", "SSIMLoss"]

_C1, _C2 = 0.01**2, 0.03**2


class SSIMLoss(Loss):
    """1 - SSIM, the structural similarity of the probabilities and the target under a Gaussian window.

    0 for a perfect prediction; for the worst about 1 in flat areas and up to 2 at edges. The window is cut off by
    zeros at the picture's rim, as in BASNet's code (scikit-image and MONAI leave the rim out: inside of it the
    values are the same; MONAI's loss of pictures that were padded with zeros is this one). At ignored pixels both
    maps are 0, and the mean is over the counted ones: batches split over processes average to the same gradient
    where each has equally many.

    Args:
        mode: ``"binary"`` or ``"multilabel"``; the target has 0…1.
        window_size: Width of the window in pixels, odd.
        sigma: Standard deviation of the Gaussian in pixels.
        ignore_index: The target's value that does not count; ``"auto"``: None.

    Raises:
        ValueError: For arguments, shapes, dtypes or targets that do not fit, in one sentence that says which.

    Source:
        Wang et al.: Image Quality Assessment: From Error Visibility to Structural Similarity, 2004, equation 13, with
        K1 = 0.01, K2 = 0.03, L = 1; as a loss: Qin et al., BASNet, CVPR 2019.

    Examples:
        >>> import torch
        >>> target = torch.ones(1, 16, 16)
        >>> SSIMLoss()(torch.full((1, 1, 16, 16), 20.0), target)
        tensor(0.)
    """

    modes = ("binary", "multilabel")

    def __init__(
        self,
        mode: Literal["binary", "multilabel"] = "binary",
        *,
        window_size: int = 11,
        sigma: float = 1.5,
        ignore_index: int | Auto | None = "auto",
    ) -> None:
        super().__init__(mode, ignore_index)
        if type(window_size) is not int or window_size < 1 or window_size % 2 == 0:
            raise ValueError(f"window_size is {window_size!r}, expected an odd integer of at least 1")
        self.window_size = window_size
        self.sigma = checked_number("sigma", sigma)
        if not (self.sigma**2):
            raise ValueError(f"sigma is {self.sigma}, expected a number above 0")

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of logits ``[N, C, H, W]``; ``mask`` bool ``[N, H, W]``: False does not count either."""
        inputs = self._inputs(logits, target, mask)
        kernel = _Similarity(inputs.size, self._window())
        logits, target = inputs.logits.flatten(0, 1).unsqueeze(1), inputs.target.flatten(0, 1).unsqueeze(1)
        valid = None if inputs.valid is None else inputs.valid.flatten(0, 1).unsqueeze(1)
        total = evaluate(kernel, logits, target, valid).sum()
        counted = inputs.counted()
        return safe_divide(counted - total, counted)

    def _window(self) -> list[float]:
        half = self.window_size // 2
        weights = [math.exp(-(offset**2) / (2 * self.sigma**2)) for offset in range(-half, half + 1)]
        return [weight / sum(weights) for weight in weights]

    def _settings(self) -> dict[str, object]:
        return {"window_size": self.window_size, "sigma": self.sigma}


class _Similarity(Kernel):
    """Sums ``[n]`` over each plane ``[n, 1, H·W]``: of the SSIM of sigmoid(x) and the target at the counted pixels."""

    planes = True

    def __init__(self, size: tuple[int, int], window: list[float]) -> None:
        self.size = size
        self.window = window

    def value(self, x: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        p, t, counts = self._pictures(x, target, valid)
        brightness, contrast, below1, below2, _ = self._terms(p, t)
        return (brightness * contrast / (below1 * below2) * counts).sum((1, 2))

    def gradient(self, x: Tensor, target: Tensor, valid: Tensor | None, grad: Tensor) -> Tensor:
        p, t, counts = self._pictures(x, target, valid)
        brightness, contrast, below1, below2, (mean_p, mean_t) = self._terms(p, t)
        weight = grad.reshape(-1, 1, 1) * counts / (below1 * below2)
        similarity = weight * brightness * contrast
        of_square = -similarity / below2
        of_product = 2 * weight * brightness
        of_mean = 2 * (mean_t * weight * (contrast - brightness) + mean_p * similarity * (1 / below2 - 1 / below1))
        # The window is symmetric: spreading a gradient back is the same blur.
        of_mean, of_square, of_product = self._blur(torch.stack([of_mean, of_square, of_product]))
        slope = of_mean + 2 * p * of_square + t * of_product
        result: Tensor = (slope * p * (1 - p)).flatten(1).unsqueeze(1)
        return result

    def _pictures(self, x: Tensor, target: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor | float]:
        """Probabilities, target, and 1 where a pixel counts, each ``[n, H, W]``."""
        p = masked(x.sigmoid(), valid)
        counts: Tensor | float = 1.0
        if valid is not None:
            counts = valid.squeeze(1).unflatten(1, self.size).to(x.dtype)
        return p.squeeze(1).unflatten(1, self.size), target.squeeze(1).unflatten(1, self.size).to(x.dtype), counts

    def _terms(self, p: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        """The four factors of SSIM (two above, two below), and the two means."""
        mean_p, mean_t, square_p, square_t, product = self._blur(torch.stack([p, t, p * p, t * t, p * t]))
        means = mean_p * mean_t
        squares = mean_p * mean_p + mean_t * mean_t
        brightness = 2 * means + _C1
        contrast = 2 * (product - means) + _C2
        return brightness, contrast, squares + _C1, square_p + square_t - squares + _C2, (mean_p, mean_t)

    def _blur(self, x: Tensor) -> Tensor:
        """``[K, n, H, W]`` under the window, with zeros around."""
        half = len(self.window) // 2
        # Shifted sums: a convolution of one channel has nothing to vectorise over on a CPU, and may round to 10 bits on
        # a GPU (TF32), which the differences of squares do not survive.
        for dim, padding in ((2, (0, 0, half, half)), (3, (half, half))):
            length = x.shape[dim]
            padded = F.pad(x, padding)
            x = padded.narrow(dim, 0, length) * self.window[0]
            for k, weight in enumerate(self.window[1:], 1):
                x.add_(padded.narrow(dim, k, length), alpha=weight)
        return x


class HybridSaliencyLoss(CombinedLoss):
    """BASNet's loss of salient object detection: binary cross entropy + SSIM loss + IoU loss, by pixel, patch and map.

    Its parts, ``"bce"``, ``"ssim"`` and ``"iou"``, are :class:`BCELoss`, :class:`SSIMLoss` and :class:`JaccardLoss`
    with ``per_image=True``; see there for ranges and processes (equally many counted pixels and pictures in each
    process give the same gradient). For U²-Net's or BASNet's list of side outputs:
    ``DeepSupervisionLoss(HybridSaliencyLoss())``.

    Args:
        mode: ``"binary"``: logits ``[N, 1, H, W]``, target in 0…1.
        bce: Weight of the cross entropy.
        ssim: Weight of the structural similarity.
        iou: Weight of the intersection over union.
        smooth: Added above and below in the IoU. The paper's is 0, with which a picture without an object has an IoU
            loss of 1, and no gradient from it, until nothing at all is predicted; 1 where there are such pictures.
        ignore_index: The target's value that does not count; ``"auto"``: None.

    Source:
        Qin et al.: BASNet: Boundary-Aware Salient Object Detection, CVPR 2019.

    Examples:
        >>> import torch
        >>> loss, parts = HybridSaliencyLoss()(torch.zeros(1, 1, 8, 8), torch.ones(1, 8, 8), return_parts=True)
        >>> sorted(parts)
        ['bce', 'iou', 'ssim']
    """

    def __init__(
        self,
        mode: Literal["binary"] = "binary",
        *,
        bce: float = 1.0,
        ssim: float = 1.0,
        iou: float = 1.0,
        smooth: float = 0.0,
        ignore_index: int | Auto | None = "auto",
    ) -> None:
        if mode != "binary":
            raise ValueError(f"HybridSaliencyLoss has no mode {mode!r}, expected 'binary'")
        super().__init__(
            {
                "bce": (BCELoss(mode, ignore_index=ignore_index), bce),
                "ssim": (SSIMLoss(mode, ignore_index=ignore_index), ssim),
                "iou": (JaccardLoss(mode, smooth=smooth, per_image=True, ignore_index=ignore_index), iou),
            }
        )
