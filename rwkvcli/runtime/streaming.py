"""From the bytes of tokens to text that can be shown: whole characters only, nothing past a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rwkvcli.errors import FormatError, UsageError


class Utf8Stream:
    """Bytes in, whole characters out.

    At most 3 bytes are held back, those that may begin a character; invalid bytes become U+FFFD. However
    the bytes are split, the texts joined equal `data.decode("utf-8", "replace")`.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        return self._decoder.decode(data)

    @property
    def held(self) -> bytes:
        """What is held back."""
        return self._decoder.getstate()[0]

    def flush(self) -> str:
        """What is held back, as U+FFFD; the stream is as new afterwards."""
        return self._decoder.decode(b"", final=True)


def stop_strings(given: Iterable[str]) -> tuple[str, ...]:
    """The same, checked. Raises UsageError for an empty string, and for what is no list of strings."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        what = "one string" if isinstance(given, str) else repr(given)
        raise UsageError(f"stop takes a list of strings, not {what}")
    stops = tuple(given)
    for stop in stops:
        if not isinstance(stop, str):
            raise UsageError(f"stop takes a list of strings, and {stop!r} is none")
    if "" in stops:
        raise UsageError("a stop string is empty")
    return stops


def begun(text: str, wholes: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of `wholes`, and is not all of it."""
    longest = max(map(len, wholes), default=0)
    for size in range(min(longest - 1, len(text)), 0, -1):
        end = text[-size:]
        if any(whole.startswith(end) for whole in wholes):
            return size
    return 0


class StopMatcher:
    """Cuts a text before the first stop string, which may lie across any number of pushes.

    The first is the one that is complete first; of several complete at the same character the longest, so
    that the text is cut as early as it can be. Text that may be the beginning of a stop string is held
    back. The result does not depend on how the text is split. Raises UsageError for an empty stop string, and for what is
    no list of strings.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stop_strings(stops)
        self._held = ""
        self.matched: str | None = None
        """The stop string that was found; nothing is given out after it."""

    def push(self, text: str) -> str:
        """The text that can be shown now."""
        if self.matched is not None:
            return ""
        text = self._held + text
        # ends first; among those that end there, starts first
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, at, self.matched = min(found)
            self._held = ""
            return text[:at]
        keep = begun(text, self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    @property
    def held(self) -> int:
        """Number of characters that are held back."""
        return len(self._held)

    @property
    def held_text(self) -> str:
        """What is held back."""
        return self._held

    def flush(self) -> str:
        """What was held back: no stop string came of it."""
        text, self._held = self._held, ""
        return text


class AnswerTrim:
    """An answer without the white space around it, and without `lead`, which the model may write before it.

    What is white is held back until something follows it. With `white` no other characters than these are taken off, and
    none at the end: the text of a grammar stays as it is.
    """

    def __init__(self, lead: str = "", white: str | None = None) -> None:
        self._lead = lead
        self._white = white
        self._begun = False
        self._held = ""

    def push(self, text: str) -> str:
        """The text that can be shown now."""
        text = self._held + text
        if not self._begun:
            text = text.lstrip(self._white)
            if self._lead and len(text) < len(self._lead) and self._lead.startswith(text):
                self._held = text
                return ""
            text = text.removeprefix(self._lead).lstrip(self._white) if self._lead else text
            if not text:
                self._held, self._lead = "", ""
                return ""
            self._begun = True
        shown = text.rstrip(None if self._white is None else "")
        self._held = text[len(shown) :]
        return shown

    def flush(self) -> str:
        """What was held back and is no white space: the beginning of a lead of which nothing came."""
        text, self._held = self._held, ""
        return "" if self._begun else text.strip()

    def state(self) -> dict[str, Any]:
        """What is needed to go on later. Ready for JSON."""
        return {"begun": self._begun, "held": self._held, "lead": bool(self._lead)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state()` was taken. Raises FormatError if it is not such a state."""
        begun, held, lead = state.get("begun"), state.get("held"), state.get("lead")
        if not (isinstance(begun, bool) and isinstance(held, str) and isinstance(lead, bool)):
            raise FormatError("not the state of an answer")
        self._begun, self._held, self._lead = begun, held, self._lead if lead else ""


class TextStream:
    """From the bytes of tokens to the text that is shown: whole characters, nothing past a stop string. Raises
    UsageError for an empty stop string.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._characters = Utf8Stream()
        self._matcher = StopMatcher(stop)
        self._recent = bytearray()  # since nothing was held back the last time
        self._passed = ""  # what the matcher let through of it

    @property
    def matched(self) -> str | None:
        """The stop string that was found."""
        return self._matcher.matched

    @property
    def held(self) -> int:
        """Number of characters that are held back, since they may begin a stop string."""
        return self._matcher.held

    @property
    def settled(self) -> bool:
        """Whether neither half a character nor the beginning of a stop string is held back."""
        return not self._characters.held and not self._matcher.held

    def push(self, data: bytes) -> str:
        """The text that can be shown now."""
        if self.settled:
            self._recent.clear()
            self._passed = ""
        self._recent += data
        text = self._matcher.push(self._characters.push(data))
        self._passed += text
        return text

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        text = self._matcher.push(self._characters.flush())
        return text if self.matched is not None else text + self._matcher.flush()

    def before_stop(self) -> bytes:
        """After a match: the bytes between the last settled moment and the stop string."""
        return bytes(self._recent[: _size(self._recent, len(self._passed))])

    def state(self) -> dict[str, Any]:
        """What is held back, to go on later; nothing once a stop string was found. Ready for JSON."""
        data = self._characters.held if self.matched is None else b""
        return {"text": self._matcher.held_text, "bytes": data.hex()}

    def restore(self, state: Mapping[str, Any]) -> str:
        """Go on where `state()` was taken. Returns the text that can be shown now: with other stop strings than
        before it may be some. Raises FormatError if it is not such a state."""
        text, data = state.get("text"), state.get("bytes")
        try:
            held = bytes.fromhex(data) if isinstance(data, str) else None
        except ValueError:
            held = None
        if not isinstance(text, str) or held is None:
            raise FormatError("not the state of a text")
        return self._matcher.push(text) + self.push(held)


def _size(data: bytes | bytearray, count: int) -> int:
    """How many bytes the first `count` characters of `data` come from: those that became U+FFFD have other sizes."""
    at = 0
    while True:
        try:
            text, bad = data[at:].decode("utf-8"), 0
        except UnicodeDecodeError as e:
            text, bad = data[at : at + e.start].decode("utf-8"), e.end - e.start
        if count <= len(text) or not bad:
            return at + len(text[:count].encode("utf-8"))
        at, count = at + len(text.encode("utf-8")) + bad, count - len(text) - 1
