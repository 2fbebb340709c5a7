"""What is read from files that an operator replaces while a server runs. Knows no format.

changed? ──> read ──> value
               └── cannot be read: the last good one stays, it is said and counted once
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from serendip.core import InvalidRequest, SerendipError

T = TypeVar("T")
Stamp = tuple[int, int, int]

_log = logging.getLogger(__name__)


class WatchedFiles(Generic[T]):
    """Holds what was read last from one or several files.

    Attributes:
        value: the last good one; replaced as a whole, so any thread may read it.
    """

    def __init__(
        self,
        what: str,
        paths: Sequence[Path],
        read: Callable[[], T],
        on_failure: Callable[[], None],
    ) -> None:
        """Reads the files.

        Args:
            what: how the value is called in the log.
            read: raises SerendipError where it cannot.
            on_failure: told that the files had changed and could not be read.

        Raises:
            SerendipError: they cannot be read.
        """
        self._what = what
        self._paths = tuple(paths)
        self._read = read
        self._on_failure = on_failure
        self._stamps = self._look()
        self.value = read()

    def refresh(self) -> bool:
        """Reads the files if one has changed; returns whether that gave a value."""
        stamps = self._look()
        if stamps == self._stamps:
            return False
        # Taken before the files are read: one that changes meanwhile is read again next time.
        self._stamps = stamps
        try:
            self.value = self._read()
        except SerendipError as e:
            self._on_failure()
            _log.error("%s: what was read before stays: %s", self._what, e)
            return False
        return True

    def _look(self) -> tuple[Stamp | None, ...]:
        return tuple([_stamp(path) for path in self._paths])


def _stamp(path: Path) -> Stamp | None:
    """Changes when the file does; None while there is none."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns


def read_file(path: Path, flag: str, remedy: str, most: int = 1 << 20) -> bytes:
    """The bytes of a file that a flag names.

    Args:
        most: bytes that it may have.

    Raises:
        InvalidRequest: it cannot be read, or is larger; names the flag.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as e:
        reason = e.strerror or str(e)
        raise InvalidRequest(
            f"cannot be read ({reason})", field=flag, value=str(path), remedy=remedy
        ) from e
    if len(data) > most:
        raise InvalidRequest(
            f"is larger than {most >> 10} KiB", field=flag, value=str(path), remedy=remedy
        )
    return data


@contextlib.contextmanager
def refreshing(watched: Sequence[WatchedFiles[Any]], every_s: float = 0.25) -> Iterator[None]:
    """Has them read what changes, by a thread of its own, while the block runs."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(every_s):
            for one in watched:
                one.refresh()

    if not watched:
        yield
        return
    thread = threading.Thread(target=work, name="watched files", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
