"""Which files on the Hub a name stands for now. Asks the Hub; downloads nothing but what tells."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rwkvcli.errors import ModelNotFound
from rwkvcli.services import parts, store
from rwkvcli.services.names import SUFFIXES, Alias, Reference
from rwkvcli.services.watching import Watcher

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rwkvcli.services.hub import RemoteFile


def remote_files(
    parsed: Alias | Reference, watcher: Watcher | None
) -> tuple[Reference, tuple[RemoteFile, ...]]:
    """The file on the Hub that the name stands for now, and what is to be downloaded for it, that file last."""
    from rwkvcli.services import hub

    asked = parsed.file if isinstance(parsed, Reference) else None
    if isinstance(parsed, Reference) and asked is not None and not parts.may_have_more(asked):
        return parsed, (hub.describe(parsed, watcher),)
    where = Reference(parsed.repo) if isinstance(parsed, Alias) else replace(parsed, file=None)
    files = {item.path: item for item in hub.list_files(where)}
    file = asked or chosen(parsed, list(files))
    reference = replace(where, file=file)
    if file not in files:
        return reference, (hub.describe(reference, watcher),)  # which says that it is not there
    return reference, (*_others(reference, files, watcher), files[file])


def _others(
    reference: Reference, files: Mapping[str, RemoteFile], watcher: Watcher | None
) -> list[RemoteFile]:
    """The files of the repository that belong to a model file: config.json, the parts. Raises ModelNotFound, FormatError.

    As `hub_cache.others_of` finds them when they are here.
    """
    from rwkvcli.services import hub

    assert reference.file is not None
    if not parts.may_have_more(reference.file):
        return []
    found = []
    config = files.get(parts.beside(reference.file, parts.CONFIG))
    if config is not None and parts.speaks_of_rwkv(hub.content(reference, config, watcher)):
        found.append(config)
    if parts.is_index(reference.file):
        index = hub.content(reference, files[reference.file], watcher)
        for shard in parts.shards_of(reference.file, index):
            if shard not in files:
                raise ModelNotFound(
                    f"{reference.repo} has no file {shard}", hint=f"its {reference.file} names it"
                )
            found.append(files[shard])
    return found


def chosen(parsed: Alias | Reference, files: Sequence[str]) -> str:
    """The one of the files of its repository that a name without a file stands for. Raises ModelNotFound, UsageError."""
    if isinstance(parsed, Alias):
        newest = parsed.newest(files)
        if newest is not None:
            return newest
        sizes = {found.size for file in files if (found := parsed.family.parse(file))}
        told = f"its sizes are {', '.join(sorted(sizes, key=magnitude))}" if sizes else "it holds none"
        if parsed.size in sizes:
            again = replace(parsed, wanted=None)
            dates = sorted(again.date(file) for file in files if again.fits(file))
            told = f"its dates are {', '.join(dates[-6:])}"
        raise ModelNotFound(f"{parsed.repo} holds no {parsed}", hint=told)
    candidates = parts.models(files)
    if not candidates:
        raise ModelNotFound(
            f"{parsed} holds no model file",
            hint=f"files that end with {', '.join(SUFFIXES)}, and pytorch_model.bin, are looked for",
        )
    return store.only(parsed, candidates)


def magnitude(size: str) -> float:
    """A size of a short name, for sorting."""
    return float(size[:-1]) * (1000 if size.endswith("b") else 1)
