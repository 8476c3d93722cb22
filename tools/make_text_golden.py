"""Record what the PyPI package `rwkv` makes of some texts, for tests that run without that package.

    python tools/make_text_golden.py tests/golden/world_tokens.json

Each case is [bytes in hexadecimal, ids]. `vocabulary` is the SHA-256 of all entries in the order of their ids, each
preceded by its length as one byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from pathlib import Path

TEXTS = [
    "",
    "Hello world",
    "The quick brown fox jumps over the lazy dog. " * 3,
    "User: What is 12345.678 + 90?\n\nAssistant: <think>\n</think>\n\n12435.678",
    "def f(x: int) -> str:\n    return f'{x!r}'  # comment\n\n\nclass A:\n\tpass\n",
    "#include <stdio.h>\r\nint main(void) { return 0; }\r\n",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "吾輩は猫である。名前はまだ無い。",
    "다람쥐 헌 쳇바퀴에 타고파",
    "Съешь же ещё этих мягких французских булок, да выпей чаю",
    "Ζαφείρι δέξου πάγκαλο, βαθῶν ψυχῆς τὸ σῆμα",
    "نص حكيم له سر قاطع وذو شأن عظيم",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "👩‍👩‍👧‍👦 🇫🇷 é é ﬁ \u200b\ufeff\u2028",
    " " * 100 + "\t" * 20 + "\n" * 30,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "--------------------------------================================",
    "https://github.com/BlinkDL/RWKV-LM?tab=readme#x=%20y",
    "0.1 1e-5 0xDEADBEEF 1,000,000 ½ ² Ⅷ",
    "\x00\x01\x7f",
]


def cases() -> list[bytes]:
    """The texts, then random bytes and random slices of the texts cut anywhere, also inside characters."""
    generator = random.Random(20230424)
    texts = [text.encode("utf-8") for text in TEXTS]
    joined = b"".join(texts)
    noise = [generator.randbytes(generator.randrange(1, 80)) for _ in range(20)]
    slices = []
    for _ in range(20):
        begin = generator.randrange(len(joined))
        slices.append(joined[begin : begin + generator.randrange(1, 60)])
    return texts + noise + slices


def main() -> None:
    from rwkv import rwkv_tokenizer

    parser = argparse.ArgumentParser(description="Record the World tokenizer's ids for the tests.")
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    vocabulary = Path(rwkv_tokenizer.__file__).with_name("rwkv_vocab_v20230424.txt")
    tokenizer = rwkv_tokenizer.TRIE_TOKENIZER(str(vocabulary))
    entries = [tokenizer.idx2token[number] for number in sorted(tokenizer.idx2token)]
    digest = hashlib.sha256(b"".join(bytes([len(entry)]) + entry for entry in entries)).hexdigest()
    record = {
        "vocabulary": digest,
        "cases": [[case.hex(), tokenizer.encodeBytes(case)] for case in cases()],
    }
    args.target.write_text(
        json.dumps(record, separators=(",", ":")).replace("],[", "],\n[") + "\n", encoding="ascii"
    )


if __name__ == "__main__":
    main()
