"""Files with random damage: every one is read or refused; no other exception, no crash.

RWKV_MUTATION_CASES sets the number of cases per format (default 2,000).
"""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import numpy as np
import other_tools
import pytest

from quant.checkpoints import open_checkpoint
from quant.errors import QuantError
from quant.synthetic import make_checkpoint, write_pth, write_safetensors

CASES = int(os.environ.get("RWKV_MUTATION_CASES", "2000"))


def mutate(data: bytes, structure: np.ndarray, random: np.random.Generator) -> bytes:
    """One to four changes, most of them at the positions where the format's structure lies."""
    result = bytearray(data)
    for _ in range(int(random.integers(1, 5))):
        at = int(random.choice(structure)) if random.random() < 0.9 else int(random.integers(len(result)))
        at = min(at, len(result) - 1)
        match int(random.integers(7)):
            case 0:
                result[at] ^= 1 << int(random.integers(8))
            case 1:
                result[at] = int(random.integers(256))
            case 2:
                result[at : at + 4] = random.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f"])
            case 3:
                del result[at : at + int(random.integers(1, 9))]
            case 4:
                result[at:at] = random.bytes(int(random.integers(1, 9)))
            case 5:
                source = int(random.choice(structure))
                result[at : at + 16] = result[source : source + 16]
            case _:
                if random.random() < 0.2:
                    del result[max(at, 1) :]
        if not result:
            return b""
    return bytes(result)


def survives(path: Path) -> bool:
    """Whether the file was read; QuantErrors are fine, others are the test's failure."""
    try:
        with open_checkpoint(path) as checkpoint:
            for name in checkpoint.names:
                values = checkpoint.read(name)
                assert values.shape == checkpoint.shape(name)
            assert checkpoint.arch.n_layer >= 1
    except QuantError as error:
        if not str(error).isprintable():
            raise AssertionError(f"unprintable message {error!r}") from error
        return False
    return True


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_mutated_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m.{suffix}"
    writer = write_pth if suffix == "pth" else write_safetensors
    writer(path, make_checkpoint("4", 1, 4, 5, n_ffn=8), "f16")
    data = path.read_bytes()
    if suffix == "pth":
        first, last = data.index(b"archive/byteorder"), data.index(b"PK\1\2")
        structure = np.r_[0:first, last : len(data)]
        for at in range(len(data) - 4):
            if data[at : at + 4] == b"PK\3\4":
                structure = np.append(structure, np.arange(at, at + 40))
    else:
        structure = np.arange(8 + int.from_bytes(data[:8], "little"))
    random = np.random.default_rng(20240)
    read = 0
    for _ in range(CASES):
        path.write_bytes(mutate(data, structure, random))
        read += survives(path)
    assert 0 < read < CASES // 2


@pytest.mark.parametrize("tool", ["llama_cpp", "rwkv_cpp"])
def test_mutated_files_of_other_tools(tmp_path: Path, tool: str) -> None:
    path = tmp_path / "m"
    tensors = make_checkpoint("7", 1, 32, 5, 8, n_ffn=32, ranks=(2, 2, 2, 2))
    getattr(other_tools, tool)(tensors, path, kind="q5_1")
    data = path.read_bytes()
    names = re.finditer(rb"(blk|blocks)\.\d+\.|token_embd|output|general|rwkv7|emb\.w|ln_out", data)
    structure = np.unique(np.concatenate([np.arange(max(at.start() - 24, 0), at.end() + 40) for at in names]))
    random = np.random.default_rng(20242)
    read = 0
    for _ in range(CASES // 4):
        path.write_bytes(mutate(data, structure, random))
        read += survives(path)
    assert 0 < read < CASES // 8
    for cut in (*range(1, 60, 7), *random.integers(60, len(data), 40)):
        path.write_bytes(data[:cut])
        assert not survives(path)


def test_mutated_quantization_states(tmp_path: Path) -> None:
    """What bitsandbytes keeps beside its codes."""
    path = tmp_path / "m.safetensors"
    tensors: dict[str, np.ndarray] = dict(make_checkpoint("4", 1, 32, 5, n_ffn=32))
    state = b'{"quant_type":"nf4","blocksize":64,"dtype":"float32","shape":[32,32],"nested_blocksize":8,"nested_offset":0.5}'
    key = "blocks.0.att.key.weight"
    parts = {
        "": np.zeros((512, 1), np.uint8),
        ".absmax": np.zeros(16, np.uint8),
        ".quant_map": np.ones(16, np.float32),
        ".nested_absmax": np.ones(2, np.float32),
        ".nested_quant_map": np.ones(256, np.float32),
    }
    random = np.random.default_rng(20243)
    read = 0
    for case in range(CASES // 20):
        damaged = mutate(state, np.arange(len(state)), random) if case else state
        broken = dict(parts)
        if random.random() < 0.3:
            part = list(parts)[int(random.integers(len(parts)))]
            broken[part] = broken[part][: int(random.integers(1, len(broken[part])))]
        said = {f"{key}.quant_state.bitsandbytes__nf4": np.frombuffer(damaged or b" ", np.uint8)}
        other_tools.save({**tensors, **{key + part: array for part, array in broken.items()}, **said}, path)
        read += survives(path)
    assert 0 < read < CASES // 20


def test_mutated_pickles_with_right_checksums(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    write_pth(path, make_checkpoint("4", 1, 4, 5, n_ffn=8), "f16")
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    pickled = members.pop("archive/data.pkl")
    random = np.random.default_rng(20241)
    read = 0
    for _ in range(CASES):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", mutate(pickled, np.arange(len(pickled)), random))
            for name, data in members.items():
                archive.writestr(name, data)
        read += survives(path)
    assert 0 < read < CASES // 2
