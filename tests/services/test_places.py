"""Places that environment variables name: what is said of those that cannot be used, and what of them is left."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
from cli_runner import rwkv_inside
from links import link

from rwkvcli.errors import UsageError
from rwkvcli.services import hub_cache, kept
from rwkvcli.services.places import Place

not_on_windows = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows takes any name for another user's folder, and has its own words"
)
CHAT = ("chat", "trip", "-m", "demo", "--max-tokens", "1")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place in an empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RWKV_HERE", raising=False)
    (tmp_path / "file").write_text("x")
    return Place("RWKV_HERE", "folder for tests", lambda: tmp_path / "default")


def said(place: Place, action: object) -> tuple[str, str | None]:
    with pytest.raises(UsageError) as caught:
        action()  # type: ignore[operator]
    assert caught.value.exit_code == 2
    return str(caught.value), caught.value.hint


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("file", "not a folder"),
        ("file/below", "not a folder"),
        pytest.param("a" * 300, "file name too long", marks=not_on_windows),
        pytest.param("~nobody-here/x", "there is no such home folder", marks=not_on_windows),
    ],
)
def test_a_place_that_can_be_no_folder(
    place: Place, asked: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RWKV_HERE", asked)
    expected = (f"RWKV_HERE={asked}: {reason}", "RWKV_HERE names the folder for tests")
    assert said(place, place.check) == expected
    assert said(place, lambda: place.made(place.path())) == expected
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_a_place_on_a_disk_that_is_not_there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    link(Path("link"), "nowhere")
    monkeypatch.setenv("RWKV_HERE", "link")
    expected = ("RWKV_HERE=link: not a folder", "RWKV_HERE names the folder for tests")
    assert said(place, place.check) == said(place, lambda: place.made(place.path())) == expected
    assert sorted(path.name for path in Path().iterdir()) == ["file", "link"]


def test_a_place_that_may_not_be_written_to(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    hint = "RWKV_HERE names the folder for tests"
    assert said(place, place.check) == (f"{place.path()}: permission denied", hint)
    monkeypatch.setenv("RWKV_HERE", "x")
    assert said(place, place.check) == ("RWKV_HERE=x: permission denied", hint)
    assert not Path("x").exists()
    # of what is in it, that is named
    assert said(place, lambda: place.made(Path("x/y"))) == (f"{Path('x/y')}: permission denied", hint)


def test_a_place_that_is_not_there_is_made_when_it_is_used(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.check()
    assert not place.path().exists()
    assert place.made(place.path() / "a" / "b", 0o700).is_dir()
    place.check()
    monkeypatch.setenv("RWKV_HERE", "~/x")
    monkeypatch.setenv("USERPROFILE" if sys.platform == "win32" else "HOME", str(Path.cwd()))
    assert place.path() == Path.cwd() / "x"


def test_a_disk_that_is_not_there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows a path has a root of its own on every disk; here it is made to be missing."""
    monkeypatch.setattr(Path, "exists", lambda _: False)
    monkeypatch.setattr("rwkvcli.services.places.is_there", lambda _: False)
    assert said(place, place.check) == (
        f"{place.path()}: {os.strerror(errno.ENOENT).lower()}",
        "RWKV_HERE names the folder for tests",
    )
    monkeypatch.setenv("HF_HOME", "somewhere")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    message, hint = said(place, hub_cache.free_disk)
    assert message == f"{Path('somewhere/hub')}: there is no such disk"
    assert hint == "HF_HOME names the folder for downloads, RWKV_MODELS that for what is made of them"


@pytest.mark.parametrize("default", [Path("~/.local/share/rwkv"), None])
def test_a_user_without_a_home_folder(default: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def usual() -> Path:
        if default is None:
            raise RuntimeError("could not determine the home directory")
        return default  # as older versions of platformdirs have it

    monkeypatch.delenv("RWKV_HERE", raising=False)
    place = Place("RWKV_HERE", "folder for tests", usual)
    expected = ("HOME is not set, and this user has no home folder", "RWKV_HERE names the folder for tests")
    assert said(place, place.path) == said(place, place.check) == expected
    assert (place.is_known(), place.told()) == (False, "nowhere: neither HOME nor RWKV_HERE is set")
    monkeypatch.setenv("RWKV_HERE", "x")
    assert (place.is_known(), place.told()) == (True, "x")


def test_without_a_home_folder_all_that_needs_none_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(*_: object, **__: object) -> Path:
        raise RuntimeError("could not determine the home directory")

    for kind in ("config", "data", "cache"):
        monkeypatch.setattr(f"platformdirs.user_{kind}_path", nowhere)
    nothing = {"RWKV_CONFIG": "", "RWKV_SESSIONS": "", "RWKV_MODELS": ""}
    works = (("tokenize", "-m", "demo", "x"), ("list",), ("doctor",), ("config", "list"), ("chat", *CHAT[2:]))
    for args in works:
        done = rwkv_inside(*args, stdin="Hello\n", cwd=tmp_path, env=nothing)
        assert (done.code, "error" in done.err) == (0, False), args
    refused = (("config", "set", "threads", "1"), CHAT, ("sessions", "list"))
    for args in refused:
        done = rwkv_inside(*args, stdin="Hello\n", cwd=tmp_path, env=nothing)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("error: HOME is not set, and this user has no home folder\nhint: RWKV_")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not ask HOME where settings are")
def test_a_home_that_is_no_folder_holds_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    there = {"HOME": str(tmp_path / "file"), "XDG_CONFIG_HOME": "", "RWKV_CONFIG": ""}
    done = rwkv_inside("tokenize", "-m", "demo", "x", env=there)
    assert (done.code, done.out, done.err) == (0, "120\n", "")
    done = rwkv_inside("config", "set", "threads", "1", env=there)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {tmp_path / 'file'}/.config/rwkv/config.toml: not a folder\n")


def test_a_full_disk_is_not_a_wrong_place(place: Place) -> None:
    with pytest.raises(OSError, match="full") as caught, place.in_use():
        raise OSError(errno.ENOSPC, "full")
    assert caught.value.errno == errno.ENOSPC


def test_a_conversation_that_cannot_be_kept_does_not_begin(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    homeless = () if sys.platform == "win32" else (("~nobody-here", "there is no such home folder"),)
    for asked, reason in (("file", "not a folder"), *homeless):
        done = rwkv_inside(*CHAT, stdin="Hello\n", cwd=tmp_path, env={"RWKV_SESSIONS": asked})
        assert (done.code, done.out) == (2, "")
        assert done.err == (
            f"error: RWKV_SESSIONS={asked}: {reason}\n"
            "hint: RWKV_SESSIONS names the folder for conversations; --no-save keeps none\n"
        )
        for more in ((), ("--json",)):
            listed = rwkv_inside("sessions", "list", *more, cwd=tmp_path, env={"RWKV_SESSIONS": asked})
            assert (listed.code, listed.out, listed.err) == (2, "", done.err)
    unnamed = rwkv_inside("chat", *CHAT[2:], stdin="Hello\n", cwd=tmp_path, env={"RWKV_SESSIONS": "file"})
    assert unnamed.code == 0  # nothing of it is kept
    assert (tmp_path / "file").read_text() == "x"


def test_a_configuration_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("threads = 2\n")
    hint = "hint: RWKV_CONFIG names the file of your defaults\n"
    for args in (("config", "set", "threads", "1"), ("config", "list"), ("tokenize", "-m", "demo", "x")):
        for asked, reason in ((".", "is a directory"), ("file/x", "not a folder")):
            done = rwkv_inside(*args, cwd=tmp_path, env={"RWKV_CONFIG": asked})
            assert (done.code, done.out) == (2, "")
            assert done.err == f"error: RWKV_CONFIG={asked}: {reason}\n{hint}"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_may_not_be_looked_into_is_told_with_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("RWKV_MODELS", str(tmp_path / "models"))

    def refused(path: Path, _pattern: str) -> list[Path]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))  # root may look into everything

    monkeypatch.setattr(Path, "glob", refused)
    message = f"{tmp_path / 'hub'}: permission denied"
    for action in (hub_cache.downloads, hub_cache.partials):
        with pytest.raises(UsageError) as caught:
            action()
        assert (str(caught.value), caught.value.hint) == (
            message, "HF_HOME names another folder for downloads"
        )  # fmt: skip
    with pytest.raises(UsageError, match=r"^RWKV_MODELS=.*: permission denied$"):
        kept.kept()
