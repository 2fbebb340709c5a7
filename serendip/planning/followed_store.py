"""A plan store that goes over to each new version while it is read, without a failed read.

Knows no engine and no pointer: it is given one function that names the current version and one
that opens a version. Over the plans artefacts::

    FollowedStore(
        lambda: artifacts.current_version("plans"),
        lambda version: LmdbStore(artifacts.open("plans", version, verify=False).file(FILE)),
    )

and over a release the first function reads what the current release names.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from serendip.core import NotFound
from serendip.planning.plan_store import PlanStore, StoreInfo

_log = logging.getLogger(__name__)

_RETRY_S = 1.0  # after a version was refused; doubles up to
_RETRY_MOST_S = 60.0


def _log_swap(info: StoreInfo) -> None:
    _log.info("plans %s: %d, of tree %s", info.version, info.count, info.tree_version)


def _log_refused(version: str | None, error: Exception) -> None:
    _log.error("plans %s refused, the ones before stay: %s", version, error)


class FollowedStore:
    """A PlanStore over whichever version is current; safe to share between threads.

    A thread looks every ``every_s`` and opens what is new, so that no read waits for it. A version
    that cannot be opened is refused: the one before stays, ``on_refused`` hears of it, and it is
    tried again after 1 s, 2 s, and so on up to a minute. A version that was left is closed when the
    last read in it has ended.
    """

    def __init__(
        self,
        current: Callable[[], str | None],
        open_version: Callable[[str], PlanStore],
        *,
        every_s: float = 0.2,
        on_swap: Callable[[StoreInfo], None] = _log_swap,
        on_refused: Callable[[str | None, Exception], None] = _log_refused,
    ) -> None:
        """Opens the current version and follows from then on.

        Args:
            current: names the current version; None: there is none.
            open_version: opens a version whole, or raises.
            every_s: seconds between two looks.
            on_swap, on_refused: called from the following thread, or from a read's.

        Raises:
            NotFound: there is no current version. Also whatever the two functions raise.
        """
        self._current = current
        self._open_version = open_version
        self._every_s = every_s
        self._on_swap = on_swap
        self._on_refused = on_refused
        self._swapping = threading.Lock()
        self._refused: tuple[str | None, str] | None = None
        self._retry_at, self._retry_s = 0.0, _RETRY_S
        version = current()
        if version is None:
            raise NotFound("no plans are current", field="plans", remedy="Run serendip plan.")
        self._version = version
        self._store = open_version(version)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="plans", daemon=True)
        self._thread.start()

    def get(self, item_id: str) -> bytes | None:
        """The item's serialised plan in the current version, or None: see PlanStore."""
        try:
            return self._store.get(item_id)
        except NotFound:  # the version was removed before a look found the next
            self._look()
            return self._store.get(item_id)

    def get_many(self, item_ids: Sequence[str]) -> list[bytes | None]:
        """One plan or None an item, in order, all of one version: see PlanStore."""
        try:
            return self._store.get_many(item_ids)
        except NotFound:
            self._look()
            return self._store.get_many(item_ids)

    def info(self) -> StoreInfo:
        """What the version holds that is read now."""
        return self._store.info()

    def pinned(self) -> PlanStore:
        """The version that is read now, for several reads of one version."""
        return self._store

    def close(self) -> None:
        """Stops following and closes the version; to be called once nobody reads."""
        self._stop.set()
        self._thread.join()
        self._store.close()

    def _follow(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self._look()
            except Exception:  # of a callback: a follower that dies would serve old plans for ever
                _log.exception("on_swap or on_refused failed")

    def _look(self) -> None:
        """Goes over to the current version, unless it is the one that is read."""
        with self._swapping:
            version: str | None = None
            try:
                version = self._current()
                if version == self._version:
                    self._refused = None
                    return
                if version is None:
                    raise NotFound("no plans are current any more", field="plans")
                if self._refused is not None and self._refused[0] == version:
                    if time.monotonic() < self._retry_at:
                        return
                else:
                    self._retry_s = _RETRY_S
                store = self._open_version(version)
            except Exception as error:  # whatever it is, the plans that are read stay
                self._refuse(version, error)
                return
            self._store, self._version, self._refused = store, version, None
        self._on_swap(store.info())

    def _refuse(self, version: str | None, error: Exception) -> None:
        news = (version, str(error)) != self._refused
        self._refused = version, str(error)
        self._retry_at = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _RETRY_MOST_S)
        if news:  # a version that stays bad is told of once
            self._on_refused(version, error)
