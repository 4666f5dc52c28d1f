"""SegFormer's keys as others have them: NVIDIA's code, transformers' files (version 4) and its modules (version 5)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["mit_from_others", "segformer_from_others"]

# A stage's key: NVIDIA counts from 1, the others from 0; transformers 5 has our order of words.
_STAGE_KEYS = (
    (1, re.compile(r"(?:(?:backbone|encoder)\.)?(?P<part>patch_embed|block|norm)(?P<stage>\d)\.(?P<rest>.+)")),
    (
        0,
        re.compile(
            r"(?:segformer\.)?encoder\.(?P<part>patch_embeddings|block|layer_norm)\.(?P<stage>\d)\.(?P<rest>.+)"
        ),
    ),
    (
        0,
        re.compile(
            r"(?:(?:segformer|encoder)\.)?stages\.(?P<stage>\d)\."
            r"(?P<part>patch_embeddings|embed|blocks|layer_norm|norm)\.(?P<rest>.+)"
        ),
    ),
)
_PARTS = {"patch_embed": "embed", "patch_embeddings": "embed", "block": "blocks", "layer_norm": "norm"}
_MODULES = {  # NVIDIA's, then those of transformers 4 and 5; what is not here has our name everywhere
    **{"mlp.dwconv.dwconv": "mlp.dwconv"},
    **{"layer_norm": "norm", "layer_norm_1": "norm1", "layernorm_before": "norm1"},
    **{"layer_norm_2": "norm2", "layernorm_after": "norm2"},
    **{"attention.self.query": "attn.q", "attention.q_proj": "attn.q"},
    **{"attention.self.key": "attn.k", "attention.k_proj": "attn.k"},
    **{"attention.self.value": "attn.v", "attention.v_proj": "attn.v"},
    **{"attention.self.sr": "attn.sr", "attention.sequence_reduction.sequence_reduction": "attn.sr"},
    **{"attention.self.layer_norm": "attn.norm", "attention.sequence_reduction.layer_norm": "attn.norm"},
    **{"attention.output.dense": "attn.proj", "attention.o_proj": "attn.proj"},
    **{"mlp.dense1": "mlp.fc1", "mlp.dense2": "mlp.fc2"},
}
_HEAD = {
    **{"linear_fuse.conv": "fuse.conv", "linear_fuse": "fuse.conv"},
    **{"linear_fuse.bn": "fuse.bn", "batch_norm": "fuse.bn"},
    "linear_pred": "classifier",
    **{f"linear_c{i + 1}.proj": f"projections.{i}" for i in range(4)},
    **{f"{name}.{i}.proj": f"projections.{i}" for name in ("linear_c", "linear_projections") for i in range(4)},
}
_UNUSED = "decode_head.conv_seg."  # every head of NVIDIA's framework has it; SegFormer's has its own in its place


def segformer_from_others(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A SegFormer's state dict in our keys; what is in them already, and what is unknown, stays as it is.

    Keys and values are one matrix here, as in NVIDIA's code; transformers has two.

    Args:
        state: Keys of NVIDIA's code (``backbone.block1.0.attn.q.weight``, ``decode_head.linear_c1.proj.weight``), of
            transformers' files (``segformer.encoder.block.0.0.attention.self.query.weight``) or of its modules since
            version 5 (``segformer.stages.0.blocks.0.attention.q_proj.weight``), or ours.

    Source: https://github.com/NVlabs/SegFormer; transformers' ``SegformerForSemanticSegmentation``.

    Examples:
        >>> list(segformer_from_others({"backbone.block1.0.mlp.dwconv.dwconv.bias": torch.zeros(4)}))
        ['encoder.stages.0.blocks.0.mlp.dwconv.bias']
    """
    renamed = {_renamed(key): value for key, value in state.items() if not key.startswith(_UNUSED)}
    for key in [key for key in renamed if ".attn.k." in key]:
        value = key.replace(".attn.k.", ".attn.v.")
        if value in renamed:
            both = torch.cat([renamed.pop(key), renamed.pop(value)])
            renamed[key.replace(".attn.k.", ".attn.kv.")] = both
    return renamed


def mit_from_others(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The Mix Transformer of a checkpoint, alone or with a head of any kind, in our keys.

    Args:
        state: As ``segformer_from_others`` takes it; the published ImageNet checkpoints are such.

    Examples:
        >>> state = {"patch_embed1.norm.bias": torch.zeros(4), "head.bias": torch.zeros(1000)}
        >>> list(mit_from_others(state))
        ['stages.0.embed.norm.bias']
    """
    converted = segformer_from_others(state)
    return {key.removeprefix("encoder."): value for key, value in converted.items() if key.startswith("encoder.")}


def _renamed(key: str) -> str:
    for first, pattern in _STAGE_KEYS:
        if match := pattern.fullmatch(key):
            part = _PARTS.get(match["part"], match["part"])
            return f"encoder.stages.{int(match['stage']) - first}.{part}.{_within(part, match['rest'])}"
    head, dot, rest = key.partition(".")
    if head == "decode_head":
        module, _, parameter = rest.rpartition(".")
        return f"{head}{dot}{_HEAD.get(module, module)}.{parameter}"
    return key


def _within(part: str, rest: str) -> str:
    """What follows a stage's ``embed``, ``blocks`` or ``norm``."""
    if part == "norm":
        return rest
    number, dot, rest = rest.partition(".") if part == "blocks" else ("", "", rest)
    module, _, parameter = rest.rpartition(".")
    return f"{number}{dot}{_MODULES.get(module, module)}.{parameter}"
