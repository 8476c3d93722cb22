"""How a family of models expects a conversation to be written, and how its words are chosen by default.

The families are data: `rwkvcli/data/templates.toml`, which says what its keys mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rwkvcli.errors import FormatError, UsageError

if TYPE_CHECKING:
    from quant.container.reader import ModelFile

UNNAMED = "none"
"""What a model file says that leaves the choice to its vocabulary and the name of its checkpoint."""

THINK = ("on", "fast", "off")
"""What a reasoning model is to do before its answer: think, go past it with empty thoughts, or nothing special."""
WAYS = {"show": "on", "hide": "on", "only": "on", "fast": "fast", "off": "off"}
"""How a person asks for it, and which of THINK that is: show, hide and only differ in what becomes of the thoughts."""
THINK_LEAD = ">"
"""The end of a tag that was begun without it: closed, it would be another token than the model was trained on."""


class Turn(NamedTuple):
    """One message of the person and, but for the last, the answer that it got."""

    user: str
    reply: str | None = None


@dataclass(frozen=True)
class Template:
    """One family: a table of templates.toml."""

    name: str
    about: str
    tokenizers: tuple[str, ...]
    user: str
    reply: str
    answer: str
    stop: tuple[str, ...]
    sampling: Mapping[str, Any]
    chat: Mapping[str, Any] = field(default_factory=dict)
    system: str = "{system}\n\n"
    files: str | None = None
    begin: bool = False
    lead: str = ""
    collapse: bool = False
    thinking: str | None = None
    fast: str | None = None
    reasoning: Mapping[str, Any] = field(default_factory=dict)
    tools: str = "{tools}"
    call: str = "{call}"
    result: str = "{result}"
    results: str = "{result}"

    def render(self, turns: Sequence[Turn], system: str | None = None) -> str:
        """The text up to where the model's next answer begins; `begin` and the vocabulary are the caller's."""
        parts = [self.opening(system)]
        for turn in turns:
            parts.append(self.message(turn.user))
            if turn.reply is not None:
                parts.append(self.closing(turn.reply))
        return "".join(parts)

    def opening(self, system: str | None) -> str:
        """What stands before the first message."""
        return self.system.replace("{system}", self._clean(system)) if system else ""

    def message(self, text: str, think: str = "off") -> str:
        """A message of the person, and where the answer begins; `think` as in THINK, `off` where there is no such form."""
        return self.user.replace("{user}", self._clean(text)) + (self._form(think) or self.reply)

    @property
    def head(self) -> str:
        """What stands between `reply` and a finished answer."""
        return self.answer.partition("{reply}")[0]

    @property
    def tail(self) -> str:
        """What follows a finished answer."""
        return self.answer.partition("{reply}")[2]

    def closing(self, reply: str) -> str:
        """A finished answer, after `message`, as the conversation goes on."""
        return self.answer.replace("{reply}", reply.strip())

    def settings(self, chat: bool, think: str = "off") -> dict[str, Any]:
        """Defaults for the sampler; `think` as in THINK."""
        thinks = think == "on" and self.thinking is not None
        return {**self.sampling, **(self.chat if chat else {}), **(self.reasoning if thinks else {})}

    def check_way(self, way: str) -> None:
        """Raise UsageError if this family cannot be asked to think in the way `way`, one of WAYS."""
        if way not in WAYS:
            raise UsageError(f"no way to think {way!r}", hint=f"one of {', '.join(WAYS)}")
        if WAYS[way] == "on" and self.thinking is None:
            raise UsageError(
                f"models of the family {self.name} do not think", hint="leave that setting out, or `off`"
            )

    def lead_of(self, think: str) -> str:
        """What the model may write before its thoughts or its answer, after `message(text, think)`."""
        return self.lead if self._form(think) is None else THINK_LEAD

    def _form(self, think: str) -> str | None:
        return {"on": self.thinking, "fast": self.fast}.get(think)

    def _clean(self, text: str) -> str:
        text = text.replace("\r\n", "\n").strip()
        return re.sub(r"\n{2,}", "\n", text) if self.collapse else text


@lru_cache(maxsize=1)
def templates() -> dict[str, Template]:
    """Every family by name, in the order in which they are tried."""
    import tomllib

    data = Path(__file__).parent.parent.joinpath("data", "templates.toml").read_bytes()
    said = tomllib.loads(data.decode("utf-8"))
    common = {key: value for key, value in said.items() if isinstance(value, str)}
    found = {}
    for name, table in said.items():
        if name in common:
            continue
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in table.items()
        }
        found[name] = Template(name=name, **{**common, **values})
    return found


def named(name: str) -> Template:
    """The family called `name`. Raises UsageError."""
    try:
        return templates()[name]
    except KeyError:
        raise UsageError(f"no template {name!r}", hint=f"there are {', '.join(templates())}") from None


def choose(template: str, tokenizer: str, source: str) -> Template:
    """The family of a model: the one its file names, else by its vocabulary and its checkpoint's name.

    `template` and `tokenizer` as in the file's metadata. Raises FormatError for a family that is not known.
    """
    if template != UNNAMED:
        if template not in templates():
            raise FormatError(
                f"the model file names the unknown template {template[:40]!r}",
                hint=f"choose one with --template: {', '.join(templates())}",
            )
        return templates()[template]
    for family in templates().values():
        if tokenizer in family.tokenizers and (
            family.files is None or re.search(family.files, source.lower())
        ):
            return family
    return templates()["plain"]


def template_of(file: ModelFile) -> Template:
    """The family of a model file. Raises as `choose`."""
    source = file.source.get("file")
    return choose(file.template, file.tokenizer, source if isinstance(source, str) else file.path.name)
