"""A conversation in a terminal: read a message, draw the answer, and the commands in between."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING

from rwkvcli.cli.chat_commands import COMMANDS, arguments_of, perform
from rwkvcli.cli.chat_drawing import AnswerView, Drawing, no_echo, terminal_restored
from rwkvcli.cli.chat_editor import Editor
from rwkvcli.cli.chat_lines import PlainReader
from rwkvcli.cli.console import Console, print_error, use_color
from rwkvcli.cli.signals import Interruption, discard
from rwkvcli.errors import RwkvError

if TYPE_CHECKING:
    from rwkvcli.services.answering import Part
    from rwkvcli.services.conversation import Conversation
    from rwkvcli.services.sessions import Session
    from rwkvcli.services.store import LocalModel

REAL_MODEL = "rwkv chat g1-1.5b"
"""Downloads a small model that knows something, and makes a model file of it."""
_RECALLED = 12
"""Lines of the last answer that are shown when a conversation is resumed."""


def run(console: Console, talk: Conversation, session: Session | None, found: LocalModel) -> None:
    """Talk until the person leaves. `session` is where it is saved; None: nowhere.

    Signals are noted from beginning to end, and have their effect where it is known what they find: an exception at a
    moment that nobody chose could leave the terminal in the middle of a change.
    """
    chat = Chat(console, talk, session)
    chat.open(found)
    with terminal_restored(), chat.signals:
        try:
            while not chat.done:
                _go_on(chat)
                chat.signals.settle(ctrl_c=False)
        except OSError:
            if chat.signals.ends:  # the terminal is gone, and a signal said so
                discard(sys.stdout)
                chat.signals.settle(ctrl_c=False)
            raise
    chat.close()


def _go_on(chat: Chat) -> None:
    """Read a message or command, and answer it."""
    try:
        text = chat.read()
    except EOFError:
        chat.done = True
        return
    except KeyboardInterrupt:
        if not chat.signals.ends:
            chat.tell("Ctrl-D leaves; Ctrl-C stops an answer")
        return
    if text.startswith("/"):
        try:
            with chat.signals.raising():
                perform(chat, text)
        except KeyboardInterrupt:
            chat.tell("stopped")
    elif text.strip():
        chat.answer(lambda stopped: chat.talk.send(text, stopped))


class Chat:
    """What the loop and the commands have in common."""

    def __init__(self, console: Console, talk: Conversation, session: Session | None) -> None:
        self.console = console
        self.talk = talk
        self.session = session
        self.done = False
        self.signals = Interruption(raises=False)
        self.draft = ""
        """What is to stand in the line editor next."""
        self._styled = use_color(sys.stdout, console.settings.color)
        self._told: str | None = None
        self._dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")  # as prompt_toolkit has it
        self._editor = PlainReader(console, self.signals) if self._dumb else self._line_editor()

    def _line_editor(self) -> Editor:
        from rwkvcli.services.sessions import sessions_path

        return Editor(
            {command.name: command.about for command in COMMANDS},
            lambda name: arguments_of(self, name),
            sessions_path() / ".history" if self.session is not None else None,
            self.signals,
            color=self._styled,
        )

    def read(self) -> str:
        """The next message or command. Raises as Editor.read."""
        draft, self.draft = self.draft, ""
        return self._editor.read(draft)

    def tell(self, text: str) -> None:
        """Remark on what happened, unless -q."""
        if self.console.settings.quiet:
            return
        lines = _harmless(text)
        self.console.line(f"\x1b[2m{lines}\x1b[0m" if self._styled else lines)

    def show(self, text: str) -> None:
        """Answer a command."""
        self.console.line(_harmless(text))

    def fail(self, error: Exception) -> None:
        """Tell an error; the conversation goes on."""
        hint = getattr(error, "hint", None)
        message = str(error)
        if isinstance(error, OSError):
            message = f"{error.filename or 'file'}: {(error.strerror or str(error)).lower()}"
        print_error(message, hint, self.console.settings.color)

    def answer(self, begin: Callable[[Callable[[], bool]], Iterator[Part]]) -> None:
        """Draw the answer that `begin` starts, which is given what tells whether to stop."""
        from rwkvcli.cli.render import TextBar

        view = AnswerView(
            styled=self._styled,
            wraps=not self._dumb,
            shows_thoughts=self.talk.settings.think != "hide",
        )
        before = self.talk.history.head
        try:
            with self.keys_held(), suppress(KeyboardInterrupt):
                with TextBar(self.console) as bar, self.signals.raising():
                    self.talk.on_prompt = bar.update
                    parts = begin(self.signals.asked)
                    next(parts)
                with Drawing(view, self.console.write) as drawing:
                    for part in parts:
                        drawing.push(part)
        except RwkvError as error:
            self.fail(error)
            return
        head = self.talk.history.head
        if head is before:
            self.tell("stopped before anything was said: the message does not count")
        elif head is not None and head.finish != "stop":
            why = {"length": "ended by its length: /set max-tokens=N", "interrupted": "stopped"}[head.finish]
            self.tell(f"({why})")
        self.show("")
        self.mind_trouble()

    def keys_held(self) -> AbstractContextManager[None]:
        """While the model works: what is typed is not shown, and is there for the next message."""
        return no_echo(in_lines=self._dumb)

    def mind_trouble(self) -> None:
        """Tell once that the conversation cannot be saved, and once that it is again."""
        trouble = self.talk.trouble
        if trouble is None:
            if self._told is not None:
                self.tell("saved again, with all that was said")
            self._told = None
        elif str(trouble) != self._told:
            self._told = str(trouble)
            self.fail(trouble)
            self.tell("not saved; the conversation goes on, and every turn tries again")

    def open(self, found: LocalModel) -> None:
        """The opening lines: what runs where, which conversation, how to get help."""
        self.tell("\n".join(_opening(self.talk, self.session, found)))
        head = self.talk.history.head
        if head is not None and head.kind == "message":
            lines = head.reply.split("\n")
            more = [f"... {len(lines) - _RECALLED} more lines"] if len(lines) > _RECALLED else []
            self.tell("\n".join(["", f">>> {head.user}", *lines[:_RECALLED], *more, ""]))

    def close(self) -> None:
        """The last line: how to go on."""
        if self.session is not None and not self.session.is_new:
            self.tell(f"saved: `rwkv chat {self.session.name}` goes on from here")


def _opening(talk: Conversation, session: Session | None, found: LocalModel) -> Iterator[str]:
    from rwkvcli.cli.render import size
    from rwkvcli.services.inspection import inspect

    facts = inspect(found.path)
    yield (
        f"{found.path.name if found.name != 'demo' else 'demo'}: RWKV-{facts['version']}, "
        f"{_millions(facts['parameters'])} parameters, {facts['recipe']}, {size(facts['bytes'])}; "
        f"{talk.model.backend.description}"
    )
    if found.name == "demo":
        yield "demo is a toy: it writes English-looking nonsense. A model that knows something:"
        yield f"  {REAL_MODEL}"
    turns = len(talk.history.path())
    if session is None:
        name = "not saved"
    elif session.is_new:
        name = f"session {session.name}, new"
    else:
        branch = f" on branch {talk.history.current}" if len(talk.history.branches) > 1 else ""
        name = f"session {session.name}, {turns} turn{'s' if turns != 1 else ''}{branch}"
    yield f"{name}; /help lists the commands, Ctrl-D leaves"


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"


def _harmless(text: str) -> str:
    """`text` without what a terminal takes for a command."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text.replace("\t", "    "))
