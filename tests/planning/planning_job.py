"""A bulk job in a process of its own, to be killed: ``python planning_job.py CONFIG.json``."""

import sys
from dataclasses import replace
from pathlib import Path

from deadly import load_slowly

from serendip.artifacts import Artifacts
from serendip.config import Config
from serendip.planning.bulk import publish_plans
from serendip.planning.workers import plan_in_processes


def crew(setup, leases):
    """Worker processes, their decoders slow enough that there is time for a kill."""
    return plan_in_processes(replace(setup, load=load_slowly), leases)


if __name__ == "__main__":
    config = Config.model_validate_json(Path(sys.argv[1]).read_text())
    publish_plans(config, Artifacts(config.artifacts_path), crew=crew)
