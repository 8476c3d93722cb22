"""What holds for every test."""

from __future__ import annotations

import signal

# A shell that starts the tests in the background makes them ignore these, and their child processes would inherit it;
# a signal that is handled here has its default action in a child.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
