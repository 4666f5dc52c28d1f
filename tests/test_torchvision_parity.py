"""torchvision's segmentation models: their state dicts load as they are, and the outputs are theirs."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
import torchvision
from families import outputs_of
from torch import nn

import segzoo
from segzoo.registry import find_factory

NAMES = [
    "fcn_resnet50",
    "fcn_resnet101",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
]


def theirs(name: str, **arguments: object) -> nn.Module:
    """torchvision's model, with random weights and statistics that are not 0 and 1."""
    torch.manual_seed(0)
    if not name.startswith("lraspp"):
        arguments.setdefault("aux_loss", True)
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, **arguments)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
def test_state_dicts_load_unchanged_and_outputs_agree(name: str, tmp_path: Path) -> None:
    reference = theirs(name)
    torch.save(reference.state_dict(), tmp_path / "theirs.pth")
    model = segzoo.create_model(name, weights=tmp_path / "theirs.pth").eval()
    assert list(model.state_dict()) == list(reference.state_dict())
    for size in [(97, 65), (33, 47)]:
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected = reference(x)
            main = model(x)
            model.training = True  # of the model alone: its auxiliary output, its norms still in eval mode
            outputs = outputs_of(model, x)
            model.training = False
        assert len(outputs) == len(expected) == (1 if name.startswith("lraspp") else 2)
        for ours, key in zip(outputs, expected):  # "out", "aux"
            scale = expected[key].abs().max().clamp_min(1)
            assert (ours - expected[key]).abs().max() <= 1e-5 * scale, (size, key)
        assert torch.equal(main, outputs[0])


def test_auxiliary_heads_come_and_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(theirs("fcn_resnet50").state_dict(), tmp_path / "with.pth")
    without = segzoo.fcn_resnet50(weights=tmp_path / "with.pth", aux=False).train()
    assert without.aux_classifier is None and "aux_classifier is left out" in caplog.text
    torch.save(theirs("fcn_resnet50", aux_loss=False).state_dict(), tmp_path / "without.pth")
    caplog.clear()
    both = segzoo.fcn_resnet50(weights=tmp_path / "without.pth")
    assert both.aux_classifier is not None and "no aux_classifier: it starts afresh" in caplog.text


def test_another_number_of_classes_keeps_the_rest(tmp_path: Path) -> None:
    reference = theirs("deeplabv3_mobilenet_v3_large")
    torch.save(reference.state_dict(), tmp_path / "theirs.pth")
    model = segzoo.deeplabv3_mobilenet_v3_large(weights=tmp_path / "theirs.pth", num_classes=5)
    kept = {k: v for k, v in reference.state_dict().items() if not k.startswith(("classifier.4", "aux_classifier.4"))}
    ours = model.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in kept.items())
    assert ours["classifier.4.weight"].shape[0] == ours["aux_classifier.4.weight"].shape[0] == 5


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_those_of_the_published_weights(name: str) -> None:
    """Parameters as torchvision counts them, URL, figures and classes as its own records have them."""
    meta = torchvision.models.get_model_weights(name).DEFAULT.meta
    record = segzoo.get_weights(f"{name}.coco_voc")
    with torch.device("meta"):
        parameters = segzoo.create_model(name, weights=None).parameters()
    assert sum(p.numel() for p in parameters) == meta["num_params"]
    assert record.sources[0].location == torchvision.models.get_model_weights(name).DEFAULT.url
    assert record.sources[0].location.endswith(f"-{record.sha256}.pth")
    ((published,), figures) = (record.published_metrics.values(), *meta["_metrics"].values())
    assert published["miou"] == pytest.approx(figures["miou"] / 100)
    assert published["pixel_accuracy"] == pytest.approx(figures["pixel_acc"] / 100)
    plain = [name.replace(" ", "") for name in record.classes[1:]]
    assert plain == meta["categories"][1:]
    assert inspect.signature(find_factory(name)).parameters["weights"].default == "coco_voc"


def test_mask_rcnn_is_torchvisions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=96, box_score_thresh=0.0
    ).eval()
    torch.save(reference.state_dict(), tmp_path / "theirs.pth")
    model = segzoo.mask_rcnn_resnet50_fpn(weights=tmp_path / "theirs.pth", min_size=96, box_score_thresh=0.0).eval()
    assert model.num_classes == 4
    x = [torch.rand(3, 60, 80), torch.rand(3, 90, 70)]
    with torch.no_grad():
        expected, found = reference(x), model(x)
    for a, b in zip(expected, found):
        assert len(a["labels"]) > 0
        for key in a:
            torch.testing.assert_close(b[key], a[key], rtol=1e-4, atol=1e-4)
    record = segzoo.get_weights("mask_rcnn_resnet50_fpn.coco")
    published = torchvision.models.detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1
    assert record.sources[0].location == published.url
    assert record.classes[1:] == tuple(published.meta["categories"][1:])


@pytest.mark.parametrize("norm", ["batch", "group", "evo_s0"])
def test_mask_rcnn_trains_with_any_norm_and_channels(norm: str) -> None:
    torch.manual_seed(0)
    model = segzoo.mask_rcnn_resnet50_fpn(weights=None, num_classes=3, in_channels=4, norm=norm, min_size=64).train()
    mask = torch.zeros(1, 60, 80, dtype=torch.uint8)
    mask[:, 10:40, 20:60] = 1
    target = {"boxes": torch.tensor([[20.0, 10, 60, 40]]), "labels": torch.tensor([1]), "masks": mask}
    losses = model([torch.rand(4, 60, 80)], [target])
    assert set(losses) >= {"loss_mask", "loss_classifier", "loss_box_reg"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.backbone.parameters())
