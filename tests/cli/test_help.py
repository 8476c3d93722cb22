"""Help pages, lazy loading, and how options reach a verb."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runner import Terminal, environment, rwkv, rwkv_inside

from rwkvcli import __version__
from rwkvcli.cli.root import VERBS

HEAVY = (
    "numpy",
    "torch",
    "huggingface_hub",
    "rich",
    "pydantic",
    "tokenizers",
    "safetensors",
    "prompt_toolkit",
    "llguidance",
)


IMPORTS = """
import sys, json
from rwkvcli.cli.app import main
for line in json.loads(sys.argv[1]):
    main(line)
    print(json.dumps([name.split(".")[0] for name in sys.modules]), file=sys.stderr)
"""


def imported(*lines: list[str]) -> list[set[str]]:
    """Top-level names of what is imported after each of these command lines, in one process."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", IMPORTS, json.dumps(lines)],
        env=environment(),
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=60,
    )
    return [set(json.loads(line)) for line in done.stderr.splitlines()]


def test_help_imports_nothing_heavy() -> None:
    lines = [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)]
    for line, names in zip(lines, imported(*lines), strict=True):
        assert not names & set(HEAVY), line


def test_making_text_imports_nothing_heavy(model: Path) -> None:
    """numpy alone would take longer than the first token of a small model."""
    some = ["generate", "-m", str(model), "--max-tokens", "2"]
    lines = [
        [*some, "hello"],
        [*some, "--temperature", "0", "--json", "hello"],
        [*some, "--presence-penalty", "1", "--logit-bias", "65=2", "--stop", "x", "--chat", "hello"],
        ["chat", "-m", str(model), "--max-tokens", "2"],  # stdin is empty
    ]
    for line, names in zip(lines, imported(*lines), strict=True):
        assert not names & set(HEAVY), line


def test_going_on_from_a_state_imports_nothing_heavy(model: Path, tmp_path: Path) -> None:
    some = ["generate", "-m", str(model), "--max-tokens", "2", "--temperature", "0"]
    state = str(tmp_path / "a.state")
    lines = [
        [*some, "--save-state", state, "hello"],
        [*some, "--state", state, "--update", " world"],
    ]
    for line, names in zip(lines, imported(*lines), strict=True):
        assert not names & set(HEAVY), line
    assert Path(state).exists()


def test_help_of_the_program_names_every_verb_and_its_line() -> None:
    page = rwkv_inside("--help")
    assert (page.code, page.err) == (0, "")
    for verb, line in VERBS.items():
        assert f"  {verb:<{max(map(len, VERBS))}}  {line}\n" in page.out


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_begins_with_the_line_that_the_program_shows(verb: str) -> None:
    module = importlib.import_module(f"rwkvcli.cli.{verb}")
    assert inspect.getdoc(getattr(module, verb)).splitlines()[0] == VERBS[verb]
    page = rwkv_inside(verb, "-h")
    assert (page.code, page.err) == (0, "")
    assert page.out.startswith(f"Usage: rwkv {verb} [OPTIONS]")
    assert not re.search(
        r"\[\]|\.\.\.\W*\.\.\.", page.out.splitlines()[0]
    )  # one ellipsis, nothing without a name
    assert VERBS[verb] in page.out
    assert page.out.endswith("Examples:\n" + module.EXAMPLES.strip("\n") + "\n")


@pytest.mark.parametrize("verb", VERBS)
def test_there_is_an_example_for_every_action(verb: str) -> None:
    module = importlib.import_module(f"rwkvcli.cli.{verb}")
    actions = getattr(module, "Action", getattr(module, "Task", ()))
    for action in [*actions, *getattr(module, "SCRIPTS", ())]:
        assert f"rwkv {verb} {action}" in module.EXAMPLES
        assert action in rwkv_inside(verb, action, "--help").out


def test_version() -> None:
    assert rwkv_inside("--version").out == f"rwkv {__version__}\n"
    assert rwkv_inside("generate", "--version") == rwkv_inside("--version")


def test_no_verb_shows_the_help_on_stderr() -> None:
    done = rwkv()
    assert (done.code, done.out) == (2, "")
    assert done.err == rwkv("--help").out


def test_unknown_verbs_and_options() -> None:
    done = rwkv_inside("qantize", "x")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "Usage: rwkv [OPTIONS] VERB ...\n"
        "error: no verb `qantize`; did you mean `quantize`?\n"
        "hint: `rwkv --help` explains it\n"
    )
    done = rwkv_inside("show", "--tensor")
    assert (done.code, done.out) == (2, "")
    assert "error: no such option: --tensor" in done.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["show", "x", "-t", "0"], "invalid value for '-t' / '--threads': `0` is below 1"),
        (["show", "x", "-t", "1025"], "invalid value for '-t' / '--threads': `1025` is above 1024"),
        (["show", "x", "-t", "many"], "invalid value for '-t' / '--threads': `many` is not a whole number"),
        (
            ["show", "x", "--color", "pink"],
            "invalid value for '--color': `pink` is not one of auto, always, never",
        ),
        (["generate", "--top-p", "nan", "x"], "invalid value for '--top-p': `nan` is not a number"),
        (["generate", "--max-tokens", "-2", "x"], "invalid value for '--max-tokens': `-2` is below -1"),
        (["generate", "--logit-bias", "a=1", "x"], "`a=1` is not a token id, an equals sign and a number"),
        (
            ["generate", "--logit-bias", "1=inf", "x"],
            "`1=inf` is not a token id, an equals sign and a number",
        ),
        (["generate", "--timeout", "0", "x"], "'--timeout': not a number of seconds above 0"),
        (
            ["quantize", "x", "--to", "int7"],
            "`int7` is not one of int8, int6, int5, int4, nf4, bf16, f16, f32",
        ),
        (["pull"], "no MODEL: name one, for example `g1-1.5b`"),
        (["rm"], "missing argument 'MODEL'"),
        (["list", "g1"], "a family or repository is listed with --remote"),
    ],
)
def test_bad_values_are_usage_errors(args: list[str], message: str) -> None:
    done = rwkv_inside(*args)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"Usage: rwkv {args[0]} ")
    assert message in done.err


def test_options_work_before_and_after_the_verb_and_beat_the_environment(model: Path) -> None:
    as_json = rwkv_inside("show", model, "--json")
    assert json.loads(as_json.out)["kind"] == "model"
    assert rwkv_inside("--json", "show", model) == as_json
    assert rwkv_inside("show", model, env={"RWKV_JSON": "1"}) == as_json
    assert rwkv_inside("-m", model, "show", "--json") == as_json
    assert rwkv_inside("-m", "nowhere.pth", "show", "--json", "-m", model) == as_json
    assert rwkv_inside("-m", model, "show", "--json", env={"RWKV_MODEL": "nowhere.pth"}) == as_json
    assert rwkv_inside("show", "--json", env={"RWKV_MODEL": str(model)}) == as_json
    wrong = rwkv_inside("show", model, env={"RWKV_THREADS": "two"})
    assert (wrong.code, wrong.out) == (2, "")
    assert (
        "error: invalid value for environment variable RWKV_THREADS: `two` is not a whole number\n"
        in wrong.err
    )
    assert "--threads" not in wrong.err


def test_python_m_is_the_command() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            "import sys; from rwkvcli.cli.app import main; sys.exit(main(['--version']))",
        ],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"rwkv {__version__}\n"


def test_help_in_a_terminal_is_plain_text() -> None:
    terminal = Terminal("--version")
    done = terminal.finish()
    assert (done.code, done.out) == (0, f"rwkv {__version__}")
    assert b"\x1b" not in terminal.raw


@pytest.mark.parametrize(
    ("env", "args", "colored"),
    [
        ({}, [], True),
        ({"NO_COLOR": "1"}, [], False),
        ({"TERM": "dumb"}, [], False),
        ({"RWKV_COLOR": "never"}, [], False),
        ({}, ["--color", "never"], False),
        ({"NO_COLOR": "1", "RWKV_COLOR": "always"}, [], True),
    ],
)
def test_colour_only_where_it_is_wanted(env: dict[str, str], args: list[str], colored: bool) -> None:
    terminal = Terminal("show", "nowhere.pth", *args, env=env)
    done = terminal.finish()
    assert done.code == 3
    assert done.out.startswith("error: nowhere.pth does not exist")
    assert (b"\x1b[" in terminal.raw) == colored
