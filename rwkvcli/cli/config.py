"""`rwkv config`."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any

import typer

from rwkvcli.cli.console import Console
from rwkvcli.cli.options import Misuse, with_settings
from rwkvcli.cli.prompt import argument_bytes
from rwkvcli.cli.settings import Settings

EXAMPLES = """
  rwkv config set model ~/models/g1-0.4b-int4.safetensors
  rwkv config set generate.temperature 0.8
  rwkv config get model
  rwkv config list
  rwkv config unset generate.temperature
"""


CONTEXT = {"ignore_unknown_options": True}
"""A value may be negative: `config set generate.max-tokens -1`."""


class Action(StrEnum):
    """What can be done with the settings."""

    get = "get"
    set = "set"
    unset = "unset"
    list = "list"


_WORDS = {Action.get: 1, Action.set: 2, Action.unset: 1, Action.list: 0}


@with_settings(stored=False)
def config(
    settings: Settings,
    *,
    action: Annotated[Action, typer.Argument(metavar="ACTION", help="get, set, unset or list.")],
    key: Annotated[
        str | None,
        typer.Argument(metavar="KEY", help="For example threads, generate.top-p.", show_default=False),
    ] = None,
    value: Annotated[str | None, typer.Argument(metavar="VALUE", show_default=False)] = None,
) -> None:
    """Read and change your defaults.

    They are kept in one TOML file in your configuration folder (RWKV_CONFIG names another). A flag wins over
    the environment, and the environment over the file. `list` tells every setting, its value, and where that
    comes from.
    """
    from rwkvcli.services import configuration

    console = Console(settings)
    given = sum(word is not None for word in (key, value))
    if given != _WORDS[action]:
        words = ("", " KEY", " KEY VALUE")[_WORDS[action]]
        raise Misuse(f"write `rwkv config {action.value}{words}`")
    if action is Action.list:
        _tell_all(console)
    elif action is Action.get:
        assert key is not None
        configuration.known(key)
        found, source = _effective(key, configuration.load())
        if settings.json:
            console.line(json.dumps({"key": key, "value": found, "source": source}))
        elif found is None:
            console.note(f"{key} is not set")
        else:
            console.line(_shown(found))
    else:
        assert key is not None
        wanted = None
        if value is not None:
            wanted = configuration.parsed(key, argument_bytes(value).decode("utf-8", "surrogateescape"))
        path = configuration.change(key, wanted)
        console.detail(f"{path} was written")
        if configuration.environment_of(key) is not None:
            console.note(f"note: {configuration.variable(key)} is set, and wins over the file")


def _effective(key: str, stored: dict[str, Any]) -> tuple[Any, str]:
    """The value in force and where it comes from."""
    from rwkvcli.services import configuration

    said = configuration.environment_of(key)
    if said is not None:
        return configuration.parsed(key, said), "environment"
    return (stored[key], "file") if key in stored else (None, "not set")


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _tell_all(console: Console) -> None:
    from rwkvcli.cli.render import table
    from rwkvcli.services import configuration

    stored = configuration.load()
    rows = {key: _effective(key, stored) for key in configuration.KEYS}
    if console.settings.json:
        values = {key: {"value": value, "source": source} for key, (value, source) in rows.items()}
        console.line(json.dumps({"path": configuration.PLACE.told(), "settings": values}))
        return
    lines = [("setting", "value", "from", "what it is")]
    for key, (value, source) in rows.items():
        shown = "-" if value is None else _shown(value)
        lines.append((key, shown, "-" if value is None else source, configuration.KEYS[key].about))
    console.line("\n".join(table(lines)))
    console.note(f"file: {configuration.PLACE.told()}")
