"""``python -m planner_server.check ROOT VERSION SOURCE``: says whether a release can be opened.

In a process of its own, at the lowest priority: see ``serendip.serving.follow.Check``.
"""

from __future__ import annotations

import asyncio
import os
import sys


def main(version: str, source: str) -> int:
    """Returns the exit code."""
    os.nice(19)
    from planner_server.loading import Source
    from serendip.core import SerendipError

    try:
        serving = Source.decode(source).open(version)
    except SerendipError as e:
        print(e, file=sys.stderr)
        return 2
    if serving.live is not None:
        asyncio.run(serving.live.close())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[2], sys.argv[3]))
