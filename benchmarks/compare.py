"""This engine beside llama.cpp and the `rwkv` package, on the same random checkpoint, in turns.

    python -m benchmarks.compare 24x1024 --peers /path/to/venv/bin/python --kinds int8 int4 --threads 1 2

Set-up: benchmarks/README.md. Every engine is a process of its own that is asked for one measurement at a time; a round asks each
once for a prompt and once for decoded tokens, in an order that changes from round to round, and reads memory once. A
ratio is taken within a round and its median over the rounds is told: what the machine does meanwhile meets all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import models
from benchmarks.models import Shape
from benchmarks.workers.client import Worker
from rwkvcli.runtime.machine import processor_name
from rwkvcli.services.benchmarking import read_bandwidth

RIVAL = {"int8": "Q8_0", "int6": "Q6_K", "int5": "Q5_K_M", "int4": "Q4_0", "f16": "F16", "f32": "F32"}
"""llama.cpp's format that each of ours is compared with."""

QUANTIZED_RIVALS = [RIVAL[kind] for kind in ("int8", "int6", "int5", "int4")]
"""Those of which the fastest is what a prompt is compared with."""


@dataclass
class Engine:
    """One engine with one file and number of threads, and its rates: tokens per second of each round."""

    label: str
    worker: Worker
    prompt: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def bytes_per_token(self) -> int | None:
        return self.facts.get("bytes_per_token")


def engines(
    stack: contextlib.ExitStack, args: argparse.Namespace, shape: Shape, threads: int
) -> list[Engine]:
    """Start every engine of one shape."""

    def start(label: str, module: str, *words: str, python: str = sys.executable) -> Engine:
        return Engine(label, stack.enter_context(Worker(label, module, *words, python=python)))

    found = []
    for kind in args.kinds:
        found.append(start(kind, "ours", str(models.ours(args.folder, shape, kind)), str(threads)))
        if args.peers:
            path = models.gguf(args.folder, shape, RIVAL[kind], args.peers)
            found.append(start(RIVAL[kind], "llama", str(path), str(threads), python=args.peers))
    if args.package:
        path = models.pth(args.folder, shape)
        words = (str(path), str(threads), args.strategy)
        found.append(start("package", "reference", *words, python=args.package))
    return found


def measure(found: list[Engine], args: argparse.Namespace, threads: int) -> list[float]:
    """Fill the rates in; returns bytes per second of sequential reads, one median per round."""
    for engine in found:  # warm-up: pages, caches, buffers of the right size
        engine.worker.ask("pp", min(args.prompt, 256) or 1)
        engine.worker.ask("tg", 8)
        engine.facts = engine.worker.ask("facts", args.tokens)
    bandwidth = []
    for turn in range(args.rounds):
        bandwidth.append(statistics.median(read_bandwidth(threads)))
        order = found if turn % 2 == 0 else found[::-1]
        for engine in order:
            times = engine.worker.ask("tg", args.tokens)["ns"]
            engine.decode.append(1e9 / statistics.median(times))
        for engine in order:
            if args.prompt and turn < args.prompt_rounds:
                (time,) = engine.worker.ask("pp", args.prompt)["ns"]
                engine.prompt.append(1e9 * args.prompt / time)
    return bandwidth


def ratio(mine: list[float], theirs: Iterable[list[float]]) -> float | None:
    """Median over the rounds of mine to the best of theirs."""
    best = [max(rates) for rates in zip(*theirs, strict=True)]
    ratios = [own / other for own, other in zip(mine, best, strict=True)]
    return statistics.median(ratios) if ratios else None


def rows(found: list[Engine], bandwidth: list[float], shape: Shape, threads: int) -> Iterator[dict[str, Any]]:
    """What is told of each engine of ours and each peer that has no counterpart."""
    by_label = {engine.label: engine for engine in found}
    quantized = [by_label[name].prompt for name in QUANTIZED_RIVALS if name in by_label]
    for engine in found:
        rival = by_label.get(RIVAL.get(engine.label, ""))
        row: dict[str, Any] = {
            "shape": f"{shape.layers}x{shape.width}",
            "ffn_density_made": shape.density,
            "threads": threads,
            "engine": engine.label,
            "decode_ratio": ratio(engine.decode, [rival.decode]) if rival else None,
            "prompt_ratio": ratio(engine.prompt, quantized or [rival.prompt]) if rival else None,
            "decode_ts": summary(engine.decode),
            "prompt_ts": summary(engine.prompt),
            "bytes_per_token": engine.bytes_per_token,
            "ffn_density": engine.facts.get("ffn_density"),
            "read_gb_s": statistics.median(bandwidth) / 1e9,
            "decode_rounds": engine.decode,
            "prompt_rounds": engine.prompt,
            "read_rounds": bandwidth,
        }
        if engine.bytes_per_token is not None:
            rates = [engine.bytes_per_token * rate for rate in engine.decode]
            row["gb_s"] = statistics.median(rates) / 1e9
            row["share"] = statistics.median(r / b for r, b in zip(rates, bandwidth, strict=True))
        yield row


def summary(values: list[float]) -> dict[str, float] | None:
    """Median and range."""
    if not values:
        return None
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def table(found: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown, ratios first."""
    yield (
        "| shape | FFN density | threads | engine | decode ratio | prefill ratio | decode tok/s (range) "
        "| prefill tok/s (range) | MB/token | GB/s | read GB/s | share |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for row in found:
        yield (
            "| "
            + " | ".join(
                (
                    row["shape"],
                    f"{row['ffn_density_made']:g}",
                    str(row["threads"]),
                    row["engine"],
                    number(row["decode_ratio"], 2, "**", "x**"),
                    number(row["prompt_ratio"], 2, "**", "x**"),
                    span(row["decode_ts"]),
                    span(row["prompt_ts"]),
                    number(row["bytes_per_token"] and row["bytes_per_token"] / 1e6, 0),
                    number(row.get("gb_s"), 1),
                    number(row["read_gb_s"], 1),
                    number(row.get("share") and 100 * row["share"], 0, "", " %"),
                )
            )
            + " |"
        )


def number(value: float | None, digits: int, before: str = "", after: str = "") -> str:
    return "-" if value is None else f"{before}{value:.{digits}f}{after}"


def span(values: dict[str, float] | None, digits: int | None = None) -> str:
    """`12.3 (11.9 to 12.4)`."""
    if values is None:
        return "-"
    if digits is None:
        digits = 1 if values["median"] < 200 else 0
    return f"{values['median']:.{digits}f} ({values['low']:.{digits}f} to {values['high']:.{digits}f})"


def main() -> None:
    """Parse, make the files, measure, tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shapes", nargs="*", metavar="LAYERSxWIDTH", help="12x768, 24x1024, 24x2048, ...")
    parser.add_argument("--kinds", nargs="+", default=["int8", "int4"], choices=list(RIVAL))
    parser.add_argument("--densities", nargs="+", type=float, default=[models.PLAIN], help="0.5 is plain")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--prompt", type=int, default=512, help="tokens; 0: none")
    parser.add_argument("--tokens", type=int, default=64, help="decoded in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-rounds", type=int, default=3, help="rounds that take prompts too")
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter with llama-cpp-python and gguf")
    parser.add_argument("--package", metavar="PYTHON", help="interpreter with torch and rwkv")
    parser.add_argument("--strategy", default="cpu fp32", help="of the rwkv package")
    parser.add_argument("--folder", type=Path, default=Path("out"), help="where the files are kept")
    parser.add_argument("--prepare", action="store_true", help="make the files, measure nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, after every step")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="show what --json wrote, only")
    args = parser.parse_args()
    if args.table:
        saved = [json.loads(path.read_text())["rows"] for path in args.table]
        print("\n".join(table([row for part in saved for row in part])))
        return
    told: list[dict[str, Any]] = []
    for density in args.densities:
        for shape in (Shape.parse(text, density) for text in args.shapes):
            for threads in args.threads if not args.prepare else []:
                with contextlib.ExitStack() as stack:
                    found = engines(stack, args, shape, threads)
                    bandwidth = measure(found, args, threads)
                    told += list(rows(found, bandwidth, shape, threads))
                save(args.json, told)
                print(f"{shape.stem}, {threads} threads: done", file=sys.stderr)
            if args.prepare:
                prepare(args, shape)
    if not args.prepare:
        print("\n".join(table(told)))


def save(path: Path | None, told: list[dict[str, Any]]) -> None:
    """Write what was measured so far: a long run that is stopped leaves what it has."""
    if path is not None:
        machine = {"cpu": processor_name(), "time": datetime.now(UTC).isoformat(timespec="seconds")}
        path.write_text(json.dumps({**machine, "rows": told}, indent=1) + "\n")


def prepare(args: argparse.Namespace, shape: Shape) -> None:
    """Make the files of a shape."""
    for kind in args.kinds:
        models.ours(args.folder, shape, kind)
        if args.peers:
            models.gguf(args.folder, shape, RIVAL[kind], args.peers)
    if args.package:
        models.pth(args.folder, shape)


if __name__ == "__main__":
    main()
