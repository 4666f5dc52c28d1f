"""What every encoder has in common: a pyramid of features, its strides and channels, and parts that can be frozen."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """A backbone as a feature pyramid: ``encoder(x)`` is a list of maps, the finest first.

    A subclass sets the attributes below and writes ``forward``.

    Attributes:
        in_channels: Channels of the input ``[N, in_channels, H, W]``.
        channels: Of each map.
        strides: Of each map, in pixels of the input, never falling: a map is ``[N, channels, ⌈H/stride⌉, ⌈W/stride⌉]``
            (some backbones round down). Dilated backbones repeat a stride.
        min_size: Smaller inputs have to be padded to it first: see ``pad``.
        size_multiple: Inputs have to be padded to a multiple of it: see ``pad``.
    """

    in_channels: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    min_size: int = 1
    size_multiple: int = 1

    def __init__(self) -> None:
        super().__init__()
        self._frozen: tuple[str, ...] = ()  # modules
        self._frozen_parameters: tuple[str, ...] = ()

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[N, in_channels, H, W]`` to the maps, the finest first."""
        raise NotImplementedError

    @property
    def stem(self) -> str:
        """The key of the weight of the convolution that sees the picture, the first of them."""
        return self.stems()[0]

    def stems(self) -> list[str]:
        """The keys of the weights of all convolutions that see the picture: some networks begin with several."""
        found: list[str] = []

        def note(name: str, module: nn.Module, inputs: tuple[object, ...]) -> None:
            if inputs[0] is x and f"{name}.weight" not in found:
                found.append(f"{name}.weight")

        x = self._nothing()
        convolutions = [(name, m) for name, m in self.named_modules() if isinstance(m, nn.Conv2d)]
        hooks = [module.register_forward_pre_hook(partial(note, name)) for name, module in convolutions]
        try:
            self.run_on_meta(x)
        finally:
            for hook in hooks:
                hook.remove()
        if found:
            return found
        # One that changes the picture before: the first convolution of as many channels.
        return [f"{name}.weight" for name, module in convolutions if module.in_channels == self.in_channels][:1]

    def pad(self, x: Tensor) -> Tensor:
        """``x``, with zeros below and to the right where it is smaller than this backbone can take.

        Examples:
            >>> encoder = Encoder()
            >>> encoder.min_size = 32
            >>> encoder.pad(torch.zeros(1, 3, 7, 40)).shape
            torch.Size([1, 3, 32, 40])
        """
        if self.min_size == 1 and self.size_multiple == 1:
            return x
        below, right = (self._missing(size) for size in x.shape[-2:])
        return F.pad(x, (0, right, 0, below))

    def _missing(self, size: int) -> int:
        if self.size_multiple > 1:
            return -size % self.size_multiple
        return self.min_size - size if size < self.min_size else 0

    def freeze(self, upto: int | None = None) -> Encoder:
        """Stop training the first levels of the pyramid, their norms' statistics and their dropout included.

        It stays so through ``.train()``, until ``unfreeze()``.

        Args:
            upto: How many levels, counted from the input: ``freeze(upto=1)`` is the stem alone. None means all of them.

        Raises:
            ValueError: If there are not so many levels.

        Examples:
            >>> from segzoo.encoders import get_encoder
            >>> encoder = get_encoder("resnet10t", weights=None).freeze(upto=2).train()
            >>> encoder.model.layer1.training, encoder.model.layer2.training
            (False, True)
        """
        wanted = len(self.strides) if upto is None else upto
        if not isinstance(wanted, int) or isinstance(wanted, bool) or not 1 <= wanted <= len(self.strides):
            raise ValueError(f"upto is a number of levels, 1 to {len(self.strides)}, got {upto!r}")
        self.unfreeze()
        levels = self._levels()
        level = 1
        frozen = []
        for name, module in self.named_modules():
            if module is self:
                continue  # its mode is what unfreeze() goes back to
            # What has no parameters belongs to what came before it.
            parts = [levels[f"{name}.{key}"] for key, _ in module.named_parameters()] or [level]
            if max(parts) <= wanted:
                frozen.append(name)
            if not any(True for _ in module.children()):
                level = max(parts)
        self._frozen = tuple(frozen)
        stopped = [(name, p) for name, p in self.named_parameters() if levels[name] <= wanted and p.requires_grad]
        self._frozen_parameters = tuple(name for name, _ in stopped)
        for _, parameter in stopped:
            parameter.requires_grad_(False)
        return self.train(self.training)

    def unfreeze(self) -> Encoder:
        """Train again what ``freeze`` had stopped.

        Examples:
            >>> from segzoo.encoders import get_encoder
            >>> encoder = get_encoder("resnet10t", weights=None).freeze(upto=3).unfreeze()
            >>> all(parameter.requires_grad for parameter in encoder.parameters())
            True
        """
        parameters = dict(self.named_parameters())
        for name in self._frozen_parameters:
            if name in parameters:  # a norm that was replaced since may have others
                parameters[name].requires_grad_(True)
        self._frozen = self._frozen_parameters = ()
        return self.train(self.training)

    def train(self, mode: bool = True) -> Encoder:
        """As ``nn.Module.train``; frozen parts stay in eval mode."""
        super().train(mode)
        if self._frozen:
            modules = dict(self.named_modules())
            for name in self._frozen:
                if name in modules:
                    modules[name].training = False
        return self

    def _levels(self) -> dict[str, int]:
        """{parameter: the first level that depends on it}, from a backward pass that computes nothing."""
        maps, parameters = self.run_on_meta(self._nothing())
        levels = dict.fromkeys(parameters, len(maps))
        for level in range(len(maps), 0, -1):
            levels |= dict.fromkeys(_reached(maps[level - 1], parameters), level)
        return levels

    def train_for(self, levels: Iterable[int]) -> None:
        """Stop training what none of these maps depends on: a model that reads not all of them calls this.

        Most networks put every parameter into their last map, and nothing changes; parallel ones, as HRNet, do not.

        Args:
            levels: Indices of the maps.
        """
        maps, parameters = self.run_on_meta(self._nothing())
        used = set[str]().union(*(_reached(maps[level], parameters) for level in levels))
        for name, parameter in self.named_parameters():
            if name not in used:
                parameter.requires_grad_(False)

    def _nothing(self) -> Tensor:
        size = max(64, self.min_size, self.size_multiple)
        return torch.zeros(2, self.in_channels, size, size, device="meta")

    def run_on_meta(self, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The maps of ``x`` and the parameters that they were computed with, all without values."""
        meta = {
            name: torch.empty_like(tensor, device="meta").requires_grad_(isinstance(tensor, nn.Parameter))
            for name, tensor in [*self.named_parameters(), *self.named_buffers()]
        }
        with torch.enable_grad():
            maps = torch.func.functional_call(self, meta, (x,))
        return maps, {name: meta[name] for name, _ in self.named_parameters()}


def _reached(x: Tensor, parameters: dict[str, Tensor]) -> list[str]:
    """The names of the parameters that ``x`` depends on."""
    with torch.enable_grad():
        total = x.sum()
    gradients = torch.autograd.grad(total, list(parameters.values()), retain_graph=True, allow_unused=True)
    return [name for name, gradient in zip(parameters, gradients) if gradient is not None]
