"""Closed pipes, full disks, Ctrl-C: nothing half-written, nothing on stderr that does not belong there."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cli_runner
import pytest
from cli_runner import (
    ENDING,
    READER_GONE,
    Terminal,
    environment,
    receive,
    rwkv,
    rwkv_inside,
    small_files,
    start,
)
from quant_models import checkpoint

from quant.arch import expected
from quant.synthetic import synthetic_arch
from rwkvcli.cli.prompt import gather_prompt
from rwkvcli.cli.signals import _TIDY, end_tidily, time_limit, uncut
from rwkvcli.errors import TimedOut, UsageError

ENDLESS = ["generate", "-m", "demo", "--max-tokens", "1000000", "--seed", "1", "It was"]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose quantization takes long enough to be interrupted."""
    arch = synthetic_arch("7", 6, 512, 256, 64)
    return checkpoint(tmp_path_factory.mktemp("large") / "large.pth", arch, "bf16")


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 600 million weights whose quantization takes many seconds: all zero, so that the file
    is a hole."""
    header, end = {}, 0
    for name, shape in expected(synthetic_arch("7", 12, 2048, 256, 64)).items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path = tmp_path_factory.mktemp("huge") / "huge.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def wait_for_handlers(process: subprocess.Popen[bytes]) -> None:
    """Wait until the program handles signals: before, the interpreter itself answers Ctrl-C, by a traceback."""

    def handles() -> bool:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:"))
        return bool(caught >> (signal.SIGTERM - 1) & 1)

    wait_until(process, handles)


def wait_until(process: subprocess.Popen[bytes], happens: Callable[[], bool]) -> None:
    """Wait for what the program does while it runs."""
    until = time.monotonic() + 30
    while time.monotonic() < until and process.poll() is None:
        if happens():
            return
        time.sleep(0.002)
    raise AssertionError("the program never came as far")


def waiting(pipe: int) -> int:
    """Bytes in a pipe."""
    import fcntl
    import termios

    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0])


def test_a_reader_that_goes_ends_the_process_by_sigpipe() -> None:
    process = start(*ENDLESS)
    assert process.stdout is not None and process.stderr is not None
    assert len(receive(process.stdout, 20)) == 20
    process.stdout.close()
    assert process.wait(30) == READER_GONE
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize(
    "args", [["--help"], ["show", "demo"], ["generate", "-m", "demo", "--max-tokens", "5", "x"]]
)
def test_a_reader_that_was_never_there(args: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start(*args, stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (READER_GONE, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    "args", [["--help"], ["show", "demo"], ["generate", "-m", "demo", "--max-tokens", "5", "x"]]
)
def test_a_full_disk_under_stdout(args: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        process = start(*args, stdout=full)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (5, b"error: no space left on device\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_answer_that_is_written_in_part_is_an_error(tmp_path: Path, unbuffered: str) -> None:
    whole = rwkv_inside("show", "demo").out.encode()

    with (tmp_path / "answer").open("wb") as file:
        # Python before 3.13 would leave compiled files cut by the limit as well
        env = environment(PYTHONUNBUFFERED=unbuffered, PYTHONDONTWRITEBYTECODE="1")
        process = start("show", "demo", stdout=file, env=env, preexec_fn=small_files(100))
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (5, b"error: file too large\n")
    assert (tmp_path / "answer").read_bytes() == whole[:100]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pipe of a known size")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_signal_while_the_reader_is_waited_for_cuts_no_line(unbuffered: str) -> None:
    import fcntl

    reader, writer = os.pipe()
    size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    process = start(
        "generate", "-m", "demo", "--jsonl", "--max-tokens", "1",
        stdin=subprocess.PIPE, stdout=writer, env=environment(PYTHONUNBUFFERED=unbuffered),
    )  # fmt: skip
    os.close(writer)
    assert process.stdin is not None
    process.stdin.write(json.dumps({"prompt": "x", "id": "long" * size}).encode() + b"\n")
    wait_until(process, lambda: waiting(reader) == size)
    process.send_signal(signal.SIGTERM)
    with os.fdopen(reader, "rb") as stream:
        (line,) = stream
    assert json.loads(line)["id"] == "long" * size
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (128 + signal.SIGTERM, b"")


def test_ctrl_c_keeps_what_was_written() -> None:
    process = start(*ENDLESS)
    assert process.stdout is not None and process.stderr is not None
    first = receive(process.stdout, 20)
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait(30) == 130
    assert process.stderr.read() == b""
    whole = rwkv_inside(*ENDLESS[:3], "--max-tokens", "300", *ENDLESS[5:]).out.encode()
    assert whole.startswith((first + rest)[: len(whole)])
    process.stdout.close()
    process.stderr.close()


@pytest.mark.parametrize("form", ["--stream-json", "--json"])
def test_ctrl_c_leaves_whole_json(form: str) -> None:
    process = start(*ENDLESS, form, "-v")
    assert process.stdout is not None and process.stderr is not None
    assert any(b"template" in line for line in iter(process.stderr.readline, b""))  # the model is loaded
    first = process.stdout.readline() if form == "--stream-json" else b""
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")
    events = [json.loads(line) for line in (first + out).splitlines()]
    assert events[-1]["finish_reason"] == "interrupted"
    if form == "--stream-json":
        assert "".join(event["text"] for event in events[:-1]) == events[-1]["text"]


def test_ctrl_c_in_a_terminal_leaves_the_prompt_on_a_new_line() -> None:
    terminal = Terminal(*ENDLESS)
    terminal.until("e")
    terminal.child.sendintr()
    done = terminal.finish()
    assert done.code == 130
    assert terminal.raw.endswith(b"\n")
    assert b"Traceback" not in terminal.raw
    assert b"KeyboardInterrupt" not in terminal.raw


@pytest.mark.parametrize("force", [False, True])
def test_ctrl_c_during_quantization_leaves_the_folder_as_it_was(
    tmp_path: Path, huge: Path, force: bool
) -> None:
    if force:
        (tmp_path / "out.st").write_bytes(b"the old file")
    args = [
        "quantize",
        str(huge),
        "--to",
        "int4",
        "-o",
        "out.st",
        "-t",
        "1",
        *(["--force"] if force else []),
    ]
    terminal = Terminal(*args, cwd=tmp_path)
    terminal.until("%")
    terminal.child.sendintr()
    done = terminal.finish()
    assert done.code == 130
    assert b"Traceback" not in terminal.raw
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left == ({"out.st": b"the old file"} if force else {})


@pytest.mark.parametrize("signum", [signum for signum, _ in ENDING[1:]])
def test_being_told_to_end_during_quantization_leaves_nothing(
    tmp_path: Path, huge: Path, signum: signal.Signals
) -> None:
    process = start("quantize", huge, "--to", "int4", "-o", "out.st", "-t", "1", cwd=tmp_path)
    until = time.monotonic() + 30
    while not list(tmp_path.iterdir()) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signum)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (128 + signum, b"")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, large: Path) -> tuple[bytes, float]:
    """What quantizing `large` to int8 writes, and about how many seconds it takes."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    begin = time.monotonic()
    assert rwkv("quantize", large, "--to", "int8", "-o", "out.st", "-t", "1", cwd=folder).code == 0
    return (folder / "out.st").read_bytes(), time.monotonic() - begin


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("moment", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
def test_ctrl_c_at_any_moment(
    tmp_path: Path, large: Path, uninterrupted: tuple[bytes, float], moment: float
) -> None:
    whole, seconds = uninterrupted
    process = start("quantize", large, "--to", "int8", "-o", "out.st", "-t", "1", cwd=tmp_path)
    wait_for_handlers(process)
    time.sleep(moment * seconds)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    # The interpreter may be past the program: then the signal ends it.
    assert process.returncode in (130, -signal.SIGINT, 0)
    assert b"Traceback" not in err
    if process.returncode == 0 or left:  # too late: all is there, and said
        assert left == {"out.st": whole}
        assert out == b"out.st\n"
    else:
        assert (out, err) == (b"", b"")


@pytest.mark.parametrize("existing", [False, True])
def test_a_file_that_may_not_grow_is_removed(tmp_path: Path, large: Path, existing: bool) -> None:
    if existing:
        (tmp_path / "out.st").write_bytes(b"the old file")
    done = rwkv(
        "quantize", large, "--to", "int8", "-o", "out.st", "--force", cwd=tmp_path,
        preexec_fn=small_files(1_000_000),
    )  # fmt: skip
    assert (done.code, done.out) == (5, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") <= 2
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left == ({"out.st": b"the old file"} if existing else {})


def test_stderr_may_be_closed(folder: Path) -> None:
    done = rwkv("generate", "-m", "small.safetensors", "--max-tokens", "3", "--stats", "x", cwd=folder,
                preexec_fn=lambda: os.close(2))  # fmt: skip
    assert done.code == 0


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["generate", "-m", "demo", "--max-tokens", "5", "--temperature", "0", "--stats", "x"], 0),
        (["show", "nowhere.pth"], 3),
        (["show", "nowhere.pth", "-v"], 3),
        (["show", "--nonsense"], 2),
        ([], 2),
    ],
)
def test_a_reader_of_stderr_that_goes_changes_nothing(args: list[str], code: int) -> None:
    whole = rwkv_inside(*args)
    reader, writer = os.pipe()
    os.close(reader)
    process = start(*args, stderr=writer)
    os.close(writer)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out.decode()) == (code, whole.out)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pipe of a known size")
def test_ignored_interrupts_stay_ignored() -> None:
    import fcntl

    reader, writer = os.pipe()
    filling = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096) - 20
    os.write(writer, bytes(filling))
    process = start("generate", "-m", "demo", "--seed", "1", "--max-tokens", "200", "It was", stdout=writer,
                    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))  # fmt: skip
    os.close(writer)

    wait_until(process, lambda: waiting(reader) > filling)
    process.send_signal(signal.SIGINT)  # it is at work: what it writes does not fit into the pipe
    with os.fdopen(reader, "rb") as stream:
        out = stream.read()[filling:]
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert len(out) >= 200


@pytest.mark.parametrize("args", [[], ["-f", "endless"]])
def test_a_signal_ends_the_reading_of_an_endless_prompt(
    args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)

    class Endless(io.BytesIO):
        def fileno(self) -> int:
            return nothing

        def read1(self, size: int | None = -1) -> bytes:
            assert size is not None and size > 0, "a signal that comes in a call without end is never seen"
            signal.raise_signal(signal.SIGINT)
            return b"y" * size

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Endless()) if not args else None)
    monkeypatch.setattr(Path, "open", lambda *_: Endless())
    with pytest.raises(KeyboardInterrupt):
        gather_prompt(None, args[1:])
    os.close(nothing)


@pytest.mark.skipif(sys.platform == "win32", reason="nohup is of POSIX")
def test_a_stdin_that_cannot_be_read_from_is_none() -> None:
    with open(os.devnull, "wb") as unreadable:  # as nohup gives it
        process = start("generate", "-m", "demo", "--max-tokens", "5", "--seed", "1", "x", stdin=unreadable)
        out, err = process.communicate(timeout=30)
    whole = rwkv_inside("generate", "-m", "demo", "--max-tokens", "5", "--seed", "1", "x").out
    assert (process.returncode, out.decode(), err) == (0, whole, b"")


EARLY = """
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)
wanted, sys.argv = sys.argv[1], ["rwkv", "--version"]
sys.meta_path.insert(0, Finder())
runpy.run_module("rwkvcli", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("module", ["rwkvcli.cli", "rwkvcli.cli.app", "rwkvcli.cli.signals"])
def test_ctrl_c_in_the_first_imports_prints_nothing(module: str) -> None:
    def default() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def ignored() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    if sys.platform == "win32":
        pytest.skip("Windows does nothing in a process before it begins")
    for prepare, code in ((default, -signal.SIGINT), (ignored, 0)):
        done = subprocess.run(
            [sys.executable, "-P", "-c", EARLY, module],
            capture_output=True,
            env=environment(),
            preexec_fn=prepare,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (code, b"")
        assert done.stdout.startswith(b"rwkv" if code == 0 else b"")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no alarm there")
def test_a_time_limit_that_a_library_makes_another_error_of() -> None:
    with pytest.raises(TimedOut, match=r"^not finished after 0.01 s$"), time_limit(0.01):
        try:
            signal.pause()
        except TimedOut:
            raise UsageError("llguidance gave up") from None


@pytest.fixture
def defaults() -> Iterator[None]:
    """What signals do where nothing was said."""
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in _TIDY}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP")
def test_a_terminal_that_is_closed_may_say_so_twice(defaults: None) -> None:
    end_tidily()
    with pytest.raises(SystemExit, match=r"^129$"):
        signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)  # does not interrupt the clean-up
    signal.raise_signal(signal.SIGTERM)


def test_what_is_not_cut_in_two(defaults: None) -> None:
    end_tidily()
    done = []
    with pytest.raises(SystemExit, match=r"^143$"), uncut():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        done.append("all of it")
    assert done == ["all of it"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


BAR = """
import os, runpy, signal, sys
import rich.console
clear_live = rich.console.Console.clear_live
def signalled(self):
    os.kill(os.getpid(), signal.SIGTERM)
    return clear_live(self)
rich.console.Console.clear_live = signalled
sys.argv = ["rwkv", *sys.argv[1:]]
runpy.run_module("rwkvcli", run_name="__main__", alter_sys=True)
"""


def test_a_signal_while_a_bar_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text("What is it?\n" * 50)
    monkeypatch.setattr(cli_runner, "RWKV", [sys.executable, "-P", "-c", BAR])
    terminal = Terminal("perplexity", "-m", "demo", "text", cwd=tmp_path)
    done = terminal.finish()
    assert b"evaluating" in terminal.raw
    assert (done.code, done.out) == (143, "")
    assert terminal.raw.rfind(b"\x1b[?25l") <= terminal.raw.rfind(b"\x1b[?25h")
