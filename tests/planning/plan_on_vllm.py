"""A bulk worker on vLLM, in its own environment: ``python plan_on_vllm.py SETUP ROWS``, pickled.

The setup is the test's own, and so are the rows that it reads back.
"""

import pickle
import sys
from pathlib import Path

from serendip.planning.workers import Worker

if __name__ == "__main__":
    setup, leases = pickle.loads(Path(sys.argv[1]).read_bytes())
    worker = Worker(setup)
    done = [worker.plan(lease) for lease in leases]
    worker.close()
    Path(sys.argv[2]).write_bytes(pickle.dumps([row for d in done for row in d.rows]))
