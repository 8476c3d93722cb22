"""Signals: one Ctrl-C is one interruption, nothing half-written stays behind, a closed pipe ends the
process."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO

_TIDY = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))
"""What ends a program. SIGBREAK is Windows' alone: Ctrl-Break, which programs can send as well, and a closed console."""
_ENDING = (signal.SIGINT, *_TIDY)
_RAISING = (*((signal.SIGALRM,) if hasattr(signal, "SIGALRM") else ()), *_ENDING)

_READER_GONE = 141
"""The exit code that shells make of SIGPIPE, where there is none."""
_MORE_TIME = "--timeout gives it more time"


def _late(seconds: float) -> str:
    return f"not finished after {seconds:g} s"


def _once(error: Callable[[int], BaseException]) -> Callable[[int, FrameType | None], None]:
    """A handler that raises the `error` of a signal.

    A second one within a second belongs to the first: it must not interrupt the clean-up. A later one counts.
    """
    last = -1e9

    def handler(signum: int, _frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 1.0:
            last = now
            raise error(signum)

    return handler


def exit_code(signum: int) -> int:
    """The exit code of a program that a signal ended; Ctrl-Break is one more way to interrupt it."""
    return 128 + (signal.SIGINT if signum == getattr(signal, "SIGBREAK", None) else signum)


def interrupt_once() -> Any:
    """Make one Ctrl-C raise one KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started with & by a shell: stays ignored
        return signal.SIG_IGN
    return signal.signal(signal.SIGINT, _once(lambda _: KeyboardInterrupt()))


def end_tidily() -> None:
    """Make SIGTERM and SIGHUP unwind the program, so that half-written files are removed. When a terminal is closed,
    both its shell and the system say so."""
    handler = _once(lambda signum: SystemExit(exit_code(signum)))
    for signum in _TIDY:
        if signal.getsignal(signum) is signal.SIG_DFL:
            signal.signal(signum, handler)


@contextmanager
def held_signals() -> Iterator[Callable[[], bool]]:
    """Work that asks from time to time whether to stop, and is not interrupted in between.

    Yields the question. An exception at a moment that nobody chose could come between the creation of a
    temporary file and the note that it has to be removed. When the work stops by raising Cancelled, that
    becomes what the signal means elsewhere; a signal that comes too late to stop anything is forgotten.
    """
    from rwkvcli.errors import Cancelled

    caught: list[int] = []

    def handler(signum: int, _frame: FrameType | None) -> None:
        caught.append(signum)

    before = {s: signal.signal(s, handler) for s in _ENDING if signal.getsignal(s) is not signal.SIG_IGN}
    try:
        yield lambda: bool(caught)
    except Cancelled:
        if not caught:
            raise
        if caught[0] == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(exit_code(caught[0])) from None
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)


@contextmanager
def uncut() -> Iterator[None]:
    """What no exception may cut in two, as a library's drawing: a signal that comes inside has its effect at the end."""
    if threading.current_thread() is not threading.main_thread():  # where signals raise nothing
        yield
        return
    caught: int | None = None

    def handler(signum: int, _frame: FrameType | None) -> None:
        nonlocal caught
        if caught in (None, signal.SIGINT):
            caught = signum

    before: dict[int, Any] = {}
    try:
        for signum in _RAISING:
            if callable(old := signal.getsignal(signum)):
                before[signum] = old
                signal.signal(signum, handler)
        yield
    finally:
        for signum, old in reversed(before.items()):  # last the one after which the program may go on
            signal.signal(signum, old)
        if caught is not None:
            signal.raise_signal(caught)


@contextmanager
def stopping_between(limit: float | None = None, begin: float = 0.0) -> Iterator[Callable[[], None]]:
    """Work that is stopped only where it asks: yields what raises Cancelled after a signal, and TimedOut `limit`
    seconds after `begin` (of `time.monotonic`). The signal then means what it means elsewhere, as with `held_signals`.
    """
    from rwkvcli.errors import Cancelled, TimedOut

    with held_signals() as stopped:

        def check() -> None:
            if stopped():
                raise Cancelled("stopped")
            if limit is not None and time.monotonic() - begin > limit:
                raise TimedOut(_late(limit), hint=_MORE_TIME)

        yield check


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TimedOut inside when `seconds` are over, also in the middle of a prompt; None: never. A library that calls Python
    may make another error of it on the way: outside it is TimedOut all the same.
    """
    from rwkvcli.errors import RwkvError, TimedOut

    if seconds is None:
        yield
        return
    error = TimedOut(_late(seconds), hint=_MORE_TIME)
    over = threading.Event()

    def ring() -> None:
        over.set()
        raise error

    if sys.platform == "win32":
        limit = _timer(seconds, ring)
    else:
        limit = _alarm(seconds, ring)
    with limit:
        try:
            yield
        except RwkvError:
            if over.is_set():
                raise error from None
            raise


if sys.platform != "win32":

    @contextmanager
    def _alarm(seconds: float, ring: Callable[[], None]) -> Iterator[None]:
        """Call `ring` in the main thread after `seconds`, unless it has ended by then."""
        before = signal.signal(signal.SIGALRM, lambda *_: ring())
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


@contextmanager
def _timer(seconds: float, ring: Callable[[], None]) -> Iterator[None]:
    """The same where there is no alarm (Windows): a timer sends what Ctrl-C does. What notes that for later, or asks work to
    stop, meanwhile, is not told which it was; what comes of it is an interruption, and then `ring` is called."""
    lock = threading.Lock()
    late = ended = False
    before = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        nonlocal late
        with lock:
            if not ended:
                late = True
                signal.raise_signal(signal.SIGINT)

    def handler(signum: int, frame: FrameType | None) -> None:
        if late:
            ring()
        elif callable(before):
            before(signum, frame)

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    signal.signal(signal.SIGINT, handler)
    timer.start()
    try:
        yield
    except KeyboardInterrupt:
        if late:
            ring()
        raise
    finally:
        with lock:
            ended = True
        timer.cancel()
        signal.signal(signal.SIGINT, before)


class Interruption:
    """Ctrl-C, SIGTERM and SIGHUP while an answer is made: it is to end there, and what there is of it is kept.

    A context manager. The signal is noted, `asked` tells, and `notify` is called, if there is one; while `raises` is
    true it raises KeyboardInterrupt as well, for work that nothing is to be kept of. `settle` makes it what it means
    elsewhere.
    """

    def __init__(self, *, raises: bool = True) -> None:
        self.caught: int | None = None
        self.raises = raises
        self.notify: Callable[[], None] | None = None
        self._before: dict[int, Any] = {}

    def asked(self) -> bool:
        """Whether one of the signals came."""
        return self.caught is not None

    @property
    def ends(self) -> bool:
        """Whether one came that ends a program."""
        return self.caught not in (None, signal.SIGINT)

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Raise KeyboardInterrupt for a signal that comes inside, or came already."""
        self.raises = True
        try:
            if self.asked():
                raise KeyboardInterrupt
            yield
        finally:
            self.raises = False

    def settle(self, *, ctrl_c: bool) -> None:
        """Afterwards: raise SystemExit for the signals that end a program, with `ctrl_c` KeyboardInterrupt too; a Ctrl-C is
        forgotten."""
        caught, self.caught = self.caught, None
        if caught == signal.SIGINT:
            if ctrl_c:
                raise KeyboardInterrupt
        elif caught is not None:
            raise SystemExit(exit_code(caught))

    def __enter__(self) -> Interruption:
        for signum in _ENDING:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for signum, old in reversed(self._before.items()):
            signal.signal(signum, old)
        if kind is KeyboardInterrupt:
            self.settle(ctrl_c=False)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        first = self.caught is None
        if first or self.caught == signal.SIGINT:
            self.caught = signum
        if self.notify is not None:
            self.notify()
        if first and self.raises:
            raise KeyboardInterrupt


def reader_is_gone(error: OSError) -> bool:
    """Whether a write failed because nobody reads any more. Windows has two errors for it: a write to stdout is never invalid
    for another reason."""
    return isinstance(error, BrokenPipeError) or (sys.platform == "win32" and error.errno == errno.EINVAL)


def die_by_sigpipe() -> int:
    """End the process the way a C program ends when the reader of its output has gone. Returns the exit code for where
    there is no such signal."""
    discard(sys.stdout)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    return _READER_GONE


def discard(stream: TextIO | None) -> None:
    """Point stdout or stderr at nothing, so that the interpreter's own flush at exit finds no error to print,
    nor to turn into an exit code."""
    try:
        number = stream.fileno() if stream is not None else -1
    except (OSError, ValueError):
        return
    if number >= 0:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, number)
        os.close(devnull)
