"""`main` in this process: which error becomes which text and code."""

from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest
from cli_runner import rwkv_inside

import rwkvcli.cli.root
from rwkvcli.cli.app import main
from rwkvcli.errors import (
    DeviceUnavailable,
    FormatError,
    MissingExtra,
    ModelNotFound,
    NetworkError,
    NoSpace,
    UsageError,
)


def caused(by: BaseException) -> ImportError:
    error = ImportError("initialization failed")
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    ("error", "code", "err"),
    [
        (UsageError("bad"), 2, "error: bad\n"),
        (
            MissingExtra("torch", "this"),
            2,
            'error: this needs packages that are not installed: pip install "rwkvcli[torch]"\n',
        ),
        (ModelNotFound("gone", hint="look"), 3, "error: gone\nhint: look\n"),
        (NetworkError("off"), 3, "error: off\n"),
        (FormatError("torn"), 4, "error: torn\n"),
        (DeviceUnavailable("none"), 5, "error: none\n"),
        (NoSpace("full"), 5, "error: full\n"),
        (MemoryError(), 5, "error: out of memory\nhint: close other programs, or use a smaller model\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out.st"),
            5,
            "error: out.st: no space left on device\n",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "out.st"),
            1,
            "error: out.st: permission denied\n",
        ),
        (FormatError("two\nlines\x1b[2J of \ud800"), 4, "error: two lines\\x1b[2J of \\ud800\n"),
        (KeyboardInterrupt(), 130, ""),
        (caused(KeyboardInterrupt()), 130, ""),
        (caused(SystemExit(143)), 143, ""),
        (RuntimeError("odd"), 1, "error: unexpected RuntimeError: odd\n"),
        (RuntimeError("x" * 20_000), 1, "error: unexpected RuntimeError: " + "x" * 274 + "…\n"),
        (caused(ValueError("odd")), 1, "error: unexpected ImportError: initialization failed\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors_become_text_and_a_code(
    error: BaseException,
    code: int,
    err: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_args: object) -> int:
        raise error

    monkeypatch.setattr(rwkvcli.cli.root, "run", fail)
    assert main(["generate"]) == code
    out, shown = capsys.readouterr()
    assert out == ""
    if code == 1 and "unexpected" in err:
        assert shown.startswith(err)
        assert shown.count("\n") == 2
        assert "this is a bug" in shown
    else:
        assert shown == err


def test_the_callers_signal_handler_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    assert main(["--version"]) == 0
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().out.startswith("rwkv ")


@pytest.mark.parametrize(
    ("args", "variable", "wanted"),
    [
        (["show", "nowhere.pth"], "", False),
        (["show", "nowhere.pth"], "0", False),
        (["show", "nowhere.pth"], "false", False),
        (["show", "nowhere.pth"], "No", False),
        (["show", "nowhere.pth"], "yes", True),
        (["show", "nowhere.pth", "-v"], "", True),
        (["-v", "show", "nowhere.pth"], "off", True),
        (["show", "nowhere.pth", "-qv"], "", True),
        (["generate", "-m", "nowhere.pth", "--", "-v"], "", False),
        (["generate", "-m", "nowhere.pth", "--stop", "-v", "x"], "", False),
    ],
)
@pytest.mark.parametrize("understood", [True, False])
def test_a_traceback_comes_only_if_asked_for(
    args: list[str],
    variable: str,
    wanted: bool,
    understood: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RWKV_VERBOSE", variable)
    monkeypatch.setattr("sys.stdin", None)
    if not understood:

        def fail(*_args: object) -> int:
            raise ModelNotFound("nowhere.pth does not exist")

        monkeypatch.setattr(rwkvcli.cli.root, "run", fail)
    assert main(args) == 3
    err = capsys.readouterr().err
    if understood or "--stop" not in args:  # it takes a parser to know a value from a flag
        assert err.startswith("Traceback") == wanted
    assert "error: nowhere.pth does not exist\n" in err


@pytest.mark.parametrize(
    ("args", "flag"),
    [
        (["generate", "-m", "demo", "-f", "", "x"], "'-f' / '--file'"),
        (["generate", "-m", "demo", "--save-state", "", "x"], "'--save-state'"),
        (["generate", "-m", "demo", "--schema", "", "x"], "'--schema'"),
        (["export", "demo", "--to", "hf", "-o", ""], "'-o' / '--out'"),
        (["quantize", "demo", "--to", "int4", "--report", ""], "'--report'"),
        (["state", "info", ""], "'STATE...'"),
        (["perplexity", "-m", "demo", ""], "'FILE'"),
    ],
)
def test_a_file_without_a_name_is_not_the_working_folder(tmp_path: Path, args: list[str], flag: str) -> None:
    done = rwkv_inside(*args, cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert f"\nerror: invalid value for {flag}: the name is empty\n" in done.err
    assert not list(tmp_path.iterdir())


def test_a_text_to_measure_on_without_a_name(tmp_path: Path) -> None:
    for flag in ("--eval", "--calibrate"):
        done = rwkv_inside("quantize", "demo", "--to", "int4", "-o", tmp_path / "out", "--dry-run", flag, "")
        assert (done.code, done.out) == (3, "")
        assert done.err == f"error: {flag} is empty\nhint: name a text file, or - for stdin\n"
    done = rwkv_inside("tokenize", "--tokenizer", "", "x")
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("error: the name of the vocabulary is empty\nhint: ")


def test_several_words_without_quotes() -> None:
    said = "is one argument, write several words in quotes\n"
    for verb, name in (("generate", "PROMPT"), ("score", "PROMPT"), ("tokenize", "TEXT")):
        done = rwkv_inside(verb, "-m", "demo", "once", "upon", "a time")
        assert (done.code, done.out) == (2, "")
        assert f"error: got unexpected extra argument(s) (upon a time): {name} {said}" in done.err
    assert said not in rwkv_inside("show", "demo", "demo").err


@pytest.mark.parametrize(
    ("args", "flag"),
    [
        (["quantize", "demo", "--to", "int4", "-o", "new/"], "-o"),
        (["quantize", "demo", "--to", "int4", "--report", "new/"], "--report"),
        (["export", "demo", "--to", "pth", "-o", "new/"], "-o"),
        (["generate", "-m", "demo", "--save-state", "new/", "x"], "--save-state"),
        (["state", "build", "-m", "demo", "-f", "x", "-o", "new/"], "-o"),
        (["sessions", "export", "x", "-o", "new/"], "-o"),
    ],
)
def test_the_name_of_a_folder_makes_no_file_of_it(tmp_path: Path, args: list[str], flag: str) -> None:
    done = rwkv_inside(*args, cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert f"\nerror: {flag} takes a file, and `new/` is the name of a folder\n" in done.err
    assert not list(tmp_path.iterdir())
