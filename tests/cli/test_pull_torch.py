"""Older repositories in the Hugging Face layout: `pytorch_model.bin`, whole and in parts, beside safetensors or not."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import other_tools
import pytest
from cli_runner import Outcome
from hub_client import ANSWER, Client
from hub_server import Hub, HubFile, Repo
from safetensors.numpy import load_file

from quant.synthetic import make_checkpoint
from rwkvcli.runtime.model import Model
from rwkvcli.services import parts

REPO = "a/older"
LONE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
CONFIG = {
    "model_type": "rwkv7", "hidden_size": 128, "num_hidden_layers": 2, "vocab_size": 256, "norm_eps": 1e-5, "head_dim": 64,
}  # fmt: skip


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with one model: `whole`, `parts`, and `new`, which has it as safetensors in parts."""
    folder = tmp_path_factory.mktemp("hf")
    raw = load_file(
        other_tools.fla(make_checkpoint("7", 2, 128, 256, 64, ranks=(5, 7, 3, 9)), folder / "one.safetensors")
    )
    other_tools.sharded(raw, folder / "parts", 2, CONFIG, torch=True)
    other_tools.sharded(raw, folder / "new", 2, CONFIG)
    (folder / "whole").mkdir()
    other_tools.write_pth(raw, folder / "whole" / LONE)
    (folder / "whole" / "config.json").write_text(json.dumps(CONFIG))
    return folder


def files_of(*folders: Path) -> dict[str, HubFile]:
    """What a repository with the files of these folders holds, and what such repositories hold beside."""
    found = {path.name: path for folder in folders for path in folder.iterdir()}
    return {
        **{name: HubFile(path.read_bytes(), lfs=path.suffix != ".json") for name, path in found.items()},
        "training_args.bin": HubFile(b"of another kind"),
        "tokenizer.json": HubFile(b"{}", lfs=False),
    }


def logits(path: str | Path) -> np.ndarray:
    """Of a few bytes."""
    model = Model.load(path, threads=1)
    return np.asarray(model.forward(list(b"Hello, world"), model.new_state()))


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize(("folder", "file"), [("whole", LONE), ("parts", INDEX)])
def test_it_is_pulled_and_quantized(
    hub: Hub,
    client: Client,
    local: Path,
    folder: str,
    file: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.repos[REPO] = Repo(files_of(local / folder))
    names = {path.name for path in (local / folder).iterdir()}
    remote = json.loads(client("list", "--remote", REPO, "--json").out)
    weights = sum(path.stat().st_size for path in (local / folder).iterdir() if path.name != "config.json")
    assert [(item["file"], item["nbytes"]) for item in remote] == [(file, weights)]
    path = client.path(REPO, file)
    assert client("pull", REPO) == Outcome(0, f"{path}\n", "")
    assert {each.name for each in path.parent.iterdir()} == names
    hub.requests.clear()
    for source in (REPO, path, path.parent, local / folder):
        done = client("quantize", source, "--to", "int8", "-o", "made.safetensors", "--force", "-q")
        assert (done.code, done.err) == (0, "")
    assert client("quantize", local / "new", "--to", "int8", "-o", "new.safetensors", "-q").code == 0
    assert np.array_equal(logits("made.safetensors"), logits("new.safetensors"))
    assert hub.requests == []
    made = client("pull", REPO, "--quantize", "int8", "--keep-source")
    assert np.array_equal(logits(made.out.strip()), logits("new.safetensors"))
    assert client("generate", "-m", REPO, *ANSWER).code == 0
    sound = [f"{REPO}:{file}: {what}: sound" for what in ("checkpoint", "int8")]
    assert client("verify", REPO).out.splitlines() == sound
    assert client("rm", REPO, "--yes").code == 0
    assert client.files() == ["made.safetensors", "new.safetensors"]


def test_safetensors_of_the_same_weights_are_preferred(hub: Hub, client: Client, local: Path) -> None:
    hub.repos[REPO] = Repo(files_of(local / "whole", local / "new"))
    new = "model.safetensors.index.json"
    assert client("pull", REPO).out == f"{client.path(REPO, new)}\n"
    assert not client.path(REPO, LONE).exists()
    # by its name the other comes too, and does not make the name of the repository unclear
    assert client("pull", f"{REPO}:{LONE}").out == f"{client.path(REPO, LONE)}\n"
    assert json.loads(client("show", REPO, "--json").out)["path"] == str(client.path(REPO, new))
    assert json.loads(client("show", f"{REPO}:{LONE}", "--json").out)["path"] == str(client.path(REPO, LONE))
    assert [item["file"] for item in json.loads(client("list", "--json").out)[:-1]] == [new, LONE]
    assert client("rm", f"{REPO}:{new}", "--yes").code == 0
    assert json.loads(client("show", REPO, "--json").out)["path"] == str(client.path(REPO, LONE))


class _Command:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch owned",)


def test_nothing_in_it_is_executed(
    hub: Hub, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"emb.weight": _Command()}, 2))
        archive.writestr("archive/version", "3")
    hub.repos[REPO] = Repo({LONE: HubFile(data.getvalue())})
    done = client("pull", REPO, "--quantize", "int8")
    assert (done.code, done.out) == (4, "")
    assert f"the pickle refers to {os.name}.system: refused" in done.err
    assert not (tmp_path / "owned").exists()


def test_names() -> None:
    shards = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    assert parts.models([*shards, INDEX, "optimizer.bin", "x.pth"]) == [INDEX, "x.pth"]
    assert parts.models([f"sub/{name}" for name in (*shards, INDEX)] + [LONE]) == [f"sub/{INDEX}", LONE]
    assert parts.models([LONE, "model.safetensors"]) == ["model.safetensors"]
    assert parts.models([LONE, "sub/model.safetensors"]) == [LONE, "sub/model.safetensors"]
    assert parts.models([INDEX, *shards, "model.safetensors"]) == ["model.safetensors"]
    assert parts.models([LONE, "model-00001-of-00002.safetensors"]) == [
        LONE,
        "model-00001-of-00002.safetensors",
    ]
    assert (
        parts.shards_beside(INDEX, [*shards, "model-00001-of-00002.safetensors", "sub/" + shards[0]])
        == shards
    )
