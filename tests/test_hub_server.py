"""The tests' own Hub, with the real huggingface_hub alone: what it says is what the client expects of the real one."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.utils import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

WEIGHTS = hashlib.shake_256(b"weights").digest(300_000)
CONFIG = b'{"a": 1}\n'
REPO = "zoo/model"
CARD = "---\nlicense: apache-2.0\n---\n# A model\n"


def get(file: str = "model.safetensors", repo: str = REPO, **options: object) -> bytes:
    return Path(hf_hub_download(repo, file, **options)).read_bytes()


def insist(**options: object) -> bytes:
    """Clients before 1.0 give up at once; what came they keep, and go on from there when they are asked again."""
    try:
        return get(**options)
    except OSError:
        return get(**options)


@pytest.fixture
def stocked(hub, client):
    hub.add_files(REPO, {"config.json": CONFIG, "model.safetensors": WEIGHTS})
    return hub


def folder(tmp_path: Path, **files: bytes) -> Path:
    place = tmp_path / "folder"
    place.mkdir(exist_ok=True)
    for name, content in {"README.md": CARD.encode(), "config.json": CONFIG, "model.safetensors": WEIGHTS}.items():
        (place / name).write_bytes(files.get(name.partition(".")[0], content))
    return place


def test_push_then_download_by_branch_commit_tag_and_pull_request(hub, client, tmp_path: Path) -> None:
    api = HfApi(token="hf_alice")
    url = api.create_repo(REPO, exist_ok=True)
    assert url.repo_id == REPO and api.create_repo(REPO, exist_ok=True).repo_id == REPO
    first = api.upload_folder(repo_id=REPO, folder_path=folder(tmp_path), commit_message="First")
    assert first.commit_url == f"{hub.url}/{REPO}/commit/{first.oid}" and len(first.oid) == 40
    assert get() == WEIGHTS and get("config.json") == CONFIG and get("README.md") == CARD.encode()
    api.create_tag(REPO, tag="v1")
    api.create_branch(REPO, branch="dev", exist_ok=True)

    changed = folder(tmp_path, config=b'{"a": 2}\n', model=WEIGHTS[::-1])
    second = api.upload_folder(repo_id=REPO, folder_path=changed, revision="dev")
    third = api.upload_folder(repo_id=REPO, folder_path=folder(tmp_path, model=b"pull"), create_pr=True)
    assert third.pr_revision == "refs/pr/1" and third.pr_url == f"{hub.url}/{REPO}/discussions/1"
    for revision in ("main", "v1", first.oid):
        assert get(revision=revision) == WEIGHTS and get("config.json", revision=revision) == CONFIG
    for revision in ("dev", second.oid):
        assert get(revision=revision) == WEIGHTS[::-1] and get("config.json", revision=revision) == b'{"a": 2}\n'
    for revision in ("refs/pr/1", third.oid):
        assert get(revision=revision) == b"pull"

    refs = api.list_repo_refs(REPO, include_pull_requests=True)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first.oid, "dev": second.oid}
    assert [ref.name for ref in refs.tags] == ["v1"] and refs.pull_requests[0].target_commit == third.oid
    assert sorted(api.list_repo_files(REPO)) == [".gitattributes", "README.md", "config.json", "model.safetensors"]
    assert api.model_info(REPO).sha == first.oid and api.whoami()["name"] == "alice"
    [info] = api.get_paths_info(REPO, ["model.safetensors"])
    assert info.lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest() and info.size == len(WEIGHTS)


def test_push_again_deletes_and_skips_what_is_there(hub, client, tmp_path: Path) -> None:
    api = HfApi(token="hf_alice")
    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=folder(tmp_path))
    uploads = hub.count("/upload/*", "PUT")
    assert uploads == 1
    again = api.upload_folder(repo_id=REPO, folder_path=folder(tmp_path))
    assert again.oid == hub.repos[REPO].find("main") and hub.count("/upload/*", "PUT") == uploads
    place = folder(tmp_path, config=b"{}\n")
    (place / "model.safetensors").unlink()
    api.upload_folder(repo_id=REPO, folder_path=place, delete_patterns="*.safetensors")
    with pytest.raises(EntryNotFoundError):
        get()
    assert get("config.json") == b"{}\n"


def test_large_files_come_from_elsewhere_and_the_token_stays(hub, client) -> None:
    hub.add_repo(REPO, private=True)
    hub.add_files(REPO, {"config.json": CONFIG, "model.safetensors": WEIGHTS})
    assert get(token="hf_alice") == WEIGHTS
    [elsewhere] = [request for request in hub.requests if request.host == "cdn"]
    assert "authorization" not in elsewhere.headers
    assert all(
        request.headers["authorization"] == "Bearer hf_alice"
        for request in hub.requests
        if request.host == "hub" and "/resolve/" in request.path
    )


def test_private_gated_and_missing(hub, client) -> None:
    hub.add_repo("alice/private", private=True)
    hub.add_file("alice/private", "config.json", CONFIG)
    hub.add_repo("alice/gated", gated=True)
    hub.add_file("alice/gated", "config.json", CONFIG)
    hub.add_file("alice/open", "config.json", CONFIG)
    status = {}
    for name, repo, token in [
        ("anonymous", "alice/private", False),
        ("stranger", "alice/private", "hf_bob"),
        ("missing", "alice/missing", False),
    ]:
        with pytest.raises(RepositoryNotFoundError) as caught:
            get("config.json", repo, token=token)
        status[name] = caught.value.response.status_code
    assert status == {"anonymous": 401, "stranger": 404, "missing": 401}
    with pytest.raises(GatedRepoError):
        get("config.json", "alice/gated")
    with pytest.raises(GatedRepoError):
        get("config.json", "alice/gated", token="hf_bob")
    with pytest.raises((HfHubHTTPError, LocalEntryNotFoundError)):
        get("config.json", "alice/open", token="hf_unknown")
    with pytest.raises(RevisionNotFoundError):
        get("config.json", "alice/open", revision="nowhere")
    with pytest.raises(EntryNotFoundError):
        get("nothing.json", "alice/open")
    assert get("config.json", "alice/private", token="hf_alice") == CONFIG
    client.log_in("hf_alice")
    assert get("config.json", "alice/gated") == CONFIG


def test_a_push_needs_a_token_with_the_right_to_write(hub, client, tmp_path: Path) -> None:
    place = folder(tmp_path)
    hub.add_file(REPO, "config.json", CONFIG)
    for token, status in ((False, 401), ("hf_reader", 403), ("hf_bob", 403)):
        with pytest.raises(HfHubHTTPError) as caught:
            HfApi(token=token).create_repo("zoo/new")
        assert caught.value.response.status_code == status
        with pytest.raises(HfHubHTTPError) as caught:
            HfApi(token=token).upload_folder(repo_id=REPO, folder_path=place)
        assert caught.value.response.status_code == status
    pull = HfApi(token="hf_bob").upload_folder(repo_id=REPO, folder_path=place, create_pr=True)
    assert pull.pr_revision == "refs/pr/1" and hub.read(REPO, "model.safetensors", "refs/pr/1") == WEIGHTS
    (place / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(ValueError, match="YAML"):
        HfApi(token="hf_alice").upload_folder(repo_id=REPO, folder_path=place)


def test_faults(stocked, client) -> None:
    hub = stocked
    client.change(DOWNLOAD_CHUNK_SIZE=10_000)  # it keeps whole blocks, of 10 MB
    dropped = hub.drop("model.safetensors", after=100_000)
    assert insist() == WEIGHTS and dropped.hits == 1
    assert [request.headers.get("range") for request in hub.requests if request.host == "cdn"] == [
        None,
        "bytes=100000-",
    ]

    hub.fail("model.safetensors", 503, method="HEAD")
    assert insist(cache_dir=client.home / "b") == WEIGHTS

    hub.corrupt("model.safetensors", at=7)
    damaged = get(cache_dir=client.home / "c")  # the client trusts what has the right length
    assert len(damaged) == len(WEIGHTS) and [a != b for a, b in zip(damaged, WEIGHTS)].index(True) == 7
    assert get(cache_dir=client.home / "c", force_download=True) == WEIGHTS

    hub.truncate("model.safetensors", to=1000)
    with pytest.raises(OSError, match="Consistency check failed"):
        get(cache_dir=client.home / "d")
    assert get(cache_dir=client.home / "d") == WEIGHTS

    broken = hub.fail("model.safetensors", 500, method="HEAD", times=None)
    assert get() == WEIGHTS  # as it was fetched
    with pytest.raises((LocalEntryNotFoundError, HfHubHTTPError)):
        get(cache_dir=client.home / "e")
    assert broken.hits >= 2
    hub.heal()

    client.be_impatient(0.3)
    stalled = hub.stall("model.safetensors", after=1000)
    assert insist(cache_dir=client.home / "f") == WEIGHTS and stalled.seen.is_set()
    moved = []
    hub.before("config.json", lambda: moved.append(hub.add_file(REPO, "config.json", b"{}")), method="HEAD")
    assert get("config.json") == b"{}" and len(moved) == 1
    assert hub.count("config.json", "HEAD") == 1 and hub.count(f"{REPO}/*", "HEAD") > 5


def test_gone_and_back(stocked, client) -> None:
    assert get() == WEIGHTS
    stocked.stop()
    assert get() == WEIGHTS
    with pytest.raises(LocalEntryNotFoundError):
        get("config.json")
    stocked.start()
    assert get("config.json") == CONFIG
    client.go_offline()
    stocked.forget()
    assert get() == WEIGHTS and not stocked.count("*/resolve/*")
    with pytest.raises(LocalEntryNotFoundError):
        get("config.json", cache_dir=client.home / "b")


def test_another_process_finds_the_server_and_the_home(stocked, client) -> None:
    code = f"from huggingface_hub import hf_hub_download as get; print(get({REPO!r}, 'model.safetensors'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    path = Path(done.stdout.strip())
    assert path.is_relative_to(client.cache) and path.read_bytes() == WEIGHTS


def test_a_publishers_file(hub, client) -> None:
    import torch

    url = hub.publish("weights.pth", WEIGHTS)
    target = client.home / "weights.pth"
    torch.hub.download_url_to_file(url, str(target), hashlib.sha256(WEIGHTS).hexdigest(), progress=False)
    assert target.read_bytes() == WEIGHTS and hub.count("/files/weights.pth") == 1
    hub.fail("/files/*", 404)
    with pytest.raises(OSError, match="404"):
        torch.hub.download_url_to_file(url, str(target), progress=False)
