"""What tests of several folders say about their small models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

VERSIONS = ["4", "5.0", "5.1", "5.2", "6", "7"]

ModelMaker = Callable[..., Path]
