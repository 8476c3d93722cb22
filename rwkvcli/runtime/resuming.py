"""Going on with a text where its state was left: what was held back of it, and how its tokens were drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rwkvcli.errors import FormatError, UsageError

if TYPE_CHECKING:
    from rwkvcli.runtime.sampling import Sampler
    from rwkvcli.runtime.state_file import Pause
    from rwkvcli.runtime.streaming import TextStream


def resume(pause: Pause, sampler: Sampler, stream: TextStream, seed: int | None) -> str:
    """Make `sampler` and `stream` go on with a text that was left at `pause`. Returns the text that can be shown now.

    `seed`: the one that is asked for. Raises UsageError (a text that was begun without the grammar), FormatError.
    """
    text = ""
    if pause.text is not None:
        if sampler.conforms:
            check_beginning(pause, stream.state())
        text = held_answer(pause) + stream.restore(pause.text)
    if pause.sampler is not None:
        sampler.restore(draws(pause.sampler, seed))
    return text


def draws(saved: Mapping[str, Any], seed: int | None) -> dict[str, Any]:
    """The saved state of a sampler to go on with: another seed begins its own draws."""
    other = seed is not None and seed != saved.get("seed")
    return {**saved, "seed": seed, "draws": 0} if other else dict(saved)


def held_answer(pause: Pause) -> str:
    """What was held back of an answer, where it is gone on with as plain text. Raises FormatError."""
    answer = (pause.text or {}).get("answer", {})
    if not isinstance(answer, Mapping):
        raise FormatError("not the state of an answer")
    return str(answer.get("held", ""))


def check_beginning(pause: Pause, fresh: Mapping[str, Any]) -> None:
    """Raise UsageError if a text that is gone on with was begun without being held to anything. `fresh`: what is held back
    of one that has not begun."""
    held = pause.ended or (pause.sampler or {}).get("conforming") is not None
    if not held and pause.text != fresh:
        raise UsageError(
            "the state was left inside a text that no schema or grammar was given for",
            hint="go on without it, or give a new text",
        )
