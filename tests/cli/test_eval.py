"""`rwkv eval lambada`: the protocol against a plain numpy one, the test set from a local Hub, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import Terminal, rwkv
from hub_server import Hub, HubFile, Repo
from text_oracles import log_softmax

from rwkvcli import Model
from rwkvcli.errors import RwkvError
from rwkvcli.services.lambada import evaluate, read_documents

TEXTS = [
    "It was a fine morning, and she went into the garden.",
    "He said café and naïve thén",
    "one  two",
    "a trailing space ",
    "Nobody knew what had become of the old man and his dog",
    "yes no",
]
REPOSITORY = "EleutherAI/lambada_openai"
KEYS = ["task", "model", "file", "documents", "tokens", "accuracy", "accuracy_stderr", "perplexity", "stderr"]


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.fixture
def place(folder: Path) -> Path:
    (folder / "l.jsonl").write_bytes(lines(TEXTS))
    return folder


def answer(*args: str | Path, **more: Any) -> dict[str, Any]:
    done = rwkv("eval", "lambada", *args, "--json", **more)
    assert (done.code, done.err) == (0, "")
    found: dict[str, Any] = json.loads(done.out)
    return found


def by_the_book(path: Path, texts: list[str]) -> tuple[list[float], list[bool]]:
    """As BlinkDL runs it: zero and both parts in one pass; softmax in float64."""
    model = Model.load(path)
    log_probs, right = [], []
    for text in texts:
        context, word = text.rsplit(" ", 1)
        source, target = [0, *context.encode()], list((" " + word).encode())
        logits = model.forward(source + target, model.new_state(), all_logits=True)
        rows = log_softmax(logits[len(source) - 1 : -1])
        log_probs.append(float(rows[np.arange(len(target)), target].sum()))
        right.append(rows.argmax(axis=1).tolist() == target)
    return log_probs, right


def test_the_protocol(place: Path) -> None:
    found = answer("l.jsonl", "-m", "small.safetensors", cwd=place)
    log_probs, right = by_the_book(place / "small.safetensors", TEXTS)
    assert list(found) == KEYS
    assert (found["task"], found["documents"], found["file"]) == ("lambada", len(TEXTS), "l.jsonl")
    assert found["tokens"] == sum(len(text.rsplit(" ", 1)[1].encode()) + 1 for text in TEXTS)
    assert found["accuracy"] == np.mean(right)
    assert found["perplexity"] == pytest.approx(math.exp(-np.mean(log_probs)), rel=1e-9)
    assert found["stderr"] == pytest.approx(
        found["perplexity"] * np.std(log_probs, ddof=1) / len(TEXTS) ** 0.5
    )


def test_words_that_the_model_knows(tmp_path: Path) -> None:
    """The built-in model completes some words of its own continuations: right and wrong ones are told apart."""
    model = Model.load("demo")
    text = "".join(model.generate("It was ", max_tokens=150, temperature=0.0))
    words = ("It was " + text).split(" ")
    texts = [" ".join(words[:end]) for end in range(4, len(words) - 1)]
    texts += [text + "q" for text in texts[:3]]
    (tmp_path / "l.jsonl").write_bytes(lines(texts))
    found = answer("l.jsonl", "-m", "demo", cwd=tmp_path)
    from rwkvcli.runtime.model import demo_path

    log_probs, right = by_the_book(demo_path(), texts)
    assert 0 < found["accuracy"] == np.mean(right) < 1
    assert found["perplexity"] == pytest.approx(math.exp(-np.mean(log_probs)), rel=1e-9)
    spread = np.std(right, ddof=1) / len(texts) ** 0.5
    assert found["accuracy_stderr"] == pytest.approx(spread)


def test_limit_and_people(place: Path) -> None:
    few = answer("l.jsonl", "-m", "small.safetensors", "--limit", "2", cwd=place)
    log_probs, _ = by_the_book(place / "small.safetensors", TEXTS[:2])
    assert few["documents"] == 2
    assert few["perplexity"] == pytest.approx(math.exp(-np.mean(log_probs)), rel=1e-9)
    one = answer("l.jsonl", "-m", "small.safetensors", "--limit", "1", cwd=place)
    assert one["stderr"] is one["accuracy_stderr"] is None
    done = rwkv("eval", "lambada", "l.jsonl", "-m", "small.safetensors", cwd=place)
    assert [line.split()[0] for line in done.out.splitlines()] == ["accuracy", "perplexity", "documents"]
    assert done.out.endswith("documents   6 of l.jsonl\n")


def test_the_test_set_comes_from_the_hub_once(hub: Hub, place: Path) -> None:
    files = {"README.md": HubFile(b"x", lfs=False), "data/lambada_test_en.jsonl": HubFile(lines(TEXTS))}
    files["data/lambada_test_de.jsonl"] = HubFile(lines(["ein Text"]))
    hub.repos[REPOSITORY] = Repo(files)
    env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(place / "hub"), "HF_HUB_OFFLINE": "0"}
    local = answer("l.jsonl", "-m", "small.safetensors", cwd=place)
    found = answer("-m", "small.safetensors", cwd=place, env=env)
    assert found == {**local, "file": "lambada_test_en.jsonl"}
    asked = len(hub.requests)
    assert asked
    assert answer("-m", "small.safetensors", cwd=place, env=env) == found
    assert answer("-m", "small.safetensors", "--offline", cwd=place, env=env) == found
    assert len(hub.requests) == asked
    assert (place / "hub" / "hub" / "datasets--EleutherAI--lambada_openai" / "snapshots").is_dir()
    german = answer(f"{REPOSITORY}:data/lambada_test_de.jsonl", "-m", "small.safetensors", cwd=place, env=env)
    assert german["documents"] == 1


def test_a_repository_without_it(hub: Hub, place: Path) -> None:
    env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(place / "hub"), "HF_HUB_OFFLINE": "0"}
    missing = rwkv("eval", "lambada", "-m", "small.safetensors", cwd=place, env=env)
    assert (missing.code, missing.out) == (3, "")
    assert "there is no repository EleutherAI/lambada_openai" in missing.err
    hub.repos[REPOSITORY] = Repo({"README.md": HubFile(b"x")})
    other = rwkv("eval", "lambada", "-m", "small.safetensors", cwd=place, env=env)
    assert (other.code, other.out) == (3, "")
    assert other.err.startswith(f"error: {REPOSITORY} has no file lambada_test_en.jsonl\nhint: ")


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (b"", 2, "l.jsonl is empty"),
        (b"\n  \n", 2, "l.jsonl is empty"),
        (b'{"text": "a b"}\n{"txt": "a b"}\n', 4, "l.jsonl: line 2 is no JSON object with a text"),
        (b'{"text": 5}\n', 4, "line 1 is no JSON object with a text"),
        (b"[" * 100_000, 4, "line 1 is no JSON object with a text"),
        (b"\xff\xfe\n", 4, "line 1 is no JSON object with a text"),
        (b'{"text": "word"}\n', 4, "the text in line 1 has no space"),
        (b'{"text": "a \\ud800"}\n', 2, "half a surrogate pair"),
    ],
)
def test_bad_files(place: Path, content: bytes, code: int, message: str) -> None:
    (place / "l.jsonl").write_bytes(content)
    with pytest.raises(RwkvError) as caught:
        evaluate(Model.load(place / "small.safetensors"), read_documents(place / "l.jsonl"))
    assert message in str(caught.value)
    assert caught.value.exit_code == code


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "no task: there is `lambada`"),
        (("hellaswag", "-m", "demo"), "`hellaswag` is not one of lambada"),
        (("lambada", "l.jsonl", "-m", "demo", "--limit", "0"), "`0` is below 1"),
    ],
)
def test_misuse(place: Path, args: tuple[str, ...], message: str) -> None:
    done = rwkv("eval", *args, cwd=place)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_a_terminal_sees_progress(place: Path) -> None:
    (place / "l.jsonl").write_bytes(lines(TEXTS * 20))
    terminal = Terminal("eval", "lambada", "l.jsonl", "-m", "small.safetensors", cwd=place)
    done = terminal.finish()
    assert done.code == 0
    assert b"accuracy 0.00 %" in terminal.raw
    assert done.out.startswith("accuracy    ")
