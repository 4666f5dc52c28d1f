"""U²-Net as its authors' own module computes and trains it, in words of our own: what a plain loop is timed with.

Convolutions with biases before each norm, pooling and resizing where they are in the official module, six side maps and
their fusion; logits instead of the official's sigmoids, so that the loss is the stable one. State-dict keys are the
official ones (``stage1.rebnconvin.conv_s1.weight`` …), so that ``segzoo.weights.convert.u2net_from_official`` reads it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# arXiv 2005.09007, Table 1: height of the U (0: four dilated levels of one size), channels in, inside, out.
DOWN = {
    "stage1": (7, 3, 32, 64),
    "stage2": (6, 64, 32, 128),
    "stage3": (5, 128, 64, 256),
    "stage4": (4, 256, 128, 512),
    "stage5": (0, 512, 256, 512),
    "stage6": (0, 512, 256, 512),
}
UP = {
    "stage5d": (0, 1024, 256, 512),
    "stage4d": (4, 1024, 128, 256),
    "stage3d": (5, 512, 64, 128),
    "stage2d": (6, 256, 32, 64),
    "stage1d": (7, 128, 16, 64),
}


def like(x: Tensor, reference: Tensor) -> Tensor:
    return F.interpolate(x, size=reference.shape[2:], mode="bilinear")


def halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, stride=2, ceil_mode=True)


class Block(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv_s1 = nn.Conv2d(channels_in, channels_out, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(channels_out)
        self.relu_s1 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu_s1(self.bn_s1(self.conv_s1(x)))


class ResidualU(nn.Module):
    def __init__(self, height: int, channels_in: int, inside: int, channels_out: int) -> None:
        super().__init__()
        self.pooled = height > 0
        self.height = height or 4
        dilations = [1] * (height - 1) + [2] if height else [1, 2, 4, 8]
        self.rebnconvin = Block(channels_in, channels_out)
        for level, dilation in enumerate(dilations, 1):
            self.add_module(f"rebnconv{level}", Block(channels_out if level == 1 else inside, inside, dilation))
        for level in range(self.height - 1, 0, -1):
            out = channels_out if level == 1 else inside
            self.add_module(f"rebnconv{level}d", Block(2 * inside, out, 1 if height else dilations[level - 1]))

    def forward(self, x: Tensor) -> Tensor:
        start = self.rebnconvin(x)
        x, maps = start, []
        for level in range(1, self.height + 1):
            if self.pooled and 1 < level < self.height:
                x = halved(x)
            x = self.get_submodule(f"rebnconv{level}")(x)
            maps.append(x)
        for level in range(self.height - 1, 0, -1):
            beside = maps[level - 1]
            x = like(x, beside) if self.pooled and level < self.height - 1 else x
            x = self.get_submodule(f"rebnconv{level}d")(torch.cat((x, beside), 1))
        return x + start


class OfficialU2Net(nn.Module):
    """``[N, 3, H, W]`` to seven maps of logits ``[N, 1, H, W]``, the fused one first; in every mode."""

    def __init__(self, *, lite: bool = False) -> None:
        super().__init__()
        rows = {**DOWN, **UP}
        if lite:  # the paper's U²-Net†
            rows = {name: (row[0], 128 if name in UP else 64, 16, 64) for name, row in rows.items()}
            rows["stage1"] = (7, 3, 16, 64)
        for name, row in rows.items():
            self.add_module(name, ResidualU(*row))
        heads = [*reversed(UP), "stage6"]
        for i, name in enumerate(heads, 1):
            self.add_module(f"side{i}", nn.Conv2d(rows[name][3], 1, 3, padding=1))
        self.outconv = nn.Conv2d(len(heads), 1, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for name in DOWN:
            x = self.get_submodule(name)(halved(x) if maps else x)
            maps.append(x)
        features = [maps.pop()]
        for name in UP:
            beside = maps.pop()
            features.append(self.get_submodule(name)(torch.cat((like(features[-1], beside), beside), 1)))
        sides = [self.get_submodule(f"side{i}")(feature) for i, feature in enumerate(reversed(features), 1)]
        sides = [sides[0], *(like(side, sides[0]) for side in sides[1:])]
        return [self.outconv(torch.cat(sides, 1)), *sides]
