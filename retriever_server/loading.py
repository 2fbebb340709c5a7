"""How a release comes to be served by a server that runs: checked, opened, warmed, withheld.

Knows no gRPC.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from retriever_server.release import open_release, warm
from retriever_server.service import Serving
from retriever_server.withheld import WithheldFile
from serendip.artifacts import Artifacts
from serendip.serving.follow import Check
from serendip.serving.turns import Turns

_SWITCH_S = 0.0005


class Loader:
    """Opens releases, each with the tree before it; for a ``Follower``.

    Args:
        max_batch: of the batcher; all sizes up to it are warmed.
        user_cache: user vectors that a ranker keeps; 0: none.
        withheld: item IDs that no ranker may return; None: none.
    """

    def __init__(
        self,
        artifacts: Artifacts,
        *,
        max_batch: int,
        user_cache: int = 0,
        withheld: WithheldFile | None = None,
        turns: Turns | None = None,
    ) -> None:
        self._artifacts = artifacts
        self._max_batch = max_batch
        self._user_cache = user_cache
        self._withheld = withheld
        self._turns = turns if turns is not None else Turns()
        self._check = Check("retriever_server.check", artifacts.root, str(max_batch))

    def load(self, version: str, serving: Serving) -> Serving:
        """Opens a release, beside the newest other tree that ``serving`` has open.

        Raises:
            SerendipError: it cannot be opened.
        """
        with self._turns.take():
            if self._turns.checked != version:
                self._check.run(version)
                self._turns.checked = version
            with _short_turns():
                # Checked a moment ago, and what is published is not changed.
                new = open_release(
                    self._artifacts, version, verify=False, user_cache=self._user_cache
                )
                self._withhold(new)
                warm(new.newest, self._max_batch)
        return new.beside(serving)

    def look(self, serving: Serving) -> None:
        """Has what is served follow the file of withheld items."""
        if self._withheld is not None and self._withheld.refresh():
            self._withhold(serving)

    def close(self) -> None:
        """Gives up what is being checked."""
        self._check.kill()

    def _withhold(self, serving: Serving) -> None:
        if self._withheld is not None:
            for ranker in serving.rankers.values():
                ranker.withhold(self._withheld.ids)


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
