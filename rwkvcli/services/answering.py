"""One answer of a model in a conversation: its text as it comes, and the state that goes on from it.

The state of an RNN cannot be rolled back, and by the time a stop string is found the state has seen most of it. So
a copy is taken whenever the text reaches a place where it may turn out to end. Afterwards the state has seen the
answer without white space at its end, and what the template puts after an answer, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from rwkvcli.runtime.decoding import Finish, decode
from rwkvcli.runtime.streaming import Utf8Stream
from rwkvcli.runtime.templates import Template
from rwkvcli.runtime.thoughts import Part, ThoughtSplitter

__all__ = ["Answer", "Part"]

if TYPE_CHECKING:
    from rwkvcli.runtime.backend import Logits
    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.sampling import Sampler
    from rwkvcli.runtime.speculation import Speculation
    from rwkvcli.runtime.state import State


class _Mark(NamedTuple):
    """A place where the answer may end: the state, the number of tokens it has seen, and of characters."""

    state: State
    tokens: int
    characters: int


@dataclass
class Answer:
    """Iterate over it for its parts. Afterwards `state` goes on from it, and `ids` are the tokens that led there.

    `state` is changed in place or replaced. `stopped` is asked after every token; when it says yes the answer
    ends there, as `interrupted`.
    """

    model: Model
    state: State
    logits: Logits
    template: Template
    think: str
    sampler: Sampler
    max_tokens: int = -1
    stop: Sequence[str] = ()
    stopped: Callable[[], bool] = lambda: False
    speculation: Speculation | None = None
    """What feeds the tokens in place of `model`."""
    reply: str = ""
    thinking: str = ""
    finish: str = "interrupted"
    tokens: int = 0
    """That were drawn."""
    ids: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[Part]:
        splitter = ThoughtSplitter(self.think == "on", self.template.lead_of(self.think))
        tokenizer = self.model.tokenizer
        stop = (*self.stop, *self.template.stop)
        bytes_of, characters = tokenizer.stream(), Utf8Stream()
        raw, drawn = "", 0  # the text so far, and the characters drawn: some may be held back
        mark: _Mark | None = None
        end: Finish | None = None
        for piece in decode(
            self.speculation or self.model,
            self.state,
            self.logits,
            tokenizer,
            self.sampler,
            self.max_tokens,
            stop,
        ):
            text = raw + piece.text
            if piece.token is not None:
                drawn += len(characters.push(bytes_of(piece.token)))
            # the state has not seen this token yet: what it has seen is all that was certain
            stops = piece.finish is not None and piece.finish.stop is not None
            if stops or drawn > len(text) or not text or text[-1].isspace():
                mark = mark or _Mark(self._whole_state().copy(), len(self.ids), len(raw))
            elif piece.finish is None:
                mark = None
            raw = text
            end = piece.finish
            if piece.token is not None:
                self.ids.append(piece.token)
                self.tokens += 1
            yield from self._told(splitter.push(piece.text))
            if end is None and self.stopped():
                break
        if end is not None:
            self.finish, self.tokens = end.reason, end.tokens
        yield from self._told(splitter.flush())
        self._settle(raw, mark, end)

    def _settle(self, raw: str, mark: _Mark | None, end: Finish | None) -> None:
        """Leave the state, and `ids`, as if the model had ended its answer by itself."""
        rest = ""
        if mark is not None:
            self.state = mark.state
            del self.ids[mark.tokens :]
            rest = raw[mark.characters :].rstrip()
            unfed = []
        else:
            self._whole_state()
            unfed = list(end.unfed) if end is not None else self.ids[-1:]
        after = rest + self.template.answer.partition("{reply}")[2]
        added = self.model.tokenizer.encode(after) if after else []
        if unfed or added:
            self.model.evaluate([*unfed, *added], self.state)
        self.ids += added

    def _whole_state(self) -> State:
        """The state, which has seen all that was fed."""
        if self.speculation is not None:
            self.speculation.settle(self.state)
        return self.state

    def _told(self, parts: Sequence[Part]) -> Iterator[Part]:
        for part in parts:
            if part.thinking:
                self.thinking += part.text
            else:
                self.reply += part.text
            yield part
