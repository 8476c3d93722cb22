"""What is made of downloads: removed with its folder, unless somebody works on it or has it open."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rwkvcli.errors import UsageError
from rwkvcli.services import catalog, kept
from rwkvcli.services.kept import Origin
from rwkvcli.services.locks import left_behind, locked


@pytest.fixture
def origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Origin:
    """A download of which an int8 file was made."""
    monkeypatch.setenv("RWKV_MODELS", str(tmp_path / "models"))
    origin = Origin("a/b", "m.pth", "0" * 64, 100)
    with origin.locked():
        origin.write()
        origin.target("int8").write_bytes(b"model")
        (origin.folder / ".m-int4.safetensors.part").write_bytes(b"of a process that was killed")
    return origin


def test_the_last_model_file_takes_the_folder_along(origin: Origin) -> None:
    (item,) = kept.kept()
    kept.remove(item)
    assert kept.kept() == [] and not origin.folder.parent.exists() and kept.kept_path().exists()


def test_what_is_being_worked_on_stays(origin: Origin) -> None:
    (item,) = kept.kept()
    with (
        origin.locked(),
        pytest.raises(UsageError, match=r"a/b:m\.pth is being worked on by another process"),
    ):
        kept.remove(item)
    assert origin.target("int8").read_bytes() == b"model"


@pytest.mark.skipif(sys.platform != "win32", reason="files that are open can be removed here")
def test_what_is_open_stays_on_windows(origin: Origin) -> None:
    (entry,) = [entry for entry in catalog.entries() if entry.what == "int8"]
    with entry.path.open("rb"), pytest.raises(UsageError, match="another program has it open") as caught:
        catalog.remove(entry)
    assert caught.value.exit_code == 2 and str(entry.path) in str(caught.value)
    assert origin.target("int8").read_bytes() == b"model"
    catalog.remove(entry)
    assert not origin.folder.exists()


def test_a_lock_that_was_left_behind_is_told_from_one_that_is_held(tmp_path: Path) -> None:
    with left_behind(tmp_path / "lock") as is_free:
        assert not is_free  # there is none
    with locked(tmp_path / "lock"), left_behind(tmp_path / "lock") as is_free:
        assert not is_free
    with left_behind(tmp_path / "lock") as is_free:
        assert is_free
