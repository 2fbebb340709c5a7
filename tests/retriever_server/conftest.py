from __future__ import annotations

import sys
from pathlib import Path

import pytest

# The same world as the library's tests have: trained once for both.
sys.path.insert(0, str(Path(__file__).parents[1] / "retrieval"))
from cyclic_world import World, world
from made_releases import MadeReleases, make_releases


@pytest.fixture(scope="session")
def cyclic(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A trained retriever over an easy log; tests must not write into it."""
    return world(tmp_path_factory.mktemp("cyclic"))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeReleases:
    """Three releases, each with a tree of its own; not to be changed."""
    return make_releases(tmp_path_factory.mktemp("made"), count=3)
