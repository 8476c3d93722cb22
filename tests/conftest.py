"""What holds for every test."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from pathlib import Path

# Tests of the engine are about the CPU unless they say so: with this, `auto` does not take a GPU that may be here.
os.environ.setdefault("RWKV_CUDA_LIBRARY", "")

# A shell that starts the tests in the background makes them ignore these, and their child processes would inherit it;
# a signal that is handled here has its default action in a child.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _refuse_links(to: object, link: object, *_: object, **__: object) -> None:
    raise OSError(None, "A required privilege is not held by the client", str(to), 1314, str(link))


if sys.platform == "win32":
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(OSError):
        link = Path(folder) / "link"
        link.symlink_to("to")
        if not link.is_symlink():
            os.symlink = _refuse_links  # Wine says that it made one; a Windows that makes none says so
