"""`rwkv chat`."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rwkvcli.cli.console import Console, is_terminal
from rwkvcli.cli.options import Misuse, TemplateOption, with_settings
from rwkvcli.cli.prompt import argument_bytes, argument_text
from rwkvcli.cli.sampling import with_sampling
from rwkvcli.cli.settings import Settings

if TYPE_CHECKING:
    from rwkvcli.services.conversation import Settings as ChatSettings

EXAMPLES = """
  rwkv chat                                        # the best model that is here
  rwkv chat g1-1.5b
  rwkv chat trip -m g1-0.4b-int4.safetensors       # a conversation with a name
  rwkv chat trip                                   # goes on where it was left
  rwkv chat -m model.safetensors -s "Answer in one word."
  printf 'Hello\\nAnd you?\\n' | rwkv chat -m demo   # a turn per line, answers alone on stdout
"""


class Think(StrEnum):
    """What `--think` takes."""

    show = "show"
    hide = "hide"
    fast = "fast"
    off = "off"


@with_settings(own_stored=False)  # a session's settings stand between the flags and the person's defaults
@with_sampling
def chat(
    settings: Settings,
    *,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Conversation to begin or go on with.", show_default=False),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(
            "-s", "--system", metavar="TEXT", help="Instructions that a new conversation begins with."
        ),
    ] = None,
    template: TemplateOption = None,
    think: Annotated[
        Think | None,
        typer.Option(
            "--think",
            metavar="WAY",
            help="Reasoning models: show or hide their thoughts; fast: none; off: as they like.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            metavar="N",
            min=-1,
            help="End an answer after N tokens; -1: when the model does. Default: 4096.",
            show_default=False,
        ),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", metavar="TEXT", help="End an answer before TEXT. Repeatable."),
    ] = None,
    no_save: Annotated[bool, typer.Option("--no-save", help="Keep nothing of the conversation.")] = False,
    sampling: dict[str, Any],
) -> None:
    """Talk with a model.

    In a terminal: Enter sends, Alt-Enter begins a new line, Ctrl-C stops an answer, Ctrl-D leaves, /help lists
    the commands (/undo, /retry, /branch, /read ...). After every turn the conversation is saved, and `rwkv
    chat NAME` goes on with it at once, however long it is. A NAME that is a model is taken as the model.
    `rwkv config set chat.temperature 0.8` and the like are for conversations that begin.

    Without a terminal each line of stdin is a turn; stdout gets the answers alone, a conversation without a
    NAME is not saved, and nothing is a command.
    """
    from rwkvcli.services import loading, sessions
    from rwkvcli.services.conversation import Conversation, preferred
    from rwkvcli.services.conversation import Settings as ChatSettings
    from rwkvcli.services.snapshots import Snapshots

    console = Console(settings)
    in_terminal = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    if no_save and name is not None and not _is_model(name):
        raise Misuse("--no-save keeps nothing, and NAME names what is kept")
    # a default does not count against the model of a session
    model_name = settings.model if "model" in settings.typed else None
    if name is not None and model_name is None and _is_model(name):
        model_name, name = name, None
        told = f"{model_name} is a model: a new conversation begins with it"
        console.note(told) if in_terminal else console.detail(told)
    keeps = not no_save and (name is not None or in_terminal)
    session = sessions.Session(name) if keeps else None
    try:
        model_name = model_name or (session.model if session is not None else None) or settings.model
        from rwkvcli.cli.download import default_model, drafting_for, loaded, model_to_run

        loading.check_device(settings.device)
        model_name = model_name or default_model(console)
        found = model_to_run(console, model_name)
        model = loaded(console, found)
        drafting = drafting_for(console, model)
        seed = sampling.pop("seed")
        flags: dict[str, Any] = {
            "max_tokens": max_tokens,
            "template": template,
            "think": str(think) if think else None,
        }
        if stop is not None:
            flags["stop"] = tuple(map(argument_text, stop))
        begins = session is None or session.is_new
        usual, usual_system = preferred(model, template) if begins else (ChatSettings(), None)
        saved = session.settings() if session is not None and not begins else usual
        wanted = _under(flags, sampling, saved)
        if session is not None:
            name_to_keep = found.exact_name if found.reference is not None else model_name
            talk = session.converse(model, name_to_keep, wanted, seed, drafting)
        else:
            talk = Conversation(model, Snapshots(model), settings=wanted, seed=seed, drafting=drafting)
        if system is not None and talk.history.head is not None:
            raise Misuse("-s begins a conversation, and this one has begun: /system begins it anew")
        if system is not None:
            talk.restart(argument_bytes(system).decode("utf-8", "surrogateescape") or None)
        elif usual_system:
            talk.restart(usual_system)
        if in_terminal:
            from rwkvcli.cli.chat_terminal import run

            run(console, talk, session, found)
        else:
            from rwkvcli.cli.chat_pipe import answer_lines

            answer_lines(console, talk)
    finally:
        if session is not None:
            session.close()


def _under(flags: dict[str, Any], sampling: dict[str, Any], saved: ChatSettings) -> ChatSettings:
    """The settings that were `saved`, under what the command line says; None is "not said"."""
    said = {name: value for name, value in flags.items() if value is not None}
    chosen = {name: value for name, value in sampling.items() if value is not None}
    return replace(saved, **said, sampling={**saved.sampling, **chosen})


def _is_model(name: str) -> bool:
    """Whether NAME is a model rather than the name of a conversation."""
    from rwkvcli.errors import UsageError
    from rwkvcli.services import names, sessions

    is_file = os.path.isfile(name)  # noqa: PTH113
    of_models = (
        name == names.DEMO or names.alias(name) is not None or name.endswith(names.SUFFIXES) or is_file
    )
    try:
        return of_models and not sessions.exists(name)
    except UsageError:  # no name of a session at all
        if of_models or "/" in name or os.sep in name:
            return True
        raise
