"""SaliencyMetrics: PySODMetrics' digits, the other two protocols' own formulas, and all that may come in."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

import segzoo
from segzoo.metrics import SaliencyMetrics, _weighted_f
from segzoo.metrics._saliency_measures import Levels

pysod = pytest.importorskip("py_sod_metrics")
ndimage = pytest.importorskip("scipy.ndimage")

SCALARS = ("mae", "max_f", "mean_f", "adaptive_f", "weighted_f", "s_measure", "max_e", "mean_e", "adaptive_e")


class Reference:
    """PySODMetrics over a data set."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Fmeasure says that it will be replaced
            self.steps = [
                pysod.Fmeasure(beta=0.3),
                pysod.MAE(),
                pysod.Smeasure(),
                pysod.Emeasure(),
                pysod.WeightedFmeasure(beta=1),
            ]

    def add(self, prediction: np.ndarray, mask: np.ndarray, normalize: bool = True) -> None:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # means of empty quadrants
            for step in self.steps:
                step.step(prediction, mask, normalize)

    def results(self) -> dict[str, Any]:
        f, mae, s, e, weighted = (step.get_results() for step in self.steps)
        curve, e_curve = f["fm"]["curve"], e["em"]["curve"]
        return {
            "mae": mae["mae"],
            "max_f": curve.max(),
            "mean_f": curve.mean(),
            "adaptive_f": f["fm"]["adp"],
            "weighted_f": weighted["wfm"],
            "s_measure": s["sm"],
            "max_e": e_curve.max(),
            "mean_e": e_curve.mean(),
            "adaptive_e": e["em"]["adp"],
            "f_curve": curve,
            "e_curve": e_curve,
            "precision": f["pr"]["p"],
            "recall": f["pr"]["r"],
        }


def agree(result: dict[str, Any], reference: dict[str, Any], tolerance: float = 1e-9) -> None:
    for name, expected in reference.items():
        if np.isnan(expected).any():
            assert name == "s_measure"  # the reference's empty quadrants
            assert math.isfinite(result[name])
        else:
            assert np.abs(np.asarray(result[name]) - expected).max() <= tolerance, name


def blob(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A prediction (uint8) and a mask (0 or 255) that have something to do with each other."""
    ground = ndimage.gaussian_filter(rng.normal(size=(height, width)), min(height, width) / 8, mode="nearest")
    mask = np.where(ground > np.quantile(ground, rng.uniform(0.3, 0.9)), 255, 0).astype(np.uint8)
    soft = ndimage.gaussian_filter(mask.astype(float), min(height, width) / 40)
    soft += 60 * ndimage.gaussian_filter(rng.normal(size=(height, width)), 3) + rng.uniform(0, 20)
    return np.clip(soft, 0, 255).astype(np.uint8), mask


@pytest.mark.parametrize("opencv", [True, False])
def test_pysod_on_pictures_of_many_sizes(
    opencv: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not opencv:
        monkeypatch.setattr(_weighted_f, "_opencv", lambda: None)
    metrics, reference = SaliencyMetrics(), Reference()
    for height, width in ((33, 60), (100, 75), (240, 320), (61, 200), (300, 400)):
        prediction, mask = blob(rng, height, width)
        metrics.update(prediction, mask)
        reference.add(prediction, mask)
    result = metrics.compute()
    agree(result, reference.results(), 1e-12)
    assert result["pictures"] == 5 and result["normalize"] and "stretched" in result["prediction"]


LEVELS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "noise": lambda rng, shape: rng.integers(0, 256, shape),
    "few": lambda rng, shape: rng.choice(rng.integers(0, 256, rng.integers(1, 4)), shape),
    "two": lambda rng, shape: rng.choice([0, 255], shape),
    "constant": lambda rng, shape: np.full(shape, rng.integers(0, 256)),
    "black": lambda rng, shape: np.zeros(shape),
    "white": lambda rng, shape: np.full(shape, 255),
    "half": lambda rng, shape: np.broadcast_to(rng.choice(rng.integers(0, 256, 3), shape[1]), shape),
}
MASKS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "noise": lambda rng, shape: rng.random(shape) < rng.random(),
    "empty": lambda rng, shape: np.zeros(shape, bool),
    "full": lambda rng, shape: np.ones(shape, bool),
    "pixel": lambda rng, shape: np.arange(shape[0] * shape[1]).reshape(shape) == rng.integers(shape[0] * shape[1]),
    "row": lambda rng, shape: np.broadcast_to((np.arange(shape[0]) == rng.integers(shape[0]))[:, None], shape),
    "block": lambda rng, shape: np.pad(
        np.ones((-(-shape[0] // 2), -(-shape[1] // 2)), bool), ((0, shape[0] // 2), (shape[1] // 2, 0))
    ),
}


@given(
    st.sampled_from(sorted(LEVELS)),
    st.sampled_from(sorted(MASKS)),
    st.integers(1, 20),
    st.integers(2, 20),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
@example("constant", "block", 9, 9, False, 3)
@example("constant", "pixel", 7, 5, True, 0)
def test_pysod_where_things_are_degenerate(
    levels: str, masks: str, height: int, width: int, normalize: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(6):
        prediction = LEVELS[levels](rng, (height, width)).astype(np.uint8)
        mask = MASKS[masks](rng, (height, width))
        metrics, reference = SaliencyMetrics(normalize=normalize), Reference()
        metrics.update(prediction, mask)
        if normalize:
            reference.add(prediction, np.where(mask, 255, 0).astype(np.uint8))
        else:
            reference.add(prediction / 255, mask, False)
        agree(metrics.compute(), reference.results())


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-6)])
def test_pysod_on_floating_predictions(dtype: type, tolerance: float, rng: np.random.Generator) -> None:
    metrics, reference = SaliencyMetrics(normalize=False), Reference()
    for height, width in ((50, 61), (120, 90)):
        _, mask = blob(rng, height, width)
        prediction = np.clip(rng.beta(0.3, 0.3, mask.shape), 0, 1).astype(dtype)
        metrics.update(prediction, mask)
        reference.add(prediction, mask > 128, False)
        stretched = SaliencyMetrics()
        stretched.update(prediction * dtype(0.5) + dtype(0.25), mask)
        agree(stretched.compute(), {name: metrics.per_picture()[name][-1].item() for name in SCALARS}, 0.02)
    agree(metrics.compute(), reference.results(), tolerance)


def test_one_pixel_and_empty_quadrants_have_an_answer() -> None:
    metrics = SaliencyMetrics()
    metrics.update(np.array([[255]], np.uint8), np.array([[True]]))
    assert all(math.isfinite(metrics.compute()[name]) for name in SCALARS)
    assert metrics.compute()["max_e"] == pytest.approx(1)
    corner = np.zeros((6, 6), bool)
    corner[5, 5] = True
    metrics.reset()
    metrics.update(corner, corner)
    result = metrics.compute()
    assert result["s_measure"] == pytest.approx(1, abs=1e-6) and result["weighted_f"] == pytest.approx(1)


def test_nothing_seen_is_nan() -> None:
    result = SaliencyMetrics().compute()
    assert result["pictures"] == 0
    assert all(math.isnan(result[name]) for name in (*SCALARS, "max_f_threshold"))


def test_paper_takes_f_of_the_mean_curves(rng: np.random.Generator) -> None:
    metrics, pictures = SaliencyMetrics("paper"), [blob(rng, 40, 50) for _ in range(5)]
    precisions, recalls = [], []
    for prediction, mask in pictures:
        metrics.update(prediction, mask)
        stretched = (prediction.astype(float) - prediction.min()) / (int(prediction.max()) - int(prediction.min()))
        above = (stretched * 255).astype(int)[None] >= np.arange(255, -1, -1)[:, None, None]
        true = (above & (mask > 128)).sum((1, 2))
        precisions.append(true / np.maximum(above.sum((1, 2)), 1))
        recalls.append(true / (mask > 128).sum())
    p, r = np.mean(precisions, 0), np.mean(recalls, 0)
    f = 1.3 * p * r / np.maximum(0.3 * p + r, 1e-300)
    result = metrics.compute()
    assert np.abs(result["f_curve"].numpy() - f).max() < 1e-12
    assert result["max_f"] == pytest.approx(f.max(), abs=1e-12)
    assert result["max_f_threshold"] == pytest.approx((255 - f.argmax()) / 255)
    usual = SaliencyMetrics()
    usual.update(*(list(part) for part in zip(*pictures)))
    assert usual.compute()["max_f"] != result["max_f"]
    assert usual.compute()["s_measure"] == result["s_measure"]


def tutorial(pictures: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, float]:
    """max F1 and MAE, from torch.histc with 255 bins on 0…1, as that implementation's evaluation has it."""
    precision, recall, errors = torch.zeros(255), torch.zeros(255), []
    for prediction, mask in pictures:
        counts = [torch.histc(prediction[side], 255, 0.0, 1.0) for side in (mask > 0.5, mask <= 0.5)]
        true, false = (count.flip(0).cumsum(0) for count in counts)
        precision += true / (true + false + 1e-4) / len(pictures)
        recall += true / ((mask > 0.5).sum() + 1e-4) / len(pictures)
        errors.append((prediction - mask).abs().mean().item())
    return float((1.3 * precision * recall / (0.3 * precision + recall + 1e-8)).max()), float(np.mean(errors))


@pytest.mark.parametrize("form", ["float32", "uint8"])
def test_tutorial(form: str, rng: np.random.Generator) -> None:
    metrics, pictures = SaliencyMetrics("tutorial"), []
    for _ in range(4):
        prediction, mask = blob(rng, 41, 53)
        mask = ndimage.uniform_filter(mask, 3)  # grey at the rim, 128 among it
        if form == "uint8":
            metrics.update(prediction, mask)
            pictures.append((torch.from_numpy(prediction) / 255, torch.from_numpy(mask) / 255))
        else:
            soft = torch.from_numpy(rng.beta(0.4, 0.4, prediction.shape)).float()
            metrics.update(soft, torch.from_numpy(mask / 255))
            pictures.append((soft, torch.from_numpy(mask).float() / 255))
    max_f, mae = tutorial(pictures)
    result = metrics.compute()
    assert result["max_f"] == pytest.approx(max_f, abs=1e-6)
    assert result["mae"] == pytest.approx(mae, abs=1e-6)
    assert len(result["f_curve"]) == len(result["thresholds"]) == 255 and not result["normalize"]


def test_what_is_foreground() -> None:
    """128 of 255 is background in PySODMetrics' code and foreground in the tutorial's; 0/1 masks are masks too."""
    grey = np.array([[0, 127, 128, 129]], np.uint8)
    for protocol, expected in (("pysod", [0, 0, 0, 1]), ("paper", [0, 0, 0, 1]), ("tutorial", [0, 0, 1, 1])):
        for mask in (grey, grey.astype(np.int64), torch.from_numpy(grey)):
            ours, same = (
                SaliencyMetrics(protocol, measures="f_measure"),
                SaliencyMetrics(protocol, measures="f_measure"),
            )
            prediction = np.array([[10, 200, 30, 250]], np.uint8)
            ours.update(prediction, mask)
            same.update(prediction, np.array([expected], bool))
            assert torch.equal(ours.compute()["f_curve"], same.compute()["f_curve"])
    results = []
    for dtype in (bool, np.uint8, np.int64, np.float32, np.float64):
        metrics = SaliencyMetrics()
        metrics.update(np.array([[10, 200, 30, 250]], np.uint8), np.array([[0, 1, 0, 1]]).astype(dtype))
        results.append([metrics.compute()[name] for name in SCALARS])
    assert all(result == results[0] for result in results)


def test_batches_lists_and_single_pictures_are_bit_for_bit_the_same(rng: np.random.Generator) -> None:
    pictures = [blob(rng, 30, 41) for _ in range(4)]
    predictions, masks = (np.stack(part) for part in zip(*pictures))
    single, batch, channel, listed, pil = (SaliencyMetrics() for _ in range(5))
    for prediction, mask in pictures:
        single.update(prediction, mask)
        pil.update(Image.fromarray(prediction), Image.fromarray(mask))
    batch.update(torch.from_numpy(predictions), torch.from_numpy(masks))
    channel.update(torch.from_numpy(predictions)[:, None], masks[:, None])
    listed.update(list(predictions), list(masks))
    expected = single.compute()
    for other in (batch, channel, listed, pil):
        result = other.compute()
        assert all(np.array_equal(np.asarray(result[key]), np.asarray(expected[key])) for key in expected)
    # Views that do not lie one row after another give the same too.
    flipped = SaliencyMetrics()
    flipped.update(np.asfortranarray(predictions[0]), masks[0])
    alone = SaliencyMetrics()
    alone.update(predictions[0], masks[0])
    assert flipped.compute()["weighted_f"] == alone.compute()["weighted_f"]


def test_pictures_of_pil_are_read_by_their_colours() -> None:
    square = np.zeros((20, 30), np.uint8)
    square[5:15, 5:15] = 255
    grey = Image.fromarray(square)
    for picture in (grey, grey.convert("1"), grey.convert("P", palette=Image.Palette.ADAPTIVE, colors=2)):
        metrics = SaliencyMetrics()
        metrics.update(picture, picture)
        assert metrics.compute()["mae"] == 0 and metrics.compute()["pictures"] == 1
    with pytest.raises(ValueError, match=r"prediction is a picture of mode RGB, expected grey of 8 bits: .convert"):
        SaliencyMetrics().update(grey.convert("RGB"), grey.convert("RGB"))


def test_views_and_modes_that_torch_is_particular_about(rng: np.random.Generator) -> None:
    prediction, mask = blob(rng, 20, 30)
    expected = SaliencyMetrics()
    expected.update(prediction, mask)
    with torch.inference_mode():
        made_there = SaliencyMetrics()
    flipped = SaliencyMetrics()
    flipped.update(prediction[None][::-1], (mask > 128)[None][::-1])
    made_there.update(prediction, mask)
    with torch.device("meta"):
        elsewhere = SaliencyMetrics()
        elsewhere.update(prediction, mask)
    for metrics in (made_there, flipped, elsewhere):
        assert metrics.compute()["weighted_f"] == expected.compute()["weighted_f"]
        assert torch.equal(metrics.compute()["f_curve"], expected.compute()["f_curve"])


def test_the_adaptive_threshold_in_a_tie_is_rounded_as_the_reference_rounds_it() -> None:
    """Half 0, half c: twice the mean is c, or a little beside it."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        shape = (int(rng.integers(1, 12)), 2 * int(rng.integers(1, 12)))
        prediction = np.zeros(shape[0] * shape[1], np.uint8)
        prediction[rng.permutation(prediction.size)[: prediction.size // 2]] = rng.integers(1, 255)
        prediction, mask = prediction.reshape(shape), rng.random(shape) < 0.5
        metrics, reference = SaliencyMetrics(normalize=False), Reference()
        metrics.update(prediction, mask)
        reference.add(prediction / 255, mask, False)
        agree({**metrics.compute()}, {name: reference.results()[name] for name in ("adaptive_f", "adaptive_e")})


@pytest.mark.parametrize("opencv", [True, False])
def test_errors_far_away_weigh_two(opencv: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to where the weight is 2 to the last bit, and far beyond where a squared distance fits into 32 bits."""
    if not opencv:
        monkeypatch.setattr(_weighted_f, "_opencv", lambda: None)
    for width, tolerance in ((400, 1e-15), (60000, 1e-15)):
        prediction, mask = np.zeros((1, width)), np.zeros((1, width), bool)
        mask[0, 0] = prediction[0, 0] = True
        prediction[0, [100, 120, 170, 200, -1]] = 1e-9, 1e-9, 1e-9, 1e-9, 1.0
        metrics = SaliencyMetrics(normalize=False, measures="weighted_f")
        metrics.update(prediction, mask)
        false = sum(1e-9 * (2 - 0.5 ** (d / 5)) for d in (100, 120, 170, 200)) + 2 - 0.5 ** ((width - 1) / 5)
        assert metrics.compute()["weighted_f"] == pytest.approx(2 / (2 + false), abs=tolerance)


def test_half_precision_and_gradients_are_taken_as_they_are(rng: np.random.Generator) -> None:
    soft = torch.from_numpy(rng.random((1, 1, 20, 20))).bfloat16().requires_grad_()
    mask = torch.from_numpy(rng.random((1, 1, 20, 20)) > 0.5)
    ours, same = SaliencyMetrics(), SaliencyMetrics()
    ours.update(soft, mask)
    same.update(soft.detach().float(), mask)
    assert ours.compute()["mae"] == same.compute()["mae"]


@given(st.permutations(range(5)), st.integers(1, 4))
def test_merging_in_any_order_is_bit_for_bit_the_same(order: list[int], cut: int) -> None:
    rng = np.random.default_rng(7)
    pictures = [blob(rng, 20, 30) for _ in range(5)]
    whole, parts = SaliencyMetrics(measures=("mae", "f_measure")), []
    for prediction, mask in pictures:
        whole.update(prediction, mask)
    for numbers in (order[:cut], order[cut:]):
        parts.append(SaliencyMetrics(measures=("mae", "f_measure")))
        for i in numbers:
            parts[-1].update(*pictures[i])
    merged, expected = parts[0].merge(parts[1]).compute(), whole.compute()
    assert all(np.array_equal(np.asarray(merged[key]), np.asarray(expected[key])) for key in expected)
    assert parts[1].compute()["pictures"] == 5 - cut


def test_state_goes_into_a_checkpoint_and_comes_back(rng: np.random.Generator) -> None:
    metrics = SaliencyMetrics("paper")
    metrics.update(*blob(rng, 30, 30))
    file = io.BytesIO()
    torch.save(metrics.state_dict(), file)
    file.seek(0)
    back = SaliencyMetrics("paper")
    back.load_state_dict(torch.load(file, weights_only=True))
    for one in (metrics, back):
        one.update(*blob(np.random.default_rng(1), 20, 30))
    assert back.compute()["weighted_f"] == metrics.compute()["weighted_f"]
    assert torch.equal(back.compute()["f_curve"], metrics.compute()["f_curve"])
    with pytest.raises(ValueError, match="protocol 'paper', this SaliencyMetrics has 'pysod'"):
        SaliencyMetrics().load_state_dict(metrics.state_dict())


def test_no_picture_is_kept(rng: np.random.Generator) -> None:
    metrics = SaliencyMetrics()
    for _ in range(3):
        metrics.update(*blob(rng, 64, 64))
    state = metrics.state_dict()
    held = sum(part.numel() for kind in ("counts", "rows") for part in state[kind].values())
    assert held == 2 * 4 * 256 + 3 * 9


def test_only_the_measures_asked_for() -> None:
    metrics = SaliencyMetrics(measures=("s_measure", "mae"))
    metrics.update(np.eye(4, dtype=np.uint8) * 255, np.eye(4, dtype=bool))
    assert {"mae", "s_measure"} == set(metrics.compute()) & {*SCALARS, "f_curve", "e_curve", "thresholds"}
    assert set(metrics.per_picture()) == {"mae", "s_measure"}
    assert "mae" in metrics.table() and "max_f" not in metrics.table()


@pytest.mark.parametrize("shape", [(700, 500), (300, 4000), (64, 64)])
def test_opencv_changes_nothing(shape: tuple[int, int], rng: np.random.Generator) -> None:
    pytest.importorskip("cv2")
    mask = np.zeros(shape, bool)
    for _ in range(12):
        top, left = (int(rng.integers(0, length)) for length in shape)
        mask[top : top + int(rng.integers(1, 60)), left : left + int(rng.integers(1, 60))] = True
    exact = ndimage.distance_transform_edt(~mask)
    near = exact <= _weighted_f._FAR
    for opencv in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not opencv:
                patch.setattr(_weighted_f, "_opencv", lambda: None)
            squared = np.rint(_weighted_f._distance(mask).astype(np.float64) ** 2)
            assert np.array_equal(squared[near], np.rint(exact**2)[near])
    values = []
    for opencv in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not opencv:
                patch.setattr(_weighted_f, "_opencv", lambda: None)
            metrics = SaliencyMetrics(measures="weighted_f")
            metrics.update(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8), mask)
            values.append(metrics.compute()["weighted_f"])
    assert values[0] == pytest.approx(values[1], abs=1e-14)


def test_weighted_f_by_its_definition(rng: np.random.Generator) -> None:
    """Margolin et al., equations 7 to 12, with loops."""
    mask = rng.random((9, 11)) < 0.3
    prediction = rng.random((9, 11))
    levels = Levels(np.zeros((9, 11), np.uint8), np.zeros(256), np.zeros(256, np.int64), np.uint8(0), 1.0, prediction)
    offset = np.arange(-3, 4)
    gauss = np.exp(-(offset[:, None] ** 2 + offset**2) / 50)
    gauss /= gauss.sum()
    sites = sorted(np.argwhere(mask).tolist(), key=lambda site: (site[1], site[0]))
    error = np.abs(prediction - mask)
    spread, distance = error.copy(), np.zeros(mask.shape)
    for y, x in np.argwhere(~mask):
        nearest = min(sites, key=lambda site: (site[0] - y) ** 2 + (site[1] - x) ** 2)
        spread[y, x] = error[tuple(nearest)]
        distance[y, x] = math.hypot(nearest[0] - y, nearest[1] - x)
    padded = np.pad(spread, 3)
    blurred = np.array([[(padded[y : y + 7, x : x + 7] * gauss).sum() for x in range(11)] for y in range(9)])
    weighted = np.where(mask, np.minimum(error, blurred), error * (2 - 0.5 ** (distance / 5)))
    true, false = mask.sum() - weighted[mask].sum(), weighted[~mask].sum()
    recall, precision = 1 - weighted[mask].mean(), true / (true + false)
    assert _weighted_f.weighted_f(levels, mask) == pytest.approx(2 * recall * precision / (recall + precision))


SIZE = np.zeros((3, 4), np.uint8)


@pytest.mark.parametrize(
    ("prediction", "mask", "kind", "message"),
    [
        (SIZE, SIZE.T, ValueError, r"prediction is \[3, 4\] and its mask \[4, 3\]: resize the prediction to the mask"),
        (np.full((2, 2), np.nan), SIZE[:2, :2], ValueError, r"prediction\[0, 0\] is nan, expected 0 … 1"),
        (
            np.array([[0.5, 40.0]]),
            SIZE[:1, :2],
            ValueError,
            r"prediction\[0, 1\] is 40.0, expected 0 … 1: divide by 255",
        ),
        (np.array([[-3.0, 2.0]]), SIZE[:1, :2], ValueError, "these look like logits, take their sigmoid"),
        (SIZE.astype(np.int64), SIZE, TypeError, "prediction is int64, expected uint8"),
        (SIZE, SIZE - 2.0, ValueError, r"mask\[0, 0\] is -2.0, expected 0 … 1"),
        (SIZE, SIZE.astype(np.int32) + 300, ValueError, r"mask\[0, 0\] is 300, expected 0 … 255"),
        (SIZE[None, None, None], SIZE, ValueError, r"prediction is \[1, 1, 1, 3, 4\], expected \[H, W\]"),
        (np.stack([SIZE, SIZE]), SIZE, ValueError, "there are 2 predictions and 1 masks"),
        ("photo.png", SIZE, TypeError, "prediction is str"),
        (SIZE[:0], SIZE[:0], ValueError, r"prediction is \[0, 4\], which has no pixel"),
        ([SIZE, np.stack([SIZE, SIZE])], [SIZE, SIZE], ValueError, "a list holds single pictures"),
        (np.stack([SIZE / 1.0, SIZE + 2.0]), np.stack([SIZE] * 2), ValueError, r"prediction\[1\]\[0, 0\] is 2"),
    ],
)
def test_errors_say_where_and_nothing_is_taken_in(
    prediction: Any, mask: Any, kind: type[Exception], message: str
) -> None:
    metrics = SaliencyMetrics()
    with pytest.raises(kind, match=message):
        metrics.update(prediction, mask)
    assert metrics.compute()["pictures"] == 0


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="unknown protocol 'pysodd': did you mean 'pysod'"):
        SaliencyMetrics("pysodd")
    with pytest.raises(ValueError, match="unknown measure 'weighted_F': did you mean 'weighted_f'"):
        SaliencyMetrics(measures=("weighted_F",))
    with pytest.raises(ValueError, match="measures is empty"):
        SaliencyMetrics(measures=())


def on_ecssd(data: Path, numbers: range) -> None:
    """The bundled model's predictions against PySODMetrics."""
    predictor, metrics, reference = segzoo.Predictor("u2net_lite.duts"), SaliencyMetrics(), Reference()
    for number in numbers:
        mask = np.asarray(Image.open(data / "ecssd" / "masks" / f"{number:04d}.png").convert("L"))
        prediction = predictor(data / "ecssd" / "images" / f"{number:04d}.jpg").evaluation_map()
        one = Reference()
        for each in (reference, one):
            each.add(prediction, mask)
        metrics.update(prediction, mask)
        expected = one.results()
        own = metrics.per_picture()
        assert all(abs(own[name][-1].item() - expected[name]) <= 1e-9 for name in SCALARS), number
    agree(metrics.compute(), reference.results())


@pytest.mark.data
def test_pysod_on_some_of_ecssd(data: Path) -> None:
    on_ecssd(data, range(3, 1001, 300))


@pytest.mark.data
@pytest.mark.slow
def test_pysod_on_two_hundred_of_ecssd(data: Path) -> None:
    on_ecssd(data, range(1, 1001, 5))


@pytest.mark.gpu
def test_the_same_on_a_gpu(rng: np.random.Generator) -> None:
    prediction, mask = (torch.from_numpy(part) for part in blob(rng, 60, 80))
    cpu, gpu = SaliencyMetrics(), SaliencyMetrics()
    cpu.update(prediction, mask)
    gpu.update(prediction.cuda(), mask.cuda())
    assert all(cpu.compute()[name] == gpu.compute()[name] for name in SCALARS)
