"""``python -m retriever_server.check ROOT VERSION``: opens a release and says whether it can be.

In a process of its own, at the lowest priority: hashing, parsing and the first pages of the files
take nothing from the calls that the server answers meanwhile, and a release that brings its reader
down brings this one down. Exits with 0; or with 2, and says why in one line.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main(root: str, version: str, max_batch: int) -> int:
    """Returns the exit code."""
    os.nice(19)
    from retriever_server.release import open_release, warm
    from serendip.artifacts import Artifacts
    from serendip.core import SerendipError

    try:
        serving = open_release(Artifacts(Path(root)), version)
        warm(serving.newest, max_batch)
    except SerendipError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
