"""`rwkv pull` and downloads by other verbs: the real huggingface_hub against a server of our own."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_runner import HUB_LINKS, RWKV, Outcome, Terminal, environment, rwkv, small_files, start
from hub_server import COMMIT, TOKEN, Hub, HubFile, Repo

MB = 1_000_000
DATA = random.Random(1).randbytes(26 * MB)
SMALL = DATA[: 2 * MB]


class Client:
    """The command with a cache of its own and the test server as its Hub."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.home = home
        self.env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}

    def __call__(self, *args: str, **env: str) -> Outcome:
        return rwkv(*args, cwd=self.home, env={**self.env, **env})

    def path(self, repo: str, file: str) -> Path:
        return self.home / "hub" / ("models--" + repo.replace("/", "--")) / "snapshots" / COMMIT / file

    def blobs(self) -> list[str]:
        return sorted(path.name for path in (self.home / "hub").glob("*/blobs/*"))


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    return Client(hub, tmp_path)


@HUB_LINKS
def test_stdout_is_the_path_of_the_file(hub: Hub, client: Client) -> None:
    hub.repos["a/b"] = Repo({"sub/m.pth": HubFile(SMALL), "config.json": HubFile(b"{}", lfs=False)})
    done = client("pull", "a/b:sub/m.pth")
    assert done == Outcome(0, f"{client.path('a/b', 'sub/m.pth')}\n", "")
    assert client.path("a/b", "sub/m.pth").read_bytes() == SMALL
    assert client.blobs() == [hashlib.sha256(SMALL).hexdigest()]
    small = client("pull", "a/b:config.json", "--json")
    assert json.loads(small.out) == {
        "name": "a/b:config.json", "path": str(client.path("a/b", "config.json")), "bytes": 2,
    }  # fmt: skip


def test_what_is_here_is_not_downloaded_again_but_brought_up_to_date(hub: Hub, client: Client) -> None:
    hub.repos["a/b"] = Repo({"m.pth": HubFile(SMALL)})
    first = client("pull", "a/b:m.pth")
    asked = len(hub.downloads())
    assert client("pull", "a/b:m.pth") == first
    assert len(hub.downloads()) == asked
    newer = "f" * 40
    hub.repos["a/b"] = Repo({"m.pth": HubFile(SMALL[::-1])}, commit=newer)
    done = client("pull", "a/b:m.pth")
    assert Path(done.out.strip()).read_bytes() == SMALL[::-1]
    assert newer in done.out
    # the old version can still be named
    hub.repos["a/b"].revisions = ("main", COMMIT)
    assert client("show", f"a/b:m.pth@{COMMIT}").code == 4  # found, and refused: it is no checkpoint


def test_the_only_model_of_a_repository_needs_no_name(hub: Hub, client: Client) -> None:
    hub.repos["a/b"] = Repo({"m.pth": HubFile(SMALL), "README.md": HubFile(b"x", lfs=False)})
    done = client("pull", "a/b")
    assert (done.code, done.out, done.err) == (0, f"{client.path('a/b', 'm.pth')}\n", "")
    hub.repos["a/c"] = Repo({"m.pth": HubFile(SMALL), "n.safetensors": HubFile(SMALL)})
    assert client("pull", "a/c") == Outcome(
        2, "", "error: a/c holds 2 model files: m.pth, n.safetensors\nhint: name one: a/c:m.pth\n"
    )
    hub.repos["a/d"] = Repo({"README.md": HubFile(b"x", lfs=False)})
    assert client("pull", "a/d").err.startswith("error: a/d holds no model file\n")


def test_other_verbs_use_what_is_here_without_asking(hub: Hub, client: Client, pth: Path) -> None:
    hub.repos["a/b"] = Repo({"small.pth": HubFile(pth.read_bytes())})
    assert client("pull", "a/b").code == 0
    hub.requests.clear()
    for name in ("a/b", "a/b:small.pth"):
        assert json.loads(client("show", name, "--json").out)["version"] == "7"
    done = client("quantize", "a/b:small.pth", "--to", "bf16", "-q")
    assert (done.code, done.out) == (0, "small-bf16.safetensors\n")
    assert hub.requests == []


def test_without_a_terminal_only_pull_downloads(hub: Hub, client: Client) -> None:
    hub.repos["a/b"] = Repo({"m.pth": HubFile(SMALL)})
    for args, more in (
        (["show"], ""),
        (["quantize", "--to", "int8"], ""),
        (["generate", "x", "-m"], " --quantize int4"),
    ):
        done = client(*args, "a/b:m.pth@main")
        assert done == Outcome(
            3,
            "",
            "error: a/b:m.pth@main is not on this machine\n"
            f"hint: download it with `rwkv pull a/b:m.pth@main{more}`\n",
        )
    assert hub.requests == []


def test_a_terminal_sees_the_download(hub: Hub, client: Client, pth: Path) -> None:
    hub.repos["a/b"] = Repo({"small.pth": HubFile(pth.read_bytes())})
    terminal = Terminal("show", "a/b:small.pth", cwd=client.home, env=client.env)
    terminal.until("Go on? [Y/n] ")
    terminal.child.send("\r")
    done = terminal.finish()
    assert done.code == 0
    assert "RWKV-7, 521,344 parameters" in done.out
    assert b"MB" in terminal.raw
    assert "a/b" not in done.out.replace("a--b", "").splitlines()[-1]


@pytest.mark.parametrize(
    ("repo", "name", "code", "message"),
    [
        (Repo({}), "a/b:m.pth", 3, "a/b has no file m.pth"),
        (Repo({}), "a/b:m.pth@v9", 3, "a/b has no revision v9"),
        (None, "a/b:m.pth", 3, "there is no repository a/b on the Hub, or it is private"),
        (None, "a/b", 3, "there is no repository a/b on the Hub, or it is private"),
        (Repo({}, private=True), "a/b:m.pth", 3, "there is no repository a/b on the Hub, or it is private"),
        (Repo({}, gated=True), "a/b:m.pth", 3, "a/b is gated: its owner asks you to accept terms"),
        (Repo({}, status=400), "a/b:m.pth", 3, "the Hub answered 400 for a/b:m.pth"),
        (Repo({}, status=400), "a/b", 3, "the Hub answered 400 for a/b"),
        (Repo({}, status=401), "a/b:m.pth", 3, "not authorised to read a/b"),
        (Repo({}, status=403), "a/b:m.pth", 3, "not authorised to read a/b"),
        (Repo({}, status=429), "a/b:m.pth", 3, "the Hub refuses: too many requests"),
        (Repo({}, status=500), "a/b:m.pth", 3, "the Hub answered 500 for a/b:m.pth"),
        (Repo({}), "a/--b:m.pth", 3, "a/--b:m.pth does not exist"),
        (Repo({}), "a/b..c:m.pth", 2, "a/b..c:m.pth cannot be a repository on the Hub"),
    ],
)
def test_refusals(hub: Hub, client: Client, repo: Repo | None, name: str, code: int, message: str) -> None:
    if repo is not None:
        hub.repos["a/b"] = repo
    done = impatient(client, "pull", name)
    assert (done.code, done.out) == (code, "")
    *before, error, _hint = done.err.splitlines() if "\nhint: " in done.err else [*done.err.splitlines(), ""]
    assert error == f"error: {message}"
    tries = [f"the Hub answered {repo.status}: trying again in {s} s" for s in (1, 3, 9)] if repo else []
    assert before == (tries if repo and repo.status in (429, 500) else [])


def test_the_token_goes_to_the_hub_and_nowhere_else(hub: Hub, client: Client) -> None:
    hub.repos["a/b"] = Repo({"m.pth": HubFile(SMALL)}, gated=True)
    assert client("pull", "a/b:m.pth", HF_TOKEN="hf_wrong").code == 3
    assert client("pull", "a/b:m.pth", HF_TOKEN=TOKEN).code == 0
    elsewhere = [request for request in hub.requests if request.path.startswith("/cdn/")]
    assert elsewhere
    assert all(request.authorization is None for request in elsewhere)
    for name in ("a/b", "a/b:m.pth"):
        assert client("pull", name, HF_TOKEN=f"“{TOKEN}”") == Outcome(
            2, "", "error: the token for the Hub has characters that no token has\nhint: check HF_TOKEN\n"
        )


def test_offline(hub: Hub, client: Client, pth: Path, tmp_path: Path) -> None:
    hub.repos["a/b"] = Repo({"small.pth": HubFile(pth.read_bytes())})
    defaults = tmp_path / "config.toml"
    defaults.write_text("offline = true\n")
    stored = {"RWKV_CONFIG": str(defaults)}
    for args, env, hint in (
        (["--offline"], {}, "without --offline"),
        ([], stored, "`rwkv config unset offline`"),
        ([], {**stored, "RWKV_OFFLINE": "1"}, "unset RWKV_OFFLINE and `rwkv config unset offline`"),
        ([], {"HF_HUB_OFFLINE": "1"}, "unset HF_HUB_OFFLINE"),
        ([], {"RWKV_OFFLINE": "1"}, "unset RWKV_OFFLINE"),
    ):
        for verb in ("pull", "show"):
            assert client(*args, verb, "a/b:small.pth", **env) == Outcome(
                3,
                "",
                "error: a/b:small.pth is not on this machine, and the network is off\n"
                f"hint: {hint}: `rwkv pull a/b:small.pth`\n",
            )
    assert hub.requests == []
    assert client("pull", "a/b:small.pth").code == 0
    hub.requests.clear()
    for args, env in ((["--offline"], {}), ([], {"HF_HUB_OFFLINE": "1"})):
        assert client(*args, "pull", "a/b:small.pth", **env).out == f"{client.path('a/b', 'small.pth')}\n"
        assert client(*args, "show", "a/b", **env).code == 0
    assert hub.requests == []


def test_an_unreachable_hub(tmp_path: Path) -> None:
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = rwkv("pull", "a/b:m.pth", env=env)
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("error: http://127.0.0.1:9 cannot be reached: ")
    assert done.err.count("\n") == 2


def test_something_that_is_no_hub(hub: Hub, client: Client) -> None:
    done = client("pull", "a/b:m.pth", HF_ENDPOINT=hub.endpoint + "/nothing")
    assert done.code == 3
    assert done.err.count("\n") <= 2


@pytest.mark.parametrize("page", [b"<html>", b"", b"null", b"{}", b'{"error": "x"}', b"[1]", b'[{"type": "file"}]',
                                  b'[{"type": "file", "path": "m.pth", "size": "3", "oid": "x"}]'])  # fmt: skip
def test_a_page_that_is_no_list_of_files(hub: Hub, client: Client, page: bytes) -> None:
    """A network that asks for a password first answers every request with a page."""
    hub.repos["a/b"] = Repo({"m.pth": HubFile(SMALL)}, page=page)
    told = (
        "a/b holds no model file"
        if page == b"{}"
        else f"{hub.endpoint} does not answer like a Hugging Face Hub"
    )
    for args in (["pull", "a/b"], ["pull", "a/b", "--quantize", "int4", "--dry-run"]):
        done = client(*args)
        assert (done.code, done.out) == (3, "") and done.err.startswith(f"error: {told}\n")


@pytest.mark.parametrize("name", ["a:b.pth", "/m.pth", "c/../m.pth"])
def test_a_name_that_no_cache_holds(hub: Hub, client: Client, name: str) -> None:
    hub.repos["a/b"] = Repo({name: HubFile(SMALL)})
    for args in (["pull", f"a/b:{name}"], ["pull", "a/b"]):
        done = client(*args)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(f"error: a/b:{name} has a name that huggingface_hub keeps no file under\n")
    assert not hub.downloads()


def test_a_broken_connection_is_taken_up_again_at_once(hub: Hub, client: Client) -> None:
    hub.repos["a/b"] = Repo({"m.pth": HubFile(DATA, stop_after=12 * MB, stops=1)})
    done = client("pull", "a/b:m.pth")
    assert (done.code, done.err) == (0, "")
    assert client.path("a/b", "m.pth").read_bytes() == DATA
    ranges = [request.range for request in hub.requests if request.path.startswith("/cdn/")]
    assert len(ranges) == 2
    assert ranges[1] is not None and int(ranges[1].removeprefix("bytes=").rstrip("-")) >= 10 * MB


def impatient(client: Client, *args: str) -> Outcome:
    """The command without the library's pauses between two attempts."""
    program = (
        "import time, sys; time.sleep = lambda s: None; from rwkvcli.cli.app import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *args],
        env={**environment(), **client.env},
        capture_output=True,
        text=True,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_a_link_that_keeps_dropping_gets_on(hub: Hub, client: Client) -> None:
    file = HubFile(DATA[: 3 * MB], stop_after=MB // 2)
    hub.repos["a/b"] = Repo({"m.pth": file})
    done = impatient(client, "pull", "a/b:m.pth")
    assert (done.code, done.err) == (0, "")
    assert client.path("a/b", "m.pth").read_bytes() == file.data
    asked = [request.range for request in hub.requests if request.path.startswith("/cdn/")]
    begins = [int(each.removeprefix("bytes=").rstrip("-")) for each in asked if each]
    assert begins == sorted(set(begins)) and begins[0] > MB // 4


def test_a_download_that_ends_early_is_called_so(hub: Hub, client: Client) -> None:
    hub.repos["a/b"] = Repo({"m.pth": HubFile(SMALL, stop_after=1000)})
    assert impatient(client, "pull", "a/b:m.pth") == Outcome(
        3, "", "error: a/b:m.pth: the download ended early\nhint: run the same command to resume it\n"
    )


def test_a_cache_that_cannot_be_used_is_not_blamed_on_the_network(hub: Hub, client: Client) -> None:
    hub.repos["a/b"] = Repo({"m.pth": HubFile(SMALL)})
    (client.home / "file").touch()
    done = client("pull", "a/b:m.pth", HF_HOME=str(client.home / "file"))
    assert (done.code, done.out) == (2, "")
    assert re.fullmatch(
        rf"error: {re.escape(str(client.home))}[/\\\\]file\S*: (not a directory|file exists|.*already exists)\n"
        r"hint: HF_HOME names another folder for downloads\n",
        done.err,
    )


@pytest.mark.parametrize("ignores_range", [False, True])
def test_an_interrupted_download_goes_on_with_the_next_command(
    hub: Hub, client: Client, ignores_range: bool
) -> None:
    file = HubFile(DATA, ignores_range=ignores_range)
    hub.repos["a/b"] = Repo({"m.pth": file})
    file.stall_after = 15 * MB
    process = start("pull", "a/b:m.pth", env={**environment(), **client.env})
    folder = client.home / "hub" / "models--a--b" / "blobs"
    until = time.monotonic() + 30
    while time.monotonic() < until and sum(p.stat().st_size for p in folder.glob("*.incomplete")) < 10 * MB:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"")
    file.stall_after = None
    hub.requests.clear()
    done = client("pull", "a/b:m.pth")
    assert (done.code, done.err) == (0, "")
    assert client.path("a/b", "m.pth").read_bytes() == DATA
    assert client.blobs() == [file.etag]
    asked = [request.range for request in hub.requests if request.path.startswith("/cdn/")]
    assert asked[0] is not None and int(asked[0].removeprefix("bytes=").rstrip("-")) >= 10 * MB


@pytest.mark.parametrize("lfs", [True, False])
def test_corrupt_bytes_are_removed_and_the_next_command_begins_anew(
    hub: Hub, client: Client, lfs: bool
) -> None:
    file = HubFile(SMALL, lfs=lfs, sent_instead=bytes(len(SMALL)))
    hub.repos["a/b"] = Repo({"m.pth": file})
    assert client("pull", "a/b:m.pth") == Outcome(
        4,
        "",
        "error: a/b:m.pth: what came has another checksum than the Hub names\n"
        "hint: it was removed; pull it again\n",
    )
    assert client.blobs() == []
    assert not client.path("a/b", "m.pth").exists()
    file.sent_instead = None
    assert client("pull", "a/b:m.pth").code == 0
    assert client.path("a/b", "m.pth").read_bytes() == SMALL


def test_a_part_of_something_else_is_noticed(hub: Hub, client: Client) -> None:
    file = HubFile(SMALL)
    hub.repos["a/b"] = Repo({"m.pth": file})
    partial = client.path("a/b", "m.pth").parents[2] / "blobs" / f"{file.etag}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"not this file")
    assert client("pull", "a/b:m.pth").code == 4
    assert not partial.exists()
    partial.write_bytes(bytes(len(SMALL) + 1))  # longer than it can be
    assert client("pull", "a/b:m.pth").code == 0


def test_a_disk_without_room(hub: Hub, client: Client) -> None:
    hub.repos["a/b"] = Repo({"m.pth": HubFile(SMALL)})
    done = subprocess.run(
        [*RWKV, "pull", "a/b:m.pth"],
        env={**environment(), **client.env},
        capture_output=True,
        preexec_fn=small_files(MB),
        check=False,
    )
    assert (done.returncode, done.stdout) == (5, b"")
    assert (
        done.stderr
        == b"error: a/b:m.pth: the disk is full\nhint: HF_HOME names another folder for downloads\n"
    )


@HUB_LINKS
def test_two_at_once_download_it_once(hub: Hub, client: Client) -> None:
    hub.repos["a/b"] = Repo({"m.pth": HubFile(DATA)})
    both = [start("pull", "a/b:m.pth", env={**environment(), **client.env}) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0
        assert err in (b"", b"waiting: another process is downloading a/b:m.pth\n")
        assert Path(os.fsdecode(out).strip()).read_bytes() == DATA
    assert client.blobs() == [hashlib.sha256(DATA).hexdigest()]
    assert sum(request.path.startswith("/cdn/") for request in hub.requests) == 1


@pytest.mark.parametrize("links", [pytest.param(True, marks=HUB_LINKS), False])
def test_the_cache_is_the_one_that_all_programs_share(hub: Hub, client: Client, links: bool) -> None:
    if not links:
        client.env["HF_HUB_DISABLE_SYMLINKS"] = "1"
    hub.repos["a/b"] = Repo({"m.pth": HubFile(SMALL)})
    assert client("pull", "a/b:m.pth").code == 0
    program = (
        "from huggingface_hub import hf_hub_download, scan_cache_dir\n"
        "print(hf_hub_download('a/b', 'm.pth', local_files_only=True))\n"
        "info = scan_cache_dir()\n"
        "assert not info.warnings and info.size_on_disk == 2_000_000\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env={**environment(), **client.env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"{client.path('a/b', 'm.pth')}\n"), done.stderr
