"""What a model made of the tokens of a text as it read them: kept in little room, whatever the size of the vocabulary."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rwkvcli.runtime.prefill import Calls
from rwkvcli.runtime.scoring import likeliest_of_each, rows_together

if TYPE_CHECKING:
    from rwkvcli.runtime.backend import Float32, Logits
    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.state import State


@dataclass
class Judged:
    """Of tokens in a row the log-probability (nats) of each, and the `count` likeliest in its place with theirs, the likeliest
    first. The first token of a text has none: its log-probability is NaN, and what stands for the likeliest says nothing."""

    count: int
    logprobs: array[float] = field(default_factory=lambda: array("d"))
    tops: array[int] = field(default_factory=lambda: array("i"))
    """[T, count], in one row."""
    top_logprobs: array[float] = field(default_factory=lambda: array("d"))
    """The same of their log-probabilities."""

    def __len__(self) -> int:
        return len(self.logprobs)

    @property
    def nbytes(self) -> int:
        """The room that it takes."""
        return sum(len(part) * part.itemsize for part in (self.logprobs, self.tops, self.top_logprobs))

    def top(self, number: int) -> list[tuple[int, float]]:
        """The likeliest in the place of token `number`, and their log-probabilities."""
        at = slice(number * self.count, (number + 1) * self.count)
        return list(zip(self.tops[at], self.top_logprobs[at], strict=True))

    def copy(self) -> Judged:
        return Judged(self.count, self.logprobs[:], self.tops[:], self.top_logprobs[:])

    def add_unknown(self) -> None:
        """A token of which nothing is known."""
        self.logprobs.append(math.nan)
        self.tops.extend([0] * self.count)
        self.top_logprobs.extend([math.nan] * self.count)

    def add(self, logits: Float32, ids: Sequence[int]) -> None:
        """The tokens `ids` [T >= 1], by float32 logits [T, V] of the tokens before each. Raises FormatError for logits that are no
        numbers."""
        logprobs, tops, values = likeliest_of_each(logits, ids, self.count)
        self.logprobs.frombytes(logprobs.tobytes())
        self.tops.frombytes(tops.tobytes())
        self.top_logprobs.frombytes(values.tobytes())


def judge_ids(
    model: Model,
    state: State,
    ids: Sequence[int],
    judged: Judged,
    logits: Logits | None,
    on_tokens: Callable[[int], None] | None = None,
) -> Logits:
    """Feed `ids`, at least one, to `state`, and add to `judged` what the model made of them. Float32 logits [V] of the last.

    `logits` are those of the token before the first, None where there is none. Logits of ids that are no tokens do not count, and
    of no more than 16 MB of logits is held at a time. `on_tokens` is called after every call of the engine with the number of
    tokens that were fed.
    """
    import numpy as np

    valid, at = model.tokenizer.vocab_size, 0
    if logits is None:
        judged.add_unknown()
    else:
        judged.add(np.asarray(logits)[None, :valid], ids[:1])

    def evaluate(part: Sequence[int]) -> Float32:
        return model.forward(part, state, all_logits=True)

    for end, found in Calls(evaluate, rows_together(model.config.vocab_size)).feed(ids):
        rows: Float32 = np.asarray(found)
        if targets := ids[at + 1 : end + 1]:
            judged.add(np.ascontiguousarray(rows[: len(targets), :valid]), targets)
        at, logits = end, rows[-1].copy()
        if on_tokens is not None:
            on_tokens(end)
    assert logits is not None
    return logits
