"""Symbolic links, where they can be made."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


def link(path: Path, to: str | Path) -> None:
    """Make `path` a symbolic link. Skips the test where Windows has no privilege for that."""
    try:
        path.symlink_to(to)
    except OSError:
        if sys.platform != "win32":
            raise
        pytest.skip("symbolic links take a privilege on Windows")
