"""Libraries written in Rust: what they raise, panics too, as errors of this project."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def refusals(error: Callable[[str], Exception]) -> Iterator[None]:
    """Raise `error(text)` for what a library raises: plain exceptions, and panics, which are no exceptions to Python."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as e:
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        raise error(str(e)) from None
