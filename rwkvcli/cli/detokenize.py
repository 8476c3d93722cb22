"""`rwkv detokenize`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from rwkvcli.cli.console import Console, is_terminal
from rwkvcli.cli.options import Misuse, with_settings
from rwkvcli.cli.prompt import gather_prompt
from rwkvcli.cli.settings import Settings

EXAMPLES = """
  rwkv detokenize -m demo 72 101 108 108 111
  rwkv tokenize --tokenizer world "Hello world" | rwkv detokenize --tokenizer world
"""


@with_settings
def detokenize(
    settings: Settings,
    *,
    ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ID...", help="Token ids; without any, they come on stdin.", show_default=False
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer", metavar="NAME", help="world, bytes or a tokenizer.json, without a model."
        ),
    ] = None,
) -> None:
    """Turn token ids back into text.

    Ids may be separated by spaces, commas or lines, and stand in brackets. Stdout gets their bytes as they
    are, also where they are no whole characters.
    """
    from rwkvcli.cli.vocabulary import chosen_tokenizer
    from rwkvcli.services.tokenizing import parse_ids

    console = Console(settings)
    words = list(ids or [])
    if not words:
        piped = gather_prompt(None, [])
        if piped is None and is_terminal(sys.stdin):
            raise Misuse("no ids: give some, or pipe them in (stdin is a terminal)")
        words = [(piped or b"").decode("utf-8", "replace")]
    numbers = parse_ids(words)
    data = chosen_tokenizer(console, tokenizer).decode_bytes(numbers)
    if settings.json:
        text = data.decode("utf-8", "replace")
        console.json({"text": text, "count": len(numbers)})
        return
    console.write(data.decode("utf-8", "surrogateescape"))
    if console.out_is_terminal and not data.endswith(b"\n"):
        console.write("\n")
