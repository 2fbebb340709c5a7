"""Follows the current release: check it, open it, warm it, swap one reference.

    release/current ──> check, in a process ──> open and warm, in a thread ──> swap
         │ poll, SIGHUP        └── cannot be opened: the old one serves on ──┘

Knows no gRPC: what serves is told by a function.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry, Counter, Gauge

from retriever_server.release import open_release, warm
from retriever_server.service import Serving
from retriever_server.turns import Turns
from retriever_server.withheld import WithheldFile
from serendip.artifacts import Artifacts
from serendip.core import CorruptArtifact, SerendipError

_RETRY_S, _MAX_RETRY_S = 1.0, 60.0
_CHECK_S = 600.0
_SWITCH_S = 0.0005

_log = logging.getLogger(__name__)


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


class Follower:
    """Keeps what a server serves at the current release, and the one before it open.

    Args:
        serving: what is served now.
        swap: serves something else from now on.
        max_batch: of the batcher; all sizes up to it are warmed.
        user_cache: user vectors that a ranker keeps; 0: none.
        poll_s: seconds between two looks at the pointer.
        withheld: item IDs that no ranker may return; None: none.
    """

    def __init__(
        self,
        artifacts: Artifacts,
        serving: Serving,
        swap: Callable[[Serving], None],
        registry: CollectorRegistry,
        *,
        max_batch: int,
        user_cache: int = 0,
        poll_s: float = 1.0,
        withheld: WithheldFile | None = None,
        turns: Turns | None = None,
    ) -> None:
        self._artifacts = artifacts
        self._serving = serving
        self._swap = swap
        self._metrics = ReloadMetrics(registry)
        self._max_batch = max_batch
        self._user_cache = user_cache
        self._poll_s = poll_s
        self._withheld = withheld
        self._turns = turns if turns is not None else Turns()
        self._asked = asyncio.Event()
        self._failed = ""  # the version that cannot be opened, and what was logged of it
        self._told = ""
        self._retry_s = _RETRY_S
        self._retry_at = 0.0
        self._check: subprocess.Popen[str] | None = None
        # One thread for all that it reads and opens: memory of many would stay with each.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reload")

    def ask(self) -> None:
        """Looks at once, and tries again what has failed."""
        self._failed = ""
        self._asked.set()

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
        """Gives up what is being loaded, and waits for the thread."""
        if self._check is not None:
            self._check.kill()
        self._thread.shutdown(cancel_futures=True)

    # --- in the thread -------------------------------------------------------------------

    def _look(self) -> None:
        if self._withheld is not None and self._withheld.refresh():
            self._withhold(self._serving)
        try:
            version = self._artifacts.current_version("release") or ""
        except OSError as e:
            self._fail("", str(e))
            return
        if version == self._serving.version:
            self._failed = self._told = ""
            return
        if version == self._failed and time.monotonic() < self._retry_at:
            return
        try:
            new = self._load(version)
        except Exception as e:  # whatever stops it, the old one serves
            self._fail(version, _said(e))
            return
        self._serving = new.beside(self._serving)
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
        text = f"release {version} is not served, {self._serving.version} stays: {says}"
        if text != self._told:
            self._told = text
            _log.error("%s", text)

    def _load(self, version: str) -> Serving:
        with self._turns.take():
            if self._turns.checked != version:
                self._run_check(version)
                self._turns.checked = version
            with _short_turns():
                # Checked a moment ago, and what is published is not changed.
                new = open_release(
                    self._artifacts, version, verify=False, user_cache=self._user_cache
                )
                self._withhold(new)
                warm(new.newest, self._max_batch)
        return new

    def _run_check(self, version: str) -> None:
        """Raises CorruptArtifact, with what the check said, unless the release can be opened."""
        command = [sys.executable, "-m", "retriever_server.check"]
        self._check = subprocess.Popen(
            [*command, str(self._artifacts.root), version, str(self._max_batch)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _, says = self._check.communicate(timeout=_CHECK_S)
        except subprocess.TimeoutExpired:
            self._check.kill()
            self._check.communicate()
            raise CorruptArtifact(f"was not checked within {_CHECK_S:g} s") from None
        lines = says.strip().splitlines()
        if self._check.returncode == 0:
            return
        if self._check.returncode == 2 and lines:
            raise CorruptArtifact(lines[-1])
        last = f": {lines[-1]}" if lines else ""
        raise CorruptArtifact(f"its check ended with {self._check.returncode}{last}")

    def _withhold(self, serving: Serving) -> None:
        if self._withheld is not None:
            for ranker in serving.rankers.values():
                ranker.withhold(self._withheld.ids)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, SerendipError) else f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _short_turns() -> Iterator[None]:
    """Threads that want the interpreter wait for a tenth of the usual time while the block runs.

    Opening makes a million strings and their index: 5 ms a turn would be seen in every answer.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
