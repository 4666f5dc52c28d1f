"""From a file to a model: the reader of safetensors, what is checked and when, and what is not built in vain."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

import segzoo
from segzoo.registry import create_untrained
from segzoo.weights import Source, digests
from segzoo.weights.digests import WrongFile, check_file, check_source
from segzoo.weights.tensors import read_metadata, read_tensors

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16),
    *(torch.int8, torch.uint8, torch.uint16, torch.bool, torch.complex64, torch.float8_e4m3fn),
]


def some(shapes: list[tuple[int, ...]], dtypes: list[torch.dtype]) -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    state = {}
    for i, (shape, dtype) in enumerate(zip(shapes, dtypes)):
        count = int(np.prod(shape)) * dtype.itemsize
        values = torch.from_numpy(rng.integers(0, 2 if dtype == torch.bool else 256, count, np.uint8))
        state[f"k{i}"] = values.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
    return state


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=4).map(tuple), max_size=6),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=6, max_size=6),
)
def test_the_reader_gives_what_safetensors_gives(shapes: list[Any], dtypes: list[Any], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    save_file(some(shapes, dtypes), path, {"who": "me"})
    ours, theirs = read_tensors(path), load_file(path)
    assert ours.keys() == theirs.keys() and read_metadata(path)["who"] == "me"
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype and ours[key].shape == value.shape
        same = [x.contiguous().flatten().view(torch.uint8) for x in (ours[key], value) if x.numel()]
        assert not same or torch.equal(*same)
        if value.numel():
            assert ours[key].data_ptr() % 64 == 0 and ours[key].untyped_storage().nbytes() == value.nbytes


def test_tensors_are_the_processs_own(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.arange(1000.0), "b": torch.ones(3)}, path)
    state = read_tensors(path)
    path.write_bytes(b"")  # in place, as a copy over it does
    assert state["a"].sum() == 499500
    state["a"].zero_()
    assert state["b"].sum() == 3
    torch.save(state["b"], tmp_path / "b.pt")
    assert (tmp_path / "b.pt").stat().st_size < 3000  # not the whole file's memory


def header(entries: Any, data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, shape: Any = (1,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x05\0\0",
        (1 << 62).to_bytes(8, "little") + b"{}",
        header(b"nonsense"),
        header(b"[]"),
        header({"a": 5}),
        header({"a": entry(0, 4)}),  # no data
        header({"a": entry(0, 4)}, b"12345"),  # too much
        header({"a": entry(4, 8)}, b"12345678"),  # a gap
        header({"a": entry(0, 4), "b": entry(2, 6)}, b"123456"),
        header({"a": entry(0, 4), "b": entry(0, 4)}, b"1234"),  # one place for two
        header({"a": entry(0, 4, (2,))}, b"1234"),
        header({"a": entry(0, 4, (-1, -1))}, b"1234"),
        header({"a": entry(0, 4, ("1",))}, b"1234"),
        header({"a": entry(0, 4, (True,))}, b"1234"),
        header({"a": entry(0, 4, dtype="F33")}, b"1234"),
        header({"a": {"dtype": "F32"}}, b"1234"),
    ],
)
def test_a_file_that_is_none_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.safetensors is not a safetensors file that can be read") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


def test_cut_anywhere_it_is_refused(tmp_path: Path) -> None:
    content = save({"a": torch.arange(4.0), "b": torch.ones(2, 2)})
    path = tmp_path / "a.safetensors"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is not a safetensors file"):
            read_tensors(path)


# Digests.


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as large, and has been there for a while."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(digests, "_SMALL", 10)
    monkeypatch.setattr(digests, "_SETTLED", -1.0)
    path = tmp_path / "weights.bin"
    path.write_bytes(b"a" * 100)
    return path


def count_hashes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []
    plain = digests._digest
    monkeypatch.setattr(digests, "_digest", lambda file, kind: (asked.append(kind), plain(file, kind))[1])
    return asked


def test_a_large_file_is_hashed_once_until_it_changes(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = hashlib.sha256(large.read_bytes()).hexdigest()
    asked = count_hashes(monkeypatch)
    for _ in range(3):
        check_file(large, sha256)
    assert asked == ["sha256"]
    with pytest.raises(WrongFile, match=f"weights.bin has sha256 {sha256}, expected {'0' * 64}"):
        check_file(large, "0" * 64)  # what was noted is of another digest
    status = large.stat()
    large.write_bytes(b"b" * 100)
    os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns))  # even so
    with pytest.raises(WrongFile, match=f"expected {sha256}"):
        check_file(large, sha256)
    replaced = large.with_name("other")
    replaced.write_bytes(b"a" * 100)
    replaced.replace(large)
    del asked[:]
    check_file(large, sha256)
    assert asked == ["sha256"]


def test_what_has_just_been_written_is_hashed_again(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second change within the clock's grain would leave the times as they are."""
    monkeypatch.setattr(digests, "_SETTLED", 60.0)
    asked = count_hashes(monkeypatch)
    for _ in range(2):
        check_file(large, hashlib.sha256(large.read_bytes()).hexdigest())
    assert len(asked) == 2


def test_a_note_that_is_broken_or_cannot_be_written_costs_time_only(large: Path, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(large.read_bytes()).hexdigest()
    check_file(large, sha256)
    (note,) = (tmp_path / "torch/hub/segzoo/checked").iterdir()
    note.write_bytes(b"\xff\xfe")
    check_file(large, sha256)
    note.unlink()
    note.parent.rmdir()
    note.parent.write_text("a file in the folder's place")
    check_file(large, sha256)


@pytest.mark.parametrize("digits", [8, 64])
def test_both_digests_of_a_source_are_checked(digits: int, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"content")
    sha256, md5 = hashlib.sha256(b"content").hexdigest(), hashlib.md5(b"content").hexdigest()
    assert check_source(path, Source("url", "u", sha256[:digits], md5=md5)) == sha256
    assert check_source(path, Source("hub", "u", None, repo="a/b")) == sha256
    with pytest.raises(WrongFile, match=rf"a\.onnx has sha256 {sha256} \(7 bytes of 9\), expected 00"):
        check_source(path, Source("url", "u", "00000000", size=9))
    with pytest.raises(WrongFile, match=rf"a\.onnx has md5 {md5}, expected 00"):
        check_source(path, Source("url", "u", sha256, md5="0" * 32))


# The model.


@pytest.fixture
def no_initialisation(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of torch's initialisers were called on tensors that have values."""
    called: list[str] = []
    for name in ("kaiming_uniform_", "kaiming_normal_", "uniform_", "normal_", "trunc_normal_"):
        plain = getattr(nn.init, name)

        def counting(tensor: Tensor, *args: Any, plain: Any = plain, name: str = name, **kwargs: Any) -> Tensor:
            if not tensor.is_meta:
                called.append(name)
            result: Tensor = plain(tensor, *args, **kwargs)
            return result

        monkeypatch.setattr(nn.init, name, counting)
    return called


def test_nothing_is_initialised_only_to_be_overwritten(no_initialisation: list[str], tmp_path: Path) -> None:
    segzoo.u2net_lite()
    assert no_initialisation == []
    segzoo.u2net_lite(num_classes=3)  # whose heads are new
    assert no_initialisation != []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_checkpoints_tensors_become_parameters_of_the_models_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    state = create_untrained("unet", base_channels=4, num_classes=2).state_dict()
    narrow = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    save_file(narrow, tmp_path / "a.safetensors")
    model = segzoo.unet(weights=tmp_path / "a.safetensors", base_channels=4)
    assert all(isinstance(p, nn.Parameter) and p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.equal(value, narrow[key].to(value.dtype)) for key, value in model.state_dict().items())
    model.train()(torch.randn(2, 3, 33, 33)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_tensors_that_a_file_ties_are_the_models_own_each(tmp_path: Path) -> None:
    state = create_untrained("unet", base_channels=4).state_dict()
    keys = [key for key, value in state.items() if value.shape == (4,) and key.endswith("bn.bias")][:2]
    both = torch.arange(8.0)
    state |= {keys[0]: both[:4], keys[1]: both[:4]}
    torch.save(state, tmp_path / "a.pth")
    model = segzoo.unet(weights=tmp_path / "a.pth", base_channels=4)
    first, second = (dict(model.named_parameters())[key] for key in keys)
    with torch.no_grad():
        first.zero_()
    assert second.tolist() == [0, 1, 2, 3]


def test_an_encoder_of_ones_own_keeps_its_parameters(tmp_path: Path) -> None:
    """An optimiser that was made of them before goes on to train them."""
    from segzoo.encoders import get_encoder

    encoder = get_encoder("resnet10t", weights=None)
    save_file(create_untrained("fpn", encoder="resnet10t").state_dict(), tmp_path / "a.safetensors")
    before = [id(p) for p in encoder.parameters()]
    model: Any = segzoo.fpn(encoder, weights=tmp_path / "a.safetensors")
    assert model.encoder is encoder and [id(p) for p in encoder.parameters()] == before


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mask_rcnn_resnet50_fpn", {"min_size": 64}),
        pytest.param("fpn", {"encoder": "swin_tiny_patch4_window7_224"}, marks=pytest.mark.slow),
    ],
)
def test_tensors_beside_the_state_dict_are_computed(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Mask R-CNN's anchors, Swin's tables of positions: on the meta device they would have no values."""
    model: Any = create_untrained(name, **options).eval()
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    again: Any = segzoo.create_model(name, weights=tmp_path / "a.safetensors", **options).eval()
    x = [torch.rand(3, 64, 64)] if name.startswith("mask") else torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        ours, theirs = again(x), model(x)
    pairs = zip(ours[0].values(), theirs[0].values()) if isinstance(ours, list) else [(ours, theirs)]
    assert all(torch.equal(a, b) for a, b in pairs)


def test_folded_norms_are_warned_of_once(tmp_path: Path, u2netp_onnx: Path) -> None:
    model = segzoo.u2net_lite(weights=u2netp_onnx)
    with pytest.warns(UserWarning, match=r"would ruin it: segzoo.weights.recalibrate\(model, pictures\) first"):
        model.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.eval().train()
        segzoo.u2net_lite().train()
        segzoo.u2net_lite(weights=u2netp_onnx, norm="frozen_batch").train()


def test_models_that_read_some_maps_can_be_built_without_gradients() -> None:
    with torch.no_grad():
        model = create_untrained("deeplabv3plus", encoder="resnet10t", decoder_channels=8)
    assert all(p.requires_grad for p in model.parameters())


def test_a_model_comes_to_the_default_device() -> None:
    """With the meta device in a GPU's place."""
    with torch.device("meta"):
        assert {p.device.type for p in segzoo.u2net_lite().parameters()} == {"meta"}
    assert {p.device.type for p in segzoo.u2net_lite().parameters()} == {"cpu"}


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    model: Any = segzoo.unet(base_channels=4)
    blocks = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.num_features == 4]
    blocks[1].weight = blocks[0].weight
    model.save_pretrained(tmp_path / "a", license="mit", training_data={"none": "random"})
    again = segzoo.create_model(f"local-dir:{tmp_path / 'a'}")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_the_warning_of_another_norm_points_at_the_callers_line() -> None:
    for build in (lambda: segzoo.u2net_lite(norm="group"), lambda: segzoo.create_model("u2net_lite", norm="group")):
        with pytest.warns(UserWarning, match="has another norm") as caught:
            build()
        assert caught[0].filename == __file__
