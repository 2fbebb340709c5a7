"""``lone_worker_parent.py FOLDER COUNT [OPTION=NUMBER ...]``: supervises workers of lone_worker."""

from __future__ import annotations

import sys
from pathlib import Path

from serendip.serving.supervisor import Workers, supervise

if __name__ == "__main__":
    folder, count, *options = sys.argv[1:]
    program = Path(__file__).with_name("lone_worker.py")
    more = {name: int(value) for name, value in (o.split("=") for o in options)}
    command = (sys.executable, str(program), folder)
    sys.exit(supervise(Workers(name="lone", command=command, count=int(count), **more)))
