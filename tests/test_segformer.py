"""SegFormer and its Mix Transformers against transformers' implementation, and what the models' contract adds to it."""

from __future__ import annotations

import copy
import io
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hub_client import Client
from hub_server import Hub
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import segzoo
from segzoo.encoders.mit import VARIANTS, EfficientAttention, MiT, Variant
from segzoo.models import SegFormer
from segzoo.weights.segformer_keys import mit_from_others, segformer_from_others

SMALLEST = Variant((8, 16), (1, 1), heads=(1, 2), reductions=(8, 1))
TINY = Variant((8, 16, 24, 32), (1, 2, 1, 1), heads=(1, 2, 3, 4))
SIZES = [(33, 47), (65, 127), (128, 96)]
NORMS = ["batch", "sync_batch", "frozen_batch", "group", "instance", "layer", "evo_s0", "evo_b0"]


pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(**arguments: Any) -> SegFormer:
    torch.manual_seed(0)
    encoder = MiT(TINY, in_channels=arguments.get("in_channels", 3))
    return SegFormer(encoder, **{"decoder_channels": 16, "num_classes": 5, **arguments})


def shaken(module: Any) -> Any:
    """The module with values of order one everywhere, no two alike; transformers' own are so small that they hide."""
    torch.manual_seed(1)
    with torch.no_grad():
        for value in module.parameters():
            if value.ndim > 1:
                value.normal_(std=value[0].numel() ** -0.5)
            else:
                value.add_(torch.randn_like(value) * 0.2)
        for value in module.buffers():
            if value.is_floating_point():  # a norm's statistics
                value.add_(torch.rand_like(value))
    return module.eval()


def reference(variant: Variant, decoder_channels: int, num_classes: int, channels: int = 3) -> Any:
    """transformers' model of that variant."""
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        num_channels=channels,
        num_encoder_blocks=len(variant.widths),
        hidden_sizes=variant.widths,
        depths=variant.depths,
        num_attention_heads=variant.heads,
        sr_ratios=variant.reductions,
        patch_sizes=[7, 3, 3, 3][: len(variant.widths)],
        strides=[4, 2, 2, 2][: len(variant.widths)],
        mlp_ratios=[4] * len(variant.widths),
        decoder_hidden_size=decoder_channels,
        num_labels=num_classes,
    )
    return transformers.SegformerForSemanticSegmentation(config)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """transformers' tiny model and its checkpoint as transformers writes it: the keys of the files on the Hub."""
    model = shaken(reference(TINY, 16, 5))
    folder = tmp_path_factory.mktemp("transformers")
    model.save_pretrained(folder)
    return model, folder / "model.safetensors"


def nvidia_keys(file: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict of the same model: their modules' names, one matrix for keys and values, one unused head.

    From mix_transformer.py and segformer_head.py of https://github.com/NVlabs/SegFormer, not from our converter.
    """
    state: dict[str, Tensor] = {}
    for stage in range(4):
        theirs = f"segformer.encoder.patch_embeddings.{stage}."
        for kind in ("weight", "bias"):
            state[f"backbone.patch_embed{stage + 1}.proj.{kind}"] = file[f"{theirs}proj.{kind}"]
            state[f"backbone.patch_embed{stage + 1}.norm.{kind}"] = file[f"{theirs}layer_norm.{kind}"]
            state[f"backbone.norm{stage + 1}.{kind}"] = file[f"segformer.encoder.layer_norm.{stage}.{kind}"]
            state[f"decode_head.linear_c{stage + 1}.proj.{kind}"] = file[f"decode_head.linear_c.{stage}.proj.{kind}"]
            for block in range(TINY.depths[stage]):
                ours, theirs_ = f"backbone.block{stage + 1}.{block}.", f"segformer.encoder.block.{stage}.{block}."
                attention = f"{theirs_}attention.self."
                pairs = {"norm1": "layer_norm_1", "norm2": "layer_norm_2", "attn.proj": "attention.output.dense"}
                pairs |= {"mlp.fc1": "mlp.dense1", "mlp.fc2": "mlp.dense2", "mlp.dwconv.dwconv": "mlp.dwconv.dwconv"}
                pairs["attn.q"] = "attention.self.query"
                if TINY.reductions[stage] > 1:
                    pairs |= {"attn.sr": "attention.self.sr", "attn.norm": "attention.self.layer_norm"}
                state |= {f"{ours}{a}.{kind}": file[f"{theirs_}{b}.{kind}"] for a, b in pairs.items()}
                state[f"{ours}attn.kv.{kind}"] = torch.cat(
                    [file[f"{attention}key.{kind}"], file[f"{attention}value.{kind}"]]
                )
    state["decode_head.linear_fuse.conv.weight"] = file["decode_head.linear_fuse.weight"]
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        state[f"decode_head.linear_fuse.bn.{name}"] = file[f"decode_head.batch_norm.{name}"]
    for kind in ("weight", "bias"):
        state[f"decode_head.linear_pred.{kind}"] = file[f"decode_head.classifier.{kind}"]
        state[f"decode_head.conv_seg.{kind}"] = torch.full((3,), 9.0)
    assert len(state) == len(file) - 2 * sum(TINY.depths) + 2  # keys and values became one; the unused head came
    return state


def assert_same(ours: SegFormer, theirs: Any, sizes: list[tuple[int, int]] = SIZES, atol: float = 1e-5) -> None:
    for size in sizes:
        x = torch.randn(2, ours.in_channels, *size, dtype=next(ours.parameters()).dtype)
        with torch.no_grad():
            expected = theirs(x).logits
            maps = ours.encoder(x)
            logits = ours.decode(maps, x)[0]
            whole = ours(x)
        assert [y.shape[-2:] for y in maps] == [(-(-size[0] // s), -(-size[1] // s)) for s in ours.encoder.strides]
        assert expected.std() > 0.1
        torch.testing.assert_close(logits, expected, atol=atol, rtol=0)
        resized = F.interpolate(expected, size=size, mode="bilinear", align_corners=False)
        torch.testing.assert_close(whole, resized, atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("variant", "channels"),
    [
        (TINY, 3),
        (Variant((12, 10, 16, 24), (2, 1, 1, 2), heads=(3, 1, 4, 2), reductions=(4, 2, 2, 1)), 1),
        (Variant((6, 14, 8, 20), (1, 1, 3, 1), heads=(2, 7, 2, 5), reductions=(8, 1, 3, 2)), 5),
        (Variant((9, 18, 6), (1, 2, 1), heads=(3, 2, 1), reductions=(5, 1, 1)), 4),
    ],
)
def test_a_variant_of_any_kind_is_transformers_own(variant: Variant, channels: int) -> None:
    theirs = shaken(reference(variant, 20, 6, channels))
    encoder = MiT(variant, in_channels=channels)
    ours = SegFormer(encoder, decoder_channels=20, num_classes=6, in_channels=channels).eval()
    ours.load_state_dict(SegFormer.convert(theirs.state_dict()))
    assert_same(ours, theirs, [*SIZES, (97, 34)])
    assert_same(ours.double(), theirs.double(), SIZES[:1], atol=1e-12)


@pytest.mark.parametrize(("name", "decoder_channels"), [("mit_b0", 256), ("mit_b2", 768)])
def test_the_real_variants_are_transformers_own(name: str, decoder_channels: int) -> None:
    theirs = shaken(reference(VARIANTS[name], decoder_channels, 19))
    with torch.device("meta"):
        ours = segzoo.segformer(name, num_classes=19).eval()
    ours.load_state_dict(SegFormer.convert(theirs.state_dict()), assign=True)
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("name", "millions"),  # of the paper's Table 1, on ADE20K's 150 classes
    [("mit_b0", 3.8), ("mit_b1", 13.7), ("mit_b2", 27.5), ("mit_b3", 47.3), ("mit_b4", 64.1), ("mit_b5", 84.7)],
)
def test_parameters_are_the_papers(name: str, millions: float) -> None:
    with torch.device("meta"):
        ours = segzoo.segformer(name, num_classes=150)
        theirs = reference(VARIANTS[name], 256 if millions < 20 else 768, 150)

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(ours.encoder) == count(theirs.segformer)
    assert count(ours.decode_head) == count(theirs.decode_head)
    assert round(count(ours) / 1e6, 1) == millions


def test_a_checkpoint_loads_in_anybodys_keys(published: tuple[Any, Path]) -> None:
    theirs, path = published
    file = load_file(path)
    assert "segformer.encoder.block.0.0.attention.self.query.weight" in file  # those of the Hub
    for state in (file, theirs.state_dict(), nvidia_keys(file)):
        ours = tiny().eval()
        ours.load_state_dict(SegFormer.convert(state))
        assert_same(ours, theirs, SIZES[:1])
        own = ours.state_dict()
        again = SegFormer.convert(own)
        assert list(again) == list(own) and all(again[key] is value for key, value in own.items())


def test_unknown_keys_stay_and_half_of_a_pair_too() -> None:
    value = torch.zeros(2)
    for key in ("foo.bar", "decode_head.convs.0.conv.weight", "block5x.0.q", "encoder.model.stages_0.weight"):
        assert segformer_from_others({key: value}) == {key: value}
    assert list(segformer_from_others({"segformer.stages.0.blocks.0.attention.k_proj.bias": value})) == [
        "encoder.stages.0.blocks.0.attn.k.bias"
    ]


@pytest.mark.parametrize("form", ["transformers", "nvidia"])
def test_the_factory_takes_a_whole_checkpoint_of_others(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(VARIANTS, "mit_b0", TINY)
    theirs = shaken(reference(TINY, 16, 150))
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    if form == "nvidia":
        state = nvidia_keys(load_file(path))
        path = tmp_path / "segformer.pth"
        torch.save({"meta": {"epoch": 1}, "state_dict": state}, path)
    ours = segzoo.segformer(weights=path, decoder_channels=16).eval()
    assert ours.num_classes == 150 and not caplog.records
    assert_same(ours, theirs, SIZES[:1])
    fewer = segzoo.segformer(weights=path, decoder_channels=16, num_classes=2, in_channels=1)
    assert fewer.num_classes == 2 and {"decode_head.classifier"} <= set(re.findall(r"[\w.]+", caplog.text))
    stem = "stages.0.embed.proj.weight"
    torch.testing.assert_close(fewer.encoder.get_parameter(stem), ours.encoder.get_parameter(stem).sum(1, keepdim=True))
    with pytest.warns(UserWarning, match="another norm"):
        segzoo.segformer(weights=path, decoder_channels=16, norm="group")
    with pytest.raises(ValueError, match="does not fit this model"):
        segzoo.segformer(weights=path, decoder_channels=17)


def test_encoder_weights_take_the_mix_transformer_of_a_file(published: tuple[Any, Path], tmp_path: Path) -> None:
    theirs, path = published
    file = load_file(path)
    nvidia = {key.removeprefix("backbone."): value for key, value in nvidia_keys(file).items() if "backbone" in key}
    save_file({**nvidia, "head.weight": torch.zeros(7, 32), "head.bias": torch.zeros(7)}, tmp_path / "mit.safetensors")
    torch.save(file, tmp_path / "pytorch_model.bin")
    own = MiT(TINY, weights=path)
    torch.save(own.state_dict(), tmp_path / "own.pth")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.segformer(x, output_hidden_states=True).hidden_states
        for name in (path, tmp_path / "mit.safetensors", tmp_path / "pytorch_model.bin", str(tmp_path / "own.pth")):
            for got, want in zip(MiT(TINY, weights=name).eval()(x), expected):
                torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    grey = MiT(TINY, weights=path, in_channels=1)
    torch.testing.assert_close(grey.stages[0].embed.proj.weight, own.stages[0].embed.proj.weight.sum(1, keepdim=True))
    with pytest.raises(ValueError, match=r"does not fit this model: \d+ unexpected keys .stages.1.blocks.1"):
        MiT(TINY._replace(depths=(1, 1, 1, 1)), weights=path)
    with pytest.raises(FileNotFoundError, match="there is no weights file .*missing.bin"):
        MiT(TINY, weights=tmp_path / "missing.bin")
    (tmp_path / "broken.bin").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="broken.bin cannot be loaded as plain tensors"):
        MiT(TINY, weights=tmp_path / "broken.bin")


def test_imagenet_weights_come_from_the_hub(
    published: tuple[Any, Path], hub: Hub, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VARIANTS, "mit_b3", TINY)
    monkeypatch.setitem(VARIANTS, "mit_b4", TINY)
    buffer = io.BytesIO()
    torch.save(load_file(published[1]), buffer)
    hub.add_file("nvidia/mit-b3", "pytorch_model.bin", buffer.getvalue())  # and no model.safetensors
    model = segzoo.segformer("mit_b3", encoder_weights="imagenet", num_classes=2)
    expected = mit_from_others(load_file(published[1]))
    assert all(torch.equal(value, expected[key]) for key, value in model.encoder.state_dict().items())
    with pytest.raises(ConnectionError, match=r"nvidia/mit-b4 .*; pass encoder_weights=None, or the path") as caught:
        segzoo.segformer("mit_b4", encoder_weights="imagenet")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="there are no ImageNet weights of Variant"):
        MiT(TINY, weights="imagenet")


@given(height=st.integers(1, 70), width=st.integers(1, 70), batch=st.integers(1, 2), train=st.booleans())
def test_any_size(height: int, width: int, batch: int, train: bool) -> None:
    model = any_model().train(train)
    with torch.no_grad():
        out = model(torch.randn(batch, 3, height, width))
    assert out.shape == (batch, 5, height, width) and out.isfinite().all()


@cache
def any_model() -> SegFormer:
    return tiny(dropout=0.0)


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (2, 4), (9, 10)])
def test_attention_is_the_formula_with_zeros_where_a_map_is_too_small(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module = EfficientAttention(12, heads=3, reduction=4)
    x = torch.randn(2, *size, 12)
    height, width = size
    padded = torch.zeros(2, max(height, 4), max(width, 4), 12)
    padded[:, :height, :width] = x
    rows, columns = padded.shape[1] // 4, padded.shape[2] // 4
    patches = padded[:, : 4 * rows, : 4 * columns].reshape(2, rows, 4, columns, 4, 12)
    kernel = module.sr.weight.permute(2, 3, 1, 0)
    reduced = torch.einsum("nyaxbc,abcd->nyxd", patches, kernel) + module.sr.bias
    keys, values = module.kv(module.norm(reduced)).reshape(2, rows * columns, 2, 3, 4).unbind(2)
    scores = torch.einsum("nqhd,nkhd->nhqk", module.q(x).reshape(2, height * width, 3, 4), keys) / 2
    expected = torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), values).reshape(2, height, width, 12)
    torch.testing.assert_close(module(x), module.proj(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", [*NORMS, None])
def test_the_decoder_takes_every_norm_and_every_parameter_gets_a_gradient(norm: str | None) -> None:
    model = tiny(norm=norm).train()
    layer_norms = [m for m in model.encoder.modules() if isinstance(m, nn.LayerNorm)]
    assert len(layer_norms) == 22 and all(type(m) is nn.LayerNorm for m in layer_norms)
    assert (model.decode_head.fuse.conv.bias is None) == (norm is not None)
    for size in ((1, 1), (33, 47)):
        model.zero_grad(set_to_none=True)
        out = model(torch.randn(1, 3, *size))
        assert isinstance(out, Tensor) and out.shape == (1, 5, *size) and out.isfinite().all()
        out.sum().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_evo_norms_are_the_activation_too() -> None:
    assert isinstance(tiny(norm="batch").decode_head.fuse.act, nn.ReLU)
    assert isinstance(tiny(norm="evo_s0").decode_head.fuse.act, nn.Identity)


def test_autocast_is_close_and_gives_the_inputs_size() -> None:
    model = tiny().eval()
    x = torch.randn(1, 3, 65, 47)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
    assert out.dtype == torch.bfloat16 and out.shape == expected.shape
    torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0.05)


def test_compiles_in_one_graph() -> None:
    model = SegFormer(MiT(SMALLEST), decoder_channels=8, num_classes=2)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for train, size in ((True, (33, 47)), (False, (33, 47)), (False, (20, 70))):
        model.train(train)
        x = torch.randn(2, 3, *size)
        torch.manual_seed(0)
        expected = model(x)
        torch.manual_seed(0)
        torch.testing.assert_close(compiled(x), expected)


def test_exports_with_any_height_and_width() -> None:
    """From 64 pixels on: torch.export takes a size of one for another kind, and below 61 the map of keys has one."""
    model = SegFormer(MiT(TINY._replace(depths=(1, 1, 1, 1))), decoder_channels=8, num_classes=2).eval()
    any_size = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (torch.randn(2, 3, 65, 127),), dynamic_shapes=(any_size,), strict=False)
    for size in ((64, 96), (150, 65)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(x), model(x))


def test_frozen_levels_stay_as_they_are() -> None:
    model = tiny()
    model.encoder.freeze(upto=2)
    model.train()
    trained = {name.split(".")[1] for name, p in model.encoder.named_parameters() if p.requires_grad}
    frozen = {name.split(".")[1] for name, p in model.encoder.named_parameters() if not p.requires_grad}
    assert (frozen, trained) == ({"0", "1"}, {"2", "3"})
    leaves = [(n, m) for n, m in model.encoder.named_modules() if n and not any(True for _ in m.children())]
    assert all(m.training == (n.split(".")[1] in "23") for n, m in leaves)
    assert any("drop_path" in n for n, _ in leaves)
    x = torch.randn(4, 3, 33, 47)
    first, second = model.encoder(x), model.encoder(x)
    assert all(torch.equal(a, b) for a, b in zip(first[:2], second[:2]))
    model.encoder.unfreeze()
    assert all(p.requires_grad for p in model.parameters())


def test_stochastic_depth_grows_to_the_last_block() -> None:
    def rates(encoder: MiT) -> list[float]:
        blocks = [block for stage in encoder.stages for block in stage.blocks]
        return [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]

    assert rates(MiT(TINY)) == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])
    assert rates(MiT(TINY, drop_path_rate=0.0)) == [0.0] * 5
    encoder = MiT(TINY, drop_path_rate=0.9)
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(encoder(x)[-1], encoder(x)[-1])
    encoder.eval()
    assert torch.equal(encoder(x)[-1], encoder(x)[-1])


def test_initialisation_is_the_authors() -> None:
    encoder = MiT("mit_b0")
    encoder.requires_grad_(False)
    block = encoder.stages[3].blocks[0]
    assert block.mlp.fc1.weight.std() == pytest.approx(0.02, rel=0.05)
    assert block.mlp.dwconv.weight.std() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert encoder.stages[3].embed.proj.weight.std() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.05)
    assert not any(p.any() for name, p in encoder.named_parameters() if name.endswith(".bias"))


def test_decoder_widths_are_the_papers_unless_asked() -> None:
    with torch.device("meta"):
        widths = {name: segzoo.segformer(name).decode_head.classifier.in_channels for name in VARIANTS}
        assert segzoo.segformer("mit_b1", decoder_channels=64).decode_head.classifier.in_channels == 64
    assert widths == {"mit_b0": 256, "mit_b1": 256, **dict.fromkeys(("mit_b2", "mit_b3", "mit_b4", "mit_b5"), 768)}


def test_defaults() -> None:
    model = segzoo.segformer()
    assert model.num_classes == 21 and model.preprocessing.size is None and model.weights is None
    assert model.encoder.channels == (32, 64, 160, 256) and model.encoder.strides == (4, 8, 16, 32)
    assert model.encoder.min_size == 1 and model.stems()[0] == "encoder.stages.0.embed.proj.weight"
    assert model.stems()[0] in model.state_dict()
    assert any(key.startswith(SegFormer.heads) for key in model.state_dict())
    assert copy.deepcopy(model).eval().predict(torch.zeros(1, 3, 8, 8)).shape == (1, 21, 8, 8)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: segzoo.segformer("mit_b7"), "unknown encoder 'mit_b7': did you mean 'mit_b"),
        (lambda: segzoo.segformer("mti_b2"), "unknown encoder 'mti_b2': did you mean 'mit_b2'?"),
        (lambda: MiT(None), "unknown encoder None"),
        (lambda: segzoo.segformer(decoder_channels=0), "decoder_channels must be a positive int or None, got 0"),
        (lambda: segzoo.segformer(dropout=2.0), "dropout probability has to be between 0 and 1, but got 2.0"),
        (lambda: segzoo.segformer(norm="bacth"), "did you mean 'batch'?"),
        (lambda: segzoo.segformer(MiT(TINY), in_channels=4), "the encoder takes 3 channels, got in_channels=4"),
        (lambda: segzoo.segformer(weights="ade"), "unknown weights for segformer 'ade'"),
        (lambda: MiT(Variant((8, 16), (1, 1))), "a Variant has one value of each kind per stage"),
        (lambda: MiT(TINY._replace(heads=(3, 2, 3, 4))), "a width of 8 cannot be split into 3 heads"),
    ],
)
def test_nonsense_gets_one_sentence(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        make()
    assert "\n" not in str(caught.value)
