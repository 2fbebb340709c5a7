"""kill -9 of the bulk job, a worker or a decoder, at any moment, loses and repeats nothing."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bulk_rows import all_gone, rows_of

from serendip.artifacts import Artifacts

HERE = Path(__file__).parent


def below(pid):
    """PIDs of all that a process has started, and what they have."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(after[1]) if after[0] != "Z" else 0
    found, more = set(), {pid}
    while more:
        more = {child for child, parent in parents.items() if parent in more}
        found |= more
    return found


def workers_of(job):
    """Workers and decoders: the children of the job's fork server, which is left alone."""
    command = {p: Path(f"/proc/{p}/cmdline").read_bytes() for p in below(job.pid)}
    servers = {p for p, c in command.items() if b"forkserver" in c}
    return sorted(set().union(*(below(s) for s in servers), set()))


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.full)])
def test_a_job_that_is_killed_again_and_again_plans_each_item_once(small_world, tmp_path, kills):
    chance = random.Random(kills)
    config = small_world.config.model_copy(
        update={
            "artifacts_dir": str(tmp_path / "artifacts"),
            "plans": small_world.config.plans.model_copy(
                update={"batch_size": 4, "chunk_items": 8, "workers": 2}
            ),
        }
    )
    shutil.copytree(small_world.config.artifacts_path, config.artifacts_path)
    shutil.rmtree(config.artifacts_path / "plans")
    (tmp_path / "config.json").write_text(config.model_dump_json())
    artifacts = Artifacts(config.artifacts_path)

    def start():
        command = [sys.executable, str(HERE / "planning_job.py"), str(tmp_path / "config.json")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), *sys.path])}
        return subprocess.Popen(command, env=env, stderr=(tmp_path / "stderr").open("ab"))

    def committed():
        return len(list((config.artifacts_path / "plans").glob("*/chunks/*.parquet")))

    killed = {"job": 0, "worker": 0}
    job = start()
    while sum(killed.values()) < kills:
        # Some kills come while workers still open their planner, most between two commits.
        target = committed() + chance.choice([0, 1, 1, 2])
        while committed() < target and job.poll() is None:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.3))
        assert job.poll() is None, (tmp_path / "stderr").read_text()[-2000:]
        if chance.random() < 0.4:
            theirs = below(job.pid)
            job.send_signal(signal.SIGKILL)
            job.wait()
            killed["job"] += 1
            assert all_gone(theirs), "workers outlive their job"
            job = start()
        elif workers := workers_of(job):
            os.kill(chance.choice(workers), signal.SIGKILL)
            killed["worker"] += 1
    assert job.wait(timeout=300) == 0, (tmp_path / "stderr").read_text()[-2000:]
    assert min(killed.values()) > 0

    expected = {r.item_id: r.plan for r in rows_of(small_world.artifacts.current("plans"))}
    rows = rows_of(artifacts.current("plans"))
    assert sorted(r.item_id for r in rows) == sorted(expected)
    for row in rows:
        assert row.reason == ""
        ours, theirs = row.plan.clusters, expected[row.item_id].clusters
        assert [c.node_id for c in ours] == [c.node_id for c in theirs]
        assert [c.score for c in ours] == pytest.approx([c.score for c in theirs], abs=1e-4)
