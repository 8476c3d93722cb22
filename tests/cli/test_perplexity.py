"""`rwkv perplexity`: answers, names of the JSON, stdin, progress, refusals. Numbers are held to oracles elsewhere."""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import KNOWS_HOMES, Terminal, rwkv, start
from quant_models import checkpoint, quantized
from vocabularies import byte_level_json

from quant.container.reader import ModelFile
from quant.synthetic import synthetic_arch

TEXT = "The cat sat on the mat, and the old man looked at it.\n" * 8
KEYS = ["model", "tokens", "bytes", "ctx", "perplexity", "stderr", "bits_per_byte", "bits_per_byte_stderr"]
BASE_KEYS = [
    "model", "perplexity", "bits_per_byte", "ratio", "ratio_stderr", "kl", "same_top", "same_top_stderr", "drift",
]  # fmt: skip


@pytest.fixture(scope="module")
def int4(pth: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A quantized model file of small.pth."""
    out = tmp_path_factory.mktemp("int4") / "q.safetensors"
    quantized(pth, out, "int4")
    return out.read_bytes()


@pytest.fixture
def place(folder: Path, int4: bytes) -> Path:
    (folder / "text.txt").write_text(TEXT)
    (folder / "q.safetensors").write_bytes(int4)
    return folder


def answer(*args: str | Path, **more: Any) -> dict[str, Any]:
    done = rwkv("perplexity", *args, "--json", **more)
    assert (done.code, done.err) == (0, ""), done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_json(place: Path) -> None:
    found = answer("text.txt", "-m", "small.safetensors", cwd=place)
    assert list(found) == KEYS
    assert (found["model"], found["ctx"]) == ("small.safetensors", None)
    assert found["tokens"] == found["bytes"] == len(TEXT) - 1
    compared = answer(
        "text.txt", "-m", "q.safetensors", "--base", "small.safetensors", "--ctx", "100", cwd=place
    )
    assert list(compared) == [*KEYS, "base"]
    assert list(compared["base"]) == BASE_KEYS
    assert list(compared["base"]["kl"]) == ["mean", "stderr", "median", "p99", "max"]
    assert [list(row) for row in compared["base"]["drift"]] == [
        ["begin", "end", "tokens", "kl", "same_top", "ratio"]
    ] * 2
    assert (compared["ctx"], compared["base"]["model"]) == (100, "small.safetensors")
    assert compared["base"]["kl"]["mean"] > 0


def test_for_people(place: Path) -> None:
    done = rwkv("perplexity", "text.txt", "-m", "q.safetensors", "--base", "small.safetensors", cwd=place)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    names = ["perplexity", "bits per byte", "tokens", "base", "ratio", "KL", "same top", ""]
    assert [re.split("  +", line)[0] for line in lines[:8]] == names
    assert lines[8].split() == ["position", "tokens", "KL", "same", "top", "ratio"]
    assert "tokens         431 of 431 bytes, one text" in lines
    assert " ± " in lines[0]
    assert lines[9].split()[:2] == ["from", "0"]
    assert len(lines) == 13  # up to 63, 127, 255, 430


@pytest.mark.parametrize("args", [(), ("-",)])
def test_stdin(place: Path, args: tuple[str, ...]) -> None:
    from_file = answer("text.txt", "-m", "small.safetensors", cwd=place)
    dressed = b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode()
    assert answer(*args, "-m", "small.safetensors", stdin=dressed, cwd=place) == from_file


def test_threads_and_levels_change_nothing(place: Path) -> None:
    args = ("text.txt", "-m", "q.safetensors", "--base", "small.safetensors")
    first = rwkv("perplexity", *args, "--json", "-t", "1", cwd=place)
    for threads, level in (("3", "scalar"), ("2", "")):
        env = {"RWKV_CPU_LEVEL": level} if level else {}
        assert rwkv("perplexity", *args, "--json", "-t", threads, cwd=place, env=env) == first


def test_any_bytes_are_a_text(place: Path) -> None:
    data = random.Random(0).randbytes(1000)
    found = answer("-m", "small.safetensors", stdin=data, cwd=place)
    assert found["tokens"] == found["bytes"] == len(data.replace(b"\r\n", b"\n"))
    one = answer("-m", "small.safetensors", stdin=b"a\n", cwd=place)
    assert (one["tokens"], one["stderr"]) == (1, None)


def test_a_vocabulary_that_takes_valid_text_only(place: Path) -> None:
    checkpoint(place / "neox.pth", synthetic_arch("4", 1, 64, 400))
    quantized(place / "neox.pth", place / "neox.safetensors", "int8", tokenizer_json=byte_level_json())
    found = answer("text.txt", "-m", "neox.safetensors", cwd=place)
    assert (found["bytes"], found["tokens"] < found["bytes"]) == (len(TEXT) - 1, True)
    broken = rwkv("perplexity", "-m", "neox.safetensors", stdin=b"x\n" * 70_000 + b"\xff", cwd=place)
    assert (broken.code, broken.out) == (2, "")
    assert broken.err.startswith("error: byte 140000 of the text is not UTF-8\nhint: ")


def test_fail_over(place: Path) -> None:
    args = ("perplexity", "text.txt", "-m", "q.safetensors", "--base", "small.safetensors", "--json")
    plain = rwkv(*args, cwd=place)
    limits = ("--fail-over", "kl=1e-9", "--fail-over", "changed-top=1", "--fail-over", "ratio=0.5")
    missed = rwkv(*args, *limits, cwd=place)
    found = json.loads(plain.out)["base"]
    assert (missed.code, missed.out) == (6, plain.out)
    assert missed.err == (
        f"error: kl is {found['kl']['mean']:.4g}, above 1e-09; ratio is {found['ratio']:.4g}, above 0.5\n"
    )
    assert rwkv(*args, "--fail-over", "kl-p99=1e9", "--fail-over", "perplexity=1e9", cwd=place) == plain


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("text.txt",), 3, "error: no model is on this machine"),
        (("text.txt", "-m", "small.safetensors", "--ctx", "0"), 2, "`0` is below 1"),
        (
            ("text.txt", "-m", "small.safetensors", "--fail-over", "perplexity"),
            2,
            "'' is no limit for perplexity",
        ),
        (
            ("text.txt", "-m", "small.safetensors", "--fail-over", "perplexity=nan"),
            2,
            "'nan' is no limit for perplexity",
        ),
        ((".", "-m", "small.safetensors"), 3, "error: .: is a directory"),
        pytest.param(
            ("~nobody-here/x", "-m", "small.safetensors"), 3, "no such home folder", marks=KNOWS_HOMES
        ),
        (("text.txt", "-m", "nowhere.safetensors"), 3, "nowhere.safetensors does not exist"),
        (("text.txt", "-m", "small.safetensors", "--base", "small.pth"), 4, "small.pth is a checkpoint"),
    ],
)
def test_refusals(place: Path, args: tuple[str, ...], code: int, message: str) -> None:
    done = rwkv("perplexity", *args, cwd=place)
    assert (done.code, done.out) == (code, "")
    assert message in done.err


def test_a_model_that_computes_no_numbers(place: Path) -> None:
    name = place / "small.safetensors"
    with ModelFile.open(name) as file:
        begin = file.plan["ln_out.weight"].parts[0][1]
    data = bytearray(name.read_bytes())
    data[begin : begin + 512] = np.full(128, 3e38, np.float32).tobytes()  # finite, but not for long
    name.write_bytes(data)
    done = rwkv("perplexity", "text.txt", "-m", "small.safetensors", cwd=place)
    assert (done.code, done.out) == (4, "")
    assert done.err.startswith("error: the logits are not finite numbers")


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="Windows does not tell the peak of a process that ended")
def test_memory_does_not_depend_on_the_text(place: Path) -> None:
    """Ten times the text (whose logits are 60 MB), hardly more memory: neither its logits nor its tokens are held."""

    def peak(size: int) -> int:
        (place / "long.txt").write_bytes(TEXT.encode() * (size // len(TEXT)))
        process = start("perplexity", "long.txt", "-m", "q.safetensors", "-t", "1", cwd=place)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.communicate()[0].startswith(b"perplexity ")
        return usage.ru_maxrss  # kilobytes

    assert peak(60_000) < peak(6_000) + 4_000


def test_a_file_larger_than_memory_begins_at_once(place: Path) -> None:
    with (place / "huge.txt").open("wb") as file:
        file.truncate(1 << 40)  # a hole of a terabyte
    found = answer("huge.txt", "-m", "small.safetensors", "--limit", "1000", cwd=place)
    assert found["tokens"] == 1000


def test_a_terminal_sees_progress(place: Path) -> None:
    terminal = Terminal("perplexity", "text.txt", "-m", "small.safetensors", cwd=place)
    done = terminal.finish()
    assert done.code == 0
    assert b"perplexity " in terminal.raw.partition(b"bits per byte")[0]
    assert done.out.startswith("perplexity     ")


def test_no_text_at_a_terminal(place: Path) -> None:
    done = Terminal("perplexity", "-m", "small.safetensors", cwd=place).finish()
    assert done.code == 2
    assert "no text: name a FILE" in done.out


def test_ctrl_c(place: Path) -> None:
    with (place / "huge.txt").open("wb") as file:
        file.truncate(1 << 40)
    terminal = Terminal("perplexity", "huge.txt", "-m", "small.safetensors", cwd=place)
    terminal.until("perplexity ")
    terminal.child.sendintr()
    done = terminal.finish()
    assert done.code == 130
    assert "Traceback" not in done.out
