"""What goes to which stream: the answer to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from dataclasses import dataclass
from typing import Any, TextIO

from rwkvcli.cli.settings import Color, Settings
from rwkvcli.cli.signals import discard, reader_is_gone

_BOLD_RED = "\x1b[1;31m"
_BOLD = "\x1b[1m"
_RESET = "\x1b[0m"
_LONGEST = 300
"""Characters of an unexpected error that are shown; -v shows the rest."""


def is_terminal(stream: TextIO | None) -> bool:
    """Whether `stream` is a terminal; a closed stream is none, and neither is NUL on Windows."""
    # While Rich draws a bar, stderr is a stand-in of its own, which before Rich 15 says that it is no terminal.
    stream = getattr(stream, "rich_proxied_file", stream)
    try:
        if stream is None or not stream.isatty():
            return False
        if sys.platform == "win32":
            from rwkvcli.cli.windows import console_mode

            try:
                return console_mode(stream.fileno()) is not None
            except io.UnsupportedOperation:  # a stand-in, which knows best
                return True
        return True
    except ValueError:
        return False


def use_color(stream: TextIO | None, choice: Color = Color.auto) -> bool:
    """Whether to write colours to `stream`: as asked, else on a terminal without NO_COLOR or TERM=dumb."""
    if choice is not Color.auto:
        return choice is Color.always
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@dataclass(frozen=True)
class Console:
    """The two output streams of one run, under its settings."""

    settings: Settings

    @property
    def out_is_terminal(self) -> bool:
        """Whether the answer is read by a person."""
        return is_terminal(sys.stdout)

    @property
    def err_is_terminal(self) -> bool:
        """Whether a person sees what is told on stderr."""
        return is_terminal(sys.stderr)

    @property
    def colors_errors(self) -> bool:
        """Whether stderr gets colours."""
        return use_color(sys.stderr, self.settings.color)

    @property
    def shows_progress(self) -> bool:
        """Whether progress may be drawn on stderr."""
        return not self.settings.quiet and is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"

    @property
    def may_ask(self) -> bool:
        """Whether a person sees questions and can answer them."""
        return is_terminal(sys.stdin) and is_terminal(sys.stderr)

    def ask(self, question: str, *, default: bool) -> bool:
        """Ask for yes or no on stderr. Enter is `default`, the end of the input no."""
        while True:
            write_error_stream(f"{question} [{'Y/n' if default else 'y/N'}] ")
            line = sys.stdin.readline() if sys.stdin is not None else ""
            if not line:
                write_error_stream("\n")
                return False
            word = line.strip().lower()
            if word in ("y", "yes", "n", "no", ""):
                return word.startswith("y") or (not word and default)

    def write(self, text: str) -> None:
        """Write a part of the answer, at once. A reader that has gone raises BrokenPipeError."""
        write_answer(text)

    def line(self, text: str) -> None:
        """Write one line of the answer."""
        self.write(text + "\n")

    def json(self, value: Any) -> None:
        """Write one line of JSON."""
        from rwkvcli.services.json_text import json_text

        self.line(json_text(value))

    def note(self, text: str) -> None:
        """Tell the person something on stderr, unless -q."""
        if not self.settings.quiet:
            write_error_stream(text + "\n")

    def detail(self, text: str) -> None:
        """Tell something on stderr with -v only."""
        if self.settings.verbose:
            write_error_stream(text + "\n")


def write_answer(text: str) -> None:
    """Write to stdout, at once. A reader that has gone raises BrokenPipeError."""
    if sys.stdout is None:
        raise BrokenPipeError
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        if reader_is_gone(error):
            raise BrokenPipeError from None
        raise


def write_error_stream(text: str) -> None:
    """Write to stderr. Where that cannot be written to there is nobody to tell, and the work goes on."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def print_error(message: str, hint: str | None = None, color: Color = Color.auto) -> None:
    """Print an error as one line on stderr, and its hint as a second."""
    label, hint_label = "error:", "hint:"
    if use_color(sys.stderr, color):
        label, hint_label = f"{_BOLD_RED}{label}{_RESET}", f"{_BOLD}{hint_label}{_RESET}"
    text = f"{label} {harmless(message)}\n"
    if hint:
        text += f"{hint_label} {harmless(hint)}\n"
    write_error_stream(text)


def print_unexpected(error: BaseException, color: Color = Color.auto) -> None:
    """Print an error that is nobody's mistake."""
    message = f"unexpected {type(error).__name__}" + (f": {error}" if str(error) else "")
    print_error(
        message if len(message) <= _LONGEST else message[: _LONGEST - 1] + "…",
        "this is a bug: run it again with -v and report what it prints",
        color,
    )


def print_traceback(error: BaseException) -> None:
    """Print where an error comes from, for -v."""
    import traceback

    write_error_stream("".join(traceback.format_exception(error)))


def print_usage_error(message: str, ctx: Any, color: Color = Color.auto) -> None:
    """Print a mistake on the command line, with the usage of the verb that it was made in."""
    message = message.rstrip(".")
    message = message[:1].lower() + message[1:]
    hint = None
    if ctx is not None:
        write_error_stream(ctx.get_usage() + "\n")
        hint = f"`{ctx.command_path} --help` explains it"
    print_error(message, hint, color)


def harmless(text: str) -> str:
    """`text` in one line, with what a terminal could take for a command (names may come out of files)
    escaped."""
    with contextlib.suppress(UnicodeEncodeError):  # an argument that Python took for another encoding
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    line = " ".join(text.split())
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line
    )


def asked_color(args: list[str]) -> Color:
    """What --color or RWKV_COLOR say, for errors in a command line that was not understood."""
    choice = os.environ.get("RWKV_COLOR", "auto")
    options = _options(args)
    for arg, following in zip(options, [*options[1:], ""], strict=True):
        if arg == "--color":
            choice = following
        elif arg.startswith("--color="):
            choice = arg.partition("=")[2]
    return Color(choice) if choice in list(Color) else Color.auto


def asked_verbose(args: list[str]) -> bool:
    """What -v or RWKV_VERBOSE say, for errors before the command line was understood."""
    from rwkvcli.cli.parsing import says_yes

    if says_yes(os.environ.get("RWKV_VERBOSE", "")):
        return True
    return any(re.fullmatch("--verbose|-q*v[qv]*", arg) for arg in _options(args))


def _options(args: list[str]) -> list[str]:
    """The part of a command line in which options can be: what stands before `--`."""
    return args[: args.index("--")] if "--" in args else args
