"""Waiting for what comes through a pipe."""

from __future__ import annotations

import select
import sys
import time

_LOOK = 0.005
"""Seconds between two looks into a pipe, where the system does not tell when something comes."""


def can_read(descriptor: int, patience: float) -> bool:
    """Whether reading from a file, pipe or terminal will not wait; until it is so, this waits for `patience` seconds at
    most, in which signals have their effect."""
    if sys.platform == "win32":  # select knows sockets only there
        from rwkvcli.cli.windows import would_wait

        end = time.monotonic() + patience
        while would_wait(descriptor):
            left = end - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(_LOOK, left))
        return True
    return bool(select.select([descriptor], [], [], patience)[0])
