"""What a generated text must conform to: a JSON Schema, a regular expression, one of several texts, or a grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from rwkvcli.errors import UsageError
from rwkvcli.runtime.thoughts import CLOSE

if TYPE_CHECKING:
    from rwkvcli.runtime.grammar import GrammarMatcher
    from rwkvcli.runtime.tokenizer import Tokenizer

KINDS = {
    "schema": "the schema", "regex": "the regular expression", "choices": "the choices", "grammar": "the grammar"
}  # fmt: skip
"""The kinds, under the names that they have everywhere, and how messages speak of them."""
LARGEST = 1 << 18
"""Bytes."""
_LARGEST = {kind: 1 << 14 if kind == "regex" else LARGEST for kind in KINDS}
"""The same for each. Regular expressions can take llguidance time that grows with the square of their length."""
_HINTS = {
    "schema": "docs/structured-output.md tells what a schema may use",
    "regex": "it is written as for Rust's crate regex: no look-around, no back-references",
    "grammar": "it is written as for Lark, with the rule `start`",
}
_GBNF = re.compile(r"^\s*[A-Za-z][\w-]*\s*::=", re.MULTILINE)
_STYLE = {"whitespace_pattern": r"( |\n[ \t]{0,32})"}
"""White space in JSON: a space, or a new line and its indentation, as models write it. By itself llguidance lets any amount
of it come, and a small model might never stop."""
_NAME = "answer"
_WHITE, _WIDEST = " \n", 2
"""What may stand before an answer in a conversation, and how much of it."""


@dataclass(frozen=True)
class Constraint:
    """Made by `of_schema`, `of_regex`, `of_choices` or `of_grammar`, which check what they are given at once.

    They raise UsageError, and MissingExtra where the optional package llguidance is not installed.
    """

    kind: str
    """One of KINDS, or `tools` (CallConstraint)."""
    rules: str
    """JSON: a grammar of llguidance, whose name comes first: `answer`."""
    white: str
    """Characters that may stand before an answer in a conversation without being a part of it: none where a conforming
    text may begin with one of them itself."""

    @classmethod
    def of_schema(cls, schema: Mapping[str, Any] | str, *, lenient: bool = False) -> Constraint:
        """JSON that conforms to a JSON Schema, given as a dictionary or as text. `lenient`: what of it llguidance does not keep
        to is passed over instead of refused, unless the schema's own `x-guidance` says something else."""
        if isinstance(schema, str):
            schema = _parsed(_sound("schema", schema))
        elif not isinstance(schema, Mapping):
            raise UsageError(f"a schema is a dictionary or JSON text, not {type(schema).__name__}")
        style = schema.get("x-guidance", {})
        if not isinstance(style, Mapping):
            raise UsageError("x-guidance of the schema is not an object")
        try:
            own = {**schema, "x-guidance": {**_STYLE, **({"lenient": True} if lenient else {}), **style}}
            rules = _rules(json_schema=own)
        except (TypeError, ValueError) as e:  # a dictionary may hold anything
            raise UsageError(f"the schema is not JSON: {e}") from None
        except RecursionError:
            raise _too_deep() from None
        if len(rules) > 2 * LARGEST:  # of a dictionary; as text it may have been shorter
            raise _too_large("schema")
        return cls._checked("schema", rules)

    @classmethod
    def of_regex(cls, pattern: str) -> Constraint:
        """A text that matches a regular expression from its beginning to its end."""
        from rwkvcli.runtime.grammar import require

        made = json.loads(require("regex").LLMatcher.grammar_from_regex(_sound("regex", pattern)))
        return cls._checked("regex", _rules(lark_grammar=made["grammars"][0]["lark_grammar"]))

    @classmethod
    def of_choices(cls, choices: Iterable[str]) -> Constraint:
        """Exactly one of the texts."""
        if isinstance(choices, str | Mapping) or not isinstance(choices, Iterable):
            raise UsageError(f"choices takes a list of strings, not {choices!r:.80}")
        texts = [_sound("choices", text) for text in choices]
        if not texts:
            raise UsageError("there are no choices", hint="give one text or more")
        if "" in texts:
            raise UsageError("a choice is empty")
        if sum(map(len, texts)) > LARGEST:
            raise _too_large("choices")
        alternatives = " | ".join(map(json.dumps, dict.fromkeys(texts)))
        return cls._checked("choices", _rules(lark_grammar=f"start: CHOICE\nCHOICE: {alternatives}"))

    @classmethod
    def of_grammar(cls, grammar: str) -> Constraint:
        """A text of a context-free grammar, in Lark's form as llguidance takes it."""
        return cls._checked("grammar", _rules(lark_grammar=_sound("grammar", grammar)), grammar)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Constraint | None:
        """That of the one of KINDS that `given` has; None: it has none, or None in its place. Raises UsageError for two."""
        named = [kind for kind in KINDS if given.get(kind) is not None]
        if len(named) > 1:
            raise UsageError(f"{named[0]} and {named[1]} do not go together", hint="use one of them")
        make: dict[str, Callable[[Any], Constraint]] = {
            "schema": cls.of_schema, "regex": cls.of_regex, "choices": cls.of_choices, "grammar": cls.of_grammar
        }  # fmt: skip
        return make[named[0]](given[named[0]]) if named else None

    def matcher(self, tokenizer: Tokenizer) -> GrammarMatcher:
        """What holds a text to it, from the first token. Raises UsageError for a vocabulary that this cannot be done with."""
        from rwkvcli.runtime.grammar import GrammarMatcher

        return GrammarMatcher(_joined(self.rules), tokenizer)

    def answer_matcher(self, tokenizer: Tokenizer, thinks: bool, lead: str) -> GrammarMatcher:
        """What holds an answer to it: first any thoughts and their end, or `lead`, which the model was trained to write;
        then perhaps a little of `white`; then the answer."""
        begin, rules = lead_in(thinks, lead)
        white = "WHITE?" if self.white else ""
        return self._answer(tokenizer, f"start: {begin} {white} @answer\n{rules}")

    def _answer(self, tokenizer: Tokenizer, outer: str) -> GrammarMatcher:
        """What follows an answer of the grammar `outer`, which may name those of `rules`."""
        from rwkvcli.runtime.grammar import GrammarMatcher

        return GrammarMatcher(_joined(json.dumps({"lark_grammar": outer}), self.rules), tokenizer)

    @classmethod
    def _checked(cls, kind: str, rules: str, source: str = "") -> Constraint:
        from rwkvcli.runtime.grammar import first_bytes, require, told

        require(kind)
        try:
            first = first_bytes(_joined(rules))
        except ValueError as e:
            why, hint = told(str(e)), _HINTS.get(kind)
            if kind == "schema" and "recursion limit" in why:
                raise _too_deep() from None
            if kind == "regex":
                why = re.sub(r"^line \d+, column \d+: ", "", why)  # of a grammar that is not the person's
            if kind == "grammar" and _GBNF.search(source):
                hint = "that is GBNF: `python -m llguidance.gbnf_to_lark FILE.gbnf` writes FILE.lark"
            raise UsageError(f"{KINDS[kind]} cannot be used: {why}", hint=hint) from None
        return cls(kind, rules, "" if any(byte in first for byte in _WHITE.encode()) else _WHITE)


def lead_in(thinks: bool, lead: str) -> tuple[str, str]:
    """What comes before an answer, as a symbol of a grammar, and rules for it and for WHITE."""
    symbol = "thoughts" if thinks else "LEAD" if lead else ""
    rules = (
        f"thoughts[suffix={json.dumps(CLOSE)}]: /(?s:.*)/" if thinks else "",
        f"LEAD: {json.dumps(lead)}" if lead and not thinks else "",
        f"WHITE: /[{json.dumps(_WHITE)[1:-1]}]{{1,{_WIDEST}}}/",
    )
    return symbol, "\n".join(rules)


def _joined(*rules: str) -> str:
    """A grammar as llguidance takes it, that begins with the first rules."""
    return f'{{"grammars": [{", ".join(rules)}]}}'


def _rules(**rules: Any) -> str:
    return json.dumps({"name": _NAME, **rules}, allow_nan=False)


def renamed(rules: str, name: str) -> str:
    """The rules of a Constraint under another name, so that several can stand in one grammar."""
    return rules.replace(json.dumps(_NAME), json.dumps(name), 1)


def _sound(kind: str, text: Any) -> str:
    """`text`, if it is one that can be given on. Raises UsageError."""
    if not isinstance(text, str):
        raise UsageError(
            f"{kind} takes {'a list of strings' if kind == 'choices' else 'a string'}, not {text!r:.80}"
        )
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise UsageError(f"{KINDS[kind]} cannot be used: not valid UTF-8") from None
    if size > _LARGEST[kind]:
        raise _too_large(kind)
    return text


def _too_large(kind: str) -> UsageError:
    return UsageError(f"{KINDS[kind]} cannot be used: larger than {_LARGEST[kind] >> 10} KB")


def _too_deep() -> UsageError:
    return UsageError("the schema is nested too deeply")


def _parsed(text: str) -> dict[str, Any]:
    """The object in a schema's text. Raises UsageError."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number of JSON")

    try:
        schema = json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as e:
        why = f"line {e.lineno}, column {e.colno}: {e.msg[:1].lower()}{e.msg[1:]}"
        raise UsageError(f"the schema is not JSON: {why}") from None
    except ValueError as e:
        raise UsageError(f"the schema is not JSON: {e}") from None
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(schema, dict):
        raise UsageError("the schema is no JSON object", hint='{"type": "object"} is one: any object')
    return schema
