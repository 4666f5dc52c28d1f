"""U-Net, U-Net++ and FPN: the papers' figures, any encoder and any size, and the same numbers as smp's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import segzoo
from segzoo.encoders import Encoder, get_encoder
from segzoo.layers import ConvNormAct, LateFusion, SkipFusion
from segzoo.layers.norm import Norm
from segzoo.models import FPN, UNet, UNetPlusPlus
from segzoo.models.base import EncoderModel
from segzoo.models.unet import steps_up

NORMS = ["batch", "sync_batch", "frozen_batch", "group", "instance", "layer", "evo_s0", "evo_b0"]


class Pooled(Encoder):
    """A pyramid of the given strides: the input, averaged, through one convolution a level."""

    def __init__(
        self,
        strides: Sequence[int] = (2, 4, 8, 16),
        channels: Sequence[int] = (4, 4, 6, 8),
        *,
        in_channels: int = 3,
        norm: Norm = "batch",
        ceil: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.strides, self.channels = tuple(strides), tuple(channels)
        self.min_size = 1 if ceil else max(strides)
        self.ceil = ceil
        self.convs = nn.ModuleList(ConvNormAct(in_channels, c, norm=norm) for c in channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [F.avg_pool2d(x, stride, ceil_mode=self.ceil) for stride in self.strides]
        return [conv(y) for conv, y in zip(self.convs, maps)]


def tiny_2015(norm: Norm = "batch") -> UNet:
    return UNet(base_channels=2, num_classes=2, norm=norm)


def tiny_unet(norm: Norm = "batch") -> UNet:
    return UNet(Pooled(norm=norm), decoder_channels=(8, 6, 4, 4), num_classes=2, norm=norm)


def tiny_unet_plusplus(norm: Norm = "batch") -> UNetPlusPlus:
    return UNetPlusPlus(Pooled(norm=norm), decoder_channels=(8, 6, 4, 4), num_classes=2, norm=norm)


def tiny_fpn(norm: Norm = "batch") -> FPN:
    return FPN(Pooled(norm=norm), pyramid_channels=8, decoder_channels=4, num_classes=2, norm=norm)


TINY = [tiny_2015, tiny_unet, tiny_unet_plusplus, tiny_fpn]
Tiny = Callable[..., EncoderModel]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def randomise_norms(model: nn.Module) -> None:
    """γ, β and running statistics as after training, so that a mix-up of them shows."""
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, (nn.BatchNorm2d, nn.GroupNorm)):
                norm.weight.uniform_(0.8, 1.2)
                norm.bias.normal_(0, 0.1)
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(0, 0.1)
                norm.running_var.uniform_(0.8, 1.2)


# Against segmentation_models_pytorch.


@pytest.mark.parametrize("encoder", ["resnet34", "tu-convnext_atto"])
@pytest.mark.parametrize(("name", "theirs"), [("unet", "Unet"), ("unet_plusplus", "UnetPlusPlus"), ("fpn", "FPN")])
def test_a_checkpoint_of_smp_gives_smps_logits(name: str, theirs: str, encoder: str, tmp_path: Path) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    reference = getattr(smp, theirs)(encoder, encoder_weights=None, classes=5).eval()
    randomise_norms(reference)
    torch.save(reference.state_dict(), tmp_path / "smp.pth")
    factory = getattr(segzoo, name)
    model = factory(encoder.removeprefix("tu-"), weights=tmp_path / "smp.pth").eval()
    assert model.num_classes == 5
    assert len(list(model.parameters())) == len(list(reference.parameters()))
    for size in [(64, 96), (96, 64)]:
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected, ours = reference(x), model(x)
        torch.testing.assert_close(ours, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


def test_a_checkpoint_of_smp_is_fitted_as_ones_own(tmp_path: Path) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    reference = smp.Unet("resnet18", encoder_weights=None, classes=5)
    torch.save(reference.state_dict(), tmp_path / "smp.pth")
    model = segzoo.unet("resnet18", weights=tmp_path / "smp.pth", num_classes=2, in_channels=4)
    assert model.predict(torch.randn(1, 4, 33, 33)).shape == (1, 2, 33, 33)
    theirs = reference.decoder.blocks[2].conv2[0].weight
    assert torch.equal(model.decoder[2].convs[1].conv.weight, theirs)
    torch.save({**reference.state_dict(), "decoder.center.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"1 unexpected keys \(decoder.center.0.weight\)"):
        segzoo.unet("resnet18", weights=tmp_path / "other.pth")


@pytest.mark.parametrize("make", TINY)
def test_own_keys_are_left_alone(make: Tiny) -> None:
    state = make().state_dict()
    assert list(type(make()).convert(state)) == list(state)


# The papers' figures.


def test_the_2015_network_is_the_papers_figure() -> None:
    with torch.device("meta"):
        model = segzoo.unet(in_channels=1, num_classes=2, norm=None)
    shapes = [
        (tuple(m.kernel_size), m.in_channels, m.out_channels)
        for m in model.modules()
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))
    ]
    down = [(1, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 1024)]
    expected = [((3, 3), *pair) for pair in [*down, (1024, 1024)]]
    for width in (512, 256, 128, 64):
        expected += [((2, 2), 2 * width, width), ((3, 3), 2 * width, width), ((3, 3), width, width)]
    expected += [((1, 1), 64, 2)]
    assert shapes == expected
    assert len(shapes) == 23  # "In total the network has 23 convolutional layers."
    count = sum(k[0] * k[1] * i * o + o for k, i, o in expected)
    assert count == sum(p.numel() for p in model.parameters()) == 31_030_658
    assert model.encoder.strides == (1, 2, 4, 8, 16)


def test_the_2015_network_without_norms_keeps_its_signal() -> None:
    """The paper's initialisation is there so that it does."""
    x = torch.randn(1, 1, 32, 32)
    features = segzoo.unet(in_channels=1, norm=None).encoder(x)
    assert all(0.3 < feature.square().mean().sqrt() < 3 for feature in features)


def test_unet_plusplus_nodes_are_the_papers() -> None:
    """Eq. 1: X^{i,j} of X^{i,0} … X^{i,j-1} and of X^{i+1,j-1}, each told from the others by its own number."""
    model = UNetPlusPlus(Pooled((1, 2, 4), (1, 1, 1)), decoder_channels=(1, 1), num_classes=1).eval()
    assert sorted(model.decoder) == ["x_0_1", "x_0_2", "x_1_1"]
    seen: dict[str, list[float]] = {}
    for number, (name, node) in enumerate(model.decoder.items()):
        node.convs = nn.Conv2d(node.fuse.out_channels, 1, 1)

        def note(module: nn.Module, inputs: tuple[Tensor], _: Tensor, name: str = name, number: int = number) -> Tensor:
            seen[name] = inputs[0][0, :, 0, 0].tolist()
            return torch.full_like(inputs[0][:, :1], 10.0 + number)

        node.convs.register_forward_hook(note)
    maps = [torch.full((1, 1, 8 // s, 8 // s), float(k)) for k, s in enumerate((1, 2, 4))]
    model.decode(maps, torch.zeros(1, 3, 8, 8))
    numbers = {name: 10.0 + number for number, name in enumerate(model.decoder)}
    assert seen == {
        "x_0_1": [1.0, 0.0],
        "x_1_1": [2.0, 1.0],
        "x_0_2": [numbers["x_1_1"], numbers["x_0_1"], 0.0],
    }


def test_fpn_levels_climb_as_the_papers() -> None:
    model = FPN(Pooled((2, 4, 8, 16, 32), (4,) * 5), pyramid_channels=64, decoder_channels=64, merge="concat")
    assert [len(branch) for branch in model.branches] == [3, 2, 1, 1]
    assert model.head.in_channels == 4 * 64
    assert isinstance(model.branches[0][0].bn, nn.GroupNorm) and model.branches[0][0].bn.num_groups == 32
    assert isinstance(FPN(Pooled(), decoder_norm="batch").branches[0][0].bn, nn.BatchNorm2d)
    assert isinstance(FPN(Pooled(), norm="layer").branches[0][0].bn, nn.LayerNorm)


# Any encoder.


@pytest.mark.parametrize(
    ("strides", "steps"),
    [
        ((2, 4, 8, 16, 32), [16, 8, 4, 2, 1]),
        ((4, 8, 16, 32), [16, 8, 4, 2, 1]),
        ((1, 2, 4, 8), [4, 2, 1]),
        ((2, 4, 8, 8, 8), [8, 8, 4, 2, 1]),
        ((4,), [2, 1]),
    ],
)
@pytest.mark.parametrize("upsample", ["nearest", "bilinear", "transposed", "pixel_shuffle"])
@pytest.mark.parametrize("ceil", [True, False])
def test_any_strides(strides: tuple[int, ...], steps: list[int], upsample: str, ceil: bool) -> None:
    assert steps_up(strides) == steps
    encoder = Pooled(strides, (4, 4, 6, 6, 8)[: len(strides)], ceil=ceil)
    sizes: list[tuple[int, int]] = []
    arguments = {"decoder_channels": (4,) * len(steps), "upsample": upsample, "num_classes": 2}
    for model in (UNet(encoder, **arguments), UNetPlusPlus(encoder, **arguments)):
        blocks = [*model.decoder] if isinstance(model, UNet) else [*model.tail]
        for block in blocks:
            block.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[-2:])))
        assert model.eval()(torch.randn(1, 3, 35, 50)).shape == (1, 2, 35, 50)
        sizes.clear()
        assert model(torch.randn(1, 3, 64, 32)).shape == (1, 2, 64, 32)
        assert sizes == [(64 // s, 32 // s) for s in steps[-len(blocks) :]] if blocks else not sizes
    small = FPN(encoder, pyramid_channels=4, decoder_channels=4, num_classes=2)
    assert small.eval()(torch.randn(1, 3, 35, 50)).shape == (1, 2, 35, 50)


@pytest.mark.parametrize("fusion", ["concat", "add"])
@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_timm_encoders(name: str, fusion: str) -> None:
    model = segzoo.unet(name, encoder_weights=None, decoder_channels=(16, 8, 8, 8, 8), fusion=fusion)
    assert model.predict(torch.randn(1, 3, 33, 47)).shape == (1, 21, 33, 47)
    model.train()(torch.randn(1, 3, 1, 1)).sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    assert model.stems()[0] in model.state_dict()


@pytest.mark.parametrize("name", ["unet_plusplus", "fpn"])
def test_factories_pass_everything_on(name: str) -> None:
    arguments = {"unet_plusplus": {"decoder_channels": (8, 8, 8, 8)}, "fpn": {"pyramid_channels": 8, "merge": "concat"}}
    encoder = get_encoder("resnet10t", weights=None, depth=4, in_channels=2)
    model = getattr(segzoo, name)(encoder, in_channels=2, num_classes=3, dropout=0.5, **arguments[name])
    assert model.encoder is encoder and model.dropout.p == 0.5
    assert model.predict(torch.randn(1, 2, 20, 20)).shape == (1, 3, 20, 20)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: UNet(decoder_channels=(8, 8)), "must be 4 positive ints, one for each step up to strides 8, 4, 2, 1"),
        (lambda: UNet(Pooled(), decoder_channels=(8, 8, 8, 0)), r"got \(8, 8, 8, 0\)"),
        (lambda: UNetPlusPlus(Pooled(), decoder_channels=8), "must be 4 positive ints.* got 8"),
        (lambda: UNet(base_channels=0), "base_channels must be a positive int, got 0"),
        (lambda: UNet(Pooled(), base_channels=8), r"base_channels is for the 2015 U-Net \(encoder=None\), got 8"),
        (lambda: UNet(encoder_weights="a.pth"), "takes no encoder_weights, got 'a.pth'"),
        (lambda: UNet(Pooled(), in_channels=4), "the encoder takes 3 channels, got in_channels=4"),
        (lambda: UNet("resnet43", encoder_weights=None), "unknown encoder 'resnet43': did you mean"),
        (lambda: UNet(upsample="bilinaer"), "unknown upsample 'bilinaer': did you mean 'bilinear'?"),
        (lambda: UNet(fusion="sum"), "unknown fusion 'sum'"),
        (lambda: FPN(Pooled(), merge="cat"), "unknown merge 'cat': did you mean 'concat'?"),
        (lambda: FPN(Pooled(), pyramid_channels=0), "pyramid_channels must be a positive int, got 0"),
        (lambda: FPN(Pooled(), dropout=2), "between 0 and 1"),
    ],
)
def test_nonsense_gets_one_sentence(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


# Any size, any norm, and what torch makes of the models.


@pytest.mark.parametrize("make", TINY)
@settings(max_examples=15)
@given(h=st.integers(1, 70), w=st.integers(1, 70))
def test_any_size_in_eval_and_train(make: Tiny, h: int, w: int) -> None:
    model = make()
    x = torch.rand(1, 3, h, w)
    assert model.predict(x).shape == (1, 2, h, w)
    assert model.train()(x).shape == (1, 2, h, w)


@pytest.mark.parametrize("make", TINY)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [(1, 1), (33, 47)])
def test_any_norm(make: Tiny, norm: str, size: tuple[int, int]) -> None:
    model = make(norm)
    x = torch.rand(1, 3, *size)
    assert model.predict(x).isfinite().all()
    model.train()(x).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert [name for name, grad in gradients.items() if grad is None or not grad.isfinite().all()] == []


def test_no_norm_is_the_papers_unet() -> None:
    model = tiny_2015(None).train()
    model(torch.rand(1, 3, 17, 40)).sum().backward()
    assert all(name.endswith((".weight", ".bias")) and p.grad is not None for name, p in model.named_parameters())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def floor_and_transposed() -> UNet:
    encoder = Pooled((4, 8), (4, 6), ceil=False)
    return UNet(encoder, decoder_channels=(6, 4, 4), upsample="transposed", num_classes=2)


def late() -> UNet:
    encoder = LateFusion([Pooled((2, 4), (4, 4), in_channels=1), Pooled((2, 4), (4, 4), in_channels=2)])
    return UNet(encoder, decoder_channels=(6, 4), upsample="pixel_shuffle", num_classes=2)


@pytest.mark.parametrize(
    ("make", "strict"), [*((make, False) for make in [*TINY, floor_and_transposed, late]), (tiny_2015, True)]
)
def test_compiles_exports_and_autocasts(make: Tiny, strict: bool) -> None:
    model = make().eval()
    x = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (model(x).float() - expected).abs().max() < 0.1 * expected.abs().max()
            assert model.predict(x).dtype == torch.float32
        sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        program = torch.export.export(model, (x,), dynamic_shapes=(sizes,), strict=strict).module()
        for size in [(48, 64), (33, 47), (71, 34)]:
            other = torch.rand(1, 3, *size)
            torch.testing.assert_close(program(other), model(other), atol=1e-5, rtol=1e-4)


# SkipFusion.


def test_skip_fusion_transposed_crops_and_repeats_at_the_end() -> None:
    fuse = SkipFusion(1, 1, upsample="transposed")
    with torch.no_grad():
        fuse.up.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        fuse.up.bias.zero_()
        x = torch.tensor([[1.0, 10.0]])[None, None]
        skip = torch.full((1, 1, 1, 3), 7.0)
        assert fuse(x, skip).tolist() == [[[[1.0, 2.0, 10.0]], [[7.0, 7.0, 7.0]]]]
        out = fuse(x, torch.zeros(1, 1, 3, 5))[0, 0].tolist()
        assert out == [[1, 2, 10, 20, 20], [3, 4, 30, 40, 40], [3, 4, 30, 40, 40]]
        assert fuse(x, torch.zeros(1, 1, 9, 9)).shape == (1, 2, 9, 9)
        assert fuse(x, torch.zeros(1, 1, 1, 1)).shape == (1, 2, 1, 1)


def test_skip_fusion_at_scale_1_keeps_every_pixel() -> None:
    x, skip = torch.randn(2, 4, 3, 5), torch.randn(2, 3, 3, 5)
    for upsample in ("transposed", "pixel_shuffle"):
        fuse = SkipFusion(4, 3, upsample=upsample, scale=1)
        weight = fuse.up.weight.permute(1, 0, 2, 3) if upsample == "transposed" else fuse.up[0].weight
        bias = (fuse.up if upsample == "transposed" else fuse.up[0]).bias
        torch.testing.assert_close(fuse(x, skip), torch.cat([F.conv2d(x, weight, bias), skip], 1))
    for upsample in ("nearest", "bilinear"):
        torch.testing.assert_close(SkipFusion(4, 3, upsample=upsample)(x, skip), torch.cat([x, skip], 1))


def test_skip_fusion_pixel_shuffle_starts_as_nearest() -> None:
    fuse = SkipFusion(6, 2, upsample="pixel_shuffle")
    x = torch.randn(1, 6, 3, 4)
    out = fuse(x, torch.zeros(1, 2, 5, 8))
    assert out.shape == (1, fuse.out_channels, 5, 8) == (1, 5, 5, 8)
    one = F.conv2d(x, fuse.up[0].weight[::4], fuse.up[0].bias[::4])
    expected = one.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :5, :]
    torch.testing.assert_close(out[:, :3], expected)


@pytest.mark.parametrize("upsample", ["nearest", "bilinear", "transposed", "pixel_shuffle"])
def test_skip_fusion_adds(upsample: str) -> None:
    for channels in (3, 4):
        fuse = SkipFusion(channels, 3, fusion="add", upsample=upsample)
        x, skip = torch.randn(1, channels, 2, 4), torch.randn(1, 3, 4, 7)
        assert fuse.out_channels == 3
        alone = fuse(x, torch.zeros_like(skip))
        torch.testing.assert_close(fuse(x, skip), alone + skip)
        torch.testing.assert_close(fuse(x, skip, skip), alone + 2 * skip)
    learned = upsample in ("transposed", "pixel_shuffle")
    assert bool(list(SkipFusion(3, 3, fusion="add", upsample=upsample).parameters())) == learned


def test_skip_fusion_interpolates_as_torch_does() -> None:
    x, skip = torch.randn(1, 2, 3, 4), torch.randn(1, 1, 7, 8)
    for upsample, corners in [("nearest", None), ("bilinear", False), ("bilinear", True)]:
        fuse = SkipFusion(2, 1, upsample=upsample, align_corners=bool(corners))
        expected = F.interpolate(x, size=(7, 8), mode=upsample, align_corners=corners)
        assert torch.equal(fuse(x, skip), torch.cat([expected, skip], 1))
        assert torch.equal(SkipFusion(2, 0, upsample=upsample, align_corners=bool(corners))(x, skip), expected)


def test_skip_fusion_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="unknown upsample 'pixelshuffle': did you mean 'pixel_shuffle'?"):
        SkipFusion(4, 4, upsample="pixelshuffle")
    with pytest.raises(ValueError, match="unknown fusion 'cat': did you mean 'concat'?"):
        SkipFusion(4, 4, fusion="cat")
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        SkipFusion(4, 4, scale=0)


# LateFusion.


def pair(**kwargs: object) -> LateFusion:
    return LateFusion([Pooled(), Pooled(in_channels=1)], **kwargs)


def test_late_fusion_splits_the_channels_and_fuses_each_level() -> None:
    x = torch.randn(2, 4, 33, 40)
    for fusion, combine in [("add", torch.add), ("max", torch.maximum)]:
        both = pair(fusion=fusion).eval()
        colour, depth = both.encoders[0](x[:, :3]), both.encoders[1](x[:, 3:])
        for fused, a, b in zip(both(x), colour, depth, strict=True):
            assert torch.equal(fused, combine(a, b))
    both = LateFusion([Pooled(), Pooled(channels=(2, 3, 4, 5), in_channels=1)]).eval()
    assert (both.in_channels, both.channels, both.strides) == (4, (4, 4, 6, 8), (2, 4, 8, 16))
    assert [conv.conv.in_channels for conv in both.fuse] == [6, 7, 10, 13]
    colour, depth = both.encoders[0](x[:, :3]), both.encoders[1](x[:, 3:])
    torch.testing.assert_close(both(x)[1], both.fuse[1](torch.cat([colour[1], depth[1]], 1)))


def test_late_fusion_of_encoders_that_round_differently() -> None:
    both = LateFusion([Pooled(), Pooled(in_channels=1, ceil=False)])
    assert both.min_size == 16
    assert [tuple(y.shape[-2:]) for y in both(torch.randn(1, 4, 33, 47))] == [(17, 24), (9, 12), (5, 6), (3, 3)]
    first, second = Pooled(), Pooled(in_channels=1)
    first.min_size, first.size_multiple, second.size_multiple = 32, 6, 4
    assert LateFusion([first, second]).pad(torch.zeros(1, 4, 37, 3)).shape == (1, 4, 72, 36)


def test_late_fusion_freezes_its_encoders_and_not_the_fusion() -> None:
    model = UNet(pair(), in_channels=4, num_classes=2, decoder_channels=(8, 6, 4, 4))
    assert model.encoder.freeze() is model.encoder
    model.train()
    frozen = [p.requires_grad for p in model.encoder.encoders.parameters()]
    assert not any(frozen) and all(p.requires_grad for p in model.encoder.fuse.parameters())
    before = {key: value.clone() for key, value in model.encoder.encoders.state_dict().items()}
    model(torch.randn(1, 4, 33, 33)).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in model.encoder.encoders.state_dict().items())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.encoder.freeze(upto=1)
    assert [p.requires_grad for p in model.encoder.encoders[1].convs[1].parameters()] == [True] * 3
    assert not any(p.requires_grad for p in model.encoder.encoders[1].convs[0].parameters())
    model.encoder.unfreeze()
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("fusion", ["concat", "add", "max"])
@pytest.mark.parametrize("size", [(1, 1), (33, 47)])
def test_a_unet_of_two_encoders(fusion: str, size: tuple[int, int], tmp_path: Path) -> None:
    model = segzoo.unet(pair(fusion=fusion), in_channels=4, num_classes=2, decoder_channels=(8, 6, 4, 4))
    x = torch.randn(1, 4, *size)
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.stems()[0] == "encoder.encoders.0.convs.0.conv.weight" and model.stems()[0] in model.state_dict()
    torch.save(model.state_dict(), tmp_path / "m.pth")
    again = segzoo.unet(pair(fusion=fusion), in_channels=4, decoder_channels=(8, 6, 4, 4), weights=tmp_path / "m.pth")
    assert torch.equal(again.predict(x), model.predict(x))


def test_late_fusion_shares_an_encoder_that_is_given_twice() -> None:
    encoder = Pooled()
    both = LateFusion([encoder, encoder], fusion="add").eval()
    assert both.in_channels == 6 and len(list(both.parameters())) == len(list(encoder.parameters()))
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(both(torch.cat([x, x], 1))[0], 2 * encoder(x)[0])


def test_late_fusion_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="two encoders or more, got 1"):
        LateFusion([Pooled()])
    with pytest.raises(ValueError, match=r"the same strides, got \(2, 4, 8, 16\) and \(2, 4, 8, 8\)"):
        LateFusion([Pooled(), Pooled((2, 4, 8, 8))])
    with pytest.raises(ValueError, match=r"fusion='max' needs encoders of the same channels"):
        LateFusion([Pooled(), Pooled(channels=(2, 3, 4, 5))], fusion="max")
    with pytest.raises(ValueError, match="unknown fusion 'sum'"):
        pair(fusion="sum")
