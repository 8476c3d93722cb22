"""How a model is called by what is tested."""

from __future__ import annotations

from typing import Any

import pytest

from rwkvcli import Model, State


def tokens_of_calls(monkeypatch: pytest.MonkeyPatch, method: str) -> list[int]:
    """How many tokens each call of `Model.forward` or `Model.evaluate` is given from now on."""
    calls: list[int] = []
    called = getattr(Model, method)

    def noted(self: Model, tokens: Any, state: State, all_logits: bool = False) -> Any:
        calls.append(len(tokens))
        return called(self, tokens, state, all_logits)

    monkeypatch.setattr(Model, method, noted)
    return calls
