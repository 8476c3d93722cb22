"""The Hugging Face Hub: lists, headers, and downloads that resume and are checked, in the cache that all programs share.

`huggingface_hub` does the talking and owns the cache. It keeps no part of a download that was interrupted,
so the file itself is fetched here, into the place where the library looks for it (`blobs/ETAG` in the
repository's folder). Its settings hold: HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, HF_HUB_DISABLE_XET.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from rwkvcli.errors import FormatError, NetworkError, NoSpace, RwkvError, UsageError
from rwkvcli.services import hub_cache
from rwkvcli.services.hub_errors import as_our_errors, ended_early, endpoint, is_local, is_timeout, status_of
from rwkvcli.services.names import Reference
from rwkvcli.services.watching import Watcher

PAUSES = (1.0, 3.0, 9.0)
"""Seconds before a request is made again that failed for a reason that may pass."""
_NETWORK_CHUNK = 1 << 17
"""Bytes that are written at a time. What has not filled one is lost when a connection breaks."""
_HEADER_MAX = 100_000_000
_SMALL_MAX = 1 << 26
"""Bytes that a file may have whose content is looked at before anything is downloaded."""
_LOCK_TRY = 0.5
"""Seconds between two looks at a download of another process."""

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository."""

    path: str
    size: int
    etag: str
    """Its checksum: SHA-256 of large files, Git's hash of small ones."""


def list_files(reference: Reference) -> list[RemoteFile]:
    """The files of a repository on the Hub, by name, at the revision of `reference`."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with _quiet_library(), as_our_errors(reference):
        tree = HfApi().list_repo_tree(  # asks again by itself
            reference.repo, recursive=True, revision=reference.revision, repo_type=reference.kind
        )
        found = [
            RemoteFile(item.path, item.size, item.lfs.sha256 if item.lfs is not None else item.blob_id)
            for item in tree
            if isinstance(item, RepoFile)
        ]
    return sorted(found, key=lambda item: item.path)


def describe(reference: Reference, watcher: Watcher | None = None) -> RemoteFile:
    """Size and checksum of the file that `reference` names."""
    assert reference.file is not None
    with _quiet_library(), as_our_errors(reference):
        about = _metadata(reference, watcher or Watcher())
        return RemoteFile(reference.file, about.size or 0, about.etag)


def download(reference: Reference, watcher: Watcher | None = None) -> Path:
    """Download the file that `reference` names unless its newest version is here, and return its path."""
    from huggingface_hub import hf_hub_download, hf_hub_url

    assert reference.file is not None
    watcher = watcher or Watcher()
    repo, file, revision, kind = reference.repo, reference.file, reference.revision, reference.kind
    with _quiet_library(), as_our_errors(reference):
        about = _metadata(reference, watcher)
        here = hub_cache.cached_path(Reference(repo, file, about.commit_hash, kind))
        blob = hub_cache.repository_folder(repo, kind) / "blobs" / about.etag
        if here is None and not blob.exists():
            url = hf_hub_url(repo, file, revision=about.commit_hash, repo_type=kind)
            _fetch(url, blob, about, str(reference), watcher)
        cache = str(hub_cache.hub_cache())
        return Path(
            _retried(
                lambda: hf_hub_download(repo, file, revision=revision, repo_type=kind, cache_dir=cache),
                watcher,
            )
        )


def content(reference: Reference, about: RemoteFile, watcher: Watcher | None = None) -> bytes:
    """The bytes of a small file, from the cache if they are there; nothing is kept. Raises FormatError if it is large."""
    from huggingface_hub import hf_hub_url

    blob = hub_cache.repository_folder(reference.repo, reference.kind) / "blobs" / about.etag
    if blob.is_file():
        return blob.read_bytes()
    name = Reference(reference.repo, about.path, reference.revision)
    if about.size == 0:
        return b""
    if about.size > _SMALL_MAX:
        raise FormatError(f"{name} is too large for what it is called")
    url = hf_hub_url(reference.repo, about.path, revision=reference.revision, repo_type=reference.kind)
    with _quiet_library(), as_our_errors(name):
        return _retried(lambda: _bytes_of(url, 0, about.size), watcher or Watcher())


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


@contextlib.contextmanager
def header_only(reference: Reference, watcher: Watcher | None = None) -> Iterator[Path]:
    """A stand-in for a safetensors file on the Hub that was not downloaded: its size and header, and a hole for the data.

    The header is all that is fetched. The file is gone after the block. Raises FormatError for what is no
    safetensors file.
    """
    from huggingface_hub import hf_hub_url

    assert reference.file is not None
    with _quiet_library(), as_our_errors(reference):
        about = _metadata(reference, watcher or Watcher())
        if about.size is None or about.size < 8:
            raise FormatError(f"{reference} is too short for a safetensors file")
        url = hf_hub_url(reference.repo, reference.file, revision=about.commit_hash, repo_type=reference.kind)
        (length,) = struct.unpack("<Q", _bytes_of(url, 0, 8))
        if length > min(_HEADER_MAX, about.size - 8):
            raise FormatError(f"{reference} is not a safetensors file")
        header = _bytes_of(url, 8, 8 + length)
    with tempfile.TemporaryDirectory(prefix="rwkv-") as folder:
        path = Path(folder) / Path(reference.file).name
        with path.open("wb") as file:
            file.write(struct.pack("<Q", length) + header)
            file.truncate(about.size)
        try:
            yield path
        except RwkvError as error:  # the stand-in's path says nothing to anybody
            error.args = (str(error).replace(str(path), str(reference)),)
            raise


def _metadata(reference: Reference, watcher: Watcher) -> Any:
    """What the Hub says of a file without sending it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    assert reference.file is not None
    url = hf_hub_url(reference.repo, reference.file, revision=reference.revision, repo_type=reference.kind)
    about = _retried(lambda: get_hf_file_metadata(url), watcher)
    if about.etag is None or about.commit_hash is None:
        raise NetworkError(f"{endpoint()} does not answer like a Hugging Face Hub", hint="check HF_ENDPOINT")
    if not about.etag or "/" in about.etag or about.etag.startswith("."):  # it becomes a file's name
        raise NetworkError(f"{endpoint()} names no usable checksum for {reference}")
    return about


def _retried(ask: Callable[[], T], watcher: Watcher, *, timeouts: bool = True) -> T:
    """What `ask` returns; asked again after pauses while what fails may pass. `timeouts`: they may."""
    for pause in PAUSES:
        try:
            return ask()
        except Exception as error:
            status = status_of(error)
            if not (status in (408, 429) or (status or 0) >= 500 or (timeouts and is_timeout(error))):
                raise
            watcher.trying_again(f"the Hub answered {status}" if status else "the Hub is silent", pause)
            time.sleep(pause)
    return ask()


def _bytes_of(url: str, begin: int, end: int) -> bytes:
    """The bytes [begin, end) of a file on the Hub, by a range request; a server that ignores it is cut off."""
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

    headers = {**build_hf_headers(), "Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
    found = bytearray()
    with http_stream_backoff("GET", url, headers=headers, follow_redirects=True) as response:
        hf_raise_for_status(response)
        skipped = 0 if response.status_code == 206 else begin
        for chunk in response.iter_bytes(1 << 16):
            found += chunk
            if len(found) >= skipped + end - begin:
                break
    wanted = bytes(found[skipped : skipped + end - begin])
    if len(wanted) != end - begin:
        raise NetworkError("the Hub sent less than was asked for", hint="try again")
    return wanted


def _fetch(url: str, blob: Path, about: Any, name: str, watcher: Watcher) -> None:
    """Fill `blob` from `url`, going on where an earlier attempt stopped; check it; put it in place."""
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(blob.name + hub_cache.INCOMPLETE)
    with _library_lock(blob, partial, about.size or 0, name, watcher):
        if blob.exists():  # another process was faster
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
                _retried(
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
        partial.replace(blob)


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


def check_room(wanted: dict[Path, int], name: str) -> None:
    """Raise NoSpace unless every folder's disk has room for the bytes wanted there; those of one disk are added up."""
    disks: dict[int, tuple[Path, int]] = {}
    for folder, nbytes in wanted.items():
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        device = there.stat().st_dev
        disks[device] = there, disks.get(device, (there, 0))[1] + nbytes
    for there, nbytes in disks.values():
        free = shutil.disk_usage(there).free
        if nbytes > free:
            raise NoSpace(
                f"{name} needs {nbytes / 1e9:.1f} GB, but {there} has {free / 1e9:.1f} GB free",
                hint="HF_HOME names another folder for downloads, RWKV_MODELS for what is made of them",
            )


@contextlib.contextmanager
def _quiet_library() -> Iterator[None]:
    """The library neither logs nor draws bars: what happens is told to the watcher and by errors."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    level, bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            enable_progress_bars()
