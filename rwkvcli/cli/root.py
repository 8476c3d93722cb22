"""The program `rwkv`: its verbs, its help page, and how a verb is found and loaded when it is called."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from rwkvcli.cli.console import write_error_stream
from rwkvcli.cli.helptext import Page, VerbCommand
from rwkvcli.cli.options import with_root_options
from rwkvcli.cli.parsing import convert_plainly
from rwkvcli.cli.settings import Settings

VERBS = {
    "chat": "Talk with a model.",
    "generate": "Continue a text with a model.",
    "score": "Tell which of several texts is the likeliest to come next.",
    "serve": "Answer programs over HTTP that speak OpenAI's protocol.",
    "state": "Build states, and look at, compare and convert them.",
    "quantize": "Make a model file out of a checkpoint.",
    "export": "Write a model in the format of another tool.",
    "show": "Show what is inside a model file or a checkpoint.",
    "pull": "Download a model from the Hugging Face Hub.",
    "list": "List the models on this machine, or on the Hub.",
    "verify": "Compare models with their checksums.",
    "rm": "Remove models from this machine.",
    "perplexity": "Measure how well a model predicts a text.",
    "eval": "Test a model on a task.",
    "bench": "Measure how fast models run on this machine.",
    "tokenize": "Turn text into token ids.",
    "detokenize": "Turn token ids back into text.",
    "doctor": "Tell what this machine can do, and whether a model fits.",
    "sessions": "List, export and remove conversations.",
    "config": "Read and change your defaults.",
    "completion": "Print a script that completes commands in your shell.",
}
"""Every verb and its one-line help, so that `rwkv --help` loads none of them. Each verb's own
help begins with the same line."""

EXAMPLES = """
  rwkv quantize demo --to int4 -o demo-int4.safetensors
  echo "It was a fine morning, and" | rwkv generate -m demo-int4.safetensors
  rwkv generate -m demo "Once upon a time" --max-tokens 100
  rwkv chat demo
  rwkv chat -m g1-1.5b
  rwkv pull g1-0.4b --quantize int8
  rwkv show demo
"""


class VerbGroup(Page, TyperGroup):
    """The verbs, each imported from `rwkvcli.cli.<verb>` when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all verbs, in the order of the help page."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Load the verb, or return None when there is none of this name."""
        return load_verb(cmd_name) if cmd_name in VERBS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the verb that `args` begins with; an unknown one is a usage error that names the nearest."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], VERBS, n=1)
            ctx.fail(f"no verb `{args[0]}`" + (f"; did you mean `{near[0]}`?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list of verbs for the help page, without loading any."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


def load_verb(name: str) -> Any:
    """The command of one verb: the function of the same name in its module, with the module's EXAMPLES."""
    module = importlib.import_module(f"rwkvcli.cli.{name}")
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    function = getattr(module, name)
    context = getattr(module, "CONTEXT", None)
    app.command(
        name, cls=VerbCommand, epilog=module.EXAMPLES, add_help_option=False, context_settings=context
    )(function)
    return convert_plainly(typer.main.get_command(app), function)


@with_root_options
def _root(ctx: typer.Context) -> None:
    """Run RWKV language models (v4 to v7) on your own machine.

    The answer goes to stdout and everything else to stderr. `rwkv VERB --help` explains a verb. An option
    can also be set by the environment variable in brackets, and all but --json for good by `rwkv config`.

    Exit codes: 0 done; 1 unexpected; 2 usage; 3 not found, or no network; 4 a file is refused; 5 no memory, disk
    or device; 6 worse than a limit; 7 some lines of a batch failed; 124 out of time; 130 interrupted.
    """
    if ctx.invoked_subcommand is None:
        write_error_stream(ctx.get_help() + "\n")
        raise typer.Exit(2)


def program() -> Any:
    """The whole program as a Typer command."""
    app = typer.Typer(
        cls=VerbGroup,
        add_completion=False,
        rich_markup_mode=None,
        invoke_without_command=True,
        subcommand_metavar="VERB ...",
        epilog=EXAMPLES,
        add_help_option=False,
    )
    app.callback()(_root)
    return convert_plainly(typer.main.get_command(app), _root)


def run(args: list[str], understood: Callable[[Settings], None] | None = None) -> int:
    """Parse and run `args`. Errors come out as exceptions; `app.main` turns them into text.

    `understood` is called with the global options when all is parsed, before the verb begins.
    """
    command = program()
    try:
        with command.make_context("rwkv", list(args), obj=understood) as ctx:
            command.invoke(ctx)
    except typer.Exit as end:
        return end.exit_code
    return 0
