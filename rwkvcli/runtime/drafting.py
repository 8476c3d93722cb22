"""Guesses of what a text goes on with: from what it said before, from a smaller model, from a grammar."""

from __future__ import annotations

import math
import warnings
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rwkvcli.errors import FormatError, UsageError

if TYPE_CHECKING:
    from rwkvcli.runtime.backend import Logits
    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.sampling import Sampler
    from rwkvcli.runtime.state import State
    from rwkvcli.runtime.tokenizer import Tokenizer

LOOKUP, OFF = "lookup", "off"
"""In place of a draft model's name: guesses come from what the text said before; there are none."""


class Drafter(Protocol):
    """What guesses. A guess costs time and nothing else: the text does not depend on it."""

    def read(self, tokens: Sequence[int]) -> None:
        """The text has come to these tokens."""
        ...

    def guess(self, most: int) -> list[int]:
        """At most `most` tokens that may come next."""
        ...


class First:
    """The guesses of the first of `drafters` that has any."""

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        self._drafters = drafters

    def read(self, tokens: Sequence[int]) -> None:
        for drafter in self._drafters:
            drafter.read(tokens)

    def guess(self, most: int) -> list[int]:
        return next((guesses for drafter in self._drafters if (guesses := drafter.guess(most))), [])


class Lookup:
    """What followed the last time that the text came to the same few tokens (as in "prompt lookup decoding"): as many of
    them as were the same before. It remembers `remembers` tokens at least, and twice as many at most.
    """

    _SAME = 3  # tokens

    def __init__(self, remembers: int) -> None:
        self._remembers = remembers
        self._text = array("i")
        self._after: dict[tuple[int, ...], int] = {}  # _SAME tokens: where the last text after them began
        self._found: int | None = None  # what comes next may be what is there

    def read(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._text.append(token)
            key = tuple(self._text[-self._SAME :])
            if len(key) == self._SAME:
                self._found = self._after.get(key)
                self._after[key] = len(self._text)
        if len(self._text) > 2 * self._remembers:
            kept = self._text[-self._remembers :]
            self._text, self._after = array("i"), {}
            self.read(kept)

    def guess(self, most: int) -> list[int]:
        if self._found is None:
            return []
        same, text = self._SAME, self._text
        while same < min(most, self._found) and text[self._found - same - 1] == text[-same - 1]:
            same += 1
        most = min(most, same)
        guesses = text[self._found : self._found + most].tolist()
        while len(guesses) < most:  # it repeats itself: what follows is what was guessed
            guesses.append(([*self._text[self._found :], *guesses])[len(guesses)])
        return guesses


class Forced:
    """Text that has to come, since a grammar allows no other. The model may write it in other tokens than these."""

    _BYTES = 32  # of a token, mostly more than enough

    def __init__(self, sampler: Sampler, tokenizer: Tokenizer) -> None:
        self._sampler, self._tokenizer = sampler, tokenizer

    def read(self, tokens: Sequence[int]) -> None:
        pass

    def guess(self, most: int) -> list[int]:
        try:
            forced = self._sampler.forced[: self._BYTES * most]
        except UsageError:  # should it end the text, the sampler will say so
            return []
        return self._tokenizer.encode(forced.decode("utf-8", "ignore"))[:most] if forced else []


class DraftModel:
    """What a smaller model of the same vocabulary would write, drawn by a twin of the text's sampler: with the same random
    numbers, so that two models that agree on the chances agree on the token.
    """

    def __init__(self, model: Model, sampler: Sampler) -> None:
        self._model = model
        self._sampler = sampler
        self._state: State | None = None  # a server's text may never need one
        self._logits: Logits | None = None
        self._guesses: list[int] = []
        self._after: list[tuple[State, Logits]] = []  # of the guesses that were fed
        self._spare: list[State] = []

    def read(self, tokens: Sequence[int]) -> None:
        if self._state is None:
            self._state = self._model.new_state()
        right = 0
        while right < min(len(tokens), len(self._after)) and self._guesses[right] == tokens[right]:
            right += 1
        if right:
            state, self._logits = self._after[right - 1]
            self._state, self._after[right - 1] = state, (self._state, self._logits)
        self._spare += [state for state, _ in self._after]
        self._guesses, self._after = [], []
        rows = self._model.config.vocab_size  # a prompt of ids may have some that stand for no token
        if rest := [token for token in tokens[right:] if token < rows]:
            self._logits = self._model.evaluate(rest, self._state)

    def guess(self, most: int) -> list[int]:
        logits, state = self._logits, self._state
        if logits is None or state is None:
            return []
        twin = self._sampler.fork()
        guesses: list[int] = []
        while True:
            try:
                token = twin(self._of_all_tokens(logits))
            except (FormatError, UsageError):  # nothing can be drawn from these logits
                break
            if token == self._model.tokenizer.eos_id:
                break
            guesses.append(token)
            if len(guesses) == most or twin.complete:
                break
            state, logits = self._fed(token, state)
        return guesses

    def _of_all_tokens(self, logits: Logits) -> Logits:
        """The same, where the draft model has no rows for the last tokens of the model's: they are never guessed."""
        missing = self._sampler.valid - len(logits)
        if missing <= 0:
            return logits
        known: Any = logits
        padded = array("f")
        padded.frombytes(memoryview(known).cast("B"))
        padded.extend([-math.inf] * missing)
        return memoryview(padded)

    def _fed(self, token: int, before: State) -> tuple[State, Logits]:
        """What comes of feeding a guess, which may be taken back."""
        if self._spare:
            state = self._spare.pop()
            state.assign(before)
        else:
            state = before.copy()
        logits = self._model.evaluate([token], state)
        self._guesses.append(token)
        self._after.append((state, logits))
        return state, logits


@dataclass(frozen=True)
class Drafting:
    """Where guesses come from: a draft model, or None, what the text said before. Raises UsageError for a draft model that has
    another vocabulary than `of`."""

    of: Model
    model: Model | None = None
    warn: Callable[[str], None] = lambda message: warnings.warn(message, RuntimeWarning, stacklevel=2)
    """Called once, when guessing has failed."""
    _failures: list[Exception] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.model is not None:
            check_vocabulary(self.of, self.model)

    @classmethod
    def by(
        cls, of: Model, draft: Model | str | None, warn: Callable[[str], None] | None = None
    ) -> Drafting | None:
        """By a draft model or LOOKUP; None: nothing is guessed, as with OFF. Raises UsageError for anything else."""
        if draft is None or draft == OFF:
            return None
        given: dict[str, Any] = {"warn": warn} if warn is not None else {}
        if draft == LOOKUP:
            return cls(of, None, **given)
        if not isinstance(draft, type(of)):
            raise UsageError(f"draft is a Model or {LOOKUP!r}, not {draft!r}")
        return cls(of, draft, **given)

    def failed(self, error: Exception) -> None:
        """A text goes on without guesses because of `error`."""
        self._failures.append(error)
        if len(self._failures) == 1:
            self.warn(f"the text goes on without guesses: {error}")

    @property
    def works(self) -> bool:
        """Whether the device of `of` can look ahead; else nothing is guessed."""
        return self.of.ahead() is not None

    @property
    def remembers(self) -> int:
        """How many tokens of what was said before are worth reading."""
        return 256 if self.model is not None else 1 << 15

    def drafter(self, sampler: Sampler) -> Drafter:
        """For one text, whose tokens `sampler` draws."""
        return DraftModel(self.model, sampler) if self.model is not None else Lookup(self.remembers)


def check_vocabulary(model: Model, draft: Model) -> None:
    """Raise UsageError unless the tokens of both models are the same."""
    own = model.tokenizer
    try:
        other = draft.tokenizer
    except UsageError:  # it names none
        same = False
    else:
        kinds = {model.file.tokenizer, draft.file.tokenizer}
        # a few World models leave the last id out
        same = own.eos_id == other.eos_id and (own.vocab_size == other.vocab_size or kinds == {"world"})
        if same and ("json" in kinds or len(kinds) > 1):
            ids = range(own.vocab_size)
            same = all(own.decode_bytes((token,)) == other.decode_bytes((token,)) for token in ids)
    if not same:
        raise UsageError(
            f"{draft.file.path.name} has another vocabulary than {model.file.path.name}",
            hint="a draft model is a smaller one of the same family; `--draft off` goes without",
        )
