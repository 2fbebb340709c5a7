"""One of several worker processes at a time, and what they tell each other. Knows no release."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator


class Turns:
    """Lets one of several processes reload at a time, and remembers what is known to be good.

    Args:
        file: the descriptor of one that all have inherited; None: one of this process alone.
    """

    def __init__(self, file: int | None = None) -> None:
        if file is None:
            file, name = tempfile.mkstemp()
            os.unlink(name)
        self._file = file

    @contextlib.contextmanager
    def take(self) -> Iterator[None]:
        """Waits for the turn, and has it while the block runs."""
        # Of the process, not of the descriptor, which all share.
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    @property
    def checked(self) -> str:
        """The release that was checked last and is good; to be used in one's turn."""
        return os.pread(self._file, 64, 0).decode()

    @checked.setter
    def checked(self, version: str) -> None:
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, version.encode(), 0)
