"""The file system under the artefacts: whole writes, swaps, locks, and what to do when it fails.

Knows no artefact.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from serendip.core import SerendipError, StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_WRITING = (*_FULL, errno.EROFS)  # nothing that only reads ends so
_OF_ACCESS = (errno.EACCES, errno.EPERM, errno.EIO)
_LITTLE = 1 << 20  # bytes; with fewer left, a write that was cut short met the end of the disk
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")  # numpy's, which has no errno
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces ``path`` by ``data``; a reader sees the old bytes or the new, never a mixture.

    When it returns, they are on disk. What fails leaves the old bytes and nothing beside them.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def seal_file(path: Path) -> str:
    """sha256 of a file whose bytes are on disk when it returns: a disk that is full and has not
    said so yet says so here."""
    with path.open("rb") as f:
        os.fsync(f.fileno())
        return hashlib.file_digest(f, "sha256").hexdigest()


def sync_folder(path: Path) -> None:
    """Puts a folder's entries on disk, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def swap(new: Path, old: Path) -> None:
    """Puts folder ``new`` in the place of folder ``old``, which is removed.

    One step where the system can exchange two names (Linux, most file systems); elsewhere ``old``
    is away for the moment between two renames.
    """
    gone = old.with_name(f".{old.name}.{time.time_ns()}.gone")
    if _exchange(new, old):
        new.rename(gone)
    else:
        old.rename(gone)
        new.rename(old)
    sync_folder(old.parent)
    shutil.rmtree(gone, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    names = os.fsencode(a), os.fsencode(b)
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def walk(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """A file or folder and everything below it; what vanishes meanwhile is left out."""
    below = (Path(at) / name for at, folders, files in os.walk(path) for name in folders + files)
    for p in chain([path], below):
        with contextlib.suppress(FileNotFoundError):
            yield p, p.lstat()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return sum(about.st_size for _, about in walk(path) if not stat.S_ISDIR(about.st_mode))


def is_held(lock: Path) -> bool:
    """Whether a process holds a lock file. To be asked where nobody is about to take it."""
    try:
        with lock.open("rb") as f:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextlib.contextmanager
def storage_errors(folder: Path, remedy: str) -> Iterator[None]:
    """An error of the block that is the place's fault becomes a StorageError.

    Whatever library wrote: its own error is known by the system's error in it, by its cause, or
    by the system's words in its text.

    Args:
        folder: what the block writes.
        remedy: what to do once there is room, or another place.
    """
    try:
        yield
    except Exception as error:
        found = None if isinstance(error, SerendipError) else _cause(error, folder)
        if found is None:
            raise
        number, place = found
        places = f"{free_bytes(place):,} bytes free"
        temporary = Path(tempfile.gettempdir())
        if number in _FULL and free_bytes(temporary) == 0 < free_bytes(place):
            places += f", none in {temporary}"
        advice = "Make it writable"
        if number in _FULL:
            advice = "Free space there"
        elif number == errno.EIO:
            advice = "Check the disk"
        raise StorageError(
            f"{os.strerror(number)} ({places})",
            field=str(place),
            remedy=f"{advice}, or set artifacts_dir to another folder; {remedy}",
        ) from error


def _cause(error: BaseException, folder: Path) -> tuple[int, Path] | None:
    """(errno, folder) that made an error, if it is one of the place."""
    seen: BaseException | None = error
    while seen is not None:
        place = folder
        number: int | None = None
        if isinstance(seen, OSError):
            named = Path(seen.filename) if isinstance(seen.filename, str) else None
            inside = named is None or _inside(named, folder)
            if seen.errno in _OF_WRITING or (seen.errno in _OF_ACCESS and inside):
                number = seen.errno
                place = folder if named is None or inside else named.parent
            elif _SHORT_WRITE.search(str(seen)):
                number = errno.EIO
        else:
            spoken = (n for n in (*_OF_WRITING, errno.EIO) if os.strerror(n) in str(seen))
            number = next(spoken, None)
        if number is not None:
            cut_short = number == errno.EIO and free_bytes(place) < _LITTLE
            return errno.ENOSPC if cut_short else number, place
        seen = seen.__cause__
    return None


def _inside(path: Path, folder: Path) -> bool:
    return path.absolute().is_relative_to(folder.absolute())


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written where a folder lies, or will lie."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    about = os.statvfs(folder)
    return about.f_bavail * about.f_frsize
