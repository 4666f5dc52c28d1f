"""Models to the Hub and from it, with the real client against a server of ours: every file whole, or one sentence."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import build
from hub_client import Client
from hub_server import Hub
from PIL import Image
from test_pretrained import TERMS, assert_same, trained

import segzoo
import segzoo.weights.folder
import segzoo.weights.hub
import segzoo.weights.urls
from segzoo.models import FPN, SegmentationModel, UNet
from segzoo.weights import Source
from segzoo.weights.convert import read_state_dict
from segzoo.weights.fetch import fetch
from segzoo.weights.hub import hub_folder

BUNDLED = Path(segzoo.weights.hub.__file__).with_name("u2net_lite.duts.safetensors")
REPO = "zoo/cups"
NAME = f"hf-hub:{REPO}"
FILES = ["README.md", "config.json", "model.safetensors"]
ALICE = {"token": "hf_alice"}


def cups(seed: int = 0, **arguments: Any) -> UNet:
    """A small model; another ``seed`` has other weights and the same config but for their sha256."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = trained("unet", base_channels=2, num_classes=3, norm="group", **arguments)
    model.classes = tuple(f"class {i}" for i in range(model.num_classes))
    return model


def put(hub: Hub, folder: Path, repo: str = REPO, revision: str = "main") -> str:
    return hub.add_files(repo, {path.name: path.read_bytes() for path in sorted(folder.iterdir())}, revision=revision)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "cups"
    cups().save_pretrained(folder, **TERMS)
    return folder


@pytest.fixture(scope="module")
def better(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "better"
    cups(1).save_pretrained(folder, **TERMS)
    return folder


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (segzoo.weights.hub, segzoo.weights.urls):
        monkeypatch.setattr(module, "_PAUSE", 0.01)
    monkeypatch.setattr(segzoo.weights.folder, "_PATIENCE", 0.01)


@pytest.fixture
def there(hub: Hub, client: Client, saved: Path) -> Hub:
    """A Hub with the model in it, and a clean cache."""
    put(hub, saved)
    return hub


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and from then on any connection is an error, which the test gets however it was caught."""
    asked: list[object] = []

    def refuse(self: socket.socket, address: object) -> None:
        asked.append(address)
        raise AssertionError(f"the network was asked for something: {address}")

    def block() -> None:
        for name in ("connect", "connect_ex"):
            monkeypatch.setattr(socket.socket, name, refuse)

    yield block  # type: ignore[misc]
    assert not asked


def load(name: str = NAME, **options: Any) -> Any:
    return segzoo.create_model(name, **options).eval()


@lru_cache(maxsize=4)
def in_folder(folder: Path) -> Any:
    return segzoo.create_model(f"local-dir:{folder}").eval()


def same(model: Any, folder: Path) -> None:
    """Bit by bit the model in the folder."""
    assert_same(in_folder(folder), model)


def refusal(kind: type[Exception], *words: str, name: str = NAME, **options: Any) -> str:
    """The sentence that loading ends with."""
    with pytest.raises(kind) as caught:
        load(name, **options)
    return sentence(caught.value, name.removeprefix("hf-hub:").partition("@")[0], *words)


def sentence(error: BaseException, *words: str) -> str:
    text = str(error)
    assert "\n" not in text and not re.search(r"[.!?] [A-Z]", text) and not text.endswith("."), text
    assert len(text) < 800 and "Traceback" not in text and "object at 0x" not in text, text
    for word in words:
        assert word in text, text
    return text


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# The whole way: save, push, and back in a clean cache.


def test_what_is_pushed_comes_back(hub: Hub, client: Client, saved: Path, tmp_path: Path) -> None:
    model = cups()
    url = model.push_to_hub(REPO, **TERMS, **ALICE)
    commit = hub.repos[REPO].find("main")
    assert url == f"{hub.url}/{REPO}/commit/{commit}" and hub.repos[REPO].titles[commit] == "Push model using segzoo."
    assert sorted(hub.repos[REPO].commits[commit]) == [".gitattributes", *FILES]
    for file in ("config.json", "model.safetensors"):
        assert hub.read(REPO, file) == (saved / file).read_bytes(), file
    folder = hub_folder(NAME)
    assert folder.is_relative_to(client.cache) and folder.name == commit

    for again in (
        load(),
        SegmentationModel.from_pretrained(REPO),
        UNet.from_pretrained(NAME),
        segzoo.unet(weights=NAME).eval(),
    ):
        same(again, saved)
        assert again.weights.sources[0].repo == REPO and again.weights.sources[0].revision == commit
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors"}
    assert load(num_classes=2).num_classes == 2


def test_save_pretrained_pushes_too(hub: Hub, client: Client, saved: Path, tmp_path: Path) -> None:
    client.log_in("hf_alice")
    url = cups().save_pretrained(tmp_path / "cups", **TERMS, repo_id=REPO, push_to_hub=True, commit_message="Cups")
    commit = hub.repos[REPO].find("main")
    assert url == f"{hub.url}/{REPO}/commit/{commit}" and hub.repos[REPO].titles[commit] == "Cups"
    for file in FILES:
        assert hub.read(REPO, file) == (tmp_path / "cups" / file).read_bytes(), file
    cups().save_pretrained(tmp_path / "anvils", **TERMS, push_to_hub=True)  # by the folder's name, to the user's own
    assert load("hf-hub:alice/anvils").num_classes == 3
    same(load(), saved)


def test_the_card_says_how_the_pushed_model_is_loaded(hub: Hub, client: Client, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    cups().push_to_hub(REPO, **TERMS, **ALICE, private=False)
    text = hub.read(REPO, "README.md").decode()
    assert NAME in text or f'from_pretrained("{REPO}")' in text
    card = ModelCard(text)
    assert card.data.license == TERMS["license"] and card.data.library_name == "segzoo"


def test_options_of_a_push(hub: Hub, client: Client, saved: Path) -> None:
    cups().push_to_hub(REPO, **TERMS, **ALICE, private=True, commit_message="First")
    assert hub.repos[REPO].private
    cups(1).push_to_hub(REPO, **TERMS, **ALICE, branch="dev", ignore_patterns="*.md")
    cups(2).push_to_hub(REPO, **TERMS, **ALICE, create_pr=True)
    assert hub.repos[REPO].find("dev") != hub.repos[REPO].find("main") != hub.repos[REPO].find("refs/pr/1")
    before = hub.repos[REPO].find("main")
    same(load(**ALICE), saved)
    states = [load(f"{NAME}@{revision}", **ALICE).state_dict() for revision in ("main", "dev", "refs/pr/1")]
    assert len({sha256(b"".join(value.numpy().tobytes() for value in state.values())) for state in states}) == 3
    assert hub.read(REPO, "README.md", "dev") == hub.read(REPO, "README.md", "main")

    cups(3).push_to_hub(REPO, **TERMS, **ALICE, allow_patterns=["config.json"], delete_patterns=["*.safetensors"])
    assert "model.safetensors" not in hub.repos[REPO].commits[hub.repos[REPO].find("main")]
    assert before != hub.repos[REPO].find("main")


def test_a_stranger_may_propose(hub: Hub, client: Client, saved: Path, better: Path) -> None:
    put(hub, saved)
    cups(1).push_to_hub(REPO, **TERMS, token="hf_bob", create_pr=True)
    same(load(), saved)
    same(load(f"{NAME}@refs/pr/1"), better)


def test_no_progress_is_no_word(there: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    load(progress=False)
    segzoo.unet(weights=NAME, progress=False)
    assert capfd.readouterr() == ("", "")


def test_a_push_of_what_is_there_is_no_new_commit(hub: Hub, client: Client) -> None:
    first = cups().push_to_hub(REPO, **TERMS, **ALICE)
    assert cups().push_to_hub(REPO, **TERMS, **ALICE) == first and hub.count("/upload/*", "PUT") == 1


@pytest.mark.parametrize(
    ("token", "repo", "words"),
    [
        (None, REPO, ["hf auth login", "token"]),
        ("hf_reader", REPO, ["may not be written", "token"]),
        ("hf_bob", REPO, ["may not be written", "token"]),
        ("hf_expired", REPO, ["token"]),
    ],
)
def test_a_push_that_may_not_be(hub: Hub, client: Client, token: str | None, repo: str, words: list[str]) -> None:
    with pytest.raises(PermissionError) as caught:
        cups().push_to_hub(repo, **TERMS, token=token)
    sentence(caught.value, repo, *words)
    assert repo not in hub.repos


def test_a_push_that_fails_says_so(hub: Hub, client: Client) -> None:
    for break_it in (
        lambda: hub.fail("/api/repos/create", 500, method="POST", times=None),
        lambda: hub.fail("/upload/*", 500, method="PUT", times=None),
        lambda: hub.fail("/api/models/*/commit/*", 500, method="POST", times=None),
    ):
        break_it()
        with pytest.raises(ConnectionError) as caught:
            cups().push_to_hub(REPO, **TERMS, **ALICE)
        sentence(caught.value, REPO, "pushed", "500")
        hub.heal()
        assert REPO not in hub.repos or len(hub.repos[REPO].commits) == 1
    hub.fail("/upload/*", 503, method="PUT")
    assert cups().push_to_hub(REPO, **TERMS, **ALICE)
    with pytest.raises(ValueError, match="name") as raised:
        cups().push_to_hub("zoo/no/such/name", **TERMS, **ALICE)
    sentence(raised.value)
    with pytest.raises(ValueError, match="callable|cannot be saved") as raised:  # before anything is asked of the Hub
        hub.forget()
        build("unet", base_channels=2, norm=torch.nn.BatchNorm2d).push_to_hub(REPO, **TERMS, **ALICE)
    assert not hub.requests
    client.go_offline()
    with pytest.raises(ConnectionError) as caught:
        cups().push_to_hub(REPO, **TERMS, **ALICE)
    sentence(caught.value, REPO, "HF_HUB_OFFLINE")
    hub.stop()


# By revision.


def test_revisions(there: Hub, saved: Path, better: Path) -> None:
    first = there.repos[REPO].find("main")
    there.add_tag(REPO, "v1")
    second = put(there, better, revision="dev")
    put(there, better)
    for revision, folder in [("v1", saved), (first, saved), ("dev", better), (second, better), ("main", better)]:
        same(load(f"{NAME}@{revision}"), folder)
        same(load(revision=revision), folder)
    same(SegmentationModel.from_pretrained(REPO, revision="v1"), saved)
    same(segzoo.unet(weights=f"{NAME}@v1").eval(), saved)
    with pytest.raises(ValueError, match="revision"):
        load(f"{NAME}@v1", revision="dev")
    same(load(f"{NAME}@v1", revision="v1"), saved)


def test_config_and_weights_are_of_one_commit(there: Hub, saved: Path, better: Path) -> None:
    """main moves just after the config was fetched."""
    there.before("model.safetensors", lambda: put(there, better), method="HEAD")
    same(load(), saved)
    assert there.repos[REPO].find("main") != hub_folder(NAME).name
    same(load(force_download=True), better)
    same(load(), better)


def test_main_may_move_between_two_runs(there: Hub, client: Client, saved: Path, better: Path) -> None:
    """A run that got no further than the config, another after main has moved: never half of each."""
    there.fail("model.safetensors", 404, method="HEAD")
    with pytest.raises((OSError, ValueError)):
        load()
    put(there, better)
    found = load().state_dict()
    assert (
        sum(
            all(torch.equal(found[key], v) for key, v in read_state_dict(f / FILES[2]).items()) for f in (saved, better)
        )
        == 1
    )


def test_a_cached_model_stays_as_it_was_fetched(there: Hub, saved: Path, better: Path) -> None:
    same(load(), saved)
    put(there, better)
    there.forget()
    same(load(), saved)
    assert not there.requests
    same(load(force_download=True), better)
    there.forget()
    same(load(), better)
    same(load(f"{NAME}@{there.repos[REPO].find('main')}"), better)
    assert not there.requests


def test_a_name_is_a_folder_first(
    there: Hub, better: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    same(SegmentationModel.from_pretrained(REPO), saved)
    shutil.copytree(better, REPO)
    there.forget()
    same(SegmentationModel.from_pretrained(REPO), better)
    same(SegmentationModel.from_pretrained(f"local-dir:{REPO}"), better)
    for name in ("./zoo/cusp", "zoo/cusp/more", "/zoo/cusp", "cusp"):
        with pytest.raises(FileNotFoundError) as caught:
            SegmentationModel.from_pretrained(name)
        sentence(caught.value, "there is no folder")
    assert not there.requests
    same(SegmentationModel.from_pretrained(NAME), saved)
    for name, words in (("zoo/cusp", "did you mean zoo/cups"), ("animals/cats", "no such repository")):
        with pytest.raises(FileNotFoundError) as caught:
            SegmentationModel.from_pretrained(name)
        sentence(caught.value, name, words)
    with pytest.raises(ValueError, match="which is no FPN") as wrong:
        FPN.from_pretrained(NAME)
    sentence(wrong.value)


# What may be asked, and how.


def test_nothing_is_asked_once_cached(there: Hub, client: Client, saved: Path, no_network: Callable[[], None]) -> None:
    commit = there.repos[REPO].find("main")
    load()
    there.forget()
    client.change(_registry=None)  # another process would ask who calls
    (client.home / ".agent_harnesses.json").unlink(missing_ok=True)
    no_network()
    for again in (
        load(),
        load(f"{NAME}@main"),
        load(f"{NAME}@{commit}"),
        load(local_files_only=True),
        SegmentationModel.from_pretrained(REPO),
    ):
        same(again, saved)
    picture = np.arange(12 * 15 * 3, dtype=np.uint8).reshape(12, 15, 3)
    masks = [segzoo.Predictor(name, device="cpu")(picture).mask for name in (NAME, f"local-dir:{saved}")]
    assert np.array_equal(*masks)
    assert not there.requests
    there.stop()
    same(load(), saved)
    client.go_offline()
    same(load(), saved)
    there.start()


def test_loading_a_model_asks_for_two_files_and_nothing_else(there: Hub, client: Client) -> None:
    """Above all not for the weights of the encoder, which the checkpoint has."""
    folder = client.home / "fpn"
    trained("fpn", encoder="resnet10t", num_classes=2).save_pretrained(folder, **TERMS)
    put(there, folder, "zoo/fpn")
    there.forget()
    assert isinstance(load("hf-hub:zoo/fpn"), FPN)
    assert isinstance(segzoo.fpn(encoder="resnet10t", num_classes=2, weights="hf-hub:zoo/fpn"), FPN)
    asked = {
        re.sub(r"/resolve/[^/]+/", "/", request.path.partition("?")[0])
        for request in there.requests
        if request.host == "hub" and "harnesses" not in request.path
    }
    assert asked == {"/zoo/fpn/config.json", "/zoo/fpn/model.safetensors"}
    assert there.count("*.safetensors") == 2 and there.count("config.json") == 2  # HEAD and GET


def test_every_option_reaches_every_file(there: Hub, client: Client, saved: Path, better: Path, tmp_path: Path) -> None:
    there.repos[REPO].private = True
    put(there, better, revision="dev")
    options = {"cache_dir": tmp_path / "elsewhere", "revision": "dev", "token": "hf_alice"}
    same(load(**options), better)
    assert not client.cache.exists()
    asked = [request for request in there.requests if "/resolve/" in request.path]
    assert all(request.headers["authorization"] == "Bearer hf_alice" for request in asked)
    commit = there.repos[REPO].find("dev")
    assert {request.path.split("/")[4] for request in asked} <= {"dev", commit}

    there.forget()
    same(SegmentationModel.from_pretrained(REPO, **options, force_download=True), better)
    for file in FILES[1:]:
        assert there.count(file, "GET") == 1, file
    there.forget()
    same(load(**options, local_files_only=True), better)
    same(load(cache_dir=str(tmp_path / "elsewhere"), revision="dev"), better)  # a token is for downloads
    assert not there.requests
    refusal(FileNotFoundError, "not on this machine", local_files_only=True)
    refusal(
        FileNotFoundError,
        "not on this machine",
        revision="main",
        cache_dir=tmp_path / "elsewhere",
        local_files_only=True,
    )
    assert not there.requests
    with pytest.raises(ValueError, match="force_download") as caught:
        load(force_download=True, local_files_only=True)
    sentence(caught.value)


def test_offline(there: Hub, client: Client, saved: Path) -> None:
    client.go_offline()
    refusal(FileNotFoundError, "HF_HUB_OFFLINE", "segzoo download")
    assert not there.requests
    client.change(HF_HUB_OFFLINE=False)
    load()
    client.go_offline()
    there.forget()
    same(load(), saved)
    assert not there.requests


def test_the_download_command_prepares_for_being_offline(
    there: Hub, client: Client, saved: Path, better: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from segzoo.cli import main

    there.corrupt(FILES[2], at=-9)
    assert main(["download", NAME]) == 0
    name, path = capsys.readouterr().out.split()
    assert name == NAME and Path(path) == hub_folder(NAME) and Path(path).name == there.repos[REPO].find("main")
    put(there, better)
    there.forget()
    assert main(["download", NAME]) == 0 and not there.requests
    client.go_offline()
    same(load(), saved)
    client.change(HF_HUB_OFFLINE=False)
    assert main(["download", NAME, "--force"]) == 0
    same(load(), better)
    capsys.readouterr()
    assert main(["download", "hf-hub:zoo/cusp"]) == 2
    told = capsys.readouterr()
    assert not told.out and told.err.count("\n") == 1 and "no such repository" in told.err


def test_a_file_missing_from_the_cache_is_fetched_alone(there: Hub, saved: Path) -> None:
    folder = hub_folder(NAME)
    weights = folder / FILES[2]
    weights.resolve().unlink()
    weights.unlink()
    there.forget()
    same(load(), saved)
    assert there.count("config.json") == 0 and there.count(FILES[2], "GET") == 1


# Who may read.


def test_private_and_gated(there: Hub, client: Client, saved: Path) -> None:
    there.repos[REPO].private = True
    refusal(Exception, "hf auth login", "token")
    refusal(Exception, "hf auth login", "token", token="hf_bob")
    same(load(**ALICE), saved)
    put(there, saved, "zoo/gated")
    there.repos["zoo/gated"].gated = True
    refusal(PermissionError, "gated", "hf auth login", name="hf-hub:zoo/gated")
    refusal(PermissionError, "gated", name="hf-hub:zoo/gated", token="hf_bob")
    client.log_in("hf_alice")
    same(load("hf-hub:zoo/gated"), saved)
    put(there, saved, "zoo/open")
    refusal(PermissionError, "token", name="hf-hub:zoo/open", token="hf_expired")


def test_what_is_not_there(there: Hub, client: Client, saved: Path) -> None:
    refusal(FileNotFoundError, "no such repository", "check the name", name="hf-hub:zoo/cusp")
    refusal(FileNotFoundError, "no such repository", name="hf-hub:zoo/cusp", **ALICE)
    refusal(FileNotFoundError, "no such branch, tag or commit", name=f"{NAME}@v2")
    refusal(FileNotFoundError, "no such branch, tag or commit", revision="0" * 40)
    there.add_file("zoo/empty", "README.md", b"# Soon\n")
    refusal(FileNotFoundError, "has no config.json", "segzoo", name="hf-hub:zoo/empty")
    there.add_file("zoo/half", "config.json", (saved / "config.json").read_bytes())
    refusal(FileNotFoundError, "has no model.safetensors", name="hf-hub:zoo/half")
    for name in (
        "hf-hub:",
        "hf-hub:cups",
        "hf-hub:zoo/cups@",
        "hf-hub:zoo/cups/config.json",
        "hf-hub:zoo/c ps",
        "hf-hub:zoo/..cups",
    ):
        with pytest.raises(ValueError) as caught:
            load(name)
        sentence(caught.value, "hf-hub:org/repo")


def test_other_peoples_repositories(there: Hub) -> None:
    configs = {
        "transformers": {"architectures": ["SegformerForSemanticSegmentation"], "model_type": "segformer"},
        "smp": {"_model_class": "Unet", "encoder_name": "resnet34", "classes": 1},
        "timm": {"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": {}},
        "mixin": {"hidden_size": 2},
    }
    for name, config in configs.items():
        text = json.dumps(config).encode()
        there.add_files(f"zoo/{name}", {"config.json": text, "model.safetensors": b"\0" * 100})
        there.forget()
        refusal(ValueError, "segzoo", name=f"hf-hub:zoo/{name}")
        assert there.count("config.json", "GET") == 1, f"{name}: it is not damaged, so once is enough"


# When things break.


def test_a_dropped_connection_goes_on_where_it_was(there: Hub, client: Client, saved: Path) -> None:
    client.change(DOWNLOAD_CHUNK_SIZE=1000)  # it keeps whole blocks, of 10 MB
    dropped = there.drop("model.safetensors", after=5000, times=2)
    same(load(), saved)
    assert dropped.hits == 2
    ranges = [request.headers.get("range") for request in there.requests if request.host == "cdn"]
    assert ranges == [None, "bytes=5000-", "bytes=10000-"]


@pytest.mark.parametrize("file", FILES[1:])
def test_a_connection_that_always_drops(there: Hub, client: Client, saved: Path, file: str) -> None:
    there.drop(file, after=10, times=None)
    refusal(ConnectionError, file, "try again")
    refusal(FileNotFoundError, "not on this machine", local_files_only=True)
    there.heal()
    same(load(), saved)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("file", FILES[1:])
def test_a_damaged_download_is_fetched_once_more(there: Hub, saved: Path, file: str, force: bool) -> None:
    there.corrupt(file, at=-9)
    same(load(force_download=force), saved)
    assert there.count(file, "GET") == 2
    there.forget()
    same(load(), saved)
    assert not there.requests


def test_weights_that_are_always_wrong(there: Hub, client: Client, saved: Path) -> None:
    content = (saved / FILES[2]).read_bytes()
    wrong = content[:-9] + bytes([content[-9] ^ 0xFF]) + content[-8:]
    there.corrupt(FILES[2], at=-9, times=None)
    text = refusal(ValueError, sha256(content), sha256(wrong), str(client.cache), FILES[2])
    assert there.count(FILES[2], "GET") == 2 and text.count(sha256(wrong)) == 1
    refusal(ValueError, sha256(wrong))
    there.heal()
    same(load(), saved)


def test_weights_that_are_wrong_in_the_cache(there: Hub, saved: Path, no_network: Callable[[], None]) -> None:
    """A disk's fault: found, and mended where there is a network."""
    weights = hub_folder(NAME) / FILES[2]
    load()
    damaged = bytearray(weights.read_bytes())
    damaged[-9] ^= 0xFF
    for content in (bytes(damaged), bytes(damaged[:-20]), b"", b"version https://git-lfs.github.com/spec/v1\n"):
        weights.write_bytes(content)
        refusal(ValueError, local_files_only=True)
        there.forget()
        same(load(), saved)
        assert there.count(FILES[2], "GET") == 1
    weights.write_bytes(damaged)
    there.stop()
    refusal(ValueError, sha256(damaged), str(weights))
    there.start()
    same(load(), saved)


def test_a_damaged_file_is_mended_as_it_was(there: Hub, saved: Path, better: Path) -> None:
    """A fault of the disk is no reason to take what main has moved to."""
    weights = hub_folder(NAME) / FILES[2]
    weights.write_bytes(b"damaged")
    put(there, better)
    same(load(), saved)


def test_an_update_that_fails_leaves_what_was_there(there: Hub, client: Client, saved: Path, better: Path) -> None:
    load()
    put(there, better)
    there.drop(FILES[2], after=100, times=None)
    refusal(ConnectionError, "try again", force_download=True)
    client.go_offline()
    same(load(), saved)
    client.change(HF_HUB_OFFLINE=False)
    there.heal()
    same(load(force_download=True), better)


def test_a_config_that_is_wrong_in_the_cache(there: Hub, saved: Path) -> None:
    config = hub_folder(NAME) / FILES[1]
    for content in (b"", b"{", config.read_bytes()[:-30]):
        config.write_bytes(content)
        same(load(), saved)


def test_a_repository_whose_own_files_do_not_fit(there: Hub, saved: Path, better: Path) -> None:
    there.add_file(REPO, FILES[2], (better / FILES[2]).read_bytes())
    refusal(ValueError, sha256((saved / FILES[2]).read_bytes()), sha256((better / FILES[2]).read_bytes()))
    assert there.count(FILES[2], "GET") == 2


def test_a_server_that_is_overloaded_for_a_moment(there: Hub, client: Client, saved: Path, tmp_path: Path) -> None:
    for number, (file, method) in enumerate((file, method) for file in FILES[1:] for method in ("HEAD", "GET")):
        failed = there.fail(file, 503, method=method)
        same(load(cache_dir=tmp_path / str(number)), saved)
        assert failed.hits == 1
    there.truncate(FILES[2], to=1000)
    try:
        same(load(cache_dir=tmp_path / "e"), saved)
    except ConnectionError as error:
        sentence(error, REPO, "try again")
        same(load(cache_dir=tmp_path / "e"), saved)


def test_a_server_that_is_broken(there: Hub, saved: Path) -> None:
    for method, file in (("HEAD", FILES[1]), ("HEAD", FILES[2]), ("GET", FILES[2])):
        there.fail(file, 500, method=method, times=None)
        refusal(ConnectionError, "500", "try again")
        there.heal()
    same(load(), saved)


def test_a_server_that_does_not_answer(there: Hub, client: Client, saved: Path) -> None:
    for method, after in (("HEAD", None), ("GET", 1000)):
        client.be_impatient(0.05)
        there.stall(FILES[2], after, method=method, times=None)
        refusal(ConnectionError, "try again")
        there.heal()
    client.be_impatient(30)
    same(load(), saved)


def test_a_server_that_is_gone(there: Hub, client: Client, saved: Path, tmp_path: Path) -> None:
    load()
    there.stop()
    same(load(), saved)
    refusal(ConnectionError, "network", cache_dir=tmp_path / "empty")
    refusal(ConnectionError, "network", force_download=True)
    same(load(), saved)  # what was there still is
    there.start()
    same(load(force_download=True), saved)


def test_a_portal_that_answers_for_everybody(hub: Hub, client: Client) -> None:
    """The log-in page of a hotel's network: 200, HTML, none of the Hub's headers."""
    url = hub.publish("zoo/cups/resolve/main/config.json", b"<html>Please log in</html>")
    client.change(HUGGINGFACE_CO_URL_TEMPLATE=f"{hub.url}/files/{{repo_id}}/resolve/{{revision}}/{{filename}}")
    assert url.endswith("config.json")
    refusal(ConnectionError, "HF_ENDPOINT")


@pytest.mark.parametrize("variable", ["http_proxy", "all_proxy"])
def test_behind_a_proxy(
    there: Hub, client: Client, saved: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the proxy knows where the Hub is."""
    monkeypatch.setenv(variable, there.url)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    template = "http://hub.invalid/{repo_id}/resolve/{revision}/{filename}"
    client.change(ENDPOINT="http://hub.invalid", HUGGINGFACE_CO_URL_TEMPLATE=template)
    same(load(), saved)
    assert there.count("config.json", "GET") == 1


def test_a_cache_that_cannot_be_written(there: Hub, client: Client, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        load(cache_dir=tmp_path / "file")
    sentence(caught.value, str(tmp_path / "file"))


# More than one process.


LOAD = """
import sys, torch, segzoo
model = segzoo.create_model({name!r}).eval()
x = torch.linspace(0, 1, 3 * 40 * 33).reshape(1, 3, 40, 33)
torch.save(model.predict(x), sys.argv[1])
"""


def start(*arguments: object) -> subprocess.Popen[str]:
    """Python, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(segzoo.__file__).parents[1]), *sys.path])}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_then_two_processes_at_once(there: Hub, client: Client, saved: Path, tmp_path: Path) -> None:
    stalled = there.stall("model.safetensors", after=3000)
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1])['hub_folder'](sys.argv[2])"  # the module alone, without torch
    )
    killed = start("-c", code, segzoo.weights.hub.__file__, NAME)
    assert stalled.seen.wait(60)
    killed.kill()
    killed.communicate()
    assert killed.returncode < 0
    refusal(FileNotFoundError, "not on this machine", local_files_only=True)
    assert list(client.cache.rglob("*.incomplete")) and not list(client.cache.rglob("snapshots/*/model.safetensors"))

    same(load(), saved)
    shutil.rmtree(client.cache)
    there.forget()
    begun, together = threading.Event(), threading.Barrier(2)
    there.before("model.safetensors", lambda: together.wait(60), method="HEAD", times=2)
    there.before("config.json", begun.set, method="HEAD")
    other = start("-c", LOAD.format(name=NAME), tmp_path / "other.pt")
    assert begun.wait(60)
    same(load(), saved)
    _, errors = other.communicate(timeout=120)
    assert other.returncode == 0, errors
    x = torch.linspace(0, 1, 3 * 40 * 33).reshape(1, 3, 40, 33)
    theirs = torch.load(tmp_path / "other.pt", weights_only=True)  # by a process with as many threads as it likes
    torch.testing.assert_close(theirs, load().predict(x), rtol=0, atol=1e-6)
    assert 1 <= there.count("model.safetensors", "GET") <= 2
    there.forget()
    same(load(), saved)
    assert not there.requests


@pytest.mark.slow
def test_the_whole_way_in_processes_of_their_own(hub: Hub, client: Client, coffee: Path, tmp_path: Path) -> None:
    push = f"""
import segzoo
model = segzoo.unet(base_channels=2, norm="group").eval()
model.save_pretrained({str(tmp_path / "local")!r}, license="cc-by-4.0", training_data={{"ours": "CC0"}})
print(model.push_to_hub({REPO!r}, license="cc-by-4.0", training_data={{"ours": "CC0"}}, token="hf_alice"))
"""
    url, errors = start("-c", push).communicate(timeout=120)
    assert url.strip().startswith(f"{hub.url}/{REPO}/commit/"), errors

    with Image.open(coffee) as image:
        image.resize((60, 40)).save(tmp_path / "in.png")
    command = ["-m", "segzoo", "predict", tmp_path / "in.png", tmp_path / "out.png", "--overwrite", "--device", "cpu"]
    process = start(*command, "--model", NAME)
    answers = process.communicate(timeout=120)
    assert process.returncode == 0, answers
    expected = segzoo.Predictor(f"local-dir:{tmp_path / 'local'}", device="cpu")(tmp_path / "in.png").mask
    with Image.open(tmp_path / "out.png") as written:
        assert np.array_equal(np.asarray(written), expected)

    hub.forget()
    process = start(*command, "--model", NAME)
    answers = process.communicate(timeout=120)
    assert process.returncode == 0, answers
    assert not hub.requests
    process = start(*command, "--model", "hf-hub:zoo/cusp")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and "no such repository" in errors and errors.count("\n") <= 2, errors


# A record of the catalogue, whose file is on the Hub or at its publisher's.


PUBLISHED = "weights/u2net_lite.safetensors"


@pytest.fixture(scope="module")
def weights() -> bytes:
    return Path(segzoo.weights.hub.__file__).with_name("u2net_lite.duts.safetensors").read_bytes()


@pytest.fixture
def small() -> bytes:
    from safetensors.torch import save

    return save({"a": torch.arange(1000.0)})


def record(*sources: Source) -> segzoo.Weights:
    return dataclasses.replace(segzoo.get_weights("u2net_full.duts"), sources=sources)


def on_hub(content: bytes, repo: str = "zoo/mirror", **facts: Any) -> Source:
    return Source("hub", PUBLISHED, sha256(content), repo=repo, **facts)


def at_publishers(hub: Hub, content: bytes, name: str = "u2net.safetensors") -> Source:
    return Source("url", hub.publish(name, content), sha256(content))


def values(path: Path) -> float:
    return float(read_state_dict(path)["a"].sum())


@pytest.fixture
def mirror(hub: Hub, client: Client, small: bytes) -> Hub:
    hub.add_file("zoo/mirror", PUBLISHED, small)
    return hub


def test_a_record_comes_from_the_first_source_that_has_it(mirror: Hub, client: Client, small: bytes) -> None:
    commit = mirror.repos["zoo/mirror"].find("main")
    wanted = record(on_hub(small, revision=commit), at_publishers(mirror, small))
    path = fetch(wanted, progress=False)
    assert values(path) == 499500 and mirror.count("/files/*") == 0
    mirror.forget()
    assert fetch(wanted, progress=False) == path and not mirror.requests
    mirror.stop()
    assert fetch(wanted, progress=False, local_files_only=True) == path
    mirror.start()
    assert fetch(wanted, progress=False, force_download=True) == path and mirror.count(PUBLISHED, "GET") == 1


@pytest.mark.parametrize(
    "breaks",
    [
        lambda hub: hub.fail("*resolve*", 500, method="HEAD", times=None),
        lambda hub: setattr(hub.repos["zoo/mirror"], "private", True),
        lambda hub: hub.repos.clear(),
        lambda hub: hub.corrupt(PUBLISHED, at=-1, times=None),
        lambda hub: hub.drop(PUBLISHED, after=100, times=None),
        lambda hub: hub.add_file("zoo/mirror", PUBLISHED, b"something else", large=True),
    ],
    ids=["broken", "private", "gone", "corrupt", "dropped", "changed"],
)
def test_the_next_source_is_tried(
    mirror: Hub, client: Client, small: bytes, breaks: Callable[[Hub], object], caplog: pytest.LogCaptureFixture
) -> None:
    breaks(mirror)
    wanted = record(on_hub(small), at_publishers(mirror, small))
    assert values(fetch(wanted, progress=False)) == 499500
    assert mirror.count("/files/*", "GET") == 1
    if mirror.repos and not mirror.repos["zoo/mirror"].private and mirror.count(PUBLISHED, "GET"):
        assert f"hf-hub:zoo/mirror/{PUBLISHED} failed" in caplog.text


@pytest.mark.parametrize("kind", ["hub", "url"])
def test_a_wrong_file_is_fetched_once_more_then_refused(mirror: Hub, client: Client, small: bytes, kind: str) -> None:
    wrong = small[:-1] + bytes([small[-1] ^ 0xFF])
    source = on_hub(small) if kind == "hub" else at_publishers(mirror, small)
    pattern = PUBLISHED if kind == "hub" else "/files/*"
    for number, force in enumerate((False, True), 1):
        mirror.corrupt(pattern, at=-1)
        assert values(fetch(record(source), progress=False, force_download=force)) == 499500
        assert mirror.count(pattern, "GET") == 2 * number

    mirror.corrupt(pattern, at=-1, times=None)
    with pytest.raises(ConnectionError) as caught:
        fetch(record(source), progress=False, force_download=True)
    text = sentence(caught.value, "u2net_full.duts", sha256(small), sha256(wrong), "pass its path as weights=")
    assert kind == "url" or str(client.cache) in text
    mirror.heal()
    assert values(fetch(record(source), progress=False)) == 499500


def test_a_file_whose_digest_only_the_hub_knows(mirror: Hub, client: Client, small: bytes) -> None:
    source = Source("hub", PUBLISHED, None, repo="zoo/mirror")
    mirror.corrupt(PUBLISHED, at=-1)
    assert values(fetch(record(source), progress=False)) == 499500 and mirror.count(PUBLISHED, "GET") == 2
    mirror.corrupt(PUBLISHED, at=-1, times=None)
    with pytest.raises(ConnectionError) as caught:
        fetch(record(source), progress=False, force_download=True)
    sentence(caught.value, sha256(small))


FETCH = """
import dataclasses, sys, segzoo
from segzoo.weights import Source
from segzoo.weights.fetch import fetch
sources = (Source("url", sys.argv[1], sys.argv[2]),)
print(fetch(dataclasses.replace(segzoo.get_weights("u2net_full.duts"), sources=sources), progress=False))
"""


@pytest.mark.slow
def test_a_publishers_file_killed_then_two_processes_at_once(mirror: Hub, client: Client, small: bytes) -> None:
    source = at_publishers(mirror, small)
    stalled = mirror.stall("/files/*", after=1000)
    killed = start("-c", FETCH, source.location, source.sha256)
    assert stalled.seen.wait(60)
    killed.kill()
    killed.communicate()
    with pytest.raises(FileNotFoundError):
        fetch(record(source), progress=False, local_files_only=True)
    processes = [start("-c", FETCH, source.location, source.sha256) for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert len({path for path, _ in answers}) == 1 and values(Path(answers[0][0].strip())) == 499500
    assert mirror.count("/files/*", "GET") == 2  # the killed one's, and one for both
    mirror.stop()
    assert values(fetch(record(source), progress=False)) == 499500


def test_when_no_source_has_it_each_answer_is_told(mirror: Hub, client: Client, small: bytes) -> None:
    mirror.repos.clear()
    wanted = record(on_hub(small), dataclasses.replace(at_publishers(mirror, small), location=f"{mirror.url}/files/no"))
    with pytest.raises(ConnectionError) as caught:
        fetch(wanted, progress=False)
    sentence(caught.value, "zoo/mirror", "no such repository", "/files/no", "404")
    with pytest.raises(FileNotFoundError) as missing:
        fetch(wanted, progress=False, local_files_only=True)
    sentence(missing.value, "u2net_full.duts", "segzoo download u2net_full.duts")


def test_a_publisher_who_drops_stalls_or_is_overloaded(mirror: Hub, small: bytes, tmp_path: Path) -> None:
    wanted = record(at_publishers(mirror, small))
    for number, break_it in enumerate(
        (
            lambda: mirror.drop("/files/*", after=1000),
            lambda: mirror.fail("/files/*", 503),
            lambda: mirror.drop("/files/*"),
        )
    ):
        break_it()
        assert values(fetch(wanted, progress=False, cache_dir=tmp_path / str(number))) == 499500
    assert [request.headers.get("range") for request in mirror.requests if "/files/" in request.path][
        1
    ] == "bytes=1000-"
    mirror.fail("/files/*", 500, times=None)
    with pytest.raises(ConnectionError) as caught:
        fetch(wanted, progress=False, cache_dir=tmp_path / "e")
    sentence(caught.value, "500")


@pytest.fixture
def published(u2netp_onnx: Path, hub: Hub, client: Client) -> Iterator[Hub]:
    hub.publish("u2netp.onnx", u2netp_onnx.read_bytes())
    yield hub


def test_the_real_file_of_a_publisher(published: Hub, u2netp_onnx: Path) -> None:
    source = Source("url", f"{published.url}/files/u2netp.onnx", sha256(u2netp_onnx.read_bytes()))
    wanted = dataclasses.replace(segzoo.get_weights("u2net_lite.duts"), sources=(source,))
    published.drop("/files/*", after=1_000_000)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = segzoo.u2net_lite(weights=fetch(wanted, progress=False)).eval()
    assert torch.equal(model.predict(x), segzoo.u2net_lite(weights=u2netp_onnx).eval().predict(x))
    published.stop()
    assert fetch(wanted, progress=False).is_file()


# What readers of this code have found.


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_a_file_whose_digest_nobody_published_is_checked_by_the_hubs(
    damaged: int, links: bool, hub: Hub, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the cache's links, whose names are digests, and without, as on Windows."""
    import huggingface_hub.file_download as downloads

    monkeypatch.setattr(downloads, "are_symlinks_supported", lambda *args: links)
    hub.add_file("zoo/segformer", "pytorch_model.bin", BUNDLED.read_bytes())
    record = dataclasses.replace(
        segzoo.get_weights("segformer.b0_ade20k"),
        sources=(Source("hub", "pytorch_model.bin", None, repo="zoo/segformer"),),
    )
    if damaged:
        hub.corrupt("pytorch_model.bin", at=-10, times=damaged)
    if damaged == 2:
        with pytest.raises(ConnectionError, match="has sha256 [0-9a-f]{64}, and the Hub says [0-9a-f]{64}"):
            fetch(record, progress=False)
        return
    path = fetch(record, progress=False)
    hub.forget()
    assert fetch(record, progress=False) == path and not hub.requests


def test_what_an_older_converter_kept_is_converted_anew(
    hub: Hub, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_file("zoo/mirror", "a.safetensors", BUNDLED.read_bytes())
    source = Source("hub", "a.safetensors", sha256(BUNDLED.read_bytes()), repo="zoo/mirror")
    record = dataclasses.replace(segzoo.get_weights("u2net_full.duts"), sources=(source,))
    first = fetch(record, progress=False)
    monkeypatch.setattr("segzoo.weights.fetch._CONVERSION", 2)
    assert fetch(record, progress=False) not in (first, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: config.update(num_classes=5, classes=None), "as its config.json describes it, does not fit"),
        (lambda config: config["arguments"].update(num_classes=9), "arguments must not hold num_classes"),
        (lambda config: config["arguments"].update(weights="duts"), "arguments must not hold weights"),
        (lambda config: config["arguments"].update(norm="batch"), "as its config.json describes it, does not fit"),
        (lambda config: config.update(in_channels=4), "4 numbers, a channel each|does not fit"),
    ],
)
def test_a_config_that_says_otherwise_than_the_weights(
    change: Callable[[dict[str, Any]], object], words: str, saved: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    change(config)
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words):
        segzoo.create_model(f"local-dir:{tmp_path / 'model'}")


def test_a_server_that_breaks_off_here_and_there_is_given_up(hub: Hub, tmp_path: Path) -> None:
    url = hub.publish("a.bin", b"x" * 1000)
    lengths = iter([400, 600] * 100)
    hub.truncate("/files/*", 500, times=None)
    tries: list[int] = []

    def breaks_off(url: str, path: Path, progress: bool) -> None:
        path.write_bytes(b"x" * next(lengths))
        tries.append(1)
        raise ConnectionError("broke off")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segzoo.weights.urls, "_append", breaks_off)
        with pytest.raises(ConnectionError, match="broke off"):
            segzoo.weights.urls.download(url, tmp_path / "a.bin", progress=False)
    assert len(tries) < 10


def test_the_home_folder(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cups().save_pretrained("~/model", **TERMS)
    same(segzoo.create_model("local-dir:~/model").eval(), tmp_path / "model")
    segzoo.unet(weights="~/model/model.safetensors", base_channels=2, norm="group")


@pytest.mark.parametrize(("branch", "place"), [(None, "hf-hub:alice/mine"), ("exp", "hf-hub:alice/mine@exp")])
def test_the_card_names_what_was_pushed(branch: str | None, place: str, hub: Hub, client: Client) -> None:
    cups().push_to_hub("mine", **TERMS, **ALICE, branch=branch)
    card = hub.read("alice/mine", "README.md", branch or "main").decode()
    assert f'segzoo.Predictor("{place}")' in card
    load(re.findall(r'create_model\("(hf-hub:[^"]+)"\)', card)[0])


def test_after_ones_own_push_the_new_model_is_loaded(there: Hub, saved: Path) -> None:
    same(load(), saved)
    newer = cups(5)
    newer.push_to_hub(REPO, **TERMS, **ALICE)
    assert_same(newer.eval(), load())


def test_a_branch_that_another_tool_has_moved_on_is_no_loss_offline(
    there: Hub, client: Client, saved: Path, better: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from huggingface_hub import hf_hub_download

    load()
    put(there, better)
    hf_hub_download(REPO, "config.json")  # which moves main on, without the weights
    client.go_offline()
    same(load(), saved)
    assert "not all is on this machine" in caplog.text


def test_a_full_disk_is_not_the_networks_fault(hub: Hub, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_file("zoo/mirror", "a.safetensors", BUNDLED.read_bytes())
    known = sha256(BUNDLED.read_bytes())
    sources = (Source("hub", "a.safetensors", known, repo="zoo/mirror"), Source("url", hub.publish("b", b"b"), known))
    record = dataclasses.replace(segzoo.get_weights("u2net_full.duts"), sources=sources)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("segzoo.weights.fetch.write_state_dict", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        fetch(record, progress=False)
    assert not isinstance(caught.value, ConnectionError) and hub.count("/files/*") == 0


def test_a_cache_of_converted_files_that_cannot_be_written(
    hub: Hub, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file/torch"))
    record = segzoo.get_weights("u2net_full.duts")
    with pytest.raises(FileNotFoundError, match="are not on this machine, and local_files_only was given"):
        fetch(record, local_files_only=True)
    with pytest.raises(OSError, match="cannot be written .*: set TORCH_HOME, or give cache_dir="):
        fetch(record)


def test_an_address_of_the_hub_that_is_none(client: Client) -> None:
    client.change(ENDPOINT="hf-mirror.com")
    with pytest.raises(
        ValueError, match="HF_ENDPOINT is 'hf-mirror.com', expected an address such as https://hf-mirror"
    ):
        load()


def test_options_that_would_do_nothing_are_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="cache_dir='x' is for weights, and 'unet' is made without"):
        segzoo.create_model("unet", cache_dir="x")
    with pytest.raises(ValueError, match="local_files_only is for weights, and 'fpn' is made without"):
        segzoo.create_model("fpn", local_files_only=True)
    client.go_offline()
    with pytest.raises(ValueError, match="force_download fetches files again, and HF_HUB_OFFLINE is set"):
        load(force_download=True)
    with pytest.raises(OSError, match="resnet50.* not on this machine .*HF_HUB_OFFLINE is set"):
        segzoo.deeplabv3_resnet50(weights=None, encoder_weights="imagenet")
