"""What is at a path, told alike by every Python."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from quant.paths import is_there
from tests.links import link

not_on_windows = pytest.mark.skipif(sys.platform == "win32", reason="Windows takes it for a name of nothing")


def test_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert is_there(tmp_path) and is_there(file)
    assert (
        not is_there(tmp_path / "nothing")
        and not is_there(file / "below")
        and not is_there(tmp_path / "a\0b")
    )


def test_links_are_what_they_lead_to(tmp_path: Path) -> None:
    link(tmp_path / "to nothing", "nothing")
    link(tmp_path / "round", "round")
    link(tmp_path / "to folder", tmp_path)
    assert is_there(tmp_path / "to folder")
    assert not is_there(tmp_path / "to nothing") and not is_there(tmp_path / "round")


@not_on_windows
def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File name too long"):
        is_there(tmp_path / ("a" * 300))


@pytest.mark.skipif(
    sys.platform == "win32" or (hasattr(os, "geteuid") and os.geteuid() == 0), reason="root may look anywhere"
)
def test_a_folder_that_may_not_be_searched(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    try:
        with pytest.raises(PermissionError):
            is_there(closed / "file")
    finally:
        closed.chmod(0o700)
