"""The loop that makes text: draw a token, show what it says, feed it, until something ends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from rwkvcli.errors import UsageError
from rwkvcli.runtime.streaming import StopMatcher, Utf8Stream

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rwkvcli.runtime.sampling import Sampler
    from rwkvcli.runtime.tokenizer import Tokenizer


class Forward(Protocol):
    """What the loop needs of a model."""

    def forward(self, tokens: list[int], state: Any) -> NDArray[np.float32]:
        """Feed tokens to the state, in place; float32 logits [V] of the last."""
        ...


@dataclass(frozen=True)
class Finish:
    """How a text ended, and what its state has seen.

    `reason` is `stop` (the model ended the text, or `stop` was found in it) or `length`. `fed` are the drawn
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

    The last piece alone has `finish`. Its `token` is None unless a stop string ended in that token.
    """

    text: str
    token: int | None
    finish: Finish | None = None


def decode(
    model: Forward,
    state: Any,
    logits: NDArray[np.float32],
    tokenizer: Tokenizer,
    sampler: Sampler,
    max_tokens: int,
    stop: Sequence[str] = (),
) -> Iterator[Piece]:
    """Continue a text whose last token gave `logits` (float32 [V]).

    `max_tokens` -1 is until the model ends the text; 0 draws nothing. The token that ends a text is neither
    shown nor fed. When a piece comes, the tokens of all pieces before it have been fed to `state`, its own
    has not: a caller who stops there knows what the state contains. Raises UsageError for a bad
    `max_tokens` or `stop` at once, FormatError from the sampler, and whatever `model.forward` raises.
    """
    check_limits(max_tokens, stop)
    return _decode(model, state, logits, tokenizer, sampler, max_tokens, StopMatcher(stop))


def check_limits(max_tokens: int, stop: Sequence[str]) -> None:
    """Raise UsageError for a `max_tokens` or `stop` that `decode` would refuse."""
    if not isinstance(max_tokens, int) or max_tokens < -1:
        raise UsageError(f"max_tokens must be -1 or more, not {max_tokens}", hint="-1 is until the text ends")
    StopMatcher(stop)


def _decode(
    model: Forward,
    state: Any,
    logits: NDArray[np.float32],
    tokenizer: Tokenizer,
    sampler: Sampler,
    max_tokens: int,
    matcher: StopMatcher,
) -> Iterator[Piece]:
    bytes_of = tokenizer.stream()
    characters = Utf8Stream()
    fed: list[int] = []
    unfed: tuple[int, ...] = ()
    reason: Literal["stop", "length"] = "length"
    while len(fed) + len(unfed) != max_tokens:
        if unfed:
            logits = model.forward(list(unfed), state)
            fed.extend(unfed)
            unfed = ()
        token = sampler(logits)
        if token == tokenizer.eos_id:
            reason = "stop"
            break
        unfed = (token,)
        text = matcher.push(characters.push(bytes_of(token)))
        if matcher.matched is not None:
            yield Piece(text, token, Finish("stop", matcher.matched, tuple(fed), unfed))
            return
        yield Piece(text, token)
    text = matcher.push(characters.flush())
    if matcher.matched is not None:
        reason = "stop"
    yield Piece(text + matcher.flush(), None, Finish(reason, matcher.matched, tuple(fed), unfed))
