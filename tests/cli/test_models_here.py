"""What is here and what is on the Hub: `list`, `verify`, `rm`, remote `show` and `doctor`, names with odd characters."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cli_runner import HUB_LINKS, KNOWS_HOMES, Outcome
from hub_client import ANSWER, G1, OLD, Client
from hub_server import COMMIT, Hub, HubFile, Repo
from quant_models import quantized

from quant.synthetic import SyntheticModel, synthetic_arch, write_safetensors
from rwkvcli.services import fitting
from rwkvcli.services.locks import locked


def made_of(repo: str, client: Client) -> Path:
    """The one model file that was made of a repository's files."""
    (found,) = (client.home / "models" / repo).glob("*/*.safetensors")
    return found


def test_percent_signs_and_folders_in_names(hub: Hub, client: Client, pth: Path, links: bool) -> None:
    file = "sub/RWKV-4-Raven-x-Eng98%-Other2%25.pth"
    hub.repos["a/b"] = Repo({file: HubFile(pth.read_bytes())})
    assert client("pull", f"a/b:{file}").out == f"{client.path('a/b', file)}\n"
    assert client("pull", "a/b", "--quantize", "int8").code == 0
    assert client("generate", "-m", f"a/b:{file}", *ANSWER).code == 0
    assert client("rm", made_of("a--b", client), "--yes").code == 0
    name = Path(file).name
    assert client.files() == ([hub.repos["a/b"].files[file].etag] if links else [name, f"etag of {name}"])
    assert client("rm", f"a/b:{file}", "--yes").code == 0
    assert client.files() == []


def test_removing(hub: Hub, client: Client) -> None:
    client("pull", "g1-0.1b", "--quantize", "int8")
    client("pull", "g1-0.1b", "--quantize", "int4")
    refused = client("rm", "g1-0.1b")
    assert (refused.code, refused.out) == (2, "")
    assert "there is no terminal to ask on: --yes says yes" in refused.err
    assert client("rm", "g1-0.1b-int4", "--yes").code == 0
    assert [
        json.loads(line)["what"]
        for line in client("rm", "g1-0.1b", "--source", "--yes", "--json").out.splitlines()
    ] == ["checkpoint"]
    assert client("generate", "-m", "g1-0.1b", *ANSWER).code == 0
    assert client("rm", "g1-0.1b", "--source", "--yes") == Outcome(
        3, "", "error: no download of g1-0.1b is on this machine\nhint: there is g1-0.1b-int8@20260110\n"
    )
    assert client("rm", "g1-0.1b@20260110", "--yes").code == 0
    assert client.files() == []
    assert not list((client.home / "models").iterdir())
    for name in ("demo", client.home):
        assert client("rm", name, "--yes").code in (2, 3)


def test_removing_by_the_path_that_is_listed(
    hub: Hub, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RWKV_MODELS", "models")
    monkeypatch.setenv("HF_HOME", ".")
    client("pull", "g1-0.1b", "--quantize", "int8")
    for entry in json.loads(client("list", "--json").out)[:-1]:
        assert client("rm", entry["path"], "--yes").code == 0
    assert client.files() == []


def test_downloads_need_no_place_for_what_is_made_of_them(
    hub: Hub, client: Client, pth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(*_: object, **__: object) -> Path:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr("platformdirs.user_cache_path", nowhere)
    monkeypatch.delenv("RWKV_MODELS")
    hub.repos["a/b"] = Repo({"m.pth": HubFile(pth.read_bytes())})
    path = client.path("a/b", "m.pth")
    assert client("pull", "a/b:m.pth") == Outcome(0, f"{path}\n", "")
    assert client("show", "a/b:m.pth").code == client("list").code == client("verify", "a/b:m.pth").code == 0
    assert client("rm", "a/b:m.pth", "--yes").code == 0
    assert not path.exists()
    refused = client("pull", "a/b:m.pth", "--quantize", "int8")
    assert refused == Outcome(
        2,
        "",
        "error: HOME is not set, and this user has no home folder\n"
        "hint: RWKV_MODELS names the folder for what is made of downloads\n",
    )


@KNOWS_HOMES
def test_a_cache_below_no_home_folder_is_none(
    hub: Hub, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["a/b"] = Repo({"m.pth": HubFile(b"x")})
    monkeypatch.setenv("HF_HOME", "~nobody-here")
    monkeypatch.chdir(tmp_path)
    assert client("pull", "a/b:m.pth") == Outcome(
        2,
        "",
        "error: ~nobody-here/hub: there is no such home folder\n"
        "hint: HF_HOME names another folder for downloads\n",
    )
    assert not list(tmp_path.glob("~*"))


def test_what_a_killed_process_was_making_goes_with_the_download(hub: Hub, client: Client) -> None:
    client("pull", "g1-0.1b", "--quantize", "int8")
    made = client.made(OLD, "int8")
    half = made.with_name(f".{made.name}.part")
    made.rename(half)
    with locked(half.with_name("lock")):  # it goes on
        assert client("rm", "g1-0.1b", "--yes").code == 0
        assert half.exists()
    client("pull", "g1-0.1b")
    assert client("rm", "g1-0.1b", "--yes").code == 0
    assert client.files() == [] and not list((client.home / "models").iterdir())


def test_a_blob_that_another_name_has_stays(hub: Hub, client: Client, pth: Path) -> None:
    hub.repos["a/b"] = Repo({"m.pth": HubFile(pth.read_bytes()), "sub/m.pth": HubFile(pth.read_bytes())})
    client("pull", "a/b:m.pth")
    client("pull", "a/b:sub/m.pth")
    assert client("rm", "a/b:m.pth", "--yes").code == 0
    assert client.path("a/b", "sub/m.pth").read_bytes() == pth.read_bytes()
    assert not client.path("a/b", "m.pth").exists()
    assert client("rm", "a/b", "--yes").code == 0
    assert client.files() == []


@HUB_LINKS
def test_bytes_that_repositories_share_go_with_the_last(hub: Hub, client: Client, pth: Path) -> None:
    shared = pytest.importorskip(
        "huggingface_hub.utils._shared_blobs"
    )  # newer versions share what Xet brings
    for repo in ("a/b", "a/c"):
        hub.repos[repo] = Repo({"m.pth": HubFile(pth.read_bytes())})
        blob = Path(client("pull", repo).out.strip()).resolve()
        assert shared.publish_blob_to_shared_store(
            blob_path=str(blob),
            xet_hash="5" * 64,
            cache_dir=client.home / "hub",
            expected_size=blob.stat().st_size,
        )
    assert client("rm", "a/b", "--yes").code == 0
    assert client.path("a/c", "m.pth").read_bytes() == pth.read_bytes()
    assert "5" * 64 in client.files()
    assert client("rm", "a/c", "--yes").code == 0
    assert "5" * 64 not in client.files()


def test_what_other_programs_downloaded_is_not_listed_but_can_be_named(hub: Hub, client: Client) -> None:
    other = HubFile(b"\x02" + b"\0" * 7 + b"{}")
    hub.repos["a/b"] = Repo({"llama.safetensors": other})
    client("pull", "a/b")
    assert [item["name"] for item in json.loads(client("list", "--json").out)] == ["demo"]
    assert client("rm", "a/b", "--yes").code == 0
    assert client.files() == []


def flip(path: Path) -> None:
    """Change one bit, as a failing disk does."""
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.usefixtures("links")
def test_damage_is_found_and_never_made_into_anything(hub: Hub, client: Client) -> None:
    nothing = client("verify")
    assert (nothing.code, nothing.out) == (0, "")
    assert nothing.err == "nothing is here to compare: `rwkv pull` brings models\n"
    path = Path(client("pull", "g1-0.1b", "--quantize", "int8").out.strip())
    done = client("verify")
    assert (done.code, done.err) == (0, "")
    assert done.out == "g1-0.1b-int8@20260110: int8: sound\ng1-0.1b@20260110: checkpoint: sound\n"
    flip(path)
    done = client("verify", "g1-0.1b")
    assert (done.code, done.out.splitlines()[0]) == (4, "g1-0.1b-int8@20260110: int8: damaged")
    assert done.err.splitlines() == [
        f"error: 1 damaged: {path}", "hint: remove it with `rwkv rm g1-0.1b-int8@20260110`, and pull it again",
    ]  # fmt: skip
    client("rm", "g1-0.1b-int8", "--yes")
    flip(client.path(G1, OLD))
    refused = client("pull", "g1-0.1b", "--quantize", "int8")
    assert (refused.code, refused.out) == (4, "")
    told, error, _ = refused.err.splitlines()
    assert told == f"the download is kept, 1.08 MB: `rwkv rm {G1}:{OLD} --source` removes it"
    assert error.startswith(f"error: {client.path(G1, OLD)}")
    assert not list(client.home.glob("models/*"))
    assert client("verify", "g1-0.1b").code == 4


def test_every_path_is_verified(client: Client, pth: Path, tmp_path: Path) -> None:
    bad, worse = tmp_path / "bad.pth", tmp_path / "worse.pth"
    bad.write_bytes(pth.read_bytes()[:-100])
    worse.write_bytes(b"")
    done = client("verify", bad, pth, "--json")
    assert [json.loads(line)["result"] for line in done.out.splitlines()] == ["refused", "sound"]
    assert done.code == 4 and done.err.startswith(f"error: {bad} is truncated")
    done = client("verify", bad, worse, pth)
    assert done.code == 4 and done.out.splitlines()[-1].startswith(f"{pth}: sound, sha256 ")
    assert done.err == f"error: 2 refused: {bad}, {worse}\n"
    assert client("verify", bad).out == ""


@pytest.mark.parametrize(
    "odd",
    [
        {"sums": {"int8": 5}},
        {"sums": 5},
        {"etag": "\ud800"},
        {"nbytes": "x"},
        {"file": 5},
        {"revisions": [1]},
    ],
)
def test_a_damaged_record_is_none(hub: Hub, client: Client, odd: dict[str, object]) -> None:
    path = Path(client("pull", "g1-0.1b", "--quantize", "int8").out.strip())
    record = path.with_name("model.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | odd))
    for args in (["list"], ["verify"], ["show", "g1-0.1b"]):
        assert client(*args).code == 0
    assert client("generate", "-m", "g1-0.1b", *ANSWER).code == 3
    assert client("pull", "g1-0.1b", "--quantize", "int8").code == 0  # which writes it anew
    assert client("generate", "-m", "g1-0.1b", *ANSWER).code == 0


def test_a_header_is_all_that_is_read_of_a_remote_file(
    hub: Hub, client: Client, pth: Path, model: Path, tmp_path: Path
) -> None:
    quantized(pth, tmp_path / "q.safetensors", "int4")
    repo = Repo({"q.safetensors": HubFile((tmp_path / "q.safetensors").read_bytes())})
    hub.repos["a/b"] = repo
    local = json.loads(client("show", tmp_path / "q.safetensors", "--tensors", "--json").out)
    for ignores in (False, True):
        repo.files["q.safetensors"].ignores_range = ignores
        done = client("show", "a/b:q.safetensors", "--tensors", "--json")
        assert (done.code, done.err) == (0, "")
        assert json.loads(done.out) == {**local, "path": "a/b:q.safetensors"}
    asked = [request.range for request in hub.downloads() if request.path.startswith("/cdn/")]
    assert asked[0] == "bytes=0-7"
    assert client.files() == ["q.safetensors"]  # the local one
    repo.files["x.safetensors"] = HubFile(b"\xff" * 100)
    done = client("show", "a/b:x.safetensors")
    assert done == Outcome(4, "", "error: a/b:x.safetensors is not a safetensors file\n")
    repo.files["y.safetensors"] = HubFile(b"\2" + b"\0" * 7 + b"[]" + b"\0" * 50)
    assert client("show", "a/b:y.safetensors").err.startswith("error: a/b:y.safetensors: ")
    # a model file runs as it is
    assert client("generate", "-m", "a/b:q.safetensors", "x").err.endswith("`rwkv pull a/b:q.safetensors`\n")
    assert client("pull", "a/b:q.safetensors").code == 0
    assert client("generate", "-m", "a/b:q.safetensors", *ANSWER).code == 0


def test_the_arithmetic_before_anything_is_loaded(
    hub: Hub, client: Client, pth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, tensors = tmp_path / "q.safetensors", tmp_path / "c.safetensors"
    quantized(pth, q, "int4")
    write_safetensors(tensors, SyntheticModel(synthetic_arch("7", 2, 128, 256, 64), 0), "bf16")
    hub.repos["a/b"] = Repo({})
    found = json.loads(client("doctor", "g1-0.1b", "--json").out)["model"]
    assert found["download_bytes"] == found["source_bytes"] == pth.stat().st_size
    assert [choice["kind"] for choice in found["choices"]] == ["int4", "int5", "int6", "int8"]
    assert hub.downloads() == []
    exact = json.loads(client("doctor", pth, "--json").out)["model"]
    assert (exact["exact"], exact["download_bytes"]) == (True, 0)
    for about, sure in zip(found["choices"], exact["choices"], strict=True):
        assert about["bytes"] >= 0.9 * sure["bytes"]
    # of a safetensors file on the Hub the header tells
    for name, source in (("c.safetensors", tensors), ("q.safetensors", q)):
        hub.repos["a/b"].files[name] = HubFile(source.read_bytes())
        there = json.loads(client("doctor", f"a/b:{name}", "--json").out)["model"]
        here = json.loads(client("doctor", source, "--json").out)["model"]
        assert there["download_bytes"] == source.stat().st_size
        for key in ("needed_bytes", "bytes_per_token", "source_bytes", "exact"):
            assert there.get(key) == here.get(key)
        if "choices" in here:
            assert [c["needed_bytes"] for c in there["choices"]] == [
                c["needed_bytes"] for c in here["choices"]
            ]
    monkeypatch.setattr(fitting, "free_memory", lambda: 1000)
    text = client("doctor", "g1-0.1b").out
    assert text.count("it does not fit") == 4
    assert "there is room" in text


def test_what_is_here_keeps_its_name_when_the_repository_goes_on(
    hub: Hub, client: Client, pth: Path, model: Path
) -> None:
    repo = Repo({"m.safetensors": HubFile(model.read_bytes()), "x.pth": HubFile(pth.read_bytes())})
    hub.repos["a/b"] = repo
    client("pull", "a/b:m.safetensors")
    repo.commit = "f" * 40
    client("pull", "a/b:x.pth")  # another file: the branch is at another commit now
    assert client("generate", *ANSWER).err == "no -m: using a/b:m.safetensors\n"
    hub.requests.clear()
    for entry in json.loads(client("list", "--json").out):
        assert json.loads(client("show", entry["name"], "--json").out)["path"] == entry["path"]
    assert hub.requests == []
    refused = client("show", "a/b:m.safetensors@main", "--offline")
    assert (refused.code, refused.out) == (3, "")


def test_what_was_pulled_at_a_revision_has_the_name_that_is_listed(
    hub: Hub, client: Client, pth: Path
) -> None:
    hub.repos["a/b"] = Repo({"x.pth": HubFile(pth.read_bytes())}, revisions=("main", "dev"))
    client("pull", "a/b:x.pth@dev")
    assert client("show", "a/b:x.pth").code == client("show", "a/b").code == 0
    # made of what is here, it says which commit that is
    path = client("pull", "a/b:x.pth", "--quantize", "int8", "--discard-source", "--offline").out.strip()
    assert client("generate", *ANSWER).err == "no -m: using a/b:x.pth\n"
    told = json.loads(client("show", "a/b", "--json").out)
    assert (told["path"], told["source"]["revision"]) == (path, COMMIT)


@pytest.mark.usefixtures("links")
def test_one_download_of_several_commits_is_of_each(hub: Hub, client: Client, pth: Path) -> None:
    repo = Repo({"x.pth": HubFile(pth.read_bytes())})
    hub.repos["a/b"] = repo
    client("pull", "a/b:x.pth")
    repo.commit = "f" * 40
    hub.requests.clear()
    client("pull", f"a/b:x.pth@{repo.commit}")
    assert hub.downloads() == []
    for revision in ("main", COMMIT, repo.commit):
        assert client("verify", f"a/b:x.pth@{revision}").out == "a/b:x.pth: checkpoint: sound\n"
    assert client("verify", "a/b:x.pth@v1").code == 3
    assert client("rm", f"a/b:x.pth@{COMMIT}", "--yes").code == 0
    assert client.files() == []


def test_a_disk_without_links_holds_a_download_once(
    hub: Hub, client: Client, pth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *_: False)
    repo = Repo({"m.pth": HubFile(pth.read_bytes())})
    hub.repos["a/b"] = repo
    assert client("pull", "a/b:m.pth").out == f"{client.path('a/b', 'm.pth')}\n"
    assert client.files() == ["etag of m.pth", "m.pth"]
    hub.requests.clear()
    assert client("pull", "a/b:m.pth").code == 0
    assert hub.downloads() == []
    # another file under the same name and of the same size, which no link tells
    repo.files["m.pth"] = HubFile(bytes(len(pth.read_bytes())))
    repo.commit = "f" * 40
    path = Path(client("pull", "a/b:m.pth").out.strip())
    assert path.read_bytes() == repo.files["m.pth"].data
    assert client("verify", "a/b").out == "a/b:m.pth: checkpoint: sound\n" * 2
    assert client("rm", "a/b:m.pth", "--yes").code == 0
    assert client.files() == []


@pytest.mark.parametrize("note", [None, b"", b"../../../x", b"\xff", b"no checksum"])
def test_a_checksum_that_was_not_noted_is_not_known(
    hub: Hub, client: Client, pth: Path, monkeypatch: pytest.MonkeyPatch, note: bytes | None
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *_: False)
    hub.repos["a/b"] = Repo({"m.pth": HubFile(pth.read_bytes())})
    client("pull", "a/b")
    (noted,) = client.home.glob("hub/models--a--b/etags/*/m.pth")
    noted.unlink()
    if note is not None:
        noted.write_bytes(note)
    assert client("verify", "a/b").out == "a/b:m.pth: checkpoint: no checksum is known of it\n"
    hub.requests.clear()
    assert client("pull", "a/b").code == 0
    assert hub.downloads() == []
    assert client("rm", "a/b", "--yes").code == 0
    assert client.files() == []


@pytest.mark.usefixtures("links")
def test_half_a_copy_of_a_cache_is_brought_whole(hub: Hub, client: Client) -> None:
    path = Path(client("pull", "g1-0.1b").out.strip())
    os.truncate(path, 1000)
    assert "download  1.08 MB" in client("pull", "g1-0.1b", "--dry-run").out
    assert client("pull", "g1-0.1b").out == f"{path}\n"
    assert path.read_bytes() == hub.repos[G1].files[OLD].data


@HUB_LINKS
def test_bytes_without_a_snapshot_are_here(hub: Hub, client: Client) -> None:
    path = Path(client("pull", "g1-0.1b").out.strip())
    path.unlink()  # copied without its links
    assert client("pull", "g1-0.1b", "--dry-run").out.split() == [
        "g1-0.1b:", "is", "here", "1.08", "MB", f"{G1}:{OLD}",
    ]  # fmt: skip
    hub.requests.clear()
    assert client("pull", "g1-0.1b").out == f"{path}\n"
    assert hub.downloads() == []
