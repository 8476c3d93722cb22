"""Texts as JSON in OpenAI's form: whole, or piece by piece."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rwkvcli.server import logprobs
from rwkvcli.server.calls import CallsOfAnswer

if TYPE_CHECKING:
    from rwkvcli.runtime.judged import Judged
    from rwkvcli.runtime.model import Model
    from rwkvcli.server.requests import Wanted
    from rwkvcli.services.serving import News, Ticket


_TOGETHER = 256
"""Items of a list that are written to JSON together."""


@dataclass
class _Text:
    """One text, as far as it has come."""

    text: str
    thinking: str = ""
    prompt: Judged | None = None
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None
    calls: CallsOfAnswer | None = None
    """What tells calls of tools from the text, if there are tools to call; `text` is all of it then."""


class Used(NamedTuple):
    """Tokens of a request, so far."""

    read: int
    """Of prompts; one counts once, however many texts are made from it."""
    known: int
    """Those of them that had not to be read."""
    made: int
    thoughts: int
    """Those of them that are thoughts."""

    @classmethod
    def of(cls, tickets: Sequence[Ticket], each: int = 1) -> Used:
        """By `tickets`, of which every `each` have the same prompt."""
        firsts = tickets[::each]
        return cls(
            sum(len(ticket.asked.ids) for ticket in firsts),
            sum(ticket.cached for ticket in firsts),
            sum(ticket.completion_tokens for ticket in tickets),
            sum(ticket.thinking_tokens for ticket in tickets),
        )


class Reply(Protocol):
    """The answer to one request: takes `News` in, and gives JSON out, whole or as the pieces of a stream."""

    end: str
    """What a stream has after its pieces."""

    @property
    def done(self) -> bool:
        """Whether all texts have ended."""

    @property
    def used(self) -> Used:
        """The tokens of it."""

    def opening(self) -> list[dict[str, Any]]:
        """The first pieces of a stream."""

    def take(self, number: int, news: News) -> list[dict[str, Any]]:
        """What is new of text `number`, which has no error: the next pieces of a stream."""

    def closing(self) -> list[dict[str, Any]]:
        """The last pieces of a stream."""

    def broken(self, why: dict[str, Any]) -> list[dict[str, Any]]:
        """The last pieces of a stream that ends by the failure `why`."""

    def whole(self) -> dict[str, Any]:
        """All of it, when it is done."""


def told_apart(news: News) -> tuple[str, str]:
    """The thoughts in `news`, and the text."""
    thoughts = "".join(part.text for part in news.parts if part.thinking)
    return thoughts, "".join(part.text for part in news.parts if not part.thinking)


class ChoicesReply:
    """Texts side by side, as `choices`.

    `chat`: an answer of a conversation, else a text. `name`: what the model is called.
    """

    end = "data: [DONE]\n\n"

    def __init__(
        self, wanted: Wanted, tickets: Sequence[Ticket], model: Model, name: str, chat: bool
    ) -> None:
        self._wanted = wanted
        self._tickets = tickets
        self._model = model
        self._chat = chat
        calls = wanted.calls
        self._texts = [
            _Text(before, calls=CallsOfAnswer(calls()) if calls is not None else None)
            for before in wanted.before
        ]
        self._places = [logprobs.Place(before) for before in wanted.before]
        kind = "chat.completion" if chat else "text_completion"
        self._head = {
            "id": ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12),
            "object": kind,
            "created": int(time.time()),
            "model": name,
            "system_fingerprint": model.fingerprint[:16],
        }

    @property
    def done(self) -> bool:
        return all(text.finish is not None for text in self._texts)

    @property
    def used(self) -> Used:
        return Used.of(self._tickets, self._wanted.each)

    def opening(self) -> list[dict[str, Any]]:
        if self._chat:
            start = {"role": "assistant", "content": "" if self._wanted.calls is None else None}
            return [self._chunk(i, start) for i in range(len(self._texts))]
        # a prompt whose log-probabilities are told comes with them
        texts = zip(self._texts, self._wanted.asked, strict=True)
        return [
            self._chunk(i, text.text)
            for i, (text, asked) in enumerate(texts)
            if text.text and not asked.judged
        ]

    def take(self, number: int, news: News) -> list[dict[str, Any]]:
        text, chunks = self._texts[number], []
        thoughts, answer = told_apart(news)
        shows = self._wanted.asked[number].settings.think == "show"
        told = self._logprobs(number, news.logprobs)
        if news.prompt is not None:
            text.prompt = news.prompt
            if self._wanted.stream:
                of_prompt = self._of_prompt(number, news.prompt)
                chunks.append(self._chunk(number, self._wanted.before[number], of_prompt))
        if thoughts and shows:
            text.thinking += thoughts
            chunks.append(self._chunk(number, {"reasoning_content": thoughts}))
        text.text += answer
        if text.calls is not None:
            deltas: list[Any] = [*text.calls.take(answer, ended=news.ended is not None)]
            deltas = deltas or ([{}] if news.logprobs else [])
        else:
            deltas = [{"content": answer} if self._chat else answer] if answer or news.logprobs else []
        for delta in deltas:
            chunks.append(self._chunk(number, delta, told))
            told = None
        text.logprobs += news.logprobs
        if news.ended is not None:
            reason = news.ended.finish_reason
            text.finish = reason if text.calls is None else text.calls.finish(reason)
            chunks.append(self._chunk(number, {} if self._chat else "", finish=text.finish))
        return chunks

    def closing(self) -> list[dict[str, Any]]:
        if not self._wanted.usage:
            return []
        return [{**self._chunk_head(), "choices": [], "usage": self._usage()}]

    def broken(self, why: dict[str, Any]) -> list[dict[str, Any]]:
        return [why]

    def whole(self) -> dict[str, Any]:
        choices = [*map(self._choice, range(len(self._texts)))]
        return {**self._head, "choices": choices, "usage": self._usage()}

    def _usage(self) -> dict[str, Any]:
        used = self.used
        return {
            "prompt_tokens": used.read,
            "completion_tokens": used.made,
            "total_tokens": used.read + used.made,
            "prompt_tokens_details": {"cached_tokens": used.known},
        }

    def _choice(self, number: int) -> dict[str, Any]:
        text = self._texts[number]
        self._places[number] = logprobs.Place(self._wanted.before[number])
        told = self._logprobs(number, text.logprobs)
        if told is not None and text.prompt is not None:
            told = logprobs.joined(self._of_prompt(number, text.prompt), told)
        rest = {"logprobs": told, "finish_reason": text.finish}
        if not self._chat:
            return {"index": number, "text": text.text, **rest}
        thinking = {"reasoning_content": text.thinking} if text.thinking else {}
        said = {"content": text.text} if text.calls is None else text.calls.message()
        message = {"role": "assistant", **said, **thinking, "refusal": None}
        return {"index": number, "message": message, **rest}

    def _chunk_head(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk"} if self._chat else dict(self._head)

    def _chunk(
        self, number: int, content: Any, told: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        usage = {"usage": None} if self._wanted.usage else {}
        choice = {
            "index": number,
            "delta" if self._chat else "text": content,
            "logprobs": told,
            "finish_reason": finish,
        }
        return {**self._chunk_head(), "choices": [choice], **usage}

    def _logprobs(self, number: int, tokens: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        if self._wanted.asked[number].settings.logprobs is None:
            return None
        if self._chat:
            return logprobs.of_answer(self._model.tokenizer, tokens)
        return logprobs.of_text(self._model.tokenizer, tokens, self._places[number])

    def _of_prompt(self, number: int, judged: Judged) -> dict[str, Any]:
        return logprobs.of_prompt(self._model.tokenizer, self._tickets[number].asked.ids, judged)


def model_card(name: str, created: int) -> dict[str, Any]:
    """A model in the list of models."""
    return {"id": name, "object": "model", "created": created, "owned_by": "rwkv"}


json_of = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
"""JSON in one line."""


def json_in_parts(value: Any) -> str:
    """The same of what may be large: long lists are written in parts, between which other threads go on."""
    if isinstance(value, dict) and any(isinstance(part, dict | list) for part in value.values()):
        return "{" + ",".join(f"{json_of(key)}:{json_in_parts(part)}" for key, part in value.items()) + "}"
    if not isinstance(value, list):
        return json_of(value)
    if len(value) <= _TOGETHER:
        return "[" + ",".join(map(json_in_parts, value)) + "]"
    parts = (json_of(value[at : at + _TOGETHER])[1:-1] for at in range(0, len(value), _TOGETHER))
    return "[" + ",".join(parts) + "]"


def failure(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
