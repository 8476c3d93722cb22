"""`rwkv tokenize`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from rwkvcli.cli.console import Console, is_terminal
from rwkvcli.cli.options import Misuse, with_settings
from rwkvcli.cli.prompt import gather_prompt
from rwkvcli.cli.settings import Settings

EXAMPLES = """
  rwkv tokenize -m demo "Hello"
  rwkv tokenize --tokenizer world --count < book.txt
  rwkv tokenize -m model.safetensors --json "Hello world" | jq .tokens
"""


@with_settings
def tokenize(
    settings: Settings,
    *,
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="Text; - is stdin.", show_default=False)
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option("-f", "--file", metavar="FILE", help="Read text from FILE; - is stdin. Repeatable."),
    ] = None,
    keep_newline: Annotated[
        bool, typer.Option("--keep-newline", help="Keep the newline at the end of stdin and files.")
    ] = False,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer", metavar="NAME", help="world, bytes or a tokenizer.json, without a model."
        ),
    ] = None,
    count: Annotated[bool, typer.Option("--count", help="Print how many there are.")] = False,
) -> None:
    """Turn text into token ids.

    The ids come in one line. The text is put together as for `rwkv generate`. The model's weights are not
    read, so that any size of model will do.
    """
    from rwkvcli.cli.vocabulary import chosen_tokenizer
    from rwkvcli.services.tokenizing import described

    console = Console(settings)
    data = gather_prompt(text, file or [], keep_newline=keep_newline)
    if data is None:
        why = "stdin is a terminal" if is_terminal(sys.stdin) else "stdin is empty"
        raise Misuse(f"no text: give TEXT, or pipe text in ({why})")
    vocabulary = chosen_tokenizer(console, tokenizer)
    ids = vocabulary.encode_bytes(data)
    if settings.json:
        answer = {"count": len(ids)} if count else described(vocabulary, ids)
        console.json(answer)
    else:
        console.line(str(len(ids)) if count else " ".join(map(str, ids)))
