"""What holds an answer to tools: it calls some of them, or it is free text, which calls may follow."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rwkvcli.errors import UsageError
from rwkvcli.runtime.constraint import LARGEST, Constraint, lead_in, renamed
from rwkvcli.runtime.tool_calls import CallForm

if TYPE_CHECKING:
    from rwkvcli.runtime.grammar import GrammarMatcher
    from rwkvcli.runtime.templates import Template
    from rwkvcli.runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class CallConstraint(Constraint):
    """Made by `of_tools`. What it lets through CallSplitter takes apart.

    A call begins with `form.opening`, or in free text with that, also in JSON with white space, and the name of a tool; from there on
    it is held to the tools. Free text ends where the family's answers do, calls end the answer.
    """

    form: CallForm
    names: tuple[str, ...]
    free: bool
    """Whether there may be no call at all."""
    several: bool
    """Whether there may be more than one."""
    lead: str
    head: str
    tail: str
    """Of the family: what the model may write before an answer, and what stands around answers."""

    @classmethod
    def of_tools(
        cls, tools: Mapping[str, Constraint], template: Template, *, free: bool, several: bool
    ) -> CallConstraint:
        """`tools` are what the arguments of each conform to, made by `of_schema`."""
        rules = [renamed(each.rules, f"tool{i}") for i, each in enumerate(tools.values())]
        if sum(map(len, rules)) > 2 * LARGEST:
            raise UsageError(f"the tools cannot be used: larger than {LARGEST >> 10} KB together")
        return cls(
            "tools",
            ", ".join(rules),
            " \n",
            CallForm.of(template),
            tuple(tools),
            free,
            several,
            template.lead,
            template.head,
            template.tail,
        )

    def answer_matcher(self, tokenizer: Tokenizer, thinks: bool, lead: str) -> GrammarMatcher:
        begin, rules = lead_in(thinks, lead)
        lines = [rules, *self._calls()]
        if self.free:
            lines += self._free_text()
            start = f"{begin} body"
        elif not thinks and lead == self.lead and self.head:  # as it will stand in the conversation
            lines += [f"HEAD: {_literal(self.head)}", f"OPENING: {_literal(self.form.opening)}"]
            start = "HEAD OPENING call more"
        else:
            lines.append(f"OPENING: {_literal(self.form.opening)}")
            start = f"{begin} WHITE? OPENING call more"
        return self._answer(tokenizer, "\n".join((f"start: {start}", *lines)))

    def _calls(self) -> list[str]:
        """The rules for what follows the opening of a call: `call`, and `more` calls after it."""
        lines = ["call: " + " | ".join(f"call{i}" for i in range(len(self.names)))]
        for i, name in enumerate(self.names):
            between = _literal(f'"{name}","arguments":')
            lines.append(f"call{i}: {between} @tool{i} CLOSE")
        lines.append(f"CLOSE: {_literal('}' + self.form.after)}")
        ends = list(filter(None, (self.tail, *self.form.stop)))
        if not self.several:
            lines.append('more: ""')
        elif ends:
            lines += ["more: (NEXT call)* end?", f"end[lazy]: /{_either(ends)}/"]
        else:
            lines.append("more: (NEXT call)*")
        if self.several:
            lines.append(f"NEXT: {_literal(chr(10) + self.form.opening)}")
        return lines

    def _free_text(self) -> list[str]:
        """The rules for `body`: text to its end, or to the first call."""
        lines = [r"TEXT: /(?s:.*)/"]
        bodies = ["TEXT"]
        if self.form.stop:
            lines.append(f"ended[lazy]: /(?s:.*){_either(self.form.stop)}/")
            bodies.append("ended")
        for i, name in enumerate(self.names):
            lines.append(f"opened{i}[lazy]: /(?s:.*){_slashed(self.form.free_opening(name))}/")
            bodies.append(f'opened{i} COMMA "\\"arguments\\":" " "? @tool{i} FREE_CLOSE more')
        lines += [r"COMMA: /,(\n[ \t]{1,8}| )?/", f"FREE_CLOSE: /\\n?/ {_literal('}' + self.form.after)}"]
        return [*lines, "body: " + " | ".join(bodies)]


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _either(texts: list[str] | tuple[str, ...]) -> str:
    """A regular expression for one of these texts."""
    return _slashed("(?:" + "|".join(map(re.escape, texts)) + ")")


def _slashed(pattern: str) -> str:
    """The same in a grammar, between slashes. Python escapes a line end by one that stands there."""
    return pattern.replace("\\\n", "\\n").replace("\n", "\\n").replace("/", "\\/").replace("\\ ", " ")
