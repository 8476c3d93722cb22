"""`rwkv score`: the table, JSON, the best one alone, where choices come from, refusals."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import Terminal, rwkv, rwkv_inside, start
from text_oracles import log_softmax

from rwkvcli import Model

DEMO = ["score", "-m", "demo"]
CHOICES = ["--choices", " morning", "--choices", " day", "--choices", " x"]
PROMPT = "It was a fine"


def logprob(text: str | bytes, choice: str | bytes) -> float:
    """By one pass of the demo over both."""
    before, ids = (list(x if isinstance(x, bytes) else x.encode()) for x in (text, choice))
    model = Model.load("demo")
    logits = model.forward([*before, *ids], model.new_state(), all_logits=True)
    return float(log_softmax(logits[len(before) - 1 : -1])[np.arange(len(ids)), ids].sum())


def sums(out: str) -> list[float]:
    found: dict[str, Any] = json.loads(out)
    return [one["logprob"] for one in found["choices"]]


def test_table() -> None:
    done = rwkv_inside(*DEMO, PROMPT, *CHOICES)
    values = {text: logprob(PROMPT, text) for text in (" day", " x", " morning")}
    total = sum(map(np.exp, values.values()))
    rows = [
        f'"{text}"'.ljust(10)
        + f"  {value:7.4f}  {len(text):6}  {value / len(text):9.4f}"
        + f"{100 * np.exp(value) / total:.2f} %".rjust(9)
        for text, value in sorted(values.items(), key=lambda item: -item[1])
    ]
    lines = ["choice      logprob  tokens  per token    share", *rows]
    assert (done.code, done.out, done.err) == (0, "\n".join(lines) + "\n", "")
    by_byte = rwkv_inside(*DEMO, PROMPT, *CHOICES, "--by", "byte").out
    assert by_byte.splitlines()[0] == "choice      logprob  tokens  per byte    share"
    assert by_byte.splitlines()[1].startswith('" morning"')


def test_spaces_line_ends_and_long_choices_in_the_table() -> None:
    long = "The old man sat down by the fire, and looked at the children."
    given = [' "a"\n\tb', long, " né", "a b", "a  b", "a\u00a0b"]
    done = rwkv_inside(*DEMO, PROMPT, "-q", *(word for text in given for word in ("--choices", text)))
    shown = {line.rpartition('"')[0] + '"' for line in done.out.splitlines()[1:]}
    assert shown == {
        r'" \"a\"\n\tb"', f'"{long[:59]}…"', '" né"', '"a b"', r'"a \u0020b"', r'"a\u00a0b"',
    }  # fmt: skip


def test_json() -> None:
    done = rwkv_inside(*DEMO, PROMPT, *CHOICES, "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert list(found) == ["choices", "best", "by", "usage", "timings", "model"]
    assert sums(done.out) == pytest.approx(
        [logprob(PROMPT, x) for x in (" morning", " day", " x")], rel=1e-13
    )
    assert (found["best"], found["by"], found["model"]) == (" day", "sum", "demo")
    assert found["usage"] == {"prompt_tokens": 13, "choice_tokens": 14}
    assert found["timings"]["load_s"] > 0


def test_best() -> None:
    done = rwkv_inside(*DEMO, PROMPT, *CHOICES, "--best")
    assert (done.code, done.out, done.err) == (0, " day\n", "")
    assert rwkv_inside(*DEMO, PROMPT, *CHOICES, "--best", "--by", "token").out == " morning\n"
    assert rwkv_inside(*DEMO, PROMPT, "--choices", "one", "--best").out == "one\n"


def test_the_end_and_the_number_evaluated_together() -> None:
    plain = rwkv_inside(*DEMO, PROMPT, *CHOICES, "--json", "--end").out
    assert sums(plain) == pytest.approx(
        [logprob(PROMPT, x + "\0") for x in (" morning", " day", " x")], rel=1e-13
    )
    assert sums(rwkv_inside(*DEMO, PROMPT, *CHOICES, "--json", "--end", "-b", "1").out) == sums(plain)


def test_the_text_is_that_of_generate(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfIt was\r\n")
    one = ["--choices", " day", "--json"]
    done = rwkv_inside(*DEMO, "-f", "a.txt", "a fine", *one, stdin="Well.\n", cwd=tmp_path)
    assert sums(done.out) == pytest.approx([logprob("Well.\n\nIt was\n\na fine", " day")], rel=1e-13)
    kept = rwkv_inside(*DEMO, "-f", "a.txt", "--keep-newline", *one, cwd=tmp_path)
    assert sums(kept.out) == pytest.approx([logprob("It was\n", " day")], rel=1e-13)
    assert sums(rwkv_inside(*DEMO, "-", *one, stdin=PROMPT).out) == pytest.approx(
        [logprob(PROMPT, " day")], rel=1e-13
    )
    assert sums(rwkv_inside(*DEMO, "", *one).out) == pytest.approx([logprob("\0", " day")], rel=1e-13)


def test_chat() -> None:
    ask = [*DEMO, "--json", "Which day?", "--choices", "Monday", "--choices", " Friday"]
    before = "User: Which day?\n\nAssistant:"
    expected = [logprob(before, x) for x in (" Monday", " Friday")]
    assert sums(rwkv_inside(*ask, "--chat").out) == pytest.approx(expected, rel=1e-13)
    told = rwkv_inside(*ask, "-s", "Be brief.", "--end").out
    expected = [logprob(f"Be brief.\n\n{before}", x) for x in (" Monday\n\n", " Friday\n\n")]
    assert sums(told) == pytest.approx(expected, rel=1e-13)
    flower = rwkv_inside(*ask, "--chat", "--template", "g1-flower").out
    begun = "\0User✿Which day?✿\nBot✿<think></think"
    assert sums(flower) == pytest.approx([logprob(begun, x) for x in (">Monday", ">Friday")], rel=1e-13)
    raw = rwkv_inside(*ask).out
    assert sums(raw) == pytest.approx([logprob("Which day?", x) for x in ("Monday", " Friday")], rel=1e-13)


def test_choices_from_a_file_and_from_stdin(tmp_path: Path) -> None:
    listed = b"\xef\xbb\xbf day\r\n\n  \n x\ny "
    (tmp_path / "list.txt").write_bytes(listed)
    for args, stdin in (
        (["--choices-from", "list.txt"], b""),
        (["--choices-from", "-"], listed),
    ):
        done = rwkv_inside(*DEMO, PROMPT, "--choices", " morning", *args, "--json", stdin=stdin, cwd=tmp_path)
        texts = [one["text"] for one in json.loads(done.out)["choices"]]
        assert texts == [" morning", " day", " x", "y "]
        assert sums(done.out) == pytest.approx([logprob(PROMPT, text) for text in texts], rel=1e-13)


def test_a_state(tmp_path: Path) -> None:
    assert rwkv_inside("state", "build", "-m", "demo", "-o", "s", stdin="It was", cwd=tmp_path).code == 0
    before = (tmp_path / "s").read_bytes()
    ask = [*DEMO, "--state", "s", "--json", "--choices", " day"]
    on = rwkv_inside(*ask, " a fine", cwd=tmp_path)
    assert sums(on.out) == pytest.approx([logprob(PROMPT, " day")], rel=1e-13)
    assert json.loads(on.out)["usage"]["prompt_tokens"] == 7
    for args in ([], [""]):
        done = rwkv_inside(*ask, *args, cwd=tmp_path)
        assert sums(done.out) == pytest.approx([logprob("It was", " day")], rel=1e-13)
    assert (tmp_path / "s").read_bytes() == before
    refused = rwkv_inside(*ask, "--chat", cwd=tmp_path)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == (
        "error: there is no message to answer\nhint: without --chat the choices continue the state's text\n"
    )


def test_half_a_character_in_a_state(tmp_path: Path) -> None:
    """What comes next is the rest of the character, to the byte."""
    half = "é".encode()[:1]
    assert rwkv_inside("state", "build", "-m", "demo", "-o", "s", stdin=b"caf" + half, cwd=tmp_path).code == 0
    (tmp_path / "list").write_bytes("é".encode()[1:] + b"\nx\n")
    done = rwkv_inside(*DEMO, "--state", "s", "--json", "--choices-from", "list", cwd=tmp_path)
    expected = [logprob(b"caf" + half, x) for x in ("é".encode()[1:], b"x")]
    assert sums(done.out) == pytest.approx(expected, rel=1e-13)
    assert [one["text"] for one in json.loads(done.out)["choices"]] == ["\udca9", "x"]


def test_bytes_that_are_not_utf8_come_through(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"\xff\xfe\n")
    ask = [*DEMO, PROMPT, "--choices-from", "list"]
    table = rwkv_inside(*ask, cwd=tmp_path)
    assert table.out.splitlines()[1].startswith(r'"\udcff\udcfe"')
    assert r'"text": "\udcff\udcfe"' in rwkv_inside(*ask, "--json", cwd=tmp_path).out
    if sys.platform == "win32":
        return  # arguments are characters there
    process = start(*DEMO, PROMPT, "--choices", "\udcff\udcfe", "--best")
    assert process.communicate(timeout=30) == (b"\xff\xfe\n", b"")


def test_lines(tmp_path: Path) -> None:
    given = [
        PROMPT,
        {"prompt": "It was", "id": "b", "choices": [" the", "s"]},
        {"prompt": "Which day?", "system": "Be brief."},
    ]
    text = "\n\n".join(map(json.dumps, given))
    done = rwkv_inside(*DEMO, "--jsonl", *CHOICES, stdin=text)
    assert (done.code, done.err) == (0, "")
    first, second, third = done.out.splitlines()
    assert sums(first) == sums(rwkv_inside(*DEMO, PROMPT, *CHOICES, "--json").out)
    assert sums(second) == pytest.approx([logprob("It was", x) for x in (" the", "s")], rel=1e-13)
    assert sums(third) == sums(rwkv_inside(*DEMO, "-s", "Be brief.", "Which day?", *CHOICES, "--json").out)
    assert [json.loads(line)["id"] for line in (first, second, third)] == [0, "b", 2]
    assert list(json.loads(first)) == ["id", "choices", "best", "by", "usage", "timings", "model"]
    assert json.loads(first)["model"] == "demo"
    (tmp_path / "lines").write_text(text)
    from_stdin = rwkv_inside(
        *DEMO, "--jsonl", "-f", "lines", "--choices-from", "-", stdin=" morning\n day\n x", cwd=tmp_path
    )
    assert list(map(sums, from_stdin.out.splitlines())) == list(map(sums, (first, second, third)))


def test_failed_lines_are_counted() -> None:
    done = rwkv_inside(*DEMO, "--jsonl", stdin='"a"\n{"prompt": "a", "choices": ["b"]}\noops\n')
    assert done.code == 7
    none, good, bad = map(json.loads, done.out.splitlines())
    assert none == {"id": 0, "error": "there are no choices"}
    assert good["best"] == "b"
    assert bad == {"id": 2, "error": "not a line of JSON"}
    assert done.err == "error: 2 of 3 lines failed\nhint: each has an `error` in its place\n"


def test_a_writer_that_waits_gets_its_answer() -> None:
    process = start(*DEMO, "--jsonl", *CHOICES, stdin=-1)
    assert process.stdin is not None and process.stdout is not None
    for prompt in ("a", "b"):
        process.stdin.write(json.dumps(prompt).encode() + b"\n")
        assert json.loads(process.stdout.readline())["usage"]["prompt_tokens"] == 1
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert process.communicate() == (b"", b"")


@pytest.mark.parametrize("jsonl", [False, True])
def test_a_time_limit(tmp_path: Path, jsonl: bool) -> None:
    (tmp_path / "long").write_text("The old man. " * 100_000)
    (tmp_path / "lines").write_text(json.dumps("It was " * 100_000))
    args = ["--jsonl", "-f", "lines"] if jsonl else ["-f", "long"]
    done = rwkv(*DEMO, *args, "--choices", "x", "--timeout", "1", cwd=tmp_path)
    assert (done.code, done.out) == (124, "")
    assert done.err == "error: not finished after 1 s\nhint: --timeout gives it more time\n"


@pytest.mark.parametrize(
    ("args", "title"),
    [
        (["-f", "long", "--choices", "x"], "reading"),
        (["x", "--choices-from", "long"], "scoring"),
    ],
)
def test_progress_of_a_long_text_and_of_long_choices(tmp_path: Path, args: list[str], title: str) -> None:
    (tmp_path / "long").write_text("The old man. " * 100_000)
    terminal = Terminal(*DEMO, *args, cwd=tmp_path)
    terminal.until(title)
    terminal.child.sendintr()
    done = terminal.finish()
    assert (done.code, done.out.replace("^C", "").strip()) == (130, "")


def test_details() -> None:
    done = rwkv_inside(*DEMO, "-v", PROMPT, "--choices", "x")
    assert done.err.endswith(", template bytes\n")
    assert "demo.safetensors: cpu, " in done.err


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([PROMPT], 2, "no choices: give some with --choices TEXT, or --choices-from FILE"),
        ([PROMPT, "--choices-from", "empty"], 2, "no choices: empty holds none"),
        ([PROMPT, "--choices", ""], 2, "a choice is empty"),
        ([PROMPT, "--chat", "--choices", " "], 2, "a choice is empty"),
        ([PROMPT, "--choices", "a", "--choices", "a"], 2, "the choice 'a' is given twice"),
        (["--choices", "a"], 2, "no text to score after: give PROMPT, or pipe text in (stdin is empty)"),
        (["--choices-from", "-"], 2, "no choices: - holds none"),
        (
            ["-", "--choices-from", "-"],
            2,
            "stdin holds the choices, and nothing beside them: give the rest with -f FILE",
        ),
        (
            ["--jsonl", "--choices-from", "-"],
            2,
            "stdin holds the choices, and nothing beside them: give the rest with -f FILE",
        ),
        (
            [PROMPT, "--choices", "a", "--best", "--json"],
            2,
            "--best and --json do not go together: JSON has it as `best`",
        ),
        (
            ["--choices", "a", "--best", "--jsonl"],
            2,
            "--best and --jsonl do not go together: JSON has it as `best`",
        ),
        (["--jsonl", PROMPT], 2, "--jsonl takes its prompts from lines of JSON: leave PROMPT out"),
        (
            [PROMPT, "--choices", "a", "--state", "-"],
            2,
            "a state is a file, and stdin is none (`./-` is a file of that name)",
        ),
        (
            [PROMPT, "--choices", "a", "--by", "word"],
            2,
            "invalid value for '--by': `word` is not one of sum, token, byte",
        ),
        (
            [PROMPT, "--choices", "a", "--timeout", "0"],
            2,
            "invalid value for '--timeout': not a number of seconds above 0",
        ),
        ([PROMPT, "--choices", "a", "-b", "0"], 2, "invalid value for '-b' / '--batch': `0` is below 1"),
        ([PROMPT, "--choices", "a", "--chat", "--template", "x"], 2, "no template 'x'"),
        (
            [PROMPT, "--choices", "a", "--template", "g1"],
            2,
            "--template is the form of a conversation: give --chat or -s too",
        ),
        ([PROMPT, "--choices", "a", "--device", "abacus"], 2, "unknown device 'abacus'"),
        ([PROMPT, "--choices-from", "nowhere"], 3, "nowhere: no such file or directory"),
        ([PROMPT, "--choices-from", "."], 3, ".: is a directory"),
        (["-f", "nowhere", "--choices", "a"], 3, "nowhere: no such file or directory"),
        ([PROMPT, "--choices", "a", "--state", "nowhere"], 3, "nowhere: no such state file"),
    ],
)
def test_refusals(args: list[str], code: int, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n \n")
    done = rwkv_inside(*DEMO, *args, cwd=tmp_path)
    assert (done.code, done.out) == (code, "")
    (error,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert error == f"error: {message}"


def test_choices_on_stdin_are_no_text() -> None:
    done = rwkv_inside(*DEMO, "--choices-from", "-", stdin="a\nb\n")
    assert (done.code, done.out) == (2, "")
    assert "error: no text to score after: give PROMPT, or -f FILE (stdin holds the choices)\n" in done.err
