"""What makes a prediction better, as the Predictor and the command line offer it: more looks, windows, tidier masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from resizing import resized
from safetensors.torch import save_file
from test_u2net import tiny
from torch import Tensor, nn

import segzoo
from segzoo.cli import main
from segzoo.inference import (
    Prediction,
    average_predictions,
    evaluate,
    multi_scale,
    predict_folder,
    preprocess,
    read_picture,
    sliding_window,
)
from segzoo.inference.instances import InstancePrediction
from segzoo.inference.preprocessing import normalise, resized_pixels
from segzoo.inference.tidying import tidied_probabilities
from segzoo.models import SegmentationModel
from segzoo.ops import resize
from segzoo.weights import Preprocessing

pytestmark = pytest.mark.usefixtures("one_thread")


class Filter(SegmentationModel):
    """A model whose every pixel depends on its 5 × 5 neighbours."""

    def __init__(self, num_classes: int = 1, in_channels: int = 3, size: tuple[int, int] | None = None) -> None:
        super().__init__(num_classes, in_channels)
        torch.manual_seed(0)
        self.conv = nn.Conv2d(in_channels, num_classes, 5, padding=2)
        self.preprocessing = Preprocessing(size=size, scale="max").for_channels(in_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def picture(height: int = 30, width: int = 40, seed: int = 0, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("size", [(20, 1), (1, 20), (1, 1), (20, 2)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pictures_shrink_as_written_out(size: tuple[int, int], dtype: torch.dtype, layout: torch.memory_format) -> None:
    x = (torch.rand(2, 3, 40, 60) * 255).to(dtype).to(memory_format=layout)
    found = resize(x, size)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), resized(x, size), atol=1.1 if dtype == torch.uint8 else 1e-3, rtol=0)


def test_flip_is_the_mean_with_the_mirror_image() -> None:
    model = tiny()
    model.preprocessing = Preprocessing(size=(33, 35))
    x = preprocess(read_picture(picture()), model.preprocessing)[None]
    expected = (model.predict(x) + model.predict(x.flip(-1)).flip(-1)) / 2
    for tta in ("flip", (1.0,)):
        found = segzoo.Predictor(model, tta=tta)(picture())
        torch.testing.assert_close(found.scores[None], expected, atol=2e-5, rtol=1e-5)
        assert found.probabilities.shape == (1, 30, 40)
    torch.testing.assert_close(multi_scale(model, x, (1.0,)), expected)


def test_scales_are_of_the_pictures_own_pixels() -> None:
    """At scale 2 of a model for 15 × 20 pixels the picture of 30 × 40 is not resized at all."""
    model = Filter(size=(15, 20)).eval()
    shown: list[Tensor] = []
    predictor = segzoo.Predictor(model, tta=(2.0, 1.0))
    predictor.model.register_forward_pre_hook(lambda _, args: shown.append(args[0].clone()))
    found = predictor(picture())
    full = preprocess(read_picture(picture()), Preprocessing(size=None, scale="max"))[None]
    assert [tuple(x.shape[-2:]) for x in shown] == [(30, 40), (30, 40), (15, 20), (15, 20)]
    assert torch.equal(shown[0], full) and torch.equal(shown[1], full.flip(-1))
    assert torch.equal(shown[2], preprocess(read_picture(picture()), model.preprocessing)[None])
    assert found.scores.shape == (1, 30, 40)


@given(height=st.integers(1, 40), width=st.integers(1, 40), tile=st.integers(24, 50), batch=st.integers(1, 4))
def test_windows_of_a_local_model_are_the_whole_picture(height: int, width: int, tile: int, batch: int) -> None:
    model = Filter(3)
    whole = segzoo.Predictor(model)(picture(height, width))
    found = segzoo.Predictor(model, tile=tile, batch_size=batch)(picture(height, width))
    torch.testing.assert_close(found.scores, whole.scores, atol=1e-5, rtol=0)


def test_windows_and_scales_together() -> None:
    model = Filter(2)
    x = picture(50, 70)
    found = segzoo.Predictor(model, tta=(0.5, 1.5), tile=(24, 32))(x)
    inputs = []
    for scale in (0.5, 1.5):
        pixels = resized_pixels(read_picture(x), model.preprocessing, scale)
        inputs.append(normalise(pixels, model.preprocessing, brightest=int(pixels.max()))[None])
    whole = average_predictions(model, inputs, (50, 70))
    torch.testing.assert_close(found.scores[None], whole, atol=1e-5, rtol=0)
    assert segzoo.Predictor(model, tta=(0.5, 1.5))(x).scores.shape == (2, 75, 105)
    named = sliding_window(model, preprocess(read_picture(x), model.preprocessing), 24)
    torch.testing.assert_close(named.softmax(0), segzoo.Predictor(model, tile=24)(x).scores, atol=1e-5, rtol=0)


def test_a_tile_asks_for_the_pictures_own_size() -> None:
    model = Filter(size=(8, 8))
    assert segzoo.Predictor(model)(picture()).scores.shape == (1, 8, 8)
    assert segzoo.Predictor(model, tile=16)(picture()).scores.shape == (1, 30, 40)


def test_batches_and_streams_are_the_same_one_by_one() -> None:
    model = Filter(2, size=(20, 24))
    pictures = [picture(seed=i) for i in range(5)] + [picture(9, 50)]
    for options in ({"tta": "flip"}, {"tta": (0.5, 1)}, {"tile": 24}):
        one = segzoo.Predictor(model, **options)
        many = segzoo.Predictor(model, batch_size=4, **options)(pictures)
        for x, together in zip(pictures, many):
            torch.testing.assert_close(together.scores, one(x).scores, atol=1e-5, rtol=0)


def test_bands_flip_and_tile_too() -> None:
    model = Filter(2, in_channels=5)
    found = segzoo.Predictor(model, tta="flip", tile=24)(picture(channels=5))
    whole = segzoo.Predictor(model, tta="flip")(picture(channels=5))
    torch.testing.assert_close(found.scores, whole.scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tta": "flop"}, "unknown tta 'flop': did you mean 'flip'"),
        ({"tta": ()}, "scales must be one or more positive, finite numbers"),
        ({"tta": (1, -1)}, "scales must be one or more positive, finite numbers"),
        ({"tile": 0}, "tile must be a positive int or a pair of them"),
        ({"tile": (3, 4, 5)}, "tile must be a positive int or a pair of them"),
    ],
)
def test_bad_looks_get_one_sentence(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        segzoo.Predictor(Filter(), **arguments)  # type: ignore[arg-type]


def disc_and_speck(steep: float = 1.0) -> np.ndarray:
    """A soft disc of radius 10 with a hole, and a soft speck away from it."""
    y, x = np.mgrid[:60, :90]
    near = np.minimum(np.hypot(y - 30, x - 30) - 14, np.hypot(y - 30, x - 75) - 3)
    near = np.maximum(near, 2 - np.hypot(y - 30, x - 32))
    return 1 / (1 + np.exp(steep * near))


def prediction(probabilities: np.ndarray, **options: object) -> Prediction:
    scores = torch.from_numpy(np.atleast_3d(probabilities.T).T.astype(np.float32))
    height, width = scores.shape[-2:]
    return Prediction(read_picture(picture(height, width)), scores, **options)  # type: ignore[arg-type]


def test_tidying_drops_a_speck_with_its_rim_and_fills_the_hole() -> None:
    before = prediction(disc_and_speck())
    after = before.tidied(min_area=60)
    assert before.mask[30, 75] == 1 and before.mask[30, 32] == 0
    assert after.mask[30, 75] == 0 and after.mask[30, 32] == 1
    assert after.probabilities[0, 20:40, 62:].max() == 0  # nothing of the rim is left
    assert after.probabilities[0, 26:35, 28:37].min() == 1  # nor of the hole's
    rim = (before.probabilities[0] < 0.5) & (np.mgrid[:60, :90][1] < 45) & (after.probabilities[0] < 0.5)
    np.testing.assert_array_equal(after.probabilities[0][rim], before.probabilities[0][rim])
    only = before.tidied(largest=True)
    assert only.mask[30, 75] == 0 and only.mask[30, 32] == 0
    np.testing.assert_array_equal(before.tidied().probabilities, before.probabilities)
    assert prediction(np.zeros((5, 6))).tidied(largest=True, min_area=3).mask.max() == 0


def test_patches_of_classes_go_to_their_neighbours() -> None:
    labels = np.zeros((20, 30), int)
    labels[:, 15:] = 1
    labels[5:7, 4:6] = 2
    scores = np.eye(3)[labels].transpose(2, 0, 1) * 0.8 + 0.1
    tidy = prediction(scores).tidied(min_area=5)
    assert set(np.unique(tidy.mask)) == {0, 1} and tidy.mask[5, 4] == 0
    assert tidy.probabilities[:, 5, 4].tolist() == [1, 0, 0]
    np.testing.assert_array_equal(tidy.probabilities[:, 0], prediction(scores).probabilities[:, 0])
    with pytest.raises(ValueError, match="largest keeps one object, this model has 3 classes"):
        prediction(scores).tidied(largest=True)


@given(seed=st.integers(0, 10**6), classes=st.integers(1, 3), area=st.integers(0, 20))
def test_tidying_never_leaves_0_to_1_and_changes_nothing_it_need_not(seed: int, classes: int, area: int) -> None:
    scores = torch.rand(classes, 9, 11, generator=torch.Generator().manual_seed(seed))
    for threshold in (0.5, None):
        tidy = tidied_probabilities(scores, threshold=threshold, largest=False, min_area=area, holes=None)
        assert tidy.min() >= 0 and tidy.max() <= 1
        changed = (tidy != scores).any(0)
        if threshold is None:
            moved = tidy.argmax(0) != scores.argmax(0)
            assert torch.equal(changed, moved)
        elif area <= 1:
            assert not changed.any()


@pytest.mark.parametrize("method", ["guided", "crf"])
def test_refining_follows_the_picture(method: str) -> None:
    """A blurred mask of a square becomes sharper where the picture has the square's edge."""
    truth = np.zeros((64, 80), bool)
    truth[16:48, 20:60] = True
    image = np.where(truth[:, :, None], (200, 60, 40), (30, 90, 160)).astype(np.uint8)
    small = np.asarray(Image.fromarray(truth.astype(np.float32)).resize((16, 12), Image.Resampling.BILINEAR))
    before = Prediction(read_picture(image), torch.from_numpy(small.copy())[None])
    after = before.refined(method)  # type: ignore[arg-type]
    assert after.scores.shape == (1, 64, 80)
    assert np.abs(after.probabilities[0] - truth).mean() < 0.6 * np.abs(before.probabilities[0] - truth).mean()
    assert before.scores.shape == (1, 12, 16)
    with pytest.raises(ValueError, match="unknown way to refine 'guide': did you mean 'guided'"):
        before.refined("guide")  # type: ignore[arg-type]


def test_detections_keep_their_kind() -> None:
    masks = torch.from_numpy(np.stack([disc_and_speck(), disc_and_speck() * 0.7]).astype(np.float32))[:, None]
    found = {"boxes": torch.zeros(2, 4), "labels": torch.ones(2).long(), "scores": torch.tensor([0.9, 0.8])}
    both = InstancePrediction(read_picture(picture(60, 90)), {**found, "masks": masks})
    tidy = both.tidied(largest=True)
    assert isinstance(tidy, InstancePrediction) and tidy.masks.shape == (2, 60, 90)
    assert not tidy.masks[:, :, 60:].any() and both.masks[:, :, 60:].any()
    none = InstancePrediction(read_picture(picture(60, 90)), {k: v[:0] for k, v in {**found, "masks": masks}.items()})
    assert len(none.tidied(largest=True).refined()) == 0


def test_objects_without_pixels_go_from_detections_with_all_that_is_theirs() -> None:
    masks = torch.zeros(4, 1, 40, 60)
    masks[0, 0, 5:20, 5:20] = 0.9
    masks[1, 0, 1:3, 1:3] = 0.95  # a speck
    masks[2, 0, 25:38, 30:50] = 0.8
    masks[2, 0, 0:2, 55:58] = 0.8  # and a speck of its own
    masks[3, 0, 30:35, 2:9] = 0.3  # below the threshold
    boxes = torch.tensor([[4.5, 5, 20, 20], [1, 1, 3, 3], [30, 0, 58, 38], [2, 30, 9, 35]])
    found = InstancePrediction(
        read_picture(picture(40, 60)),
        {"boxes": boxes, "labels": torch.tensor([2, 1, 3, 1]), "scores": torch.tensor([0.9, 0.8, 0.7, 0.6])}
        | {"masks": masks},
        classes=("background", "a", "b", "c"),
    )
    tidy = found.tidied(min_area=10)
    assert isinstance(tidy, InstancePrediction)
    assert len(tidy) == 2 == len(tidy.scores) == len(tidy.masks) and tidy.names == ["b", "c"]
    assert tidy.boxes.tolist() == [[4.5, 5, 20, 20], [30, 25, 50, 38]]  # only what lost pixels has another
    assert tidy.confidences.tolist() == found.confidences[[0, 2]].tolist() and tidy.mask.max() == 2
    assert tidy.boxes.dtype == np.float32 and tidy.labels.dtype == np.int64
    assert len(found) == 4 and found.boxes.tolist() == boxes.tolist()
    gone = found.tidied(min_area=1000)
    assert len(gone) == 0 and gone.names == [] and gone.boxes.shape == (0, 4) and gone.mask.max() == 0


def test_classes_are_tidied_the_same_whichever_a_frame_shows() -> None:
    """A ring alone, and with another class far away: what it encloses fares the same."""
    ring = np.zeros((12, 20), int)
    ring[2:6, 2:6] = 1
    ring[3:5, 3:5] = 0
    both = ring.copy()
    both[:, 14:] = 2
    tidy = [prediction(np.eye(3)[labels].transpose(2, 0, 1)).tidied(min_area=6).mask for labels in (ring, both)]
    np.testing.assert_array_equal(tidy[0][:, :10], tidy[1][:, :10])
    with pytest.raises(ValueError, match="holes are one object's, this model has 3 classes"):
        prediction(np.eye(3)[ring].transpose(2, 0, 1)).tidied(holes=3)


def test_options_of_refining_get_one_sentence() -> None:
    one = prediction(disc_and_speck())
    for method, options, words in (
        ("guided", {"radios": 3}, "unknown option of refined\\('guided'\\) 'radios': did you mean 'radius'"),
        ("guided", {"multilabel": True}, "unknown option .* 'multilabel': .*Known: eps, radius, subsample"),
        ("crf", {"eps": 1e-4}, "unknown option of refined\\('crf'\\) 'eps'"),
    ):
        with pytest.raises(ValueError, match=words):
            one.refined(method, **options)  # type: ignore[arg-type]
    assert one.refined("guided", radius=2, eps=1e-3).scores.shape == (1, 60, 90)


def test_a_hard_rim_has_nothing_to_clean() -> None:
    one = prediction(disc_and_speck())
    for call in (one.cutout, lambda **options: one.render("cutout", **options)):
        with pytest.raises(ValueError, match="clean_rim is of soft rims"):
            call(hard=True, clean_rim=True)


def test_a_clean_rim_has_the_foregrounds_colours() -> None:
    """Red on blue, mixed at a soft rim: the cut-out's rim is red again, and what is opaque is as it was."""
    alpha = disc_and_speck(steep=2.0).astype(np.float32)
    image = alpha[:, :, None] * (220, 30, 20) + (1 - alpha[:, :, None]) * (20, 40, 230)
    whole = Prediction(read_picture(image.astype(np.uint8)), torch.from_numpy(alpha)[None])
    plain, clean = (np.asarray(whole.cutout(clean_rim=c)).astype(int) for c in (False, True))
    rim = (alpha > 0.2) & (alpha < 0.8)
    wrong = [np.abs(cut[rim][:, :3] - (220, 30, 20)).mean() for cut in (plain, clean)]
    assert wrong[1] < 0.25 * wrong[0]
    np.testing.assert_array_equal(plain[:, :, 3], clean[:, :, 3])
    np.testing.assert_array_equal(plain[plain[:, :, 3] == 255], clean[clean[:, :, 3] == 255])
    with pytest.raises(ValueError, match="clean_rim and classes are a cut-out's, not of kind='mask'"):
        whole.render("mask", clean_rim=True)


def test_the_predictor_postprocesses_everything_it_gives() -> None:
    seen: list[Prediction] = []

    def note(found: Prediction) -> Prediction:
        seen.append(found)
        return found.tidied(largest=True)

    predictor = segzoo.Predictor(Filter(), postprocess=note)
    assert len(predictor([picture(), picture()])) == 2 == len(seen)
    assert predictor(picture()) is not seen[-1]


def test_postprocessing_that_fails_costs_one_picture(tmp_path: Path) -> None:
    def fails_on_dark(found: Prediction) -> Prediction:
        if found.picture.pixels.max() == 0:
            raise ValueError("nothing to see")
        return found

    predictor = segzoo.Predictor(Filter(), postprocess=fails_on_dark)
    pictures = [picture(), np.zeros((4, 5, 3), np.uint8), picture()]
    kinds = [type(o).__name__ for o in predictor.stream(pictures, errors="return")]
    assert kinds == ["Prediction", "ValueError", "Prediction"]
    with pytest.raises(ValueError, match="nothing to see"):
        predictor(pictures)
    for i, one in enumerate(pictures):
        Image.fromarray(one).save(tmp_path / f"{i}.png")
    report = predict_folder(predictor, tmp_path, tmp_path / "out")
    assert [p.name for p in report.failed] == ["1.png"] and len(report.written) == 2
    with pytest.raises(ValueError, match="clean_rim is of soft rims"):  # before the work, not once for each picture
        predict_folder(predictor, tmp_path, tmp_path / "cut", "cutout", hard=True, clean_rim=True)
    assert not (tmp_path / "cut").exists()
    masks = segzoo.Predictor(Filter(), postprocess=lambda p: p.mask)  # type: ignore[arg-type, return-value]
    for pictures in (picture(), [picture(), picture()]):
        with pytest.raises(TypeError, match="postprocess must return a Prediction, got ndarray"):
            masks(pictures)
    with pytest.raises(TypeError, match="postprocess is a function of a Prediction, got 'guided'"):
        segzoo.Predictor(Filter(), postprocess="guided")  # type: ignore[arg-type]


def test_scales_are_made_one_at_a_time_and_windows_take_one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = Filter(), []
    predictor = segzoo.Predictor(model, tta=(2.0, 1.0, 0.5), tile=24, batch_size=8)
    predictor.model.register_forward_pre_hook(lambda *_: made.append("window"))
    monkeypatch.setattr(
        "segzoo.inference.preprocessing.resized_pixels", lambda *a: made.append(f"scale {a[2]:g}") or resized_pixels(*a)
    )
    predictor(picture())
    assert made[0] == "scale 2" and made.index("scale 0.5") > made.index("window") < made.index("scale 1")
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield picture(6, 7, taken)

    stream = predictor.stream(endless(), workers=1)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert taken <= 3


def test_the_command_line_has_them_all(coffee: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    better = ["--tta", "flip", "--refine", "guided", "--largest", "--min-area", "0.001"]
    assert main(["cutout", str(coffee), str(tmp_path / "a.png"), *better, "--clean-rim"]) == 0
    expected = segzoo.Predictor("u2net_lite", tta="flip")(coffee).refined().tidied(largest=True, min_area=0.001)
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected.cutout(clean_rim=True)))
    Image.fromarray(picture()).save(tmp_path / "b.png")
    for wrong, words in (
        (["--tta", "1,x"], "--tta is '1,x', expected flip, multi-scale, or scales"),
        (["--tta", "flp"], "--tta is 'flp', expected"),
        (["--tile", "-3"], "tile must be a positive int"),
        (["--min-area", "-1"], "--min-area is -1, expected pixels, or a share"),
        (["--min-area", "nan"], "--min-area is nan"),
    ):
        assert main(["predict", str(tmp_path / "b.png"), str(tmp_path / "c.png"), *wrong]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "c.png").exists()


def test_evaluate_takes_them_too(coffee: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", str(coffee), str(tmp_path / "mask.png")]
    Image.fromarray(np.full((400, 600), 255, np.uint8)).save(tmp_path / "mask.png")
    assert main([*arguments, "--refine", "guided"]) == 2
    assert "--refine is for a model to predict with: give --model, too" in capsys.readouterr().err
    better = ["--model", "u2net_lite.duts", "--refine", "guided", "--largest", "--min-area", "9", "--json", "-"]
    assert main([*arguments, *better]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["postprocess"] == "refine guided, largest, min-area 9.0"


def test_largest_is_refused_before_the_work_with_several_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(segzoo.create_model("lraspp_mobilenet_v3_large", weights=None).state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "in").mkdir()
    Image.fromarray(picture()).save(tmp_path / "in/a.png")
    model = ["--model", "lraspp_mobilenet_v3_large", "--weights", str(tmp_path / "w.safetensors"), "--largest"]
    assert main(["predict", str(tmp_path / "in"), str(tmp_path / "out"), *model]) == 2
    assert "--largest keeps one object, and lraspp" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_evaluate_says_how_the_model_looked(tmp_path: Path) -> None:
    for folder in ("pictures", "masks"):
        (tmp_path / folder).mkdir()
    Image.fromarray(picture()).save(tmp_path / "pictures/a.png")
    Image.fromarray((picture(channels=1)[:, :, 0] > 99) * np.uint8(255)).save(tmp_path / "masks/a.png")
    model = segzoo.Predictor(Filter(), tta="flip", tile=24)
    found = evaluate(tmp_path / "pictures", tmp_path / "masks", model=model)
    settings = json.loads(found.to_json())["settings"]
    assert (settings["scales"], settings["hflip"], settings["tile"]) == ([1.0], True, [24, 24])
    assert settings["min_max"] is False and "postprocess" not in settings
    assert "hflip" not in evaluate(tmp_path / "pictures", tmp_path / "masks", model=Filter()).settings
