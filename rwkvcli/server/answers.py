"""Texts as JSON in OpenAI's form: whole, or piece by piece."""

from __future__ import annotations

import codecs
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rwkvcli.runtime.model import Model
    from rwkvcli.server.requests import Wanted
    from rwkvcli.services.serving import News, Ticket


@dataclass
class _Text:
    """One text, as far as it has come."""

    text: str
    thinking: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None


class _Place:
    """How many characters of a text are whole before its next token: a token may be a part of one."""

    def __init__(self, before: str) -> None:
        self._at = len(before)
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def passed(self, data: bytes) -> int:
        """The place of the token with these bytes, which is behind it then."""
        at = self._at
        self._at += len(self._characters.decode(data))
        return at


class Reply:
    """The answer to one request: take `News` in, and give JSON out.

    `chat`: an answer of a conversation, else a text. `name`: what the model is called.
    """

    def __init__(
        self, wanted: Wanted, tickets: Sequence[Ticket], model: Model, name: str, chat: bool
    ) -> None:
        self._wanted = wanted
        self._tickets = tickets
        self._model = model
        self._chat = chat
        self._texts = [_Text(before) for before in wanted.before]
        self._places = [_Place(before) for before in wanted.before]
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
        """Whether all texts have ended."""
        return all(text.finish is not None for text in self._texts)

    def opening(self) -> list[dict[str, Any]]:
        """The first pieces of a stream."""
        if self._chat:
            return [self._chunk(i, {"role": "assistant", "content": ""}) for i in range(len(self._texts))]
        return [self._chunk(i, text.text) for i, text in enumerate(self._texts) if text.text]

    def take(self, number: int, news: News) -> list[dict[str, Any]]:
        """What is new of text `number`, which has no error: the next pieces of a stream."""
        text, chunks = self._texts[number], []
        thoughts = "".join(part.text for part in news.parts if part.thinking)
        answer = "".join(part.text for part in news.parts if not part.thinking)
        shows = self._wanted.asked[number].settings.think == "show"
        logprobs = self._logprobs(number, news.logprobs)
        if thoughts and shows:
            text.thinking += thoughts
            chunks.append(self._chunk(number, {"reasoning_content": thoughts}))
        if answer or news.logprobs:
            text.text += answer
            chunks.append(self._chunk(number, {"content": answer} if self._chat else answer, logprobs))
        text.logprobs += news.logprobs
        if news.ended is not None:
            text.finish = news.ended.finish_reason
            chunks.append(self._chunk(number, {} if self._chat else "", finish=text.finish))
        return chunks

    def closing(self) -> list[dict[str, Any]]:
        """The last piece of a stream, if it is wanted: the usage."""
        if not self._wanted.usage:
            return []
        return [{**self._chunk_head(), "choices": [], "usage": self.usage()}]

    def whole(self) -> dict[str, Any]:
        """All of it, when it is done."""
        return {**self._head, "choices": [*map(self._choice, range(len(self._texts)))], "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Tokens so far; a prompt counts once, however many texts are made from it."""
        firsts = self._tickets[:: self._wanted.each]
        prompt = sum(len(ticket.asked.ids) for ticket in firsts)
        completion = sum(ticket.completion_tokens for ticket in self._tickets)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(ticket.cached for ticket in firsts)},
        }

    def _choice(self, number: int) -> dict[str, Any]:
        text = self._texts[number]
        self._places[number] = _Place(self._wanted.before[number])
        rest = {"logprobs": self._logprobs(number, text.logprobs), "finish_reason": text.finish}
        if not self._chat:
            return {"index": number, "text": text.text, **rest}
        thinking = {"reasoning_content": text.thinking} if text.thinking else {}
        message = {"role": "assistant", "content": text.text, **thinking, "refusal": None}
        return {"index": number, "message": message, **rest}

    def _chunk_head(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk"} if self._chat else dict(self._head)

    def _chunk(
        self, number: int, content: Any, logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        usage = {"usage": None} if self._wanted.usage else {}
        choice = {
            "index": number,
            "delta" if self._chat else "text": content,
            "logprobs": logprobs,
            "finish_reason": finish,
        }
        return {**self._chunk_head(), "choices": [choice], **usage}

    def _logprobs(self, number: int, tokens: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        if self._wanted.asked[number].settings.logprobs is None:
            return None
        if self._chat:
            return {
                "content": [
                    {**self._judged(t), "top_logprobs": [*map(self._judged, t["top"])]} for t in tokens
                ]
            }
        return {
            "tokens": [token["text"] for token in tokens],
            "token_logprobs": [token["logprob"] for token in tokens],
            "top_logprobs": [{top["text"]: top["logprob"] for top in token["top"]} for token in tokens],
            "text_offset": [self._places[number].passed(self._bytes_of(token)) for token in tokens],
        }

    def _judged(self, token: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "token": token["text"], "logprob": token["logprob"], "bytes": list(self._bytes_of(token))
        }  # fmt: skip

    def _bytes_of(self, token: Mapping[str, Any]) -> bytes:
        return self._model.tokenizer.decode_bytes((token["id"],))


def model_card(name: str, created: int) -> dict[str, Any]:
    """A model in the list of models."""
    return {"id": name, "object": "model", "created": created, "owned_by": "rwkv"}


def failure(message: str, kind: str, param: str | None = None) -> dict[str, Any]:
    """An error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}
