"""A process that reads plans without a pause while versions are published under it.

    python plan_reader.py ROOT_OF_THE_ARTEFACTS

Says "reading" when it has begun, ends when it has met the version that ROOT/last names, and prints
as JSON how many reads there were, how many failed, and when it first met each version.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

from serendip.artifacts import Artifacts
from serendip.planning.followed_store import FollowedStore
from serendip.planning.lmdb_store import FILE, LmdbStore

_LONGEST_S = 600
_LOOK_EVERY = 100  # reads


def main(root: Path) -> None:
    """Reads random items until the last version was met."""
    artifacts = Artifacts(root)
    store = FollowedStore(
        lambda: artifacts.current_version("plans"),
        lambda version: LmdbStore(artifacts.open("plans", version, verify=False).file(FILE)),
    )
    asked = [f"i{random.randrange(store.info().count):09d}" for _ in range(10_000)]
    seen: dict[str, float] = {}
    reads = failed = 0
    print("reading", flush=True)
    until = time.monotonic() + _LONGEST_S
    last = root / "last"
    while time.monotonic() < until and not (last.exists() and last.read_text() in seen):
        for item_id in asked:
            try:
                failed += store.get(item_id) is None
            except Exception:
                failed += 1
            reads += 1
            if reads % _LOOK_EVERY == 0:
                seen.setdefault(store.info().version, time.time())
    store.close()
    print(json.dumps({"reads": reads, "failed": failed, "seen": seen}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
