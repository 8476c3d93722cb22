"""What is at a path."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP)
_NOTHING_ON_WINDOWS = (21, 123, 1921)
"""A disk that is not ready, a name that no file can have, a link that leads nowhere."""


def is_there(path: Path) -> bool:
    """Whether anything is at the end of `path`. Raises OSError where that cannot be told: a folder that may not be searched, a
    name that is longer than the system takes. `Path.exists` takes these for nothing from Python 3.14 on."""
    try:
        os.stat(path)
    except ValueError:  # a NUL character
        return False
    except OSError as error:
        if error.errno in _NOTHING or getattr(error, "winerror", None) in _NOTHING_ON_WINDOWS:
            return False
        raise
    return True
