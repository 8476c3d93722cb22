"""Libraries written in Rust: what they raise, panics too, as errors of this project."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rwkvcli.errors import RwkvError

_SIGNAL = re.compile(r"PyErr \{ type: <class '(KeyboardInterrupt|SystemExit)'>, value: \w+\((\d*)")
"""A panic over what a signal raised in Python code that the library had called."""


@contextmanager
def refusals(error: Callable[[str], Exception]) -> Iterator[None]:
    """Raise `error(text)` for what a library raises: plain exceptions, and panics, which are no exceptions to Python.

    What a signal raises stays what it is, and so do errors of this project: one of them is that the time is over.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, RwkvError):
        raise
    except BaseException as e:
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        signal = _SIGNAL.search(str(e))
        if signal is not None:
            raise (
                KeyboardInterrupt if signal[1] == "KeyboardInterrupt" else SystemExit(int(signal[2] or 1))
            ) from None
        raise error(str(e)) from None
