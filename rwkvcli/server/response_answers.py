"""Answers as JSON in the form of the Responses API: whole, or as the events of a stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rwkvcli.server import logprobs
from rwkvcli.server.answers import Used, told_apart
from rwkvcli.server.items import new_id, text_part
from rwkvcli.server.stored import Item, Turn
from rwkvcli.services.tool_calls import CallPiece

if TYPE_CHECKING:
    from rwkvcli.runtime.model import Model
    from rwkvcli.server.responses import WantedResponse
    from rwkvcli.services.serving import News, Ticket

Event = tuple[str, dict[str, Any]]
"""The kind of an event of an item, and what it says beside where that is."""


class _Thoughts:
    """Thoughts in the making."""

    def __init__(self) -> None:
        self.id = new_id("rs")
        self._text = ""

    def told(self, status: str) -> Item:
        content = [self._part(self._text)] if status != "in_progress" else []
        return {"id": self.id, "type": "reasoning", "status": status, "summary": [], "content": content}

    def opening(self) -> list[Event]:
        return [("response.content_part.added", {"content_index": 0, "part": self._part("")})]

    def grown(self, text: str, _told: Sequence[Any] = ()) -> list[Event]:
        self._text += text
        return [("response.reasoning_text.delta", {"content_index": 0, "delta": text})]

    def closing(self) -> list[Event]:
        return [
            ("response.reasoning_text.done", {"content_index": 0, "text": self._text}),
            ("response.content_part.done", {"content_index": 0, "part": self._part(self._text)}),
        ]

    @staticmethod
    def _part(text: str) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": text}


class _Message:
    """The text of an answer in the making."""

    def __init__(self) -> None:
        self.id = new_id("msg")
        self._text = ""
        self._logprobs: list[Any] = []

    def told(self, status: str) -> Item:
        content = [self._part()] if status != "in_progress" else []
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content}

    def opening(self) -> list[Event]:
        return [("response.content_part.added", {"content_index": 0, "part": text_part("")})]

    def grown(self, text: str, told: Sequence[Any] = ()) -> list[Event]:
        self._text += text
        self._logprobs += told
        more = {"content_index": 0, "delta": text, "logprobs": [*told]}
        return [("response.output_text.delta", more)]

    def closing(self) -> list[Event]:
        said = {"content_index": 0, "text": self._text, "logprobs": [*self._logprobs]}
        return [
            ("response.output_text.done", said),
            ("response.content_part.done", {"content_index": 0, "part": self._part()}),
        ]

    def _part(self) -> dict[str, Any]:
        return text_part(self._text, self._logprobs)


class _Calling:
    """A call of a tool in the making."""

    def __init__(self, name: str) -> None:
        self.id = new_id("fc")
        self._name = name
        self._call = new_id("call")
        self._arguments = ""

    def told(self, status: str) -> Item:
        return {
            "id": self.id,
            "type": "function_call",
            "status": status,
            "call_id": self._call,
            "name": self._name,
            "arguments": self._arguments,
        }

    def opening(self) -> list[Event]:
        return []

    def grown(self, text: str, _told: Sequence[Any] = ()) -> list[Event]:
        self._arguments += text
        return [("response.function_call_arguments.delta", {"delta": text})]

    def closing(self) -> list[Event]:
        done = {"name": self._name, "arguments": self._arguments}
        return [("response.function_call_arguments.done", done)]


class ItemsReply:
    """One answer, as a response with the items that it is made of; `model` is called `name`. `keep` is told of the response when
    it is whole, before anybody else is."""

    end = ""

    def __init__(
        self,
        wanted: WantedResponse,
        ticket: Ticket,
        model: Model,
        name: str,
        keep: Callable[[Mapping[str, Any], Turn], None],
    ) -> None:
        self._wanted = wanted
        self._ticket = ticket
        self._tokenizer = model.tokenizer
        self._keep = keep
        calls = wanted.text.calls
        self._splitter = calls() if calls is not None else None
        self._head = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "model": name,
        }
        self._open: _Thoughts | _Message | _Calling | None = None
        self._output: list[Item] = []
        self._events = 0
        self._tokens = 0  # whose log-probabilities came
        self._unsaid: list[Any] = []  # log-probabilities of tokens that are not in the text so far
        self._whole: dict[str, Any] | None = None

    @property
    def done(self) -> bool:
        return self._whole is not None

    @property
    def used(self) -> Used:
        return Used.of([self._ticket])

    def opening(self) -> list[dict[str, Any]]:
        return [
            self._event(kind, response=self._body("in_progress"))
            for kind in ("response.created", "response.in_progress")
        ]

    def take(self, _number: int, news: News) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        thoughts, answer = told_apart(news)
        if thoughts and self._wanted.text.asked[0].settings.think == "show":
            if not isinstance(self._open, _Thoughts):
                events += self._begin(_Thoughts())
            events += self._grow(thoughts)
        self._note(news.logprobs)
        for piece in self._pieces(answer, ended=news.ended is not None):
            if piece.name:
                events += self._begin(_Calling(piece.name))
            elif piece.call is not None:
                events += self._grow(piece.text)
            else:
                if not isinstance(self._open, _Message):
                    events += self._begin(_Message())
                events += self._say(piece.text)
        if news.ended is not None:
            events += self._end(news.ended.finish_reason)
        return events

    def closing(self) -> list[dict[str, Any]]:
        return []

    def broken(self, why: dict[str, Any]) -> list[dict[str, Any]]:
        message = why["error"]["message"]
        body = self._body("failed", error={"code": "server_error", "message": message})
        if self._open is not None:
            body["output"].append(self._open.told("incomplete"))
        return [
            self._event("error", code="server_error", message=message, param=None),
            self._event("response.failed", response=body),
        ]

    def whole(self) -> dict[str, Any]:
        assert self._whole is not None
        return self._whole

    def _pieces(self, answer: str, *, ended: bool) -> list[CallPiece]:
        """The text in what came of the answer, and the calls."""
        if self._splitter is None:
            return [CallPiece(answer)] if answer else []
        return [*self._splitter.push(answer), *(self._splitter.flush() if ended else ())]

    def _note(self, tokens: Sequence[Mapping[str, Any]]) -> None:
        """Log-probabilities of tokens, of which the first are thoughts."""
        thoughts = max(self._ticket.thinking_tokens - self._tokens, 0)
        self._tokens += len(tokens)
        self._unsaid += logprobs.of_answer(self._tokenizer, tokens[thoughts:])["content"]

    def _begin(self, item: _Thoughts | _Message | _Calling) -> list[dict[str, Any]]:
        events = self._close("completed")
        self._open = item
        at = len(self._output)
        added = self._event("response.output_item.added", output_index=at, item=item.told("in_progress"))
        return [*events, added, *self._of_open(item.opening())]

    def _grow(self, text: str) -> list[dict[str, Any]]:
        assert self._open is not None
        return self._of_open(self._open.grown(text))

    def _say(self, text: str) -> list[dict[str, Any]]:
        """Text of the message, and the log-probabilities of the tokens up to there."""
        assert isinstance(self._open, _Message)
        told, self._unsaid = self._unsaid, []
        return self._of_open(self._open.grown(text, told))

    def _close(self, status: str) -> list[dict[str, Any]]:
        """The end of the item in the making, if there is one."""
        item, self._open = self._open, None
        if item is None:
            return []
        events = self._of_item(item.id, item.closing())
        told, at = item.told(status), len(self._output)
        self._output.append(told)
        return [*events, self._event("response.output_item.done", output_index=at, item=told)]

    def _end(self, reason: str) -> list[dict[str, Any]]:
        """The end of the response, whose text ended by `reason`. It has a message, or calls."""
        events: list[dict[str, Any]] = []
        cut = reason == "length"
        status = "incomplete" if cut else "completed"
        if self._splitter is not None and self._splitter.calls:
            events += self._close("completed" if self._splitter.whole else "incomplete")
        else:
            if not isinstance(self._open, _Message):
                events += [*self._close(status), *self._begin(_Message())]
            if self._unsaid:
                events += self._say("")
            events += self._close(status)
        ended = {"incomplete_details": {"reason": "max_output_tokens"}} if cut else {}
        self._whole = self._body(status, completed_at=None if cut else int(time.time()), **ended)
        if self._wanted.store:
            self._wanted.turn.end(self._output)
            self._keep(self._whole, self._wanted.turn)
        return [*events, self._event(f"response.{status}", response=self._whole)]

    def _body(self, status: str, **more: Any) -> dict[str, Any]:
        return {
            **self._head,
            "status": status,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "output": [*self._output],
            "usage": None if status == "in_progress" else self._usage(),
            **self._wanted.settings,
            **more,
        }

    def _usage(self) -> dict[str, Any]:
        used = self.used
        return {
            "input_tokens": used.read,
            "input_tokens_details": {"cached_tokens": used.known, "cache_write_tokens": 0},
            "output_tokens": used.made,
            "output_tokens_details": {"reasoning_tokens": used.thoughts},
            "total_tokens": used.read + used.made,
        }

    def _of_open(self, events: Sequence[Event]) -> list[dict[str, Any]]:
        assert self._open is not None
        return self._of_item(self._open.id, events)

    def _of_item(self, name: str, events: Sequence[Event]) -> list[dict[str, Any]]:
        at = len(self._output)
        return [self._event(kind, item_id=name, output_index=at, **more) for kind, more in events]

    def _event(self, kind: str, **more: Any) -> dict[str, Any]:
        self._events += 1
        return {"type": kind, "sequence_number": self._events - 1, **more}
