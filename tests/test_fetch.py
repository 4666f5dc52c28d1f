"""Getting weights: real downloads from a server on loopback, checked, cached, and whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save

import segzoo
from segzoo.registry import create_untrained
from segzoo.weights import Source
from segzoo.weights.fetch import fetch

PAYLOAD = save({"a": torch.arange(1000.0)})
SHA256 = hashlib.sha256(PAYLOAD).hexdigest()


class Handler(BaseHTTPRequestHandler):
    requests: list[str]

    def do_GET(self) -> None:
        self.server.requests.append(self.path)  # type: ignore[attr-defined]
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        body = PAYLOAD if "corrupt" not in self.path else PAYLOAD[:-1] + b"\xff"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:100] if "dropped" in self.path else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("segzoo.weights.urls._PAUSE", 0.01)
    return tmp_path / "hub" / "segzoo"


def record(server: ThreadingHTTPServer, *paths: str, sha256: str = SHA256) -> segzoo.Weights:
    place = f"http://127.0.0.1:{server.server_address[1]}"
    sources = tuple(Source("url", f"{place}/{path}", sha256) for path in paths)
    return dataclasses.replace(segzoo.get_weights("u2net_full.duts"), sources=sources)


def left_in(cache: Path) -> list[str]:
    """What is there, but for locks."""
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.suffix != ".lock")


def test_download_then_no_request(server, cache: Path) -> None:
    wanted = record(server, "u2net.safetensors")
    path = fetch(wanted, progress=False)
    assert path.parent == cache and segzoo.weights.convert.read_state_dict(path)["a"].sum() == 499500
    assert fetch(wanted, progress=False) == path
    assert server.requests == ["/u2net.safetensors"]
    assert left_in(cache) == sorted([path.name, path.with_suffix(".sha256").name])

    path.write_bytes(save({"a": torch.zeros(1000)}))  # somebody else's file under that name
    assert fetch(wanted, progress=False) == path and len(server.requests) == 2
    assert segzoo.weights.convert.read_state_dict(path)["a"].sum() == 499500


def test_the_next_source_is_tried(server, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = fetch(record(server, "missing.onnx", "corrupt.safetensors", "good.safetensors"), progress=False)
    assert path.is_file()
    assert server.requests == ["/missing.onnx", "/corrupt.safetensors", "/corrupt.safetensors", "/good.safetensors"]
    first, second = (entry.message for entry in caplog.records if "failed" in entry.message)
    assert "missing.onnx failed (the server answered 404)" in first and second.endswith("good.safetensors was used")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing.onnx", "404"),
        ("corrupt.safetensors", f"corrupt.safetensors .the file has sha256 [0-9a-f]{{64}}, expected {SHA256}"),
        ("dropped.safetensors", "connection was lost after 100 of"),
    ],
)
def test_failures_are_one_sentence_and_leave_nothing(server, cache: Path, path: str, words: str) -> None:
    with pytest.raises(ConnectionError, match=words) as caught:
        fetch(record(server, path), progress=False)
    assert str(caught.value).startswith("could not get the weights u2net_full.duts: http://127.0.0.1")
    assert "pass its path as weights=" in str(caught.value)
    assert left_in(cache) == []


def test_a_server_that_is_gone(server, cache: Path) -> None:
    wanted = record(server, "u2net.safetensors")
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match="refused"):
        fetch(wanted, progress=False)


def test_bundled_weights_need_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert segzoo.u2net_lite().num_classes == 1


def test_a_wrong_bundled_file_is_never_loaded(server, cache: Path) -> None:
    bundled = Source("bundled", "u2net_lite.duts.safetensors", "0" * 64)
    wanted = dataclasses.replace(segzoo.get_weights("u2net_lite.duts"), sources=(bundled,))
    with pytest.raises(ConnectionError, match="has sha256 [0-9a-f]{64}, expected 0000"):
        fetch(wanted)


def test_torchvisions_files_are_checked_by_the_digits_in_their_names(
    server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Default weights of a factory, from the publisher's URL of its record to the very values in the model."""
    reference = torchvision.models.get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None).eval()
    buffer = io.BytesIO()
    torch.save(reference.state_dict(), buffer)
    digits = hashlib.sha256(buffer.getvalue()).hexdigest()[:8]
    monkeypatch.setattr(sys.modules[__name__], "PAYLOAD", buffer.getvalue())
    place = f"http://127.0.0.1:{server.server_address[1]}"
    published = segzoo.get_weights("lraspp_mobilenet_v3_large.coco_voc")

    def serve(file: str, sha256: str) -> None:
        ours = dataclasses.replace(published, sources=(Source("url", f"{place}/{file}", sha256),))
        monkeypatch.setattr("segzoo.weights.resolve.get_weights", lambda name: ours)

    serve("lraspp-corrupt.pth", digits)
    with pytest.raises(ConnectionError, match=f"has sha256 .*, expected {digits}"):
        segzoo.lraspp_mobilenet_v3_large(progress=False)
    serve("lraspp.pth", digits)
    model = segzoo.lraspp_mobilenet_v3_large(progress=False).eval()
    x = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(x)["out"])
    assert model.classes is not None and model.classes[15] == "person"
    assert model.preprocessing.size_for((375, 500)) == (520, 693)
    asked = len(server.requests)
    segzoo.lraspp_mobilenet_v3_large(progress=False)
    assert len(server.requests) == asked  # cached


def test_a_whole_checkpoint_fetches_no_backbone(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = create_untrained("deeplabv3plus", encoder="resnet10t", decoder_channels=16).state_dict()
    torch.save(state, tmp_path / "whole.pth")

    def refused(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was asked of the network")

    monkeypatch.setattr("socket.socket.connect", refused)
    segzoo.deeplabv3plus("resnet10t", weights=tmp_path / "whole.pth", decoder_channels=16)  # encoder_weights="imagenet"
