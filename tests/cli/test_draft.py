"""`--draft`: the same text, sooner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_runner import rwkv_inside
from quant_models import checkpoint, odd_arch, quantized

from rwkvcli.errors import DeviceUnavailable
from rwkvcli.runtime.drafting import Lookup

GENERATE = ["generate", "-m", "demo", "-t", "1", "--seed", "1", "--max-tokens", "60"]
PROMPT = "It was a fine day, and it was a fine day, and it was"


@pytest.mark.parametrize("draft", ["lookup", "demo", "off"])
def test_the_text_and_the_state_are_the_same(tmp_path: Path, draft: str) -> None:
    plain = rwkv_inside(*GENERATE, "--save-state", "plain", PROMPT, cwd=tmp_path)
    drafted = rwkv_inside(*GENERATE, "--save-state", "drafted", "--draft", draft, PROMPT, cwd=tmp_path)
    assert (
        (drafted.code, drafted.out, drafted.err) == (plain.code, plain.out, plain.err) == (0, plain.out, "")
    )
    assert (tmp_path / "drafted").read_bytes() == (tmp_path / "plain").read_bytes()


def test_what_came_of_it_is_told() -> None:
    told = rwkv_inside(*GENERATE, "--stats", "--draft", "demo", PROMPT).err
    part = next(part for part in told.split("; ") if part.endswith(" guesses came"))
    came, _, guessed, *_ = part.split()
    assert 0 < int(came) <= int(guessed)
    answer = json.loads(rwkv_inside(*GENERATE, "--json", "--draft", "demo", PROMPT).out)
    assert 0 < answer["draft"]["came"] <= answer["draft"]["guessed"]
    plain = json.loads(rwkv_inside(*GENERATE, "--json", PROMPT).out)
    assert plain["text"] == answer["text"]
    assert "draft" not in plain
    assert "guesses" not in rwkv_inside(*GENERATE, "--stats", PROMPT).err


def test_environment_configuration_and_flag(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('draft = "lookup"\n')

    def guesses(*args: str, **env: str) -> bool:
        done = rwkv_inside(*GENERATE, "--json", *args, PROMPT, env=env)
        return "draft" in json.loads(done.out)

    assert guesses(RWKV_CONFIG=str(config))
    assert guesses(RWKV_DRAFT="demo")
    assert guesses("--draft", "lookup", RWKV_DRAFT="off")
    assert not guesses("--draft", "off", RWKV_CONFIG=str(config))
    assert not guesses(RWKV_DRAFT="off", RWKV_CONFIG=str(config))


def test_a_chat_is_the_same() -> None:
    lines = "Hello\nAnd you?\n"
    chat = ["chat", "-m", "demo", "-t", "1", "--seed", "3", "--max-tokens", "60"]
    plain = rwkv_inside(*chat, stdin=lines)
    assert plain.code == 0
    for draft in ("lookup", "demo"):
        assert rwkv_inside(*chat, "--draft", draft, stdin=lines) == plain


def test_a_draft_that_fails_ends_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Any, tokens: Any) -> None:
        raise DeviceUnavailable("the GPU is lost")

    plain = rwkv_inside(*GENERATE, PROMPT)
    monkeypatch.setattr(Lookup, "read", fails)
    done = rwkv_inside(*GENERATE, "--draft", "lookup", PROMPT)
    assert (done.code, done.out) == (0, plain.out)
    assert done.err == "warning: the text goes on without guesses: the GPU is lost\n"


def test_several_texts_have_no_draft() -> None:
    lines = '"It was"\n"Once"\n'
    many = ["generate", "-m", "demo", "-t", "1", "--seed", "1", "--max-tokens", "20", "--jsonl"]
    plain, drafted = (
        [json.loads(line) for line in rwkv_inside(*many, *more, stdin=lines).out.splitlines()]
        for more in ((), ("--draft", "off"))
    )
    usual = rwkv_inside(*many, stdin=lines, env={"RWKV_DRAFT": "lookup"})
    assert [json.loads(line)["text"] for line in usual.out.splitlines()] == [one["text"] for one in plain]
    for args in (many, [*GENERATE, "-N", "2", "--json", PROMPT]):
        asked = rwkv_inside(*args, "--draft", "lookup", stdin=lines)
        assert (asked.code, asked.out) == (2, "")
        assert " and --draft do not go together: " in asked.err
    assert [one["text"] for one in drafted] == [one["text"] for one in plain]
    assert not any("draft" in one for one in drafted)


def test_a_draft_model_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    quantized(checkpoint(tmp_path / "other.pth", odd_arch("6", vocab_size=260)), path, "int8")
    asked = rwkv_inside(*GENERATE, "--draft", str(path), PROMPT)
    assert (asked.code, asked.out) == (2, "")
    assert asked.err == (
        "error: other.safetensors has another vocabulary than demo.safetensors\n"
        "hint: a draft model is a smaller one of the same family; `--draft off` goes without\n"
    )
    missing = rwkv_inside(*GENERATE, "--draft", "g1-0.1b", "--offline", PROMPT)
    assert (missing.code, missing.out) == (3, "")
    assert missing.err.startswith("error: ")
    assert "g1-0.1b" in missing.err


def test_nothing_is_guessed_where_splits_change_logits() -> None:
    pytest.importorskip("torch")
    torch = ["generate", "-m", "demo", "--device", "torch:cpu", "--seed", "1", "--max-tokens", "20", PROMPT]
    plain, drafted = rwkv_inside(*torch), rwkv_inside(*torch, "--draft", "lookup")
    assert (drafted.code, drafted.out) == (0, plain.out)
    assert drafted.err.startswith("note: nothing is guessed on torch ")
