"""Completion: what is suggested, and the scripts in the shells that are installed."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runner import KNOWS_HOMES, RWKV, environment, pseudo_terminals, rwkv_inside

from rwkvcli.cli.completion import SCRIPTS, model_files, suggestions
from rwkvcli.cli.root import VERBS


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of downloads with one model in it; the current folder is empty."""
    folder = tmp_path / "hub" / "models--owner--repo-x" / "snapshots" / "0123"
    (folder / "sub").mkdir(parents=True)
    (folder / "small.pth").write_text("")
    (folder / "sub" / "m.safetensors").write_text("")
    (folder / "README.md").write_text("")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("RWKV_MODELS", str(tmp_path / "models"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "hub"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([""], list(VERBS)),
        (["to"], ["tokenize"]),
        (["ver"], ["verify"]),
        (["-m", "demo", "gen"], ["generate"]),
        (["quantize", "demo", "--to", "int"], ["int8", "int6", "int5", "int4"]),
        (["quantize", "demo", "--to", "n"], ["nf4"]),
        (["export", "demo", "--to", ""], ["pth", "safetensors", "gguf", "hf", "bnb"]),
        (["export", "demo", "--dtype", "f"], ["f32", "f16"]),
        (["generate", "--sampler-order", ""], ["rwkv", "temperature-first"]),
        (["generate", "--template", "g"], ["g1-flower", "g1"]),
        (["generate", "--max-t"], ["--max-tokens"]),
        (["score", "--by", ""], ["sum", "token", "byte"]),
        (["generate", "--file", "x"], []),
        (["state", ""], ["build", "info", "diff", "export", "import", "verify"]),
        (["config", ""], ["get", "set", "unset", "list"]),
        (["config", "set", "thr"], ["threads"]),
        (["config", "set", "quiet", ""], ["yes", "no"]),
        (["config", "set", "color", "a"], ["auto", "always"]),
        (["config", "set", "model", "d"], ["demo"]),
        (["config", "set", "draft", "l"], ["lookup"]),
        (["generate", "--draft", "o"], ["off", "owner/repo-x:small.pth", "owner/repo-x:sub/m.safetensors"]),
        (["chat", "--draft", "d"], ["demo"]),
        (["config", "set", "generate.template", "g"], ["g1-flower", "g1"]),
        (["config", "set", "threads", ""], []),
        (["config", "get", "threads", ""], []),
        (["generate", "--think", "o"], ["only", "off"]),
        (["chat", "--think", "o"], ["off"]),
        (["generate", "--model=de"], ["--model=demo"]),
        (["generate", "--stats=de"], []),
        (["completion", "z"], ["zsh"]),
        (["eval", ""], ["lambada"]),
        (["eval", "lambada", ""], []),
        (["perplexity", ""], []),
        (["perplexity", "x.txt", "--base", "owner/repo-x:sm"], ["owner/repo-x:small.pth"]),
        (["quantize", "demo", "--fail-over", "kl"], ["kl=", "kl-p99="]),
        (["--col"], ["--color"]),
        (["show", "--color", "a"], ["auto", "always"]),
        (["generate", "-m", "owner/repo-x:s"], ["owner/repo-x:small.pth", "owner/repo-x:sub/m.safetensors"]),
        (["show", "o"], ["owner/repo-x:small.pth", "owner/repo-x:sub/m.safetensors"]),
        (["chat", "-m", "d"], ["demo"]),
        (["chat", "-m", "g1-7"], ["g1-7.2b"]),
        (["pull", "g1-1"], ["g1-1.5b", "g1-13.3b"]),
        (["pull", "--quantize", ""], ["int8", "int6", "int5", "int4"]),
        (["list", "--remote", "world"], ["world7", "world6", "world5", "world4"]),
        (["rm", ""], ["owner/repo-x:small.pth", "owner/repo-x:sub/m.safetensors"]),
        (["nonsense", "x"], []),
    ],
)
def test_suggestions(cache: Path, words: list[str], expected: list[str]) -> None:
    assert suggestions(words) == expected


@pytest.fixture
def here(cache: Path) -> Path:
    """The current folder, with models in it and beside them what is none."""
    here = Path.cwd()
    (here / "my models").mkdir()
    for folder in (".hidden", "sub"):
        (here / folder).mkdir()
    for name in (
        "small.pth",
        "notes.txt",
        "-x.pth",
        ".old.gguf",
        "sub/q.safetensors",
        "sub/g.gguf",
        "my models/a b.st",
    ):
        (here / name).write_text("")
    if sys.platform != "win32":  # where names have no tabs, and links take a privilege
        (here / "tab\there.pth").write_text("")
        (here / "gone.pth").symlink_to("nowhere")
    else:
        (here / "gone.pth").write_text("")
    return here


@pytest.mark.parametrize(
    ("begun", "expected"),
    [
        ("", ["gone.pth", "my models/", "small.pth", "sub/"]),
        ("s", ["small.pth", "sub/"]),
        ("sub/", ["sub/g.gguf", "sub/q.safetensors"]),
        ("sub/../small", ["sub/../small.pth"]),
        (".", [".hidden/", ".old.gguf"]),
        ("./-", ["./-x.pth"]),
        ("my models/a", ["my models/a b.st"]),
        ("n", []),
        ("nowhere/", []),
        ("small.pth/", []),
        ("sub\0/", []),
        pytest.param("~nobody-here/", [], marks=KNOWS_HOMES),
    ],
)
def test_model_files(here: Path, begun: str, expected: list[str]) -> None:
    assert model_files(begun) == expected


def test_model_files_of_the_home_folder_and_of_the_root(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USERPROFILE" if sys.platform == "win32" else "HOME", str(here))
    assert model_files("~/s") == ["~/small.pth", "~/sub/"]
    assert model_files(f"{here}/sm") == [f"{here}/small.pth"]
    assert f"/{here.parts[1]}/" in model_files("/")


def test_a_place_of_conversations_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("RWKV_SESSIONS", str(tmp_path / "file"))
    assert suggestions(["sessions", "rm", ""]) == []
    assert "demo" in suggestions(["chat", "d"])


def test_models_are_names_and_files_at_once(here: Path) -> None:
    names = ["demo", "owner/repo-x:small.pth", "owner/repo-x:sub/m.safetensors"]
    for words in (["generate", "-m", ""], ["show", ""], ["quantize", ""], ["export", ""], ["chat", ""]):
        found = suggestions(words)
        assert found[:3] == names
        assert "g1-1.5b" in found
        assert found[-4:] == model_files("")
    assert suggestions(["verify", ""]) == names[1:] + model_files("")
    assert suggestions(["generate", "--model=sub/"]) == ["--model=sub/g.gguf", "--model=sub/q.safetensors"]
    assert suggestions(["perplexity", "x", "--base", "sm"]) == ["small.pth"]
    for words in (["rm", "s"], ["chat", "demo", "s"], ["config", "set", "model", "s"], ["generate", "s"]):
        assert suggestions(words) == []


def test_every_option_of_every_verb_is_suggested() -> None:
    for verb in VERBS:
        found = suggestions([verb, "--"])
        assert {"--model", "--help"} <= set(found)
        assert len(found) == len(set(found))


def test_scripts() -> None:
    for shell, script in SCRIPTS.items():
        done = rwkv_inside("completion", shell)
        assert (done.code, done.out, done.err) == (0, script, "")
    wrong = rwkv_inside("completion", "tcsh")
    assert (wrong.code, wrong.out) == (2, "")
    assert "no script for `tcsh`; there are bash, zsh, fish" in wrong.err


def in_shell(tmp_path: Path, shell: str, program: str) -> list[str]:
    """Lines that `program` prints in `shell`, where `rwkv` is this program."""
    (tmp_path / "rwkv").write_text("#!/bin/sh\nexec " + shlex.join(RWKV) + ' "$@"\n')
    (tmp_path / "rwkv").chmod(0o755)
    env = environment()
    env["PATH"] = f"{tmp_path}:{env['PATH']}"
    env["HF_HUB_CACHE"] = str(tmp_path / "hub")
    done = subprocess.run(
        [shell, "-c", program], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.skipif(sys.platform == "win32" or shutil.which("bash") is None, reason="no bash")
def test_bash(cache: Path, tmp_path: Path) -> None:
    expected = {
        "rwkv tok": ["tokenize"],
        "rwkv config ": ["get", "set", "unset", "list"],
        "rwkv show owner/repo-x:s": ["small.pth", "sub/m.safetensors"],
        "rwkv show --model=owner/repo-x:s": ["small.pth", "sub/m.safetensors"],
    }
    program = "source <(rwkv completion bash)\n"
    for line in expected:
        program += f'COMP_LINE="{line}"; COMP_POINT=${{#COMP_LINE}}; _rwkv; echo "${{COMPREPLY[@]}}"\n'
    assert in_shell(tmp_path, "bash", program) == [" ".join(replies) for replies in expected.values()]


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish")
def test_fish(cache: Path, tmp_path: Path) -> None:
    program = "rwkv completion fish | source; complete -C 'rwkv quantize demo --to int'"
    assert in_shell(tmp_path, "fish", program) == ["int4", "int5", "int6", "int8"]
    (tmp_path / "int.txt").write_text("")
    program = "rwkv completion fish | source; complete -C 'rwkv generate -f in'; complete -C 'rwkv generate --model=d'"
    assert in_shell(tmp_path, "fish", program) == ["int.txt", "--model=demo"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
def test_zsh_understands_the_script(tmp_path: Path) -> None:
    program = "autoload -Uz compinit; compinit -u -d $PWD/dump; source <(rwkv completion zsh); print ${_comps[rwkv]}"
    assert in_shell(tmp_path, "zsh", program) == ["_rwkv"]


_LIVE = {
    "bash": ("bash --norc --noprofile -i", "source <(rwkv completion bash)"),
    "zsh": (
        "zsh -f -i",
        "autoload -Uz compinit; compinit -u -d ../dump; source <(rwkv completion zsh)",
    ),
    "fish": ("fish --no-config -i", "rwkv completion fish | source"),
}


@pytest.mark.parametrize("shell", _LIVE)
def test_the_tab_key(here: Path, tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "rwkv").write_text(
        f'#!/bin/sh\n[ "$1" = completion ] && exec {shlex.join(RWKV)} "$@"\nprintf "ran:"; printf " <%s>" "$@"; echo\n'
    )
    (tmp_path / "bin" / "rwkv").chmod(0o755)
    env = environment(TERM="xterm", HOME=str(here), HF_HUB_CACHE=str(tmp_path / "hub"))
    env["PATH"] = f"{tmp_path / 'bin'}:{env['PATH']}"
    program, begin = _LIVE[shell]
    child = pseudo_terminals().spawn(
        program, cwd=here, env=env, timeout=20, encoding="utf-8", dimensions=(50, 200)
    )  # type: ignore[arg-type]
    child.delaybeforesend = None
    child.sendline(begin)
    child.sendline("rwkv is; rwkv ready")
    child.expect("<ready>\r")
    for line, words in {
        "rwkv show -m sm": "<show> <-m> <small.pth>",
        "rwkv generate --model=sub/q": "<generate> <--model=sub/q.safetensors>",
        "rwkv show owner/repo-x:sm": "<show> <owner/repo-x:small.pth>",
        r"rwkv quantize my\ mod": "<quantize> <my models/>",
        r"rwkv quantize ~/my\ models/": f"<quantize> <{here}/my models/a b.st>",
        "rwkv perplexity no": "<perplexity> <notes.txt>",
    }.items():
        child.send(f"{line}\t")
        child.send("\r")
        child.expect("ran: ([^\r]*)\r")
        assert child.match.group(1) == words
    child.close(force=True)
