"""A conversation as a file for people or for other programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rwkvcli.services.json_text import json_text
from rwkvcli.services.turns import History

FORMATS = ("md", "jsonl")


def transcript(history: History, name: str, form: str) -> str:
    """The conversation as it stands, as one of FORMATS; `name` is its title."""
    if form == "md":
        return "".join(_markdown(history, name))
    return "".join(json_text(message) + "\n" for message in messages(history))


def messages(history: History) -> Iterator[dict[str, Any]]:
    """`role` and `content` of each message; `thinking` where there was any. Files are of role `read` or `load`."""
    if history.system:
        yield {"role": "system", "content": history.system}
    for turn in history.path():
        if turn.kind != "message":
            yield {"role": turn.kind, "content": turn.user}
            continue
        yield {"role": "user", "content": turn.user}
        thoughts = {"thinking": turn.thinking} if turn.thinking else {}
        yield {"role": "assistant", "content": turn.reply, **thoughts}


def _markdown(history: History, name: str) -> Iterator[str]:
    yield f"# {name}\n"
    if history.system:
        yield "\n" + "".join(f"> {line}\n" for line in history.system.strip().splitlines())
    for turn in history.path():
        if turn.kind == "message":
            yield f"\n## User\n\n{turn.user.strip()}\n\n## Assistant\n\n{turn.reply}\n"
        else:
            what = "read" if turn.kind == "read" else "went on from the state"
            yield f"\n*({what} {turn.user})*\n"
