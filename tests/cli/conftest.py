"""A small model and a Hub that all tests of the command line share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runner import HUB_LINKS
from hub_client import G1, ODD, OLD, Client
from hub_server import Hub, HubFile, Repo
from quant_models import checkpoint, quantized

from quant.synthetic import synthetic_arch


@pytest.fixture(scope="session")
def pth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random RWKV-7 checkpoint over raw bytes."""
    arch = synthetic_arch("7", 2, 128, 256, 64)
    return checkpoint(tmp_path_factory.mktemp("checkpoint") / "small.pth", arch, "bf16")


@pytest.fixture(scope="session")
def model(pth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file made of it, unquantized."""
    out = tmp_path_factory.mktemp("model") / "small-bf16.safetensors"
    quantized(pth, out, "bf16")
    return out


@pytest.fixture
def folder(tmp_path: Path, pth: Path, model: Path) -> Path:
    """A folder to work in, with the checkpoint as small.pth and the model as small.safetensors."""
    (tmp_path / "small.pth").write_bytes(pth.read_bytes())
    (tmp_path / "small.safetensors").write_bytes(model.read_bytes())
    return tmp_path


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub with nothing on it."""
    with Hub() as server:
        yield server


@pytest.fixture(params=[pytest.param(True, marks=HUB_LINKS), False], ids=["links", "no links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the disk with the Hub's cache has symbolic links."""
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *_: request.param)
    return bool(request.param)


@pytest.fixture
def client(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], pth: Path
) -> Client:
    """The command in this process; the Hub has g1-0.1b, and nothing is here."""
    hub.repos[G1] = Repo(
        {
            OLD: HubFile(pth.read_bytes()),
            ODD: HubFile(b"not for us"),
            "README.md": HubFile(b"x", lfs=False),
        }
    )
    return Client(hub, tmp_path, monkeypatch, capfd)
