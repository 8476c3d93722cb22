"""`main`, the one place where an error becomes text and an exit code.

| code | meaning |
|---|---|
| 0 | done |
| 1 | unexpected: a bug, or a system error that has no code of its own |
| 2 | usage |
| 3 | model or file not found, offline, network, not authorised |
| 4 | refused or corrupt |
| 5 | out of memory, disk full, device unavailable |
| 6 | a model is worse than the limit that was set |
| 7 | some lines of a batch failed |
| 124 | it took longer than --timeout allows |
| 130 | interrupted |

A closed stdout ends the process by SIGPIPE (where there is none, with exit code 141), with nothing on stderr; a closed
stderr changes nothing.
Everything but the standard library is imported inside `main`, so that Ctrl-C in the middle of an import is
handled too.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from rwkvcli.cli.signals import die_by_sigpipe, discard, end_tidily, interrupt_once, reader_is_gone

if TYPE_CHECKING:
    from rwkvcli.cli.settings import Settings

UNEXPECTED = 1
USAGE = 2
RESOURCES = 5
INTERRUPTED = 130


def main(args: list[str] | None = None) -> int:
    """Run the command line `args` (sys.argv by default) and return its exit code."""
    previous, streams = interrupt_once(), (sys.stdin, sys.stdout)
    end_tidily()
    try:
        line = _Line(sys.argv[1:] if args is None else args)
        return _finish(_run(line), line)
    except KeyboardInterrupt:  # between the handlers of _run
        return INTERRUPTED
    finally:
        # From here on only the interpreter's own exit is left: Ctrl-C may end it, but prints no traceback.
        if args is None:
            gc.freeze()  # it need not look for cycles among what the system takes back at once: 12 ms
        else:
            sys.stdin, sys.stdout = streams
        if previous is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, previous if args is not None else signal.SIG_DFL)


@dataclass
class _Line:
    """The command line, and what the global options say once it is understood."""

    words: list[str]
    settings: Settings | None = None

    def understood(self, settings: Settings) -> None:
        """Called when all of it was parsed."""
        self.settings = settings


def _run(line: _Line) -> int:
    try:
        _prepare_streams()
        from rwkvcli.cli.root import run

        return run(line.words, line.understood)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return die_by_sigpipe()
    except Exception as error:
        interruption = _interruption(error)
        return _report(error, line) if interruption is None else interruption


def _interruption(error: BaseException | None) -> int | None:
    """The exit code if `error` is a signal in disguise: one that comes while an extension module is being
    imported leaves it as an ImportError with the signal's exception as its cause.
    """
    if not isinstance(error, ImportError | SystemError):
        return None
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return INTERRUPTED
        if isinstance(error, SystemExit):
            return error.code if isinstance(error.code, int) else UNEXPECTED
        error = error.__cause__ or error.__context__
    return None


def _report(error: Exception, line: _Line) -> int:
    """Print `error` as one line (and a hint), and return its exit code."""
    from rwkvcli.cli.console import (
        asked_color,
        asked_verbose,
        print_error,
        print_traceback,
        print_unexpected,
        print_usage_error,
    )

    said = line.settings
    color = said.color if said is not None else asked_color(line.words)
    verbose = said.verbose if said is not None else asked_verbose(line.words)
    code = getattr(error, "exit_code", None)
    if hasattr(error, "format_message"):  # Typer's own errors, under whichever name this version keeps them
        print_usage_error(error.format_message(), getattr(error, "ctx", None), color)
        return code if isinstance(code, int) else USAGE
    if verbose:
        print_traceback(error)
    hint = getattr(error, "hint", None)
    if isinstance(code, int):  # rwkvcli.errors.RwkvError, quant.errors.QuantError
        print_error(str(error), hint, color)
        return code
    if isinstance(error, MemoryError):
        print_error("out of memory", "close other programs, or use a smaller model", color)
        return RESOURCES
    if isinstance(error, OSError):
        print_error(_describe(error), None, color)
        return (
            RESOURCES
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM)
            else UNEXPECTED
        )
    print_unexpected(error, color)
    return UNEXPECTED


def _describe(error: OSError) -> str:
    """`file: reason` of a system error; what was being written when there is no file name is stdout."""
    reason = (error.strerror or str(error) or type(error).__name__).lower()
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
    return f"{name}: {reason}" if name else reason


def _prepare_streams() -> None:
    """Pipes and files are UTF-8 whatever the locale; a terminal that cannot show a character gets `?`. A stdin that cannot
    be read from is none: `nohup` gives one that is open for writing only. A console that cannot draw is like TERM=dumb.
    """
    from rwkvcli.cli.console import is_terminal

    if _is_for_writing_only(sys.stdin):
        sys.stdin = None
    if isinstance(getattr(sys.stdout, "buffer", None), io.FileIO):  # python -u, PYTHONUNBUFFERED
        # What a disk that fills, or a pipe at a signal, takes only in part would be lost without an error; we flush anyway.
        sys.stdout = open(sys.stdout.fileno(), "w", encoding=sys.stdout.encoding, closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if stream is None or reconfigure is None:
            continue
        if not is_terminal(stream):
            errors = "surrogateescape" if stream is sys.stdout else "backslashreplace"
            reconfigure(encoding="utf-8", errors=errors, newline="\n")
            continue
        if sys.platform == "win32":
            from rwkvcli.cli.windows import let_draw

            if not let_draw(stream.fileno()):
                os.environ["TERM"] = "dumb"
        if (stream.encoding or "").lower().replace("-", "") == "utf8":
            reconfigure(errors="surrogateescape")
        else:
            reconfigure(errors="replace")


def _is_for_writing_only(stream: TextIO | None) -> bool:
    if stream is None or sys.platform == "win32":
        return False
    import fcntl

    try:
        flags = fcntl.fcntl(stream.fileno(), fcntl.F_GETFL)
    except (OSError, ValueError):
        return False
    return flags & os.O_ACCMODE == os.O_WRONLY


def _finish(code: int, line: _Line) -> int:
    """Flush stdout while an error can still be told."""
    if sys.stdout is None:
        return code
    try:
        sys.stdout.flush()
    except OSError as error:
        if reader_is_gone(error):
            return die_by_sigpipe()
        code = _report(error, line) if code == 0 else code
        discard(sys.stdout)
    return code
