"""What huggingface_hub's cache holds, read and removed by its layout: the library takes long to import, and has no way to
remove one file.

    models--OWNER--REPO/refs/REVISION               the commit that a branch or tag was at
    models--OWNER--REPO/snapshots/COMMIT/FILE       a link to the blob (a file of its own where there are no links)
    models--OWNER--REPO/blobs/ETAG                  the bytes; ETAG is the checksum that the Hub names. What newer versions
                                                    brought by Xet is a link to blobs/XX/HASH in the cache
    models--OWNER--REPO/blobs/ETAG.incomplete       a download that was interrupted
    models--OWNER--REPO/etags/COMMIT/FILE           ETAG, where there are no links: a note of ours, which the library does not see
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rwkvcli.errors import RwkvError, UsageError
from rwkvcli.services import parts
from rwkvcli.services.names import Reference

_CHUNK = 1 << 22
_TRUE = ("1", "ON", "YES", "TRUE")
INCOMPLETE = ".incomplete"


def hub_cache() -> Path:
    """Where huggingface_hub keeps downloads, by its rules."""
    value = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if value:
        return _expanded(value)
    home = os.environ.get("HF_HOME")
    if home:
        return _expanded(home) / "hub"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(cache) / "huggingface" / "hub"


def _expanded(value: str) -> Path:
    """As the library does it: what cannot be expanded stays as it is."""
    return Path(os.path.expanduser(os.path.expandvars(value)))  # noqa: PTH111


def check_home() -> None:
    """Raise UsageError if the cache is below a home folder that does not exist: the library makes one called `~` then."""
    cache = hub_cache()
    if cache.parts[0].startswith("~"):
        raise UsageError(
            f"{cache}: there is no such home folder", hint="HF_HOME names another folder for downloads"
        )


def free_disk() -> int:
    """Bytes that are free where downloads go."""
    import shutil

    return shutil.disk_usage(disk_of(hub_cache())).free


def disk_of(folder: Path) -> Path:
    """A folder on the disk on which `folder` is, or would be. Raises UsageError for a disk that is not there."""
    for there in (folder.absolute(), *folder.absolute().parents):
        if there.exists():
            return there
    raise UsageError(
        f"{folder}: there is no such disk",
        hint="HF_HOME names the folder for downloads, RWKV_MODELS that for what is made of them",
    )


def is_offline() -> bool:
    """Whether the environment switches the network off, by the library's rules."""
    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return said.upper() in _TRUE


@dataclass(frozen=True)
class Download:
    """One model that was downloaded: a file, or several under the name of one."""

    repo: str
    file: str
    commit: str
    path: Path
    """In a snapshot."""
    etag: str | None
    """The checksum that the Hub named, of several files `parts.combined`; None where it is not known: see `etag_of`."""
    others: tuple[Path, ...] = ()
    """Files in the same folder that belong to it; see `others_of`."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of its files."""
        return (*self.others, self.path)

    @property
    def reference(self) -> Reference:
        """As a person would name it."""
        return Reference(self.repo, self.file)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.paths)

    @property
    def pulled(self) -> float:
        """When it came, in seconds since 1970."""
        return self.path.stat().st_mtime


@dataclass(frozen=True)
class Partial:
    """A download that was interrupted. Which file it was of is not known."""

    repo: str
    path: Path

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size


def repository_folder(repo: str, kind: str = "model") -> Path:
    """The folder of a repository."""
    return hub_cache() / f"{kind}s--{repo.replace('/', '--')}"


def commit_of(repo: str, revision: str | None, kind: str = "model") -> str:
    """The commit that a revision was at when it was last looked at; what is no known branch is taken as it is."""
    revision = revision or "main"
    with contextlib.suppress(OSError, ValueError):
        return (repository_folder(repo, kind) / "refs" / revision).read_text("utf-8").strip()
    return revision


def cached_files(reference: Reference) -> list[str]:
    """Names of the files of a repository that were downloaded, at the revision of `reference`."""
    folder = repository_folder(reference.repo, reference.kind) / "snapshots"
    snapshot = folder / commit_of(reference.repo, reference.revision, reference.kind)
    return sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())


def cached_models(reference: Reference) -> list[str]:
    """Names of the models of a repository that were downloaded, at the revision of `reference`."""
    folder = repository_folder(reference.repo, reference.kind) / "snapshots"
    found = _models_in(folder / commit_of(reference.repo, reference.revision, reference.kind))
    return parts.preferred(sorted(found))


def others_of(path: Path) -> tuple[Path, ...] | None:
    """The files beside a model file of the cache that belong to it: parts, config.json. None: not all parts are here."""
    if not parts.may_have_more(path.name):
        return ()
    found: list[Path] = []
    config = path.with_name(parts.CONFIG)
    try:
        if parts.is_index(path.name):
            found = [path.with_name(name) for name in parts.shards_of(path.name, path.read_bytes())]
        if config.is_file() and parts.speaks_of_rwkv(config.read_bytes()):
            found.append(config)
    except (OSError, RwkvError):
        return None
    return tuple(found) if all(item.is_file() for item in found) else None


def whole_size(path: Path) -> int:
    """Bytes of a downloaded model with the files that belong to it."""
    return sum(item.stat().st_size for item in (path, *(others_of(path) or ())))


def whole_etag(path: Path) -> str | None:
    """The checksum of a downloaded model with the files that belong to it; None where one is not known."""
    others = others_of(path)
    if others is None:
        return None
    return parts.combined((item.name, etag_of(item) or "") for item in (path, *others)) or None


def repository_of(path: Path) -> str | None:
    """The repository of a folder that is a snapshot; None for other folders."""
    repository = path.absolute().parent.parent
    if path.absolute().parent.name != "snapshots" or not repository.name.startswith("models--"):
        return None
    return repository.name.removeprefix("models--").replace("--", "/", 1)


def _models_in(snapshot: Path) -> dict[str, tuple[Path, ...]]:
    """{file: those that belong to it} of the models in a snapshot; parts of a model that is whole stand for nothing else."""
    files = [path for path in snapshot.rglob("*") if path.is_file()]
    found: dict[Path, tuple[Path, ...]] = {}
    for path in files:
        if parts.is_weights(path.name) or parts.is_index(path.name):
            others = others_of(path)
            if others is not None:
                found[path] = others
    taken = {other for others in found.values() for other in others}
    return {
        path.relative_to(snapshot).as_posix(): others for path, others in found.items() if path not in taken
    }


def cached_path(reference: Reference) -> Path | None:
    """The file, if it was downloaded. `reference` names a file."""
    assert reference.file is not None
    folder = repository_folder(reference.repo, reference.kind) / "snapshots"
    snapshot = folder / commit_of(reference.repo, reference.revision, reference.kind)
    path = snapshot / reference.file
    if ".." in Path(reference.file).parts or Path(reference.file).anchor:  # leads out of the cache
        return None
    try:
        return path if path.is_file() else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def etag_of(path: Path) -> str | None:
    """The checksum that the Hub named for a file of the cache; None for what is no link and was brought by other programs."""
    if path.is_symlink():
        return path.readlink().name
    note = _note_of(path)
    try:
        etag = note.read_text("utf-8") if note is not None else ""
    except (OSError, ValueError):
        return None
    return etag if is_etag(etag) else None


def is_etag(text: str) -> bool:
    """Whether a checksum can be the name of a file."""
    return text != "" and not text.startswith(".") and not {"/", "\\"} & set(text)


def note_etag(path: Path, etag: str) -> None:
    """Note the checksum that the Hub names for a file of a snapshot, which does not change any more, if no link tells it."""
    from quant.atomic import whole_file

    note = _note_of(path)
    if note is None or path.is_symlink() or not path.is_file() or etag_of(path) == etag:
        return
    with contextlib.suppress(OSError):  # it will be as if another program had brought the file
        note.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(note) as file:
            file.write(etag.encode())


def _note_of(path: Path) -> Path | None:
    """Where the checksum of a file of a snapshot is noted; None for files elsewhere."""
    with contextlib.suppress(ValueError):
        repository, snapshots, *inside = path.absolute().relative_to(hub_cache().absolute()).parts
        if snapshots == "snapshots" and len(inside) > 1:
            return hub_cache().absolute() / repository / "etags" / Path(*inside)
    return None


def same_bytes(folder: Path, etag: str, size: int | None) -> Iterator[Path]:
    """The files of the snapshots in a repository's folder that have this checksum, as links and notes tell it, and this size."""
    for path in (folder / "snapshots").rglob("*"):
        if path.is_file() and etag_of(path) == etag and size in (None, path.stat().st_size):
            yield path


def downloads(repo: str | None = None) -> list[Download]:
    """Every model that was downloaded, by repository and name; each version once, the latest last."""
    found = {(item.repo, item.file, item.etag or item.commit): item for item in _every_download(repo)}
    return sorted(found.values(), key=lambda item: (item.repo, item.file, item.pulled))


def _every_download(repo: str | None) -> Iterator[Download]:
    """The same, each version in every snapshot that has it."""
    pattern = repository_folder(repo).name if repo is not None else "models--*"
    for snapshot in _listed(f"{pattern}/snapshots/*"):
        owner, _, name = snapshot.parent.parent.name.removeprefix("models--").partition("--")
        for file, others in _models_in(snapshot).items():
            path = snapshot / file
            yield Download(f"{owner}/{name}", file, snapshot.name, path, whole_etag(path), others)


def _listed(pattern: str) -> list[Path]:
    """What is in the cache. Raises UsageError for one that may not be looked into, as that of another user's home."""
    cache = hub_cache()
    try:
        return list(cache.glob(pattern))
    except PermissionError:
        raise UsageError(
            f"{cache}: permission denied", hint="HF_HOME names another folder for downloads"
        ) from None


def partials(repo: str | None = None) -> list[Partial]:
    """Every interrupted download of a model repository."""
    pattern = repository_folder(repo).name if repo is not None else "models--*"
    found = []
    for path in sorted(_listed(f"{pattern}/blobs/*{INCOMPLETE}")):
        owner, _, name = path.parent.parent.name.removeprefix("models--").partition("--")
        found.append(Partial(f"{owner}/{name}", path))
    return found


def remove(download: Download) -> None:
    """Remove a downloaded model, from every snapshot that has the same bytes. Raises OSError."""
    folder = repository_folder(download.repo)
    going: set[Path] = set()
    staying: set[Path] = set()
    for item in _every_download(download.repo):
        same = (item.file, item.etag or item.commit) == (download.file, download.etag or download.commit)
        (going if same else staying).update(item.paths)
    blobs = {etag for path in going - staying if (etag := etag_of(path)) is not None}
    for path in going - staying:
        path.unlink()
        if (note := _note_of(path)) is not None:
            note.unlink(missing_ok=True)
    blobs -= {etag for path in (folder / "snapshots").rglob("*") if (etag := etag_of(path)) is not None}
    for etag in blobs:
        _remove_blob(folder / "blobs" / etag)
    for of_commit in (*(folder / "snapshots").glob("*"), *(folder / "etags").glob("*"), folder / "etags"):
        with contextlib.suppress(OSError):  # others are in it
            _remove_empty(of_commit)


def _remove_blob(blob: Path) -> None:
    """Remove a blob; of a link into the store that newer versions of the library keep for all repositories also what it leads
    to, if the library knows of no other link.
    """
    store = blob.parent / blob.readlink() if blob.is_symlink() else None
    blob.unlink(missing_ok=True)
    if store is not None:
        with contextlib.suppress(ImportError):  # a version without such a store
            from huggingface_hub.utils._shared_blobs import sweep_shared_blob

            sweep_shared_blob(store, cache_dir=hub_cache())


def is_intact(path: Path, etag: str, on_progress: Callable[[int, int], None] | None = None) -> bool:
    """Whether the file has the hash that `etag` is: SHA-256 of large files, Git's hash of small ones. An endpoint that
    names no checksum is believed.
    """
    size = path.stat().st_size
    if re.fullmatch("[0-9a-f]{64}", etag):
        digest = hashlib.sha256()
    elif re.fullmatch("[0-9a-f]{40}", etag):
        digest = hashlib.sha1(b"blob %d\0" % size)
    else:
        return True
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if on_progress is not None:
                on_progress(done, size)
    return digest.hexdigest() == etag


def _remove_empty(folder: Path) -> None:
    for inner in _folders(folder):
        inner.rmdir()


def _folders(folder: Path) -> Iterator[Path]:
    """`folder` and those below it, the innermost first."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from _folders(path)
    yield folder
