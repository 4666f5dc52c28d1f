"""The published data sets: their layouts made in a folder, their tables against torchvision's, and real files."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from segzoo import get_weights
from segzoo._decoding import PictureError
from segzoo.datasets import DUTS, ECSSD, SBD, VOC, CamVid, Cityscapes, MiniCity, SegmentationDataset
from segzoo.inference.colours import colour_map
from segzoo.losses import CrossEntropyLoss
from segzoo.metrics import SegmentationMetrics

SIZE = (9, 12)


def save(path: Path, pixels: np.ndarray, palette: np.ndarray | None = None) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette.ravel().tolist())
    image.save(path)
    return pixels


def picture(rng: np.random.Generator, path: Path) -> None:
    save(path, rng.integers(0, 256, (*SIZE, 3), np.uint8))


def labels(rng: np.random.Generator, path: Path, values: list[int], palette: np.ndarray | None = None) -> np.ndarray:
    return save(path, rng.choice(np.array(values, np.uint8), SIZE), palette)


def equal(mask: tv_tensors.Mask, expected: np.ndarray) -> bool:
    return mask.dtype == torch.uint8 and np.array_equal(mask.numpy(), expected)


# ---------------------------------------------------------------------------------------------------------- salient


@pytest.fixture
def duts(tmp_path: Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Six pictures of DUTS, with grey rims in the masks, one of them written in RGB."""
    masks = {}
    for part in ("DUTS-TR", "DUTS-TE"):
        for i in (2, 10, 1):
            name = f"ILSVRC2012_test_{i}"
            picture(rng, tmp_path / part / f"{part}-Image" / f"{name}.jpg")
            grey = rng.choice(np.array([0, 3, 127, 128, 250, 255], np.uint8), SIZE)
            masks[f"{part}/{name}"] = grey
            rgb = np.repeat(grey[..., None], 3, 2)
            save(tmp_path / part / f"{part}-Mask" / f"{name}.png", rgb if i == 2 else grey)
    return masks


@pytest.mark.parametrize(("split", "part"), [("train", "DUTS-TR"), ("test", "DUTS-TE")])
def test_duts(tmp_path: Path, duts: dict[str, np.ndarray], split: str, part: str) -> None:
    dataset = DUTS(tmp_path, split)
    assert dataset.names == [f"ILSVRC2012_test_{i}" for i in (1, 2, 10)]  # as people count
    assert (dataset.num_classes, dataset.ignore_index) == (1, None)
    soft, inside = DUTS(tmp_path, split, soft=True), DUTS(tmp_path / part, split)
    assert inside.samples == dataset.samples
    for i, name in enumerate(dataset.names):
        grey = duts[f"{part}/{name}"]
        image, mask = dataset[i]
        assert image.shape == (3, *SIZE) and equal(mask, grey > 127)
        assert soft[i][1].dtype == torch.float32
        np.testing.assert_array_equal(soft[i][1].numpy(), grey.astype(np.float32) / 255)


def test_masks_of_0_and_1_are_what_they_say(tmp_path: Path, rng: np.random.Generator) -> None:
    picture(rng, tmp_path / "images/a.jpg")
    ones = labels(rng, tmp_path / "masks/a.png", [0, 1])
    assert equal(ECSSD(tmp_path)[0][1], ones)
    np.testing.assert_array_equal(ECSSD(tmp_path, soft=True)[0][1].numpy(), ones.astype(np.float32))


def test_hard_and_soft_masks_in_one_cache(tmp_path: Path, duts: dict[str, np.ndarray]) -> None:
    for _ in range(2):
        for soft, dtype in ((False, torch.uint8), (True, torch.float32)):
            dataset, cached = (DUTS(tmp_path, soft=soft, cache=cache) for cache in (None, tmp_path / "cache"))
            for ours, expected in zip(cached, dataset):
                assert ours[1].dtype == dtype and all(torch.equal(*both) for both in zip(ours, expected))


@pytest.mark.parametrize("folder", ["ground_truth_mask", "masks"])
def test_ecssd_in_both_layouts(tmp_path: Path, rng: np.random.Generator, folder: str) -> None:
    picture(rng, tmp_path / "images/0001.jpg")
    mask = labels(rng, tmp_path / folder / "0001.png", [0, 255])
    (found,) = [mask for _, mask in ECSSD(tmp_path)]
    assert equal(found, mask // 255)


def test_a_picture_or_mask_without_its_partner(tmp_path: Path, rng: np.random.Generator) -> None:
    for name in ("a", "b"):
        picture(rng, tmp_path / f"images/{name}.jpg")
        labels(rng, tmp_path / f"masks/{name}.png", [0, 255])
    (tmp_path / "masks/b.png").rename(tmp_path / "masks/c.png")
    with pytest.raises(ValueError, match=r"1 picture of ECSSD has no mask: .*b\.jpg$"):
        ECSSD(tmp_path)
    (tmp_path / "images/b.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 mask of ECSSD has no picture: .*c\.png$"):
        ECSSD(tmp_path)


# ----------------------------------------------------------------------------------------------------------- CamVid


@pytest.fixture
def camvid(tmp_path: Path, rng: np.random.Generator) -> Callable[[str], dict[str, np.ndarray]]:
    def make(layout: str) -> dict[str, np.ndarray]:
        masks = {}
        for split, count in {"train": 2, "val": 1, "test": 1}.items():
            for i in range(count):
                place = {"segnet": (split, f"{split}annot"), "parts": (f"{split}/images", f"{split}/labels")}[layout]
                picture(rng, tmp_path / place[0] / f"{split}_{i}.png")
                masks[f"{split}_{i}"] = labels(rng, tmp_path / place[1] / f"{split}_{i}.png", list(range(12)))
        return masks

    return make


@pytest.mark.parametrize("layout", ["segnet", "parts"])
def test_camvid_in_both_layouts(tmp_path: Path, camvid: Callable[[str], dict[str, np.ndarray]], layout: str) -> None:
    masks = camvid(layout)
    for split, names in {"train": ["train_0", "train_1"], "val": ["val_0"], "test": ["test_0"]}.items():
        dataset = CamVid(tmp_path, split)
        assert dataset.names == names
        for name, (_, mask) in zip(names, dataset):
            assert equal(mask, np.where(masks[name] == 11, 255, masks[name]))
    assert CamVid(tmp_path, "trainval").names == ["train_0", "train_1", "val_0"]


def test_camvids_labels_fit_the_losses_and_metrics_defaults(
    tmp_path: Path, camvid: Callable[[str], dict[str, np.ndarray]]
) -> None:
    target = (masks := camvid("parts"))["val_0"]
    dataset = CamVid(tmp_path, "val")
    mask = dataset[0][1][None]
    logits = torch.randn(1, dataset.num_classes, *SIZE)
    counted = target != 11
    by_hand = torch.nn.functional.cross_entropy(
        logits[0].flatten(1).T[counted.ravel()], torch.from_numpy(target[counted]).long()
    )
    torch.testing.assert_close(CrossEntropyLoss()(logits, mask.long()), by_hand)
    metric = SegmentationMetrics(dataset.num_classes, class_names=dataset.classes)
    metric.update(logits.argmax(1), mask)
    assert metric.compute()["support"].sum() == counted.sum() and masks


def test_a_label_that_camvid_has_not(tmp_path: Path, camvid: Callable[[str], dict[str, np.ndarray]]) -> None:
    camvid("parts")
    save(tmp_path / "val/labels/val_0.png", np.full(SIZE, 12, np.uint8))
    with pytest.raises(ValueError, match=r"val_0\.png has the label 12"):
        CamVid(tmp_path, "val")[0]


@pytest.mark.data
def test_the_real_camvid(data: Path) -> None:
    sizes = {split: len(CamVid(data / "camvid", split)) for split in ("train", "val", "test", "trainval")}
    assert sizes == {"train": 367, "val": 101, "test": 233, "trainval": 468}
    dataset = CamVid(data / "camvid", "train")
    assert len(dataset.classes) == dataset.num_classes == 11
    seen: set[int] = set()
    for i in random.Random(0).sample(range(len(dataset)), 20):
        image, mask = dataset[i]
        assert image.shape == (3, 360, 480) and mask.shape == (360, 480)
        seen |= set(np.bincount(mask.numpy().ravel()).nonzero()[0].tolist())
        with Image.open(dataset.samples[i].mask) as file:
            pixels = np.array(file)
        assert equal(mask, np.where(pixels == 11, 255, pixels))
        with Image.open(dataset.samples[i].image) as file:
            assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(file.convert("RGB")))
    assert seen == {*range(11), 255}


@pytest.mark.data
def test_the_real_ecssd(data: Path) -> None:
    dataset = ECSSD(data / "ecssd")
    assert dataset.names == [f"{i:04}" for i in range(1, 1001)]
    for i in random.Random(0).sample(range(len(dataset)), 20):
        image, mask = dataset[i]
        with Image.open(dataset.samples[i].mask) as file:
            assert equal(mask, np.array(file) > 127)
        assert image.shape == (3, *mask.shape)


# ------------------------------------------------------------------------------------------------------- Cityscapes


def test_cityscapes_table_is_torchvisions() -> None:
    known = torchvision.datasets.Cityscapes.classes
    assert len(Cityscapes.table) == len(known) == 35
    for ours, theirs in zip(Cityscapes.table, known):
        assert (ours.raw_id, ours.name, ours.category, ours.has_instances, ours.colour) == (
            theirs.id,
            theirs.name,
            theirs.category,
            theirs.has_instances,
            theirs.color,
        )
        assert ours.train_id == (255 if theirs.train_id < 0 else theirs.train_id)
        assert (ours.train_id == 255) == theirs.ignore_in_eval
    counted = sorted((theirs for theirs in known if 0 <= theirs.train_id < 255), key=lambda theirs: theirs.train_id)
    assert [theirs.train_id for theirs in counted] == list(range(19))
    assert Cityscapes.categories == tuple(dict.fromkeys(theirs.category for theirs in counted))
    assert [Cityscapes.categories[i] for i in Cityscapes.category_ids] == [theirs.category for theirs in counted]


def test_encode_and_decode() -> None:
    known = {theirs.id: theirs.train_id for theirs in torchvision.datasets.Cityscapes.classes}
    raw = np.array([*known, 255])
    train = np.array([255 if value < 0 else value for value in (*known.values(), 255)])
    for convert in (np.asarray, torch.from_numpy, lambda a: a.astype(np.int32).reshape(4, 9)):
        found = Cityscapes.encode(convert(raw))
        assert type(found) is type(convert(raw)) and found.shape == convert(raw).shape
        assert np.array_equal(np.asarray(found).ravel(), train)
    counted = raw[train < 19]
    assert np.array_equal(Cityscapes.decode(Cityscapes.encode(counted)), counted)
    assert Cityscapes.decode(torch.tensor([255])).tolist() == [0]
    for call, wrong in ((Cityscapes.encode, 34), (Cityscapes.encode, -2), (Cityscapes.decode, 19)):
        with pytest.raises(ValueError, match=f"{wrong} is no"):
            call(np.array([wrong]))
    with pytest.raises(TypeError, match="float64"):
        Cityscapes.decode(np.array([1.0]))


def make_cityscapes(
    root: Path, rng: np.random.Generator, split: str, truth: str = "gtFine", cities: bool = True
) -> dict[str, np.ndarray]:
    """What the official archives have in them: of each picture ids, train ids, colours and polygons."""
    found = {}
    for city in ("aachen", "ulm"):
        for i in (9, 10):
            name = f"{city}_{i:06}_000019"
            inside = Path(city if cities else "")
            picture(rng, root / "leftImg8bit" / split / inside / f"{name}_leftImg8bit.png")
            masks = root / truth / split / inside
            raw = labels(rng, masks / f"{name}_{truth}_labelIds.png", list(range(34)))
            save(masks / f"{name}_{truth}_labelTrainIds.png", Cityscapes.encode(raw))
            save(masks / f"{name}_{truth}_color.png", rng.integers(0, 256, (*SIZE, 3), np.uint8))
            save(masks / f"{name}_{truth}_instanceIds.png", raw.astype(np.uint16) * 1000)
            (masks / f"{name}_{truth}_polygons.json").write_text("{}")
            found[(inside / name).as_posix()] = raw
    return found


@pytest.mark.parametrize(
    ("mode", "split"), [("fine", "train"), ("fine", "val"), ("fine", "test"), ("coarse", "train_extra")]
)
def test_cityscapes(tmp_path: Path, rng: np.random.Generator, mode: str, split: str) -> None:
    raw = make_cityscapes(tmp_path, rng, split, "gtFine" if mode == "fine" else "gtCoarse")
    dataset = Cityscapes(tmp_path, split, mode=mode)
    assert dataset.names == sorted(raw) and (dataset.num_classes, dataset.ignore_index) == (19, 255)
    peer = torchvision.datasets.Cityscapes(str(tmp_path), split, mode, "semantic")
    by_image = {Path(image): Path(target[0]) for image, target in zip(peer.images, peer.targets)}
    assert {sample.image: sample.mask for sample in dataset.samples} == by_image
    train_id = np.array([255 if c.train_id < 0 else c.train_id for c in peer.classes[:34]], np.uint8)
    assert [c.id for c in peer.classes[:34]] == list(range(34))
    from_train_ids = Cityscapes(tmp_path, split, mode=mode, labels="labelTrainIds")
    for i, name in enumerate(dataset.names):
        assert equal(dataset[i][1], train_id[raw[name]])
        assert equal(from_train_ids[i][1], train_id[raw[name]])
    assert np.array_equal(dataset.colours, [c.color for c in peer.classes if c.train_id in range(19)])


def test_cityscapes_test_set_without_masks_is_ignored(tmp_path: Path, rng: np.random.Generator) -> None:
    picture(rng, tmp_path / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png")
    (found,) = Cityscapes(tmp_path, "test")
    assert equal(found[1], np.full(SIZE, 255))
    with pytest.raises(FileNotFoundError, match=r"split 'val' is leftImg8bit/val and gtFine/val in its root"):
        Cityscapes(tmp_path, "val")


def test_an_id_that_cityscapes_has_not(tmp_path: Path, rng: np.random.Generator) -> None:
    name = min(make_cityscapes(tmp_path, rng, "val"))
    place = tmp_path / "gtFine/val" / f"{name}_gtFine_labelIds.png"
    for wrong, dtype in ((34, np.uint8), (700, np.uint16)):
        save(place, np.full(SIZE, wrong, dtype))
        with pytest.raises(PictureError, match=rf"aachen_000009_000019_gtFine_labelIds\.png holds {wrong}"):
            Cityscapes(tmp_path, "val")[0]
    save(place, np.full(SIZE, 255, np.uint8))  # a licence plate's -1
    assert equal(Cityscapes(tmp_path, "val")[0][1], np.full(SIZE, 255))


def test_what_cityscapes_is_told_wrongly(tmp_path: Path, rng: np.random.Generator) -> None:
    make_cityscapes(tmp_path, rng, "train")
    for arguments, message in (
        ({"split": "trian"}, "unknown split 'trian': did you mean 'train'"),
        ({"split": "test", "mode": "coarse"}, "unknown split 'test'.*Known: train, train_extra, val"),
        ({"mode": "finne"}, "unknown mode 'finne': did you mean 'fine'"),
        ({"labels": "labelTrainId"}, "unknown kind of labels 'labelTrainId': did you mean 'labelTrainIds'"),
    ):
        with pytest.raises(ValueError, match=message):
            Cityscapes(tmp_path, **arguments)
    (tmp_path / "gtFine/train/ulm/ulm_000010_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(ValueError, match="1 picture of Cityscapes's split 'train' has no mask: .*ulm_000010"):
        Cityscapes(tmp_path)


@pytest.mark.parametrize("cities", [False, True])
def test_minicity(tmp_path: Path, rng: np.random.Generator, cities: bool) -> None:
    """As the challenge's script lays it out: no folders of cities, and test pictures that are numbers."""
    raw = {split: make_cityscapes(tmp_path, rng, split, cities=cities) for split in ("train", "val")}
    for i in (0, 2, 10):
        picture(rng, tmp_path / f"leftImg8bit/test/{i}.png")
    for split, masks in raw.items():
        dataset = MiniCity(tmp_path, split)
        assert dataset.names == sorted(masks)
        for i, name in enumerate(dataset.names):
            assert equal(dataset[i][1], Cityscapes.encode(masks[name]))
    test = MiniCity(tmp_path, "test")
    assert test.names == ["0", "2", "10"]
    images, masks = next(iter(DataLoader(test, batch_size=3)))
    assert images.shape == (3, 3, *SIZE) and (masks == 255).all()


# -------------------------------------------------------------------------------------------------------------- VOC


@pytest.fixture
def voc(tmp_path: Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    base = tmp_path / "VOCdevkit/VOC2012"
    lists = {"train": ["2007_000032", "2007_000039"], "val": ["2011_003276"], "test": ["2008_000006"]}
    lists["trainval"] = lists["train"] + lists["val"]
    (base / "ImageSets/Segmentation").mkdir(parents=True)
    for split, names in lists.items():
        (base / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
    found = {}
    for name in lists["trainval"] + lists["test"] + ["2008_000002"]:
        picture(rng, base / f"JPEGImages/{name}.jpg")
    for name in lists["trainval"]:
        mask = base / f"SegmentationClass/{name}.png"
        found[name] = labels(rng, mask, [*range(21), 255], colour_map())
    return found


def test_voc_is_torchvisions(tmp_path: Path, voc: dict[str, np.ndarray]) -> None:
    for split in ("train", "val", "trainval"):
        dataset = VOC(tmp_path, split)
        peer = torchvision.datasets.VOCSegmentation(tmp_path, year="2012", image_set=split, download=False)
        assert [str(sample.image) for sample in dataset.samples] == peer.images
        assert [str(sample.mask) for sample in dataset.samples] == peer.masks
        for (image, mask), (their_image, their_mask), name in zip(dataset, peer, dataset.names):
            assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(their_image))
            assert equal(mask, np.array(their_mask)) and equal(mask, voc[name])
    for root in (tmp_path / "VOCdevkit", tmp_path / "VOCdevkit/VOC2012"):
        assert VOC(root, "val", year=2012).samples == VOC(tmp_path, "val").samples
    (found,) = VOC(tmp_path, "test")
    assert equal(found[1], np.full(SIZE, 255))


def test_voc_of_2011_lies_deeper(tmp_path: Path, voc: dict[str, np.ndarray]) -> None:
    (tmp_path / "TrainVal/VOCdevkit").mkdir(parents=True)
    (tmp_path / "VOCdevkit/VOC2012").rename(tmp_path / "TrainVal/VOCdevkit/VOC2011")
    peer = torchvision.datasets.VOCSegmentation(tmp_path, year="2011", image_set="val")
    assert [str(sample.image) for sample in VOC(tmp_path, "val", year=2011).samples] == peer.images


def test_vocs_names_and_colours(tmp_path: Path, voc: dict[str, np.ndarray]) -> None:
    dataset = VOC(tmp_path, "val")
    assert dataset.classes == get_weights("fcn_resnet50.coco_voc").classes
    their = torchvision.models.segmentation.FCN_ResNet50_Weights.DEFAULT.meta["categories"]
    assert [name.replace(" ", "") for name in dataset.classes] == [name.strip("_") for name in their]
    assert np.array_equal(dataset.colours, colour_map()[:21])


@pytest.mark.parametrize("line", ["{0}  ", "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png"])
@pytest.mark.parametrize("place", ["Segmentation/trainaug", "SegmentationAug/train_aug"])
def test_the_augmented_set(
    tmp_path: Path, rng: np.random.Generator, voc: dict[str, np.ndarray], place: str, line: str
) -> None:
    base = tmp_path / "VOCdevkit/VOC2012"
    names = ["2007_000032", "2008_000002"]
    masks = [labels(rng, base / f"SegmentationClassAug/{name}.png", list(range(21))) for name in names]
    names_file = base / f"ImageSets/{place}.txt"
    names_file.parent.mkdir(exist_ok=True)
    names_file.write_text("\n".join(line.format(name) for name in names))
    dataset = VOC(tmp_path, "trainaug")
    assert dataset.names == names
    assert all(equal(mask, expected) for (_, mask), expected in zip(dataset, masks))


def test_a_file_of_voc_is_missing(tmp_path: Path, voc: dict[str, np.ndarray]) -> None:
    (tmp_path / "VOCdevkit/VOC2012/SegmentationClass/2007_000039.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 file that .*train\.txt lists is not there: .*000039\.png"):
        VOC(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="trainaug"):
        VOC(tmp_path, "trainaug")
    with pytest.raises(ValueError, match="unknown year of PASCAL VOC '2013': did you mean '2012'|Known: 2007"):
        VOC(tmp_path, year=2013)
    with pytest.raises(ValueError, match="unknown split 'trainvla': did you mean 'trainval'"):
        VOC(tmp_path, "trainvla")


def test_sbd_is_torchvisions(tmp_path: Path, rng: np.random.Generator) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    (tmp_path / "cls").mkdir()
    names = ["2008_000002", "2008_000007"]
    for name in names:
        picture(rng, tmp_path / f"img/{name}.jpg")
        mask = rng.integers(0, 21, SIZE).astype(np.uint8)
        savemat(tmp_path / f"cls/{name}.mat", {"GTcls": {"Segmentation": mask, "CategoriesPresent": [1]}})
    (tmp_path / "train_noval.txt").write_text("\n".join(names) + "\n")
    dataset = SBD(tmp_path, "train_noval")
    peer = torchvision.datasets.SBDataset(str(tmp_path), "train_noval", mode="segmentation")
    for (image, mask), (their_image, their_mask) in zip(dataset, peer):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(their_image))
        assert equal(mask, np.array(their_mask))
    assert dataset.classes[15] == "person"
    (tmp_path / "cls/2008_000007.mat").write_bytes(b"no MATLAB")
    with pytest.raises(ValueError, match=r"2008_000007\.mat is broken"):
        dataset[1]


# -------------------------------------------------------------------------------------------------------------- all


def every(tmp_path: Path) -> dict[str, Callable[[], SegmentationDataset]]:
    return {
        "DUTS-TR/DUTS-TR-Image and DUTS-TR/DUTS-TR-Mask": lambda: DUTS(tmp_path),
        "images and ground_truth_mask, or images and masks": lambda: ECSSD(tmp_path),
        "train/images and train/labels, or train and trainannot": lambda: CamVid(tmp_path),
        "leftImg8bit/train and gtFine/train": lambda: Cityscapes(tmp_path),
        "MiniCity's split 'train' is leftImg8bit/train and gtFine/train": lambda: MiniCity(tmp_path),
        "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt and": lambda: VOC(tmp_path),
        "train.txt and img and cls": lambda: SBD(tmp_path),
    }


def test_a_wrong_root_says_what_belongs_there(tmp_path: Path) -> None:
    for layout, make in every(tmp_path).items():
        with pytest.raises(FileNotFoundError, match=f"{layout}.*{tmp_path} has none of it; nothing is downloaded"):
            make()
    for layout, make in every(tmp_path / "nowhere").items():
        with pytest.raises(FileNotFoundError, match=f"{layout}.*there is no folder .*nowhere"):
            make()
    (tmp_path / "images").mkdir()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} has no ground_truth_mask"):
        ECSSD(tmp_path)
    (tmp_path / "masks").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no picture in .*images"):
        ECSSD(tmp_path)
    with pytest.raises(ValueError, match="root of ECSSD is empty"):
        ECSSD("")


def test_they_go_to_workers_and_through_transforms(
    tmp_path: Path, camvid: Callable[[str], dict[str, np.ndarray]]
) -> None:
    camvid("parts")
    dataset = CamVid(tmp_path, "train", transforms=flipped)
    copy = pickle.loads(pickle.dumps(dataset))
    plain = CamVid(tmp_path, "train")
    for i in range(2):
        for ours, expected in zip(copy[i], plain[i]):
            assert torch.equal(ours, expected.flip(-1))
    assert "CamVid" in repr(dataset) and "11 classes" in repr(dataset)


def flipped(image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return image.flip(-1), mask.flip(-1)
