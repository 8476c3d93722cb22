"""Bring a model here: find its file on the Hub, download it, make a model file of it, and keep that.

`plan` asks the Hub what there is and tells what would be done; `bring` and `make` do it, each once, however many
processes are at it. Nothing prints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvcli.errors import Cancelled, NetworkError, UsageError
from rwkvcli.services import hub_cache, kept, names, parts, store
from rwkvcli.services.finding import remote_files
from rwkvcli.services.kept import Origin
from rwkvcli.services.names import Alias, Reference
from rwkvcli.services.store import LocalModel
from rwkvcli.services.watching import OneOfSeveral, Watcher

if TYPE_CHECKING:
    from rwkvcli.services.hub import RemoteFile

SMALL = 10**9
"""Parameters from which a model is made int4 rather than int8 where nobody says: smaller ones lose more, and are fast."""
_SHARE = {"int8": 0.53, "int6": 0.44, "int5": 0.4, "int4": 0.36}
"""Size of what is made, over that of a checkpoint with two bytes per weight: a little more than it comes to."""
_HEADER = 100_000
"""Bytes beside the weights, which count in tiny models."""
_SHA256_DIGITS = 64


@dataclass(frozen=True)
class Plan:
    """What bringing a model here takes."""

    name: str
    """What the person wrote."""
    reference: Reference
    """The file on the Hub; of several that are one model the one that stands for all."""
    files: tuple[RemoteFile, ...]
    """Everything to download, that file last."""
    size: int
    """Of all files."""
    etag: str
    """Of all files: `parts.combined`."""
    kind: str | None
    """What is to be made of it; None: nothing."""
    have: int
    """Bytes of the download that are here."""
    source: Path | None
    """The download, if all of it is here."""
    result: Path | None
    """What was made of it, if it was."""
    estimate: int
    """About the bytes of what is to be made; 0: nothing."""
    tokenizer: Reference | None
    """A file to download too: what the models of the family encode text with."""

    @property
    def to_download(self) -> int:
        """Bytes that are missing."""
        return 0 if self._is_done else self.size - self.have

    @property
    def to_write(self) -> int:
        """About the bytes that will be written to the folder of what is kept."""
        return 0 if self._is_done else self.estimate

    @property
    def _is_done(self) -> bool:
        return self.kind is not None and self.result is not None

    def check_room(self) -> None:
        """Raise NoSpace if the disks have no room for it, UsageError if there is no place for what is to be made."""
        from rwkvcli.services.hub_blobs import check_room

        wanted = {hub_cache.hub_cache(): self.to_download}
        if self.to_write:
            kept.PLACE.check()
            wanted[kept.kept_path()] = self.to_write
        check_room(wanted, str(self.reference))

    def to_json(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return {
            "name": self.name,
            "repo": self.reference.repo,
            "file": self.reference.file,
            "revision": self.reference.revision or "main",
            "bytes": self.size,
            "checksum": self.etag,
            "quantize": self.kind,
            "to_download": self.to_download,
            "to_write": self.to_write,
            "download": str(self.source) if self.source else None,
            "result": str(self.result) if self.result else None,
        }


def kind_for(nbytes: int) -> str:
    """What to make of a checkpoint of so many bytes on this machine, where nobody says."""
    return "int8" if nbytes // 2 < SMALL else "int4"


def estimated(nbytes: int, kind: str) -> int:
    """About how large the model file of `kind` will be that is made of a checkpoint of so many bytes; never less."""
    return int(nbytes * _SHARE[kind]) + _HEADER


def plan(
    name: str,
    kind: str | None = None,
    *,
    for_this_machine: bool = False,
    offline: bool = False,
    watcher: Watcher | None = None,
) -> Plan:
    """Ask the Hub what `name` stands for now, and what it takes to have it, made into `kind` if one is given.

    `for_this_machine`: of the usual kind. Offline, what is here counts. Raises UsageError (a path), ModelNotFound,
    NetworkError, what `parse` raises, and what opening the file will, where its header tells.
    """
    parsed = store.parse(name)
    if isinstance(parsed, Path):
        raise UsageError(
            f"{name} is a path, not a file on the Hub" if name != names.DEMO else f"{name} is built in",
            hint="write owner/repo:file"
            if name != names.DEMO
            else f"`rwkv quantize {name} --to int8` makes a model file of it",
        )
    if isinstance(parsed, Alias) and parsed.kind is not None:
        if kind not in (None, parsed.kind):
            raise UsageError(f"{name} names {parsed.kind}, and --quantize {kind}: choose one")
        kind, parsed = parsed.kind, replace(parsed, kind=None)
    if offline or hub_cache.is_offline():
        return _plan_offline(parsed, name, kind, offline, for_this_machine)
    reference, files = remote_files(parsed, watcher)
    if for_this_machine and kind is None and not _is_model(reference, watcher):
        kind = kind_for(sum(file.size for file in files))
    planned = _plan(name, reference, files, kind, watcher=watcher)
    if planned.to_write and planned.source is None:
        _check_header(planned, watcher)
    return planned


def bring(planned: Plan, watcher: Watcher) -> LocalModel:
    """Download what is missing, and return the download. Raises what the Hub raises, NoSpace, FormatError."""
    from rwkvcli.services import hub

    planned.check_room()
    if planned.tokenizer is not None and hub_cache.cached_path(planned.tokenizer) is None:
        hub.download(planned.tokenizer, watcher)
    path = planned.source
    if path is None or hub_cache.cached_path(planned.reference) != path:
        before = 0
        for file in planned.files:
            reference = replace(planned.reference, file=file.path)
            path = hub.download(reference, OneOfSeveral(watcher, before, planned.size))
            before += file.size
    assert path is not None
    if not _is_whole(planned, path):
        raise NetworkError(
            f"{planned.reference} was changed on the Hub meanwhile", hint="run the same command again"
        )
    return LocalModel(path, planned.name, planned.reference)


def _is_whole(planned: Plan, path: Path) -> bool:
    """Whether all files of a plan are beside `path`, the one that stands for them."""
    here = all(path.with_name(Path(file.path).name).is_file() for file in planned.files)
    return here and hub_cache.others_of(path) is not None


def make(
    planned: Plan,
    source: LocalModel,
    watcher: Watcher,
    *,
    threads: int | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> LocalModel:
    """Make a model file of `planned.kind` of the download, unless it is made already, and keep it.

    Another process that makes it is waited for; it may even have removed the download since. A source that
    no longer has the Hub's checksum is refused. Raises what `quantization.quantize` raises.
    """
    assert planned.kind is not None
    kind, reference = planned.kind, planned.reference
    assert reference.file is not None
    etag = hub_cache.whole_etag(source.path) or planned.etag
    commit = hub_cache.commit_of(reference.repo, reference.revision)
    revisions = (reference.revision or "main", commit)
    origin = Origin(reference.repo, reference.file, etag, planned.size, revisions)
    target = origin.target(kind)

    def wait(who: str) -> None:
        process = f"process {who}" if who else "another process"
        watcher.waiting(f"{process} is making {target.name}")
        if should_stop is not None and should_stop():
            raise Cancelled("stopped while waiting")

    with origin.locked(wait):
        origin.write()
        if not target.is_file():
            _make(planned, origin, source.path, commit, watcher, threads, should_stop)
        _note_sum(origin, kind, watcher)
    return LocalModel(target, planned.name, reference, kind)


def _make(
    planned: Plan,
    origin: Origin,
    source: Path,
    commit: str,
    watcher: Watcher,
    threads: int | None,
    should_stop: Callable[[], bool] | None,
) -> None:
    """Quantize, in the folder that is locked; what fails leaves nothing there."""
    from quant.checkpoints import Checkpoint
    from rwkvcli.services import quantization

    assert planned.kind is not None
    tokenizer = hub_cache.cached_path(planned.tokenizer) if planned.tokenizer is not None else None
    told = {"repo": origin.repo, "revision": commit, "file": origin.file}
    try:
        with quantization.open_source(source) as opened:
            sha256 = _sha256(source, origin) if isinstance(opened, Checkpoint) else None
            if sha256 is not None:
                told["sha256"] = sha256
            quantization.quantize(
                opened,
                origin.target(planned.kind),
                planned.kind,
                threads=threads,
                tokenizer=tokenizer,
                origin=told,
                on_progress=watcher.quantizing,
                should_stop=should_stop,
            )
    except BaseException:
        kept.tidy(origin)
        raise


def _sha256(source: Path, origin: Origin) -> str | None:
    """What `Checkpoint.sha256` of a download has to be by the Hub's checksums; None where they do not tell."""
    others = hub_cache.others_of(source) or ()
    weights = [path for path in others if path.name != parts.CONFIG] or [source]
    sums = [hub_cache.etag_of(path) or "" for path in weights] if others else [origin.etag]
    if not all(len(each) == _SHA256_DIGITS for each in sums):
        return None
    return sums[0] if weights == [source] else hashlib.sha256("".join(sums).encode()).hexdigest()


def _note_sum(origin: Origin, kind: str, watcher: Watcher) -> None:
    """Note the checksum of what was made, if it is not noted: `rwkv verify` compares with it."""
    from quant.mapped_file import MappedFile

    target = origin.target(kind)
    known = next((item for item in kept.kept(origin.repo) if item.path == target), None)
    if known is not None and known.sha256 is not None:
        return
    with MappedFile(target) as file:
        replace(origin, sums={kind: file.sha256(watcher.checking)}).write()


def discard(source: LocalModel) -> None:
    """Remove a download. Raises OSError."""
    assert source.reference is not None
    for item in hub_cache.downloads(source.reference.repo):
        if item.path == source.path or (item.file == source.reference.file and _same(item, source)):
            hub_cache.remove(item)
            return


def _same(item: hub_cache.Download, source: LocalModel) -> bool:
    return item.path.exists() and source.path.exists() and item.path.samefile(source.path)


def _is_model(reference: Reference, watcher: Watcher | None) -> bool:
    """Whether a file on the Hub runs as it is, by its header."""
    from rwkvcli.services.hub import header_only

    if reference.file is None or not reference.file.endswith(".safetensors"):
        return False
    with header_only(reference, watcher) as path:
        return store.is_model(path)


def _check_header(planned: Plan, watcher: Watcher | None) -> None:
    """Refuse what nothing can be made of, before it is downloaded. A configuration beside weights may say more of them."""
    from quant.sources import open_model, source_of
    from rwkvcli.services.hub import header_only

    reference = planned.reference
    if reference.file is None or not reference.file.endswith(".safetensors"):
        return
    with header_only(reference, watcher) as path:
        if store.is_model(path) or len(planned.files) == 1:
            with open_model(path, check_values=False) as opened:
                source_of(opened)


def _plan(
    name: str,
    reference: Reference,
    files: tuple[RemoteFile, ...],
    kind: str | None,
    source: Path | None = None,
    watcher: Watcher | None = None,
) -> Plan:
    assert reference.file is not None
    size = sum(file.size for file in files)
    etag = parts.combined((file.path, file.etag) for file in files)
    if source is None:
        source = _downloaded(reference, files, etag, watcher)
    origin = Origin(reference.repo, reference.file, etag, size)
    made = {item.path for item in kept.kept(reference.repo)}  # a file without a record is found by nobody
    result = origin.target(kind) if kind is not None and origin.target(kind) in made else None
    return Plan(
        name,
        reference,
        files,
        size,
        etag,
        kind,
        size if source is not None else sum(_have(reference, file) for file in files),
        source,
        result,
        estimated(size, kind) if kind is not None else 0,
        names.tokenizer_of(reference.repo) if kind is not None else None,
    )


def _have(reference: Reference, file: RemoteFile) -> int:
    """Bytes of a file of the Hub that are here."""
    from rwkvcli.services.hub_blobs import part_of

    folder = hub_cache.repository_folder(reference.repo)
    blob = folder / "blobs" / file.etag
    if blob.is_file() and blob.stat().st_size == file.size:
        return file.size
    if any(hub_cache.same_bytes(folder, file.etag, file.size)):  # where there are no links
        return file.size
    return min(part_of(reference, file.etag), file.size)


def _downloaded(
    reference: Reference, files: tuple[RemoteFile, ...], etag: str, watcher: Watcher | None
) -> Path | None:
    """The download with these files and this checksum, if all of it is here."""
    cached = [(file, hub_cache.cached_path(replace(reference, file=file.path))) for file in files]
    if all(path is not None and _is_same(path, file, watcher) for file, path in cached):
        return cached[-1][1]
    size = sum(file.size for file in files)
    here = (item for item in hub_cache.downloads(reference.repo) if item.file == reference.file)
    return next((item.path for item in here if item.etag == etag and size in (0, item.nbytes)), None)


def _is_same(path: Path, file: RemoteFile, watcher: Watcher | None) -> bool:
    """Whether a file of the cache is what the Hub has; without a link its bytes have to tell."""
    if file.size and path.stat().st_size != file.size:  # 0: the Hub does not tell
        return False
    etag = hub_cache.etag_of(path)
    if etag is not None:
        return etag == file.etag
    return hub_cache.is_intact(path, file.etag, watcher.checking if watcher is not None else None)


def _plan_offline(
    parsed: Alias | Reference, name: str, kind: str | None, offline: bool, for_this_machine: bool
) -> Plan:
    """The same for what is here."""
    from rwkvcli.services.hub import RemoteFile

    source = store.find(name if kind is None else str(parsed), source=True)
    made = None if source is not None else _made(parsed, kind)
    if source is None and made is None:
        raise store.missing(name, offline=offline)
    if source is None:
        assert made is not None
        file = RemoteFile(made.origin.file, made.origin.nbytes, made.origin.etag)
        return _plan(name, made.reference, (file,), made.kind)
    assert source.reference is not None and source.reference.file is not None
    if for_this_machine and kind is None:
        kind = kind_for(source.nbytes)
    files = tuple(
        RemoteFile(
            parts.beside(source.reference.file, path.name), path.stat().st_size, hub_cache.etag_of(path) or ""
        )
        for path in (*(hub_cache.others_of(source.path) or ()), source.path)
    )
    return _plan(name, source.reference, files, kind, source.path)


def _made(parsed: Alias | Reference, kind: str | None) -> kept.Kept | None:
    """What is kept of this kind where the download is gone."""
    for item in reversed(kept.kept(parsed.repo)):
        fits = parsed.fits(item.origin.file) if isinstance(parsed, Alias) else store.is_of(item, parsed)
        if fits and kind == item.kind:
            return item
    return None
