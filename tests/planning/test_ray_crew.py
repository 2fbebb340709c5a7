"""Bulk planning by actors of a Ray cluster: the same rows, though an actor is killed."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from bulk_rows import all_gone, rows_of

from serendip.artifacts import Artifacts
from serendip.core import InvalidRequest
from serendip.planning.bulk import publish_plans
from serendip.planning.ray_crew import plan_on_ray


@pytest.fixture
def on_ray(small_world, tmp_path):
    """The small world without its plans, to be planned by actors."""
    plans = small_world.config.plans.model_copy(
        update={"crew": "ray", "workers": 2, "batch_size": 8, "chunk_items": 16}
    )
    config = small_world.config.model_copy(
        update={"artifacts_dir": str(tmp_path / "artifacts"), "plans": plans}
    )
    shutil.copytree(small_world.config.artifacts_path, config.artifacts_path)
    shutil.rmtree(config.artifacts_path / "plans")
    return config, Artifacts(config.artifacts_path)


def test_without_ray_the_setting_is_refused_with_the_way_out(on_ray, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidRequest, match=r"plans.crew: is not installed.*serendip\[ray\]"):
        publish_plans(*on_ray)


def actors():
    """PIDs of the workers' actors on this machine."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if command.read_bytes().startswith(b"ray::Worker"):
                found.append(int(command.parent.name))
        except OSError:
            continue
    return found


def test_actors_plan_each_item_once_though_one_is_killed(small_world, on_ray):
    pytest.importorskip("ray", reason="extra `ray` is not installed")
    config, artifacts = on_ray
    killed = []

    def crew(setup, leases):
        for at, planned in enumerate(plan_on_ray(setup, leases)):
            yield planned
            if at == 3:
                killed.append(actors()[0])
                os.kill(killed[0], signal.SIGKILL)

    made = publish_plans(config, artifacts, crew=crew)
    assert killed
    expected = {r.item_id: r.plan for r in rows_of(small_world.artifacts.current("plans"))}
    rows = rows_of(made)
    assert sorted(r.item_id for r in rows) == sorted(expected)
    for row in rows:
        ours, theirs = row.plan.clusters, expected[row.item_id].clusters
        assert [c.node_id for c in ours] == [c.node_id for c in theirs]
        assert [c.score for c in ours] == pytest.approx([c.score for c in theirs], abs=1e-4)
    assert all_gone(actors())
