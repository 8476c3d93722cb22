"""What guessing tokens ahead brings, by how often guesses are right: `python -m benchmarks.speculation MODEL [--draft MODEL]`.

A text is drawn once without guesses. Then a drafter that knows it guesses each of its tokens, and is right at a given share of
them: the time of the same text is told beside that of plain decoding. A guess costs nothing, as with `lookup`, or what a draft
model takes for it (`--draft`). A round decodes plainly and at every share, and changes the order; a ratio is taken within a round.
Choosing tokens is part of the time. Text, state and last logits must be the same bits every time.

A second table tells what one pass over a few tokens takes beside one token alone, and what it takes to keep all of them.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.compare import span, summary
from rwkvcli.errors import RwkvError, UsageError
from rwkvcli.runtime.backend import LARGEST_LOOKAHEAD
from rwkvcli.runtime.decoding import Evaluator
from rwkvcli.runtime.drafting import Drafter, DraftModel, check_vocabulary
from rwkvcli.runtime.lookahead import Ahead
from rwkvcli.runtime.model import Model
from rwkvcli.runtime.sampling import Sampler, SamplingParams
from rwkvcli.runtime.speculation import Speculation
from rwkvcli.services.loading import load_model
from rwkvcli.services.store import find_model

if TYPE_CHECKING:
    from rwkvcli.runtime.backend import Logits

SEED = 1
CALLS = 12
"""Of every kind in a round of the second table: the median counts."""


@dataclass(frozen=True)
class Text:
    """What was drawn, and what came of it, to the bit."""

    tokens: list[int]
    logits: bytes
    state: dict[str, bytes]


class FreeGuesses:
    """Guesses that are there already: `guesses` [i] is of the text's token `i`."""

    def __init__(self, guesses: Sequence[int]) -> None:
        self._guesses = guesses
        self._next = 0

    def read(self, tokens: Sequence[int]) -> None:
        self._next += len(tokens)

    def guess(self, most: int) -> list[int]:
        return list(self._guesses[self._next : self._next + most])


class GuessingSampler(Sampler):
    """Draws, for the time that it takes, and says `guesses` instead."""

    def __init__(self, guesses: Sequence[int], model: Model) -> None:
        super().__init__(params_for(model), model.tokenizer.vocab_size)
        self._guesses = guesses
        self._end = model.tokenizer.eos_id
        self.next = 0

    def __call__(self, logits: Logits) -> int:
        super().__call__(logits)
        self.next += 1
        return self._guesses[self.next - 1] if self.next <= len(self._guesses) else self._end

    @property
    def complete(self) -> bool:
        return self.next >= len(self._guesses)


class DraftedGuesses(DraftModel):
    """The same guesses at the price of a draft model, which evaluates them as if it had drawn them."""

    def __init__(self, guesses: Sequence[int], draft: Model) -> None:
        self._guessing = GuessingSampler(guesses, draft)
        super().__init__(draft, self._guessing)

    def read(self, tokens: Sequence[int]) -> None:
        self._guessing.next += len(tokens)
        super().read(tokens)


@dataclass
class Case:
    """Decoding at one share of right guesses (None: without any): its rates, tokens per second of each round, and its counts
    over all rounds."""

    share: float | None
    rates: list[float] = field(default_factory=list)
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def passes(self) -> int:
        """Of the engine."""
        return self.tokens - self.accepted


def params_for(model: Model) -> SamplingParams:
    """Temperature 1, and a text that does not end."""
    return SamplingParams(seed=SEED, logit_bias={model.tokenizer.eos_id: float("-inf")})


def ahead_of(model: Model) -> Ahead:
    """Room as every text has its own. Raises UsageError if the device of `model` has none."""
    ahead = model.ahead()
    if ahead is None:
        raise UsageError(f"nothing is guessed on {model.backend.description}")
    return ahead


def decode(model: Model, evaluator: Evaluator, count: int) -> tuple[Text, float]:
    """Draw `count` tokens from what `evaluator` tells of `model`; the seconds that took, the state settled."""
    sampler = Sampler(params_for(model), model.tokenizer.vocab_size)
    state, tokens = model.new_state(), [model.tokenizer.eos_id]
    logits = evaluator.evaluate(tokens, state)
    begin = time.perf_counter()
    for _ in range(count):
        tokens.append(sampler(logits))
        logits = evaluator.evaluate(tokens[-1:], state)
    if isinstance(evaluator, Speculation):
        evaluator.settle(state)
    seconds = time.perf_counter() - begin
    bits = {name: values.tobytes() for name, values in state.to_numpy().items()}
    return Text(tokens, np.asarray(logits).tobytes(), bits), seconds


def guesses_of(tokens: Sequence[int], share: float, model: Model, seed: int) -> list[int]:
    """A guess of each token. The share that is right is met as nearly as may be, at places that depend on the seed; a guess that is
    right at one share is right at all above."""
    rng = random.Random(seed)
    chances = [(i + 0.5) / len(tokens) for i in range(len(tokens))]
    rng.shuffle(chances)
    guesses = []
    for token, chance in zip(tokens, chances, strict=True):
        wrong = token
        while wrong in (token, model.tokenizer.eos_id):
            wrong = rng.randrange(model.tokenizer.vocab_size)
        guesses.append(token if chance < share else wrong)
    return guesses


def measure(
    model: Model, draft: Model | None, shares: Sequence[float], count: int, rounds: int
) -> list[Case]:
    """Plain decoding and every share, in turns. Exits if a guess has changed anything."""
    text, _ = decode(model, model, count)

    def run(case: Case, turn: int) -> float:
        """Tokens per second."""
        speculation = None
        if case.share is not None:
            guesses = guesses_of(text.tokens, case.share, model, SEED + turn)
            drafter: Drafter = DraftedGuesses(guesses, draft) if draft else FreeGuesses(guesses)
            speculation = Speculation(model, ahead_of(model), drafter)
        found, seconds = decode(model, speculation or model, count)
        for name in ("tokens", "logits", "state"):
            if getattr(found, name) != getattr(text, name):
                what = "plain decoding" if case.share is None else f"{case.share:.0%} of the guesses right"
                raise SystemExit(f"{what}: not the same {name} as the first time")
        if speculation:
            case.drafted += speculation.drafted
            case.accepted += speculation.accepted
        case.tokens += count
        return count / seconds

    run(Case(1.0), 0)  # warm-up: pages, buffers
    cases = [Case(share) for share in (None, *dict.fromkeys(shares))]
    for turn in range(rounds):
        for case in cases if turn % 2 == 0 else cases[::-1]:
            case.rates.append(run(case, turn))
    return cases


def pass_times(model: Model, draft: Model | None, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each round: `alone` (a token by `forward`), `pass N` and `keep N`, and `draft` (a token of it)."""
    rng, room, state = random.Random(SEED), model.backend.lookahead(), model.new_state().inner
    assert room is not None
    aside = draft.new_state().inner if draft else None
    sizes = range(1, LARGEST_LOOKAHEAD + 1)
    found: dict[str, list[float]] = {}
    calls: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[..., object], *given: object) -> None:
        begin = time.perf_counter()
        call(*given)
        calls.setdefault(name, []).append(1000 * (time.perf_counter() - begin))

    for turn in range(1 + rounds):  # the first is a warm-up
        calls.clear()
        for _ in range(CALLS):
            ids = array("i", (rng.randrange(model.tokenizer.vocab_size) for _ in sizes))
            timed("alone", model.backend.forward, ids[:1], state)
            if draft:
                timed("draft", draft.backend.forward, ids[:1], aside)
            for size in sizes if turn % 2 else sizes[::-1]:
                timed(f"pass {size}", room.run, ids[:size], state)
                timed(f"keep {size}", room.keep, state, 0, size)
        for name, times in calls.items() if turn else ():
            found.setdefault(name, []).append(statistics.median(times))
    return found


def table_of_shares(cases: Sequence[Case], threads: int) -> Iterator[str]:
    """Rows, plain decoding first."""
    plain = cases[0]
    for case in cases:
        cells = ["-"] * 3
        if case.share is not None:
            cells = [
                beside(case.rates, plain.rates, "**"),
                f"{case.drafted / case.passes:.1f}",
                f"{case.tokens / case.passes:.2f}",
            ]
        name = "plain" if case.share is None else f"{100 * case.share:g} %"
        yield row(str(threads), name, span(summary(case.rates)), *cells)


def table_of_passes(times: dict[str, list[float]], threads: int) -> Iterator[str]:
    """Rows, one token alone first."""
    alone = times["alone"]
    for name, found in times.items():
        kind, _, size = name.partition(" ")
        if kind == "pass":
            keep = times[f"keep {size}"]
            cells = [beside(found, alone), span(summary(keep), 3), beside(keep, alone)]
            yield row(str(threads), f"{size} ahead", span(summary(found), 3), *cells)
        elif kind != "keep":
            called = "1 alone" if found is alone else "1 of the draft model"
            yield row(str(threads), called, span(summary(found), 3), beside(found, alone), "-", "-")


def beside(mine: Sequence[float], theirs: Sequence[float], bold: str = "") -> str:
    """The ratio: its median over the rounds, and its range."""
    ratios = [own / other for own, other in zip(mine, theirs, strict=True)]
    return f"{bold}{statistics.median(ratios):.2f}x{bold} ({min(ratios):.2f} to {max(ratios):.2f})"


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def head(*titles: str) -> str:
    """With the line below."""
    return row(*titles) + "\n" + "|---" * len(titles) + "|"


def load(name: str, device: str, threads: int) -> Model:
    return load_model(find_model(name, offline=True), device, threads)


def numbers(text: str) -> list[int]:
    """`1,2`, each 1 or more."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError
    return found


def shares(text: str) -> list[float]:
    """`0.5,1`, each from 0 to 1."""
    found = [float(part) for part in text.split(",")]
    if not all(0 <= share <= 1 for share in found):
        raise ValueError
    return found


def positive(text: str) -> int:
    (found,) = numbers(text)
    return found


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--draft", metavar="MODEL", help="a smaller model, whose time every guess takes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=numbers, default=[1, 2], metavar="N,...")
    parser.add_argument("--tokens", type=positive, default=256, help="of the text")
    parser.add_argument(
        "--shares",
        type=shares,
        default=[0.3, 0.5, 0.7, 0.8, 0.9, 1.0],
        metavar="SHARE,...",
        help="of right guesses",
    )
    parser.add_argument("--rounds", type=positive, default=5)
    chosen = parser.parse_args()
    try:
        tell(chosen)
    except RwkvError as error:
        hint = f" ({error.hint})" if error.hint else ""
        parser.exit(error.exit_code, f"{parser.prog}: {error}{hint}\n")


def tell(chosen: argparse.Namespace) -> None:
    """Measure, and print both tables. The first comes as it is measured."""
    passes: list[str] = []
    for threads in chosen.threads:
        model = load(chosen.model, chosen.device, threads)
        draft = load(chosen.draft, chosen.device, threads) if chosen.draft else None
        ahead_of(model)
        if draft:
            check_vocabulary(model, draft)
        if not passes:
            device, _, _ = model.backend.description.partition(", ")
            cost = f"what {draft.file.path.name} takes" if draft else "nothing"
            print(f"{model.file.path.name}, {device}; tokens: {chosen.tokens}; ", end="")
            print(f"rounds: {chosen.rounds}; a guess costs: {cost}\n")
            print(
                head(
                    "threads",
                    "right guesses",
                    "tok/s (range)",
                    "ratio (range)",
                    "guesses a pass",
                    "tokens a pass",
                )
            )
        cases = measure(model, draft, chosen.shares, chosen.tokens, chosen.rounds)
        print("\n".join(table_of_shares(cases, threads)), flush=True)
        passes += table_of_passes(pass_times(model, draft, chosen.rounds), threads)
    print(
        "\n"
        + head(
            "threads", "tokens", "ms (range)", "ratio (range)", "to keep them, ms (range)", "ratio (range)"
        )
    )
    print("\n".join(passes))


if __name__ == "__main__":
    main()
