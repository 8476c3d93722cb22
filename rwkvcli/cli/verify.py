"""`rwkv verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rwkvcli.cli.console import Console
from rwkvcli.cli.options import with_settings
from rwkvcli.cli.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rwkvcli.services.catalog import Entry

EXAMPLES = """
  rwkv verify
  rwkv verify g1-1.5b
  rwkv verify owner/repo:model.pth --json
"""


@with_settings
def verify(
    settings: Settings,
    *,
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL...", help="Default: everything that is here.", show_default=False),
    ] = None,
) -> None:
    """Compare models with their checksums.

    Downloads are compared with the Hub's checksum, what was made of them with the one that was noted then. Exit
    code 4 if one differs. A path has no checksum to compare with: it is read whole, and its own checks are made.
    """
    from rwkvcli.cli.watching import Bars
    from rwkvcli.errors import FormatError
    from rwkvcli.services import catalog
    from rwkvcli.services.store import parse, quoted

    console = Console(settings)
    paths, entries = [], []
    for name in models or []:
        if isinstance(path := parse(name), Path):
            paths.append(path)
        else:
            entries += catalog.removable(name)
    if not models:
        entries = catalog.entries()
        if not _files(entries):
            console.note("nothing is here to compare: `rwkv pull` brings models")
    damaged: list[Entry] = []
    refused: dict[Path, FormatError] = {}
    for path in paths:
        try:
            with Bars(console, path.name) as bars:
                digest = catalog.read_whole(path, bars.checking)
        except FormatError as error:  # the others are asked for too
            refused[path] = error
            if len(paths) + len(entries) > 1:
                _tell(console, str(path), str(path), "refused", str(error))
        else:
            _tell(console, str(path), str(path), "sound", f"sound, sha256 {digest}")
    for entry in _files(entries):
        with Bars(console, entry.name) as bars:
            sound = catalog.is_sound(entry, bars.checking)
        told = {True: "sound", False: "damaged", None: "unknown"}[sound]
        more = "no checksum is known of it" if sound is None else told
        _tell(console, entry.name, str(entry.path), told, f"{entry.what}: {more}")
        if sound is False:
            damaged.append(entry)
    if len(refused) == 1 and not damaged:
        raise next(iter(refused.values()))
    if refused:
        more = f"; {len(damaged)} damaged: {_paths(entry.path for entry in damaged)}" if damaged else ""
        raise FormatError(f"{len(refused)} refused: {_paths(refused)}{more}")
    if damaged:
        name = quoted(damaged[0].name)
        raise FormatError(
            f"{len(damaged)} damaged: {_paths(entry.path for entry in damaged)}",
            hint=f"remove it with `rwkv rm {name}`, and pull it again",
        )


def _paths(paths: Iterable[Path]) -> str:
    return ", ".join(map(str, paths))


def _files(entries: Sequence[Entry]) -> list[Entry]:
    """Those that are whole files of their own."""
    from rwkvcli.services.catalog import BUILT_IN, INTERRUPTED

    return [entry for entry in entries if entry.what not in (BUILT_IN, INTERRUPTED)]


def _tell(console: Console, name: str, path: str, result: str, text: str) -> None:
    if console.settings.json:
        console.line(json.dumps({"name": name, "path": path, "result": result}))
    else:
        console.line(f"{name}: {text}")
