"""Errors of the `quant` package: one base class, one exit code per kind, an optional hint.

A message is one short line that names the file or tensor; what to do about it is the separate `hint`.
"""

from __future__ import annotations

from typing import Any, ClassVar


class QuantError(Exception):
    """Base of every error that `quant` raises on purpose.

    `exit_code` is the process exit code that a command line should end with; `hint` is one line of advice or
    None.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is, whatever its kind is made of: an error that cannot be unpickled leaves a pool of processes waiting."""
        return _again, (type(self), self.args), self.__dict__


class InvalidRequest(QuantError):
    """The request makes no sense: an already quantized source, an unknown format, sizes that do not fit."""

    exit_code: ClassVar[int] = 2


class SourceNotFound(QuantError):
    """The source file is missing, is a folder, or cannot be read."""

    exit_code: ClassVar[int] = 3


class FormatError(QuantError):
    """The file is corrupt, truncated, hostile, or not a checkpoint."""

    exit_code: ClassVar[int] = 4


class UnsupportedModel(FormatError):
    """The file is sound, but holds a model or a layout that is not supported; the message says which."""


class UnsafePickle(FormatError):
    """The pickle refers to a global or uses an opcode that could run code; the message names it."""


class NoSpace(QuantError):
    """The disk has not enough room for the file to be written."""

    exit_code: ClassVar[int] = 5


class Cancelled(QuantError):
    """The caller asked to stop; nothing was written."""

    exit_code: ClassVar[int] = 130


def quoted(text: str, limit: int = 80) -> str:
    """`text` out of a file, made safe for a message.

    Control characters are escaped, and what goes past `limit` characters is cut off.
    """
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return "".join(ch if ch.isprintable() else ch.encode("unicode_escape").decode("ascii") for ch in text)


def amount(nbytes: int) -> str:
    """A size for a message: `597 kB`, `1.58 GB`; decimal units, three digits."""
    value, unit = float(nbytes), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            break
        value /= 1000
    digits = 0 if unit == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


def _again(kind: type[QuantError], args: tuple[object, ...]) -> QuantError:
    return kind.__new__(kind, *args)
