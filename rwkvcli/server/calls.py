"""Calls of tools in an answer, in OpenAI's form: whole, or piece by piece."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rwkvcli.services.tool_calls import CallPiece, CallSplitter


class CallsOfAnswer:
    """One answer that may call tools, as far as it has come."""

    def __init__(self, splitter: CallSplitter) -> None:
        self._splitter = splitter
        self._text = ""
        self._calls: list[dict[str, Any]] = []

    def take(self, text: str, *, ended: bool) -> list[dict[str, Any]]:
        """What the next pieces of a stream say, now that `text` came."""
        pieces = self._splitter.push(text)
        if ended:
            pieces += self._splitter.flush()
        return [self._delta(piece) for piece in pieces]

    def finish(self, reason: str) -> str:
        """Why the answer ended, of which the text ended by `reason`."""
        called = reason == "stop" and self._calls and self._splitter.whole
        return "tool_calls" if called else reason

    def message(self) -> dict[str, Any]:
        """Its part of the message."""
        if not self._calls:
            return {"content": self._text}
        return {"content": self._text or None, "tool_calls": self._calls}

    def _delta(self, piece: CallPiece) -> dict[str, Any]:
        if piece.call is None:
            self._text += piece.text
            return {"content": piece.text}
        if piece.name:
            head = {"id": "call_" + secrets.token_hex(12), "type": "function"}
            self._calls.append({**head, "function": {"name": piece.name, "arguments": ""}})
            function = {"name": piece.name, "arguments": ""}
            return {"tool_calls": [{"index": piece.call, **head, "function": function}]}
        self._calls[piece.call]["function"]["arguments"] += piece.text
        return {"tool_calls": [{"index": piece.call, "function": {"arguments": piece.text}}]}
