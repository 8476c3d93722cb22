"""How help pages look: options in sections, examples word for word."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

from rwkvcli.cli.options import GLOBAL_PANEL, SAMPLING_PANEL

_TEXTS = ("PROMPT", "TEXT")
"""What stands for text in help pages."""
_UsageError: Any = typer.BadParameter.__base__
_SECTIONS = ("Options", SAMPLING_PANEL, GLOBAL_PANEL)


class Page:
    """A help page whose options stand in sections and whose epilog is a block of examples.

    A mix-in for Typer's command classes; the methods it overrides are Click's.
    """

    epilog: str | None

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words of the usage line: nothing of a nameless argument, and one ellipsis where Typer adds a second."""
        pieces = super().collect_usage_pieces(ctx)  # type: ignore[misc]
        return [piece.replace("...]...", "...]") for piece in pieces if piece.strip("[].")]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, the verb's own options, the sampler's, the global ones, and (for the program) the verbs."""
        arguments = []
        sections: dict[str, list[tuple[str, str]]] = {name: [] for name in _SECTIONS}
        for param in self.get_params(ctx):  # type: ignore[attr-defined]
            record = param.get_help_record(ctx)
            if record is None:
                continue
            if param.param_type_name == "argument":
                arguments.append(record)
            else:
                panel = getattr(param, "rich_help_panel", None)
                sections["Options" if panel is None else panel].append(record)
        if hasattr(self, "format_commands"):
            self.format_commands(ctx, formatter)
        for title, records in (("Arguments", arguments), *sections.items()):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples as they stand."""
        if self.epilog:
            formatter.write_paragraph()
            formatter.write("Examples:\n" + self.epilog.strip("\n") + "\n")


class VerbCommand(Page, TyperCommand):
    """A verb."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Sort the words of the command line; those that are too many after a text are likely more of it."""
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            text = next((param.metavar for param in self.params if param.metavar in _TEXTS), None)
            if text is not None and "unexpected extra argument" in error.message:
                error.message += f": {text} is one argument, write several words in quotes"
            raise
