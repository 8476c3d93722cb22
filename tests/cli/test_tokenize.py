"""`rwkv tokenize` and `rwkv detokenize`, byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from cli_runner import KNOWS_HOMES, Terminal, rwkv_inside, start
from quant_models import checkpoint
from vocabularies import byte_level_json

from quant.synthetic import synthetic_arch
from rwkvcli.runtime.tokenizer import JsonTokenizer

WORLD = ("--tokenizer", "world")


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", "33155 40213"),
        ("你好，世界", "10464 11685 19137 10267 14610"),
        ("😀", "3319 153 129"),
        ("User: hi\n\nAssistant:", "24281 59 4571 261 5585 41693 59"),
        ("User✿Hello✿\nBot✿<think", "24281 10060 33155 10060 11 5645 10060 61 35762"),
        ("", ""),
    ],
)
def test_world_ids_and_back(text: str, ids: str) -> None:
    done = rwkv_inside("tokenize", *WORLD, text)
    assert (done.code, done.out, done.err) == (0, ids + "\n", "")
    back = rwkv_inside("detokenize", *WORLD, stdin=done.out)
    assert (back.code, back.out, back.err) == (0, text, "")


def test_forms_of_output() -> None:
    assert rwkv_inside("tokenize", "-m", "demo", "--count", "Hello").out == "5\n"
    assert rwkv_inside("tokenize", "-m", "demo", "--count", "--json", "Hello").out == '{"count": 5}\n'
    whole = {"ids": [72, 195, 169], "count": 3, "tokens": ["H", "\ufffd", "\ufffd"]}
    assert json.loads(rwkv_inside("tokenize", "-m", "demo", "--json", "Hé").out) == whole
    assert json.loads(rwkv_inside("detokenize", "-m", "demo", "--json", "72 195,169").out) == {
        "text": "Hé",
        "count": 3,
    }


def test_the_text_rules_are_those_of_generate(tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_bytes(b"\xef\xbb\xbfa\r\n")
    done = rwkv_inside("tokenize", "-m", "demo", "-f", "f.txt", "c", stdin=b"\xff\n", cwd=tmp_path)
    assert done.out == "255 10 10 97 10 10 99\n"
    done = rwkv_inside("tokenize", "-m", "demo", "-f", "f.txt", "--keep-newline", cwd=tmp_path)
    assert done.out == "97 10\n"


def test_bytes_come_back_as_they_were() -> None:
    process = start("detokenize", "-m", "demo", "[255, 0,\n65]", stdin=subprocess.DEVNULL)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, b"\xff\0A", b"")
    terminal = Terminal("detokenize", "-m", "demo", "65")
    assert terminal.finish().code == 0
    assert terminal.raw == b"A\r\n"


def test_a_checkpoints_size_names_its_vocabulary(pth: Path, tmp_path: Path) -> None:
    assert rwkv_inside("tokenize", "-m", pth, "AB").out == "65 66\n"
    other = checkpoint(tmp_path / "other.pth", synthetic_arch("7", 1, 64, 400, 64))
    done = rwkv_inside("tokenize", "-m", other, "AB")
    assert (done.code, done.out) == (2, "")
    assert "names no tokenizer" in done.err


def test_a_tokenizer_json_in_the_model_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(byte_level_json())
    checkpoint(tmp_path / "m.pth", synthetic_arch("4", 1, 64, 400))
    made = rwkv_inside(
        "quantize", "m.pth", "--to", "f16", "-o", "m.st", "--tokenizer", "tokenizer.json", cwd=tmp_path
    )
    assert made.code == 0
    text = "The cat sat on the mat. Où est-il? 你好"
    ids = " ".join(map(str, JsonTokenizer(byte_level_json()).encode(text)))
    for source in (["-m", "m.st"], ["--tokenizer", "tokenizer.json"]):
        done = rwkv_inside("tokenize", *source, text, cwd=tmp_path)
        assert (done.code, done.out, done.err) == (0, ids + "\n", "")
        assert rwkv_inside("detokenize", *source, stdin=ids, cwd=tmp_path).out == text
    refused = rwkv_inside("tokenize", "-m", "m.st", stdin=b"a\xff", cwd=tmp_path)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith("error: byte 1 of the text is not UTF-8\nhint: ")
    assert rwkv_inside("generate", "-m", "m.st", "--max-tokens", "5", "The cat", cwd=tmp_path).code == 0


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["tokenize", "x"], 2, "error: no vocabulary: give a model with -m, or --tokenizer"),
        (["tokenize", *WORLD], 2, "error: no text: give TEXT, or pipe text in (stdin is empty)"),
        (["detokenize", *WORLD, "12", "x1"], 2, "error: `x1` is not a token id"),
        (["detokenize", *WORLD, "65530"], 2, "error: token 65530 is outside the vocabulary of 65530"),
        (["detokenize", *WORLD, "9" * 30], 2, "is not a token id"),
        (["tokenize", "--tokenizer", "nowhere.json", "x"], 3, "error: nowhere.json: no such file"),
        (["tokenize", "--tokenizer", ".", "x"], 3, "error: .: is a directory"),
        (["tokenize", "--tokenizer", os.devnull, "x"], 4, f"error: {os.devnull}: "),
        pytest.param(
            ["tokenize", "--tokenizer", "~nobody-here/t", "x"],
            3,
            "~nobody-here/t: there is no such home folder",
            marks=KNOWS_HOMES,
        ),
    ],
)
def test_refusals(tmp_path: Path, args: list[str], code: int, message: str) -> None:
    done = rwkv_inside(*args, cwd=tmp_path)
    assert (done.code, done.out) == (code, "")
    assert message in done.err


def test_quantize_names_a_template_and_checks_the_tokenizer(folder: Path) -> None:
    made = rwkv_inside(
        "-q", "quantize", "small.pth", "--to", "int8", "-o", "r.st", "--template", "raven", cwd=folder
    )
    assert made.code == 0
    assert json.loads(rwkv_inside("show", "r.st", "--json", cwd=folder).out)["template"] == "raven"
    told = rwkv_inside("generate", "-m", "r.st", "-v", "--max-tokens", "1", "x", cwd=folder)
    assert told.err.endswith("template raven\n")
    wrong = rwkv_inside("quantize", "small.pth", "--to", "int8", "--template", "x", cwd=folder)
    assert (wrong.code, wrong.out) == (2, "")
    (folder / "t.json").write_bytes(byte_level_json())
    large = rwkv_inside("quantize", "small.pth", "--to", "int8", "--tokenizer", "t.json", cwd=folder)
    assert (large.code, large.out) == (4, "")
    assert large.err.startswith("error: the tokenizer has 312 ids, but the model only 256")
    assert not (folder / "small-int8.safetensors").exists()
