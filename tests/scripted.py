"""A model that says what the test tells it to, whatever it is fed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvcli.runtime.templates import Template, named
from rwkvcli.runtime.tokenizer import WorldTokenizer

WORLD = WorldTokenizer()


@dataclass
class ScriptState:
    """The tokens that were fed."""

    seen: list[int] = field(default_factory=list)
    pause: Any = None

    @property
    def tokens_seen(self) -> int:
        return len(self.seen)

    def copy(self) -> ScriptState:
        return ScriptState(list(self.seen), self.pause)


class ScriptAhead:
    """Tokens that may follow a state."""

    def __init__(self, model: ScriptModel) -> None:
        self._model = model
        self._tokens: list[int] = []
        self.kept = 0

    def run(self, tokens: list[int], state: ScriptState) -> list[NDArray[np.float32]]:
        self._tokens, self.kept = tokens, 0
        copy = state.copy()
        return [self._model.evaluate([token], copy) for token in tokens]

    def keep(self, state: ScriptState, count: int) -> None:
        for token in self._tokens[self.kept : count]:
            self._model.evaluate([token], state)
        self.kept = count


class ScriptModel:
    """Answers a prompt with `text`, then ends it. Whatever comes in pieces of several tokens is a prompt."""

    tokenizer = WORLD
    file = SimpleNamespace(path=Path("script.safetensors"))
    backend = SimpleNamespace(description="script")
    why = ""

    def __init__(self, text: str, template: str | Template = "g1") -> None:
        self.script = [*WORLD.encode(text), WORLD.eos_id]
        self.template = named(template) if isinstance(template, str) else template
        self.prompts: list[str] = []

    def new_state(self) -> ScriptState:
        return ScriptState()

    def evaluate(self, tokens: list[int], state: ScriptState) -> NDArray[np.float32]:
        state.seen.extend(tokens)
        state.pause = None
        if len(tokens) > 1:
            self.prompts.append(WORLD.decode(list(tokens)))
            state.seen.append(-1)  # the answer begins here
        begin = max((i for i, token in enumerate(state.seen) if token == -1), default=len(state.seen) - 1)
        said = len(state.seen) - 1 - begin
        logits = np.zeros(WORLD.vocab_size, np.float32)
        logits[self.script[min(said, len(self.script) - 1)]] = 1
        return logits

    def ahead(self) -> ScriptAhead:
        return ScriptAhead(self)

    def forward_batch(self, tokens: list[Any], states: list[ScriptState]) -> NDArray[np.float32]:
        return np.stack([self.evaluate(list(one), state) for one, state in zip(tokens, states, strict=True)])


class ServedScript(ScriptModel):
    """One as a server has it, which can be told to say something else."""

    fingerprint = "0" * 64
    config = SimpleNamespace(vocab_size=WORLD.vocab_size)

    def new_state(self) -> ScriptState:
        return _ServedState()

    def say(self, text: str) -> None:
        self.script = [*WORLD.encode(text), WORLD.eos_id]


class _ServedState(ScriptState):
    def copy(self) -> ScriptState:
        return _ServedState(list(self.seen), self.pause)

    def to_numpy(self) -> dict[str, Any]:
        return {"seen": np.zeros(1, np.float32)}
