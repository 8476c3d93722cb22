"""Blobs of the Hub's cache: fetched, gone on with after an interruption, checked, and by one process at a time.

`huggingface_hub` keeps no part of a download that was interrupted, so files are fetched here, into the place where
the library looks for them (`blobs/ETAG` in the repository's folder).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rwkvcli.errors import FormatError, NetworkError, NoSpace, UsageError
from rwkvcli.services import hub_cache
from rwkvcli.services.hub_errors import ended_early, is_local, retried
from rwkvcli.services.names import Reference
from rwkvcli.services.watching import Watcher

_NETWORK_CHUNK = 1 << 17
"""Bytes that are written at a time. What has not filled one is lost when a connection breaks."""
_LOCK_TRY = 0.5
"""Seconds between two looks at a download of another process."""


def fetch(url: str, folder: Path, path: str, about: Any, name: str, watcher: Watcher) -> None:
    """Bring the file `path` of the repository whose folder in the cache this is, unless all of it is here: go on where an earlier
    attempt stopped, check it, put it in place. What is there of another size, as half of a copy, is removed.
    """
    hub_cache.check_home()
    blob = folder / "blobs" / about.etag
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(blob.name + hub_cache.INCOMPLETE)
    with _library_lock(blob, partial, about.size or 0, name, watcher):
        place = _place(blob, folder / "snapshots" / about.commit_hash / path)
        if _is_whole(place, about, watcher):  # another process was faster
            return
        place.unlink(missing_ok=True)
        if place != blob and _is_whole(blob, about, watcher):
            blob.replace(place)
            return
        if place != blob and _is_linked(place, folder, about):
            return
        if not partial.exists():
            _try_xet(about, partial, watcher)
        with partial.open("ab") as file:
            have = file.tell()
            if about.size is not None and have > about.size:
                file.truncate(0)
                have = file.seek(0)
            check_room({partial.parent: (about.size or 0) - have}, name)
            counted = _Counted(file, partial, watcher, about.size or 0)
            try:
                retried(
                    lambda: _fill(url, counted, about.size), watcher, timeouts=False
                )  # it has tries of its own
            except Exception as error:
                if is_local(error) or not (counted.grew or ended_early(error)):
                    raise
                raise NetworkError(
                    f"{name}: the download ended early", hint="run the same command to resume it"
                ) from error
            file.flush()
            os.fsync(file.fileno())
        if not hub_cache.is_intact(partial, blob.name, watcher.checking):
            partial.unlink()
            raise FormatError(
                f"{name}: what came has another checksum than the Hub names",
                hint="it was removed; pull it again",
            )
        partial.replace(place)


def _place(blob: Path, pointer: Path) -> Path:
    """Where the bytes are to stand: `blob`, or on a disk without links the file of the snapshot, whose folder is made. The
    library would make a copy there, and keep both.
    """
    from huggingface_hub import file_download

    with warnings.catch_warnings(action="ignore"):  # that there are no links
        if file_download.are_symlinks_supported(hub_cache.hub_cache()) and (
            pointer.is_symlink() or not pointer.is_file()
        ):
            return blob
    pointer.parent.mkdir(parents=True, exist_ok=True)
    return pointer


def _is_linked(place: Path, folder: Path, about: Any) -> bool:
    """Make `place` a hard link to a file of another snapshot with the same bytes; False: there is none, or the disk has no such
    links either.
    """
    for other in hub_cache.same_bytes(folder, about.etag, about.size):
        with contextlib.suppress(OSError):
            os.link(other, place)
            return True
    return False


def _is_whole(path: Path, about: Any, watcher: Watcher) -> bool:
    """Whether a file that was put in place is there with all of its bytes: these are looked at where the size is another."""
    if not path.is_file():
        return False
    return about.size in (None, path.stat().st_size) or hub_cache.is_intact(
        path, about.etag, watcher.checking
    )


def part_of(reference: Reference, etag: str) -> int:
    """Bytes that an interrupted download of the file left here."""
    blob = hub_cache.repository_folder(reference.repo, reference.kind) / "blobs" / etag
    try:
        return blob.with_name(blob.name + hub_cache.INCOMPLETE).stat().st_size
    except OSError:
        return 0


def remove_partial(partial: hub_cache.Partial) -> None:
    """Remove what an interrupted download left. Raises UsageError if it is going on, in whatever program, and OSError."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    etag = partial.path.name.partition(".")[0]
    try:
        with WeakFileLock(_lock_path(partial.path.with_name(etag)), timeout=_LOCK_TRY):
            partial.path.unlink(missing_ok=True)
    except Timeout:
        raise UsageError(
            f"a file of {partial.repo} is being downloaded by another process", hint="wait for it to end"
        ) from None


def check_room(wanted: dict[Path, int], name: str) -> None:
    """Raise NoSpace unless every folder's disk has room for the bytes wanted there; those of one disk are added up."""
    disks: dict[int, tuple[Path, int]] = {}
    for folder, nbytes in wanted.items():
        there = hub_cache.disk_of(folder)
        device = there.stat().st_dev
        disks[device] = there, disks.get(device, (there, 0))[1] + nbytes
    for there, nbytes in disks.values():
        free = shutil.disk_usage(there).free
        if nbytes > free:
            raise NoSpace(
                f"{name} needs {nbytes / 1e9:.1f} GB, but {there} has {free / 1e9:.1f} GB free",
                hint="HF_HOME names another folder for downloads, RWKV_MODELS for what is made of them",
            )


def _try_xet(about: Any, partial: Path, watcher: Watcher) -> None:
    """Bring `partial` by the Hub's Xet protocol, whole or not at all.

    It is faster on fast lines, but what it leaves when it is interrupted cannot be gone on with: it is used where
    HF_XET_HIGH_PERFORMANCE asks for it, and for files larger than the Hub sends otherwise.
    """
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import build_hf_headers

    wanted = constants.HF_XET_HIGH_PERFORMANCE or (about.size or 0) > constants.MAX_HTTP_DOWNLOAD_SIZE
    if not wanted or about.xet_file_data is None or not file_download.is_xet_available():
        return
    check_room({partial.parent: about.size or 0}, "the download")
    scratch = partial.with_name(f"xet-{partial.name}")
    try:
        file_download.xet_get(
            incomplete_path=scratch,
            xet_file_data=about.xet_file_data,
            headers=build_hf_headers(),
            expected_size=about.size,
        )
        scratch.replace(partial)
    except Exception as error:  # whatever it is: plain HTTP brings the file too
        if is_local(error):
            raise
        watcher.trying_again("the Xet protocol failed", 0)
    finally:
        scratch.unlink(missing_ok=True)


def _fill(url: str, file: _Counted, size: int | None) -> None:
    """Append what is missing."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    with _small_chunks():
        http_get(
            url,
            file,  # type: ignore[arg-type]
            resume_size=file.tell(),
            headers=build_hf_headers(),
            expected_size=size,
        )


@contextlib.contextmanager
def _library_lock(blob: Path, partial: Path, size: int, name: str, watcher: Watcher) -> Iterator[None]:
    """The library's own lock of a blob; while another process has it, its progress is told."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    lock = _lock_path(blob)
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(WeakFileLock(lock, timeout=_LOCK_TRY))
                break
            except Timeout:
                watcher.waiting(f"another process is downloading {name}")
                with contextlib.suppress(OSError):
                    watcher.downloading(partial.stat().st_size, size)
        yield


def _lock_path(blob: Path) -> Path:
    """The library's lock file for a blob; its folder is made."""
    repository = blob.parent.parent
    lock = repository.parent / ".locks" / repository.name / f"{blob.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    return lock


class _Counted:
    """A file that is appended to, and tells how far it is. Has what the library's `http_get` uses."""

    def __init__(self, file: IO[bytes], path: Path, watcher: Watcher, total: int) -> None:
        self._file = file
        self._path = path
        self.grew = False
        self._watcher = watcher
        self._total = total
        watcher.downloading(file.tell(), total)

    def write(self, data: bytes) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:  # of the disk; those of the network name no file
            error.filename = str(self._path)
            raise
        self.grew = True
        self._watcher.downloading(self._file.tell(), self._total)
        return written

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def truncate(self, size: int | None = None) -> int:
        return self._file.truncate(size)

    def flush(self) -> None:
        self._file.flush()


@contextlib.contextmanager
def _small_chunks() -> Iterator[None]:
    """The library reads 10 MB before it writes any of it: a link that drops sooner would never get on."""
    from huggingface_hub import constants

    before = constants.DOWNLOAD_CHUNK_SIZE
    constants.DOWNLOAD_CHUNK_SIZE = _NETWORK_CHUNK
    try:
        yield
    finally:
        constants.DOWNLOAD_CHUNK_SIZE = before
