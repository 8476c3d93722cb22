"""docs/errors.md is true: every command in it is run, and says and returns what stands there."""

from __future__ import annotations

import os
import pickle
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cli_runner import RWKV, environment, rwkv_inside
from quant_models import checkpoint
from vocabularies import byte_level_json

from quant.checkpoints import open_checkpoint
from quant.checkpoints.write import write_pth
from quant.synthetic import synthetic_arch
from rwkvcli import Model
from rwkvcli.runtime import cuda

DOC = Path(__file__).parents[2] / "docs" / "errors.md"
_NEEDS_A_PROCESS = re.compile(r"[|&;<>$]|torch|owner/|lambada -m|timeout|nf4|choices")
"""Shell syntax, and what depends on imports, on signals, or on an environment that is read at an import."""
_BLOCK = re.compile(r"```console\n\$ (.+)\n((?:.*\n)*?)\[exit (\d+)\]\n```")


class _Command:
    """Pickles as a call of os.system: what a hostile checkpoint would do."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch owned",)


def cases() -> list[tuple[str, str, int]]:
    """(command, stderr, exit code) of every example in the document."""
    return [(command, text, int(code)) for command, text, code in _BLOCK.findall(DOC.read_text("utf-8"))]


@pytest.fixture(scope="session")
def demo_state(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A state of the demo."""
    model, path = Model.load("demo"), tmp_path_factory.mktemp("state") / "demo.state"
    state = model.new_state()
    model.forward([65], state)
    state.save(path)
    return path.read_bytes()


@pytest.fixture
def place(folder: Path, demo_state: bytes) -> Path:
    """The folder that the document speaks of, with `rwkv` in `bin`."""
    model = (folder / "small.safetensors").read_bytes()
    (folder / "empty.pth").write_bytes(b"")
    (folder / "half.safetensors").write_bytes(model[: len(model) // 2])
    (folder / "notes.pth").write_text("Dear diary\n" * 100)
    (folder / "later.safetensors").write_bytes(
        model.replace(b'"format_version":"0"', b'"format_version":"9"', 1)
    )
    with zipfile.ZipFile(folder / "hostile.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"emb.weight": _Command()}, 2))
        archive.writestr("archive/version", "3")
    with open_checkpoint(folder / "small.pth") as source:
        tensors = {name: source.read(name).copy() for name in source.names}
    broken = {**tensors, "blocks.1.ffn.key.weight": tensors["blocks.1.ffn.key.weight"] * np.float32("nan")}
    write_pth(folder / "nan.pth", broken)
    write_pth(folder / "gap.pth", {k: v for k, v in tensors.items() if k != "blocks.1.att.key.weight"})
    checkpoint(folder / "odd.pth", synthetic_arch("4", 1, 64, 400))
    (folder / "tokenizer.json").write_bytes(byte_level_json())
    (folder / "config.toml").write_text("treads = 2\n")
    for package in ("torch", "llguidance"):
        (folder / f"{package}.py").write_text("raise ImportError\n")
    (folder / "demo.state").write_bytes(demo_state)
    (folder / "damaged.state").write_bytes(demo_state[:-1] + bytes([demo_state[-1] ^ 1]))
    with (folder / "huge.txt").open("wb") as file:
        file.truncate(8 << 30)  # a hole
    (folder / "bin").mkdir()
    (folder / "models").mkdir()
    (folder / "bin" / "rwkv").write_text("#!/bin/sh\nexec " + shlex.join(RWKV) + ' "$@"\n')
    (folder / "bin" / "rwkv").chmod(0o755)
    return folder


def run(command: str, place: Path) -> tuple[str, str, int]:
    """stdout, stderr and exit code of a shell command in `place`; paths there are shown relative to it."""
    folders = {"HF_HUB_CACHE": str(place / "hub"), "RWKV_SESSIONS": str(place / "sessions")}
    if command.startswith("rwkv ") and not _NEEDS_A_PROCESS.search(command):
        done = rwkv_inside(*shlex.split(command)[1:], cwd=place, env=folders)
        return done.out, done.err.replace(f"{place}{os.sep}", ""), done.code
    if sys.platform == "win32":
        pytest.skip("the shell of these examples is of POSIX")
    env = environment(**folders)
    env["PATH"] = f"{place / 'bin'}:{env['PATH']}"
    env["PYTHONPATH"] = os.pathsep.join([str(place), env.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    ran = subprocess.run(
        ["sh", "-c", command], cwd=place, env=env, capture_output=True, stdin=subprocess.DEVNULL,
        timeout=60, check=False,
    )  # fmt: skip
    return ran.stdout.decode(), ran.stderr.decode().replace(f"{place}/", ""), ran.returncode


def test_there_are_at_least_twenty() -> None:
    helpful = [text for _, text, _ in cases() if "\nhint: " in text or "pip install" in text]
    assert len(helpful) >= 20
    assert len(set(helpful)) == len(helpful)
    text = DOC.read_text("utf-8")
    assert text.count("```console") == len(cases())
    assert {code for _, _, code in cases()} >= {
        2,
        3,
        4,
        5,
        6,
        7,
        124,
        130,
        141,
    }  # 1 is for the unexpected: test_main has it


@pytest.mark.parametrize(("command", "expected", "code"), cases(), ids=[case[0] for case in cases()])
def test_the_document_is_true(
    place: Path, command: str, expected: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RWKV_CUDA_LIBRARY", raising=False)  # no command gets it
    if "no CUDA kernels" in expected and cuda.library_path() is not None:
        pytest.skip("this build has CUDA kernels")
    if "nvidia-cuda-nvcc" in expected and sys.platform == "win32":
        pytest.skip("nothing builds CUDA kernels on Windows, and the hint says so")
    if "cannot be used" in expected:
        pytest.importorskip("llguidance")
    out, err, returned = run(command, place)
    expected = expected.replace("posix.system", f"{os.name}.system")  # whose name is the system's
    pattern = ".*".join(map(re.escape, expected.split("[...]")))
    assert re.fullmatch(pattern, err), err
    assert (out, returned) == ("", code)
    lines = [line for line in err.splitlines() if not line.startswith("Usage: ")]
    assert not lines if code in (130, 141) else lines[0].startswith("error: ")
    assert all(line.startswith("hint: ") for line in lines[1:])
    assert not (place / "owned").exists()
