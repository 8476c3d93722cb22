"""The line editor of `rwkv chat`: prompt_toolkit with the keys, the history and the completion of a conversation."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style

from rwkvcli.cli.chat_lines import MORE, PROMPT, in_block, unquoted
from rwkvcli.cli.signals import Interruption

FILES = object()
"""In place of a list of words: the names of files."""

Words = Callable[[str], Any]
"""From a command to what its argument may be: words, or FILES."""


class Editor:
    """Reads messages. `commands` {name: what it is for} and `arguments` are for completion.

    `history` is the file of messages that were sent; None: they are forgotten. `signals` notes those that come;
    what they mean is done between two keys. `color`: whether to use colours.
    """

    def __init__(
        self,
        commands: dict[str, str],
        arguments: Words,
        history: Path | None,
        signals: Interruption,
        *,
        color: bool,
    ) -> None:
        self._signals = signals
        self._color = color
        past: History = InMemoryHistory() if history is None else _History(history)
        style = {"prompt": "bold ansigreen", "placeholder": "ansibrightblack"} if color else {}
        self._session: PromptSession[str] = PromptSession(
            history=past,
            multiline=True,
            key_bindings=_keys(),
            completer=_Commands(commands, arguments),
            complete_while_typing=Condition(self._is_command),
            complete_in_thread=False,
            enable_suspend=True,
            tempfile_suffix=".md",
            prompt_continuation=_continuation,
            style=Style.from_dict(style),
            include_default_pygments_style=False,
        )

    def read(self, draft: str = "") -> str:
        """A message; `draft` stands there to be changed. Raises EOFError (Ctrl-D, a signal that ends the program) and
        KeyboardInterrupt (Ctrl-C where nothing was typed)."""
        message = FormattedText([("class:prompt", PROMPT)])
        self._signals.notify = self._wake
        try:
            text = self._session.prompt(
                message,
                default=draft,
                placeholder=_hint if self._color else None,
                pre_run=self._mind_signals,
                handle_sigint=False,
            )
        finally:
            self._signals.notify = None
        return unquoted(text)

    def _wake(self) -> None:
        """Called at the signal, at any moment."""
        loop = self._session.app.loop
        if loop is not None:
            loop.call_soon_threadsafe(self._mind_signals)

    def _mind_signals(self) -> None:
        """Called when the editor begins and between two events, when it can be left as by a key."""
        app = self._session.app
        if app.future is None or app.future.done():
            return
        if self._signals.ends:
            app.exit(exception=EOFError)
        elif self._signals.asked():
            self._signals.settle(ctrl_c=False)
            app.key_processor.send_sigint()

    def _is_command(self) -> bool:
        return self._session.default_buffer.text.startswith("/")


def _continuation(_width: int, _line: int, wrapped: int) -> FormattedText:
    """What stands before a further line of a message, and before the rest of a line that is too long."""
    return FormattedText([("", " " * len(MORE))] if wrapped else [("class:prompt", MORE)])


def _hint() -> FormattedText:
    """What stands where nothing was typed yet, and does not stay on the screen."""
    return FormattedText([] if get_app().is_done else [("class:placeholder", "message, or /help")])


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state is not None and buffer.complete_state.current_completion is not None:
            buffer.complete_state = None  # Enter takes what was chosen
        elif in_block(buffer.text):
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-c")
    @keys.add("<sigint>")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    @keys.add("c-g")
    def _(event: KeyPressEvent) -> None:
        if sys.platform == "win32" and "VISUAL" not in os.environ:
            os.environ.setdefault("EDITOR", "notepad")  # others are looked for on POSIX only
        buffer = event.current_buffer

        def mend(_: object) -> None:
            if "\r\n" in buffer.text:  # as editors of Windows write it
                buffer.document = Document(buffer.text.replace("\r\n", "\n"))

        buffer.open_in_editor().add_done_callback(mend)

    return keys


class _Commands(Completer):
    """Names of commands at the beginning of a message, then their arguments."""

    def __init__(self, commands: dict[str, str], arguments: Words) -> None:
        self._commands = commands
        self._arguments = arguments
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """What may stand at the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, argument = text[1:].partition(" ")
        if not space:
            for command, about in self._commands.items():
                if command.startswith(name):
                    yield Completion(command, -len(name), display=f"/{command}", display_meta=about)
            return
        words = self._arguments(name)
        if words is FILES:
            yield from self._files.get_completions(Document(argument), complete_event)
            return
        for word in words:
            if word.startswith(argument):
                yield Completion(word, -len(argument))


class _History(FileHistory):
    """Messages in a file that nobody else may read; that it cannot be written ends no conversation."""

    def store_string(self, string: str) -> None:
        """Add a message."""
        path = Path(str(self.filename))
        try:
            path.parent.mkdir(0o700, parents=True, exist_ok=True)
            path.touch(0o600)
            super().store_string(string)
        except (OSError, ValueError):  # half a surrogate pair cannot be written
            return

    def load_history_strings(self) -> Iterable[str]:
        """The messages, the latest first."""
        try:
            return list(super().load_history_strings())
        except OSError:
            return []
