"""Which vocabulary a verb is to use: --tokenizer, or the model's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rwkvcli.cli.console import Console
from rwkvcli.cli.options import Misuse

if TYPE_CHECKING:
    from rwkvcli.services.tokenizing import Vocabulary


def chosen_tokenizer(console: Console, name: str | None) -> Vocabulary:
    """The vocabulary that --tokenizer names, else that of the model; none is downloaded for its vocabulary alone."""
    from rwkvcli.cli.download import best_here, model_file
    from rwkvcli.services import tokenizing

    if name is not None:
        return tokenizing.tokenizer_named(name)
    model = console.settings.model or best_here(console)
    if model is None:
        raise Misuse("no vocabulary: give a model with -m, or --tokenizer, for example `-m demo`")
    return tokenizing.tokenizer_of(model_file(console, model).path)
