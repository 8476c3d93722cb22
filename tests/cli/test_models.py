"""Short names, `pull --quantize`, `list`, `verify`, `rm`, remote `show` and `doctor`, and the default model: the real
huggingface_hub against a server of our own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from cli_runner import Outcome, Terminal, environment, start
from hub_client import Client
from hub_server import COMMIT, Hub, HubFile, Repo
from quant_models import quantized

from quant.container.reader import ModelFile
from quant.synthetic import SyntheticModel, synthetic_arch, write_safetensors
from rwkvcli.services import catalog, fitting

G1 = "BlinkDL/rwkv7-g1"
OLD = "rwkv7-g1c-0.1b-20260110-ctx8192.pth"
NEW = "rwkv7-g1d-0.1b-20260129-ctx8192.pth"
ODD = "rwkv7b-g1z-0.1b-20270101-ctx4096.pth"
ANSWER = ("--max-tokens", "3", "--seed", "1", "x")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


@pytest.fixture
def client(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], pth: Path
) -> Client:
    """Two dates of g1-0.1b, one of them of an odd architecture, and nothing here."""
    hub.repos[G1] = Repo(
        {
            OLD: HubFile(pth.read_bytes()),
            ODD: HubFile(b"not for us"),
            "README.md": HubFile(b"x", lfs=False),
        }
    )
    return Client(hub, tmp_path, monkeypatch, capfd)


@pytest.fixture(scope="session")
def second(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Another checkpoint of the same sizes."""
    from quant_models import checkpoint

    path = tmp_path_factory.mktemp("second") / "second.pth"
    return checkpoint(path, synthetic_arch("7", 2, 128, 256, 64), "bf16", seed=5).read_bytes()


def made(client: Client, file: str, kind: str) -> Path:
    """Where what was made of a file is kept."""
    (found,) = (client.home / "models").glob(f"*/*/{Path(file).stem}-{kind}.safetensors")
    return found


def made_of(repo: str, client: Client) -> Path:
    """The one model file that was made of a repository's files."""
    (found,) = (client.home / "models" / repo).glob("*/*.safetensors")
    return found


def test_a_name_that_is_here_starts_without_the_library(hub: Hub, client: Client) -> None:
    client("pull", "g1-0.1b", "--quantize", "int8")
    program = (
        "import sys; from rwkvcli.cli.app import main; code = main(sys.argv[1:])\n"
        "sys.exit(code or any(name in sys.modules for name in ('huggingface_hub', 'rich', 'filelock')))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, "generate", "-m", "g1-0.1b", *ANSWER],
        env=environment(**client.env), stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_short_name_is_pulled_made_into_a_model_and_found_again(hub: Hub, client: Client) -> None:
    done = client("pull", "g1-0.1b", "--quantize", "int8")
    path = made(client, OLD, "int8")
    assert (done.code, done.out) == (0, f"{path}\n")
    size = f"{len(hub.repos[G1].files[OLD].data) / 1e6:.2f} MB"
    assert done.err == f"the download is kept, {size}: `rwkv rm {G1}:{OLD} --source` removes it\n"
    hub.requests.clear()
    told = json.loads(client("show", "g1-0.1b", "--json").out)
    assert told["path"] == str(path)
    source = {"repo": G1, "file": OLD, "revision": COMMIT, "sha256": hub.repos[G1].files[OLD].etag}
    assert source.items() <= told["source"].items()
    by_path = client("generate", "-m", path, *ANSWER)
    for name in (
        "g1-0.1b",
        "G1-0.1B",
        "g1-0.1b-int8",
        "g1-0.1b@20260110",
        "g1-0.1b@g1c",
        f"{G1}:{OLD}",
        f"{G1}:{OLD}@main",
    ):
        assert client("generate", "-m", name, *ANSWER) == by_path
    assert hub.requests == []
    assert client("quantize", "g1-0.1b", "--to", "bf16", "--dry-run").code == 0  # of the download
    # nothing is done twice
    again = client("pull", "g1-0.1b-int8", "--json")
    assert json.loads(again.out) == {
        "name": "g1-0.1b-int8", "path": str(path), "bytes": path.stat().st_size, "quantized": "int8",
        "repo": G1, "file": OLD, "download": str(client.path(G1, OLD)),
    }  # fmt: skip
    assert hub.downloads() == []


def test_a_newer_file_is_looked_for_only_when_asked(hub: Hub, client: Client, second: bytes) -> None:
    client("pull", "g1-0.1b", "--quantize", "int8", "--discard-source")
    first = client("generate", "-m", "g1-0.1b", *ANSWER)
    hub.repos[G1].files[NEW] = HubFile(second)
    hub.requests.clear()
    assert client("generate", "-m", "g1-0.1b", *ANSWER) == first
    assert client("list").out.count("\n") == 3
    assert hub.requests == []
    line = client("list", "--remote", "g1").out.splitlines()[1]
    assert line.split("  ") == ["g1-0.1b", "2026-01-29", "1.08 MB", "an older one", f"{G1}:{NEW}"]
    assert hub.downloads() == []
    assert client("pull", "--update", "--discard-source").out == f"{made(client, NEW, 'int8')}\n"
    everything = client("list", "--remote")
    assert [line.split()[0] for line in everything.out.splitlines()] == ["name", "g1-0.1b"]
    assert "BlinkDL/rwkv-4-pile-1b5 is not there, or private" in everything.err.splitlines()
    assert client("list", "--remote", "raven").code == 3
    assert client("list", "--remote", "g1-0.1b", "--json").out.count('"here": "int8"') == 1
    assert client("generate", "-m", "g1-0.1b", *ANSWER) != first
    assert client("generate", "-m", "g1-0.1b@20260110", *ANSWER) == first
    assert client.path(G1, NEW).exists() is False


def test_a_conversation_stays_with_the_file_it_began_with(
    hub: Hub, client: Client, second: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    client("pull", "g1-0.1b-int8")
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b"Hello\n")))
    assert client("chat", "trip", "-m", "g1-0.1b", "--max-tokens", "3").code == 0
    hub.repos[G1].files[NEW] = HubFile(second)
    client("pull", "g1-0.1b-int8")
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b"Hello\n")))
    newest = client("chat", "g1-0.1b", "--max-tokens", "3")
    assert (newest.code, newest.err) == (0, "")
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b"And?\n")))
    assert client("chat", "trip", "--max-tokens", "3").code == 0
    assert json.loads(client("sessions", "list", "--json").out)[0]["model"] == "g1-0.1b-int8@20260110"


def test_what_the_hub_does_not_have(hub: Hub, client: Client) -> None:
    assert client("pull", "g1-1.5b") == Outcome(
        3, "", f"error: {G1} holds no g1-1.5b\nhint: its sizes are 0.1b\n"
    )
    assert client("pull", "g1-0.1b@20200101") == Outcome(
        3, "", f"error: {G1} holds no g1-0.1b@20200101\nhint: its dates are 20260110\n"
    )
    hub.requests.clear()
    assert client("show", "g1-1.4b").err.endswith(
        "hint: known sizes of g1 are 0.1b, 0.4b, 1.5b, 2.9b, 7.2b, 13.3b\n"
    )
    assert client("generate", "-m", "g1-0.4b", "x") == Outcome(
        3,
        "",
        "error: g1-0.4b is not on this machine\nhint: download it with `rwkv pull g1-0.4b --quantize int8`\n",
    )
    assert client("pull", "g1-0.1").err.endswith("hint: did you mean g1-0.1b?\n")
    assert hub.requests == []


def test_a_dry_run_fetches_nothing(hub: Hub, client: Client) -> None:
    done = client("pull", "g1-0.1b", "--quantize", "int4", "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0] == "g1-0.1b:"
    assert done.out.splitlines()[1].startswith("download   1.08 MB")
    told = json.loads(client("pull", "g1-0.1b", "--quantize", "int4", "--dry-run", "--json").out)
    assert (told["file"], told["to_download"]) == (OLD, len(hub.repos[G1].files[OLD].data))
    assert client.files() == []
    real = client("pull", "g1-0.1b", "--quantize", "int4")
    assert Path(real.out.strip()).stat().st_size <= told["to_write"]
    told = json.loads(client("pull", "g1-0.1b", "--quantize", "int4", "--dry-run", "--json").out)
    assert (told["to_download"], told["to_write"]) == (0, 0)


def test_percent_signs_and_folders_in_names(hub: Hub, client: Client, pth: Path) -> None:
    file = "sub/RWKV-4-Raven-x-Eng98%-Other2%25.pth"
    hub.repos["a/b"] = Repo({file: HubFile(pth.read_bytes())})
    assert client("pull", f"a/b:{file}").out == f"{client.path('a/b', file)}\n"
    assert client("pull", "a/b", "--quantize", "int8").code == 0
    assert client("generate", "-m", f"a/b:{file}", *ANSWER).code == 0
    assert client("rm", made_of("a--b", client), "--yes").code == 0
    assert client.files() == [hub.repos["a/b"].files[file].etag]
    assert client("rm", f"a/b:{file}", "--yes").code == 0
    assert client.files() == []


def test_a_tokenizer_goes_into_what_needs_one(hub: Hub, client: Client, tmp_path: Path) -> None:
    from quant_models import checkpoint
    from vocabularies import byte_level_json

    from quant.synthetic import synthetic_arch

    path = checkpoint(tmp_path / "p.pth", synthetic_arch("4", 1, 64, 400))
    hub.repos["BlinkDL/rwkv-4-pile-169m"] = Repo(
        {"RWKV-4-Pile-169M-20220807-8023.pth": HubFile(path.read_bytes())}
    )
    hub.repos["EleutherAI/gpt-neox-20b"] = Repo({"tokenizer.json": HubFile(byte_level_json(), lfs=False)})
    done = client("pull", "pile-169m", "--quantize", "int8")
    assert done.code == 0
    with ModelFile.open(done.out.strip()) as file:
        assert file.tokenizer_bytes() == byte_level_json()


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


def test_a_blob_that_another_name_has_stays(hub: Hub, client: Client, pth: Path) -> None:
    hub.repos["a/b"] = Repo({"m.pth": HubFile(pth.read_bytes()), "sub/m.pth": HubFile(pth.read_bytes())})
    client("pull", "a/b:m.pth")
    client("pull", "a/b:sub/m.pth")
    assert client("rm", "a/b:m.pth", "--yes").code == 0
    assert client.path("a/b", "sub/m.pth").read_bytes() == pth.read_bytes()
    assert not client.path("a/b", "m.pth").exists()
    assert client("rm", "a/b", "--yes").code == 0
    assert client.files() == []


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


def test_damage_is_found_and_never_made_into_anything(hub: Hub, client: Client) -> None:
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
    assert ": " in refused.err
    assert not list(client.home.glob("models/*"))
    assert client("verify", "g1-0.1b").code == 4


def test_the_disk_is_looked_at_before_the_first_byte(
    hub: Hub, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(hub.repos[G1].files[OLD].data)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size + 1000))
    for more in ([], ["--dry-run"]):
        done = client("pull", "g1-0.1b", "--quantize", "int8", *more)
        assert (done.code, done.out) == (5, "")
        assert f"error: {G1}:{OLD} needs 0.0 GB" in done.err
    assert hub.downloads() == []
    assert client("pull", "g1-0.1b").code == 0


def test_what_passes_is_tried_again(hub: Hub, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    hub.repos[G1].statuses = [500, 429]  # for the list, which the library asks for again
    hub.repos[G1].files[OLD].statuses = [429, 500, 503]
    done = client("pull", "g1-0.1b")
    assert done.code == 0
    tries = ["the Hub answered 500: trying again in 0 s", "the Hub answered 503: trying again in 0 s"]
    assert done.err.splitlines() == tries  # and 429 again by the library
    assert client.path(G1, OLD).read_bytes() == hub.repos[G1].files[OLD].data


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
    assert [choice["kind"] for choice in found["choices"]] == ["int4", "int8"]
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
    assert text.count("it does not fit") == 2
    assert "there is room" in text


def test_the_default_is_the_best_that_is_here(
    hub: Hub, client: Client, second: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for verb in ("generate", "chat"):
        done = client(verb, *(ANSWER if verb == "generate" else ()))
        assert (done.code, done.out) == (3, "")
        assert done.err.startswith("error: no model is on this machine\nhint: `rwkv pull g1-")
        assert "--quantize int" in done.err and "`-m demo`" in done.err
    assert client("--offline", "generate", "x").err.startswith(
        "error: no model is on this machine, and the network is off\nhint: without --offline: `rwkv pull g1-"
    )
    hub.repos[G1].files["rwkv7-g1d-0.4b-20260210-ctx8192.pth"] = HubFile(second)
    for name in ("g1-0.1b-int8", "g1-0.1b-int4", "g1-0.4b-int4"):
        assert client("pull", name, "--discard-source").code == 0
    hub.requests.clear()
    done = client("generate", *ANSWER, "--json")
    assert (done.code, done.err) == (0, "no -m: using g1-0.4b-int4@20260210\n")
    assert json.loads(done.out)["model"] == "g1-0.4b-int4@20260210"
    client("rm", "g1-0.4b", "--yes")
    assert client("generate", *ANSWER).err == "no -m: using g1-0.1b-int8@20260110\n"
    int4 = made(client, OLD, "int4").stat().st_size
    monkeypatch.setattr(fitting, "free_memory", lambda: int4)
    assert client("generate", *ANSWER).err == "no -m: using g1-0.1b-int4@20260110\n"
    monkeypatch.setenv("RWKV_MODEL", "demo")
    assert client("generate", *ANSWER).err == ""
    assert hub.requests == []


@pytest.mark.parametrize(
    ("memory", "disk", "name"),
    [
        (1, 99, "g1-0.1b"),
        (2.2, 99, "g1-0.4b"),
        (6, 99, "g1-1.5b"),
        (15, 99, "g1-2.9b"),
        (60, 99, "g1-13.3b"),
        (60, 5, "g1-1.5b"),
        (60, 0, "g1-0.1b"),
        (None, 99, "g1-1.5b"),
    ],
)
def test_the_offer_is_sized_to_the_machine(memory: float | None, disk: int, name: str) -> None:
    assert str(catalog.offer(None if memory is None else int(memory * 1e9), disk * 10**9)) == name


@pytest.mark.parametrize("answer", ["y", "n"])
def test_a_terminal_is_asked_once(hub: Hub, client: Client, answer: str) -> None:
    terminal = Terminal("generate", "-m", "g1-0.1b", *ANSWER, cwd=client.home, env=client.env)
    terminal.until("Go on? [Y/n] ")
    asked = terminal.screen()
    assert "g1-0.1b is not on this machine. To have it:" in asked
    assert f"{G1}:{OLD}" in asked.replace("\n", "")
    assert hub.downloads() == []
    terminal.child.send(f"{answer}\r")
    done = terminal.finish()
    if answer == "n":
        assert done.code == 3
        assert client.files() == []
        return
    assert done.code == 0
    assert made(client, OLD, "int8").is_file()
    assert not client.path(G1, OLD).exists()  # as it was said


def test_the_download_is_asked_about_on_a_terminal(hub: Hub, client: Client) -> None:
    terminal = Terminal("pull", "g1-0.1b-int8", cwd=client.home, env=client.env)
    terminal.until("Remove the download, 1.08 MB? [y/N] ")
    terminal.child.send("y\r")
    done = terminal.finish()
    assert (done.code, client.path(G1, OLD).exists()) == (0, False)
    assert made(client, OLD, "int8").is_file()


def test_a_killed_download_goes_on(hub: Hub, client: Client) -> None:
    file = hub.repos[G1].files[OLD]
    file.stall_after = 600_000
    process = start("pull", "g1-0.1b", env=environment(**client.env))
    folder = client.home / "hub" / f"models--{G1.replace('/', '--')}" / "blobs"
    until = time.monotonic() + 30
    while time.monotonic() < until and sum(p.stat().st_size for p in folder.glob("*.incomplete")) < 400_000:
        time.sleep(0.02)
    busy = client("rm", G1, "--interrupted", "--yes")
    assert (busy.code, busy.err.splitlines()[0]) == (
        2, f"error: a file of {G1} is being downloaded by another process",
    )  # fmt: skip
    process.kill()
    process.communicate()
    listed = client("list").out
    assert f"{G1}  interrupted" in listed
    assert client("rm", G1, "--source", "--yes").code == 3  # it is no download yet
    file.stall_after = None
    hub.requests.clear()
    assert client("pull", "g1-0.1b").code == 0
    assert client.path(G1, OLD).read_bytes() == file.data
    asked = [request.range for request in hub.requests if request.path.startswith("/cdn/")]
    assert asked[0] is not None and int(asked[0].removeprefix("bytes=").rstrip("-")) >= 400_000


STUCK = (
    "import sys, time; from rwkvcli.cli.watching import Bars\n"
    "Bars.quantizing = lambda self, progress: time.sleep(60)\n"
    "from rwkvcli.cli.app import main; sys.exit(main())"
)
"""The command, stuck while it quantizes."""


def test_another_process_is_waited_for_and_a_killed_one_blocks_nobody(hub: Hub, client: Client) -> None:
    args = ("pull", "g1-0.1b", "--quantize", "int8")
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    env = environment(**client.env)
    first = subprocess.Popen([sys.executable, "-P", "-c", STUCK, *args], env=env, **pipes)  # type: ignore[call-overload]
    until = time.monotonic() + 30
    while time.monotonic() < until and not list(client.home.glob("models/*/*/.*.part")):
        time.sleep(0.02)
    assert "int8" not in client("list").out
    second = start(*args, env=env)
    assert second.stderr is not None
    line = second.stderr.readline().decode()
    assert line == f"waiting: process {first.pid} is making {Path(OLD).stem}-int8.safetensors\n"
    assert second.poll() is None
    first.kill()
    first.communicate()
    out, err = second.communicate(timeout=60)
    assert (second.returncode, out.decode()) == (0, f"{made(client, OLD, 'int8')}\n"), err
    assert not list(client.home.glob("models/*/*/.*.part"))
    assert client("verify", "g1-0.1b").code == 0
    assert sum(request.path.startswith("/cdn/") for request in hub.requests) == 1


def test_a_full_disk_leaves_nothing_half_made(hub: Hub, client: Client) -> None:
    import resource

    client("pull", "g1-0.1b")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "rwkvcli", "pull", "g1-0.1b", "--quantize", "int8"],
        env=environment(**client.env),
        capture_output=True,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
        check=False,
    )
    assert (done.returncode, done.stdout) == (5, b""), done.stderr
    assert not list(client.home.glob("models/*"))
    # what an interrupted download left can go by itself
    part = client.path(G1, OLD).parents[2] / "blobs" / "0123.incomplete"
    part.write_bytes(b"1234")
    assert client("rm", G1, "--interrupted", "--yes").err == "removed: 4 B\n"
    assert not part.exists() and client.path(G1, OLD).exists()
    # and what is here is enough, without the network
    assert client("--offline", "pull", "g1-0.1b", "--quantize", "int8").code == 0
