"""What each format costs in prediction, and how many FFN channels are active: the tables of docs/quality.md.

    python -m benchmarks.quality --books FOLDER demo small.pth@1e-5 > tables.md

Every model is made in every format and compared with its own weights in float32, token by token, by the code behind
`rwkv perplexity --base`. `@X` gives a group-norm epsilon. The text is the part of each book in FOLDER (.txt) that
`tools/train_demo.py` holds back (`--books`), or a file (`--text`). Progress goes to stderr; `--json FILE` keeps all numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from quant import pipeline
from quant.arch import Arch
from quant.recipe import Plan, make_plan
from quant.sources import open_model
from rwkvcli import Model
from rwkvcli.runtime.machine import default_threads
from rwkvcli.runtime.model import demo_path
from rwkvcli.services import evaluation, inspection, quantization

FORMATS = {
    "f32": ("f32", None),
    "bf16": ("bf16", None),
    "int8": ("int8", None),
    "int4": ("int4", None),
    "int4, all groups of 16": ("int4", "q4g16"),
    "int4, all groups of 32": ("int4", "q4g32"),
}
"""{what it is called: (kind, the encoding that all 4-bit tensors get in place of the recipe's)}."""
VALID_SHARE = 0.05
"""The last part of every book, as in tools/train_demo.py."""
HEAD = (
    "| format | bits per weight | perplexity | bits per byte | ratio to f32 | KL mean | KL 99 % | same top |"
)


def held_back(folder: Path, limit: int | None) -> bytes:
    """The validation text of every book one after the other; `limit`: the first bytes of each."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
    from demo_text import clean, split_book

    books = [split_book(clean(path.read_bytes()), VALID_SHARE)[1] for path in sorted(folder.glob("*.txt"))]
    return b"".join(book.encode()[:limit] for book in books)


@contextlib.contextmanager
def four_bits_as(encoding: str | None) -> Iterator[None]:
    """Let the pipeline plan `encoding` for every 4-bit tensor; None: as the recipe says."""

    def planned(arch: Arch, kind: str, *, ffn_value: str = "auto") -> Plan:
        plan = make_plan(arch, kind, ffn_value=ffn_value)
        return {
            name: item._replace(encoding=encoding) if encoding and item.encoding.startswith("q4") else item
            for name, item in plan.items()
        }

    with mock.patch.object(pipeline, "make_plan", planned):
        yield


def made(source: Path, out: Path, kind: str, epsilon: float | None, **options: Any) -> Path:
    """A model file of `kind`."""
    with open_model(source) as opened:
        quantization.quantize(opened, out, kind, group_norm_eps=epsilon, force=True, **options)
    return out


def rows(source: Path, epsilon: float | None, text: bytes, ctx: int | None) -> Iterator[dict[str, Any]]:
    """Every format of one model, measured."""
    with tempfile.TemporaryDirectory() as folder:
        base = made(source, Path(folder) / "base.safetensors", "f32", epsilon)
        for name, (kind, encoding) in FORMATS.items():
            with four_bits_as(encoding):
                path = made(source, Path(folder) / "new.safetensors", kind, epsilon)
            found = evaluation.measure(
                Model.load(path), io.BytesIO(text), base=Model.load(base), ctx=ctx
            ).to_json()
            yield {"format": name, "bits": inspection.inspect(path)["bits_per_weight"], **found}


def density(source: Path, epsilon: float | None, text: bytes) -> list[float]:
    """Share of channels with an activation above 0, of each layer, in int8 (what `kn` files can count)."""
    with tempfile.TemporaryDirectory() as folder:
        path = made(source, Path(folder) / "kn.safetensors", "int8", epsilon, ffn_value="kn")
        model = Model.load(path)
        backend: Any = model.backend
        backend.count_active_channels(True)
        tokens = model.tokenizer.encode_bytes(text)
        model.forward(tokens, model.new_state())
        return [count / len(tokens) / model.config.n_ffn for count in backend.active_channels]


def table_row(row: dict[str, Any]) -> str:
    base = row["base"]
    cells = (
        row["format"],
        f"{row['bits']:.2f}",
        f"{row['perplexity']:.4f} ± {row['stderr']:.4f}",
        f"{row['bits_per_byte']:.4f}",
        f"{base['ratio']:.5f} ± {base['ratio_stderr']:.5f}",
        f"{base['kl']['mean']:.3g}",
        f"{base['kl']['p99']:.3g}",
        f"{100 * base['same_top']:.2f} %",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models", nargs="+", metavar="MODEL[@EPSILON]", help="demo, a checkpoint or a model file"
    )
    parser.add_argument("--books", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--per-book", type=int, metavar="BYTES", help="only the beginning of what is held back"
    )
    parser.add_argument("--text", type=Path, metavar="FILE")
    parser.add_argument(
        "--ctx", type=int, metavar="N", help="windows of N tokens, as `rwkv perplexity --ctx`"
    )
    parser.add_argument("--density-bytes", type=int, default=20_000, help="text for the density of the FFN")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if (args.books is None) == (args.text is None):
        parser.error("give --books or --text")
    text = held_back(args.books, args.per_book) if args.books else args.text.read_bytes()
    everything: dict[str, Any] = {"bytes": len(text), "ctx": args.ctx, "models": {}}
    for name in args.models:
        word, _, epsilon_text = name.partition("@")
        source = demo_path() if word == "demo" else Path(word)
        epsilon = float(epsilon_text) if epsilon_text else None
        print(f"\n{source.stem}\n\n{HEAD}\n|---|" + "---:|" * (HEAD.count("|") - 2), flush=True)
        results = []
        for row in rows(source, epsilon, text, args.ctx):
            print(table_row(row), flush=True)
            print(f"{source.stem} {row['format']} done, {default_threads()} threads", file=sys.stderr)
            results.append(row)
        shares = density(source, epsilon, text[: args.density_bytes])
        print("\nactive FFN channels by layer: " + ", ".join(f"{100 * share:.0f} %" for share in shares))
        everything["models"][source.stem] = {"formats": results, "density": shares}
    if args.json:
        args.json.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
