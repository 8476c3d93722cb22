"""`rwkv generate --schema`, `--regex`, `--choices`, `--grammar`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from cli_runner import Outcome, rwkv, rwkv_inside

DEMO = ["generate", "-m", "demo", "-t", "1", "--seed", "3"]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}

needed = pytest.mark.skipif(find_spec("llguidance") is None, reason="the package llguidance is optional")


def is_right(text: str) -> bool:
    """Whether a text conforms to SCHEMA."""
    said = json.loads(text)
    return set(said) == {"name", "old"} and len(said["name"]) <= 20 and isinstance(said["old"], bool)


@pytest.mark.parametrize("option", ["--schema", "--regex", "--choices", "--grammar"])
def test_without_the_package(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    (tmp_path / "f").write_text("{}")
    line = f'error: {option} needs packages that are not installed: pip install "rwkvcli[grammar]"\n'
    given = "f" if option in ("--schema", "--grammar") else "a"
    assert rwkv_inside(*DEMO, option, given, "x", cwd=tmp_path) == Outcome(2, "", line)
    assert rwkv_inside("generate", "-m", "owner/repo:x.pth", option, given, "x", cwd=tmp_path).code == 2
    asked = (
        {"prompt": "x", "schema": {}}
        if option == "--schema"
        else {"prompt": "x", option[2:]: ["a"] if option == "--choices" else "a"}
    )
    done = rwkv_inside(*DEMO, "--jsonl", stdin=json.dumps(asked))
    told = f'{option[2:]} needs packages that are not installed: pip install "rwkvcli[grammar]"'
    assert (done.code, json.loads(done.out)) == (7, {"id": 0, "error": told})


@needed
def test_a_schema_from_a_file_and_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(
        "\ufeff" + json.dumps(SCHEMA, indent=2).replace("\n", "\r\n"), "utf-8", newline=""
    )
    found = rwkv_inside(*DEMO, "--schema", "s.json", "It was", cwd=tmp_path)
    assert (found.code, found.err) == (0, "") and is_right(found.out)
    assert rwkv_inside(*DEMO, "--schema", f"\n {json.dumps(SCHEMA)}", "It was") == found
    assert rwkv_inside(*DEMO, "--schema", json.dumps(SCHEMA), "--chat", "It was").code == 0


@needed
def test_an_expression_choices_and_a_grammar(tmp_path: Path) -> None:
    (tmp_path / "g.lark").write_text('start: "<" word ("," word)~1..2 ">"\nword: /[a-z]{2,5}/\n')
    for args, pattern in (
        (["--regex", "[a-z]{4}é?!"], "[a-z]{4}é?!"),
        (["--choices", "a b", "--choices", "a", "--choices", "ü"], "a b|a|ü"),
        (["--grammar", "g.lark"], "<[a-z]{2,5}(,[a-z]{2,5}){1,2}>"),
    ):
        for more in (
            [],
            ["--chat"],
            ["--temperature", "0"],
            ["--top-k", "1"],
            ["--top-p", "0.01", "--sampler-order", "temperature-first"],
            ["--min-p", "1"],
            ["--typical", "0.1"],
            ["--repetition-penalty", "1.5"],
        ):
            done = rwkv_inside(*DEMO, *args, *more, "Once", cwd=tmp_path)
            assert (done.code, done.err) == (0, "") and re.fullmatch(pattern, done.out)


@needed
def test_json_tells_how_it_ended() -> None:
    whole = json.loads(
        rwkv_inside(*DEMO, "--json", "--logprobs", "0", "--schema", json.dumps(SCHEMA), "It was").out
    )
    assert is_right(whole["text"]) and whole["finish_reason"] == "stop"
    assert "".join(told["text"] for told in whole["logprobs"]) == whole["text"]
    assert whole["usage"]["completion_tokens"] == len(whole["text"])
    cut = json.loads(
        rwkv_inside(*DEMO, "--json", "--max-tokens", "7", "--schema", json.dumps(SCHEMA), "It was").out
    )
    assert (cut["text"], cut["finish_reason"]) == (whole["text"][:7], "length")
    events = [
        json.loads(line)
        for line in rwkv_inside(
            *DEMO, "--stream-json", "--schema", json.dumps(SCHEMA), "It was"
        ).out.splitlines()
    ]
    assert "".join(event["text"] for event in events[:-1]) == whole["text"] == events[-1]["text"]
    stopped = rwkv_inside(*DEMO, "--stop", '"old', "--schema", json.dumps(SCHEMA), "It was")
    assert stopped.out == whole["text"].partition('"old')[0]


@needed
def test_a_text_that_was_cut_goes_on(tmp_path: Path) -> None:
    args = ["--schema", json.dumps(SCHEMA), "--presence-penalty", "0.2"]
    for more in ([], ["--chat"]):
        whole = rwkv_inside(*DEMO, *args, *more, "It was").out
        text = rwkv_inside(
            *DEMO, *args, *more, "--max-tokens", "5", "--save-state", "s", "It was", cwd=tmp_path
        ).out
        while True:
            done = rwkv_inside(
                *DEMO, *args, *more, "--max-tokens", "5", "--state", "s", "--update", "--json", cwd=tmp_path
            )
            answer = json.loads(done.out)
            text += answer["text"]
            if answer["finish_reason"] == "stop":
                break
        assert text == whole and is_right(whole)
    rwkv_inside(*DEMO, *args, "--max-tokens", "5", "--save-state", "s", "It was", cwd=tmp_path)
    refused = rwkv_inside(*DEMO, "--regex", "[a-z]+", "--state", "s", cwd=tmp_path)
    assert refused == Outcome(
        2,
        "",
        "error: the text that the state was left in does not fit this schema or grammar\n"
        "hint: go on with the options that it was begun with, or give a new text\n",
    )


@needed
def test_lines_and_alternatives() -> None:
    lines = '"It was"\n{"prompt": "It was", "choices": ["a", "b"]}\n{"prompt": "x", "regex": "("}\n'
    done = rwkv_inside(*DEMO, "--jsonl", "--schema", json.dumps(SCHEMA), stdin=lines)
    first, second, third = map(json.loads, done.out.splitlines())
    assert done.code == 7
    assert first["text"] == rwkv_inside(*DEMO, "--schema", json.dumps(SCHEMA), "It was").out
    assert (
        second["text"] == rwkv_inside(*DEMO, "--seed", "4", "--choices", "a", "--choices", "b", "It was").out
    )
    assert third == {"id": 2, "error": "the regular expression cannot be used: unclosed group"}
    found = json.loads(rwkv_inside(*DEMO, "--json", "-N", "3", "--schema", json.dumps(SCHEMA), "It was").out)
    assert (
        len(found) == 3
        and all(is_right(each["text"]) for each in found)
        and found[0]["text"] == first["text"]
    )


USAGE = "Usage: rwkv generate [OPTIONS] [PROMPT]\n"
EXPLAINED = "hint: `rwkv generate --help` explains it\n"
FAR = ["generate", "-m", "owner/repo:model.pth"]
"""A model that is not here: what is wrong is told before it is looked for."""


@needed
@pytest.mark.parametrize(
    ("args", "code", "err"),
    [
        (["--schema", "{}", "--regex", "a"], 2, USAGE + "error: --schema and --regex do not go together: use one of them\n" + EXPLAINED),
        (["--choices", "a", "--grammar", "g"], 2, USAGE + "error: --choices and --grammar do not go together: use one of them\n" + EXPLAINED),
        (["--think", "only", "--regex", "a"], 2, USAGE + "error: --think only ends before there is anything to be held to --regex\n" + EXPLAINED),
        (["--schema", "-"], 2, USAGE + "error: --schema takes a file, and stdin is text for the model (`./-` is a file of that name)\n" + EXPLAINED),
        (["--schema", "none.json"], 3, "error: none.json: no such file or directory\nhint: --schema takes a file, or JSON that begins with {\n"),
        (["--grammar", "."], 3, "error: .: is a directory\nhint: --grammar takes a file\n"),
        (["--grammar", "latin"], 2, "error: latin: byte 8 is not UTF-8\nhint: --grammar takes a file\n"),
        (["--schema", "large"], 2, "error: large: larger than 256 KB\nhint: --schema takes a file, or JSON that begins with {\n"),
        (["--schema", "list"], 2, 'error: the schema is no JSON object\nhint: {"type": "object"} is one: any object\n'),
        (["--schema", '{"type": 3'], 2, "error: the schema is not JSON: line 1, column 11: expecting ',' delimiter\n"),
        (["--schema", '{"not": {}}'], 2, 'error: the schema cannot be used: unimplemented keys: ["not"]\nhint: docs/structured-output.md tells what a schema may use\n'),
        (["--regex", "a)"], 2, "error: the regular expression cannot be used: unopened group\nhint: it is written as for Rust's crate regex: no look-around, no back-references\n"),
        (["--choices", ""], 2, "error: a choice is empty\n"),
        (["--choices", "caf\udce9"], 2, "error: the choices cannot be used: not valid UTF-8\n"),
        (["--regex", "caf\udce9"], 2, "error: the regular expression cannot be used: not valid UTF-8\n"),
        (["--grammar", "bad.lark"], 2, 'error: the grammar cannot be used: line 2, column 6: unknown name: "word"\nhint: it is written as for Lark, with the rule `start`\n'),
    ],
)  # fmt: skip
def test_what_is_refused(args: list[str], code: int, err: str, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b'start: "\xe9"')
    (tmp_path / "large").write_bytes(b"{" + b" " * 2**18)
    (tmp_path / "list").write_bytes(b"[]")
    (tmp_path / "bad.lark").write_text('start: foo\nfoo: word "x"\n')
    assert rwkv_inside(*FAR, *args, "x", cwd=tmp_path) == Outcome(code, "", err)


@needed
def test_a_long_chain_in_a_process(tmp_path: Path) -> None:
    """Outside a thread with a large stack it ends the process."""
    chain = {f"d{i}": {"type": "array", "items": {"$ref": f"#/d{i + 1}"}, "minItems": 1} for i in range(3000)}
    (tmp_path / "s").write_text(json.dumps({**chain, "d3000": {}, "$ref": "#/d0"}))
    assert rwkv(*DEMO, "--max-tokens", "3", "--regex", "a{3}", "x") == Outcome(0, "aaa", "")
    done = rwkv(*DEMO, "--max-tokens", "3", "--temperature", "0", "--schema", "s", "x", cwd=tmp_path)
    assert (done.code, done.err, done.out.replace(" ", "").replace("\n", "")[:1]) == (0, "", "[")


@needed
def test_the_python_of_the_document_runs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "structured-output.md").read_text("utf-8")
    names: dict[str, object] = {}
    exec(text.partition("```python\n")[2].partition("```")[0], names)
    person, answer = names["person"], names["answer"]
    assert isinstance(person, dict) and list(person) == ["name", "age"] and answer in ("yes", "no")


@needed
def test_the_grammar_of_the_document_and_gbnf(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "structured-output.md").read_text("utf-8")
    (tmp_path / "g").write_text("start" + text.partition("```\nstart")[2].partition("```")[0])
    done = rwkv_inside(*DEMO, "--grammar", "g", "x", cwd=tmp_path)
    assert done.code == 0 and re.fullmatch(
        r"SELECT (\*|[a-z_]{1,20}(, [a-z_]{1,20})*) FROM [a-z_]{1,20};", done.out
    )
    (tmp_path / "g.gbnf").write_text('root ::= "a" [b-d]+ "e"\n')
    hint = "hint: that is GBNF: `python -m llguidance.gbnf_to_lark FILE.gbnf` writes FILE.lark\n"
    assert rwkv_inside(*DEMO, "--grammar", "g.gbnf", "x", cwd=tmp_path).err.endswith(hint)
    subprocess.run(
        [sys.executable, "-m", "llguidance.gbnf_to_lark", "g.gbnf"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    done = rwkv_inside(*DEMO, "--grammar", "g.lark", "--max-tokens", "-1", "x", cwd=tmp_path)
    assert done.code == 0 and re.fullmatch("a[b-d]+e", done.out)
