"""The command in this process with a test server as its Hub: the real huggingface_hub, and no start of a process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_runner import Outcome, environment
from hub_server import COMMIT, Hub

from rwkvcli.cli.app import main
from rwkvcli.services import hub_errors

G1 = "BlinkDL/rwkv7-g1"
OLD = "rwkv7-g1c-0.1b-20260110-ctx8192.pth"
NEW = "rwkv7-g1d-0.1b-20260129-ctx8192.pth"
ODD = "rwkv7b-g1z-0.1b-20270101-ctx4096.pth"
"""The newest of all, but of another architecture."""
ANSWER = ("--max-tokens", "3", "--seed", "1", "x")


class Client:
    """Call it as the command line. `home` holds the cache and what is kept."""

    def __init__(
        self, hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        from huggingface_hub import constants

        self.hub, self.home, self.capfd = hub, home, capfd
        self.env = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(home),
            "RWKV_MODELS": str(home / "models"),
            "RWKV_SESSIONS": str(home / "sessions"),
            "HF_HUB_OFFLINE": "0",
        }
        for name, value in environment(**self.env).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.stdin", None)
        monkeypatch.setattr(hub_errors, "PAUSES", (0.0, 0.0, 0.0))
        # what the library takes from the environment when it is imported
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def __call__(self, *args: Any) -> Outcome:
        self.capfd.readouterr()
        code = main([str(arg) for arg in args])
        out, err = self.capfd.readouterr()
        return Outcome(code, out, err)

    def path(self, repo: str, file: str) -> Path:
        """Where a download stands."""
        folder = "models--" + repo.replace("/", "--")
        return self.home / "hub" / folder / "snapshots" / COMMIT / file

    def made(self, file: str, kind: str) -> Path:
        """Where what was made of a download is kept."""
        (found,) = (self.home / "models").glob(f"*/*/{Path(file).stem}-{kind}.safetensors")
        return found

    def files(self) -> list[str]:
        """Names of everything below `home` that is a file with content, without locks; notes of checksums as what they are."""
        return sorted(
            f"etag of {path.name}" if "etags" in path.parts else path.name
            for path in self.home.rglob("*")
            if path.is_file() and not path.is_symlink() and path.name not in ("lock", "CACHEDIR.TAG", "main")
            and path.suffix != ".lock" and "sessions" not in path.parts
        )  # fmt: skip
