"""Log-probabilities as JSON in OpenAI's form: of a text's tokens, of its prompt's, and of an answer's."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rwkvcli.runtime.judged import Judged
    from rwkvcli.runtime.tokenizer import Tokenizer

_DIGITS = 6
"""After the point, as those of made tokens have."""


class Place:
    """How many characters of a text are whole before its next token: a token may be a part of one."""

    def __init__(self, before: str = "") -> None:
        self._at = len(before)
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def passed(self, data: bytes) -> int:
        """The place of the token with these bytes, which is behind it then."""
        at = self._at
        self._at += len(self._characters.decode(data))
        return at


def of_answer(tokenizer: Tokenizer, tokens: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of tokens that were made for a conversation, in the form of `Generation.logprobs`."""

    def judged(token: Mapping[str, Any]) -> dict[str, Any]:
        data = tokenizer.decode_bytes((token["id"],))
        return {"token": token["text"], "logprob": token["logprob"], "bytes": list(data)}

    return {"content": [{**judged(token), "top_logprobs": [*map(judged, token["top"])]} for token in tokens]}


def of_text(tokenizer: Tokenizer, tokens: Sequence[Mapping[str, Any]], place: Place) -> dict[str, Any]:
    """Of tokens that were made for a text, in the form of `Generation.logprobs`; the first of them is at `place`."""
    return {
        "tokens": [token["text"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [{top["text"]: top["logprob"] for top in token["top"]} for token in tokens],
        "text_offset": [place.passed(tokenizer.decode_bytes((token["id"],))) for token in tokens],
    }


def of_prompt(tokenizer: Tokenizer, ids: Sequence[int], judged: Judged) -> dict[str, Any]:
    """Of the tokens of a prompt, in the same form; null where nothing is known of a token."""
    name, place = _namer(tokenizer), Place()
    return {
        "tokens": [name(token)[1] for token in ids],
        "token_logprobs": [None if math.isnan(value) else round(value, _DIGITS) for value in judged.logprobs],
        "top_logprobs": [
            None if math.isnan(value) else _top(judged.top(number), name)
            for number, value in enumerate(judged.logprobs)
        ],
        "text_offset": [place.passed(name(token)[0]) for token in ids],
    }


def joined(prompt: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """Both, one after the other."""
    return {name: [*prompt[name], *text[name]] for name in text}


def _top(found: Sequence[tuple[int, float]], name: Callable[[int], tuple[bytes, str]]) -> dict[str, float]:
    return {name(token)[1]: round(value, _DIGITS) for token, value in found}


def _namer(tokenizer: Tokenizer) -> Callable[[int], tuple[bytes, str]]:
    """A function from ids, most of which come again, to their bytes and texts."""
    known: dict[int, tuple[bytes, str]] = {}

    def name(token: int) -> tuple[bytes, str]:
        found = known.get(token)
        if found is None:
            data = tokenizer.decode_bytes((token,))
            found = known[token] = data, data.decode("utf-8", "replace")
        return found

    return name
