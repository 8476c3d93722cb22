"""Files of the Hugging Face Hub: downloads that resume and are checked, in the cache that all programs share.

`huggingface_hub` does the talking and owns the cache. It keeps no part of a download that was interrupted,
so the file itself is fetched here, into the place where the library looks for it (`blobs/ETAG` in the
repository's folder). Its settings hold: HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rwkvcli.errors import FormatError, ModelNotFound, NetworkError, NoSpace, RwkvError, UsageError

if TYPE_CHECKING:
    from rwkvcli.services.store import Reference

Progress = Callable[[int, int], None]
"""Called with the bytes that are here and the bytes in all."""

_CHUNK = 1 << 20
_NETWORK_CHUNK = 1 << 17
"""Bytes that are written at a time. What has not filled one is lost when a connection breaks."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_offline() -> bool:
    """Whether the environment switches the network off."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cached_path(reference: Reference) -> Path | None:
    """The file, if it was downloaded; the network is not asked. `reference` names a file."""
    from huggingface_hub import try_to_load_from_cache

    assert reference.file is not None
    with _as_our_errors(reference):
        found = try_to_load_from_cache(
            reference.repo, reference.file, revision=reference.revision, repo_type=reference.kind
        )
    return Path(found) if isinstance(found, str) else None


def cached_files(reference: Reference) -> list[str]:
    """Names of the files of a repository that were downloaded."""
    folder = _repository_folder(reference)
    revision = reference.revision or "main"
    with contextlib.suppress(OSError):
        revision = (folder / "refs" / revision).read_text()
    snapshot = folder / "snapshots" / revision
    return sorted(
        str(path.relative_to(snapshot).as_posix()) for path in snapshot.rglob("*") if path.is_file()
    )


def list_files(reference: Reference) -> list[str]:
    """Names of the files of a repository on the Hub."""
    from huggingface_hub import HfApi

    with _quiet_library(), _as_our_errors(reference):
        return sorted(
            HfApi().list_repo_files(reference.repo, revision=reference.revision, repo_type=reference.kind)
        )


def download(reference: Reference, on_progress: Progress | None = None) -> Path:
    """Download the file that `reference` names unless its newest version is here, and return its path."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    assert reference.file is not None
    repo, file, revision, kind = reference.repo, reference.file, reference.revision, reference.kind
    with _quiet_library(), _as_our_errors(reference):
        about = get_hf_file_metadata(hf_hub_url(repo, file, revision=revision, repo_type=kind))
        if about.etag is None or about.commit_hash is None:
            raise NetworkError(
                f"{_endpoint()} does not answer like a Hugging Face Hub", hint="check HF_ENDPOINT"
            )
        here = try_to_load_from_cache(repo, file, revision=about.commit_hash, repo_type=kind)
        blob = _repository_folder(reference) / "blobs" / about.etag
        if not isinstance(here, str) and not blob.exists():
            url = hf_hub_url(repo, file, revision=about.commit_hash, repo_type=kind)
            _fetch(url, blob, about.size, str(reference), on_progress or _silent)
        return Path(hf_hub_download(repo, file, revision=revision, repo_type=kind))


def _fetch(url: str, blob: Path, size: int | None, name: str, on_progress: Progress) -> None:
    """Fill `blob` from `url`, going on where an earlier attempt stopped; check it; put it in place."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(blob.name + ".incomplete")
    repository = blob.parent.parent
    lock = repository.parent / ".locks" / repository.name / f"{blob.name}.lock"  # the library's own
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():  # another process was faster
            return
        with partial.open("ab") as file:
            have = file.tell()
            if size is not None and have > size:
                file.truncate(0)
                have = 0
            _check_room(partial.parent, (size or 0) - have, name)
            counted = _Counted(file, partial, on_progress, size or 0)
            try:
                with _small_chunks():
                    http_get(url, counted, resume_size=have, headers=build_hf_headers(), expected_size=size)  # type: ignore[arg-type]
            except Exception as error:
                if _is_local(error) or not (counted.grew or _ended_early(error)):
                    raise
                raise NetworkError(
                    f"{name}: the download ended early", hint="run the same command to resume it"
                ) from error
            file.flush()
            os.fsync(file.fileno())
        if not _is_intact(partial, blob.name):
            partial.unlink()
            raise FormatError(
                f"{name}: what came has another checksum than the Hub names",
                hint="it was removed; pull it again",
            )
        partial.replace(blob)


class _Counted:
    """A file that is appended to, and tells how far it is. Has what the library's `http_get` uses."""

    def __init__(self, file: IO[bytes], path: Path, on_progress: Progress, total: int) -> None:
        self._file = file
        self._path = path
        self.grew = False
        self._on_progress = on_progress
        self._total = total
        on_progress(file.tell(), total)

    def write(self, data: bytes) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:  # of the disk; those of the network name no file
            error.filename = str(self._path)
            raise
        self.grew = True
        self._on_progress(self._file.tell(), self._total)
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


def _ended_early(error: BaseException | None) -> bool:
    """Whether the connection was closed inside the file: httpx's and requests' ways to say so."""
    while error is not None:
        if type(error).__name__ in ("RemoteProtocolError", "ChunkedEncodingError", "IncompleteRead"):
            return True
        if "Consistency check failed" in str(error):
            return True
        error = error.__cause__
    return False


def _is_local(error: BaseException) -> bool:
    """Whether it is about a file of this machine: errors of the network have no file's name."""
    from huggingface_hub import errors

    if not isinstance(error, OSError) or isinstance(error, errors.HTTPError):
        return False
    return error.errno in _FULL or error.filename is not None


def _silent(_done: int, _total: int) -> None:
    pass


def _is_intact(path: Path, etag: str) -> bool:
    """Whether the file has the hash that `etag` is: SHA-256 of large files, Git's hash of small ones."""
    if re.fullmatch("[0-9a-f]{64}", etag):
        digest = hashlib.sha256()
    elif re.fullmatch("[0-9a-f]{40}", etag):
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    else:
        return True  # an endpoint that names no checksum
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == etag


def _check_room(folder: Path, wanted: int, name: str) -> None:
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise NoSpace(
            f"{name} needs {wanted / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free",
            hint="HF_HOME names another folder for downloads",
        )


def _repository_folder(reference: Reference) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{reference.kind}s--{reference.repo.replace('/', '--')}"


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


@contextlib.contextmanager
def _quiet_library() -> Iterator[None]:
    """The library neither logs nor draws bars: what happens is told through `on_progress` and errors."""
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


@contextlib.contextmanager
def _as_our_errors(reference: Reference) -> Iterator[None]:
    """Turn the library's errors, and those of the network below it, into this project's."""
    from huggingface_hub import errors

    try:
        yield
    except RwkvError:
        raise
    except (errors.HTTPError, OSError, errors.HFValidationError, errors.EntryNotFoundError) as error:
        if isinstance(error, OSError) and _is_local(error):
            raise _of_the_disk(error, reference) from error
        raise _translated(error, reference) from error


def _of_the_disk(error: OSError, reference: Reference) -> RwkvError:
    hint = "HF_HOME names another folder for downloads"
    if error.errno in _FULL:
        return NoSpace(f"{reference}: the disk is full", hint=hint)
    reason = (error.strerror or str(error)).lower()
    return RwkvError(f"{os.fsdecode(error.filename)}: {reason}", hint=hint)


def _translated(error: Exception, reference: Reference) -> RwkvError:
    from huggingface_hub import errors

    repo, at = reference.repo, f" at revision {reference.revision}" if reference.revision else ""
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{reference} cannot be a repository on the Hub", hint="write owner/repo:file")
    if isinstance(error, errors.GatedRepoError):
        return NetworkError(
            f"{repo} is gated: its owner asks you to accept terms",
            hint=f"accept them at {_endpoint()}/{repo}, then set HF_TOKEN to a token of yours",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelNotFound(
            f"there is no repository {repo} on the Hub, or it is private",
            hint="check the name; for a private one set HF_TOKEN",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFound(f"{repo} has no revision {reference.revision}")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return NetworkError(f"{reference} needs the network, which is off", hint="unset HF_HUB_OFFLINE")
    if isinstance(error, errors.EntryNotFoundError):
        return ModelNotFound(
            f"{repo} has no file {reference.file}{at}", hint=f"see {_endpoint()}/{repo}/tree/main"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return NetworkError(f"not authorised to read {repo}", hint="set HF_TOKEN to a token that may read it")
    if status == 429:
        return NetworkError(
            "the Hub refuses: too many requests", hint="wait a few minutes; HF_TOKEN raises the limit"
        )
    if status is not None:
        return NetworkError(f"the Hub answered {status} for {reference}", hint="try again later")
    return NetworkError(
        f"{_endpoint()} cannot be reached: {_reason(error)}",
        hint="check the connection; what was downloaded so far is kept",
    )


def _reason(error: Any) -> str:
    """The innermost cause, in one line."""
    while error.__cause__ is not None and str(error.__cause__):
        error = error.__cause__
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
