"""The slash commands of `rwkv chat`: one function each, and a line in the table at the end."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rwkvcli.cli.chat_settings import SETTINGS, changed, told
from rwkvcli.errors import RwkvError, UsageError

if TYPE_CHECKING:
    from rwkvcli.cli.chat_terminal import Chat
    from rwkvcli.services.turns import Turn

_EXCERPT = 60
_MOST_DIGITS = 20
"""Of a number below 2**64."""


class Command(NamedTuple):
    """`/name usage`, what it is for, and the function that is given what stands after the name."""

    name: str
    usage: str
    about: str
    run: Callable[[Chat, str], None]
    takes: str = ""
    """What the argument is, for completion: files, branches, settings, think, forms."""


def perform(chat: Chat, text: str) -> None:
    """Do what the line `text`, which begins with a slash, says. Errors are told."""
    name, _, argument = text[1:].strip().partition(" ")
    try:
        _named(name).run(chat, argument.strip())
        chat.mind_trouble()
    except (RwkvError, OSError) as error:
        chat.fail(error)


def arguments_of(chat: Chat, name: str) -> Any:
    """What the argument of the command `name` may be: words, or FILES."""
    from rwkvcli.cli.chat_editor import FILES
    from rwkvcli.services.conversation import THINK
    from rwkvcli.services.transcripts import FORMATS

    command = next((command for command in COMMANDS if command.name == name), None)
    match command.takes if command is not None else "":
        case "files":
            return FILES
        case "branches":
            return list(chat.talk.history.branches)
        case "settings":
            return [f"{setting}=" for setting in SETTINGS]
        case "think":
            return THINK
        case "forms":
            return FORMATS
    return []


def _named(name: str) -> Command:
    for command in COMMANDS:
        if command.name == name:
            return command
    near = difflib.get_close_matches(name, [command.name for command in COMMANDS], n=1)
    hint = (
        f"did you mean /{near[0]}?"
        if near
        else "/help lists them; a message that begins with / needs a space before it"
    )
    raise UsageError(f"no command /{name}", hint=hint)


def _number(argument: str, default: int) -> int:
    if not argument:
        return default
    digits = argument.lstrip("0") if argument.isdecimal() else ""
    if not digits or len(digits) > _MOST_DIGITS or int(digits) >= 2**64:
        raise UsageError(f"`{argument[:40]}` is not a whole number from 1 to 2**64 - 1")
    return int(digits)


def _needed(argument: str, what: str) -> str:
    if not argument:
        raise UsageError(f"say which: {what}")
    return argument


def _path(argument: str, usage: str) -> Path:
    text = _needed(argument, usage)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UsageError(f"{text}: there is no such home folder") from None


def _new_file(path: Path) -> Path:
    """Where the new file `path` goes; what is there already is not replaced. Raises UsageError."""
    from quant.atomic import new_file

    place = new_file(path, force=True, kept={})
    if place.exists():
        raise UsageError(f"{path} exists already", hint="name another file, or remove it")
    return place


def _excerpt(turn: Turn) -> str:
    """A turn in one line."""
    line = " ".join(turn.user.split())
    text = line if len(line) <= _EXCERPT else line[: _EXCERPT - 4] + " ..."
    return {"message": f"“{text}”", "read": f"reading {text}", "load": f"loading {text}"}[turn.kind]


def _where(chat: Chat) -> str:
    count = len(chat.talk.history.path())
    return "nothing was said" if not count else f"{count} turn{'s' if count != 1 else ''}"


def _undo(chat: Chat, argument: str) -> None:
    left = chat.talk.undo(_number(argument, 1))
    if not left:
        raise UsageError("there is nothing to undo")
    chat.tell(f"taken back: {_excerpt(left[-1])}" + (f" and {len(left) - 1} more" if len(left) > 1 else ""))
    chat.tell(f"{_where(chat)}; /redo brings {'it' if len(left) == 1 else 'them'} back")


def _redo(chat: Chat, argument: str) -> None:
    again = chat.talk.redo(_number(argument, 1))
    if not again:
        raise UsageError("there is nothing to redo", hint="it brings back what /undo and /clear took")
    chat.tell(f"back again: {_excerpt(again[-1])}; {_where(chat)}")


def _retry(chat: Chat, argument: str) -> None:
    seed = int(argument) if argument == "0" else _number(argument, 0) if argument else None
    chat.answer(lambda stopped: chat.talk.retry(seed, stopped))


def _edit(chat: Chat, _argument: str) -> None:
    chat.draft = chat.talk.take_back()


def _branch(chat: Chat, argument: str) -> None:
    history = chat.talk.history
    if argument:
        chat.talk.fork(argument)
        chat.tell(f"on the new branch {argument}, which begins here; /switch goes back to another")
        return
    for name, branch in history.branches.items():
        head = history.turns[branch.head] if branch.head is not None else None
        depth = head.depth if head is not None else 0
        mark = "*" if name == history.current else " "
        last = f", last {_excerpt(head)}" if head is not None else ""
        chat.show(f"{mark} {name}: {depth} turn{'s' if depth != 1 else ''}{last}")


def _switch(chat: Chat, argument: str) -> None:
    chat.talk.switch(_needed(argument, "/switch NAME"))
    head = chat.talk.history.head
    chat.tell(
        f"on branch {argument}: {_where(chat)}" + (f", last {_excerpt(head)}" if head is not None else "")
    )


def _clear(chat: Chat, _argument: str) -> None:
    chat.talk.restart(chat.talk.history.system)
    chat.tell("a new conversation; until the next message or /read, /redo brings the turns back, one by one")


def _system(chat: Chat, argument: str) -> None:
    system = chat.talk.history.system
    if not argument:
        chat.tell(
            f"instructions: {system}" if system else "there are no instructions: /system TEXT gives some"
        )
        return
    began, none = chat.talk.history.head is not None, argument == "-"
    chat.talk.restart(None if none else argument)
    told = "there are no instructions now" if none else "instructions are set"
    chat.tell(told + (f"; a new conversation begins with{'out' if none else ''} them" if began else ""))


def _save(chat: Chat, argument: str) -> None:
    path = _path(argument, "/save FILE")
    chat.talk.state().save(_new_file(path))
    chat.tell(f"the state is in {path}; /load {path} goes on from it")


def _load(chat: Chat, argument: str) -> None:
    chat.talk.load(_path(argument, "/load FILE"))
    chat.tell(f"going on from a state that has seen {chat.talk.state().tokens_seen:,} tokens")


def _read(chat: Chat, argument: str) -> None:
    from rwkvcli.cli.render import ReadingBar

    path = _path(argument, "/read FILE")
    before = chat.talk.state().tokens_seen
    chat.signals.raises = False
    with chat.keys_held(), ReadingBar(chat.console, path.name) as bar:
        turn = chat.talk.read(path, bar.update, chat.signals.asked)
    stopped = "stopped: " if turn.finish == "interrupted" else ""
    count = turn.tokens_seen - before
    chat.tell(f"{stopped}{count:,} tokens of {path.name} were read; /undo forgets them")


def _set(chat: Chat, argument: str) -> None:
    if not argument:
        chat.show("\n".join(told(chat.talk)))
        return
    settings, seed, said = changed(chat.talk.settings, argument)
    chat.talk.configure(settings, seed)
    chat.tell(f"{said}, from the next answer on")


def _think(chat: Chat, argument: str) -> None:
    if not argument:
        chat.show(f"think: {chat.talk.settings.think or 'off'}; show, hide, fast or off")
        return
    chat.talk.configure(replace(chat.talk.settings, think=argument))
    chat.tell(f"think: {argument}, from the next answer on")


def _state(chat: Chat, _argument: str) -> None:
    from rwkvcli.cli.render import size

    talk = chat.talk
    kept = f"{talk.snapshots.files} on disk, " if chat.session is not None else ""
    seen = f"{talk.state().tokens_seen:,} tokens seen in " if talk.history.head is not None else ""
    chat.show(
        f"{seen}{_where(chat)}; the state takes {size(talk.snapshots.state_bytes)}, "
        f"as it did at the first token\nstates kept to go back to: {kept}{talk.snapshots.held} in memory"
    )
    if chat.session is not None and not chat.session.is_new:
        chat.show(f"in {chat.session.folder}")


def _stats(chat: Chat, _argument: str) -> None:
    speed = chat.talk.speed
    if not speed.prompt_tokens:
        raise UsageError("nothing was said yet since the start")
    for name, tokens, seconds in (
        ("message", speed.prompt_tokens, speed.prompt),
        ("answer", speed.tokens, speed.decode),
    ):
        rate = f"{tokens / seconds:.1f} tokens/s" if seconds else "-"
        chat.show(f"{name}: {tokens} tokens in {seconds:.2f} s ({rate})")
    if speed.guessed:
        chat.show(f"{speed.came} of {speed.guessed} guesses came")
    head = chat.talk.history.head
    if head is not None:
        chat.show(f"seed {head.seed}, {chat.talk.state().tokens_seen:,} tokens seen in all")


def _copy(chat: Chat, _argument: str) -> None:
    from rwkvcli.cli.clipboard import copy

    head = chat.talk.history.head
    if head is None or head.kind != "message":
        raise UsageError("there is no answer to copy")
    chat.tell(f"the answer was copied {copy(head.reply, chat.console.write)}")


def _export(chat: Chat, argument: str) -> None:
    from quant.atomic import whole_file
    from rwkvcli.services.transcripts import FORMATS, transcript

    form, _, file = argument.partition(" ")
    if form not in FORMATS:
        raise UsageError(f"say in which form: /export {' or '.join(FORMATS)} [FILE]")
    name = chat.session.name if chat.session is not None else "chat"
    path = _path(file.strip() or f"{name}.{form}", "/export")
    with whole_file(_new_file(path)) as out:
        out.write(transcript(chat.talk.history, name, form).encode("utf-8", "replace"))
    chat.tell(f"the conversation is in {path}")


def _help(chat: Chat, _argument: str) -> None:
    from rwkvcli.cli.render import table

    rows = [(f"/{command.name} {command.usage}".rstrip(), command.about) for command in COMMANDS]
    keys = [
        ("Enter", "send; Alt-Enter: a new line"),
        ('"""', "begins and ends a message of several lines"),
        ("Ctrl-G", "write the message in $EDITOR"),
        ("Ctrl-C", "stop the answer and keep what there is; or clear the line"),
        ("Ctrl-D", "leave"),
    ]
    chat.show("\n".join([*table(rows), "", *table(keys)]))


def _exit(chat: Chat, _argument: str) -> None:
    chat.done = True


COMMANDS: tuple[Command, ...] = (
    Command("undo", "[N]", "take back the last turn, or N", _undo),
    Command("redo", "[N]", "bring back what was taken", _redo),
    Command("retry", "[SEED]", "answer the last message anew", _retry),
    Command("edit", "", "change the last message and send it again", _edit),
    Command("branch", "[NAME]", "go on in a new branch; alone: list them", _branch, "branches"),
    Command("switch", "NAME", "go to another branch", _switch, "branches"),
    Command("read", "FILE", "have the model read a text of any length", _read, "files"),
    Command("system", "[TEXT]", "begin with instructions; - for none", _system),
    Command("set", "[NAME=VALUE]", "change a setting, for example temp=0.8", _set, "settings"),
    Command("think", "[WAY]", "thoughts: show, hide, fast or off", _think, "think"),
    Command("save", "FILE", "write the state to a file", _save, "files"),
    Command("load", "FILE", "go on from a state in a file", _load, "files"),
    Command("export", "md|jsonl [FILE]", "write the conversation to a file", _export, "forms"),
    Command("copy", "", "copy the last answer", _copy),
    Command("state", "", "what the model's memory holds and takes", _state),
    Command("stats", "", "tokens and speed of the last answer", _stats),
    Command("clear", "", "begin anew", _clear),
    Command("help", "", "this list", _help),
    Command("exit", "", "leave", _exit),
)
