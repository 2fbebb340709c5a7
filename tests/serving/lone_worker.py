"""A worker for tests of supervising: no gRPC, says it is ready, and does what its folder says.

``lone_worker.py FOLDER --port N --worker N [--metrics-port N]``: writes FOLDER/N.pid; ends at once
with 3 if FOLDER/N.broken is there, at SIGTERM after 0.2 s with 0; counts SIGHUPs in FOLDER/N.hups.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from serendip.serving.supervisor import end_with_parent

folder, options = Path(sys.argv[1]), dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
own = folder / options["--worker"]
stopped = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopped.set())
signal.signal(signal.SIGHUP, lambda *_: own.with_suffix(".hups").write_text("1"))
end_with_parent()
if own.with_suffix(".broken").exists():
    sys.exit(3)
# Whole or not at all: half a number is another process, and none is a whole group.
own.with_suffix(".begun").write_text(str(os.getpid()))
own.with_suffix(".begun").replace(own.with_suffix(".pid"))
page = options.get("--metrics-port")
at = f", metrics http://127.0.0.1:{page if page != '0' else 7000 + int(own.name)}/metrics"
print(f"lone ready on 127.0.0.1:{options['--port']}{at if page else ''}", flush=True)
stopped.wait()
time.sleep(30 if own.with_suffix(".stuck").exists() else 0.2)
own.with_suffix(".drained").touch()
