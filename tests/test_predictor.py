"""The Predictor: what a user gets for a picture, and for many."""

from __future__ import annotations

import copy
import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_u2net import tiny

import segzoo
from segzoo.inference import Prediction, optimize_for_inference, predict_folder, preprocess, read_picture
from segzoo.inference._devices import is_fast
from segzoo.inference.optimize import fold_norms
from segzoo.inference.prediction import stretch
from segzoo.layers import ConvNormAct
from segzoo.weights import Preprocessing


@pytest.fixture(scope="module")
def predictor() -> segzoo.Predictor:
    return segzoo.Predictor("u2net_lite.duts", precision="fp32")


@pytest.fixture(scope="module")
def quick() -> segzoo.Predictor:
    """A predictor of an untrained tiny model: for questions of plumbing."""
    model = tiny()
    model.preprocessing = Preprocessing(size=(33, 35))
    return segzoo.Predictor(model, batch_size=3)


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def picture(height: int = 30, width: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_prediction_has_the_pictures_size_and_types(predictor: segzoo.Predictor, coffee: Path) -> None:
    prediction = predictor(coffee)
    assert prediction.probabilities.shape == (1, 400, 600) and prediction.probabilities.dtype == np.float32
    assert prediction.mask.shape == (400, 600) and prediction.mask.dtype == np.uint8
    assert set(np.unique(prediction.mask)) == {0, 1}
    cutout, overlay = prediction.cutout(), prediction.overlay()
    assert (cutout.mode, cutout.size) == ("RGBA", (600, 400))
    assert (overlay.mode, overlay.size) == ("RGB", (600, 400))
    original = np.asarray(opened(coffee))
    np.testing.assert_array_equal(np.asarray(cutout)[:, :, :3], original)
    np.testing.assert_array_equal(np.asarray(overlay)[prediction.mask == 0], original[prediction.mask == 0])
    assert "1 classes, 400×600" in repr(prediction)


def test_auto_is_bfloat16_where_the_processor_has_it(predictor: segzoo.Predictor, coffee: Path) -> None:
    chosen = segzoo.Predictor("u2net_lite.duts", device="cpu")
    has_it = is_fast(torch.bfloat16, torch.device("cpu"))
    assert chosen.dtype == (torch.bfloat16 if has_it else torch.float32)
    assert (chosen(coffee).mask != predictor(coffee).mask).mean() < 0.005
    assert segzoo.Predictor(tiny(), device="cpu").dtype == torch.float32  # nobody checked its weights


def test_the_numbers_are_the_models(predictor: segzoo.Predictor, coffee: Path) -> None:
    """Against the plain module in eval mode, step by step."""
    model = segzoo.u2net_lite().eval()
    x = preprocess(read_picture(coffee), model.preprocessing)[None]
    with torch.no_grad():
        small = torch.sigmoid(model(x))
        large = torch.nn.functional.interpolate(small, (400, 600), mode="bilinear", align_corners=False)
    prediction = predictor(coffee)
    torch.testing.assert_close(prediction.scores[None], small, atol=1e-4, rtol=0)
    np.testing.assert_allclose(prediction.probabilities[None], large.numpy(), atol=1e-4)
    np.testing.assert_array_equal(prediction.mask, (prediction.probabilities[0] > 0.5).astype(np.uint8))


def test_every_form_of_a_picture_is_the_same_picture(predictor: segzoo.Predictor, coffee: Path) -> None:
    image = opened(coffee)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [str(coffee), io.BytesIO(coffee.read_bytes()), image, array, tensor, tensor / 255, image.convert("RGBA")]
    first = predictor(coffee).probabilities
    for prediction in predictor(forms[:3]) + [predictor(form) for form in forms[3:]]:
        np.testing.assert_array_equal(prediction.probabilities, first)


def test_arrays_in_any_order_of_memory_and_reused_buffers(quick: segzoo.Predictor) -> None:
    array = picture()
    for view in (array[:, :, ::-1], array[:, ::-1], np.rot90(array), np.asfortranarray(array), array[::2, 1::3]):
        np.testing.assert_array_equal(quick(view).probabilities, quick(view.copy()).probabilities)
    buffer = array.copy()
    prediction = quick(buffer)
    buffer[:] = 0
    np.testing.assert_array_equal(np.asarray(prediction.cutout())[:, :, :3], array)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    prediction = quick(tensor)
    tensor.zero_()
    np.testing.assert_array_equal(np.asarray(prediction.cutout())[:, :, :3], array)


def test_lists_and_batches_are_single_pictures(quick: segzoo.Predictor) -> None:
    pictures = [picture(10 + i, 20, i) for i in range(7)]
    together = quick(pictures)
    assert [p.mask.shape for p in together] == [(10 + i, 20) for i in range(7)]
    for one, many in zip([quick(p) for p in pictures], together):
        np.testing.assert_allclose(one.probabilities, many.probabilities, atol=1e-5)
    assert quick([]) == []


def test_pictures_of_their_own_sizes_go_one_by_one() -> None:
    model = tiny(num_classes=3)
    model.preprocessing = Preprocessing(size=None)
    masks = [p.mask for p in segzoo.Predictor(model, batch_size=4)([picture(9, 8), picture(9, 8), picture(5, 7)])]
    assert [m.shape for m in masks] == [(9, 8), (9, 8), (5, 7)]


def test_the_users_model_stays_as_it_was() -> None:
    model = tiny().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    segzoo.Predictor(model)(picture())
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@given(h=st.integers(1, 200), w=st.integers(1, 200))
def test_any_size(quick: segzoo.Predictor, h: int, w: int) -> None:
    prediction = quick(np.zeros((h, w), np.uint8))
    assert prediction.probabilities.shape == (1, h, w) and prediction.cutout().size == (w, h)
    assert prediction.probabilities.min() >= 0 and prediction.probabilities.max() <= 1


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("min_max", [False, True])
def test_plain_pictures_never_give_nan(value: int, min_max: bool) -> None:
    prediction = segzoo.Predictor("u2net_lite", min_max=min_max)(np.full((50, 60, 3), value, np.uint8))
    assert np.isfinite(prediction.probabilities).all()
    assert prediction.evaluation_map().dtype == np.uint8


def test_min_max_is_an_option_and_the_evaluations(coffee: Path, predictor: segzoo.Predictor) -> None:
    plain = predictor(coffee)
    stretched = segzoo.Predictor("u2net_lite", precision="fp32", min_max=True)(coffee)
    assert stretched.scores.min() == 0 and stretched.scores.max() == 1
    torch.testing.assert_close(stretched.scores, stretch(plain.scores))
    assert plain.scores.max() < 1
    scored = plain.evaluation_map()
    np.testing.assert_array_equal(scored, stretched.evaluation_map())
    assert scored.shape == (400, 600) and scored.max() == 255 and scored.min() == 0
    constant = torch.full((1, 4, 4), 0.3)
    assert torch.equal(stretch(constant), constant)


def made(scores: torch.Tensor, size: tuple[int, int] = (4, 6), **kwargs: object) -> Prediction:
    return Prediction(read_picture(picture(*size)), scores, **kwargs)  # type: ignore[arg-type]


def test_soft_and_hard_cutouts_and_backgrounds() -> None:
    scores = torch.tensor([[[0.0, 0.2], [0.6, 1.0]]])
    prediction = made(scores, (2, 2))
    assert np.asarray(prediction.cutout())[:, :, 3].tolist() == [[0, 51], [153, 255]]
    assert np.asarray(prediction.cutout(hard=True))[:, :, 3].tolist() == [[0, 0], [255, 255]]
    np.testing.assert_array_equal(prediction.cutout(classes=[0], hard=True), prediction.cutout(hard=True))
    red = prediction.cutout(background="red")
    assert red.mode == "RGB" and red.getpixel((0, 0)) == (255, 0, 0)
    assert red.getpixel((1, 1)) == tuple(picture(2, 2)[1, 1])
    with pytest.raises(ValueError, match="unknown colour 'withe': did you mean 'white'"):
        prediction.cutout(background="withe")
    with pytest.raises(TypeError, match="got tuple"):
        prediction.cutout(background=(255, 255, 255))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no transparency: got '#ff000080'"):
        prediction.cutout(background="#ff000080")
    assert np.asarray(prediction.render("probability")).tolist() == [[0, 51], [153, 255]]
    assert np.asarray(prediction.render("mask")).tolist() == [[0, 0], [255, 255]]


def test_transparency_of_the_picture_stays_transparent() -> None:
    rgba = np.dstack([picture(2, 2), np.array([[0, 255], [128, 255]], np.uint8)])
    prediction = Prediction(read_picture(rgba), torch.ones(1, 2, 2))
    assert np.asarray(prediction.cutout())[:, :, 3].tolist() == [[0, 255], [128, 255]]


def test_several_classes() -> None:
    scores = torch.tensor([0.1, 0.2, 0.7]).reshape(3, 1, 1).expand(3, 4, 6).contiguous()
    scores[:, :2] = torch.tensor([0.8, 0.1, 0.1]).reshape(3, 1, 1)
    prediction = made(scores, classes=("road", "tree", "car"))
    assert prediction.mask.tolist() == [[0] * 6] * 2 + [[2] * 6] * 2
    assert np.asarray(prediction.cutout(classes=["car", 1], hard=True))[:, 0, 3].tolist() == [0, 0, 255, 255]
    np.testing.assert_array_equal(
        np.asarray(prediction.cutout(classes="car", hard=True))[:, :, 3] == 255, prediction.mask == 2
    )
    assert np.asarray(prediction.cutout(classes=["car"]))[3, 0, 3] == 179
    mask = prediction.render("mask")
    assert mask.mode == "P" and np.asarray(mask).max() == 2 and mask.convert("RGB").getpixel((0, 3)) == (0, 128, 0)
    with pytest.raises(ValueError, match="say which classes the cut-out keeps.* of: road, tree, car"):
        prediction.cutout()
    with pytest.raises(ValueError, match="unknown class 'cra': did you mean 'car'"):
        prediction.cutout(classes=["cra"])
    with pytest.raises(ValueError, match="a probability picture is of one class, this model has 3"):
        prediction.render("probability")


def test_multilabel_masks_are_one_a_class() -> None:
    prediction = made(torch.tensor([0.9, 0.8]).reshape(2, 1, 1).expand(2, 4, 6), multilabel=True)
    assert prediction.mask.shape == (2, 4, 6) and prediction.mask.min() == 1
    assert prediction.overlay().mode == "RGB"
    assert np.asarray(prediction.render("mask")).max() == 1


def test_saving(tmp_path: Path, predictor: segzoo.Predictor, coffee: Path) -> None:
    prediction = predictor(coffee)
    prediction.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(np.asarray(opened(tmp_path / "mask.png")), prediction.mask * 255)
    prediction.save(tmp_path / "cut.webp", "cutout")
    assert opened(tmp_path / "cut.webp").mode == "RGBA"
    with pytest.raises(ValueError, match="background, hard, clean_rim and classes are a cut-out's, not of kind='mask'"):
        prediction.save(tmp_path / "x.png", background="red")
    with pytest.raises(FileNotFoundError) as caught:
        prediction.save(tmp_path / "no" / "x.png")
    assert str(caught.value) == f"[Errno 2] No such file or directory: '{tmp_path / 'no' / 'x.png'}'"
    with pytest.raises(ValueError, match="unknown kind of picture 'cutuot': did you mean 'cutout'"):
        prediction.save(tmp_path / "x.png", "cutuot")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="JPEG has no transparency"):
        prediction.save(tmp_path / "x.jpg", "cutout")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.webp", "mask.png"]


@pytest.mark.parametrize("device", ["meta", "xpu", "vulkan", "hpu", "cuda:99", "cpu:x", 3.5])
def test_devices_that_are_not_there(device: object) -> None:
    with pytest.raises(ValueError, match=r"device .* (was asked for and is not there|did you mean|Known)"):
        segzoo.Predictor("u2net_lite", device=device)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"model": "u2net_light"}, ValueError, "unknown model 'u2net_light': did you mean 'u2net_lite'"),
        ({"model": torch.nn.Conv2d(3, 1, 1)}, TypeError, "a name or a segzoo model, got Conv2d"),
        ({"device": "gpu"}, ValueError, "unknown device 'gpu'"),
        ({"device": "cuda:99"}, ValueError, "device 'cuda:99' was asked for and is not there"),
        ({"precision": "fp8"}, ValueError, "unknown precision 'fp8'"),
        ({"batch_size": 0}, ValueError, "batch_size must be a positive int, got 0"),
    ],
)
def test_bad_arguments_get_one_sentence(arguments: dict[str, object], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        segzoo.Predictor(**{"model": "u2net_lite", **arguments})  # type: ignore[arg-type]


def test_bfloat16_is_near(coffee: Path, predictor: segzoo.Predictor) -> None:
    narrow = segzoo.Predictor("u2net_lite", precision="bf16")(coffee)
    assert narrow.probabilities.dtype == np.float32
    assert np.abs(narrow.probabilities - predictor(coffee).probabilities).mean() < 0.02


def test_folding_keeps_the_function_and_folds_everything() -> None:
    model = tiny().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.1, 2)
            torch.nn.init.uniform_(module.weight)
    x = torch.rand(1, 3, 50, 60)
    folded = optimize_for_inference(model, "fp32")
    torch.testing.assert_close(folded(x), model(x), atol=1e-4, rtol=1e-4)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    assert fold_norms(copy.deepcopy(model)) == sum(isinstance(m, ConvNormAct) for m in model.modules())
    plain = optimize_for_inference(tiny(norm=torch.nn.BatchNorm2d))
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in plain.modules())
    for norm in ("group", "evo_s0", "evo_b0"):
        other = tiny(norm=norm).eval()
        torch.testing.assert_close(optimize_for_inference(other)(x), other(x), atol=1e-4, rtol=1e-4)


def test_streams_are_lazy_and_stop(quick: segzoo.Predictor) -> None:
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield picture(6, 7, taken)

    stream = quick.stream(endless())
    for _ in range(4):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert taken < 20


def test_streams_give_errors_in_their_place(quick: segzoo.Predictor, tmp_path: Path) -> None:
    pictures = [picture(), "nothing.jpg", picture(), np.zeros((1, 2, 3, 4)), picture()]
    outcomes = list(quick.stream(pictures, errors="return"))
    assert [type(o).__name__ for o in outcomes] == [
        "Prediction",
        "FileNotFoundError",
        "Prediction",
        "ValueError",
        "Prediction",
    ]
    with pytest.raises(FileNotFoundError):
        quick(pictures)
    with pytest.raises(ValueError, match="unknown value of errors"):
        quick.stream([], errors="ignore")  # type: ignore[arg-type]


def test_one_predictor_serves_several_threads(quick: segzoo.Predictor) -> None:
    pictures = [picture(seed=i) for i in range(8)]
    expected = [quick(p).probabilities for p in pictures]
    found: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.__setitem__(i, quick(pictures[i]).probabilities)) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, e in enumerate(expected):
        np.testing.assert_allclose(found[i], e, atol=1e-6)


# Folders.


def fill(folder: Path, names: list[str]) -> None:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(10 + i, 20, i)).save(path)


def test_folders(quick: segzoo.Predictor, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out" / "deep"
    fill(source, ["b.jpg", "a.png", "a.webp", "sub/c.png", ".hidden.png"])
    (source / "notes.txt").write_text("not a picture, and not meant as one")
    (source / "bad.jpg").write_bytes(b"meant as one")
    report = predict_folder(quick, source, out, "cutout")
    names = {p.name: t.relative_to(out).as_posix() for p, t in report.written.items()}
    assert names == {"a.png": "a.png.png", "a.webp": "a.webp.png", "b.jpg": "b.png"}
    assert [p.name for p in report.failed] == ["bad.jpg"]
    assert sorted(p.name for p in out.iterdir()) == sorted(names.values())
    assert all(opened(t).mode == "RGBA" for t in report.written.values())

    report = predict_folder(quick, source, source / "masks", recursive=True)
    assert (source / "masks/sub/c.png").is_file() and len(report.written) == 4
    again = predict_folder(quick, source, source / "masks", recursive=True)
    assert len(again.written) == 4  # its own results are no pictures to predict


def test_a_list_of_files(quick: segzoo.Predictor, tmp_path: Path) -> None:
    fill(tmp_path, ["a/x.png", "b/y.png", "b/x.png"])
    report = predict_folder(quick, [tmp_path / "a/x.png", tmp_path / "b/y.png"], tmp_path / "out", suffix=".webp")
    assert sorted(p.name for p in report.written.values()) == ["x.webp", "y.webp"]
    with pytest.raises(ValueError, match="several pictures would all become .*x.png"):
        predict_folder(quick, [tmp_path / "a/x.png", tmp_path / "b/x.png"], tmp_path / "out")


@pytest.mark.parametrize(
    ("case", "error", "words"),
    [
        ("empty", ValueError, "there is no picture in the folder"),
        ("missing", FileNotFoundError, "there is no folder"),
        ("same", ValueError, "would lie among the pictures in .*: choose another folder"),
        ("overwrite", ValueError, "would overwrite a picture: choose another folder"),
        ("opaque", ValueError, "JPEG has no transparency"),
        ("picture", NotADirectoryError, "is no folder; single pictures go in as a list"),
        ("suffix", ValueError, "unknown picture format '.pgn'"),
        ("file", OSError, "File exists"),
    ],
)
def test_folders_that_cannot_be_done(
    quick: segzoo.Predictor, tmp_path: Path, case: str, error: type, words: str
) -> None:
    source, out, suffix = tmp_path / "in", tmp_path / "out", ".png"
    fill(source, ["a.png"])
    if case == "empty":
        (source / "a.png").unlink()
    elif case == "missing":
        source = tmp_path / "nothing"
    elif case == "same":
        out = source
    elif case == "overwrite":
        fill(tmp_path, ["in/sub/out/b.png", "in/sub/out/sub/out/b.png"])
        source, out = tmp_path / "in", tmp_path / "in/sub/out"
        source = [source / "sub/out/b.png"]  # type: ignore[assignment]
    elif case == "opaque":
        suffix = ".jpg"
    elif case == "picture":
        source = source / "a.png"
    elif case == "suffix":
        suffix = ".pgn"
    else:
        out.write_bytes(b"")
    with pytest.raises(error, match=words):
        predict_folder(quick, source, out, "cutout", suffix=suffix)
    if case == "opaque":
        assert not out.exists()


@pytest.mark.gpu
def test_the_gpu_predicts_as_the_cpu(coffee: Path, predictor: segzoo.Predictor) -> None:
    gpu = segzoo.Predictor("u2net_lite", device="cuda")(coffee)
    assert np.abs(gpu.probabilities - predictor(coffee).probabilities).max() < 5e-3
