"""What the global options say, in the form that the rest of the command line uses."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
