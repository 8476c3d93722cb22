"""Files that take another's place: whole or not at all, by one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from links import link

from quant.atomic import Replacement, is_name_on_windows, new_file, part_name, replaceable, whole_file
from quant.errors import InvalidRequest
from quant.mapped_file import MappedFile


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
    assert process.stdout is not None and process.stdout.readline().strip() == b"written"
    with pytest.raises(InvalidRequest, match="x is being written by another process"), Replacement(path):
        pass
    process.kill()
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


def test_a_leftover_that_is_no_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / ".x.part").mkdir()
    with pytest.raises(OSError), whole_file(tmp_path / "x"):
        pass
    (tmp_path / ".x.part").rmdir()
    (tmp_path / "precious").write_bytes(b"precious")
    link(tmp_path / ".x.part", "precious")
    with pytest.raises((OSError, InvalidRequest)), whole_file(tmp_path / "x"):
        pass
    assert (tmp_path / "precious").read_bytes() == b"precious"
    (tmp_path / ".x.part").unlink()
    if sys.platform == "win32":
        return  # which has no pipes with names in folders
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


def test_errors_name_the_folder_or_the_file_and_not_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error_of(path: Path) -> OSError:
        with pytest.raises(OSError, match=r".") as caught, whole_file(path):
            pass
        return caught.value

    assert error_of(tmp_path / "nowhere" / "x").filename == str(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert error_of(tmp_path / "file" / "x").filename == str(tmp_path / "file")
    link(tmp_path / "dangling", tmp_path / "nowhere" / "x")
    assert error_of(tmp_path / "dangling").filename == str(tmp_path / "nowhere")

    def refused(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "hidden")

    monkeypatch.setattr("quant.atomic.open_lockable", refused)
    assert error_of(tmp_path / "x").filename == str(tmp_path / "x")


def test_a_file_without_a_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for force in (False, True):
        with pytest.raises(InvalidRequest, match=r"^the name of the file is empty$"):
            new_file("", force=force, kept={})
    with pytest.raises(InvalidRequest, match=r"^the name of the file is empty$"), whole_file(""):
        pass
    assert names(tmp_path) == ["folder"]


@pytest.mark.skipif(sys.platform == "win32", reason="a folder that is in use is not deleted there")
def test_a_working_folder_that_was_deleted_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for refuse in (lambda: new_file("x", force=False, kept={}), lambda: replaceable("../x")):
        with pytest.raises(InvalidRequest, match=r"x cannot be written: the working folder was deleted$"):
            refuse()


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files there")
def test_what_there_is_no_room_for_is_named(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "model.pth"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError, match=re.escape(str(path))) as caught, whole_file(path) as file:
            file.write(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG and not list(tmp_path.iterdir())


def test_two_writers_wait_for_each_other(tmp_path: Path) -> None:
    program = (
        "import sys; from quant.atomic import whole_file\n"
        "for _ in range(30):\n"
        "    with whole_file(sys.argv[1]) as file:\n"
        "        file.write(sys.argv[2].encode() * 10_000)\n"
    )
    path = tmp_path / "x"
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), letter]) for letter in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert path.read_bytes() in (b"a" * 10_000, b"b" * 10_000, b"c" * 10_000)
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize(
    ("name", "can_be"),
    [
        *((name, True) for name in ("a", "a b.c", ".a", "console", "com", "com10", "nul1.txt", "a.nul", "é")),
        *((name, False) for name in ("a.", "a ", "a:b", "a?", "a*", 'a"', "a<b", "a>b", "a|b", "a\tb", "a/b", "a\\b")),
        *((name, False) for name in ("con", "NUL", "nul.txt", "Com1", "lpt9.safetensors", "aux .x", "COM²", "conin$")),
    ],
)  # fmt: skip
def test_names_that_windows_allows(name: str, can_be: bool) -> None:
    assert is_name_on_windows(name) is can_be


@pytest.mark.skipif(sys.platform != "win32", reason="files that are open can be replaced here")
@pytest.mark.parametrize("how", ["open", "mapped"])
def test_a_file_that_is_in_use_is_not_replaced_on_windows(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quant.windows._TRIES", 2)
    path = tmp_path / "x"
    path.write_bytes(b"old")
    said = r"x cannot be replaced: another program has it open$"
    with contextlib.ExitStack() as stack:
        if how == "open":
            stack.enter_context(path.open("rb"))
        else:
            stack.enter_context(MappedFile(path))
        with pytest.raises(InvalidRequest, match=said) as caught:
            new_file(path, force=True, kept={})
        assert caught.value.exit_code == 2 and "a running `rwkv`" in (caught.value.hint or "")
        with pytest.raises(InvalidRequest, match=said), Replacement(path, keep=True) as new:
            new.file.write(b"new")
            new.commit()
        assert path.read_bytes() == b"old" and names(tmp_path) == [".x.part", "x"]
    with Replacement(path, keep=True) as new:
        assert new.file.read() == b"new"  # nothing was lost
        new.commit()
    assert path.read_bytes() == b"new" and names(tmp_path) == ["x"]


@pytest.mark.skipif(sys.platform != "win32", reason="such names are as good as others here")
@pytest.mark.parametrize("name", ["nul", "com1.safetensors", "a:b", "a?"])
def test_a_name_that_windows_does_not_allow(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be written: Windows allows no such name"):
        new_file(f"{tmp_path}\\{name}", force=True, kept={})
