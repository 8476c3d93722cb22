"""Model files with random damage: opened and decoded, or refused with FormatError; nothing else.

RWKV_MUTATION_CASES sets the number of cases (default 2,000).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from quant_models import checkpoint, quantized

from quant.container.reader import ModelFile
from quant.errors import FormatError
from quant.synthetic import synthetic_arch

CASES = int(os.environ.get("RWKV_MUTATION_CASES", "2000"))
JUNK: list[Any] = [
    None, True, 0, 1, -1, 2**31, 2**63, 2**70, 1.5, "", "7", "q8g32", "q4g16", "kn", "row", "U8",
    [], [0], [-1], [1] * 40, {},
]  # fmt: skip


def small_model(folder: Path) -> bytes:
    arch = synthetic_arch("7", 1, 8, 6, 4, n_ffn=8, ranks=(2, 3, 1, 2))
    quantized(checkpoint(folder / "m.pth", arch), folder / "m.safetensors", "int4", ffn_value="kn")
    return (folder / "m.safetensors").read_bytes()


def survives(path: Path) -> bool:
    """Whether the file opens; what opens must decode in its shape."""
    try:
        with ModelFile.open(path) as model:
            for name, plan in model.plan.items():
                values = model.decode(name)
                assert values.shape == plan.shape and values.dtype == np.float32
    except FormatError as error:
        assert str(error).isprintable()
        return False
    return True


def replace_somewhere(value: Any, random: np.random.Generator) -> Any:
    """A copy of a JSON value with one member, at any depth, replaced, removed, or moved to another name."""
    if isinstance(value, str) and value[:1] == "{" and random.random() < 0.9:
        return json.dumps(replace_somewhere(json.loads(value), random))
    if not isinstance(value, dict | list) or not value or random.random() < 0.1:
        return JUNK[random.integers(len(JUNK))]
    if isinstance(value, list):
        at = int(random.integers(len(value)))
        return [*value[:at], replace_somewhere(value[at], random), *value[at + 1 :]]
    key = list(value)[random.integers(len(value))]
    result = dict(value)
    match int(random.integers(6)):
        case 0:
            del result[key]
        case 1:
            result[list(value)[random.integers(len(value))]] = result.pop(key)
        case _:
            result[key] = replace_somewhere(value[key], random)
    return result


def test_damaged_structure(tmp_path: Path) -> None:
    data = small_model(tmp_path)
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    path = tmp_path / "damaged.safetensors"
    random = np.random.default_rng(11)
    opened = 0
    for _ in range(CASES):
        changed = replace_somewhere(header, random) if random.random() < 0.5 else dict(header)
        if isinstance(changed, dict) and "__metadata__" in changed:
            changed["__metadata__"] = replace_somewhere(header["__metadata__"], random)
        text = json.dumps(changed).encode().ljust(length)
        text = text.ljust(-(-(8 + len(text)) // 64) * 64 - 8)
        path.write_bytes(len(text).to_bytes(8, "little") + text + body)
        opened += survives(path)
    assert 0 < opened < CASES // 2


def test_damaged_bytes(tmp_path: Path) -> None:
    data = small_model(tmp_path)
    used = data.rindex(b"}", 0, 8 + int.from_bytes(data[:8], "little"))
    path = tmp_path / "damaged.safetensors"
    random = np.random.default_rng(12)
    opened = 0
    for _ in range(CASES):
        damaged = bytearray(data)
        for _ in range(int(random.integers(1, 4))):
            at = int(random.integers(used if random.random() < 0.7 else len(damaged)))
            match int(random.integers(4)):
                case 0:
                    damaged[at] ^= 1 << int(random.integers(8))
                case 1:
                    damaged[at] = int(random.integers(256))
                case 2:
                    damaged[at : at + 8] = random.bytes(8)
                case _:
                    del damaged[at : at + int(random.integers(1, 100))]
        path.write_bytes(damaged)
        opened += survives(path)
    assert 0 < opened < CASES
