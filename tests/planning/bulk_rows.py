"""What a bulk job left: its rows, read back, and whether its processes are gone."""

import time
from pathlib import Path

from serendip.planning import bulk
from serendip.planning.plan_store import decode_plan
from serendip.planning.rows import Chunks, Row


def rows_of(artifact):
    """Rows of a plans artefact, with plans that were read."""
    return [
        Row(**row | {"plan": row["plan"] and decode_plan(row["plan"])})
        for table in Chunks(artifact.path / bulk.CHUNKS).tables()
        for row in table.to_pylist()
    ]


def all_gone(pids, within_s=20):
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not any(Path(f"/proc/{p}").exists() for p in pids):
            return True
        time.sleep(0.1)
    return False
