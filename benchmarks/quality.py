"""What each format costs in prediction, and how many FFN channels are active: the tables of docs/quality.md.

    python -m benchmarks.quality --books FOLDER --calibrate TEXT demo small.pth@1e-5 > tables.md

Every model is made in every format and compared with its own weights in float32, token by token, by the code behind
`rwkv perplexity --base`. `@X` gives a group-norm epsilon. The text is the part of each book in FOLDER (.txt) that
`tools/train_demo.py` holds back (`--books`), or a file (`--text`); `--calibrate` takes another text. With `--peers`
more tables tell what rounding activations costs, compare formats of other programs with ours at the same bits, and tell
what each kind of matrix costs. Progress goes to stderr; `--json FILE` keeps all numbers.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quant.sources import open_model
from rwkvcli import Model
from rwkvcli.runtime.machine import default_threads
from rwkvcli.runtime.model import demo_path
from rwkvcli.services import evaluation, inspection, quantization
from rwkvcli.services.planning import Choices

ALL4 = r"(att|ffn)\.(receptance|key|value|gate|output)"
"""The matrices that are 4-bit in the default recipe."""
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "f32": ("f32", {}),
    "f16": ("f16", {}),
    "int8": ("int8", {}),
    "int6": ("int6", {}),
    "int6, calibrated": ("int6", {"text": True}),
    "int6, gptq": ("int6", {"text": True, "method": "gptq"}),
    "int6 best": ("int6", {"recipe": "best"}),
    "int5": ("int5", {}),
    "int5, calibrated": ("int5", {"text": True}),
    "int5, gptq": ("int5", {"text": True, "method": "gptq"}),
    "int5 best": ("int5", {"recipe": "best"}),
    "int4": ("int4", {}),
    "int4, groups of 32": ("int4", {"tensors": (f"{ALL4}=q4g32",)}),
    "int4, groups of 16": ("int4", {"tensors": (f"{ALL4}=q4g16",)}),
    "int4, fixed table": ("int4", {"method": "nearest"}),
    "int4, calibrated": ("int4", {"text": True}),
    "int4, gptq": ("int4", {"text": True, "method": "gptq"}),
    "int4 best": ("int4", {"recipe": "best"}),
    "int4 to int8, 6 bits": ("int4", {"target_bpw": 6.0}),
    "int4 to int8, 6 bits, gptq": ("int4", {"target_bpw": 6.0, "text": True, "method": "gptq"}),
    "nf4": ("nf4", {}),
}
"""{what it is called: (kind, choices; `text`: with the text to calibrate with)}. Without bitsandbytes nf4 is left out."""
TOKENS = 4096
"""Of the text to calibrate with."""
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


def made(
    source: Path, out: Path, kind: str, epsilon: float | None, calibrate: bytes = b"", **choices: Any
) -> Path:
    """A model file of `kind`; `text=True` among the choices: calibrated."""
    if choices.pop("text", False):
        choices |= {"text": io.BytesIO(calibrate), "text_name": "calibration", "tokens": TOKENS}
    choices.setdefault("ffn_value", "tile")
    with open_model(source) as opened:
        quantization.quantize(
            opened, out, kind, group_norm_eps=epsilon, force=True, choices=Choices(**choices)
        )
    return out


def measured(path: Path, base: Path, text: bytes, ctx: int | None) -> dict[str, Any]:
    return evaluation.measure(Model.load(path), io.BytesIO(text), base=Model.load(base), ctx=ctx).to_json()


def rows(
    source: Path,
    epsilon: float | None,
    text: bytes,
    ctx: int | None,
    calibrate: bytes,
    wanted: re.Pattern[str],
) -> Iterator[dict[str, Any]]:
    """Every format of one model whose name `wanted` finds, measured."""
    with tempfile.TemporaryDirectory() as folder:
        base = made(source, Path(folder) / "base.safetensors", "f32", epsilon)
        for name, (kind, choices) in FORMATS.items():
            if not wanted.search(name) or (choices.get("text") and not calibrate):
                continue
            if kind == "nf4" and find_spec("bitsandbytes") is None:
                continue
            path = made(source, Path(folder) / "new.safetensors", kind, epsilon, calibrate, **choices)
            yield {
                "format": name,
                "bits": inspection.inspect(path)["bits_per_weight"],
                **measured(path, base, text, ctx),
            }


def density(source: Path, epsilon: float | None, text: bytes) -> list[float]:
    """Share of channels with an activation above 0, of each layer, in int8 (what `kn` files can count)."""
    with tempfile.TemporaryDirectory() as folder:
        path = made(source, Path(folder) / "kn.safetensors", "int8", epsilon, ffn_value="kn")
        model = Model.load(path, device="cpu")
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
    parser.add_argument("--calibrate", type=Path, metavar="FILE", help="text for what takes one")
    parser.add_argument("--peers", action="store_true", help="compare with other programs' formats")
    parser.add_argument(
        "--ggml", type=Path, metavar="LIBRARY", help="libggml-base of llama.cpp, for its K formats"
    )
    parser.add_argument("--density-bytes", type=int, default=20_000, help="text for the density of the FFN")
    parser.add_argument(
        "--formats", type=re.compile, default=re.compile(""), metavar="REGEX", help="only those"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if (args.books is None) == (args.text is None):
        parser.error("give --books or --text")
    text = held_back(args.books, args.per_book) if args.books else args.text.read_bytes()
    calibrate = args.calibrate.read_bytes() if args.calibrate else b""
    everything: dict[str, Any] = {"bytes": len(text), "ctx": args.ctx, "models": {}}
    for name in args.models:
        word, _, epsilon_text = name.partition("@")
        source = demo_path() if word == "demo" else Path(word)
        epsilon = float(epsilon_text) if epsilon_text else None
        print(f"\n{source.stem}\n\n{HEAD}\n|---|" + "---:|" * (HEAD.count("|") - 2), flush=True)
        results = []
        for row in rows(source, epsilon, text, args.ctx, calibrate, args.formats):
            print(table_row(row), flush=True)
            print(f"{source.stem} {row['format']} done, {default_threads()} threads", file=sys.stderr)
            results.append(row)
        shares = density(source, epsilon, text[: args.density_bytes])
        print("\nactive FFN channels by layer: " + ", ".join(f"{100 * share:.0f} %" for share in shares))
        everything["models"][source.stem] = {"formats": results, "density": shares}
        if args.peers:
            from benchmarks import activations
            from benchmarks.weights_only import compare, sensitivity

            with tempfile.TemporaryDirectory() as folder:
                base = made(source, Path(folder) / "base.safetensors", "f32", epsilon)
                everything["models"][source.stem] |= {
                    "activations": activations.compare(
                        base,
                        Path(folder),
                        lambda path, kind: made(source, path, kind, epsilon),  # noqa: B023
                        lambda path, base: measured(path, base, text, args.ctx),
                    ),
                    "peers": compare(
                        base, Path(folder), text, args.ctx, calibrate, TOKENS, args.ggml, args.formats
                    ),
                    "sensitivity": sensitivity(base, Path(folder), text, args.ctx, args.formats),
                }
    if args.json:
        args.json.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
