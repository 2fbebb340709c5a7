"""What several rooms' tests share: a small world with every artefact, made once.

Stands here so that tests/ is on the path as well: helper modules are imported from every folder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from small import SmallWorld, small_config

from serendip.artifacts import Artifacts

# How long an example takes is the machine's doing, which others share.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_addoption(parser):
    parser.addoption("--run-full", action="store_true", help="long forms of the tests as well")


def pytest_collection_modifyitems(config, items):
    # The whole demo takes as long as all the rest: it begins first, beside them.
    items.sort(key=lambda item: item.path.name != "test_demo.py")
    if not config.getoption("--run-full"):
        skip = pytest.mark.skip(reason="the long form: ./build.sh test --full")
        for item in items:
            if "full" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def small_world(tmp_path_factory) -> SmallWorld:
    own = small_config(tmp_path_factory.mktemp("small"))
    # Whichever worker process wants it first makes it for all, who copy it.
    made = made_once(tmp_path_factory.getbasetemp(), "small-made", make_small_world)
    shutil.copytree(made, Path(own.data_dir).parent, dirs_exist_ok=True)
    return SmallWorld(own, Artifacts(own.artifacts_path))


def make_small_world(folder: Path) -> None:
    from serendip.catalog.synth import synthesise
    from serendip.curation.curate import publish_pairs
    from serendip.planning.bulk import publish_plans
    from serendip.planning.finetune import publish_planner
    from serendip.release import publish_release
    from serendip.retrieval.train import publish_retriever
    from serendip.tree.build import publish_tree

    config = small_config(folder)
    artifacts = Artifacts(config.artifacts_path)
    synthesise(config)
    for stage in (publish_tree, publish_pairs, publish_planner, publish_plans, publish_retriever):
        stage(config, artifacts)
    publish_release(artifacts)


def made_once(own: Path, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that one of the test run's processes makes and the others wait for."""
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder, done = shared / name, shared / f"{name}.done"
    with open(shared / f"{name}.lock", "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            done.touch()
    return folder
