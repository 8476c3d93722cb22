"""Files that are either written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from quant.errors import InvalidRequest


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file beside `path` that takes its place, synced to disk, when the block ends, and vanishes when it fails.

    An interruption at any moment leaves what was at `path` before. A link stays: its target is replaced.
    Raises OSError, and InvalidRequest for what `replaceable` refuses.
    """
    final = replaceable(path)
    handle, name = tempfile.mkstemp(dir=final.parent, prefix=f".{final.name[:100]}.", suffix=".part")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes it private
        temporary.replace(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replaceable(path: str | os.PathLike[str]) -> Path:
    """Where the new file for `path` goes: to the end of its links, so that they stay.

    Raises InvalidRequest if anything but a regular file is there: renaming over a device would destroy it.
    """
    final = Path(os.path.realpath(path))
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return final
    except OSError as error:  # links in a circle, a name longer than the system takes
        raise InvalidRequest(f"{os.fspath(path)} cannot be written: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        raise InvalidRequest(f"{os.fspath(path)} is a folder", hint="Name a file inside it.")
    if not stat.S_ISREG(mode):
        raise InvalidRequest(f"{os.fspath(path)} is not a regular file", hint="Name another file.")
    return final


def new_file(
    path: str | os.PathLike[str], *, force: bool, kept: Mapping[str, str | os.PathLike[str]]
) -> Path:
    """`replaceable(path)`, if a file may be written there.

    `kept`: {what it is called: a file that is not to be replaced}. Raises InvalidRequest also for one of
    those, for a file that exists (unless `force`), and if the folder does not.
    """
    final = replaceable(path)
    folder = Path(path).parent
    if not final.parent.is_dir():
        raise InvalidRequest(
            f"the folder {folder if not folder.is_dir() else final.parent} does not exist",
            hint="Make it first, or name another.",
        )
    for name, other in kept.items():
        if final == Path(os.path.realpath(other)) or _is_same(final, other):
            raise InvalidRequest(f"{os.fspath(path)} is {name}", hint="Choose another file.")
    if final.exists() and not force:
        raise InvalidRequest(f"{os.fspath(path)} exists already", hint="Use --force to replace it.")
    return final


def _is_same(path: Path, other: str | os.PathLike[str]) -> bool:
    """Whether both are names of one file that exists."""
    try:
        return path.samefile(other)
    except OSError:
        return False
