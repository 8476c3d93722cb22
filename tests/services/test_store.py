"""MODEL names: what is a path, an alias, a Hub reference, and what is said of the rest."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from rwkvcli.errors import ModelNotFound
from rwkvcli.services.hub_cache import cached_path
from rwkvcli.services.store import Reference, find_model, parse


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("owner/repo", Reference("owner/repo")),
        ("owner/repo:model.pth", Reference("owner/repo", "model.pth")),
        ("owner/repo:sub/model.pth@v1", Reference("owner/repo", "sub/model.pth", "v1")),
        ("owner/repo@refs/pr/1", Reference("owner/repo", None, "refs/pr/1")),
        ("BlinkDL/rwkv7-g1:rwkv7-g1d-0.4b.pth", Reference("BlinkDL/rwkv7-g1", "rwkv7-g1d-0.4b.pth")),
    ],
)
def test_references(name: str, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse(name) == reference
    assert str(reference) == name


@pytest.mark.parametrize("name", ["m.pth", "./m.pth", "sub/m.pth", "owner/repo:m.pth"])
def test_what_exists_is_a_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).touch()
    assert parse(name) == Path(name)
    found = find_model(name)
    assert (found.path, found.name, found.reference) == (Path(name), name, None)


@pytest.mark.parametrize(
    "name",
    [
        r"C:\models\x.pth",
        "C:/models/x.pth",
        "c:x.pth",
        r"models\x.pth",
        r"\\server\share\x.pth",
        r".\a\x.pth",
    ],
)
def test_a_path_of_windows_is_no_reference(name: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        parse(name)
    assert str(caught.value) == f"{name} does not exist"


def test_a_name_on_the_hub_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "m.pth").touch()
    for file in ("../m.pth", str(tmp_path / "m.pth"), "/m.pth"):
        assert cached_path(Reference("a/b", file)) is None


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USERPROFILE" if sys.platform == "win32" else "HOME", str(tmp_path))
    (tmp_path / "m.pth").touch()
    assert parse("~/m.pth") == tmp_path / "m.pth"


def test_demo_is_the_built_in_model_whatever_lies_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").touch()
    found = find_model("demo")
    assert found.path.name == "demo.safetensors"
    assert found.path.stat().st_size > 1_000_000
    assert parse("./demo") == Path("demo")


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("", "the name of the model is empty", None),
        ("nowhere.pth", "nowhere.pth does not exist", "a model is a path"),
        ("g1-1.5", "g1-1.5 does not exist", "did you mean g1-1.5b?"),
        ("wrold6-3b", "wrold6-3b does not exist", "did you mean world6-3b"),
        ("g1", "g1 does not exist", "did you mean g1-0.1b or g1-0.4b or g1-1.5b?"),
        ("small.pt", "small.pt does not exist", "did you mean small.pth?"),
        ("sub/nowhere.safetensors", "sub/nowhere.safetensors does not exist", "there is no folder sub"),
        ("./a/b", "./a/b does not exist", "there is no folder a"),
        ("a/b/c", "a/b/c does not exist", f"there is no folder {Path('a/b')}"),
        ("a/b/c/d.pth", "a/b/c/d.pth does not exist", "if it is on the Hub, write a/b:c/d.pth"),
        ("./b/c.pth", "./b/c.pth does not exist", "there is no folder b"),
        ("/a/b/c.pth", "/a/b/c.pth does not exist", f"there is no folder {Path('/a/b')}"),
        ("https://huggingface.co/a/b", "does not exist", "if it is on the Hub, write a/b"),
        ("https://huggingface.co/a/b/", "does not exist", "if it is on the Hub, write a/b"),
        ("https://hf.co/a/b/tree/main", "does not exist", "if it is on the Hub, write a/b"),
        (
            "https://hf.co/a/b/resolve/main/c/d%20e.pth?download=true",
            "does not exist",
            "if it is on the Hub, write a/b:c/d e.pth",
        ),
        ("https://hf.co/a/b/blob/v2/c.pth", "does not exist", "if it is on the Hub, write a/b:c.pth@v2"),
        ("https://example.org/c.pth", "does not exist", "there is no folder"),
        ("folder", "folder is a folder", "name the model file inside it"),
        ("some/folder", "some/folder is a folder here", "`some/folder:FILE` is a file on the Hub"),
        ("nul\0.pth", "nul\0.pth does not exist", None),
        ("x" * 5000, "xxx does not exist" if sys.platform == "win32" else "xxx: file name too long", None),
    ],
)
def test_what_is_nothing(
    name: str, message: str, hint: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.pth").touch()
    Path("folder").mkdir()
    Path("some/folder").mkdir(parents=True)
    with pytest.raises(ModelNotFound) as caught:
        parse(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    if hint:
        assert hint in (caught.value.hint or "")


def test_a_folder_that_may_not_be_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(ModelNotFound, match=r"^locked/a\.pth: permission denied$"):
        parse("locked/a.pth")
