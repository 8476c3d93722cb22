"""How likely each of several texts is to come next: one reading of what stands before, a copy of its state for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rwkvcli.errors import NotUtf8, UsageError
from rwkvcli.runtime.scoring import of_each, rows_together, score

if TYPE_CHECKING:
    from rwkvcli.runtime.backend import Float32, Logits
    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.state import State
    from rwkvcli.runtime.tokenizer import Tokenizer

TOGETHER = 8
"""Choices that are evaluated together, each with a state of its own, unless it is said."""
_SHOWN = 40
"""Characters of a choice in a message."""

OnTokens = Callable[[int, int], None]
"""Called with (tokens that are scored, all of them)."""


def choice_ids(tokenizer: Tokenizer, text: bytes) -> list[int]:
    """Ids of a choice, which is encoded by itself. Raises UsageError for one without any, or that cannot be encoded."""
    if not text:
        raise UsageError("a choice is empty")
    try:
        ids = tokenizer.encode_bytes(text)
    except NotUtf8 as error:
        raise UsageError(f"the choice {told(text)}: {error}", hint=error.hint) from None
    if not ids:
        raise UsageError(f"the choice {told(text)} has no token in this vocabulary")
    return ids


def told(text: bytes) -> str:
    """A choice in a message, in quotes."""
    shown = text.decode("utf-8", "replace")
    return repr(shown if len(shown) <= _SHOWN else shown[: _SHOWN - 1] + "…")


def score_choices(
    model: Model,
    state: State,
    logits: Logits,
    choices: Sequence[list[int]],
    *,
    together: int = TOGETHER,
    on_tokens: OnTokens = lambda done, total: None,
) -> list[float]:
    """The log-probability (nats) of each of `choices`, lists of ids, as what comes after `state`.

    `logits` are those of the last token that the state has seen; it stays as it is. What all choices begin with is fed
    once. Up to `together` of the others are evaluated at a time, a token of each in one call, or one after the other where
    that takes fewer calls; so no more states than that are held, and no more logits than 16 MB. Logits of ids
    that are no tokens do not count. `on_tokens` is called after every call of the engine; what it raises ends it.

    Raises FormatError for a model whose logits are no numbers.
    """
    if not choices:
        return []
    run = _Run(model, sum(map(len, choices)), on_tokens)
    shared = _shared(choices)
    logs: list[list[float]] = [[] for _ in choices]
    if shared:
        state = state.copy()
        begin = run.first(logits, choices[0][:1])
        found, logits = run.read(choices[0][:shared], state, len(choices))
        logs = [[*begin, *found] for _ in choices]
    rest = [ids[shared:] for ids in choices]
    for log, first in zip(logs, run.first(logits, [ids[0] for ids in rest]), strict=True):
        log.append(first)
    run.tell(len(rest))
    longer = sorted((n for n, ids in enumerate(rest) if len(ids) > 1), key=lambda n: len(rest[n]))
    together = min(together, run.rows)
    for at in range(0, len(longer), together):
        group = longer[at : at + together]
        for number, found in zip(group, run.group([rest[n] for n in group], state), strict=True):
            logs[number].extend(found)
    return list(map(math.fsum, logs))


def _shared(choices: Sequence[list[int]]) -> int:
    """How many ids all choices begin with, so that each has at least one more."""
    first, last = min(choices), max(choices)  # what these two share, all between them do
    most = min(map(len, choices)) - 1
    return next((at for at in range(most) if first[at] != last[at]), most)


class _Run:
    """The calls of the engine."""

    def __init__(self, model: Model, total: int, on_tokens: OnTokens) -> None:
        self._model = model
        self._valid = model.tokenizer.vocab_size
        self.rows = rows_together(model.config.vocab_size)
        """Rows of logits that are held at a time."""
        self._done, self._total, self._on_tokens = 0, total, on_tokens

    def tell(self, count: int) -> None:
        """So many more tokens are scored."""
        self._done += count
        self._on_tokens(self._done, self._total)

    def first(self, logits: Logits, ids: Sequence[int]) -> list[float]:
        """The log-probability of each of `ids`, by the logits [V]."""
        found: list[float] = of_each(logits[: self._valid], ids).tolist()
        return found

    def read(self, ids: Sequence[int], state: State, texts: int = 1) -> tuple[list[float], Logits]:
        """Feed `ids` to `state`: the log-probabilities of all but the first, and the logits [V] of the last. They stand for
        those of so many `texts`."""
        found: list[float] = []
        for at in range(0, len(ids), self.rows):
            logits = self._model.forward(ids[at : at + self.rows], state, all_logits=True)
            targets = ids[at + 1 : at + 1 + len(logits)]
            found += self._judged(logits[: len(targets)], targets)
            self.tell(len(logits) * texts)
        return found, logits[-1].copy()

    def group(self, texts: Sequence[list[int]], state: State) -> list[list[float]]:
        """Of each text, the shortest first: the log-probabilities of its tokens after the first one."""
        longest = len(texts[-1])
        if longest > len(texts):
            return [self._alone(ids, state.copy()) for ids in texts]
        found: list[list[float]] = [[] for _ in texts]
        states = [state.copy() for _ in texts]
        for at in range(longest - 1):
            rows = [row for row, ids in enumerate(texts) if len(ids) > at + 1]
            logits = self._model.forward_batch(
                [texts[row][at] for row in rows], [states[row] for row in rows]
            )
            judged = self._judged(logits, [texts[row][at + 1] for row in rows])
            for row, log in zip(rows, judged, strict=True):
                found[row].append(log)
            self.tell(len(rows))
        return found

    def _alone(self, ids: list[int], state: State) -> list[float]:
        found, logits = self.read(ids[:-1], state)
        return [*found, *self.first(logits, ids[-1:])]

    def _judged(self, logits: Float32, targets: Sequence[int]) -> list[float]:
        """Log-probabilities of `targets` by the rows of `logits` [T, V]."""
        if not targets:
            return []
        if self._valid < logits.shape[1]:
            import numpy as np

            logits = np.ascontiguousarray(logits[:, : self._valid])
        found: list[float] = score(logits, targets)[0].tolist()
        return found
