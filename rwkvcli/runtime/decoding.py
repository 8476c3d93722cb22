"""The loop that makes text: draw a token, show what it says, feed it, until something ends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from rwkvcli.errors import UsageError
from rwkvcli.runtime.numbers import whole
from rwkvcli.runtime.streaming import StopMatcher, TextStream

if TYPE_CHECKING:
    from rwkvcli.runtime.backend import Logits
    from rwkvcli.runtime.sampling import Sampler
    from rwkvcli.runtime.tokenizer import Tokenizer


class Evaluator(Protocol):
    """What the loop needs of a model."""

    def evaluate(self, tokens: Sequence[int], state: Any) -> Logits:
        """Feed tokens to the state, in place; float32 logits [V] of the last."""
        ...


@dataclass(frozen=True)
class Finish:
    """How a text ended, and what its state has seen.

    `reason` is `stop` (the model or its grammar ended the text, or `stop` was found in it) or `length`. `fed` are the drawn
    tokens that the state has seen, `unfed` the drawn one that it has not (none or one): to go on from a text
    that ended by length, feed `unfed` first. A stop string is cut from the text, not from the state, which
    has seen all of its tokens but the last; to continue as if it had not been there, go back to a copy.
    """

    reason: Literal["stop", "length"]
    stop: str | None
    fed: tuple[int, ...]
    unfed: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens drawn, without the one that ends a text."""
        return len(self.fed) + len(self.unfed)


@dataclass(frozen=True)
class Piece:
    """What one token added: `text` may be empty (half a character, or what may become a stop string).

    `held` is the number of characters that are held back, since they may begin a stop string. The last piece
    alone has `finish`. Its `token` is None unless a stop string ended in that token, or a grammar had come to its end.
    """

    text: str
    token: int | None
    finish: Finish | None = None
    held: int = 0


class Continuation:
    """A text in the making, token by token, without the model: who has the logits asks `draw`.

    When a token was drawn it is `unfed`; the caller feeds it and says so by `was_fed`.
    """

    def __init__(self, tokenizer: Tokenizer, sampler: Sampler, max_tokens: int, text: TextStream) -> None:
        self._bytes_of = tokenizer.stream()
        self._eos = tokenizer.eos_id
        self._sampler = sampler
        self._max_tokens = max_tokens
        self._text = text
        self._fed: list[int] = []
        self.unfed: tuple[int, ...] = ()
        self.drawn: int | None = None
        """The token that was drawn last, also the one that ends a text, which is no part of it."""

    @property
    def fed(self) -> tuple[int, ...]:
        """The drawn tokens that were fed."""
        return tuple(self._fed)

    @property
    def full(self) -> bool:
        """Whether as many tokens were drawn as may be: `end` is next."""
        return len(self._fed) + len(self.unfed) == self._max_tokens

    def draw(self, logits: Logits) -> Piece:
        """Draw the next token from float32 logits [V]. The piece has `finish` if that ends the text, or if it had ended."""
        self.drawn = None
        if self._sampler.complete:
            return self.end("stop")
        self.drawn = token = self._sampler(logits)
        if token == self._eos:
            return self.end("stop")
        self.unfed = (token,)
        text = self._text.push(self._bytes_of(token))
        if self._text.matched is not None:
            return Piece(text, token, self._finish("stop"))
        if self._sampler.complete:  # no other token is needed to know it
            return Piece(text + self._text.flush(), token, self._finish("stop"))
        return Piece(text, token, held=self._text.held)

    def was_fed(self) -> None:
        """The drawn token was fed."""
        self._fed.extend(self.unfed)
        self.unfed = ()

    def end(self, reason: Literal["stop", "length"] = "length", *, keep: bool = False) -> Piece:
        """The last piece, with what was held back; `keep`: that stays in the TextStream, to go on later."""
        text = "" if keep else self._text.flush()
        return Piece(text, None, self._finish("stop" if self._text.matched is not None else reason))

    def _finish(self, reason: Literal["stop", "length"]) -> Finish:
        return Finish(reason, self._text.matched, self.fed, self.unfed)


def decode(
    model: Evaluator,
    state: Any,
    logits: Logits,
    tokenizer: Tokenizer,
    sampler: Sampler,
    max_tokens: int,
    stop: Sequence[str] = (),
) -> Iterator[Piece]:
    """Continue a text whose last token gave `logits` (float32 [V]).

    `max_tokens` -1 is until the model ends the text; 0 draws nothing. The token that ends a text is neither
    shown nor fed. When a piece comes, the tokens of all pieces before it have been fed to `state`, its own
    has not: a caller who stops there knows what the state contains. Raises UsageError for a bad
    `max_tokens` or `stop` at once, FormatError from the sampler, and whatever `model.evaluate` raises.
    """
    check_limits(max_tokens, stop)
    return continued(model, state, logits, Continuation(tokenizer, sampler, max_tokens, TextStream(stop)))


def continued(model: Evaluator, state: Any, logits: Logits, run: Continuation) -> Iterator[Piece]:
    """The pieces of `run`, whose last token gave `logits`; see `decode`."""
    while not run.full:
        if run.unfed:
            logits = model.evaluate(list(run.unfed), state)
            run.was_fed()
        piece = run.draw(logits)
        yield piece
        if piece.finish is not None:
            return
    yield run.end()


def check_limits(max_tokens: int, stop: Sequence[str]) -> None:
    """Raise UsageError for a `max_tokens` or `stop` that `decode` would refuse."""
    hint = "-1 is until the text ends"
    try:
        limit = whole(max_tokens)
    except TypeError:
        raise UsageError(f"max_tokens must be a whole number, not {max_tokens!r}", hint=hint) from None
    if limit < -1:
        raise UsageError(f"max_tokens must be -1 or more, not {limit}", hint=hint)
    StopMatcher(stop)
