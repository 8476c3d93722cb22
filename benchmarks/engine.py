"""Decode and prefill speed of the engine on seeded random models of real shapes, beside the read bandwidth.

    python benchmarks/engine.py 12x768 24x1024 --kinds int8 int4 --threads 1 2

Random weights make about half of the relu² activations zero; large trained models about 87 %. `--density 0.13` makes a
checkpoint with that density. Models are kept in --folder between runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from quant.checkpoints import open_checkpoint
from quant.checkpoints.write import write_safetensors
from quant.synthetic import iter_checkpoint
from rwkvcli import Model


def read_bandwidth(threads: int, megabytes: int = 512) -> float:
    """GB/s of sequential reads of memory that no cache holds, by `threads` threads: the median of 7 rounds."""
    from concurrent.futures import ThreadPoolExecutor

    parts = [np.ones(megabytes * 1_000_000 // 8 // threads, np.float64) for _ in range(threads)]
    rounds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(7):
            begin = time.perf_counter()
            list(pool.map(np.max, parts))  # numpy releases the GIL; max is a vectorised pass over the data
            rounds.append(sum(part.nbytes for part in parts) / (time.perf_counter() - begin) / 1e9)
    return statistics.median(rounds)


def model_file(folder: Path, shape: str, version: str, kind: str, density: float) -> Path:
    from rwkvcli.services.quantization import quantize

    layers, width = map(int, shape.split("x"))
    stem = f"v{version}-{shape}-{density:g}"
    out = folder / f"{stem}-{kind}.safetensors"
    if not out.exists():
        source = folder / f"{stem}.safetensors"
        if not source.exists():
            write_safetensors(
                source, iter_checkpoint(version, layers, width, 65536, seed=1, ffn_density=density), "bf16"
            )
        with open_checkpoint(source) as checkpoint:
            quantize(checkpoint, out, kind)
    return out


def measure(path: Path, threads: int, prompt: int, tokens: int) -> dict[str, float]:
    """Medians: prompt tokens/s (best of 3, so that a noisy neighbour counts less), seconds per decoded token."""
    model = Model.load(path, threads=threads)
    rng = np.random.default_rng(0)
    state = model.new_state()
    model.forward(rng.integers(0, 65530, 64), state)
    seconds = []
    for token in rng.integers(0, 65530, tokens):
        begin = time.perf_counter()
        model.forward([int(token)], state)
        seconds.append(time.perf_counter() - begin)
    rates = []
    for _ in range(3):
        ids = rng.integers(0, 65530, prompt)
        begin = time.perf_counter()
        model.forward(ids, state)
        rates.append(prompt / (time.perf_counter() - begin))
    quartiles = statistics.quantiles(seconds, n=4)
    return {
        "prefill": max(rates),
        "decode": 1 / statistics.median(seconds),
        "decode_low": 1 / quartiles[2],
        "decode_high": 1 / quartiles[0],
        "weight_mb": getattr(model.backend, "weight_bytes", 0) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shapes", nargs="+", metavar="LAYERSxWIDTH")
    parser.add_argument("--version", default="7")
    parser.add_argument("--kinds", nargs="+", default=["int8", "int4"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--density", type=float, default=0.5, help="share of non-zero relu² activations")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=Path("out"))
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if not args.json:
        print(
            "| model | threads | prefill tok/s | decode tok/s (quartiles) | MB/token | GB/s | read GB/s | share |"
        )
        print("|---|---|---|---|---|---|---|---|")
    for shape in args.shapes:
        for kind in args.kinds:
            path = model_file(args.folder, shape, args.version, kind, args.density)
            for threads in args.threads:
                bandwidth = read_bandwidth(threads)
                row = measure(path, threads, args.prompt, args.tokens)
                rate = row["weight_mb"] * row["decode"] / 1e3
                if args.json:
                    print(
                        json.dumps({"model": path.stem, "threads": threads, "read_gb_s": bandwidth, **row}),
                        flush=True,
                    )
                    continue
                print(
                    f"| {path.stem} | {threads} | {row['prefill']:.0f} | {row['decode']:.1f} "
                    f"({row['decode_low']:.1f} to {row['decode_high']:.1f}) | {row['weight_mb']:.0f} | {rate:.1f} "
                    f"| {bandwidth:.1f} | {100 * rate / bandwidth:.0f} % |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
