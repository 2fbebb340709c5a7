"""Items that are never returned, by a file that an operator edits. Knows no ranker and no gRPC."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge

from serendip.core import InvalidData, SerendipError, check_id
from serendip.serving.watched_file import WatchedFiles

MAX_BYTES = 64 << 20


def read_withheld(path: Path) -> frozenset[str]:
    """The item IDs of a file, one a line, UTF-8; empty lines mean nothing.

    Raises:
        InvalidData: it cannot be read, is larger than 64 MiB, or a line is no item ID.
    """
    name = str(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidData(f"is larger than {MAX_BYTES >> 20} MiB", field=name)
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise InvalidData(f"cannot be read ({e})", field=name) from e
    ids = set()
    for row, line in enumerate(lines):
        if item_id := line.removesuffix("\r"):
            try:
                check_id(item_id, "item_id")
            except SerendipError as e:
                raise InvalidData(
                    "is no item ID", field=name, value=item_id, row=row, remedy=e.remedy
                ) from e
            ids.add(item_id)
    return frozenset(ids)


class WithheldFile:
    """Follows a file of item IDs: a version that cannot be read leaves the last good one."""

    def __init__(self, path: Path, registry: CollectorRegistry) -> None:
        """Reads it. Raises InvalidData."""
        self._count = Gauge(
            "serendip_withheld_items", "Item IDs that are never returned.", registry=registry
        )
        failures = Counter(
            "serendip_withhold_failures",
            "Times that the file of withheld items had changed and could not be read.",
            registry=registry,
        )
        self._watched = WatchedFiles(
            "withheld items", (path,), lambda: read_withheld(path), failures.inc
        )
        self._count.set(len(self.ids))

    @property
    def ids(self) -> frozenset[str]:
        """What is withheld."""
        return self._watched.value

    def refresh(self) -> bool:
        """Reads the file if it has changed; returns whether ``ids`` are others now."""
        before = self.ids
        if not self._watched.refresh():
            return False
        self._count.set(len(self.ids))
        return self.ids != before
