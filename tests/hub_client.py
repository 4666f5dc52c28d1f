"""Points this process's huggingface_hub, and those of processes it starts, to a server of the tests."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
OF_THE_USER = (
    "SSL_CERT_FILE",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_TOKEN_PATH",
    "HUGGINGFACE_HUB_CACHE",
    "HF_OIDC_RESOURCE",
)
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
# Modules that copy a constant when they are imported: imported before the constants change, or they would keep it.
COPIERS = ("hf_api", "file_download", "_commit_api", "lfs", "constants", "utils._http", "utils._headers")


class ShortTime:
    """The module ``time``, but for a sleep that is short: the client waits seconds before it tries again."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    @staticmethod
    def sleep(seconds: float) -> None:
        time.sleep(min(seconds, 0.01))


class Client:
    """What the tests change of the client after it was pointed to the server."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self._monkeypatch = home, monkeypatch

    @property
    def cache(self) -> Path:
        """HF_HUB_CACHE."""
        return self.home / "hub"

    def change(self, **constants: object) -> None:
        """Change constants of huggingface_hub wherever it has copies of them."""
        for module in modules():
            for name, value in constants.items():
                if name in vars(module):
                    self._monkeypatch.setattr(module, name, value)
        close_session()

    def log_in(self, token: str) -> None:
        """As ``hf auth login`` does: a token in a file."""
        (self.home / "token").write_text(token)

    def go_offline(self) -> None:
        """HF_HUB_OFFLINE=1, for this process and for those it starts."""
        self._monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        self.change(HF_HUB_OFFLINE=True)

    def be_impatient(self, seconds: float = 0.5) -> None:
        """Short timeouts, for a server that does not answer."""
        self.change(HF_HUB_ETAG_TIMEOUT=seconds, HF_HUB_DOWNLOAD_TIMEOUT=seconds, _ETAG_RETRY_TIMEOUT=seconds)


def modules() -> list[Any]:
    return [module for name, module in list(sys.modules.items()) if name.split(".")[0] == "huggingface_hub"]


def close_session() -> None:
    """Forget open connections: huggingface_hub keeps them (close_session from 1.0 on, reset_sessions before)."""
    from huggingface_hub.utils import _http

    close: Callable[[], None] = getattr(_http, "close_session", None) or _http.reset_sessions
    close()


def point_client(url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A clean home and the server's address, in the environment and in the client that is already imported."""
    for name in (*PROXIES, *OF_THE_USER, *OFFLINE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    environment = {"HF_ENDPOINT": url, "HF_HOME": home, "HF_HUB_CACHE": home / "hub", "TORCH_HOME": home / "torch"}
    switches = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "127.0.0.1"}
    no_certificates = {"SSL_CERT_DIR": home}  # reading those of the whole world takes each new session 50 ms
    for name, value in {**environment, **switches, **no_certificates, "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, os.fspath(value))

    home.mkdir(parents=True, exist_ok=True)
    import huggingface_hub
    import huggingface_hub.utils

    for name in (*COPIERS, *(f"utils.{each.name}" for each in pkgutil.iter_modules(huggingface_hub.utils.__path__))):
        if not name.startswith("utils.insecure"):
            importlib.import_module(f"huggingface_hub.{name}")
    client = Client(home, monkeypatch)
    client.change(
        ENDPOINT=url,
        HUGGINGFACE_CO_URL_TEMPLATE=url + "/{repo_id}/resolve/{revision}/{filename}",
        HF_HOME=str(home),
        HF_HUB_CACHE=str(home / "hub"),
        HUGGINGFACE_HUB_CACHE=str(home / "hub"),
        HF_ASSETS_CACHE=str(home / "assets"),
        HF_XET_CACHE=str(home / "xet"),
        HF_TOKEN_PATH=str(home / "token"),
        HF_STORED_TOKENS_PATH=str(home / "stored_tokens"),
        AGENT_HARNESSES_PATH=str(home / ".agent_harnesses.json"),
        HF_HUB_OFFLINE=False,
        HF_HUB_DISABLE_XET=True,
        HF_HUB_DISABLE_TELEMETRY=True,
        _registry=None,  # who calls: from 2.0 on the client asks the Hub once a day what assistants there are
    )
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", url)
    for module in modules():
        if vars(module).get("time") is time:
            monkeypatch.setattr(module, "time", ShortTime())
    return client


@pytest.fixture
def client(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """huggingface_hub, pointed to ``hub``, with an empty home."""
    with warnings.catch_warnings():
        # the client's own, when it uploads a large file without Xet
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
        yield point_client(hub.url, tmp_path / "home", monkeypatch)
    close_session()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub of the test's own, not yet known to any client."""
    with Hub() as server:
        yield server
    assert not server.errors, server.errors
