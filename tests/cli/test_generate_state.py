"""`rwkv generate --state`, `--save-state`, `--update`: runs that are cut, by length, by signals, by time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from cli_runner import ENDING, READER_GONE, Outcome, Terminal, receive, rwkv, rwkv_inside, small_files, start
from links import link

from rwkvcli import Model, State

DEMO = ["generate", "-m", "demo", "-t", "1", "--seed", "4", "--presence-penalty", "0.2"]


def whole(tokens: int, prompt: str = "It was", **more: object) -> str:
    settings = {"seed": 4, "presence_penalty": 0.2, **more}
    return "".join(Model.load("demo", threads=1).generate(prompt, tokens, **settings))  # type: ignore[arg-type]


def test_saved_resumed_and_updated(tmp_path: Path) -> None:
    begun = rwkv_inside(*DEMO, "--max-tokens", "10", "--save-state", "a", "It was", cwd=tmp_path)
    assert (begun.code, begun.err) == (0, "")
    kept = (tmp_path / "a").read_bytes()
    texts = [begun.out]
    for args in (["--save-state", "b"], ["--state", "b", "--update"], ["--state", "b", "--update"]):
        source = [] if "--state" in args else ["--state", "a"]
        done = rwkv_inside(*DEMO, "--max-tokens", "10", *source, *args, cwd=tmp_path)
        assert (done.code, done.err) == (0, "")
        texts.append(done.out)
    assert "".join(texts) == whole(40)
    assert (tmp_path / "a").read_bytes() == kept
    again = rwkv_inside(*DEMO, "--max-tokens", "30", "--state", "a", "--save-state", "c", cwd=tmp_path)
    assert begun.out + again.out == whole(40)
    assert (tmp_path / "c").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_new_text_after_a_state(tmp_path: Path) -> None:
    rwkv_inside(*DEMO, "--max-tokens", "0", "--save-state", "a", "It was", cwd=tmp_path)
    done = rwkv_inside(
        *DEMO, "--max-tokens", "10", "--state", "a", "--json", stdin=" a fine day\n", cwd=tmp_path
    )
    assert done.code == 0
    answer = json.loads(done.out)
    assert answer["text"] == whole(10, "It was a fine day")
    assert answer["usage"]["prompt_tokens"] == len(" a fine day")
    resumed = rwkv_inside(*DEMO, "--max-tokens", "10", "--state", "a", "--json", cwd=tmp_path)
    assert json.loads(resumed.out)["usage"]["prompt_tokens"] == 0


ENDLESS = [*DEMO, "--max-tokens", "-1", "--logit-bias", "0=-inf"]


@pytest.mark.parametrize(("signum", "code"), ENDING)
def test_a_run_that_was_ended_goes_on_token_for_token(
    tmp_path: Path, signum: signal.Signals, code: int
) -> None:
    process = start(*ENDLESS, "--save-state", "s", "It was", cwd=tmp_path)
    assert process.stdout is not None
    first = receive(process.stdout, 50)
    process.send_signal(signum)
    rest, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (code, b"")
    text = (first + rest).decode()
    model = Model.load("demo", threads=1)
    state = State.load(tmp_path / "s", model)
    assert state.tokens_seen == len("It was" + text)
    done = rwkv_inside(*ENDLESS[:-4], "--max-tokens", "30", *ENDLESS[-2:], "--state", "s", cwd=tmp_path)
    assert text + done.out == whole(len(text) + 30, logit_bias={0: -float("inf")})


def test_a_state_is_updated_by_one_process_at_a_time(tmp_path: Path) -> None:
    assert rwkv_inside(*DEMO, "--save-state", "s", "--max-tokens", "5", "It was", cwd=tmp_path).code == 0
    link(tmp_path / "link", "s")
    process = start(*ENDLESS, "--state", "s", "--update", cwd=tmp_path)
    assert process.stdout is not None
    try:
        receive(process.stdout, 5)
        saved = (tmp_path / "s").read_bytes()
        for name, *way in (("s", "--update"), ("link", "--update"), ("s", "--save-state", "s")):
            refused = rwkv_inside(*DEMO, "--state", name, *way, cwd=tmp_path)
            assert refused == Outcome(
                2,
                "",
                f"error: {name} is being updated by another process ({process.pid})\n"
                "hint: wait for that one to end; --save-state writes to another file\n",
            )
        assert rwkv_inside(*DEMO, "--state", "s", "--max-tokens", "5", cwd=tmp_path).code == 0
        assert (tmp_path / "s").read_bytes() == saved
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert (tmp_path / "s").read_bytes() != saved
    assert rwkv_inside(*DEMO, "--state", "link", "--update", "--max-tokens", "5", cwd=tmp_path).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "s"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--save-state", "s"], "s cannot be written: the working folder was deleted\nhint: change to another folder\n"),
        (["--save-state", "{there}/s", "--state", "../a"], f"{Path('../a')}: no such state file\nhint: "),
    ],
)  # fmt: skip
def test_a_working_folder_that_was_deleted(tmp_path: Path, args: list[str], message: str) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    args = [arg.format(there=tmp_path) for arg in args]
    done = rwkv(*DEMO, "--max-tokens", "1", *args, "It was", cwd=gone, preexec_fn=gone.rmdir)
    assert (done.code in (2, 3), done.out) == (True, "")
    assert done.err.startswith(f"error: {message}")


def test_two_that_save_at_once_leave_the_state_of_one(tmp_path: Path) -> None:
    runs = [
        start(*DEMO, "--max-tokens", "5", "--save-state", "s", prompt, cwd=tmp_path)
        for prompt in ("It was", "Once upon a time")
    ]
    assert [(run.communicate()[1], run.returncode) for run in runs] == [(b"", 0)] * 2
    assert State.load(tmp_path / "s", Model.load("demo", threads=1)).tokens_seen in (6 + 5, 16 + 5)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_time_limit_keeps_the_state(tmp_path: Path) -> None:
    done = rwkv_inside(*ENDLESS, "--timeout", "1.5", "--save-state", "s", "--json", "It was", cwd=tmp_path)
    assert done.code == 124
    assert done.err == "error: not finished after 1.5 s\nhint: --timeout gives it more time\n"
    answer = json.loads(done.out)
    assert answer["finish_reason"] == "timeout"
    assert State.load(tmp_path / "s", Model.load("demo", threads=1)).tokens_seen == len(
        "It was" + answer["text"]
    )


def test_a_long_text_is_stopped_with_what_was_read(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_bytes(b"It was a fine day. " * 260_000)
    terminal = Terminal("generate", "-m", "demo", "-f", "long.txt", "--save-state", "s", cwd=tmp_path)
    terminal.until("reading")
    terminal.child.sendintr()
    done = terminal.finish()
    assert done.code == 130
    assert "note: s holds " in done.out
    model = Model.load("demo", threads=1)
    state = State.load(tmp_path / "s", model)
    assert f"s holds {state.tokens_seen} of 4940000 bytes" in done.out
    assert 0 < state.tokens_seen < 4_940_000
    none = rwkv_inside("generate", "-m", "demo", "--state", "s", cwd=tmp_path)
    assert (none.code, none.out) == (2, "")
    assert none.err.startswith("error: the state was not left inside a text")


def test_a_state_is_refused_by_name(folder: Path) -> None:
    model = ["generate", "-m", "small.safetensors"]
    assert rwkv_inside(*DEMO, "--max-tokens", "1", "--save-state", "demo.state", "x", cwd=folder).code == 0
    data = bytearray((folder / "demo.state").read_bytes())
    data[-20] ^= 1
    (folder / "damaged.state").write_bytes(data)
    (folder / "old.state").write_bytes(data.replace(b'"format_version":"1"', b'"format_version":"0"'))
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe")
    for name, code, message in (
        (
            "demo.state",
            4,
            "demo.state: the state of another model (demo-weights.safetensors, RWKV-7, 6 layers of 256)",
        ),
        ("small.safetensors", 4, "small.safetensors: not a state file, or a damaged one"),
        ("small.pth", 4, "small.pth: not a state file, or a damaged one"),
        ("old.state", 4, "old.state: state format 0 is not read by this version"),
        ("none.state", 3, "none.state: no such state file"),
        ("bin", 3, "bin is a folder, not a file"),
        ("pipe", 4, "pipe is not a regular file"),
    ):
        (folder / "bin").mkdir(exist_ok=True)
        if name == "pipe" and not (folder / name).exists():
            continue
        done = rwkv_inside(*model, "--state", name, "hello", cwd=folder)
        assert (done.code, done.out) == (code, ""), done.err
        assert done.err.splitlines()[0] == f"error: {message}"
        assert done.err.count("\n") <= 2
    done = rwkv_inside(*DEMO, "--state", "damaged.state", "hello", cwd=folder)
    assert (done.code, done.err) == (
        4, "error: damaged.state: its checksum is wrong: the state file is damaged\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--update", "x"], "error: --update writes back to the file of --state: name it"),
        (
            ["--state", "a", "--save-state", "b", "--update", "x"],
            "error: --update writes to the file of --state, and --save-state to another: use one of them",
        ),
        (["--save-state", "-", "x"], "error: a state is a file, and stdin and stdout are none"),
        (["--save-state", "small.safetensors", "x"], "error: small.safetensors exists, and is not a state"),
        (["--save-state", "no/where", "x"], "error: the folder no does not exist"),
        (["--save-state", ".", "x"], "error: . is a folder"),
    ],
)
def test_combinations_that_make_no_sense(folder: Path, args: list[str], message: str) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = rwkv_inside("generate", "-m", "small.safetensors", *args, cwd=folder)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_disk_that_is_full_leaves_the_old_state(tmp_path: Path) -> None:
    rwkv_inside(*DEMO, "--max-tokens", "3", "--save-state", "s", "x", cwd=tmp_path)
    before = (tmp_path / "s").read_bytes()
    done = rwkv(
        *DEMO, "--max-tokens", "3", "--state", "s", "--update", cwd=tmp_path,
        preexec_fn=small_files(100_000),
    )  # fmt: skip
    assert (done.code, done.err) == (5, "error: s: file too large\n")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"s": before}


def test_nothing_read_is_nothing_written(tmp_path: Path) -> None:
    """A run that fails, or whose reader has gone, leaves the state as it was."""
    rwkv_inside(*DEMO, "--max-tokens", "3", "--save-state", "s", "x", cwd=tmp_path)
    before = (tmp_path / "s").read_bytes()
    process = start(*ENDLESS, "--state", "s", "--update", cwd=tmp_path, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    assert len(receive(process.stdout, 20)) == 20
    process.stdout.close()
    assert process.wait(30) == READER_GONE
    process.stderr.close()
    assert (tmp_path / "s").read_bytes() == before
