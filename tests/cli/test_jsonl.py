"""`rwkv generate --jsonl` and `-N`: lines in, lines out."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from cli_runner import rwkv, rwkv_inside, start

DEMO = ["generate", "-m", "demo", "--seed", "3", "--max-tokens", "10"]
JSONL = [*DEMO, "--jsonl"]


def text_of(*args: str) -> str:
    return rwkv_inside(*args).out


def test_lines_of_stdin_and_files(tmp_path: Path) -> None:
    lines = '"Once"\n\n{"prompt": "It was", "id": "b", "max_tokens": 5}\r\n"Once"'
    done = rwkv_inside(*JSONL, stdin="\ufeff" + lines)
    assert (done.code, done.err) == (0, "")
    first, second, third = map(json.loads, done.out.splitlines())
    assert first["text"] == text_of(*DEMO, "Once")
    assert second["text"] == text_of(*DEMO, "--seed", "4", "--max-tokens", "5", "It was")
    assert third["text"] == text_of(*DEMO, "--seed", "5", "Once")
    assert [line["id"] for line in (first, second, third)] == [0, "b", 2]
    assert list(first) == ["id", "text", "finish_reason", "seed", "usage", "timings", "model"]
    assert first["model"] == "demo"
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl").write_text('"Twice"\n')
    both = rwkv_inside(*JSONL, "-b", "1", "-f", "a.jsonl", "-f", "b.jsonl", cwd=tmp_path)
    texts = [json.loads(line)["text"] for line in both.out.splitlines()]
    assert texts[:3] == [first["text"], second["text"], third["text"]]
    assert texts[3] == text_of(*DEMO, "--seed", "6", "Twice")


def test_failed_lines_are_counted() -> None:
    done = rwkv(*JSONL, "--stats", stdin='"a"\noops\n')
    good, bad = map(json.loads, done.out.splitlines())
    assert (done.code, bad) == (7, {"id": 1, "error": "not a line of JSON"})
    assert good["usage"]["completion_tokens"] == 10
    stats, error, hint = done.err.splitlines()
    assert stats.startswith("2 lines, 1 failed; prompts 1 tokens, generation 10 tokens in ")
    assert (error, hint) == ("error: 1 of 2 lines failed", "hint: each has an `error` in its place")
    assert rwkv(*JSONL, stdin="").out == ""


def test_an_id_is_given_back_in_json_that_every_reader_takes() -> None:
    ids = [r'"\ud800"', r'"\udcff and \u00e9"']
    done = rwkv(*JSONL, stdin="".join(f'{{"prompt": "a", "id": {id}}}\n' for id in ids))
    assert (done.code, done.err) == (0, "")
    assert [json.loads(line)["id"] for line in done.out.splitlines()] == list(map(json.loads, ids))
    assert r'"\udcff and é"' in done.out


def test_a_writer_that_waits_gets_its_answer() -> None:
    process = start(*JSONL, stdin=-1)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"\xef\xbb\xbf")
    process.stdin.flush()
    for prompt in ("a", "b"):
        process.stdin.write(json.dumps(prompt).encode() + b"\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["usage"]["completion_tokens"] == 10
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, b"", b"")


def test_ctrl_c_leaves_whole_lines() -> None:
    process = start(*JSONL, "-b", "2", stdin=-1)
    assert process.stdin is not None and process.stdout is not None
    endless = {"prompt": "It was", "max_tokens": -1, "logit_bias": {"0": -1e9}}
    lines = ["a", endless, "b", "c"]
    process.stdin.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    process.stdin.flush()
    first = process.stdout.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")
    ids = [json.loads(line)["id"] for line in [first, *out.splitlines()]]
    assert ids[0] == 0
    assert ids in ([0], [0, 2], [0, 2, 3])


def test_ctrl_c_while_it_waits_for_a_line() -> None:
    process = start(*JSONL, stdin=-1)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b'"a"\n')
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["id"] == 0
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    process.communicate()


def test_a_time_limit() -> None:
    endless = {"prompt": "It was", "max_tokens": -1, "logit_bias": {"0": -1e9}}
    done = rwkv(*JSONL, "--timeout", "4", stdin='"a"\n' + json.dumps(endless))
    assert done.code == 124
    assert json.loads(done.out)["id"] == 0
    assert done.err == "error: not finished after 4 s\nhint: --timeout gives it more time\n"


def test_every_line_continues_the_state(tmp_path: Path) -> None:
    assert rwkv_inside("state", "build", "-m", "demo", "-o", "s", stdin="It was a ", cwd=tmp_path).code == 0
    done = rwkv_inside(*JSONL, "--state", "s", stdin='"fine"\n"bad"\n', cwd=tmp_path)
    texts = [json.loads(line)["text"] for line in done.out.splitlines()]
    assert texts == [
        text_of(*DEMO, "It was a fine"),
        text_of(*DEMO, "--seed", "4", "It was a bad"),
    ]


def test_alternatives() -> None:
    done = rwkv_inside(*DEMO, "-N", "3", "--json", "It was")
    assert (done.code, done.err) == (0, "")
    made = json.loads(done.out)
    assert [one["text"] for one in made] == [text_of(*DEMO, "--seed", s, "It was") for s in ("3", "4", "5")]
    assert [one["seed"] for one in made] == [3, 4, 5]
    assert made[0]["model"] == "demo"
    told = rwkv_inside(*DEMO, "-N", "3", "--json", "--stats", "It was").err
    assert told.startswith("3 texts; prompts 6 tokens, generation 30 tokens in ")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--jsonl", "PROMPT"], 2, "--jsonl takes its prompts from lines of JSON: leave PROMPT out"),
        (["--jsonl", "--echo"], 2, "--jsonl and --echo do not go together"),
        (["--jsonl", "--save-state", "s"], 2, "--jsonl and --save-state (or --update) do not go together"),
        (["--jsonl", "-N", "2"], 2, "--jsonl and -N do not go together: repeat the line instead"),
        (["-N", "2", "x"], 2, "-N writes a list: ask for it by --json"),
        (["--jsonl", "-b", "0"], 2, "`0` is below 1"),
        (["--jsonl", "-f", "nowhere.jsonl"], 3, "nowhere.jsonl: no such file or directory"),
        (["--jsonl", "-f", "."], 3, ".: is a directory"),
        (["--jsonl", "--top-p", "0"], 2, "top_p must be above 0, not 0.0"),
    ],
)
def test_refusals(args: list[str], code: int, message: str, tmp_path: Path) -> None:
    done = rwkv_inside(*DEMO, *args, stdin='"a"\n', cwd=tmp_path)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
