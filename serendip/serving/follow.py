"""Follows the current release: check it, open it, swap one reference.

    release/current ──> load, in a thread: check in a process, open, warm ──> swap
         │ poll, SIGHUP        ├── not yet: the old one serves on, and the next look tries again
                               └── cannot be opened: the old one serves on, it is said and counted

Knows no tier: what a release is opened as, and what serves it, are told by functions.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge

from serendip.core import CorruptArtifact, SerendipError

_RETRY_S, _MAX_RETRY_S = 1.0, 60.0
_CHECK_S = 600.0

_log = logging.getLogger(__name__)


class Versioned(Protocol):
    """What a server serves at a time."""

    @property
    def version(self) -> str:
        """Of the release."""


S = TypeVar("S", bound=Versioned)


class NotYet(Exception):
    """A release is good, and something that it is to serve with does not have it yet."""


class ReloadMetrics:
    """The collectors of reloads; make one a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.reloads = Counter(
            "serendip_reloads", "Releases that were swapped in.", registry=registry
        )
        self.failures = Counter(
            "serendip_reload_failures",
            "Attempts at the current release that left the old one serving.",
            registry=registry,
        )
        self.last_success = Gauge(
            "serendip_reload_last_success_time_seconds",
            "Unix time at which the release that is served was swapped in.",
            registry=registry,
        )
        self.last_success.set_to_current_time()


class Check:
    """Opens a release in a process of its own, which one that brings its reader down brings down.

    Args:
        module: run as ``python -m MODULE ROOT VERSION ARGUMENTS``; exits with 0, or with 2 and
            says why in its last line.
        root: folder of the artefacts.
    """

    def __init__(self, module: str, root: Path, *arguments: str) -> None:
        self._command = (sys.executable, "-m", module, str(root))
        self._arguments = arguments
        self._process: subprocess.Popen[str] | None = None

    def run(self, version: str) -> None:
        """Raises CorruptArtifact, with what the check said, unless the release can be opened."""
        self._process = process = subprocess.Popen(
            [*self._command, version, *self._arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _, says = process.communicate(timeout=_CHECK_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise CorruptArtifact(f"was not checked within {_CHECK_S:g} s") from None
        lines = says.strip().splitlines()
        if process.returncode == 0:
            return
        if process.returncode == 2 and lines:
            raise CorruptArtifact(lines[-1])
        last = f": {lines[-1]}" if lines else ""
        raise CorruptArtifact(f"its check ended with {process.returncode}{last}")

    def kill(self) -> None:
        """Ends one that is running."""
        if self._process is not None:
            self._process.kill()


class Follower(Generic[S]):
    """Keeps what a server serves at the current release.

    Args:
        current: the version of the current release, None if there is none; raises OSError.
        serving: what is served now.
        load: opens a release to be served after the one that is given; called by one thread.
            Raises NotYet to be asked again at the next look, anything else where it cannot.
        swap: serves something else from now on; called by the event loop's thread.
        look: called at each look, by that same thread; None: nothing is.
        poll_s: seconds between two looks at the pointer.
    """

    def __init__(
        self,
        current: Callable[[], str | None],
        serving: S,
        load: Callable[[str, S], S],
        swap: Callable[[S], None],
        registry: CollectorRegistry,
        *,
        look: Callable[[S], None] | None = None,
        poll_s: float = 1.0,
    ) -> None:
        self._current = current
        self._serving = serving
        self._load = load
        self._swap = swap
        self._metrics = ReloadMetrics(registry)
        self._also = look
        self._poll_s = poll_s
        self._asked = asyncio.Event()
        self._failed = ""  # the version that cannot be opened, and what was logged of it
        self._told = ""
        self._retry_s = _RETRY_S
        self._retry_at = 0.0
        self._task: asyncio.Task[None] | None = None
        # One thread for all that it reads and opens: memory of many would stay with each.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reload")

    def ask(self) -> None:
        """Looks at once, and tries again what has failed."""
        self._failed = ""
        self._asked.set()

    def begin(self) -> None:
        """Follows from now on, and looks at once at a SIGHUP; within an event loop."""
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self.run())
        loop.add_signal_handler(signal.SIGHUP, self.ask)

    async def run(self) -> None:
        """Follows until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            served = self._serving
            await loop.run_in_executor(self._thread, self._look)
            if self._serving is not served:
                self._swap(self._serving)
            del served  # or what was swapped out would be held until the next look
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), self._poll_s)
            self._asked.clear()

    def close(self) -> None:
        """Follows no more; waits for the thread, and what that loads is not swapped in."""
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown(cancel_futures=True)

    # --- in the thread -------------------------------------------------------------------

    def _look(self) -> None:
        if self._also is not None:
            self._also(self._serving)
        try:
            version = self._current() or ""
        except OSError as e:
            self._fail("", str(e))
            return
        if version == self._serving.version:
            self._failed = self._told = ""
            return
        if version == self._failed and time.monotonic() < self._retry_at:
            return
        try:
            self._serving = self._load(version, self._serving)
        except NotYet as e:
            self._tell(logging.INFO, version, f"waits: {e}")
            return
        except Exception as e:  # whatever stops it, the old one serves
            self._fail(version, _said(e))
            return
        self._failed = self._told = ""
        self._metrics.reloads.inc()
        self._metrics.last_success.set_to_current_time()

    def _fail(self, version: str, says: str) -> None:
        """Counts a failure, logs it once, and sets when to try again."""
        self._metrics.failures.inc()
        self._retry_s = (
            min(2 * self._retry_s, _MAX_RETRY_S) if version == self._failed else _RETRY_S
        )
        self._retry_at = time.monotonic() + self._retry_s
        self._failed = version
        self._tell(logging.ERROR, version, says)

    def _tell(self, level: int, version: str, says: str) -> None:
        text = f"release {version} is not served, {self._serving.version} stays: {says}"
        if text != self._told:
            self._told = text
            _log.log(level, "%s", text)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, SerendipError) else f"{type(error).__name__}: {error}"
