"""`rwkv bench`: columns, keys, counts and refusals. No test asserts a time."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from cli_runner import Terminal, rwkv

from rwkvcli import _kernels
from rwkvcli.runtime import machine
from rwkvcli.services.benchmarking import read_bandwidth

QUICK = ("-p", "4", "-n", "3", "-r", "2", "-t", "1")
COLUMNS = [
    "model", "size", "params", "backend", "threads", "test", "t/s", "ms/token (quartiles)", "MB/token",
    "ffn density", "GB/s", "read GB/s", "share",
]  # fmt: skip
SHARED = [  # llama-bench's names
    "cpu_info", "backends", "model_filename", "model_type", "model_size", "model_n_params", "n_threads",
    "n_prompt", "n_gen", "test_time", "avg_ns", "stddev_ns", "avg_ts", "stddev_ts",
]  # fmt: skip
OWN = [
    "median_ts", "token_low_ns", "token_median_ns", "token_high_ns", "bytes_per_token", "ffn_density", "gb_s",
    "read_gb_s", "share",
]  # fmt: skip


def rows(text: str) -> list[list[str]]:
    """Cells of a Markdown table."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def results(*args: str | Path, **more: Any) -> list[dict[str, Any]]:
    done = rwkv("bench", *args, *QUICK, "--json", **more)
    assert (done.code, done.err) == (0, "")
    found: list[dict[str, Any]] = json.loads(done.out)
    return found


def test_the_table(folder: Path) -> None:
    done = rwkv("bench", "small.safetensors", *QUICK, cwd=folder)
    assert (done.code, done.err) == (0, "")
    head, rule, prefill, decode = rows(done.out)
    assert head == COLUMNS
    assert set("".join(rule)) == set("-:")
    assert len(prefill) == len(decode) == len(COLUMNS)
    assert (prefill[0], prefill[4], prefill[5]) == ("RWKV-7 0.5M bf16", "1", "pp4")
    assert decode[5] == "tg3"
    assert prefill[7:] == ["-"] * 6
    assert decode[-1].endswith(" %")


def test_json_has_llama_benchs_names_and_ours(folder: Path) -> None:
    prefill, decode = results("small.safetensors", cwd=folder)
    assert list(prefill) == [*SHARED, *OWN, "samples_ns", "samples_ts"] == list(decode)
    assert (prefill["n_prompt"], prefill["n_gen"]) == (4, 0)
    assert (decode["n_prompt"], decode["n_gen"]) == (0, 3)
    for row in (prefill, decode):
        assert len(row["samples_ns"]) == len(row["samples_ts"]) == 2
        assert row["model_size"] == (folder / "small.safetensors").stat().st_size
        assert row["model_n_params"] == 521344
        assert (row["model_filename"], row["n_threads"]) == ("small.safetensors", 1)
    assert prefill["bytes_per_token"] is prefill["gb_s"] is None
    assert decode["token_low_ns"] <= decode["token_median_ns"] <= decode["token_high_ns"]
    rate = decode["bytes_per_token"] / decode["token_median_ns"]
    assert decode["gb_s"] == pytest.approx(rate, abs=1e-3)
    assert decode["share"] == pytest.approx(rate / decode["read_gb_s"], rel=0.05, abs=1e-3)


def test_csv_has_the_same_columns(folder: Path) -> None:
    done = rwkv("bench", "small.safetensors", *QUICK, "-o", "csv", cwd=folder)
    assert (done.code, done.err) == (0, "")
    prefill, decode = csv.DictReader(io.StringIO(done.out))
    assert list(prefill) == [*SHARED, *OWN]
    assert (prefill["n_prompt"], prefill["share"], decode["n_gen"]) == ("4", "", "3")
    assert float(decode["avg_ts"]) > 0


def test_bytes_are_the_weights_without_the_embedding_and_the_state_twice(folder: Path) -> None:
    (decode,) = results("small.safetensors", "-p", "0", cwd=folder)[-1:]
    tensors = json.loads(rwkv("show", "small.safetensors", "--tensors", "--json", cwd=folder).out)["tensors"]
    weights = sum(t["bytes"] for t in tensors if t["name"] != "emb.weight")
    state = 2 * (2 * 128 + 2 * 64 * 64) * 4  # 2 layers: two shift vectors, two heads
    assert decode["bytes_per_token"] == weights + 128 * 2 + 2 * state
    assert decode["ffn_density"] is None


def test_channels_that_are_skipped_are_not_counted(folder: Path) -> None:
    for layout in ("tile", "kn"):
        args = ("quantize", "small.pth", "--to", "int8", "--ffn-value", layout, "-o", f"{layout}.safetensors")
        assert rwkv(*args, cwd=folder).code == 0
    found = results("tile.safetensors", "kn.safetensors", cwd=folder)
    assert [(row["model_filename"], row["n_prompt"]) for row in found] == [
        ("tile.safetensors", 4), ("kn.safetensors", 4), ("tile.safetensors", 0), ("kn.safetensors", 0),
    ]  # fmt: skip
    tile, kn = found[2:]
    assert tile["ffn_density"] is None
    assert 0.2 < kn["ffn_density"] < 0.8
    assert kn["bytes_per_token"] < tile["bytes_per_token"]


MB = 1 << 20


@pytest.mark.parametrize(
    ("cache", "free", "size"),
    [(2 * MB, 8000 * MB, 256 * MB), (384 * MB, 8000 * MB, 1024 * MB), (384 * MB, 500 * MB, 250 * MB),
     (2 * MB, 0, MB), (100 * MB, None, 400 * MB)],
)  # fmt: skip
def test_the_memory_that_is_read_is_never_all_that_is_free(
    cache: int, free: int | None, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(machine, "last_level_cache", lambda: cache)
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(free, free))
    monkeypatch.setattr(_kernels, "read_bandwidth", lambda _threads, nbytes, *_: asked.append(nbytes))
    read_bandwidth(1)
    assert asked == [size]


def test_thread_lists_lengths_and_no_warmup(folder: Path) -> None:
    args = ("--thread-list", "1,3", "-p", "2,0", "-n", "1,2", "-r", "1", "--no-warmup", "-o", "json")
    done = rwkv("-m", "small.safetensors", "bench", *args, cwd=folder)
    assert (done.code, done.err) == (0, "")
    assert [(row["n_threads"], row["n_prompt"], row["n_gen"]) for row in json.loads(done.out)] == [
        (threads, *test) for threads in (1, 3) for test in ((2, 0), (0, 1), (0, 2))
    ]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ((), 3, "error: no model is on this machine"),
        (("small.safetensors", "-p", "0", "-n", "0"), 2, "nothing to measure"),
        (("small.safetensors", "-p", "many"), 2, "-p: `many` is not a whole number"),
        (("small.safetensors", "-n", "8,"), 2, "-n: `` is not a whole number"),
        (("small.safetensors", "--thread-list", "0"), 2, "--thread-list: 0 is not between 1 and 1024"),
        (("small.safetensors", "-r", "0"), 2, "`0` is below 1"),
        (("small.safetensors", "-o", "sql"), 2, "`sql` is not one of md, json, csv"),
        (("small.safetensors", "nowhere.safetensors"), 3, "nowhere.safetensors does not exist"),
        (("small.safetensors", "small.pth"), 4, "hint: make one with `rwkv quantize small.pth --to int8`"),
        (("small.safetensors", "--device", "abacus"), 2, "unknown device"),
    ],
)
def test_refusals_come_before_any_result(
    folder: Path, args: tuple[str, ...], code: int, message: str
) -> None:
    done = rwkv("bench", *args, cwd=folder)
    assert (done.code, done.out) == (code, "")
    assert message in done.err


def test_a_terminal_sees_progress_and_then_the_table(folder: Path) -> None:
    terminal = Terminal("bench", "small.safetensors", *QUICK, cwd=folder)
    done = terminal.finish()
    assert done.code == 0
    assert b"RWKV-7 0.5M bf16 pp4" in terminal.raw
    assert "%  " not in done.out.splitlines()[0]
    assert done.out.startswith("| model |")
    quiet = Terminal("bench", "small.safetensors", *QUICK, "-q", cwd=folder)
    assert b"\x1b[" not in quiet.raw + quiet.finish().out.encode()
