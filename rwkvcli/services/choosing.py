"""Which of several texts is the likeliest to come next: what `rwkv score` does, without the printing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rwkvcli.errors import FormatError, RwkvError, UsageError
from rwkvcli.runtime.choices import TOGETHER, choice_ids, score_choices, told
from rwkvcli.runtime.tokenizer import text_to_bytes
from rwkvcli.services import generation
from rwkvcli.services.batching import NO_PROMPT, Lines, is_texts, parsed
from rwkvcli.services.generation import Generation

if TYPE_CHECKING:
    from rwkvcli.runtime.model import Model
    from rwkvcli.runtime.state import State

BY = ("sum", "token", "byte")
"""What may rank choices: the log-probability, or its mean over the tokens or bytes that are scored."""
_OWN = ("prompt", "choices", "id", "system")


@dataclass(frozen=True)
class Settings:
    """What is scored, and how.

    `chat`: the text is a person's message, and a choice is the model's answer to it, both as the family was trained;
    `system` goes before the message, and `template` names a family in place of the model's own. `end`: the text
    ends after the choice, with the token that ends texts, or in a chat with what follows an answer.
    """

    choices: tuple[bytes, ...] = ()
    end: bool = False
    by: str = "sum"
    """One of BY."""
    chat: bool = False
    system: str | None = None
    template: str | None = None
    together: int = TOGETHER
    """Choices that are evaluated together."""


def check_choices(choices: Sequence[bytes], chat: bool) -> None:
    """Raise UsageError for a choice that is empty or given twice. An answer in a chat has no white space around it."""
    seen = set()
    for choice in choices:
        text = _trimmed(choice) if chat else choice
        if not text:
            raise UsageError("a choice is empty")
        if text in seen:
            raise UsageError(
                f"the choice {told(text)} is given twice", hint="each counts in the shares of all"
            )
        seen.add(text)


@dataclass(frozen=True)
class Choice:
    """What a choice scored."""

    text: bytes
    """As it was given."""
    logprob: float
    """Of all of it, nats."""
    tokens: int
    nbytes: int
    """Of what is scored, as `tokens`."""

    def value(self, by: str) -> float:
        """What it is ranked by."""
        return self.logprob / {"sum": 1, "token": self.tokens, "byte": self.nbytes}[by]


class Choosing:
    """Scores the choices of `settings` as what comes after `text` (None: after `state` as it is): `run`, then `scored`.

    `state`: what the text continues; it is advanced over the text. `check` is called between calls of the engine; what it
    raises ends the run. `on_prompt` is called with bytes of the text that were fed, `on_choices` with tokens that were scored, and
    all of them. Raises UsageError, at once, for what `check_choices` refuses, without choices, for a choice that the vocabulary
    cannot encode, and where there is nothing to go on from.
    """

    def __init__(
        self,
        model: Model,
        text: bytes | None,
        settings: Settings,
        state: State | None = None,
        *,
        check: Callable[[], None] = lambda: None,
        on_prompt: Callable[[int, int], None] = lambda done, total: None,
        on_choices: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        if not settings.choices:
            raise UsageError("there are no choices")
        check_choices(settings.choices, settings.chat)
        self._model = model
        self._settings = settings
        self._check = check
        self._on_choices = on_choices
        plain = generation.Settings(0, {}, (), settings.chat, settings.system, settings.template)
        self._reading = Generation(model, text, plain, state, check=check, on_prompt=on_prompt)
        if settings.chat and self._reading.text_given is None:
            raise UsageError(
                "there is no message to answer", hint="without --chat the choices continue the state's text"
            )
        self.template = self._reading.template
        self._parts = [self._encoded(choice) for choice in settings.choices]
        self.scored: list[Choice] = []
        """In the order of the settings."""
        self.timings = self._reading.timings
        """`decode` is the time of the choices."""

    def run(self) -> None:
        """Evaluate the text, and score every choice after it. Raises FormatError for a model whose logits are no numbers."""
        self._reading.read()
        state, logits = self._reading.state, self._reading.logits
        if logits is None:
            raise UsageError(
                "the text that the state has seen has ended: nothing comes after it",
                hint="give PROMPT, or pipe text in",
            )
        assert state is not None
        begin = time.perf_counter()
        ids = [ids for ids, _ in self._parts]
        together = self._settings.together
        found = score_choices(self._model, state, logits, ids, together=together, on_tokens=self._told)
        self.scored = [
            Choice(text, logprob, len(ids), nbytes)
            for text, logprob, (ids, nbytes) in zip(self._settings.choices, found, self._parts, strict=True)
        ]
        self.timings.decode = time.perf_counter() - begin

    @property
    def ranked(self) -> list[Choice]:
        """The best first, of equal ones the one that was given first."""
        return sorted(self.scored, key=lambda choice: -choice.value(self._settings.by))

    @property
    def best(self) -> str:
        """The text of the best; bytes that are not UTF-8 stay."""
        return _shown(self.ranked[0].text)

    @property
    def prompt_tokens(self) -> int:
        return self._reading.prompt_tokens

    @property
    def choice_tokens(self) -> int:
        return sum(choice.tokens for choice in self.scored)

    def shares(self) -> list[float]:
        """What each has of the probability of all choices."""
        top = max(choice.logprob for choice in self.scored)
        weights = [math.exp(choice.logprob - top) for choice in self.scored]
        total = math.fsum(weights)
        return [weight / total for weight in weights]

    def report(self) -> dict[str, Any]:
        """The JSON form. The names are stable."""
        times = self.timings
        return {
            "choices": [
                {
                    "text": _shown(choice.text),
                    "logprob": choice.logprob,
                    "tokens": choice.tokens,
                    "bytes": choice.nbytes,
                    "logprob_per_token": choice.value("token"),
                    "logprob_per_byte": choice.value("byte"),
                    "share": share,
                }
                for choice, share in zip(self.scored, self.shares(), strict=True)
            ],
            "best": self.best,
            "by": self._settings.by,
            "usage": {"prompt_tokens": self.prompt_tokens, "choice_tokens": self.choice_tokens},
            "timings": {
                "load_s": round(times.load, 6),
                "prompt_s": round(times.prompt, 6),
                "choices_s": round(times.decode, 6),
                "prompt_per_s": round(self.prompt_tokens / times.prompt, 2) if times.prompt else None,
                "choices_per_s": round(self.choice_tokens / times.decode, 2) if times.decode else None,
            },
            "model": str(self._model.file.path),
        }

    def _encoded(self, choice: bytes) -> tuple[list[int], int]:
        """The ids that are scored for a choice, and their bytes."""
        tokenizer, end = self._model.tokenizer, self._settings.end
        if not self._settings.chat:
            ids = choice_ids(tokenizer, choice)
            return ([*ids, tokenizer.eos_id] if end else ids), len(choice)
        before, _, tail = self.template.answer.partition("{reply}")
        text = before.encode() + _trimmed(choice) + (tail.encode() if end else b"")
        return choice_ids(tokenizer, text), len(text)

    def _told(self, done: int, total: int) -> None:
        self._on_choices(done, total)
        if done < total:
            self._check()


class ChoosingLines:
    """The same for lines of JSON, one after the other: an object of `prompt`, `choices`, `id` and `system`, where the last
    three may be left out. A line's own choices stand in place of those of the settings.

    Iterate over it for the results, in the order of the lines: the JSON form of each with `id`, or {"id", "error"} for a
    line that failed. Blank lines are passed over.
    """

    def __init__(
        self,
        model: Model,
        lines: Lines,
        settings: Settings,
        start: State | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`start`: what every text continues. `check` is called between calls of the engine; what it raises ends the
        iteration."""
        self._model = model
        self._lines = lines
        self._settings = settings
        self._start = start
        self._check = check
        self.given = 0
        """Lines that were read."""
        self.failed = 0
        """Lines among them that failed."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while line := self._lines(True):
            self._check()
            if line.strip():
                number = self.given
                self.given += 1
                yield self._result(line, number)

    def rest(self) -> list[dict[str, Any]]:
        """What is finished and was not given out: nothing, since lines are done one after the other."""
        return []

    def _result(self, line: bytes, number: int) -> dict[str, Any]:
        name: Any = number
        try:
            said = parsed(line)
            name = said.get("id", number)
            prompt, settings = self._understood(said)
            start = self._start.copy() if self._start is not None else None
            made = Choosing(self._model, prompt, settings, start, check=self._check)
            made.run()
        except (FormatError, UsageError) as error:
            return self._failed(name, error)
        return {"id": name, **made.report()}

    def _failed(self, name: Any, error: RwkvError) -> dict[str, Any]:
        self.failed += 1
        return {"id": name, "error": str(error)}

    def _understood(self, said: Mapping[str, Any]) -> tuple[bytes, Settings]:
        """The prompt and the settings of a line. Raises UsageError."""
        for key in said:
            if key not in _OWN:
                raise UsageError(f"a line has {', '.join(_OWN)}, and not {key!r}")
        prompt, system = said.get("prompt"), said.get("system", self._settings.system)
        if not isinstance(prompt, str):
            raise UsageError(NO_PROMPT)
        if not isinstance(system, str | None):
            raise UsageError("system is not a string")
        choices = self._settings.choices
        if "choices" in said:
            if not is_texts(said["choices"]):
                raise UsageError("choices is not a list of strings")
            choices = tuple(map(text_to_bytes, said["choices"]))
        chat = self._settings.chat or system is not None
        return text_to_bytes(prompt), replace(self._settings, choices=choices, chat=chat, system=system)


def _trimmed(choice: bytes) -> bytes:
    return text_to_bytes(_shown(choice).strip())


def _shown(text: bytes) -> str:
    """A choice as text; bytes that are not UTF-8 stay."""
    return text.decode("utf-8", "surrogateescape")
