"""A process that reads plans without a pause while versions are swapped under it.

    python store_reader.py lmdb ROOT_OF_THE_ARTEFACTS LAST
    python store_reader.py redis URL LAST

Says "reading" when it has begun, ends some reads after it has met the version LAST, and prints how
it went as one JSON object.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from serendip.artifacts import Artifacts
from serendip.planning.followed_store import FollowedStore
from serendip.planning.lmdb_store import FILE, LmdbStore
from serendip.planning.plan_store import PlanStore, decode_plan

COUNT = 500
Follow = tuple[Callable[[], str | None], Callable[[str], PlanStore]]


def over_lmdb(root: str) -> Follow:
    artifacts = Artifacts(Path(root))

    def open_version(version: str) -> PlanStore:
        return LmdbStore(artifacts.open("plans", version, verify=False).file(FILE))

    return lambda: artifacts.current_version("plans"), open_version


def over_redis(url: str) -> Follow:
    from serendip.planning.redis_store import RedisStore, connect, current_version

    client = connect(url)
    return lambda: current_version(client), lambda version: RedisStore(client, version)


def main(kind: str, where: str, last: str) -> None:
    """Reads until LAST was met, or for ten minutes."""
    follow = over_lmdb(where) if kind == "lmdb" else over_redis(where)
    refused: list[str] = []
    store = FollowedStore(*follow, every_s=0.05, on_refused=lambda v, e: refused.append(str(v)))
    rng = random.Random(0)
    reads, failures, seen, after_last = 0, [], {}, 0
    print("reading", flush=True)
    until = time.monotonic() + 600
    while after_last < 50 and time.monotonic() < until:
        at = rng.randrange(COUNT)
        try:
            plan = decode_plan(store.get(f"i{at}") or b"")
            many = store.get_many([f"i{n}" for n in range(at, at + 3)])
            versions = {decode_plan(p).reasoning for p in many if p is not None}
            if plan.context_item_id != f"i{at}" or len(versions) != 1:
                failures.append(f"torn: {plan.context_item_id}, {versions}")
            seen.setdefault(plan.reasoning, time.time())
            after_last += plan.reasoning == last
        except Exception as e:
            failures.append(repr(e))
        reads += 1
    store.close()
    answer = {"reads": reads, "failures": failures[:5], "seen": seen, "refused": refused}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
