"""Repositories in the Hugging Face layout: weights in parts with their index, and the config.json beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import other_tools
import pytest
from cli_runner import Outcome
from hub_client import ANSWER, Client
from hub_server import COMMIT, Hub, HubFile, Repo
from safetensors.numpy import load_file

from quant.synthetic import make_checkpoint
from rwkvcli.cli.watching import Bars
from rwkvcli.runtime.model import Model
from rwkvcli.services import hub as service

REPO = "a/tiny-hf"
INDEX = "model.safetensors.index.json"
PARTS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
CONFIG = {
    "model_type": "rwkv7", "hidden_size": 128, "num_hidden_layers": 2, "vocab_size": 256, "norm_eps": 1e-5, "head_dim": 64,
}  # fmt: skip


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as fla-hub has them: RWKV-7 in three parts."""
    folder = tmp_path_factory.mktemp("hf")
    tensors = make_checkpoint("7", 2, 128, 256, 64, ranks=(5, 7, 3, 9))
    raw = load_file(other_tools.fla(tensors, folder / "one.safetensors"))
    return other_tools.sharded(raw, folder / "model", 3, CONFIG)


@pytest.fixture
def repo(hub: Hub, local: Path) -> Repo:
    """The same on the Hub, with what else such repositories hold."""
    files = {path.name: HubFile(path.read_bytes(), lfs=path.suffix != ".json") for path in local.iterdir()}
    hub.repos[REPO] = Repo({**files, "README.md": HubFile(b"x", lfs=False), "vocab.txt": HubFile(b"y")})
    return hub.repos[REPO]


def size_of(repo: Repo) -> int:
    """Bytes of what belongs to the model."""
    return sum(len(repo.files[name].data) for name in ("config.json", INDEX, *PARTS))


def logits(path: str | Path) -> np.ndarray:
    """Of a few bytes."""
    model = Model.load(path, threads=1)
    return np.asarray(model.forward(list(b"Hello, world"), model.new_state()))


@pytest.mark.usefixtures("links")
def test_parts_are_pulled_as_one_model_and_quantized(
    hub: Hub, client: Client, repo: Repo, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = client.path(REPO, INDEX)
    assert client("pull", REPO) == Outcome(0, f"{index}\n", "")
    assert sorted(path.name for path in index.parent.iterdir()) == sorted(["config.json", INDEX, *PARTS])
    hub.requests.clear()
    monkeypatch.chdir(tmp_path)
    for source in (REPO, f"{REPO}:{INDEX}", index, index.parent):
        assert client("quantize", source, "--to", "int8", "--force", "-q").out == "tiny-hf-int8.safetensors\n"
    assert client("quantize", local, "--to", "int8", "-o", "local.safetensors", "-q").code == 0
    wanted = logits("local.safetensors")
    assert np.array_equal(logits("tiny-hf-int8.safetensors"), wanted)
    told = json.loads(client("show", REPO, "--json").out)
    assert (told["version"], told["path"]) == ("7", str(index))
    assert hub.requests == []
    # what is made is kept, and found by the repository's name
    made = client("pull", REPO, "--quantize", "int8", "--discard-source")
    assert (made.code, made.out) == (0, f"{client.made('tiny-hf', 'int8')}\n")
    assert np.array_equal(logits(made.out.strip()), wanted)
    assert [request.path for request in hub.downloads()] == []  # all of it was here
    assert not index.parent.exists()
    assert client("generate", "-m", REPO, *ANSWER).code == 0
    assert client("rm", REPO, "--yes").code == 0
    assert {"tiny-hf-int8.safetensors", "local.safetensors"} == {*client.files()}


@pytest.mark.usefixtures("links")
def test_an_interrupted_part_goes_on(
    hub: Hub, client: Client, repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    before = sum(len(repo.files[name].data) for name in ("config.json", PARTS[0]))

    def downloading(self: Bars, done: int, total: int) -> None:
        told.append((done, total))
        if done > before:  # Ctrl-C in the second part
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Bars, "downloading", downloading)
        assert client("pull", REPO).code == 130
    assert told[0][0] == 0 and {total for _, total in told} == {size_of(repo)}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    cut = told[-1][0] - before
    assert 0 < cut < len(repo.files[PARTS[1]].data)
    assert client("quantize", REPO, "--to", "int8").code == 3  # a part is no model
    planned = json.loads(client("pull", REPO, "--dry-run", "--json").out)
    assert (planned["bytes"], planned["file"]) == (size_of(repo), INDEX)
    assert planned["to_download"] == size_of(repo) - before - cut
    hub.requests.clear()
    assert client("pull", REPO).out == f"{client.path(REPO, INDEX)}\n"
    asked = [(Path(r.path).name, r.range) for r in hub.requests if r.path.startswith("/cdn/")]
    assert [asked[0], asked[-1]] == [(PARTS[1], f"bytes={cut}-"), (PARTS[2], None)]
    assert [client.path(REPO, part).read_bytes() for part in PARTS] == [repo.files[p].data for p in PARTS]


def test_a_part_that_the_hub_does_not_have_is_named_before_anything_comes(client: Client, repo: Repo) -> None:
    del repo.files[PARTS[1]]
    for more in ([], ["--dry-run"], ["--quantize", "int4"]):
        assert client("pull", REPO, *more) == Outcome(
            3, "", f"error: {REPO} has no file {PARTS[1]}\nhint: its {INDEX} names it\n"
        )
    assert client.files() == []
    repo.files[INDEX] = HubFile(b"{}", lfs=False)
    assert client("pull", REPO) == Outcome(4, "", f"error: {INDEX} has no weight_map\n")
    repo.files["other.pth"] = HubFile(b"x")
    several = client("pull", REPO)
    assert (several.code, several.err.splitlines()[0]) == (
        2, f"error: {REPO} holds 2 model files: {INDEX}, other.pth",
    )  # fmt: skip


@pytest.mark.usefixtures("links")
def test_it_is_listed_and_checked_and_removed_as_one(client: Client, repo: Repo) -> None:
    told = json.loads(client("pull", REPO, "--quantize", "int4", "--dry-run", "--json").out)
    assert (told["bytes"], told["to_download"]) == (size_of(repo), size_of(repo))
    assert client.files() == []
    remote = json.loads(client("list", "--remote", REPO, "--json").out)
    assert [(item["file"], item["nbytes"]) for item in remote] == [
        (INDEX, sum(len(repo.files[name].data) for name in (INDEX, *PARTS)))
    ]
    kept = client("pull", REPO, "--quantize", "int4")
    assert kept.err.endswith(f"`rwkv rm {REPO}:{INDEX} --source` removes it\n")
    listed = json.loads(client("list", "--json").out)
    assert [(item["name"], item["what"], item["file"]) for item in listed[:-1]] == [
        (f"{REPO}:{INDEX}", "checkpoint", INDEX), (f"{REPO}:{INDEX}", "int4", INDEX),
    ]  # fmt: skip
    assert listed[0]["bytes"] == size_of(repo)
    sound = [f"{REPO}:{INDEX}: {what}: sound" for what in ("checkpoint", "int4")]
    assert client("verify", REPO).out.splitlines() == sound
    part = client.path(REPO, PARTS[2])
    part.write_bytes(part.read_bytes()[:-1] + b"\x55")
    assert client("verify", REPO).code == 4
    refused = client("--offline", "pull", REPO, "--quantize", "int8")
    assert (refused.code, refused.out) == (4, "")
    assert client("rm", f"{REPO}:{INDEX}", "--source", "--yes").code == 0
    assert client.files() == ["model.json", "tiny-hf-int4.safetensors"]
    assert client("--offline", "pull", REPO, "--quantize", "int4").code == 0


def test_another_configuration_makes_another_model(
    client: Client, repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    client("pull", REPO, "--quantize", "int8")
    newer = "f" * 40
    repo.files["config.json"] = HubFile(json.dumps({**CONFIG, "hidden_size": 64}).encode(), lfs=False)
    repo.commit, repo.revisions = newer, ("main", COMMIT)
    refused = client("pull", REPO, "--quantize", "int8")
    assert refused.code == 4 and "hidden_size" in refused.err
    assert len(json.loads(client("list", "--json").out)) == 4  # both downloads, what was made of one, demo
    # the parts of the older one stay, since the newer one has them too
    assert client("rm", f"{REPO}:{INDEX}@main", "--source", "--yes").code == 0
    assert client.path(REPO, PARTS[0]).is_file()
    assert client("rm", REPO, "--yes").code == 0
    assert client.files() == []
    # a commit between two files: the next command puts them together
    real = service.download

    def download(*args: Any) -> Path:
        monkeypatch.setattr(service, "download", real)
        path = real(*args)
        repo.commit = "e" * 40
        return path

    monkeypatch.setattr(service, "download", download)
    moved = client("pull", REPO)
    assert (moved.code, moved.err.splitlines()[0]) == (
        3, f"error: {REPO}:{INDEX} was changed on the Hub meanwhile",
    )  # fmt: skip
    assert client("pull", REPO).code == 0


def test_the_configuration_comes_with_weights_in_one_file(hub: Hub, client: Client, tmp_path: Path) -> None:
    tensors = make_checkpoint("7", 2, 128, 256, 64, ranks=(5, 7, 3, 9))
    weights = other_tools.vllm_rwkv7(tensors, tmp_path / "w.safetensors", fused=True).read_bytes()
    # without the configuration nothing says where the first layer norm is
    assert client("quantize", tmp_path / "w.safetensors", "--to", "int8", "--dry-run").code == 4
    (tmp_path / "w.safetensors").unlink()
    fused = json.dumps({**CONFIG, "embedding_layer_norm_fused": True}).encode()
    hub.repos["a/one"] = Repo(
        {"model.safetensors": HubFile(weights), "config.json": HubFile(fused, lfs=False)}
    )
    hub.repos["a/other"] = Repo(
        {"model.safetensors": HubFile(b"12345678"), "config.json": HubFile(b'{"model_type": "x"}', lfs=False)}
    )
    for name in ("a/one", "a/one:model.safetensors"):
        path = client.path("a/one", "model.safetensors")
        assert client("pull", name) == Outcome(0, f"{path}\n", "")
        assert path.with_name("config.json").read_bytes() == fused
        assert client("pull", name, "--quantize", "int8").code == 0
        assert client("verify", "a/one").code == 0
        assert client("rm", "a/one", "--yes").code == 0
        assert client.files() == []
    assert client("pull", "a/other").code == 0
    assert not client.path("a/other", "config.json").exists()
