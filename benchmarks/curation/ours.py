"""This project's curation and corpus of a log, in a process of its own.

python -m curation.ours DATA OUT ENGINE MEMORY_LIMIT THREADS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from curation.world import ITEMS_FILE
from serendip.config import Config
from serendip.curation.curate import TABLES, make_tables
from serendip.curation.engine import open_engine
from serendip.progress import progress

OUTPUTS = [name for name in TABLES if name != "corpus_diff"]


def main() -> None:
    """Writes OUTPUTS into a folder, and prints what was repaired."""
    data, out, engine, memory_limit, threads = sys.argv[1:]
    config = Config.model_validate(
        {
            "data_dir": data,
            "curation": {
                "engine": engine, "memory_limit": memory_limit, "threads": int(threads),
                "temp_dir": out,
            },
        }
    )  # fmt: skip
    with open_engine(config.curation, Path(out)) as opened, progress("curate", 3) as tick:
        opened.view("items", [Path(data) / ITEMS_FILE])
        facts, _ = make_tables(opened, config, tick)
        for name in OUTPUTS:
            opened.write(TABLES[name], Path(out) / f"{name}.parquet")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
