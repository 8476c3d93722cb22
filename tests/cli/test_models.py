"""Short names, `pull --quantize`, questions on a terminal, other processes, and the default model: the real
huggingface_hub against a server of our own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import Outcome, Terminal, environment, small_files, start
from hub_client import ANSWER, G1, NEW, OLD, Client
from hub_server import COMMIT, Hub, HubFile, Repo
from quant_models import quantized

from quant.checkpoints.write import write_safetensors
from quant.container.reader import ModelFile
from quant.synthetic import synthetic_arch
from rwkvcli.services import catalog, fitting, pulling
from rwkvcli.services.store import LocalModel


@pytest.fixture(scope="session")
def second(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Another checkpoint of the same sizes."""
    from quant_models import checkpoint

    path = tmp_path_factory.mktemp("second") / "second.pth"
    return checkpoint(path, synthetic_arch("7", 2, 128, 256, 64), "bf16", seed=5).read_bytes()


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
    path = client.made(OLD, "int8")
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
    assert client("pull", "--update", "--discard-source").out == f"{client.made(NEW, 'int8')}\n"
    everything = client("list", "--remote")
    assert [line.split()[0] for line in everything.out.splitlines()] == ["name", "g1-0.1b"]
    assert "BlinkDL/rwkv-4-pile-1b5 is not there, or private" in everything.err.splitlines()
    assert client("list", "--remote", "raven").code == 3
    assert client("list", "--remote", "g1-0.1b", "--json").out.count('"here": "int8"') == 1
    assert client("generate", "-m", "g1-0.1b", *ANSWER) != first
    assert client("generate", "-m", "g1-0.1b@20260110", *ANSWER) == first
    assert client.path(G1, NEW).exists() is False


def test_an_update_keeps_every_format(hub: Hub, client: Client, second: bytes) -> None:
    other = OLD.replace("0.1b", "0.4b")
    hub.repos[G1].files[other] = HubFile(second)
    client("pull", "g1-0.1b", "--quantize", "int8", "--discard-source")
    client("pull", "g1-0.4b")
    done = client("pull", "--update", "--keep-source")
    assert (done.code, done.out) == (0, f"{client.made(OLD, 'int8')}\n{client.path(G1, other)}\n")
    done = client("pull", "--update", "--quantize", "int4", "--discard-source")
    assert (done.code, done.out) == (0, f"{client.made(OLD, 'int8')}\n{client.made(other, 'int4')}\n")
    assert client("pull", "g1-0.1b", "--keep-source").code == 2


def test_the_same_bytes_under_two_names_are_two_models(hub: Hub, client: Client, pth: Path) -> None:
    hub.repos[G1].files[NEW] = HubFile(pth.read_bytes())
    older = client("pull", "g1-0.1b@20260110", "--quantize", "int8").out.strip()
    newer = client("pull", "g1-0.1b", "--quantize", "int4", "--discard-source").out.strip()
    names = [item["name"] for item in json.loads(client("list", "--json").out)]
    assert names == ["g1-0.1b-int4@20260129", "g1-0.1b-int8@20260110", "g1-0.1b@20260110", "demo"]
    assert client("verify").code == 0
    assert client("rm", "g1-0.1b-int4", "--yes").code == 0
    assert (Path(older).is_file(), Path(newer).exists()) == (True, False)


def test_a_conversation_stays_with_the_file_it_began_with(
    hub: Hub, client: Client, second: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chat(line: bytes, *args: str) -> Outcome:
        (client.home / "said").write_bytes(line)
        with (client.home / "said").open() as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            return client("chat", *args, "--max-tokens", "3")

    client("pull", "g1-0.1b-int8")
    assert chat(b"Hello\n", "trip", "-m", "g1-0.1b").code == 0
    hub.repos[G1].files[NEW] = HubFile(second)
    client("pull", "g1-0.1b-int8")
    newest = chat(b"Hello\n", "g1-0.1b")
    assert (newest.code, newest.err) == (0, "")
    assert chat(b"And?\n", "trip").code == 0
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


def test_what_nothing_can_be_made_of_is_refused_by_its_header(
    hub: Hub, client: Client, pth: Path, tmp_path: Path
) -> None:
    quantized(pth, tmp_path / "q.safetensors", "int8")
    quantized(pth, tmp_path / "f.safetensors", "f32")
    write_safetensors(
        tmp_path / "other.safetensors", {"layers.0.q_proj.weight": np.zeros((4, 4), np.float32)}, "f32"
    )
    names = ("q.safetensors", "f.safetensors", "other.safetensors")
    hub.repos["a/b"] = Repo({name: HubFile((tmp_path / name).read_bytes()) for name in names})
    refused = client("pull", "a/b:q.safetensors", "--quantize", "int4")
    assert refused == Outcome(
        2,
        "",
        "error: a/b:q.safetensors is quantized already (int8)\n"
        "hint: quantize the checkpoint that it was made from\n",
    )
    other = client("pull", "a/b:other.safetensors", "--quantize", "int4")
    assert (other.code, other.out) == (4, "")
    assert other.err.startswith("error: a/b:other.safetensors ")
    assert not list(client.home.rglob("blobs/*"))
    assert client("pull", "a/b:f.safetensors", "--quantize", "int4").code == 0
    assert client("pull", "a/b:q.safetensors").code == 0


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
    int4 = client.made(OLD, "int4").stat().st_size
    monkeypatch.setattr(fitting, "free_memory", lambda: int4)
    assert client("generate", *ANSWER).err == "no -m: using g1-0.1b-int4@20260110\n"
    monkeypatch.setenv("RWKV_MODEL", "demo")
    assert client("generate", *ANSWER).err == ""
    assert hub.requests == []


def test_a_place_that_cannot_hold_what_is_made_is_told_before_the_download(
    hub: Hub, client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RWKV_MODELS", str(tmp_path / "file"))
    assert client("pull", "g1-0.1b", "--quantize", "int8") == Outcome(
        2,
        "",
        f"error: RWKV_MODELS={tmp_path / 'file'}: not a folder\n"
        "hint: RWKV_MODELS names the folder for what is made of downloads\n",
    )
    assert hub.downloads() == []
    assert client("pull", "g1-0.1b").code == 0


def test_every_verb_that_runs_a_model_has_the_default(hub: Hub, client: Client, tmp_path: Path) -> None:
    text, documents, out = tmp_path / "text.txt", tmp_path / "l.jsonl", tmp_path / "text.state"
    text.write_text("Some words to read.")
    documents.write_text('{"text": "It was a fine morning"}\n')
    verbs: dict[str, tuple[object, ...]] = {
        "state": ("build", "-f", text, "-o", out, "--force"),
        "perplexity": (text,),
        "eval": ("lambada", documents),
        "bench": ("-p", "2", "-n", "0", "-r", "1", "--no-warmup"),
    }
    others: dict[str, tuple[object, ...]] = {"show": (), "tokenize": ("x",), "detokenize": ("72",)}
    for verb, args in verbs.items():
        refused = client(verb, *args)
        assert (refused.code, refused.out) == (3, "")
        assert refused.err.startswith("error: no model is on this machine\nhint: `rwkv pull g1-")
    for verb, args in others.items():  # what needs no weights downloads none
        refused = client(verb, *args)
        assert (refused.code, refused.out) == (2, "")
        assert f"error: no {'MODEL' if verb == 'show' else 'vocabulary'}: " in refused.err
    assert client("pull", "g1-0.1b", "--quantize", "int8", "--discard-source").code == 0
    hub.requests.clear()
    for verb, args in {**verbs, **others}.items():
        done = client(verb, *args, "--json")
        named = client(verb, *args, "-m", "g1-0.1b-int8@20260110", "--json")
        assert done.code == named.code == 0
        assert done.err == "no -m: using g1-0.1b-int8@20260110\n" + named.err
        if verb != "bench":  # whose numbers are times
            assert done.out == named.out
    assert json.loads(client("perplexity", text, "--json").out)["model"] == "g1-0.1b-int8@20260110"
    assert client("-q", "show").err == ""
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
    assert client.made(OLD, "int8").is_file()
    assert not client.path(G1, OLD).exists()  # as it was said


def test_the_download_is_asked_about_on_a_terminal(hub: Hub, client: Client) -> None:
    terminal = Terminal("pull", "g1-0.1b-int8", cwd=client.home, env=client.env)
    terminal.until("Remove the download, 1.08 MB? [y/N] ")
    terminal.child.send("y\r")
    done = terminal.finish()
    assert (done.code, client.path(G1, OLD).exists()) == (0, False)
    assert client.made(OLD, "int8").is_file()


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
    assert (second.returncode, out.decode()) == (0, f"{client.made(OLD, 'int8')}\n"), err
    assert not list(client.home.glob("models/*/*/.*.part"))
    assert client("verify", "g1-0.1b").code == 0
    assert sum(request.path.startswith("/cdn/") for request in hub.requests) == 1


def test_a_download_that_another_process_removed_when_it_was_done(
    hub: Hub, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = pulling.make

    def make_and_lose(planned: pulling.Plan, source: LocalModel, *more: Any, **options: Any) -> LocalModel:
        made = make(planned, source, *more, **options)
        pulling.discard(source)
        return made

    monkeypatch.setattr(pulling, "make", make_and_lose)
    done = client("pull", "g1-0.1b", "--quantize", "int8", "--discard-source", "--json")
    assert (done.code, done.err) == (0, "")
    told = json.loads(done.out)
    assert (told["path"], told["download"]) == (str(client.made(OLD, "int8")), None)


def test_a_full_disk_leaves_nothing_half_made(hub: Hub, client: Client) -> None:
    client("pull", "g1-0.1b")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "rwkvcli", "pull", "g1-0.1b", "--quantize", "int8"],
        env=environment(**client.env),
        capture_output=True,
        stdin=subprocess.DEVNULL,
        preexec_fn=small_files(300_000),
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
