"""Fewer channels: a model that is really smaller and faster, and has to be fine-tuned."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from segzoo._errors import unknown_name
from segzoo.layers._channels import Channels, Slot, trace_channels
from segzoo.layers._sizes import assign
from segzoo.models._pretrained import Pretrained, structure_of
from segzoo.models.base import check_positive, evaluating

__all__ = ["prune"]

By = Literal["scale", "l1", "l2"]
Scope = Literal["layer", "global"]
Model = TypeVar("Model", bound=nn.Module)

_TOLERANCE = 1e-4  # of the outputs' range
_EQUAL = 1e-3  # relative spread of γ that says nothing: of norms that are new, or were folded

logger = logging.getLogger(__name__)


def prune(
    model: Model,
    amount: float,
    *,
    by: By = "scale",
    scope: Scope = "layer",
    round_to: int = 8,
    example: Tensor | None = None,
) -> Model:
    """A copy of the model without its least important channels: smaller, faster, and in need of fine-tuning.

    Channels that a residual sum ties together go together; what takes a channel (convolutions after a concatenation,
    depthwise ones, norms, linear layers) loses it too. Inputs and outputs of the model stay, and so does what is not
    understood: channels that are split or shuffled, grouped convolutions, what a layer norm or an attention sees. The
    copy is compared with the model that ignores those channels before it is given out. A detector loses channels of its
    backbone. ``save_pretrained`` and ``from_pretrained`` work as with any model.

    Args:
        model: Of this library, or any module that runs on the meta device; it stays as it is.
        amount: Share of the channels that go, 0 ≤ amount < 1, of those layers that may lose any.
        by: What a channel's importance is. ``"scale"``: |γ| of the norms it goes through, and the L1 norm of the
            filters that make it where there is no norm, or where all γ are alike, as they are where norms were folded.
            ``"l1"`` and ``"l2"``: the norm of the filters. The mean, where a sum ties several.
        scope: ``"layer"``: each layer loses the same share. ``"global"``: one threshold for all, which is for models
            trained with a penalty on γ; norms of filters are measured by the mean of their layer.
        round_to: How many channels stay is a multiple of it, the nearest one, and at least one such; those of layers
            that lose none are left as they are. 1: exactly as many as ``amount`` says.
        example: The input, where it is no picture ``[1, C, 96, 128]``.

    Returns:
        The smaller model, in the mode and on the device of the given one.

    Raises:
        ValueError: For an amount out of range, an unknown ``by`` or ``scope``, a model that does not run on the meta
            device, or where no channel can go.
        TypeError: If ``model`` is no module.
        RuntimeError: If the smaller model does not compute what it should; that is an error of this function.

    Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", 2017 (arXiv 1708.06519),
    Section 3 ("scale"); Li et al., "Pruning Filters for Efficient ConvNets", 2017 (arXiv 1608.08710), Section 3.1
    ("l1").

    Examples:
        >>> from segzoo import u2net_lite
        >>> smaller = prune(u2net_lite(), 0.5)
        >>> sum(parameter.numel() for parameter in smaller.parameters())
        284813
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"prune takes a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(amount, (int, float)) or not 0 <= amount < 1:
        raise ValueError(f"amount is the share of the channels that go, 0 ≤ amount < 1, got {amount!r}")
    for kind, given, known in (("by", by, By), ("scope", scope, Scope)):
        if given not in get_args(known):
            raise unknown_name(kind, given, get_args(known))
    check_positive(round_to=round_to)
    if any(tensor.is_meta for tensor in model.parameters()):
        raise ValueError("a model on the meta device has no values to prune by: load its weights first")
    pruned = copy.deepcopy(model)
    if amount == 0:
        return pruned
    body = _body(pruned)
    channels = trace_channels(body, example)
    layers = _layers(channels)
    if not layers:
        raise ValueError(
            f"no channel of this {type(model).__name__} can go: all depend on others in ways not understood"
        )
    tensors = {**dict(body.named_parameters()), **dict(body.named_buffers())}
    scores = _scores(channels, layers, tensors, by)
    gone = _least(layers, scores, amount, scope, round_to)
    if not gone:
        raise ValueError(
            f"amount={amount} with round_to={round_to} leaves all {sum(layer.size for layer in layers)} channels: "
            "give a larger amount or a smaller round_to"
        )
    _cut(body, channels, gone)
    _check(_body(model), body, channels, gone, example)
    _remember(model, pruned)
    counts = [sum(p.numel() for p in m.parameters()) for m in (model, pruned)]
    logger.info("%s: %d → %d parameters", type(model).__name__, *counts)
    return pruned


def _body(model: nn.Module) -> nn.Module:
    """What of a model has maps of a fixed shape: all of it, but of a detector the backbone."""
    return model.backbone if hasattr(model, "roi_heads") and isinstance(model.backbone, nn.Module) else model


class _Layer(NamedTuple):
    """Convolutions that give out the same channels: one, or all that a residual sum ties together.

    Args:
        size: How many channels they have.
        widths: {number: how many of them are this one}, of those that may go.
    """

    size: int
    widths: dict[int, int]


def _layers(channels: Channels) -> list[_Layer]:
    """By slots that share channels."""
    found: list[tuple[set[int], list[Slot]]] = []
    for slot, free in channels.free().items():
        numbers, slots = set(free), [slot]
        for other in [entry for entry in found if not entry[0].isdisjoint(numbers)]:
            numbers |= other[0]
            slots += other[1]
            found.remove(other)
        found.append((numbers, slots))
    layers = []
    for _, slots in found:
        widths: dict[int, int] = {}
        for slot in slots:
            counted: dict[int, int] = {}
            for number in channels.numbers[slot]:
                counted[number] = counted.get(number, 0) + 1
            widths |= {n: max(width, widths.get(n, 0)) for n, width in counted.items()}
        free_widths = {n: width for n, width in widths.items() if n not in channels.fixed}
        layers.append(_Layer(sum(widths.values()), free_widths))
    return layers


def _scores(channels: Channels, layers: Iterable[_Layer], tensors: Mapping[str, Tensor], by: By) -> dict[int, float]:
    """The importance of each channel, comparable over the whole model."""
    order = 2 if by == "l2" else 1
    filters = _means(channels, channels.made, lambda x, dim: x.transpose(0, dim).flatten(1).norm(order, dim=1), tensors)
    scales = _means(channels, channels.scales, lambda x, dim: x.abs(), tensors) if by == "scale" else {}
    scores: dict[int, float] = {}
    for layer in layers:
        own = {number: scales[number] for number in layer.widths if number in scales}
        if len(own) == len(layer.widths) and max(own.values()) - min(own.values()) > _EQUAL * max(own.values()):
            scores |= own
    level = sum(scores.values()) / len(scores) if scores else 1.0
    for layer in layers:
        own = {number: filters[number] for number in layer.widths if number not in scores}
        mean = sum(own.values()) / max(1, len(own)) or 1.0
        scores |= {number: level * norm / mean for number, norm in own.items()}
    return scores


def _means(channels: Channels, slots: Iterable[Slot], measure: Any, tensors: Mapping[str, Tensor]) -> dict[int, float]:
    """{number: the mean of what is measured of its channels in these slots}."""
    values: dict[int, list[float]] = {}
    for slot in slots:
        measured = measure(tensors[slot.name].detach().double(), slot.dim).tolist()
        for number, value in zip(channels.numbers[slot], measured):
            values.setdefault(number, []).append(value)
    return {number: sum(several) / len(several) for number, several in values.items()}


def _least(
    layers: Iterable[_Layer], scores: Mapping[int, float], amount: float, scope: Scope, round_to: int
) -> set[int]:
    """The numbers of the channels that go."""
    layers = list(layers)
    widths = {number: width for layer in layers for number, width in layer.widths.items()}
    below = _lowest(widths, scores, amount * sum(layer.size for layer in layers)) if scope == "global" else set()
    gone: set[int] = set()
    for layer in layers:
        going = amount * layer.size if scope == "layer" else sum(w for n, w in layer.widths.items() if n in below)
        kept = round_to * int((layer.size - going) / round_to + 0.5)
        kept = layer.size if going == 0 else min(layer.size, max(kept, round_to))
        gone |= _lowest(layer.widths, scores, layer.size - kept)
    return gone


def _lowest(widths: Mapping[int, int], scores: Mapping[int, float], most: float) -> set[int]:
    """The least important channels, ``most`` of them at most."""
    lowest: set[int] = set()
    for number in sorted(widths, key=lambda n: (scores[n], n)):
        most -= widths[number]
        if most < 0:
            break
        lowest.add(number)
    return lowest


@torch.no_grad()
def _cut(model: nn.Module, channels: Channels, gone: set[int]) -> None:
    """Leave these channels out of all parameters and buffers, in place."""
    named = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    smaller: dict[str, Tensor] = {}
    shared: dict[int, Tensor] = {}
    for slot, numbers in channels.numbers.items():
        left = [i for i, number in enumerate(numbers) if number not in gone]
        if len(left) == len(numbers):
            continue
        tensor = smaller.get(slot.name, named[slot.name].detach())
        smaller[slot.name] = tensor.index_select(slot.dim, torch.tensor(left, device=tensor.device))
    for name in smaller:
        smaller[name] = shared.setdefault(id(named[name]), smaller[name])
    assign(model, smaller)


@torch.no_grad()
def _check(model: nn.Module, pruned: nn.Module, channels: Channels, gone: set[int], example: Tensor | None) -> None:
    """Compare with the whole model, in which nothing takes these channels: other numbers mean a wrong cut."""
    first: Tensor = next(model.parameters())
    # On the CPU and not in half precision: the rounding of those, and of TF32, is larger than what is looked for.
    if first.dtype in (torch.bfloat16, torch.float16) or first.device.type != "cpu":
        wide = torch.float64 if first.dtype == torch.float64 else torch.float32
        model, pruned = (copy.deepcopy(candidate).to("cpu", wide) for candidate in (model, pruned))
        first = next(model.parameters())
        example = example if example is None or not example.is_floating_point() else example.to(first)
    masked = copy.deepcopy(model)
    tensors = dict(masked.named_parameters())
    for slot in channels.taken:
        for i, number in enumerate(channels.numbers[slot]):
            if number in gone:
                tensors[slot.name].select(slot.dim, i).zero_()
    if example is None:
        taken = getattr(model, "in_channels", None) or _taken_by_first(model)
        generator = torch.Generator().manual_seed(0)
        example = torch.randn(2, taken, 65, 97, generator=generator).to(first)
    outputs: list[list[Tensor]] = []
    for candidate in (masked, pruned):
        try:
            with evaluating(candidate):
                outputs.append([x for x in tree_leaves(candidate(example)) if isinstance(x, Tensor)])
        except Exception as error:
            raise RuntimeError(f"the pruned {type(model).__name__} does not run: {error}") from error
    for expected, got in zip(*outputs):
        if not expected.is_floating_point():
            expected, got = expected.double(), got.double()
        spread = (expected.max() - expected.min()).clamp_min(torch.finfo(expected.dtype).tiny)
        difference = (expected - got).abs().max() / spread
        if expected.shape != got.shape or not difference <= _TOLERANCE:
            raise RuntimeError(
                f"the pruned {type(model).__name__} differs by {difference:.1e} of its outputs' range from the model "
                "without the same channels: its forward uses them in a way that was not understood"
            )


def _taken_by_first(model: nn.Module) -> int:
    return next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))


def _remember(model: nn.Module, pruned: nn.Module) -> None:
    """Let a pruned model be saved, if the whole one could."""
    if not isinstance(model, Pretrained) or not isinstance(pruned, Pretrained) or model.made_by is None:
        return
    if dict(model.made_by.structure) == structure_of(model):
        pruned.made_by = replace(model.made_by, structure=structure_of(pruned))
        pruned.pruned = True
