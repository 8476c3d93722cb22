"""`rwkv pull`."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rwkvcli.cli.console import Console
from rwkvcli.cli.options import Misuse, with_settings
from rwkvcli.cli.settings import Settings

if TYPE_CHECKING:
    from rwkvcli.services.pulling import Plan
    from rwkvcli.services.store import LocalModel

EXAMPLES = """
  rwkv pull g1-1.5b --quantize int4                # the newest file, ready to run
  rwkv pull g1-1.5b@20260812                       # that of a day
  rwkv pull g1-7.2b --quantize int8 --dry-run      # what it would take
  rwkv pull BlinkDL/rwkv7-g1:rwkv7-g1d-0.4b-20260210-ctx8192.pth
  rwkv pull --update                               # newer files of all that is here
  rwkv quantize "$(rwkv pull owner/repo:model.pth@main)" --to bf16
"""


class Kind(StrEnum):
    """What `--quantize` takes."""

    int8 = "int8"
    int6 = "int6"
    int5 = "int5"
    int4 = "int4"


@with_settings
def pull(
    settings: Settings,
    *,
    wanted: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A name such as g1-1.5b (`rwkv list --remote`), or owner/repo[:file][@revision].",
            show_default=False,
        ),
    ] = None,
    quantize: Annotated[
        Kind | None,
        typer.Option(
            "--quantize",
            metavar="FORMAT",
            help="Make a model file of it: int8, int6, int5 or int4, and keep that.",
            show_default=False,
        ),
    ] = None,
    keep_source: Annotated[
        bool | None,
        typer.Option(
            "--keep-source/--discard-source",
            help="--quantize: what becomes of the download. Default: ask; without a terminal keep it.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell sizes; fetch nothing.")] = False,
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help="Without MODEL: everything here that has a short name, in the formats made of it.",
        ),
    ] = False,
) -> None:
    """Download a model from the Hugging Face Hub.

    A short name stands for the newest file of its size. Stdout is the path: of the model file with --quantize, which
    `-m NAME` finds from then on, else of the download, in the cache that all programs share. An interrupted
    download is resumed by the next one, and every download is compared with the Hub's checksum. HF_HOME,
    HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are respected; RWKV_MODELS names the folder of what is made.
    """
    from rwkvcli.cli.download import carry_out, plan_lines
    from rwkvcli.cli.watching import Bars
    from rwkvcli.services import pulling, store
    from rwkvcli.services.names import DEMO, KINDS

    kind = quantize.value if quantize is not None else None
    console = Console(settings)
    for name in _names(wanted, update):
        if name == DEMO and kind is None:  # nothing to download: it is here
            console.line(str(store.find_model(name).path))
            continue
        with Bars(console, name) as bars:
            # what is updated is made into what it was made into: FORMAT is for the rest
            wanted_kind = None if wanted is None and name.endswith(KINDS) else kind
            planned = pulling.plan(name, wanted_kind, offline=settings.offline, watcher=bars)
            if keep_source is not None and planned.kind is None and wanted is not None:
                raise Misuse("--keep-source and --discard-source go with --quantize")
            if dry_run:
                bars.hide()
                planned.check_room()
                if settings.json:
                    console.line(json.dumps(planned.to_json()))
                else:
                    console.line("\n".join([f"{name}:", *plan_lines(planned)]))
                continue
            source, found = carry_out(console, planned, bars)
        gone = _settle(console, planned, source, keep_source)
        _tell(console, planned, source if not gone else None, found)


def _names(model: str | None, update: bool) -> list[str]:
    """What to pull."""
    if model is not None:
        return [model]
    if not update:
        raise Misuse("no MODEL: name one, for example `g1-1.5b`; `rwkv list --remote` shows all")
    from rwkvcli.errors import ModelNotFound
    from rwkvcli.services.catalog import updatable

    found = updatable()
    if not found:
        raise ModelNotFound("nothing here has a short name", hint="`rwkv pull NAME` brings one")
    return found


def _settle(console: Console, planned: Plan, source: LocalModel | None, keep: bool | None) -> bool:
    """Decide what becomes of the download that a model file was made of; whether it is gone."""
    from rwkvcli.cli.download import tell_kept
    from rwkvcli.cli.render import size
    from rwkvcli.services import pulling

    if planned.kind is None or source is None:
        return False
    try:
        nbytes = size(source.nbytes)
    except FileNotFoundError:  # another process that wanted the same has removed it
        return True
    if keep is None and console.may_ask and planned.result is None:
        keep = not console.ask(f"Remove the download, {nbytes}?", default=False)
    if keep is False:
        pulling.discard(source)
        console.note(f"the download was removed: {nbytes}")
        return True
    tell_kept(console, source)
    return False


def _tell(console: Console, planned: Plan, source: LocalModel | None, found: LocalModel) -> None:
    """Stdout: where it is."""
    if not console.settings.json:
        console.line(str(found.path))
        return
    told: dict[str, Any] = {
        "name": planned.name,
        "path": str(found.path),
        "bytes": found.nbytes,
    }
    if planned.kind is not None:
        told |= {
            "quantized": planned.kind,
            "repo": planned.reference.repo,
            "file": planned.reference.file,
            "download": str(source.path) if source is not None else None,
        }
    console.line(json.dumps(told))
