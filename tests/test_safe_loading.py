"""Files of weights that are something else: refused in a sentence, and never run."""

from __future__ import annotations

import collections
import io
import logging
import os
import pickle
import re
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

import segzoo
from segzoo.registry import create_untrained
from segzoo.weights.convert import read_arguments, read_raw, read_state_dict, unified
from segzoo.weights.pickles import wanted_by
from segzoo.weights.torchvision_keys import mask_rcnn_from_older
from segzoo.weights.unwrap import unwrap

STATE = {"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.zeros(2)}


class Touch:
    """A pickle of it makes a file when it is loaded."""

    def __init__(self, path: Path, function: Callable[..., Any] = os.system) -> None:
        self.path, self.function = path, function

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        command = f"touch {self.path}" if self.function is os.system else f"open({str(self.path)!r}, 'w').close()"
        return self.function, (command,)


def torch_file(content: object, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


FORMS: dict[str, Callable[[object], bytes]] = {
    "zip": torch_file,
    "zip of protocol 4": lambda content: torch_file(content, pickle_protocol=4),
    "legacy": lambda content: torch_file(content, _use_new_zipfile_serialization=False),
    "legacy of protocol 4": lambda content: torch_file(
        content, _use_new_zipfile_serialization=False, pickle_protocol=4
    ),
    "pickle": pickle.dumps,
    "pickle of protocol 0": lambda content: pickle.dumps(content, protocol=0),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("function", [os.system, eval, exec], ids=["os.system", "builtins.eval", "builtins.exec"])
def test_a_malicious_pickle_is_named_and_never_run(form: str, function: Callable[..., Any], tmp_path: Path) -> None:
    touched, path = tmp_path / "touched", tmp_path / "a.pth"
    path.write_bytes(FORMS[form]({"model": STATE, "extra": Touch(touched, function)}))
    name = "os.system" if function is os.system else f"builtins.{function.__name__}"
    with pytest.raises(ValueError, match="cannot be loaded as plain tensors") as caught:
        read_state_dict(path)
    message = str(caught.value)
    assert str(path) in message and re.search(f"would have called ([^;]*, )?{name}, ", message) and "\n" not in message
    assert "save model.state_dict()" in message and "weights_only=False" in message
    assert not touched.exists()
    # and the payload is one that works, where somebody does run it
    torch.load(path, weights_only=False) if "pickle" not in form else pickle.loads(path.read_bytes())
    assert touched.exists()


@pytest.mark.parametrize("form", FORMS)
def test_what_a_pickle_wants_is_listed(form: str, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    content = {
        "meta": {"best": np.float64(0.5), "place": Path("a"), "counts": collections.Counter("aab")},
        "state_dict": collections.OrderedDict(STATE),
        "network": nn.ReLU(),
        "again": np.float64(0.25),
    }
    path.write_bytes(FORMS[form](content))
    with pytest.raises(
        ValueError, match=r"would have called [^;]*pathlib\.\S*Path, .*numpy\S*scalar, numpy\.dtype, torch"
    ) as caught:
        read_state_dict(path)
    assert "torch.nn.modules.activation.ReLU" in str(caught.value)
    is_pickle, wanted = wanted_by(path)
    assert is_pickle and len(set(wanted)) == len(wanted)
    assert not any(
        "OrderedDict" in name or "Counter" in name or "_rebuild_tensor" in name or "FloatStorage" in name
        for name in wanted
    )


def test_names_that_are_hidden_or_made_up_are_found(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    # the module's name from the memo, in the way pickles of protocol 4 have it
    path.write_bytes(b"\x80\x04\x8c\x02os\x94\x8c\x01x\x940h\x00\x8c\x06system\x93\x8c\x04true\x85R.")
    assert wanted_by(path) == (True, ["os.system"])
    # a name that is the result of a call
    path.write_bytes(b"\x80\x04\x8c\x02os\x8c\x03abc\x85\x93.")
    assert wanted_by(path) == (True, ["a name that it makes up while it is loaded"])
    with pytest.raises(ValueError, match="a name that it makes up"):
        read_state_dict(path)
    path.write_bytes(b"cos\nsystem\n(S'true'\ntR.")  # protocol 0, the oldest
    assert wanted_by(path) == (True, ["os.system"])
    path.write_bytes(b"(S'true'\nios\nsystem\n.")
    assert wanted_by(path) == (True, ["os.system"])


def test_what_somebody_allowed_is_not_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"state_dict": STATE, "place": Path("a"), "relu": nn.ReLU()}, path)
    with torch.serialization.safe_globals([nn.ReLU]):
        assert not any("ReLU" in name for name in wanted_by(path)[1])
    assert any("ReLU" in name for name in wanted_by(path)[1])


def tar_file() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pth"), None)
    return buffer.getvalue()


def zip_file(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"abc")
    return buffer.getvalue()


def script_file() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has left TorchScript; people's files have not
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


def safetensors_file(folder: Path) -> bytes:
    save_file(STATE, folder / "made.safetensors")
    return (folder / "made.safetensors").read_bytes()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 175997641\n"
PAGE = b"\n  <!DOCTYPE html>\n<html><title>404</title></html>"
OTHERS = [
    (POINTER, "is a Git LFS pointer, not the file of 175,997,641 bytes: fetch that with `git lfs pull`"),
    (PAGE, "is a web page, not a checkpoint"),
    (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page, not a checkpoint"),
    (b"", "is empty"),
    (tar_file(), "is a tar archive: unpack it"),
    (b"\x1f\x8b\x08\x00abc", "is a gzip archive: unpack it"),
    (b"\x89HDF\r\n\x1a\nabc", "is an HDF5 file"),
]
PICKLES = [
    (b"Entry not found", "is no PyTorch file but text that begins with 'Entry not found'"),
    (b'{"error": "Repository not found"}', "is no PyTorch file but text"),
    (b"\x00\x01\x02", "it is no PyTorch file"),
    (torch_file(STATE)[:300], "is cut short or damaged"),
    (torch_file(STATE, _use_new_zipfile_serialization=False)[:-9], "cannot be loaded as plain tensors"),
    (zip_file("a.txt", "b.txt"), "is a zip archive without a PyTorch checkpoint in it: it holds a.txt, b.txt"),
    (zip_file("model/serialized_exported_program.json"), "is an exported program"),
    (torch_file([STATE["head.bias"]]), "holds no state dict"),
    (torch_file({"epoch": 3, "lr": 0.1}), "holds no state dict.* it has 'epoch', 'lr'"),
    (torch_file({"generator": STATE, "discriminator": STATE}), "holds several state dicts, 'generator', 'discrimin"),
]
TENSORS = [
    (torch_file(STATE), "is a PyTorch file .* under the name of a safetensors file: name it .pth"),
    (pickle.dumps({"a": 1}), "is a PyTorch file .* under the name of a safetensors file"),
    (b"\x10" * 50, "is not a safetensors file that can be read"),
    (struct.pack("<Q", 10**6) + b"{}", "is cut short, with 10 of 1,000,008 bytes"),
    (struct.pack("<Q", 8) + b'{"a": 1}', "is not a safetensors file that can be read"),
]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [(f"a{suffix}", *row) for row in OTHERS for suffix in (".pth", ".safetensors", ".onnx")]
    + [("a.pth", *row) for row in PICKLES]
    + [("a.safetensors", *row) for row in TENSORS],
)
def test_what_people_download_in_the_place_of_weights(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_scripts_folders_and_files_cut_short(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(script_file())
    with pytest.raises(ValueError, match=r"is a TorchScript archive.* torch\.jit\.load"):
        read_state_dict(tmp_path / "a.pt")
    (tmp_path / "b.pth").mkdir()
    with pytest.raises(IsADirectoryError, match=r"b\.pth is a folder, expected a weights file"):
        read_state_dict(tmp_path / "b.pth")
    whole = safetensors_file(tmp_path)
    for length in range(9, len(whole)):
        (tmp_path / "c.safetensors").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"cut short, with {length} of"):
            read_state_dict(tmp_path / "c.safetensors")
    assert set(read_state_dict(tmp_path / "made.safetensors")) == set(STATE)


def test_safetensors_are_read_under_any_name(tmp_path: Path) -> None:
    for name in ("a.pth", "a.bin", "a.ckpt", "A.SAFETENSORS"):
        (tmp_path / name).write_bytes(safetensors_file(tmp_path))
        assert torch.equal(read_state_dict(tmp_path / name)["head.weight"], STATE["head.weight"])


@given(st.data())
def test_damaged_files_never_get_further_than_one_sentence(tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    name, content = data.draw(
        st.sampled_from(
            [
                ("a.pth", torch_file(STATE)),
                ("b.pth", torch_file(STATE, _use_new_zipfile_serialization=False)),
                ("c.safetensors", safetensors_file(folder)),
            ]
        )
    )
    broken = bytearray(content[: data.draw(st.integers(0, len(content)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if broken:
            broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    path = folder / name
    path.write_bytes(broken)
    try:
        assert all(isinstance(value, Tensor) for value in read_state_dict(path).values())
    except ValueError as error:
        assert str(path) in str(error)


# Training states.


def tagged(tag: float) -> dict[str, Tensor]:
    return {"head.weight": torch.full((2, 3), tag), "head.bias": torch.full((2,), tag)}


OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
CALLBACKS = {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "best_k_models": {"a": torch.zeros(2, 2)}}}


@pytest.mark.parametrize(
    ("saved", "note"),
    [
        ({"epoch": 3, "state_dict": tagged(1), "optimizer": OPTIMIZER, "amp_scaler": {"scale": 2.0}}, "'state_dict'"),
        ({"model_state": tagged(1), "optimizer_state": OPTIMIZER}, "'model_state'"),
        ({"model_state_dict": tagged(1), "loss": torch.tensor(0.1)}, "'model_state_dict'"),
        ({"model": tagged(1), "optimizer": OPTIMIZER, "ema": tagged(2)}, "'model' was taken, not 'ema'"),
        ({"net": tagged(1), "acc": 0.5, "epoch": 1}, "'net'"),
        ({"network": tagged(1)}, "'network'"),
        ({"params": tagged(1), "params_ema": tagged(2)}, "'params' was taken, not 'params_ema'"),
        ({"state_dict_ema": tagged(2), "state_dict": tagged(1)}, "'state_dict' was taken, not 'state_dict_ema'"),
        ({"ema": {"module": tagged(1)}, "epoch": 1}, "'ema' was taken, averaged weights: there are no plain ones"),
        ({"ema": {"decay": 0.99, "shadow": tagged(1)}}, "'shadow'"),
        ({"meta": {"epoch": 3}, "state_dict": tagged(1)}, "'state_dict'"),
        ({"segmenter": tagged(1), "steps": {"n": torch.tensor(1)}}, "'segmenter'"),
        ({"state_dict": {"model": tagged(1)}}, "'model'"),
        ({"module": {f"module.{k}": v for k, v in tagged(1).items()}}, "the prefix 'module.'"),
        (
            {"state_dict": {f"model.{k}": v for k, v in tagged(1).items()}, "callbacks": CALLBACKS},
            "the prefix 'model.'",
        ),
        ({**{f"module.{k}": v for k, v in tagged(1).items()}, "n_averaged": torch.tensor(3)}, "1 tensors beside"),
        ({f"_orig_mod.module.{k}": v for k, v in tagged(1).items()}, "the prefix 'module.'"),
        ({f"module.model._orig_mod.{k}": v for k, v in tagged(1).items()}, "the prefix '_orig_mod.'"),
        (
            {
                **{f"model.{k}": v for k, v in tagged(1).items()},
                **{f"ema_model.{k}": v for k, v in tagged(2).items()},
                **{"loss_fn.weight": torch.ones(2), "mean": torch.zeros(3), "std": torch.ones(3)},
                **{"train_iou.total": torch.ones(1), "criterion.ce.weight": torch.ones(2)},
            },
            "7 tensors beside the network",
        ),
        ({**tagged(1), "loss.weight": torch.ones(2), "head.total_ops": torch.zeros(1)}, "2 tensors beside"),
        ({**tagged(1), "head._extra_state": None}, None),
    ],
)
def test_the_state_dict_of_a_whole_training_is_found(
    saved: dict[str, Any], note: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "segzoo")
    torch.save(saved, tmp_path / "last.ckpt")
    state = read_state_dict(tmp_path / "last.ckpt")
    assert set(state) == set(STATE) and all((value == 1).all() for value in state.values())
    assert all(type(value) is Tensor and not value.requires_grad for value in state.values())
    notes = [r.getMessage() for r in caplog.records if r.name.startswith("segzoo")]
    assert not notes if note is None else any(note in text for text in notes), notes
    assert all(str(tmp_path / "last.ckpt") in text for text in notes)


def test_names_that_only_look_like_leftovers_stay() -> None:
    state = {"model.fc.bias": torch.zeros(1), "encoder.fc.bias": torch.zeros(1), "metric_head.bias": torch.zeros(1)}
    assert unwrap(state, "a").state.keys() == state.keys()
    parameters = {"fc.bias": nn.Parameter(torch.zeros(1))}
    assert not unwrap(parameters, "a").state["fc.bias"].requires_grad


def test_arguments_are_in_converted_files_only(tmp_path: Path) -> None:
    assert read_arguments(tmp_path / "none.safetensors") == read_arguments(tmp_path / "a.pth") == {}
    save_file(STATE, tmp_path / "a.safetensors", {"format": "pt"})
    assert read_arguments(tmp_path / "a.safetensors") == {}
    (tmp_path / "b.safetensors").write_bytes(b"no such thing")
    assert read_arguments(tmp_path / "b.safetensors") == {}
    for text in ("[1]", "{"):
        save_file(STATE, tmp_path / "a.safetensors", {"segzoo_arguments": text})
        with pytest.raises(ValueError, match="is no JSON object: convert the file again"):
            read_arguments(tmp_path / "a.safetensors")


def test_mask_rcnn_of_before_2022_has_todays_keys() -> None:
    """torchvision's own loading, which takes both, is the judge."""
    import torchvision

    with torch.device("meta"):
        theirs = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    today = theirs.state_dict()
    older = {}
    for key, value in today.items():
        for old, new in (("rpn.head.conv", "rpn.head.conv.0.0"), *((f"mask_fcn{i + 1}", f"{i}.0") for i in range(4))):
            if key.rpartition(".")[0].endswith(new) and ("mask_fcn" not in old or ".mask_head." in key):
                key = key.replace(f"{new}.", f"{old}.")
        if ".fpn." in key:
            key = key.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        older[key] = value
    assert len(older.keys() - today.keys()) == 2 * (4 + 1 + 8)
    theirs.load_state_dict(dict(older))  # strict
    assert mask_rcnn_from_older(older).keys() == today.keys() == unified(today).keys() == unified(older).keys()


def test_raw_keys_are_their_own(tmp_path: Path) -> None:
    torch.save({"model": {"rpn.head.conv.bias": torch.zeros(1)}}, tmp_path / "a.pth")
    assert list(read_raw(tmp_path / "a.pth").state) == ["rpn.head.conv.bias"]
    assert list(read_state_dict(tmp_path / "a.pth")) == ["rpn.head.conv.0.0.bias"]


def test_a_file_that_holds_itself_or_things_many_times_ends(tmp_path: Path) -> None:
    itself: dict[str, Any] = {"state_dict_ema": {"a.weight": torch.zeros(2, 2)}}
    itself["model"] = itself
    torch.save(itself, tmp_path / "itself.pth")
    with pytest.raises(ValueError, match=r"itself\.pth holds a state dict, if any, under 8 names or more"):
        read_state_dict(tmp_path / "itself.pth")
    wide: Any = {"nothing": 1}
    for _ in range(3):
        wide = {f"k{i}": wide for i in range(300)}
    torch.save({"model": wide}, tmp_path / "wide.pth")
    with pytest.raises(ValueError, match=r"wide\.pth holds no state dict"):
        read_state_dict(tmp_path / "wide.pth")


@pytest.mark.parametrize("value", [torch.zeros(2, 2).to_sparse(), torch.zeros(2, 2, device="meta")])
def test_tensors_without_plain_values_are_named(value: torch.Tensor, tmp_path: Path) -> None:
    torch.save({"a.weight": value, "a.bias": torch.zeros(2)}, tmp_path / "a.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of sparse tensors
        with pytest.raises(ValueError, match=r"a\.pth has 1 tensors without plain values.*\(a\.weight\)"):
            read_state_dict(tmp_path / "a.pth")


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    state = create_untrained("unet", base_channels=2).state_dict()
    state["head.weight"] = torch.ones_like(state["head.weight"], dtype=torch.int8)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"1 other kinds \(head\.weight int8\)"):
        segzoo.unet(weights=tmp_path / "a.pth", base_channels=2)


def test_a_strangers_names_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    torch.save({"a\nb\x1b[2J.weight": torch.zeros(2), "\u202ec.bias": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(ValueError) as caught:
        segzoo.u2net_lite(weights=tmp_path / "a.pth")
    assert str(caught.value).isprintable() and r"a\nb\x1b[2J" in str(caught.value)
    (tmp_path / "b.pth").write_bytes(b"\x80\x02cos\x1b[2J\n" + b"x" * 100000 + b"\n.")
    with pytest.raises(ValueError) as caught:
        read_state_dict(tmp_path / "b.pth")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_a_lightning_modules_own_name_for_its_network_is_taken_off(tmp_path: Path) -> None:
    state = create_untrained("unet", base_channels=2).state_dict()
    torch.save({"state_dict": {f"segmenter_net.{key}": value for key, value in state.items()}}, tmp_path / "a.ckpt")
    assert read_state_dict(tmp_path / "a.ckpt").keys() == state.keys()
