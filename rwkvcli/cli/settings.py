"""What the global options say, in the form that the rest of the command line uses."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rwkvcli.errors import RwkvError


class Color(StrEnum):
    """When to use colour."""

    auto = "auto"
    always = "always"
    never = "never"


@dataclass(frozen=True)
class Settings:
    """The global options of one run; None is "not said"."""

    model: str | None = None
    device: str | None = None
    gpu_layers: int | None = None
    threads: int | None = None
    draft: str | None = None
    offline: bool = False
    quiet: bool = False
    verbose: bool = False
    json: bool = False
    color: Color = Color.auto
    typed: frozenset[str] = frozenset()
    """The fields that the command line says, rather than the environment or the configuration."""
    stored_problem: RwkvError | None = None
    """Why the configuration cannot be read, for a verb that tells of it."""
