"""Which vocabulary a verb is to use: --tokenizer, or the model's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rwkvcli.cli.console import Console
from rwkvcli.cli.options import Misuse

if TYPE_CHECKING:
    from rwkvcli.services.tokenizing import Vocabulary


def chosen_tokenizer(console: Console, name: str | None) -> Vocabulary:
    """The vocabulary that --tokenizer names, else that of the model."""
    from rwkvcli.services import tokenizing

    if name is not None:
        return tokenizing.tokenizer_named(name)
    if console.settings.model is None:
        raise Misuse("no vocabulary: give a model with -m, or --tokenizer, for example `-m demo`")
    from rwkvcli.cli.download import model_file

    return tokenizing.tokenizer_of(model_file(console, console.settings.model).path)
