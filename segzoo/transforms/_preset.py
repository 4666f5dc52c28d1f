"""What the presets have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from segzoo.transforms._inputs import ImageLike, Pair, as_given, read_pair

__all__ = ["Preset"]


class Preset:
    """The base of the presets: what comes in, what goes out, how it is shown."""

    def __call__(self, image: ImageLike, mask: ImageLike | None = None) -> Any:
        """Transform a picture, or a batch of them, alone or with its mask.

        Args:
            image: ``[C, H, W]`` or ``[N, C, H, W]`` on any device, uint8, uint16, int16 or floating point in 0…1, any
                number of channels; or a PIL image (RGB or L, turned upright as its EXIF data says).
            mask: ``[H, W]`` or ``[1, H, W]``; of a batch ``[N, H, W]`` or ``[N, 1, H, W]``; or a PIL image.

        Returns:
            The picture, float32 and normalised; with a mask the pair of it and its target. torchvision's
            ``tv_tensors`` stay what they are, all else becomes plain tensors, on the device it was on.

        Raises:
            TypeError: For other types.
            ValueError: For shapes, dtypes or values that do not fit, in one sentence.
        """
        return as_given(image, mask, *self._apply(*read_pair(image, mask)))

    def _apply(self, images: Tensor, masks: Tensor | None) -> Pair:
        """``[N, C, H, W]`` and ``[N, H, W]`` to pictures and targets."""
        raise NotImplementedError

    def __repr__(self) -> str:
        settings = (f"{name}={value!r}" for name, value in vars(self).items() if value is not None)
        return f"{type(self).__name__}({', '.join(settings)})"
