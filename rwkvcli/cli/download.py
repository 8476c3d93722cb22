"""Finding models on behalf of a person: progress is drawn, and large files come where it can be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rwkvcli.cli.console import Console
from rwkvcli.cli.render import DownloadBar
from rwkvcli.services import store

if TYPE_CHECKING:
    from rwkvcli.services.store import LocalModel


def model_file(console: Console, name: str) -> LocalModel:
    """The file of MODEL `name`. Without a terminal to show it on, nothing is downloaded."""
    with DownloadBar(console, name) as bar:
        return store.find_model(
            name,
            offline=console.settings.offline,
            may_download=console.err_is_terminal,
            on_progress=bar.update,
        )


def model_to_run(console: Console, name: str) -> LocalModel:
    """The same for a model that is about to be loaded: one that memory cannot hold is warned of."""
    from rwkvcli.cli.render import size
    from rwkvcli.services.fitting import shortage

    found = model_file(console, name)
    short = shortage(found.path)
    if short is not None:
        missing = size(short.needed - short.available)
        console.note(
            f"warning: {name} takes {size(short.needed)}, {size(short.available)} of memory are free, {missing} "
            "are missing: weights will be read from the disk again and again"
        )
    return found


def pulled_file(console: Console, name: str) -> LocalModel:
    """The file of the Hub reference `name`, downloaded or brought up to date."""
    with DownloadBar(console, name) as bar:
        return store.pull(name, offline=console.settings.offline, on_progress=bar.update)
