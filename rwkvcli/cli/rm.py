"""`rwkv rm`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from rwkvcli.cli.console import Console
from rwkvcli.cli.options import Misuse, with_settings
from rwkvcli.cli.settings import Settings

if TYPE_CHECKING:
    from rwkvcli.services.catalog import Entry

EXAMPLES = """
  rwkv rm g1-1.5b                                  # all of it: what was made, and the downloads
  rwkv rm g1-1.5b --source                         # the downloads alone
  rwkv rm g1-1.5b-int8@20260812 --yes
  rwkv rm owner/repo:model.pth
  rwkv rm owner/repo --interrupted
  rwkv rm "$(rwkv list --json | jq -r '.[0].path')"
"""


@with_settings
def rm(
    settings: Settings,
    *,
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="As `rwkv list` names them.")],
    source: Annotated[
        bool, typer.Option("--source", help="The downloads alone, not what was made of them.")
    ] = False,
    interrupted: Annotated[
        bool, typer.Option("--interrupted", help="What broken-off downloads of the repository left, alone.")
    ] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> None:
    """Remove models from this machine.

    A name without a date means all of its dates, a name without int4, int5, int6 or int8 what was made of the download
    and the download itself, a repository all that is here of it. What goes is listed, and asked about; without a
    terminal --yes is needed. Downloads are removed from the cache that all programs share.
    """
    from rwkvcli.cli.render import size, table
    from rwkvcli.services import catalog

    console = Console(settings)
    if source and interrupted:
        raise Misuse("--source and --interrupted are different things: choose one")
    found: dict[str, Entry] = {}
    for name in models:
        for entry in catalog.removable(name, source=source, interrupted=interrupted):
            found[str(entry.path)] = entry
    total = size(sum(entry.nbytes for entry in found.values()))
    rows = [(entry.name, entry.what, size(entry.nbytes), str(entry.path)) for entry in found.values()]
    if not yes:
        if not console.may_ask:
            raise Misuse("rm asks before it removes, and there is no terminal to ask on: --yes says yes")
        from rwkvcli.cli.console import write_error_stream

        write_error_stream("\n".join(table(rows, right=(2,))) + "\n")
        if not console.ask(f"Remove {'it' if len(rows) == 1 else 'them'}, {total}?", default=False):
            console.note("nothing was removed")
            return
    for entry in found.values():
        catalog.remove(entry)
        if settings.json:
            console.line(json.dumps(entry.to_json()))
    console.note(f"removed: {total}")
