"""Files that take another's place: whole or not at all, by one writer at a time."""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from quant.atomic import Replacement, new_file, part_name, whole_file
from quant.errors import InvalidRequest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no locks there")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_at_the_end_only(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with whole_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old" and names(tmp_path) == [".x.part", "x"]
    assert path.read_bytes() == b"new" and names(tmp_path) == ["x"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError, SystemExit])
def test_a_failure_leaves_what_was_there(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(failure), whole_file(path) as file:
        file.write(b"new")
        raise failure
    assert path.read_bytes() == b"old" and names(tmp_path) == ["x"]


def test_what_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    program = (
        "import sys, time; from quant.atomic import Replacement\n"
        "with Replacement(sys.argv[1]) as new:\n"
        "    new.file.write(b'half a file'); print('written', flush=True); time.sleep(60)\n"
    )
    path = tmp_path / "x"
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"written\n"
    with pytest.raises(InvalidRequest, match="x is being written by another process"), Replacement(path):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert names(tmp_path) == [".x.part"]
    with Replacement(path) as new:
        new.file.write(b"new")
        new.commit()
    assert path.read_bytes() == b"new" and names(tmp_path) == ["x"]


def test_what_the_leftover_is_linked_to_stays(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    os.link(tmp_path / "precious", tmp_path / ".x.part")
    with whole_file(tmp_path / "x") as file:
        file.write(b"new")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    (tmp_path / ".x.part").symlink_to("precious")
    with pytest.raises(OSError), whole_file(tmp_path / "x"):
        pass
    assert (tmp_path / "precious").read_bytes() == b"precious"
    (tmp_path / ".x.part").unlink()
    os.mkfifo(tmp_path / ".x.part")
    with pytest.raises(InvalidRequest, match="in the way"), whole_file(tmp_path / "x"):
        pass


@pytest.mark.parametrize("name", ["a" * 249, "a" * 255, "é" * 127, "🦜" * 63 + "abc"])
def test_names_as_long_as_they_may_be(tmp_path: Path, name: str) -> None:
    with whole_file(tmp_path / name) as file:
        file.write(b"new")
        assert names(tmp_path) == [part_name(name)]
    assert (tmp_path / name).read_bytes() == b"new"
    assert part_name(name) != part_name(name[:-1] + "b")


def test_a_folder_that_takes_no_files_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert new_file(tmp_path / "x", force=False, kept={}) == tmp_path / "x"
    asked = []
    monkeypatch.setattr(os, "access", lambda *args: asked.append(args))  # root may write everywhere
    with pytest.raises(InvalidRequest, match="x cannot be written: no files may be made in its folder"):
        new_file(tmp_path / "x", force=True, kept={})
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]


def test_what_there_is_no_room_for_is_named(tmp_path: Path) -> None:
    import resource  # where there are locks, there is this

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "model.pth"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError, match=re.escape(str(path))) as caught, whole_file(path) as file:
            file.write(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG and not list(tmp_path.iterdir())
