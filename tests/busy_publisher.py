"""Publishes, publishes again and prunes small artefacts until it is killed. Run as a script."""

from __future__ import annotations

import contextlib
import random
import sys
from itertools import count
from pathlib import Path

from serendip.artifacts import KINDS, Artifacts
from serendip.core import InvalidRequest
from serendip.inventory import Retention, prune

KEPT = Retention(dict.fromkeys(KINDS, 2), draft_age_s=0)
NUMBERS = 6  # few versions, so that many are made again while they are current


def publish(artifacts: Artifacts, kind: str, number: int, inputs: dict[str, str]) -> str:
    with artifacts.publish(kind, {"number": number}, inputs, resume=number % 2 == 0) as draft:
        for name in ("a", "b", "folder/c"):
            (draft.path / name).parent.mkdir(exist_ok=True)
            (draft.path / name).write_text(f"{kind} {number} {name}\n" * 2000)
    return draft.version


def main(root: Path, seed: int) -> None:
    artifacts = Artifacts(root)
    rng = random.Random(seed)
    for turn in count():
        with contextlib.suppress(InvalidRequest):  # another process is publishing the same
            tree = publish(artifacts, "tree", rng.randrange(NUMBERS), {"data": "0" * 12})
            plans = publish(artifacts, "plans", rng.randrange(NUMBERS), {"tree": tree})
            publish(artifacts, "release", rng.randrange(NUMBERS), {"tree": tree, "plans": plans})
        prune(artifacts, KEPT)
        if turn == 0:
            print("ready", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
