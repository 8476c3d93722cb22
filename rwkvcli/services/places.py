"""Places of the person's that environment variables name, and what is said when one cannot be used."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from quant.paths import is_there
from rwkvcli.errors import UsageError

_NO_FOLDER = (errno.ENOTDIR, errno.EEXIST)
_WRONG_PLACE = (
    *_NO_FOLDER, errno.EISDIR, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG,
)  # fmt: skip

_INVALID_NAME = 123
"""The error of Windows for a name with `?` or the like."""


def is_wrong_place(error: OSError) -> bool:
    """Whether another place would do: a full disk, for one, is not that."""
    return error.errno in _WRONG_PLACE or getattr(error, "winerror", None) == _INVALID_NAME


@dataclass(frozen=True)
class Place:
    """A folder, or the file in it, that `variable` names; without it, `default()`."""

    variable: str
    holds: str
    """What it is: "folder for conversations"."""
    default: Callable[[], Path]

    def path(self) -> Path:
        """Where it is, whether it can be used or not. Raises UsageError for a home folder that does not exist."""
        asked = os.environ.get(self.variable)
        if not asked:
            path = self._usual()
            if path is None:
                raise UsageError("HOME is not set, and this user has no home folder", hint=self._hint)
            return path
        try:
            return Path(asked).expanduser()
        except RuntimeError:
            raise self._error(f"{self.variable}={asked}", "there is no such home folder") from None

    def is_known(self) -> bool:
        """Whether it is anywhere: it is not for a user without a home folder, if nothing says where."""
        return bool(os.environ.get(self.variable)) or self._usual() is not None

    def told(self) -> str:
        """Where it is, for people."""
        if not self.is_known():
            return f"nowhere: neither HOME nor {self.variable} is set"
        try:
            return str(self.path())
        except UsageError as error:
            return str(error)

    def _usual(self) -> Path | None:
        """The default; None without a home folder, of which platformdirs makes an error or a relative path."""
        try:
            path = self.default()
        except RuntimeError:
            return None
        return path if path.is_absolute() else None

    def check(self) -> None:
        """Raise UsageError if it is no folder in which files can be made, nor can become one; nothing is made."""
        with self.in_use():
            path = self.path().absolute()
            above = (path, *path.parents)
            there = next((folder for folder in above if is_there(folder) or folder.is_symlink()), None)
            if there is None:  # Windows has a root on every disk
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            if not there.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(path))
            if not os.access(there, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))

    def made(self, folder: Path, mode: int = 0o777) -> Path:
        """`folder`, which is the place or in it, made with all above it, if it is not there. Raises UsageError, OSError."""
        with self.in_use():
            folder.parent.mkdir(mode, parents=True, exist_ok=True)
            folder.mkdir(mode, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return folder

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Raise UsageError for an OSError of the block that says that the place is the wrong one."""
        try:
            yield
        except OSError as error:
            if not is_wrong_place(error):
                raise
            path, asked = self.path(), os.environ.get(self.variable)
            told = f"{self.variable}={asked}" if asked else str(path)
            if isinstance(error.filename, str) and path in Path(error.filename).parents:
                told = error.filename
            reason = "not a folder" if error.errno in _NO_FOLDER else (error.strerror or str(error)).lower()
            raise self._error(told, reason) from error

    def _error(self, told: str, reason: str) -> UsageError:
        return UsageError(f"{told}: {reason}", hint=self._hint)

    @property
    def _hint(self) -> str:
        return f"{self.variable} names the {self.holds}"
