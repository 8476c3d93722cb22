"""Downloads that break at any byte, and what errors below the library become; `tests/cli` has the rest."""

from __future__ import annotations

import errno
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hub_client import Client
from hub_server import Hub, HubFile, Repo

from rwkvcli.errors import FormatError, NetworkError, NoSpace, RwkvError, UsageError
from rwkvcli.services import hub as service
from rwkvcli.services.hub_errors import as_our_errors
from rwkvcli.services.store import Reference


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            OSError(errno.EROFS, "Read-only file system", "/mnt/hub"),
            UsageError,
            "/mnt/hub: read-only file system",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/mnt"), UsageError, "/mnt: permission denied"),
        (OSError(errno.EIO, "Input/output error", "/mnt"), RwkvError, "/mnt: input/output error"),
        (OSError(errno.ENOSPC, "No space left on device"), NoSpace, "a/b:m.pth: the disk is full"),
        (
            ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
            NetworkError,
            "cannot be reached",
        ),
    ],
)
def test_the_disk_and_the_network_are_told_apart(error: OSError, kind: type, message: str) -> None:
    with pytest.raises(RwkvError) as caught, as_our_errors(Reference("a/b", "m.pth")):
        raise error
    assert type(caught.value) is kind
    assert message in str(caught.value)
    assert caught.value.hint is not None and ("HF_HOME" in caught.value.hint) == (kind is not NetworkError)


@pytest.mark.parametrize("seed", range(4))
def test_interruptions_at_random_bytes(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever breaks and however often: under the final name there is nothing, or all of it."""
    draw = random.Random(seed)
    data = draw.randbytes(1_500_000)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with Hub() as hub:
        Client(hub, tmp_path, monkeypatch, capfd)
        file = HubFile(data)
        hub.repos["a/b"] = Repo({"m.pth": file})
        blob = tmp_path / "hub" / "models--a--b" / "blobs" / file.etag
        done = None
        for _ in range(60):
            file.stop_after, file.stops = draw.randrange(400_000), draw.randrange(8)
            file.ignores_range = draw.random() < 0.2
            file.sent_instead = bytes(len(data)) if draw.random() < 0.15 else None
            file.statuses = draw.choices([500, 503, 429, 404, 403], k=draw.randrange(2))
            hub.repos["a/b"].statuses = draw.choices([500, 502, 200], k=draw.randrange(6))
            try:
                done = service.download(Reference("a/b", "m.pth"))
                break
            except (NetworkError, FormatError, RwkvError):
                assert not blob.exists()
        assert done is not None and done.read_bytes() == data
        # without links the file of the snapshot is the only one
        assert [path.name for path in blob.parent.iterdir()] == ([file.etag] if done.is_symlink() else [])


def test_a_failure_after_the_last_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with Hub() as hub:
        client = Client(hub, tmp_path, monkeypatch, capfd)
        hub.repos["a/b"] = Repo({"m.pth": HubFile(b"1234"), "n.pth": HubFile(b"12345")})
        hub.repos["a/b"].statuses = [200, 200, 502]  # its facts, its bytes, its facts for the library
        assert service.download(Reference("a/b", "m.pth")).read_bytes() == b"1234"
        hub.repos["a/b"].statuses = [200, 200, *[502] * 30]
        if client.path("a/b", "m.pth").is_symlink():
            with pytest.raises(NetworkError, match=r"the Hub answered 502 for a/b:n\.pth"):
                service.download(Reference("a/b", "n.pth"))
        else:  # the file is in its place, and the library is content
            service.download(Reference("a/b", "n.pth"))
        hub.repos["a/b"].statuses = []
        hub.requests.clear()
        assert service.download(Reference("a/b", "n.pth")) == client.path("a/b", "n.pth")
        assert hub.downloads() == []  # no byte is fetched twice


def test_a_server_that_goes_silent_is_given_up_and_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    with Hub() as hub:
        client = Client(hub, tmp_path, monkeypatch, capfd)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
        monkeypatch.setattr(time, "sleep", lambda _: None)
        file = HubFile(bytes(range(256)) * 4000, stall_after=300_000)
        hub.repos["a/b"] = Repo({"m.pth": file, "n.pth": HubFile(file.data[::-1], stall_after=0)})
        assert service.download(Reference("a/b", "m.pth")).read_bytes() == file.data
        asked = [request.range for request in hub.downloads() if request.path.startswith("/cdn/")]
        assert len(asked) > 2 and asked[0] is None and None not in asked[1:]
        with pytest.raises(NetworkError, match="cannot be reached"):
            service.download(Reference("a/b", "n.pth"))
        assert not client.path("a/b", "n.pth").exists()
        hub.repos["a/b"].files["n.pth"].stall_after = None
        assert service.download(Reference("a/b", "n.pth")).read_bytes() == file.data[::-1]


@pytest.mark.parametrize("way", ["right", "wrong bytes", "fails"])
def test_xet_is_used_when_asked_for_and_checked_like_the_rest(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants, file_download

    data = bytes(range(256)) * 4000
    calls = []

    def xet_get(*, incomplete_path: Path, xet_file_data: Any, expected_size: int, **_: Any) -> None:
        calls.append((xet_file_data.file_hash, expected_size))
        incomplete_path.write_bytes(data if way == "right" else data[::-1])
        if way == "fails":
            raise RuntimeError("no route to the storage")

    monkeypatch.setattr(file_download, "xet_get", xet_get)
    monkeypatch.setattr(file_download, "is_xet_available", lambda: True)
    with Hub() as hub:
        Client(hub, tmp_path, monkeypatch, capfd)
        file = HubFile(data, xet=True)
        hub.repos["a/b"] = Repo({"m.pth": file, "n.pth": HubFile(data[::-1], xet=True)})
        assert service.download(Reference("a/b", "n.pth")).read_bytes() == data[::-1]
        assert calls == []  # it is not asked for
        monkeypatch.setattr(constants, "HF_XET_HIGH_PERFORMANCE", True)
        if way == "wrong bytes":
            with pytest.raises(FormatError, match="another checksum"):
                service.download(Reference("a/b", "m.pth"))
        else:
            path = service.download(Reference("a/b", "m.pth"))
            assert path.read_bytes() == data
            assert (
                len({item.name for item in path.resolve().parent.iterdir()}) == 2
            )  # nothing beside both files
        assert calls == [(file.etag, len(data))]
        assert any(r.path.endswith("/cdn/a/b/m.pth") for r in hub.requests) == (way == "fails")
