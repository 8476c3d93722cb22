"""The prompt of one run, put together from stdin, files and the argument."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from rwkvcli.cli.console import is_terminal
from rwkvcli.cli.pipes import can_read
from rwkvcli.errors import SourceNotFound

STDIN = "-"
_BOM = b"\xef\xbb\xbf"
_PIECE = 1 << 20
_PATIENCE = 1.0


def gather_prompt(
    argument: str | None, files: Sequence[str], *, keep_newline: bool = False, piped: bool = True
) -> bytes | None:
    """Stdin, then the files, then the argument, joined by one blank line; empty ones are none. None: nobody gave
    anything.

    Stdin is read when it is no terminal (unless `piped` is False: it is something else), or where `-` stands for it.
    Bytes that are not UTF-8 stay. `keep_newline`: the newline at the end of stdin and files stays too.
    """
    parts = []
    if piped and STDIN not in files and argument != STDIN:
        text = _read_stdin(keep_newline)
        if text:
            parts.append(text)
    for name in files:
        parts.append(
            _read_stdin(keep_newline, asked=True)
            if name == STDIN
            else normalized(read_file(name, "-f takes a file to read text from"), keep_newline)
        )
    if argument == STDIN:
        parts.append(_read_stdin(keep_newline, asked=True))
    elif argument is not None:
        parts.append(argument_bytes(argument))
    return b"\n\n".join(filter(None, parts)) if parts else None


def read_lines(name: str, hint: str) -> list[bytes]:
    """The lines of a file, or of stdin for `-`, without their ends; those that are empty or only white space are left
    out. `hint`: what the file is to be."""
    data = _read_stdin(True, asked=True) if name == STDIN else normalized(read_file(name, hint), True)
    return [line for line in data.split(b"\n") if line.strip()]


def why_no_text() -> str:
    """Why there is nothing on stdin."""
    return "stdin is a terminal" if is_terminal(sys.stdin) else "stdin is empty"


def argument_bytes(argument: str) -> bytes:
    """The bytes of an argument as they were typed, whatever encoding Python took them for."""
    return os.fsencode(argument)


def argument_text(argument: str) -> str:
    """An argument as text; bytes that are not UTF-8 become U+FFFD."""
    return argument_bytes(argument).decode("utf-8", "replace")


def normalized(data: bytes, keep_newline: bool = False) -> bytes:
    """Text as it comes from files and pipes: no BOM, LF for CRLF, not the newline at the end."""
    text = data.removeprefix(_BOM).replace(b"\r\n", b"\n")
    return text if keep_newline else text.removesuffix(b"\n")


def _read_stdin(keep_newline: bool, asked: bool = False) -> bytes:
    """What stdin holds; nothing when it is closed, or a terminal and nobody asked for it."""
    stream: BinaryIO | None = getattr(sys.stdin, "buffer", None)
    if stream is None or (is_terminal(sys.stdin) and not asked):
        return b""
    return normalized(_read_all(stream, waits=sys.platform == "win32"), keep_newline)


def opened(name: str) -> BinaryIO:
    """The file `name`, to be read. Raises OSError, of a folder IsADirectoryError (Windows says that it may not be read), and
    RuntimeError for a home folder that is not there."""
    path = Path(name).expanduser()
    if sys.platform == "win32" and path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    return path.open("rb")


def read_file(name: str, hint: str, most: int = -1) -> bytes:
    """The file `name`, or its first `most` bytes. Raises SourceNotFound with `hint`."""
    try:
        with opened(name) as file:
            return _read_all(file) if most < 0 else file.read(most)
    except RuntimeError:  # expanduser's
        raise SourceNotFound(f"{name}: there is no such home folder") from None
    except OSError as error:
        raise SourceNotFound(f"{name}: {(error.strerror or str(error)).lower()}", hint=hint) from None


def _read_all(stream: BinaryIO, *, waits: bool = False) -> bytes:
    """All of it, in pieces: Python looks at signals between two calls, and in one only while that has to wait, which an
    endless stream may never make it do. On Windows it does not in a call that waits for a pipe (`waits`) either."""
    pieces = []
    while True:
        while waits and not can_read(stream.fileno(), _PATIENCE):
            pass
        pieces.append(stream.read1(_PIECE))  # type: ignore[attr-defined]
        if not pieces[-1]:
            return b"".join(pieces)
