"""The person's defaults: one TOML file in the user's configuration folder, below flags and environment."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from rwkvcli.errors import FormatError, UsageError
from rwkvcli.services.places import Place

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


class Key(NamedTuple):
    """What can be set: a kind of value, and what it is for."""

    kind: type
    about: str
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf

    def takes(self, value: Any) -> bool:
        """Whether `value`, of the right kind, is one of those that it can be."""
        if self.kind in (int, float):
            return math.isfinite(value) and self.low <= value <= self.high
        return not self.choices or value in self.choices

    @property
    def wanted(self) -> str:
        """What it can be, for messages."""
        if self.choices:
            return ", ".join(self.choices)
        kind = {int: "a whole number", float: "a number", bool: "yes or no", str: "text"}[self.kind]
        return (
            kind
            + (f" from {self.low:g}" if self.low > -math.inf else "")
            + (f" to {self.high:g}" if self.high < math.inf else "")
        )


KEYS: dict[str, Key] = {
    "model": Key(str, "the model, when -m is not given"),
    "device": Key(str, "where models run"),
    "gpu-layers": Key(int, "layers on the GPU; -1: all, or with auto all that fit", low=-1),
    "draft": Key(str, "what guesses tokens ahead: a smaller model, or lookup; off: nothing"),
    "threads": Key(int, "CPU threads", low=1, high=1024),
    "offline": Key(bool, "use no network"),
    "quiet": Key(bool, "print nothing but the answer and errors"),
    "verbose": Key(bool, "say more"),
    "color": Key(str, "when to use colour", ("auto", "always", "never")),
    "generate.max-tokens": Key(int, "tokens to generate at most; -1: no limit", low=-1),
    "generate.template": Key(str, "form of a conversation, in place of the model's own"),
    "generate.temperature": Key(float, "0 is greedy", low=0),
    "generate.top-k": Key(int, "0: off", low=0),
    "generate.top-p": Key(float, "1: off"),
    "generate.min-p": Key(float, "0: off", low=0, high=1),
    "generate.typical": Key(float, "1: off"),
    "generate.presence-penalty": Key(float, "0: off"),
    "generate.frequency-penalty": Key(float, "0: off"),
    "generate.penalty-decay": Key(float, "of the counts, per token", low=0, high=1),
    "generate.repetition-penalty": Key(float, "1: off"),
    "generate.sampler-order": Key(str, "of cuts and temperature", ("rwkv", "temperature-first")),
    "generate.timeout": Key(float, "seconds until it is given up"),
    "generate.stats": Key(bool, "tell tokens and speed"),
}
"""Global options by their name, options of a verb below the verb's."""

_SAMPLER = ("temperature", "top-k", "top-p", "min-p", "typical", "presence-penalty", "frequency-penalty",
            "penalty-decay", "repetition-penalty", "sampler-order")  # fmt: skip
KEYS |= {
    "chat.system": Key(str, "instructions that a conversation begins with"),
    "chat.template": Key(str, "form of a conversation, in place of the model's own"),
    "chat.think": Key(str, "thoughts of reasoning models", ("show", "hide", "fast", "off")),
    "chat.max-tokens": Key(int, "tokens of an answer at most; -1: no limit", low=-1),
    **{f"chat.{name}": KEYS[f"generate.{name}"] for name in _SAMPLER},
    "serve.host": Key(str, "address that the server listens at"),
    "serve.port": Key(int, "its port", low=0, high=65535),
    "serve.parallel": Key(int, "texts made together", low=1, high=1024),
    "serve.cache": Key(str, "memory for states of earlier prompts"),
    "serve.keep": Key(str, "folder for states that outlive the server"),
    "serve.keep-size": Key(str, "bytes that they take at most"),
    "serve.think": Key(str, "thoughts of reasoning models", ("show", "hide", "fast", "off")),
}


def _default_path() -> Path:
    from platformdirs import user_config_path

    return user_config_path("rwkv", appauthor=False) / "config.toml"


PLACE = Place("RWKV_CONFIG", "file of your defaults", _default_path)
"""RWKV_CONFIG, or `rwkv/config.toml` in the user's configuration folder."""


def config_path() -> Path:
    """The file; it may not be there."""
    return PLACE.path()


def load() -> dict[str, Any]:
    """{key: value} of the file; empty without one.

    Raises FormatError for a file that is not as it should be, UsageError for what can be none.
    """
    if not PLACE.is_known():
        return {}
    path = config_path()
    return checked(_text(path), path)


def checked(text: str, path: Path) -> dict[str, Any]:
    """The keys and values in `text`. Raises FormatError; `path` is for the message."""
    if not text:
        return {}
    import tomllib

    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise FormatError(f"{path}: not valid TOML: {error}", hint="edit the file, or remove it") from None
    found: dict[str, Any] = {}
    for name, value in tables.items():
        entries = (
            {f"{name}.{key}": item for key, item in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
        for key, item in entries.items():
            found[key] = _fitting(key, item, path)
    return found


def environment_of(key: str) -> str | None:
    """What the environment says about `key`; None for keys that it cannot set, or does not: an empty variable is none."""
    return os.environ.get(variable(key)) or None if "." not in key else None


def variable(key: str) -> str:
    """The environment variable that sets `key`, a global one."""
    return f"RWKV_{key.upper().replace('-', '_')}"


def parsed(key: str, text: str) -> Any:
    """`text` from a command line as the value of `key`. Raises UsageError."""
    setting = known(key)
    if not text:  # a variable of a script that is not set
        raise UsageError(f"the value of {key} is empty", hint=f"`rwkv config unset {key}` takes it away")
    try:
        if setting.kind is bool:
            if text.lower() not in _TRUE + _FALSE:
                raise ValueError
            return text.lower() in _TRUE
        value = setting.kind(text)
        text.encode()  # the file is UTF-8
    except UnicodeEncodeError:
        raise UsageError(f"{key} takes UTF-8 text") from None
    except ValueError:
        value = None
    if value is None or not setting.takes(value):
        raise UsageError(f"{key} takes {setting.wanted}, not `{text}`")
    if key == "device":
        from rwkvcli.runtime.device import parse_device

        parse_device(text)
    elif key.endswith(".template"):
        from rwkvcli.runtime.templates import named

        named(text)
    return value


def known(key: str) -> Key:
    """What `key` takes. Raises UsageError for one that does not exist."""
    if key not in KEYS:
        import difflib

        near = difflib.get_close_matches(key, KEYS, n=1)
        hint = f"did you mean {near[0]}?" if near else "`rwkv config list` shows all"
        raise UsageError(f"no setting {key!r}", hint=hint)
    return KEYS[key]


def change(key: str, value: Any) -> Path:
    """Set `key` in the file, or remove it with None; the rest stays as it stands. Returns the file's path.

    Raises UsageError, FormatError (a file that was not valid before), OSError.
    """
    from quant.atomic import whole_file

    known(key)
    path = config_path()
    _changed(path, key, value)  # what cannot be is refused before anything is made
    PLACE.made(path.parent)
    with PLACE.in_use(), whole_file(path) as file:  # one process at a time: none takes back what another set
        file.write(_changed(path, key, value).encode("utf-8"))
    return path


def _changed(path: Path, key: str, value: Any) -> str:
    """What the file at `path` holds, with `key` set or removed."""
    text = _text(path)
    wanted = {name: item for name, item in {**checked(text, path), key: value}.items() if item is not None}
    changed = _edited(text, key, value)
    try:
        same = checked(changed, path) == wanted
    except FormatError:
        same = False
    # else it is written in a way that a look at its lines does not see through
    return changed if same else _dumped(wanted)


def _text(path: Path) -> str:
    # a home that is no folder, as /dev/null is for some services, holds no file; one that was named has to be right
    absent = (FileNotFoundError, *(() if os.environ.get(PLACE.variable) else (NotADirectoryError,)))
    try:
        with PLACE.in_use(), contextlib.suppress(*absent):
            if sys.platform == "win32":  # which has other words for both
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
                if path.parent.is_file():
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
            return path.read_bytes().decode("utf-8")
        return ""
    except UnicodeDecodeError:
        raise FormatError(f"{path}: not UTF-8 text", hint="edit the file, or remove it") from None
    except OSError as error:
        raise FormatError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def _fitting(key: str, value: Any, path: Path) -> Any:
    if key not in KEYS:
        raise FormatError(f"{path}: no setting {key[:60]!r}", hint="`rwkv config list` shows all")
    setting = KEYS[key]
    if setting.kind is float and type(value) is int and abs(value) < 1 << 53:
        value = float(value)
    if type(value) is not setting.kind or not setting.takes(value):
        raise FormatError(f"{path}: {key} takes {setting.wanted}, not {str(value)[:60]!r}")
    return value


def _literal(value: Any) -> str:
    """`value` as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _edited(text: str, key: str, value: Any) -> str:
    """`text` with the line of `key` replaced, added, or removed (None)."""
    table, _, name = key.rpartition(".")
    lines = text.splitlines()
    line = None if value is None else f"{name} = {_literal(value)}"
    current, end = "", None  # where the wanted table ends
    for at, old in enumerate(lines):
        header = re.fullmatch(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?", old)
        if header:
            current = header[1].strip("\"'")
        elif current == table and re.match(rf"\s*[\"']?{re.escape(name)}[\"']?\s*=", old):
            return _joined([*lines[:at], *([] if line is None else [line]), *lines[at + 1 :]])
        if current == table and old.strip():
            end = at + 1
    if line is None:
        return text
    if end is None and table:
        return _joined([*lines, *([""] if lines else []), f"[{table}]", line])
    return _joined([*lines[: end or 0], line, *lines[end or 0 :]])


def _dumped(values: dict[str, Any]) -> str:
    tables: dict[str, list[str]] = {}
    for key, value in values.items():
        table, _, name = key.rpartition(".")
        tables.setdefault(table, []).append(f"{name} = {_literal(value)}")
    lines = tables.pop("", [])
    for table, entries in tables.items():
        lines += [*([""] if lines else []), f"[{table}]", *entries]
    return _joined(lines)


def _joined(lines: list[str]) -> str:
    return "".join(line + "\n" for line in lines)
