"""`rwkv list`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from rwkvcli.cli.console import Console
from rwkvcli.cli.options import Misuse, with_settings
from rwkvcli.cli.settings import Settings

EXAMPLES = """
  rwkv list
  rwkv list --remote
  rwkv list --remote world6
  rwkv list --remote owner/repo
  rwkv list --json | jq -r '.[] | select(.what == "checkpoint") | .name'
"""


@with_settings
def list(  # the verb's name
    settings: Settings,
    *,
    where: Annotated[
        str | None,
        typer.Argument(
            metavar="WHERE", help="--remote: a family, a short name, or owner/repo.", show_default=False
        ),
    ] = None,
    remote: Annotated[
        bool, typer.Option("--remote", help="List what is on the Hugging Face Hub; asks the network.")
    ] = False,
) -> None:
    """List the models on this machine, or on the Hub.

    Here: model files that were made of downloads (int4, int5, int6, int8), downloads, downloads that were interrupted, and
    the built-in model; each name is a MODEL for every other verb. With --remote the newest file of every
    short name, or every model file of a repository.
    """
    console = Console(settings)
    if remote:
        _tell_remote(console, where)
    elif where is not None:
        raise Misuse("a family or repository is listed with --remote")
    else:
        _tell_local(console)


def _tell_local(console: Console) -> None:
    from rwkvcli.cli.render import size, table
    from rwkvcli.services.catalog import BUILT_IN, entries
    from rwkvcli.services.hub_cache import hub_cache
    from rwkvcli.services.kept import PLACE

    found = entries()
    if console.settings.json:
        console.line(json.dumps([entry.to_json() for entry in found]))
        return
    rows = [("name", "what", "size", "date", "made from")]
    for entry in found:
        told = entry.to_json()
        origin = f"{entry.repo}:{entry.file}" if entry.repo and entry.file else entry.repo or "-"
        rows.append((entry.name, entry.what, size(entry.nbytes), told["date"], origin))
    console.line("\n".join(table(rows, right=(2,))))
    total = sum(entry.nbytes for entry in found if entry.what != BUILT_IN)
    if total:
        console.note(f"{size(total)} in {hub_cache()} and {PLACE.told()}")
    else:
        console.note("nothing was downloaded yet: `rwkv list --remote` shows what there is")


def _tell_remote(console: Console, where: str | None) -> None:
    from rwkvcli.cli.render import size, table
    from rwkvcli.errors import NetworkError
    from rwkvcli.services import catalog, hub_cache
    from rwkvcli.services.store import how_to_go_online

    offline = console.settings.offline
    if offline or hub_cache.is_offline():
        raise NetworkError("--remote asks the Hub, and the network is off", hint=how_to_go_online(offline))

    def missing(repo: str) -> None:
        console.note(f"{repo} is not there, or private")

    found = [*catalog.remote(where, missing if where is None else None)]
    if console.settings.json:
        console.line(json.dumps([asdict(item) for item in found]))
        return
    rows = [("name", "date", "size", "here", "file")]
    for item in found:
        here = item.here or ("an older one" if item.older else "-")
        rows.append((item.name, _date(item.date), size(item.nbytes), here, f"{item.repo}:{item.file}"))
    console.line("\n".join(table(rows, right=(2,))))


def _date(digits: str) -> str:
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:]}" if digits else "-"
