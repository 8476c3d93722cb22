"""What the scripts in benchmarks/ name exists, and what they do before and after they measure."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
from quant_models import checkpoint, quantized

from quant.synthetic import synthetic_arch
from rwkvcli import Model

ROOT = Path(__file__).parent.parent.parent


def test_every_rival_is_a_format_of_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    compare = importlib.import_module("benchmarks.compare")
    known = {kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    assert set(compare.RIVAL.values()) <= known
    assert {"F16", "F32"}.isdisjoint(compare.QUANTIZED_RIVALS)


@pytest.fixture
def speculation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.speculation")


def run(monkeypatch: pytest.MonkeyPatch, script: ModuleType, *words: str) -> int | str | None:
    """What it exits with; 0 if it came to its end."""
    monkeypatch.setattr(sys, "argv", ["script", *words])
    try:
        script.main()
    except SystemExit as error:
        return error.code
    return 0


def test_guesses_are_right_at_the_share_asked_for(speculation: ModuleType) -> None:
    model = Model.load("demo", device="cpu", threads=1)
    text = [1 + i % 255 for i in range(400)]
    right: set[int] = set()
    for share in (0.0, 0.25, 0.5, 1.0):
        guesses = speculation.guesses_of(text, share, model, seed=3)
        assert guesses == speculation.guesses_of(text, share, model, seed=3)
        assert model.tokenizer.eos_id not in guesses
        found = {i for i, (guess, token) in enumerate(zip(guesses, text, strict=True)) if guess == token}
        assert len(found) == 400 * share
        assert found >= right
        right = found
    half = speculation.guesses_of(text, 0.5, model, seed=3)
    assert half != speculation.guesses_of(text, 0.5, model, seed=4)


def test_drafted_guesses_are_the_free_ones_and_cost_what_a_draft_model_costs(
    speculation: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = Model.load("demo", device="cpu", threads=1)
    fed: list[list[int]] = []
    evaluate = draft.evaluate

    def noting(tokens: list[int], *rest: Any) -> Any:
        fed.append(list(tokens))
        return evaluate(tokens, *rest)

    monkeypatch.setattr(draft, "evaluate", noting)
    text = [0, 11, 12, 13, 14, 15, 16, 17, 18, 19]
    guesses = [0, 11, 12, 13, 94, 15, 16, 17, 18, 19]  # of 14 a wrong one
    free = speculation.FreeGuesses(guesses)
    drafted = speculation.DraftedGuesses(guesses, draft)

    def step(tokens: list[int], most: int) -> tuple[list[int], list[list[int]]]:
        fed.clear()
        free.read(tokens)
        drafted.read(tokens)
        found = drafted.guess(most)
        assert found == free.guess(most)
        return found, fed.copy()

    assert step(text[:2], 2) == ([12, 13], [[0, 11], [12]])
    assert step(text[2:4], 3) == ([94, 15, 16], [[13], [94], [15]])  # both came: the second was not fed yet
    assert step(text[4:5], 2) == ([15, 16], [[14], [15]])  # taken back
    assert step(text[5:8], 7) == ([18, 19], [[16, 17], [18]])  # up to the text's end
    assert step(text[8:], 7) == ([], [[19]])


def test_speculation_tells_shares_and_passes(
    speculation: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "demo",
        "--draft",
        "demo",
        "--threads",
        "1,2",
        "--tokens",
        "24",
        "--shares",
        "0,0.5,1",
        "--rounds",
        "2",
    ]
    assert run(monkeypatch, speculation, *words) == 0
    told = capsys.readouterr()
    assert told.err == ""
    title, shares, passes = told.out.split("\n\n")
    assert title == "demo.safetensors, cpu; tokens: 24; rounds: 2; a guess costs: what demo.safetensors takes"
    number = r"\d+(\.\d+)?"
    spread, ratio = rf"{number} \({number} to {number}\)", rf"{number}x \({number} to {number}\)"
    rows = [line.strip("| ").split(" | ") for line in shares.splitlines()[2:]]
    names = ["plain", "0 %", "50 %", "100 %"]
    assert [each[:2] for each in rows] == [[threads, name] for threads in "12" for name in names]
    for _, name, rate, compared, guessed, came in rows:
        assert re.fullmatch(spread, rate)
        if name == "plain":
            assert (compared, guessed, came) == ("-", "-", "-")
        else:
            assert re.fullmatch(ratio, compared.replace("*", ""))
            assert 0 <= float(guessed) <= 7
            assert 1 <= float(came) <= 8
            assert name != "0 %" or came == "1.00"
    rows = [line.strip("| ").split(" | ") for line in passes.splitlines()[2:]]
    names = ["1 alone", "1 of the draft model", *(f"{size} ahead" for size in range(1, 9))]
    assert [each[:2] for each in rows] == [[threads, name] for threads in "12" for name in names]
    for _, name, took, compared, *keep in rows:
        assert re.fullmatch(spread, took)
        assert re.fullmatch(ratio, compared)
        assert name != "1 alone" or compared == "1.00x (1.00 to 1.00)"
        if "ahead" in name:
            assert re.fullmatch(f"{spread}, {ratio}", ", ".join(keep))
        else:
            assert keep == ["-", "-"]


@pytest.mark.parametrize("what", ["tokens", "state"])
def test_speculation_fails_when_a_guess_changes_the_text(
    speculation: ModuleType, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    class Wrong(speculation.Speculation):  # type: ignore[misc, name-defined]
        evaluated = 0

        def evaluate(self, tokens: list[int], state: Any) -> Any:
            logits = super().evaluate(tokens, state)
            self.evaluated += 1
            return np.asarray(logits)[::-1].copy() if what == "tokens" else logits

        def settle(self, state: Any) -> None:
            super().settle(state)
            if what == "state" and self.evaluated == 1 + 24:
                self._model.evaluate([1], state)

    monkeypatch.setattr(speculation, "Speculation", Wrong)
    words = ["demo", "--threads", "1", "--tokens", "24", "--shares", "0.5", "--rounds", "1"]
    told = run(monkeypatch, speculation, *words)
    assert told == f"100% of the guesses right: not the same {what} as the first time"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nosuch/model.safetensors"], 3, "does not exist"),
        (["demo", "--shares", "0.5,1.5"], 2, "argument --shares"),
        (["demo", "--threads", "0"], 2, "argument --threads"),
        (["demo", "--tokens", "0"], 2, "argument --tokens"),
        (["demo", "--rounds", "1,2"], 2, "argument --rounds"),
    ],
)
def test_speculation_refuses(
    speculation: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    message: str,
) -> None:
    assert run(monkeypatch, speculation, *words) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert message in told.err


def test_speculation_refuses_a_device_that_cannot_look_ahead(
    speculation: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Model, "ahead", lambda _model: None)
    assert run(monkeypatch, speculation, "demo", "--threads", "1") == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert re.fullmatch(r"script: nothing is guessed on cpu, \w+, 1 thread\n", told.err)


def test_speculation_refuses_a_draft_model_of_another_vocabulary(
    speculation: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    source, draft = tmp_path / "source.pth", tmp_path / "draft.safetensors"
    checkpoint(source, synthetic_arch("7", 2, 64, 300))
    quantized(source, draft, "int8")
    assert run(monkeypatch, speculation, "demo", "--draft", str(draft), "--threads", "1") == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        "script: draft.safetensors has another vocabulary than demo.safetensors "
        "(a draft model is a smaller one of the same family; `--draft off` goes without)\n"
    )
