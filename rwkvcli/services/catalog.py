"""Which models are on this machine and on the Hub, which is the best, and what to check and remove of them."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rwkvcli.errors import ModelNotFound, RwkvError, UsageError
from rwkvcli.services import hub_cache, kept, names, parts, pulling, store
from rwkvcli.services.finding import magnitude
from rwkvcli.services.hub_cache import Download, Partial
from rwkvcli.services.kept import Kept
from rwkvcli.services.names import Alias, Reference

CHECKPOINT, MODEL, INTERRUPTED, BUILT_IN = "checkpoint", "model", "interrupted", "built in"
SHARE = 4
"""A model that is offered takes at most one SHAREth of the free memory: answers are quick, and others have memory too."""

_SHARING_VIOLATION = 32
"""The error of Windows for a file that is open."""


@dataclass(frozen=True)
class Entry:
    """One file that takes room on this machine."""

    name: str
    """A MODEL that means it; for an interrupted download the repository."""
    what: str
    """int4, int5, int6, int8, checkpoint, model (a model file that was downloaded), interrupted or built in."""
    nbytes: int
    path: Path
    repo: str | None
    file: str | None
    when: float
    """When it came or was made, in seconds since 1970."""
    item: Kept | Download | Partial | None

    def to_json(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return {
            "name": self.name,
            "what": self.what,
            "bytes": self.nbytes,
            "path": str(self.path),
            "repo": self.repo,
            "file": self.file,
            "date": time.strftime("%Y-%m-%d", time.localtime(self.when)),
        }


def entries(*, others: bool = False) -> list[Entry]:
    """Everything on this machine: what was made, downloads, interrupted downloads, and the built-in model.

    The cache is shared: checkpoints whose names say nothing of RWKV belong to other programs, mostly; with `others`
    they are there too.
    """
    found = [_entry(item, item.kind) for item in kept.kept()]
    for download in hub_cache.downloads():
        runs = download.path.suffix == ".safetensors" and store.is_model(download.path)
        if runs or others or _is_ours(download):
            found.append(_entry(download, MODEL if runs else CHECKPOINT))
    found.sort(key=lambda entry: (entry.name, entry.what))
    found += [
        Entry(p.repo, INTERRUPTED, p.nbytes, p.path, p.repo, None, p.path.stat().st_mtime, p)
        for p in hub_cache.partials()
        if others or "rwkv" in p.repo.lower()
    ]
    demo = store.parse(names.DEMO)
    assert isinstance(demo, Path)
    info = demo.stat()
    return [*found, Entry(names.DEMO, BUILT_IN, info.st_size, demo, None, None, info.st_mtime, None)]


def _is_ours(download: Download) -> bool:
    named = "rwkv" in f"{download.repo}/{download.file}".lower()
    return named or download.path.suffix == ".pth" or any(p.name == parts.CONFIG for p in download.others)


def _entry(item: Kept | Download, what: str) -> Entry:
    reference = item.reference
    assert reference.file is not None
    short = names.short_name(reference.repo, reference.file)
    if short is None:
        name = str(reference)
    elif isinstance(item, Kept):
        name = str(Alias(short.family, short.size, item.kind, short.wanted))
    else:
        name = str(short)
    when = item.made if isinstance(item, Kept) else item.pulled
    return Entry(name, what, item.nbytes, item.path, reference.repo, reference.file, when, item)


@dataclass(frozen=True)
class Remote:
    """A file on the Hub that has a name here."""

    name: str
    repo: str
    file: str
    nbytes: int
    date: str
    """yyyymmdd; "" where the file's name says none."""
    here: str
    """What of it is on this machine: int4, checkpoint, ...; "" for nothing."""
    older: bool
    """Whether an older one is on this machine."""


def remote(where: str | None = None, on_missing: Callable[[str], None] | None = None) -> Iterator[Remote]:
    """The newest file of every short name, or all model files of the repository `where`; a family's name is one too.

    Asks the Hub for a repository at a time. With `on_missing` a repository that is not there is no error: it is called
    with its name. Raises UsageError for what is no family and no repository, and what the Hub raises.
    """
    from rwkvcli.services.hub import list_files

    here = entries()
    families = names.families()
    if where is not None and where not in families and names.alias(where) is None:
        reference = names.reference(where)
        if reference is None or reference.file is not None:
            near = ", ".join(families)
            raise UsageError(f"{where} is no family and no repository", hint=f"families are {near}")
        sizes = {item.path: item.size for item in list_files(reference)}
        for path in parts.models([*sizes]):
            name = str(Reference(reference.repo, path, reference.revision))
            nbytes = sizes[path] + sum(sizes[shard] for shard in parts.shards_beside(path, sizes))
            yield _remote(name, reference.repo, path, nbytes, "", here)
        return
    short = names.alias(where) if where is not None else None
    wanted = [short.family] if short else [families[where]] if where else list(families.values())
    for family in wanted:
        for repo in dict.fromkeys(family.repository(size) for size in family.sizes):
            try:
                files = {item.path: item.size for item in list_files(Reference(repo))}
            except ModelNotFound:
                if on_missing is None:
                    raise
                on_missing(repo)
                continue
            found = {parsed.size for file in files if (parsed := family.parse(file))}
            for size in sorted(found, key=magnitude):
                alias = Alias(family, size)
                newest = alias.newest(files)
                if newest is None or family.repository(size) != repo or (short and short.size != size):
                    continue
                yield _remote(str(alias), repo, newest, files[newest], alias.date(newest), here)


def _remote(name: str, repo: str, file: str, nbytes: int, date: str, here: Sequence[Entry]) -> Remote:
    what = [entry.what for entry in here if (entry.repo, entry.file) == (repo, file)]
    older = any(
        re.fullmatch(re.escape(name) + r"(-int\d)?@\d+", entry.name) and entry.file != file for entry in here
    )
    return Remote(name, repo, file, nbytes, date, ", ".join(dict.fromkeys(what)), older)


def updatable() -> list[str]:
    """A name for everything here that may have a newer file on the Hub: short names without dates, with what was made."""
    found: dict[str, None] = {}
    for entry in entries():
        short = names.short_name(entry.repo or "", entry.file or "")
        if short is not None:
            kind = entry.what if entry.what in names.KINDS else None
            found[str(Alias(short.family, short.size, kind))] = None
    made = {name.rpartition("-")[0] for name in found if name.endswith(names.KINDS)}
    return [name for name in found if name not in made]


def best_local(available: int | None) -> str | None:
    """The MODEL that runs where nobody names one.

    Of those here that fit into `available` bytes of memory it is the one with the most parameters, then of the best family, then the newest. None without one; the built-in model does not count.
    """
    runs = [entry for entry in entries() if entry.what in (*names.KINDS, MODEL)]
    if not runs:
        return None
    fitting = [entry for entry in runs if available is None or entry.nbytes <= available]
    if not fitting:
        return min(runs, key=lambda entry: entry.nbytes).name
    return max(fitting, key=_rank).name


def _rank(entry: Entry) -> tuple[float, int, str, int, float]:
    short = names.short_name(entry.repo or "", entry.file or "")
    if short is None:  # bytes are all that is known: as if there were 5 bits per weight
        return entry.nbytes * 8 / 5, -len(names.families()), "", entry.nbytes, entry.when
    order = -list(names.families()).index(short.family.name)
    return short.parameters, order, short.wanted or "", entry.nbytes, entry.when


def offer(available: int | None, disk: int) -> Alias:
    """The model to offer to a machine with `available` bytes of free memory and `disk` bytes of free disk.

    It is the largest of the best family that takes, quantized, no more than a SHAREth of the memory, and for whose
    download and result there is room; the smallest if there is none. A system that does not tell is taken to have
    5 GB of memory.
    """
    family = next(iter(names.families().values()))
    sizes = [Alias(family, size) for size in family.sizes]
    room = (available if available is not None else 5 * 10**9) // SHARE
    fitting = [
        alias
        for alias in sizes
        if _quantized(alias) <= room and 2 * alias.parameters + _quantized(alias) <= disk
    ]
    return max(fitting, key=_quantized) if fitting else min(sizes, key=_quantized)


def _quantized(alias: Alias) -> int:
    nbytes = 2 * alias.parameters
    return pulling.estimated(nbytes, pulling.kind_for(nbytes))


def removable(name: str, *, source: bool = False, interrupted: bool = False) -> list[Entry]:
    """What of this machine `name` stands for: all dates of a short name without one, and what was made of downloads.

    With `source` the downloads alone, with `interrupted` what broken-off downloads left in its repository. A path is
    one of those that `entries` has. Raises UsageError (a path, the built-in model), ModelNotFound (nothing is here).
    """
    parsed = store.parse(name)
    if isinstance(parsed, Path):
        if name == names.DEMO:
            raise UsageError(f"{name} is built in, and stays")
        this = [
            entry
            for entry in entries()
            if entry.item is not None and entry.path.absolute() == parsed.absolute()
        ]
        if this:
            return this
        raise UsageError(
            f"{name} is a path: only what `rwkv pull` brought is removed", hint="`rwkv list` shows it"
        )
    if interrupted:
        left = entries(others=True)
        found = [entry for entry in left if entry.what == INTERRUPTED and entry.repo == parsed.repo]
    else:
        found = [entry for entry in entries(others=True) if _stands_for(parsed, entry)]
    if source:
        found = [entry for entry in found if isinstance(entry.item, Download)]
    if not found:
        here = [entry.name for entry in entries() if entry.what not in (INTERRUPTED, BUILT_IN)]
        near = [item for item in here if item.startswith(name)] or names.near(name, here)
        near = [item for item in near if item in here]
        hint = f"there is {', '.join(near[:3])}" if near else "`rwkv list` shows what is here"
        told = f"no download of {name} is on this machine" if source else f"{name} is not on this machine"
        if interrupted:
            told = f"no download of {parsed.repo} was interrupted"
        raise ModelNotFound(told, hint=hint)
    return found


def _stands_for(parsed: Alias | Reference, entry: Entry) -> bool:
    if entry.repo != parsed.repo:
        return False
    if isinstance(parsed, Alias):
        if entry.file is None or not parsed.fits(entry.file):
            return False
        return parsed.kind is None or entry.what == parsed.kind
    if parsed.file is None:
        return parsed.revision is None or _at(parsed, entry)
    return entry.file == parsed.file and (parsed.revision is None or _at(parsed, entry))


def _at(parsed: Reference, entry: Entry) -> bool:
    """Whether the entry is what the repository held at the revision."""
    if isinstance(entry.item, Kept):
        return parsed.revision in entry.item.origin.revisions
    if isinstance(entry.item, Download):
        path = hub_cache.cached_path(replace(parsed, file=entry.item.file))
        if path is None or entry.item.etag is None:
            return path == entry.item.path
        return hub_cache.whole_etag(path) == entry.item.etag
    return False


def remove(entry: Entry) -> None:
    """Remove what an entry of `removable` is. Raises UsageError (it is being made, or, on Windows, in use), OSError."""
    try:
        _remove(entry)
    except OSError as error:
        if sys.platform == "win32" and error.winerror == _SHARING_VIOLATION:
            raise UsageError(
                f"{error.filename} cannot be removed: another program has it open",
                hint="end that one (a running `rwkv` has its model open), then give the same command again",
            ) from None
        raise


def _remove(entry: Entry) -> None:
    if isinstance(entry.item, Kept):
        kept.remove(entry.item)
    elif isinstance(entry.item, Download):
        hub_cache.remove(entry.item)
        kept.sweep(entry.item.repo)
    elif isinstance(entry.item, Partial):
        from rwkvcli.services.hub_blobs import remove_partial

        remove_partial(entry.item)


def read_whole(path: Path, on_progress: Callable[[int, int], None] | None = None) -> str:
    """SHA-256 of a model file, a checkpoint or a state, whose header and own checksums are checked. Raises FormatError."""
    from quant.sources import open_model
    from rwkvcli.runtime.state_file import StateFile, is_state_file

    is_state = False
    with contextlib.suppress(RwkvError):  # of another format
        is_state = is_state_file(path)
    if is_state:
        with StateFile(path) as state:
            state.verify()
    with open_model(path) as opened:
        return opened.sha256(on_progress)


def is_sound(entry: Entry, on_progress: Callable[[int, int], None] | None = None) -> bool | None:
    """Whether the bytes still have the checksum that is known of them; None: none is known."""
    if isinstance(entry.item, Kept):
        if entry.item.sha256 is None:
            return None
        return hub_cache.is_intact(entry.path, entry.item.sha256, on_progress)
    if isinstance(entry.item, Download):
        etags = {path: hub_cache.etag_of(path) or "" for path in entry.item.paths}
        if not all(re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", etag) for etag in etags.values()):
            return None
        return all(hub_cache.is_intact(path, etag, on_progress) for path, etag in etags.items())
    return None
