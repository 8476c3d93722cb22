"""Many texts at once: the weights are read once for all of them, and each is what it would be alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from rwkvcli.errors import FormatError, RwkvError, UsageError
from rwkvcli.runtime.numbers import real
from rwkvcli.services import constraining
from rwkvcli.services.generation import Generation, Settings

if TYPE_CHECKING:
    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.state import State

Lines: TypeAlias = Callable[[bool], bytes | None]
"""Gives the next line: b"" at the end; None, if it is not to wait (False), when none is there yet."""

_OWN = ("prompt", "id", "max_tokens", "stop", "system", *constraining.KINDS)
NO_PROMPT = "neither a JSON string nor an object with a string `prompt`"
_SEEDS = 2**64
_AHEAD = 64
"""Times the size of the batch: lines that may be done before one that comes earlier."""


@dataclass(frozen=True)
class Line:
    """A line of input, understood."""

    prompt: str
    settings: Settings


def parsed(line: bytes) -> dict[str, Any]:
    """The object in a line; a JSON string is that of its `prompt`. Raises UsageError."""
    try:
        said = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        raise UsageError("not a line of JSON") from None
    if isinstance(said, str):
        return {"prompt": said}
    if not isinstance(said, dict):
        raise UsageError(NO_PROMPT)
    try:
        json.dumps(said.get("id"), allow_nan=False)  # it is given back
    except ValueError:
        raise UsageError("id holds NaN or Infinity, which are not JSON") from None
    except RecursionError:
        raise UsageError("id is nested too deeply") from None
    return said


def understand(said: Mapping[str, Any], number: int, settings: Settings) -> Line:
    """What line `number` (from 0) asks for: an object of `prompt` and what differs from `settings`.

    Its seed is its own, else that of `settings` plus `number`. Null is as usual; of `stop` and what lists or constrains, none.
    Raises UsageError.
    """
    if not isinstance(said.get("prompt"), str):
        raise UsageError(NO_PROMPT)
    sampling = dict(settings.sampling)
    if sampling.get("seed") is not None:
        sampling["seed"] = (sampling["seed"] + number) % _SEEDS
    sampling.update((name, value) for name, value in said.items() if name not in _OWN)
    if said.get("logit_bias") is not None:
        sampling["logit_bias"] = _bias(said["logit_bias"])
    banned = sampling.get("banned_strings")
    if banned is not None and not is_texts(banned):
        raise UsageError("banned_strings is not a list of strings")
    stop, system = said.get("stop", settings.stop), said.get("system", settings.system)
    stop = (stop,) if isinstance(stop, str) else () if stop is None else stop
    max_tokens = said.get("max_tokens")
    max_tokens = settings.max_tokens if max_tokens is None else max_tokens
    if not is_texts(stop):
        raise UsageError("stop is neither a string nor a list of strings")
    if not isinstance(system, str | None):
        raise UsageError("system is not a string")
    if type(max_tokens) is not int or max_tokens < -1:
        raise UsageError("max_tokens is not a whole number from -1 up")
    chat = settings.chat or system is not None
    asks = not constraining.KINDS.keys().isdisjoint(said)
    own = replace(
        settings,
        max_tokens=max_tokens,
        sampling=sampling,
        stop=tuple(stop),
        chat=chat,
        system=system,
        constraint=constraining.of_line(said) if asks else settings.constraint,
    )
    return Line(said["prompt"], own)


class Batch:
    """Texts for lines of JSON, `size` of them decoded together; a finished one's place is taken by the next line.

    Iterate over it for the results, in the order of the lines: the JSON form of each (`Generation.report` with `id`), or
    {"id", "error"} for a line that failed. Blank lines are passed over. When the iteration was interrupted, `rest` has
    the results that were finished.
    """

    def __init__(
        self,
        model: Model,
        lines: Lines,
        settings: Settings,
        size: int,
        start: State | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`start`: what every text continues. `check` is called between calls of the engine; what it raises ends the
        iteration."""
        self._model = model
        self._lines = lines
        self._settings = settings
        self._size = size
        self._start = start
        self._check = check
        self._active: dict[int, tuple[Any, Generation]] = {}
        self._finished: dict[int, dict[str, Any]] = {}
        self._ended = False
        self.given = 0
        """Lines that were read."""
        self.failed = 0
        """Lines among them that failed."""
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._written = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            self._check()
            self._fill()
            yield from self._in_order()
            if not self._active:
                if self._ended:
                    return
                continue
            self._step()

    def rest(self) -> list[dict[str, Any]]:
        """What is finished and was not given out, in the order of the lines."""
        return [self._finished[number] for number in sorted(self._finished)]

    def _in_order(self) -> Iterator[dict[str, Any]]:
        while self._written in self._finished:
            result = self._finished.pop(self._written)
            self._written += 1
            yield result

    def _fill(self) -> None:
        """Take lines up to the size of the batch; wait for one only when there is nothing else to do."""
        while (
            not self._ended
            and len(self._active) < self._size
            and self.given - self._written < _AHEAD * self._size
        ):
            line = self._lines(not self._active and self._written == self.given)
            if line is None:
                return
            if not line:
                self._ended = True
            elif line.strip():
                number = self.given
                self.given += 1
                self._begin(number, line)
            if self._written in self._finished:
                return

    def _begin(self, number: int, line: bytes) -> None:
        from rwkvcli.runtime.tokenizer import text_to_bytes

        name: Any = number
        try:
            said = parsed(line)
            name = said.get("id", number)
            asked = understand(said, number, self._settings)
            start = self._start.copy() if self._start is not None else None
            made = Generation(
                self._model, text_to_bytes(asked.prompt), asked.settings, start, check=self._check
            )
            made.read()
        except (FormatError, UsageError) as error:
            self._fail(number, name, error)
            return
        self._active[number] = name, made
        self._draw(number)

    def _step(self) -> None:
        """One token for every text."""
        feed_together(self._model, [made for _, made in self._active.values()])
        for number in list(self._active):
            self._draw(number)

    def _draw(self, number: int) -> None:
        """Draw until there is a token to feed, or the text has ended."""
        name, made = self._active[number]
        try:
            made.advance()
        except (FormatError, UsageError) as error:
            del self._active[number]
            self._fail(number, name, error)
            return
        if made.done:
            self.prompt_tokens += made.prompt_tokens
            self.completion_tokens += made.completion_tokens
            self._finished[number] = {"id": name, **made.report()}
            del self._active[number]

    def _fail(self, number: int, name: Any, error: RwkvError) -> None:
        self.failed += 1
        self._finished[number] = {"id": name, "error": str(error)}


def alternatives(
    model: Model, text: bytes | None, settings: Settings, count: int, start: State | None = None
) -> list[Generation]:
    """`count` continuations of one prompt, which is evaluated once; finished. Number i has the seed of `settings` plus i.

    Raises what `Generation` does.
    """
    first = Generation(model, text, settings, start)
    made = [first]
    for number in range(1, count):
        sampling = {**settings.sampling, "seed": (first.seed + number) % _SEEDS}
        own = replace(settings, sampling=sampling)
        made.append(Generation(model, text, own, start.copy() if start is not None else None))
    first.read()
    for other in made[1:]:
        other.read_as(first)
    active: Sequence[Generation] = made
    while True:
        for one in active:
            one.advance()
        active = [one for one in active if not one.done]
        if not active:
            return made
        feed_together(model, active)


def feed_together(model: Model, made: Sequence[Generation]) -> None:
    """Feed the token of each of `made` that was drawn last: the weights are read once for all of them, or for what one of them
    may go on with."""
    if len(made) == 1:
        made[0].feed()
        return
    states = [one.whole_state() for one in made]
    logits = model.forward_batch([one.unfed for one in made], states)
    for row, one in enumerate(made):
        one.was_fed(logits[row])


def is_texts(said: Any) -> bool:
    """Whether it is a list of strings."""
    return isinstance(said, list | tuple) and all(isinstance(text, str) for text in said)


def _bias(said: Any) -> dict[int, float]:
    """{token id: bias} of a JSON object, whose keys are strings."""
    try:
        return {int(token): real(value) for token, value in said.items()}
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise UsageError("logit_bias is not an object of token ids and numbers") from None
