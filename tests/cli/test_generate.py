"""`rwkv generate`: where the prompt comes from, what stdout gets, and the account of a run."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_runner import KNOWS_HOMES, RWKV, Terminal, environment, rwkv, rwkv_inside, start

from quant.container.reader import ModelFile
from rwkvcli import Model

SHORT = ["--max-tokens", "8", "--seed", "7"]


def generated(model: Path, prompt: bytes) -> str:
    """What the Python API makes of `prompt` under the settings of SHORT."""
    loaded = Model.load(model)
    text = prompt.decode("utf-8", "surrogateescape")
    return "".join(loaded.generate(text, max_tokens=8, seed=7))


@pytest.mark.parametrize(
    ("stdin", "args", "prompt"),
    [
        (b"", ["hello"], b"hello"),
        (b"from stdin", [], b"from stdin"),
        (b"one newline goes\n", [], b"one newline goes"),
        (b"of two one stays\n\n", [], b"of two one stays\n"),
        (b"a\r\nb\r\n", [], b"a\nb"),
        (b"\xef\xbb\xbfno mark", [], b"no mark"),
        (b"text\n", ["question"], b"text\n\nquestion"),
        (b"", ["ends with\n"], b"ends with\n"),
        (b"in", ["-"], b"in"),
        (b"not \xff utf-8\n", [], b"not \xff utf-8"),
        (b"s\n", ["-f", "file.txt", "arg"], b"s\n\nfile\nlines\n\narg"),
        (b"", ["-f", "file.txt"], b"file\nlines"),
        (b"s\n", ["-f", "file.txt", "-f", "-"], b"file\nlines\n\ns"),
        (b"", ["-f", os.devnull, "-f", "-", "arg"], b"arg"),
        (b"s\n", ["-f", "-", "-f", "-", ""], b"s"),
    ],
)
def test_the_prompt_is_stdin_then_files_then_the_argument(
    folder: Path, stdin: bytes, args: list[str], prompt: bytes
) -> None:
    (folder / "file.txt").write_bytes(b"\xef\xbb\xbffile\r\nlines\r\n")
    done = rwkv_inside("generate", "-m", "small.safetensors", *SHORT, *args, stdin=stdin, cwd=folder)
    assert (done.code, done.err) == (0, "")
    assert done.out == generated(folder / "small.safetensors", prompt)


@pytest.mark.parametrize(
    ("stdin", "args", "prompt"),
    [
        (b"kept\n", [], b"kept\n"),
        (b"a\r\n\n", ["b"], b"a\n\n\n\nb"),
        (b"\xef\xbb\xbfs\n", ["-f", "file.txt", "-f", "file.txt"], b"s\n\n\nfile\n\n\nfile\n"),
    ],
)
def test_keep_newline(folder: Path, stdin: bytes, args: list[str], prompt: bytes) -> None:
    (folder / "file.txt").write_bytes(b"file\r\n")
    done = rwkv_inside(
        "generate", "-m", "small.safetensors", *SHORT, "--keep-newline", *args, stdin=stdin, cwd=folder
    )
    assert (done.code, done.err) == (0, "")
    assert done.out == generated(folder / "small.safetensors", prompt)


def test_echo_writes_the_prompt_as_it_came(folder: Path) -> None:
    prompt = b"not \xff utf-8"
    process = start(
        "generate", "-m", "small.safetensors", *SHORT, "--echo", cwd=folder, stdin=subprocess.PIPE
    )
    out, err = process.communicate(prompt + b"\n", timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert out == prompt + generated(folder / "small.safetensors", prompt).encode()
    done = rwkv_inside("generate", "-m", "small.safetensors", *SHORT, "--echo", "--json", "hello", cwd=folder)
    assert json.loads(done.out)["text"] == "hello" + generated(folder / "small.safetensors", b"hello")


CHAT = ["--max-tokens", "40", "--seed", "3"]


def answered(prompt: str, stop: Sequence[str] = ("\n\n",), **more: Any) -> str:
    return "".join(Model.load("demo").generate(prompt, max_tokens=40, seed=3, stop=stop, **more)).strip()


def test_chat_writes_the_message_as_the_model_expects_it() -> None:
    message = "  How do\n\n\nyou do? "
    done = rwkv_inside("generate", "-m", "demo", *CHAT, "--chat", message)
    assert (done.code, done.err) == (0, "")
    assert done.out == answered("User: How do\nyou do?\n\nAssistant:")
    echoed = rwkv_inside("generate", "-m", "demo", *CHAT, "--chat", "--echo", message)
    assert echoed.out.startswith("User: How do\nyou do?\n\nAssistant:" + done.out[:5])
    piped = rwkv_inside("generate", "-m", "demo", *CHAT, "--chat", "Summarise:", stdin="a text\n")
    assert piped.out == answered("User: a text\nSummarise:\n\nAssistant:")


def test_a_system_text_implies_chat() -> None:
    done = rwkv_inside("generate", "-m", "demo", *CHAT, "-s", "Be brief.", "Hello")
    assert done.out == answered("Be brief.\n\nUser: Hello\n\nAssistant:")
    assert done == rwkv_inside("generate", "-m", "demo", *CHAT, "--chat", "--system", "Be brief.", "Hello")


def test_another_template() -> None:
    done = rwkv_inside("generate", "-m", "demo", *CHAT, "--chat", "--template", "raven", "Hello")
    family = {"temperature": 1.2, "top_p": 0.5, "presence_penalty": 0.4, "frequency_penalty": 0.4}
    assert done.out == answered("Bob: Hello\n\nAlice:", stop=["\n\nBob:", "\nBob:"], **family)
    wrong = rwkv_inside("generate", "-m", "demo", "--template", "alpaca", "Hello")
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err.startswith("error: no template 'alpaca'\nhint: there are raven, ")


def test_every_setting_of_the_sampler_reaches_it() -> None:
    everything = [
        "--temperature", "1.3", "--top-k", "4", "--min-p", "0.1",
        "--presence-penalty", "0.1", "--frequency-penalty", "0.2", "--penalty-decay", "0.9",
        "--repetition-penalty", "1.1", "--logit-bias", "101=-2", "--logit-bias", "32=0.5", "--ban", "th",
        "--sampler-order", "temperature-first",
    ]  # fmt: skip
    settings: dict[str, Any] = {
        "temperature": 1.3, "top_k": 4, "min_p": 0.1,
        "presence_penalty": 0.1, "frequency_penalty": 0.2, "penalty_decay": 0.9, "repetition_penalty": 1.1,
        "logit_bias": {101: -2.0, 32: 0.5}, "banned_strings": ("th",), "order": "temperature-first",
    }  # fmt: skip
    model = Model.load("demo")
    for args, wanted in (
        (everything, settings),
        (["--top-p", "0.6", "--typical", "0.8"], {"top_p": 0.6, "typical": 0.8}),
    ):
        done = rwkv_inside("generate", "-m", "demo", "--max-tokens", "60", "--seed", "1", *args, "It was")
        assert (done.code, done.err) == (0, "")
        assert done.out == "".join(model.generate("It was", max_tokens=60, seed=1, **wanted))
        for name in wanted:
            changed = {key: value for key, value in wanted.items() if key != name}
            assert "".join(model.generate("It was", max_tokens=60, seed=1, **changed)) != done.out, name
    assert "th" not in "".join(model.generate("It was", max_tokens=60, seed=1, **settings))


def test_stream_json(folder: Path) -> None:
    args = ["generate", "-m", "small.safetensors", *SHORT, "--stream-json", "hello"]
    done = rwkv_inside(*args, cwd=folder)
    assert (done.code, done.err) == (0, "")
    events = [json.loads(line) for line in done.out.splitlines()]
    assert [event["type"] for event in events] == ["text"] * (len(events) - 1) + ["end"]
    text = "".join(event["text"] for event in events[:-1])
    assert text == events[-1]["text"] == generated(folder / "small.safetensors", b"hello")
    assert list(events[-1])[1:] == ["text", "finish_reason", "seed", "usage", "timings", "model"]
    assert rwkv_inside(*args, "--json", cwd=folder).out.startswith('{"type": "text"')


ENDLESS = ["generate", "-m", "demo", "--max-tokens", "-1", "--logit-bias", "0=-inf", "--seed", "1"]


def test_a_time_limit_keeps_what_was_written() -> None:
    done = rwkv(*ENDLESS, "--timeout", "1.5", "It was")
    assert done.code == 124
    assert done.err == "error: not finished after 1.5 s\nhint: --timeout gives it more time\n"
    whole = "".join(Model.load("demo").generate("It was", max_tokens=50, seed=1, logit_bias={0: -math.inf}))
    assert done.out.startswith(whole[:20])
    done = rwkv(*ENDLESS, "--timeout", "4", "--json", "It was")  # time enough to begin, on a busy machine too
    answer = json.loads(done.out)
    assert (done.code, answer["finish_reason"]) == (124, "timeout")
    assert answer["usage"]["completion_tokens"] > 0
    assert rwkv("generate", "-m", "demo", "--max-tokens", "3", "--timeout", "60", "x").code == 0


def test_a_time_limit_ends_a_long_prompt_too() -> None:
    done = rwkv("generate", "-m", "demo", "--timeout", "1", stdin=b"word " * 1_000_000)
    assert (done.code, done.out) == (124, "")


def test_a_model_that_ends_its_text_says_so(folder: Path) -> None:
    done = rwkv_inside("generate", "-m", "demo", "--logit-bias", "0=90", "--json", "It was")
    answer = json.loads(done.out)
    assert (answer["text"], answer["finish_reason"]) == ("", "stop")
    assert answer["usage"]["completion_tokens"] == 0


def test_an_argument_is_its_bytes_in_any_locale(folder: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = rwkv("generate", "-m", "small.safetensors", *SHORT, "Über é 日本", cwd=folder, env=plain)
    assert (done.code, done.err) == (0, "")
    assert done.out == generated(folder / "small.safetensors", "Über é 日本".encode())


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes there")
@pytest.mark.parametrize("env", [{}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
@pytest.mark.parametrize("name", [b"\xff-latin-\xe9", "é-日本".encode()])
def test_file_names_are_bytes(folder: Path, name: bytes, env: dict[str, str]) -> None:
    source = Path(os.fsdecode(name + b".pth"))
    made = os.fsdecode(name + b"-int8.safetensors")
    (folder / "small.pth").rename(folder / source)
    args = ["quantize", source, "--to", "int8", "--report", os.fsdecode(name)]
    done = subprocess.run(
        [*RWKV, *args], cwd=folder, env=environment(**env), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, os.fsencode(made) + b"\n"), done.stderr
    with ModelFile.open(folder / made) as file:
        assert file.source["file"] == (name + b".pth").decode("utf-8", "replace")
    run = rwkv if env else rwkv_inside
    for verb in (["show", made], ["generate", "-m", made, *SHORT, "hello"]):
        used = run(*verb, cwd=folder, env=env)
        assert (used.code, used.err) == (0, "")
    told = run("generate", "-m", made, *SHORT, "--json", "hello", cwd=folder, env=env)
    assert json.loads(told.out)["model"] == made
    gone = run("generate", "-m", os.fsdecode(name), "hello", cwd=folder, env=env)
    assert gone.code == 4


def test_json(folder: Path) -> None:
    done = rwkv_inside("generate", "-m", "small.safetensors", *SHORT, "--json", "hello", cwd=folder)
    assert (done.code, done.err) == (0, "")
    assert done.out.count("\n") == 1
    answer = json.loads(done.out)
    assert answer["text"] == generated(folder / "small.safetensors", b"hello")
    assert (answer["finish_reason"], answer["seed"], answer["model"]) == ("length", 7, "small.safetensors")
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 8}
    assert {"load_s", "prompt_s", "decode_s"} <= answer["timings"].keys()
    assert list(answer)[:6] == ["text", "finish_reason", "seed", "usage", "timings", "model"]


def test_a_seed_repeats_and_without_one_it_is_told(folder: Path) -> None:
    first = json.loads(rwkv_inside("generate", "-m", "small.safetensors", "--json", "hi", cwd=folder).out)
    seed = str(first["seed"])
    second = rwkv_inside("generate", "-m", "small.safetensors", "--json", "--seed", seed, "hi", cwd=folder)
    assert json.loads(second.out)["text"] == first["text"]


def test_stop_strings_end_the_text(folder: Path) -> None:
    whole = rwkv_inside(
        "generate", "-m", "small.safetensors", "--temperature", "0", "--max-tokens", "40", "a", cwd=folder
    )
    stop = whole.out[10:13]
    cut = whole.out[: whole.out.index(stop)]
    args = ["generate", "-m", "small.safetensors", "--temperature", "0", "--max-tokens", "40", "a"]
    done = rwkv_inside(*args, "--stop", "never in it", "--stop", stop, "--json", cwd=folder)
    answer = json.loads(done.out)
    assert (answer["text"], answer["finish_reason"]) == (cut, "stop")


def test_no_tokens_is_no_text(folder: Path) -> None:
    done = rwkv_inside("generate", "-m", "small.safetensors", "--max-tokens", "0", "hello", cwd=folder)
    assert (done.code, done.out, done.err) == (0, "", "")


def test_stats_are_one_line_on_stderr(folder: Path) -> None:
    done = rwkv_inside("generate", "-m", "small.safetensors", *SHORT, "--stats", "hello", cwd=folder)
    assert done.code == 0
    assert re.fullmatch(
        r"load [\d.]+ s; prompt 5 tokens in [\d.]+ s \([\d.]+ tokens/s\); "
        r"generation 8 tokens in [\d.]+ s \([\d.]+ tokens/s\); ended by length; seed 7\n",
        done.err,
    )
    assert (
        rwkv_inside("-q", "generate", "-m", "small.safetensors", *SHORT, "--stats", "x", cwd=folder).err == ""
    )


def test_verbose_tells_the_device(folder: Path) -> None:
    args = ["generate", "-m", "small.safetensors", *SHORT, "-v", "-t", "1", "hello"]
    done = rwkv_inside(*args, "--device", "cpu", cwd=folder)
    assert done.code == 0
    assert re.fullmatch(r"small\.safetensors: cpu, \w+, 1 thread, template bytes\n", done.err)
    reason, described = rwkv_inside(*args, cwd=folder).err.splitlines()
    assert reason.startswith("device auto: ")
    assert described.startswith("small.safetensors: ")


def test_threads_change_nothing(folder: Path) -> None:
    args = ["generate", "-m", "small.safetensors", *SHORT, "hello"]
    assert rwkv(*args, "-t", "1", cwd=folder) == rwkv(*args, "-t", "3", cwd=folder)


@pytest.mark.parametrize(
    ("args", "code", "err"),
    [
        (
            ["--top-p", "0"],
            2,
            "error: top_p must be above 0, not 0.0\nhint: 1 is off; for greedy use temperature 0\n",
        ),
        (["--temperature", "-1"], 2, "error: temperature must be 0 or more, not -1.0\nhint: 0 is greedy\n"),
        (["--stop", ""], 2, "error: a stop string is empty\n"),
        (["--ban", ""], 2, "error: a banned string is empty\n"),
        (["--min-p", "2"], 2, "error: min_p must be from 0 to 1, not 2.0\n"),
        (["--logit-bias", "300=1"], 2, "error: logit_bias: token 300 is outside the vocabulary of 256\n"),
        (
            ["--sampler-order", "x"],
            2,
            "error: unknown order 'x' of sampling\nhint: one of rwkv, temperature-first\n",
        ),
        (
            ["--device", "gpu"],
            2,
            "error: unknown device 'gpu'\nhint: one of auto, cpu, cuda, cuda:N, torch, torch:DEVICE\n",
        ),
        (["--device", "cuda:x"], 2, "error: unknown device 'cuda:x'\n"),
        (["-f", "nowhere.txt"], 3, "error: nowhere.txt: no such file or directory\n"),
        pytest.param(
            ["-f", "~no-such-user/x.txt"],
            3,
            "error: ~no-such-user/x.txt: there is no such home folder\n",
            marks=KNOWS_HOMES,
        ),
        pytest.param(
            ["-m", "~no-such-user/x.pth"],
            3,
            "error: ~no-such-user/x.pth does not exist\nhint: there is no such home folder\n",
            marks=KNOWS_HOMES,
        ),
        (["-f", "."], 3, "error: .: is a directory\n"),
        (["-m", "small.pth"], 4, "error: small.pth is a checkpoint, not a model file\n"),
    ],
)
def test_refusals(folder: Path, args: list[str], code: int, err: str) -> None:
    done = rwkv_inside("generate", "-m", "small.safetensors", *args, "hello", cwd=folder)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith(err)
    assert done.err.count("\n") <= 2


@pytest.mark.parametrize("option", ["--model", "--draft", "--device"])
def test_an_empty_value_is_none(folder: Path, option: str) -> None:
    """As a script writes it whose variable is not set."""
    for args in ([option, "", "generate"], ["generate", option, ""]):
        done = rwkv_inside(*args, "hello", cwd=folder, env={"RWKV_MODEL": "small.safetensors"})
        assert (done.code, done.out) == (2, "")
        assert f"\nerror: {option} is empty: name one, or leave it out\n" in done.err
    variable = f"RWKV_{option[2:].upper()}"  # which says nothing when it is empty
    done = rwkv_inside("generate", "-m", "small.safetensors", "hello", cwd=folder, env={variable: ""})
    assert done.code == 0


def test_nothing_to_continue_is_a_usage_error_and_never_a_wait(folder: Path) -> None:
    done = rwkv_inside("generate", "-m", "small.safetensors", cwd=folder)
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "Usage: rwkv generate [OPTIONS] [PROMPT]\n"
        "error: no text to continue: give PROMPT, or pipe text in (stdin is empty)\n"
        "hint: `rwkv generate --help` explains it\n"
    )
    terminal = Terminal("generate", "-m", "small.safetensors", cwd=folder).finish()
    assert terminal.code == 2
    assert "stdin is a terminal" in terminal.out
    missing = rwkv_inside("generate", "hello", cwd=folder)
    assert (missing.code, missing.out) == (3, "")
    assert missing.err.startswith("error: no model is on this machine")


def test_a_closed_stdin_is_no_prompt(folder: Path) -> None:
    done = rwkv(
        "generate", "-m", "small.safetensors", *SHORT, "hello", cwd=folder, preexec_fn=lambda: os.close(0)
    )
    assert (done.code, done.err) == (0, "")
    assert done.out == generated(folder / "small.safetensors", b"hello")


def test_a_terminal_gets_a_last_newline(folder: Path) -> None:
    terminal = Terminal("generate", "-m", "small.safetensors", "--max-tokens", "0", "x", cwd=folder)
    assert terminal.finish().code == 0
    assert terminal.raw == b""
    terminal = Terminal(
        "generate", "-m", "demo", "--temperature", "0", "--max-tokens", "12", "It was", cwd=folder
    )
    assert terminal.finish().code == 0
    text = rwkv_inside("generate", "-m", "demo", "--temperature", "0", "--max-tokens", "12", "It was").out
    assert terminal.raw.decode().replace("\r\n", "\n") == text.removesuffix("\n") + "\n"


def test_a_terminal_that_knows_no_such_character_gets_a_replacement(folder: Path) -> None:
    env = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    terminal = Terminal("generate", "-m", "small.safetensors", *SHORT, "hello", cwd=folder, env=env)
    assert terminal.finish().code == 0
    assert terminal.raw.isascii()


def test_the_demo_model_writes(tmp_path: Path) -> None:
    done = rwkv(
        "generate",
        "-m",
        "demo",
        "--max-tokens",
        "60",
        "--temperature",
        "0",
        stdin="It was a fine morning, and",
    )
    assert (done.code, done.err) == (0, "")
    assert len(done.out) > 40


def test_torch_without_torch_names_the_line_that_installs_it(folder: Path) -> None:
    (folder / "torch.py").write_text("raise ImportError")
    path = os.pathsep.join([str(folder), environment().get("PYTHONPATH", "")]).rstrip(os.pathsep)
    arguments = ("generate", "-m", "small.safetensors", "--device", "torch", "x")
    done = rwkv(*arguments, cwd=folder, env={"PYTHONPATH": path})
    assert (done.code, done.out) == (2, "")
    assert 'pip install "rwkvcli[torch]"' in done.err
