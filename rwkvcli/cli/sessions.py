"""`rwkv sessions`."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rwkvcli.cli.console import Console
from rwkvcli.cli.options import Misuse, check_target, with_settings
from rwkvcli.cli.settings import Settings

EXAMPLES = """
  rwkv sessions list
  rwkv sessions export trip > trip.md
  rwkv sessions export trip --format jsonl -o trip.jsonl
  rwkv sessions rm trip
"""


class Action(StrEnum):
    """What can be done with conversations."""

    list = "list"
    export = "export"
    rm = "rm"


class Form(StrEnum):
    """What `--format` takes."""

    md = "md"
    jsonl = "jsonl"


@with_settings
def sessions(
    settings: Settings,
    *,
    action: Annotated[Action, typer.Argument(metavar="ACTION", help="list, export or rm.")] = Action.list,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="Conversations.", show_default=False)
    ] = None,
    form: Annotated[
        Form | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="Of an export: md, or jsonl with role and content. Default: md; with --json jsonl.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", metavar="FILE", help="Export to FILE in place of stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """List, export and remove conversations.

    They are what `rwkv chat` saves, each in a folder of its own (RWKV_SESSIONS names the folder of all). An export is the
    current branch.
    """
    check_target(out)
    from rwkvcli.services import sessions as service

    console = Console(settings)
    wanted = names or []
    if (action is Action.list and wanted) or (action is not Action.list and not wanted):
        raise Misuse("write `rwkv sessions list`" if wanted else f"write `rwkv sessions {action.value} NAME`")
    if action is Action.list:
        _tell_all(console)
    elif action is Action.rm:
        for name in wanted:
            service.remove(name)
            console.note(f"{name} was removed")
    else:
        if len(wanted) > 1:
            raise Misuse("one conversation is exported at a time")
        usual = Form.jsonl if settings.json else Form.md
        _export(console, wanted[0], form or usual, out, force)


def _tell_all(console: Console) -> None:
    from rwkvcli.cli.render import size, table
    from rwkvcli.services.sessions import sessions_path, summaries

    found = summaries()
    if console.settings.json:
        console.json([asdict(item) for item in found])
        return
    if not found:
        console.note(f"no conversations in {sessions_path()}: `rwkv chat NAME` begins one")
        return
    rows = [("name", "model", "turns", "branches", "size", "last turn")]
    for item in found:
        model = Path(item.model).name if item.model else "(damaged)"
        rows.append(
            (item.name, model, str(item.turns), str(item.branches), size(item.nbytes), item.updated or "-")
        )
    console.line("\n".join(table(rows, right=(2, 3, 4))))


def _export(console: Console, name: str, form: Form, out: str | None, force: bool) -> None:
    from quant.atomic import new_file, whole_file
    from rwkvcli.services.sessions import transcript
    from rwkvcli.services.transcripts import transcript as written

    text = written(transcript(name), name, form.value)
    if out is None:
        console.write(text)
        return
    path = new_file(out, force=force, kept={})
    with whole_file(path) as file:
        file.write(text.encode("utf-8", "replace"))
