"""`rwkv pull`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from rwkvcli.cli.console import Console
from rwkvcli.cli.options import with_settings
from rwkvcli.cli.settings import Settings

EXAMPLES = """
  rwkv pull BlinkDL/rwkv7-g1:rwkv7-g1d-0.4b-20260210-ctx8192.pth
  rwkv quantize "$(rwkv pull owner/repo:model.pth@main)" --to int4
"""


@with_settings
def pull(
    settings: Settings,
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REPO:FILE[@REVISION]", help="The file; FILE may be left out if there is one only."
        ),
    ],
) -> None:
    """Download a file from the Hugging Face Hub.

    Stdout is the path of the file, in the cache that all programs share. An interrupted download is resumed
    by the next one, and every download is compared with the Hub's checksum. HF_HOME, HF_TOKEN, HF_ENDPOINT
    and HF_HUB_OFFLINE are respected.
    """
    from rwkvcli.cli.download import pulled_file

    console = Console(settings)
    found = pulled_file(console, reference)
    if settings.json:
        console.line(
            json.dumps({"name": reference, "path": str(found.path), "bytes": found.path.stat().st_size})
        )
    else:
        console.line(str(found.path))
