"""Closed pipes, full disks, Ctrl-C: nothing half-written, nothing on stderr that does not belong there."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path

import pytest
from cli_runner import Terminal, rwkv, start
from quant_models import checkpoint

from quant.synthetic import synthetic_arch

ENDLESS = ["generate", "-m", "demo", "--max-tokens", "1000000", "--seed", "1", "It was"]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose quantization takes long enough to be interrupted."""
    arch = synthetic_arch("7", 6, 512, 256, 64)
    return checkpoint(tmp_path_factory.mktemp("large") / "large.pth", arch, "bf16")


def test_a_reader_that_goes_ends_the_process_by_sigpipe() -> None:
    process = start(*ENDLESS)
    assert process.stdout is not None and process.stderr is not None
    assert len(process.stdout.read(20)) == 20
    process.stdout.close()
    assert process.wait(30) == -signal.SIGPIPE
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
    assert (process.returncode, err) == (-signal.SIGPIPE, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    "args", [["--help"], ["show", "demo"], ["generate", "-m", "demo", "--max-tokens", "5", "x"]]
)
def test_a_full_disk_under_stdout(args: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        process = start(*args, stdout=full)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (5, b"error: no space left on device\n")


def test_ctrl_c_keeps_what_was_written() -> None:
    process = start(*ENDLESS)
    assert process.stdout is not None and process.stderr is not None
    first = process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait(30) == 130
    assert process.stderr.read() == b""
    whole = rwkv(*ENDLESS[:3], "--max-tokens", "3000", *ENDLESS[5:]).out.encode()
    assert whole.startswith((first + rest)[: len(whole)])
    process.stdout.close()
    process.stderr.close()


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
    tmp_path: Path, large: Path, force: bool
) -> None:
    if force:
        (tmp_path / "out.st").write_bytes(b"the old file")
    args = [
        "quantize",
        str(large),
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


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_being_told_to_end_during_quantization_leaves_nothing(
    tmp_path: Path, large: Path, signum: signal.Signals
) -> None:
    process = start("quantize", large, "--to", "int4", "-o", "out.st", "-t", "1", cwd=tmp_path)
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


@pytest.mark.parametrize("moment", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
def test_ctrl_c_at_any_moment(
    tmp_path: Path, large: Path, uninterrupted: tuple[bytes, float], moment: float
) -> None:
    whole, seconds = uninterrupted
    process = start("quantize", large, "--to", "int8", "-o", "out.st", "-t", "1", cwd=tmp_path)
    time.sleep(moment * seconds)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    # The interpreter may not have come as far as the program, or be past it: then the signal ends it.
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
    limit = 1_000_000
    done = rwkv(
        "quantize", large, "--to", "int8", "-o", "out.st", "--force", cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
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


def test_ignored_interrupts_stay_ignored() -> None:
    process = start(*ENDLESS[:3], "--max-tokens", "3000", "x",
                    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))  # fmt: skip
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert len(out) > 2000
