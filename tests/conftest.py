"""What holds for every test."""

from __future__ import annotations

import os
import signal

# Tests of the engine are about the CPU unless they say so: with this, `auto` does not take a GPU that may be here.
os.environ.setdefault("RWKV_CUDA_LIBRARY", "")

# A shell that starts the tests in the background makes them ignore these, and their child processes would inherit it;
# a signal that is handled here has its default action in a child.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
