"""Model files that were made of downloads, and are kept: quantized once, found again by the download's name.

    OWNER--REPO/ID/model.json          which download it was made of, and the checksums
    OWNER--REPO/ID/STEM-KIND.safetensors
    OWNER--REPO/ID/lock                held by the process that is making one

ID comes from the download's name and checksum, so that another file under the same name is another folder, and so are
the same bytes under another name. Every file is written whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rwkvcli.errors import UsageError
from rwkvcli.services.locks import clear, locked
from rwkvcli.services.names import KINDS, Reference
from rwkvcli.services.parts import stem
from rwkvcli.services.places import Place

_RECORD, _LOCK = "model.json", "lock"
_DIGITS = 16
"""Of a hash, in the name of the folder."""


def _default_path() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("rwkv", appauthor=False) / "models"


PLACE = Place("RWKV_MODELS", "folder for what is made of downloads", _default_path)
"""RWKV_MODELS, or `rwkv/models` in the user's cache folder."""


def kept_path() -> Path:
    """The folder of all that is kept; it may not be there yet."""
    return PLACE.path()


@dataclass(frozen=True)
class Origin:
    """The download that model files are made of."""

    repo: str
    file: str
    etag: str
    """Its checksum, as the Hub named it."""
    nbytes: int
    revisions: tuple[str, ...] = ("main",)
    """Branches, tags and commits under which it was seen."""
    sums: Mapping[str, str] = field(default_factory=dict)
    """{kind: SHA-256 of the model file made of it}."""

    @property
    def folder(self) -> Path:
        """Where what is made of it is kept."""
        digits = hashlib.sha256(f"{self.file}\n{self.etag}".encode()).hexdigest()[:_DIGITS]
        return kept_path() / self.repo.replace("/", "--") / digits

    def target(self, kind: str) -> Path:
        """The model file of `kind` made of it."""
        return self.folder / f"{stem(self.repo, self.file)}-{kind}.safetensors"

    def write(self) -> None:
        """Write the record, with what an earlier one knew. Raises UsageError, OSError."""
        from quant.atomic import whole_file

        before = _read(self.folder)
        revisions = dict.fromkeys((*(before.revisions if before else ()), *self.revisions))
        sums = {**(before.sums if before else {}), **self.sums}
        values = {**asdict(self), "revisions": list(revisions), "sums": sums}
        with whole_file(PLACE.made(self.folder) / _RECORD) as file:
            file.write((json.dumps(values, indent=1) + "\n").encode())

    @contextlib.contextmanager
    def locked(self, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
        """Be the only process that makes or removes something of it; see `locks.locked`."""
        try:
            with locked(PLACE.made(self.folder) / _LOCK, on_wait):
                yield
        finally:
            with contextlib.suppress(OSError):  # there is something in it, or in the one above
                self.folder.rmdir()
                self.folder.parent.rmdir()


@dataclass(frozen=True)
class Kept:
    """One model file that is kept."""

    path: Path
    kind: str
    origin: Origin

    @property
    def reference(self) -> Reference:
        """The download it was made of."""
        return Reference(self.origin.repo, self.origin.file)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size

    @property
    def made(self) -> float:
        """When, in seconds since 1970."""
        return self.path.stat().st_mtime

    @property
    def sha256(self) -> str | None:
        """Its checksum, if it was noted."""
        return self.origin.sums.get(self.kind)


def kept(repo: str | None = None) -> list[Kept]:
    """Every model file that is kept, of one repository or all; the one made last stands last."""
    found = []
    for origin in _origins(repo):
        found += [Kept(origin.target(kind), kind, origin) for kind in KINDS if origin.target(kind).is_file()]
    return sorted(found, key=lambda item: (item.made, item.path))


def remove(item: Kept) -> None:
    """Remove a model file, and the folder with the last one. Raises UsageError while one is being made, OSError."""
    try:
        with item.origin.locked():
            item.path.unlink(missing_ok=True)
            tidy(item.origin)
    except BlockingIOError:
        raise UsageError(
            f"{item.reference} is being worked on by another process", hint="wait for it to end"
        ) from None


def sweep(repo: str) -> None:
    """Remove what killed processes left in making model files of a repository's downloads, where no other file is."""
    for origin in _origins(repo):
        with contextlib.suppress(OSError, UsageError), origin.locked():
            tidy(origin)


def tidy(origin: Origin) -> None:
    """Remove all that is in the folder of `origin`, which is locked, if no model file is; the folder goes with the lock. Raises OSError."""
    if any(origin.target(kind).is_file() for kind in KINDS):
        return
    clear(origin.folder)


def _origins(repo: str | None) -> Iterator[Origin]:
    """The downloads that something was made of, of one repository or all."""
    if not PLACE.is_known():
        return
    pattern = repo.replace("/", "--") if repo is not None else "*"
    with PLACE.in_use():  # it may be below another user's home
        folders = list(kept_path().glob(f"{pattern}/*"))
    for folder in folders:
        origin = _read(folder)
        if origin is not None:
            yield origin


def _read(folder: Path) -> Origin | None:
    """The record in `folder`; None without a sound one."""
    try:
        values: dict[str, Any] = json.loads((folder / _RECORD).read_bytes())
        json.dumps(values, ensure_ascii=False).encode()  # half of a surrogate pair is no text
        origin = Origin(**{**values, "revisions": tuple(values["revisions"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    sums = origin.sums.values() if isinstance(origin.sums, dict) else (None,)
    texts = (origin.repo, origin.file, origin.etag, *origin.revisions, *sums)
    sound = all(isinstance(text, str) for text in texts) and type(origin.nbytes) is int
    return origin if sound and origin.folder == folder else None
