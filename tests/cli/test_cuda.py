"""`--device cuda` of the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runner import Outcome, rwkv_inside
from cuda_library import LIBRARY, needs_library

from rwkvcli import Model, State

CUDA = {"RWKV_CUDA_LIBRARY": LIBRARY}
GREEDY = ["--temperature", "0", "--max-tokens", "12"]


def run(*args: str | Path, stdin: str = "", **env: str) -> Outcome:
    return rwkv_inside(*args, stdin=stdin, env={**CUDA, **env})


def test_a_library_that_cannot_be_loaded(model: Path) -> None:
    done = run("generate", "-m", model, "--device", "cuda", "x", RWKV_CUDA_LIBRARY="/nowhere/lib.so")
    assert (done.code, done.out) == (5, "")
    first, second = done.err.splitlines()
    assert first.startswith("error: CUDA: ") or "/nowhere/lib.so" in first
    assert second == "hint: use `--device cpu`; `rwkv doctor` tells what is here"


def test_gptq_asks_for_pytorch(pth: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It was a fine morning. " * 200)
    done = run(
        "quantize", pth, "--to", "int4", "--method", "gptq", "--calibrate", text, "--device", "cuda:1",
        "-o", tmp_path / "out.safetensors", "-q",
    )  # fmt: skip
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "error: --method gptq works with PyTorch\nhint: use `--device torch:cuda:1`, or leave it out\n"
    )


@needs_library
def test_generate_says_what_the_cpu_says(model: Path) -> None:
    expected = run("generate", "-m", model, "--device", "cpu", *GREEDY, "It was")
    found = run("generate", "-m", model, "--device", "cuda", *GREEDY, "It was")
    assert (found.code, found.err) == (0, "")
    assert found == expected
    told = run("generate", "-v", "-m", model, "--device", "cuda:0", *GREEDY, "It was")
    assert f"{model}: cuda:0, " in told.err


@needs_library
def test_a_missing_device_is_told_before_the_model_is_looked_for() -> None:
    done = run("generate", "-m", "nowhere.st", "--device", "cuda:99", "x")
    assert (done.code, done.out) == (5, "")
    assert done.err.startswith("error: there is no device cuda:99\nhint: there is cuda:0 (")


@needs_library
@pytest.mark.parametrize(("first", "second"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_conversation_moves_to_another_device(model: Path, tmp_path: Path, first: str, second: str) -> None:
    place = {"RWKV_SESSIONS": str(tmp_path / "sessions")}
    limit = ["--max-tokens", "8", "--temperature", "0"]
    whole = run("chat", "all", "-m", model, "--device", "cpu", *limit, stdin="One\nTwo\n", **place)
    begun = run("chat", "trip", "-m", model, "--device", first, *limit, stdin="One\n", **place)
    rest = run("chat", "trip", "--device", second, stdin="Two\n", **place)
    assert begun.out + rest.out == whole.out
    assert (begun.err, rest.err, rest.code) == ("", "", 0)


@needs_library
def test_states_in_files(model: Path, tmp_path: Path) -> None:
    built = run("state", "build", "-m", model, "--device", "cuda", "-o", tmp_path / "s", stdin="It was a day")
    assert built.code == 0
    state = State.load(tmp_path / "s", Model.load(model, device="cpu"))
    assert state.tokens_seen == len("It was a day")
    done = [
        run("generate", "-m", model, "--device", device, *GREEDY, "--state", tmp_path / "s", " and")
        for device in ("cpu", "cuda")
    ]
    assert done[0] == done[1]
    assert done[0].code == 0


@needs_library
def test_many_prompts_at_once(model: Path) -> None:
    lines = "".join(json.dumps({"prompt": text}) + "\n" for text in ("It was", "Once", "In the end"))
    answers = [
        run("generate", "-m", model, "--device", device, *GREEDY, "--jsonl", "-b", "3", stdin=lines)
        for device in ("cpu", "cuda")
    ]
    texts = [[json.loads(line)["text"] for line in done.out.splitlines()] for done in answers]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 3


@needs_library
def test_perplexity_is_that_of_the_cpu(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("It was a fine morning, and all was well. " * 2)
    found = [
        json.loads(run("perplexity", tmp_path / "text", "-m", model, "--device", device, "--json").out)
        for device in ("cpu", "cuda")
    ]
    assert found[1] == found[0]


@needs_library
def test_bench(model: Path) -> None:
    done = run("bench", model, "--device", "cuda", "-p", "4", "-n", "3", "-r", "2", "--json")
    assert (done.code, done.err) == (0, "")
    prefill, decode = json.loads(done.out)
    for row in (prefill, decode):
        assert row["backends"].startswith("cuda:0, ")
        assert len(row["samples_ns"]) == 2
        assert (row["bytes_per_token"], row["gb_s"], row["read_gb_s"], row["share"]) == (None,) * 4


@needs_library
def test_doctor(model: Path) -> None:
    found = json.loads(run("doctor", model, "--json").out)
    device, judged = found["gpu"]["devices"][0], found["model"]["devices"][0]
    assert found["gpu"]["kernels"] == LIBRARY
    assert device["number"] == 0 and 0 < device["free_memory"] <= device["memory"]
    assert judged["device"] == "cuda:0"
    assert judged["needed_bytes"] > found["model"]["bytes"] + found["model"]["state_bytes"]
    assert judged["fits"] == (judged["needed_bytes"] <= judged["free_bytes"])
    lines = run("doctor", model).out.splitlines()
    (line,) = [line for line in lines if line.startswith("cuda:0 ") and "compute capability" in line]
    assert f"{device['name']}, compute capability {device['capability']}, " in line
    assert any(line.startswith("cuda:0 ") and "it fits" in line for line in lines)


def test_doctor_tells_why_there_is_none(model: Path) -> None:
    found = json.loads(run("doctor", "--json", RWKV_CUDA_LIBRARY="/nowhere/lib.so").out)["gpu"]
    assert (found["kernels"], found["devices"]) == ("/nowhere/lib.so", [])
    assert "/nowhere/lib.so" in found["why"]
    found = json.loads(run("doctor", "--json", RWKV_CUDA_LIBRARY="").out)["gpu"]
    if found["kernels"] is None:
        assert found["why"].startswith("this build has no CUDA kernels")
