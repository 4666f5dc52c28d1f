"""CutMix and CopyBlob: against references in NumPy, and what must hold whatever is drawn."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from segzoo.transforms import CopyBlob, CutMix
from segzoo.transforms.mix import _PAIRS, _random

pytestmark = pytest.mark.usefixtures("one_thread")

ndimage = pytest.importorskip("scipy.ndimage")
stats = pytest.importorskip("scipy.stats")

IGNORE = 255
PAIRS = [(3, 1), (2, 0), (3, 0)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int, height: int, width: int, seed: int, smooth: float = 1.0) -> tuple[Tensor, Tensor]:
    """Blobs of five classes, one of them ignored; a pixel's colour says whose it is, where it was, and its label."""
    random = np.random.default_rng(seed)
    scores = ndimage.gaussian_filter(random.standard_normal((5, count, height, width)), (0, 0, smooth, smooth))
    labels = np.array([0, 1, 2, 3, IGNORE], np.uint8)[scores.argmax(0)]
    place = np.indices((count, height, width))
    return torch.from_numpy(np.concatenate((place, labels[None])).swapaxes(0, 1).astype(np.int32)), torch.from_numpy(
        labels
    )


MIXES: dict[str, Callable[[torch.Generator | None], CutMix | CopyBlob]] = {
    "cutmix": lambda generator: CutMix(generator=generator),
    "cutmix per batch": lambda generator: CutMix(per="batch", generator=generator),
    "copyblob": lambda generator: CopyBlob(PAIRS, min_area=3, generator=generator),
    "copyblob whole class": lambda generator: CopyBlob(PAIRS, whole_class=True, min_area=3, generator=generator),
}
SIZES = {"count": st.integers(1, 5), "height": st.integers(1, 12), "width": st.integers(1, 12)}


@pytest.mark.parametrize("name", MIXES)
@given(**SIZES, seed=st.integers(0, 999))
def test_pixels_and_labels_move_together(name: str, count: int, height: int, width: int, seed: int) -> None:
    images, labels = batch(count, height, width, seed)
    kept = images.clone(), labels.clone()
    mixed, mixed_labels = MIXES[name](seeded(seed))(images, labels)
    assert torch.equal(images, kept[0]) and torch.equal(labels, kept[1])
    assert mixed.shape == images.shape and mixed.dtype == images.dtype and mixed.data_ptr() != images.data_ptr()
    assert mixed_labels.shape == labels.shape and mixed_labels.dtype == labels.dtype
    assert torch.equal(mixed[:, 3], mixed_labels.int())  # the label painted into the picture
    whose, row, column = mixed[:, :3].long().unbind(1)
    assert torch.equal(labels[whose, row, column], mixed_labels)  # whole pixels, none made up
    for i in range(count):
        assert len(set(whose[i].unique().tolist()) - {i}) <= (len(PAIRS) if "blob" in name else 1)
    if count == 1:
        assert torch.equal(mixed, images)


@pytest.mark.parametrize("name", MIXES)
def test_seeds_reproduce_and_the_global_generator_is_left_alone(name: str) -> None:
    images, labels = batch(6, 40, 50, 0, 3)
    state = torch.get_rng_state()
    mix, other = MIXES[name](seeded(1)), MIXES[name](seeded(2))
    first, second = mix(images, labels), mix(images, labels)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first[0], second[0]) and not torch.equal(first[0], other(images, labels)[0])
    again = MIXES[name](seeded(1))
    for expected in (first, second):
        assert all(torch.equal(a, b) for a, b in zip(again(images, labels), expected))
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(MIXES[name](None)(images, labels)[0])
    torch.set_rng_state(state)
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", MIXES)
def test_types_of_every_kind(name: str) -> None:
    images, labels = batch(4, 20, 30, 0, 2)
    expected, expected_labels = MIXES[name](seeded(0))(images, labels)
    for image_type in (torch.uint8, torch.uint16, torch.float16, torch.float64):
        for label_type in (torch.uint8, torch.int16, torch.uint16, torch.int64):
            mixed, mixed_labels = MIXES[name](seeded(0))(images.to(image_type), labels.to(label_type))
            assert torch.equal(mixed, expected.to(image_type))
            assert torch.equal(mixed_labels, expected_labels.to(label_type))
    wrapped = tv_tensors.Image(images), tv_tensors.Mask(labels)
    mixed, mixed_labels = v2.Compose([MIXES[name](seeded(0))])(*wrapped)
    assert isinstance(mixed, tv_tensors.Image) and isinstance(mixed_labels, tv_tensors.Mask)
    assert torch.equal(mixed, expected) and torch.equal(mixed_labels, expected_labels)
    assert torch.equal(wrapped[0], images) and torch.equal(wrapped[1], labels)
    mixed, mixed_labels = MIXES[name](seeded(0))(images.mT.contiguous().mT, labels[:, None])
    assert torch.equal(mixed, expected) and torch.equal(mixed_labels, expected_labels[:, None])


@pytest.mark.parametrize("name", MIXES)
def test_p_is_the_share_that_is_changed(name: str) -> None:
    images, labels = batch(8, 24, 24, 0, 2)
    mix = MIXES[name](seeded(0))
    assert (mix(images, labels)[0] != images).flatten(1).any(1).sum() >= 6  # a box may be empty, a ground may be gone
    mix.p = 0.0
    assert all(torch.equal(a, b) for a, b in zip(mix(images, labels), (images, labels)))
    mix.p = 0.3
    changed = torch.stack([(mix(images, labels)[0] != images).flatten(1).any(1) for _ in range(100)])
    if name == "cutmix per batch":  # all or nothing, but for boxes that fall between the centres of pixels
        assert set(changed.sum(1).tolist()) == {0, 8}
        changed = changed.any(1)
    assert (
        0.3 - 4 * math.sqrt(0.21 / changed.numel())
        < changed.double().mean()
        < 0.3 + 4 * math.sqrt(0.21 / changed.numel())
    )


def boxes_of(mixed: Tensor) -> list[tuple[int, int, int, int] | None]:
    """The box in every picture in which not every pixel is its own; everything in it must be someone else's."""
    found = []
    for i, whose in enumerate(mixed[:, 0]):
        rows, columns = (whose != i).nonzero(as_tuple=True)
        if len(rows) == 0:
            found.append(None)
            continue
        box = int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1
        inside = whose[box[0] : box[1], box[2] : box[3]]
        assert len(inside.unique()) == 1 and len(rows) == inside.numel()
        found.append(box)
    return found


def reference_box(side: float, centre: float, size: int) -> list[int]:
    return [i for i in range(size) if abs(i + 0.5 - centre * size) <= side * size / 2]


@pytest.mark.parametrize("per", ["sample", "batch"])
@given(**SIZES, alpha=st.sampled_from([0.2, 1.0, 4.0]), seed=st.integers(0, 999))
def test_cutmix_takes_the_pixels_whose_centres_are_in_the_box(
    per: str, count: int, height: int, width: int, alpha: float, seed: int
) -> None:
    images, labels = batch(count, height, width, seed)
    mixed, _ = CutMix(0.7, alpha, per=per, generator=seeded(seed))(images, labels)
    random = _random(seeded(seed))
    random.permutation(count)
    boxes = 1 if per == "batch" else count
    chosen, lam, centres = random.random(boxes), random.beta(alpha, alpha, boxes), random.random((boxes, 2))
    for i, found in enumerate(boxes_of(mixed)):
        box = 0 if per == "batch" else i
        rows = reference_box(math.sqrt(1 - lam[box]), centres[box, 0], height)
        columns = reference_box(math.sqrt(1 - lam[box]), centres[box, 1], width)
        if count == 1 or chosen[box] >= 0.7 or not (rows and columns):
            assert found is None
        else:
            assert found == (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 3.0])
def test_cutmix_boxes_follow_lambda(alpha: float) -> None:
    """Clipped areas have the distribution of an independent simulation, unclipped sides that of √(1 - λ)."""
    height, width, count = 10**6, 3 * 10**6, 4000
    boxes = CutMix(alpha=alpha)._boxes(np.random.default_rng(0), count, height, width).astype(float)
    rows, columns = boxes[:, :2] / height, boxes[:, 2:] / width
    area = np.diff(rows)[:, 0] * np.diff(columns)[:, 0]
    random = np.random.default_rng(1)
    side = np.sqrt(1 - stats.beta(alpha, alpha).rvs(count, random_state=random))
    edges = random.random((count, 2, 1)) + 0.5 * side[:, None, None] * [-1, 1]
    assert stats.ks_2samp(area, np.diff(edges.clip(0, 1))[..., 0].prod(1)).pvalue > 0.01
    # λ itself, where nothing was clipped: P(a box of side s is not) = (1 - s)², so that its density is weighed by it.
    free = (rows[:, 0] > 0) & (rows[:, 1] < 1) & (columns[:, 0] > 0) & (columns[:, 1] < 1)
    lam = stats.beta(alpha, alpha).ppf(np.linspace(0, 1, 20001))
    weight = (1 - np.sqrt(1 - (lam[1:] + lam[:-1]) / 2)) ** 2
    cdf = np.concatenate(([0.0], weight.cumsum() / weight.sum()))
    assert stats.kstest(1 - area[free], lambda x: np.interp(x, lam, cdf)).pvalue > 0.01
    # The mean area: a side s keeps s - s²/4 on average.
    expected = stats.beta(alpha, alpha).expect(lambda x: (math.sqrt(1 - x) - (1 - x) / 4) ** 2)
    assert abs(area.mean() - expected) < 4 * area.std() / math.sqrt(count)
    # Small boxes do not vanish: on one pixel a box is there as often as its area says.
    single = CutMix(alpha=alpha)._boxes(np.random.default_rng(2), 20000, 1, 1)
    kept = np.diff(single.reshape(-1, 2, 2))[..., 0].prod(1).mean()
    assert abs(kept - 0.5) < 0.02


def test_cutmix_partners_are_others_and_each_gives_once() -> None:
    images, labels = batch(5, 30, 30, 0)
    mix = CutMix(alpha=1e-3, per="batch", generator=seeded(0))
    pairs = np.zeros((5, 5), int)
    for _ in range(600):
        mixed = mix(images, labels)[0]
        if len(
            givers := [int(whose[whose != i].unique()) for i, whose in enumerate(mixed[:, 0]) if (whose != i).any()]
        ):
            assert sorted(givers) == list(range(5))
            pairs[np.arange(5), givers] += 1
    assert (np.diag(pairs) == 0).all()
    others = pairs[~np.eye(5, dtype=bool)]
    assert stats.chisquare(others).pvalue > 0.001


def test_cutmix_of_soft_masks() -> None:
    images, labels = batch(4, 20, 20, 0)
    soft = torch.rand(4, 1, 20, 20)
    mixed, mixed_soft = CutMix(generator=seeded(0))(images, soft)
    whose, row, column = mixed[:, :3].long().unbind(1)
    assert torch.equal(mixed_soft[:, 0], soft[whose, 0, row, column])
    with pytest.raises(ValueError, match=r"labels are torch.float32 .* expected class indices"):
        CopyBlob()(images, soft)


def reference_copy(
    images: np.ndarray, labels: np.ndarray, pairs: list[tuple[int, int]], draws: np.ndarray, p: float, least: int,
    whole: bool,
) -> tuple[np.ndarray, np.ndarray, list[dict[str, object]]]:  # fmt: skip
    """Pixel by pixel; also what was pasted: by whom, which class, on which ground pixel, where from and where to."""
    out, out_labels, log = images.copy(), labels.copy(), []
    height, width = labels.shape[1:]
    for i in range(len(images)):
        if draws[i, 0] >= p:
            continue
        for k, (label, ground) in enumerate(pairs):
            whose, which, where = draws[i, 1 + 3 * k : 4 + 3 * k]
            givers = {}
            for j in range(len(images)):
                numbers = labels[j] == label
                if not whole:
                    numbers, _ = ndimage.label(numbers, np.ones((3, 3)))
                blobs = [numbers == n for n in range(1, numbers.max() + 1)]
                if j != i and (blobs := [blob for blob in blobs if blob.sum() >= least]):
                    givers[j] = blobs
            places = [(y, x) for y in range(height) for x in range(width) if out_labels[i, y, x] == ground]
            if not givers or not places:
                continue
            giver = list(givers)[int(whose * len(givers))]
            blob = givers[giver][int(which * len(givers[giver]))]
            pixels = [(y, x) for y in range(height) for x in range(width) if blob[y, x]]
            place = places[int(where * len(places))]
            if whole:
                foot = min(pixels, key=lambda pixel: (sum(pixel), pixel))
            else:
                lowest = [pixel for pixel in pixels if pixel[0] == max(y for y, _ in pixels)]
                foot = lowest[len(lowest) // 2]
            for y, x in pixels:
                to = y + place[0] - foot[0], x + place[1] - foot[1]
                if 0 <= to[0] < height and 0 <= to[1] < width:
                    out[i, :, to[0], to[1]] = images[giver, :, y, x]
                    out_labels[i, to[0], to[1]] = label
            log.append({"i": i, "giver": giver, "label": label, "place": place, "foot": foot, "blob": blob})
    return out, out_labels, log


@pytest.mark.parametrize("whole", [False, True])
@given(
    **SIZES,
    p=st.sampled_from([0.5, 1.0]),
    least=st.sampled_from([1, 4, 20]),
    smooth=st.sampled_from([0.0, 1.0, 2.5]),
    seed=st.integers(0, 9999),
)
def test_copyblob_is_the_reference(
    whole: bool, count: int, height: int, width: int, p: float, least: int, smooth: float, seed: int
) -> None:
    images, labels = batch(count, height, width, seed, smooth)
    mix = CopyBlob(PAIRS, p, whole_class=whole, min_area=least, generator=seeded(seed))
    draws = _random(seeded(seed)).random((count, 1 + 3 * len(PAIRS)))
    expected = reference_copy(images.numpy(), labels.numpy(), PAIRS, draws, p, least, whole)
    for ours, theirs in zip(mix(images, labels), expected):
        np.testing.assert_array_equal(ours.numpy(), theirs)


@given(seed=st.integers(0, 9999), smooth=st.sampled_from([0.8, 2.0, 5.0]))
def test_copyblob_pastes_one_object_that_stands_on_its_ground(seed: int, smooth: float) -> None:
    """By the colours alone, without the reference: one pair, so that nothing is pasted over."""
    images, labels = batch(4, 30, 40, seed, smooth)
    mixed, mixed_labels = CopyBlob([(3, 1)], min_area=5, generator=seeded(seed))(images, labels)
    for i in range(4):
        own = (mixed[i] == images[i]).all(0)
        assert torch.equal(mixed_labels[i][own], labels[i][own])
        if own.all():
            continue
        y, x = (~own).nonzero(as_tuple=True)
        whose, row, column, label = mixed[i][:, y, x].long().numpy()
        assert len(set(whose)) == 1 and whose[0] != i and (label == 3).all()
        ((down, right),) = {*zip(y.numpy() - row, x.numpy() - column)}  # moved as a whole
        numbers, _ = ndimage.label(labels[whose[0]] == 3, np.ones((3, 3)))
        (number,) = set(numbers[row, column])
        blob = numbers == number
        assert blob.sum() >= 5
        to = np.argwhere(blob) + np.array([down, right])
        inside = ((to >= 0) & (to < (30, 40))).all(1)
        assert inside.sum() == len(y)  # all of it that is in the picture
        lowest = to[to[:, 0] == to[:, 0].max()]
        ground = lowest[len(lowest) // 2]
        assert inside[(to == ground).all(1)].all() and labels[i][tuple(ground)] == 1


def test_copyblob_leaves_pictures_without_an_object_or_ground() -> None:
    images = torch.rand(3, 3, 8, 8)
    labels = torch.zeros(3, 8, 8, dtype=torch.long)
    mix = CopyBlob([(7, 5)], min_area=4)
    for objects, grounds, changed in (
        ((), (0,), 0),
        ((0,), (), 0),
        ((0,), (0,), 0),
        ((0,), (1, 2), 2),
        ((0, 1), (1,), 1),
    ):
        now = labels.clone()
        now[list(objects), 2:4, 2:4] = 7
        now[list(grounds), 6] = 5
        mixed, mixed_labels = mix(images, now)
        assert (mixed != images).flatten(1).any(1).sum() == changed
        assert (mixed_labels != now).flatten(1).any(1).sum() == changed
        mixed, _ = CopyBlob([(7, 5)], min_area=5)(images, now)
        assert torch.equal(mixed, images)


def test_copyblob_clips_and_never_wraps() -> None:
    """A cross of 5 × 5 on a ground of one pixel in a corner: one quarter is left, or the half above the edge."""
    cross = torch.zeros(9, 9, dtype=torch.bool)
    cross[2:7, 4] = cross[4, 2:7] = True
    for place, whole, expected in (
        ((0, 0), False, {(0, 0)}),
        ((0, 8), False, {(0, 8)}),
        ((8, 0), False, {(8, 0), (7, 0), (6, 0), (6, 1), (6, 2), (5, 0), (4, 0)}),
        ((8, 8), True, {(8, 8)}),
        ((7, 8), True, {(7, 8), (8, 8)} - {(8, 8)}),
    ):
        labels = torch.zeros(2, 9, 9, dtype=torch.long)
        labels[0][cross] = 2
        labels[1][place] = 1
        _, mixed = CopyBlob([(2, 1)], whole_class=whole, min_area=1)(torch.rand(2, 3, 9, 9), labels)
        assert torch.equal(mixed[0], labels[0])
        found = {tuple(pixel) for pixel in (mixed[1] == 2).nonzero().tolist()}
        if whole:  # of the pixels with row + column = 6, the cross's least, the upper one lands on the place
            foot = (2, 4)
            expected = {(y - foot[0] + place[0], x - foot[1] + place[1]) for y, x in cross.nonzero().tolist()}
            expected = {pixel for pixel in expected if 0 <= pixel[0] < 9 and 0 <= pixel[1] < 9}
        assert found == expected, (place, whole)


def test_copyblob_chooses_evenly() -> None:
    """Every partner, every object, every pixel of the ground."""
    labels = torch.zeros(62, 9, 9, dtype=torch.long)
    labels[0, 0, ::2] = 2
    labels[1, 0, [0, 4]] = 2
    labels[2:, 8, :6] = 1
    images, _ = batch(62, 9, 9, 0)
    mix = CopyBlob([(2, 1)], min_area=1, generator=seeded(0))
    seen = []
    for _ in range(20):
        mixed, mixed_labels = mix(images, labels)
        i, row, column = (mixed_labels[2:] == 2).nonzero(as_tuple=True)
        assert torch.equal(i, torch.arange(60)) and (row == 8).all()
        seen.append(torch.stack((mixed[2:][i, 0, row, column], mixed[2:][i, 2, row, column], column), 1))
    giver, source, place = torch.cat(seen).numpy().T
    for draws, choices in (
        (giver, [0, 1]),
        (source[giver == 0], [0, 2, 4, 6, 8]),
        (source[giver == 1], [0, 4]),
        (place, range(6)),
    ):
        counts = [(draws == choice).sum() for choice in choices]
        assert sum(counts) == len(draws) and stats.chisquare(counts).pvalue > 0.001


def test_later_pairs_look_for_ground_that_is_left() -> None:
    labels = torch.zeros(2, 4, 4, dtype=torch.long)
    labels[0, :2] = 2
    labels[0, 2:] = 3
    labels[1] = 1
    labels[1, :3] = 0
    images, _ = batch(2, 4, 4, 0)
    for seed in range(10):
        _, mixed = CopyBlob([(2, 1), (3, 1)], min_area=1, generator=seeded(seed))(images, labels)
        left = ((mixed[1] == 1) | (mixed[1] == 3)).any()
        assert (mixed[1] == 3).any() == left


def test_presets_are_classes_of_their_data_sets() -> None:
    assert CopyBlob().pairs == CopyBlob("cityscapes").pairs == ((3, 1), (4, 1), (15, 0), (16, 0))
    assert set(sum(_PAIRS["camvid"], ())) <= set(range(11))
    assert CopyBlob("camvid").pairs == ((7, 4), (9, 4), (10, 3))
    assert CopyBlob(np.array([[1, 2]])).pairs == ((1, 2),)


def test_in_a_collate_function_workers_differ() -> None:
    images, labels = batch(8, 16, 16, 0, 2)
    examples = [(images[i % 4], labels[i % 4]) for i in range(8)]

    loader = torch.utils.data.DataLoader(
        examples, batch_size=4, num_workers=2, collate_fn=Collate(CutMix()), generator=seeded(0)
    )
    first, second = (mixed for mixed, _ in loader)
    assert not torch.equal(first, second)
    again = [mixed for mixed, _ in torch.utils.data.DataLoader(
        examples, batch_size=4, num_workers=2, collate_fn=Collate(CutMix()), generator=seeded(0)
    )]  # fmt: skip
    assert torch.equal(first, again[0]) and torch.equal(second, again[1])


class Collate:
    def __init__(self, mix: CutMix) -> None:
        self.mix = mix

    def __call__(self, examples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return self.mix(*torch.utils.data.default_collate(examples))


def test_pickles_and_prints() -> None:
    images, labels = batch(4, 16, 16, 0, 2)
    for mix, text in (
        (CutMix(0.5), "CutMix(p=0.5, alpha=1.0, per='sample')"),
        (CopyBlob([(3, 1)], 0.5), "CopyBlob([(3, 1)], p=0.5, whole_class=False, min_area=64)"),
    ):
        assert repr(mix) == text
        assert repr(pickle.loads(pickle.dumps(mix))) == text


@pytest.mark.data
def test_copyblob_on_camvid(data: object) -> None:
    """On real labels: rare classes become more frequent, and nothing else than pasted pixels changes."""
    image = pytest.importorskip("PIL.Image")
    names = sorted((data / "camvid/train/labels").glob("*.png"))[::46]  # type: ignore[operator]
    labels = torch.from_numpy(np.stack([np.asarray(image.open(name)) for name in names]))
    images = torch.arange(labels.numel()).view(len(labels), 1, *labels.shape[1:])
    mixed, mixed_labels = CopyBlob("camvid", generator=seeded(0))(images, labels)
    assert torch.equal(labels.view(-1)[mixed[:, 0]], mixed_labels)
    changed = (mixed != images)[:, 0]
    assert set(mixed_labels[changed].unique().tolist()) == {7, 9, 10}
    for label in (7, 9, 10):
        assert (mixed_labels == label).flatten(1).any(1).sum() > (labels == label).flatten(1).any(1).sum()


@pytest.mark.gpu
@pytest.mark.parametrize("name", MIXES)
def test_gpu_makes_the_same(name: str) -> None:
    images, labels = batch(6, 100, 140, 0, 5)
    expected = MIXES[name](seeded(0))(images, labels)
    found = MIXES[name](seeded(0))(images.cuda(), labels.cuda())
    assert all(part.is_cuda and torch.equal(part.cpu(), other) for part, other in zip(found, expected))
    there = [MIXES[name](torch.Generator("cuda").manual_seed(seed))(images.cuda(), labels.cuda()) for seed in (1, 1, 2)]
    assert torch.equal(there[0][0], there[1][0]) and not torch.equal(there[0][0], there[2][0])


def test_errors_name_what_was_given() -> None:
    for make in (CutMix, CopyBlob):
        for p in (-0.1, 1.1, math.nan, "x", None):
            with pytest.raises(ValueError, match=f"p is {p!r}, expected a number from 0 to 1"):
                make(p=p)  # type: ignore[arg-type]
    for alpha in (0, -1.0, math.inf, math.nan, "1", None):
        with pytest.raises(ValueError, match=f"alpha is {alpha!r}, expected a positive number"):
            CutMix(alpha=alpha)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown per 'samples': did you mean 'sample'"):
        CutMix(per="samples")
    with pytest.raises(ValueError, match="unknown pairs 'cityscape': did you mean 'cityscapes'"):
        CopyBlob("cityscape")
    for pairs in ([], [(1,)], [(1, 1)], [(-1, 0)], 7, [(0.5, 1)], [(1, 2, 3)]):
        with pytest.raises(ValueError, match=r"expected 'cityscapes' or 'camvid' or pairs \(class, another class"):
            CopyBlob(pairs)  # type: ignore[arg-type]
    for area in (0, 2.5, "9"):
        with pytest.raises(ValueError, match=f"min_area is {area!r}, expected a whole number from 1 up"):
            CopyBlob(min_area=area)  # type: ignore[arg-type]
    images, labels = torch.rand(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.long)
    for mix in (CutMix(), CopyBlob()):
        with pytest.raises(ValueError, match=r"images are \[3, 4, 5\], expected \[N, C, H, W\], a batch"):
            mix(images[0], labels)
        with pytest.raises(ValueError, match=r"labels are \[4, 5\], expected \[N, H, W\] or \[N, 1, H, W\], a batch"):
            mix(images, labels[0])
        with pytest.raises(TypeError, match="labels are a ndarray, expected a tensor"):
            mix(images, labels.numpy())  # type: ignore[arg-type]
        for wrong in (labels[:1], labels[:, 1:], labels.mT):
            with pytest.raises(ValueError, match=r"which are not as many or not as large as the images \[2, 3, 4, 5\]"):
                mix(images, wrong)
    for wrong in (labels.bool(), labels.float(), labels[:, None].expand(2, 2, 4, 5)):
        with pytest.raises(ValueError, match=r"expected class indices \[N, H, W\] or \[N, 1, H, W\]"):
            CopyBlob()(images, wrong)
