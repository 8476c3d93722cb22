"""What `/set` changes: the settings of the sampler and a few more, by the names of the command line's options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from rwkvcli.errors import UsageError

if TYPE_CHECKING:
    from rwkvcli.services.conversation import Conversation, Settings

SETTINGS: dict[str, type] = {
    "temperature": float,
    "top-k": int,
    "top-p": float,
    "min-p": float,
    "typical": float,
    "presence-penalty": float,
    "frequency-penalty": float,
    "penalty-decay": float,
    "repetition-penalty": float,
    "max-tokens": int,
    "seed": int,
}
_SHORT = {"temp": "temperature", "t": "temperature"}
_DEFAULT = "default"


def changed(settings: Settings, argument: str) -> tuple[Settings, int | None, str]:
    """`settings` after `NAME=VALUE`, a new seed if it is one, and what was done. Raises UsageError."""
    name, equals, text = (part.strip() for part in argument.partition("="))
    name = name.lower().replace("_", "-")
    name = _SHORT.get(name, name)
    if name not in SETTINGS:
        raise UsageError(f"no setting {name!r}", hint=f"there are {', '.join(SETTINGS)}")
    if not equals or not text:
        raise UsageError(f"say to what: /set {name}=VALUE, or {name}={_DEFAULT}")
    try:
        value = None if text == _DEFAULT else SETTINGS[name](text)
    except ValueError:
        kind = "a whole number" if SETTINGS[name] is int else "a number"
        raise UsageError(f"{name} takes {kind}, not `{text}`") from None
    said = f"{name} is {text}"
    if name == "seed":
        if value is None:
            raise UsageError("a seed is a number")
        return settings, value, said
    if name == "max-tokens":
        from rwkvcli.services.conversation import MAX_TOKENS

        return replace(settings, max_tokens=MAX_TOKENS if value is None else value), None, said
    sampling = {key: old for key, old in settings.sampling.items() if key != name.replace("-", "_")}
    if value is not None:
        sampling[name.replace("-", "_")] = value
    return replace(settings, sampling=sampling), None, said


def told(talk: Conversation) -> Iterator[str]:
    """The settings in force, a line each."""
    usual = talk.usual
    for name in SETTINGS:
        key = name.replace("-", "_")
        if name == "seed":
            seed, random = talk.seed, talk.history.random
            if seed is None and random is not None:
                seed = random[0]
            yield f"seed = {seed if seed is not None else 'random'}"
        elif name == "max-tokens":
            yield f"max-tokens = {talk.settings.max_tokens}"
        elif key in talk.settings.sampling:
            yield f"{name} = {talk.settings.sampling[key]}"
        elif key in usual:
            yield f"{name} = {usual[key]}  (usual for this model)"
    yield f"think = {talk.settings.think or 'off'}, template = {talk.template.name}"
