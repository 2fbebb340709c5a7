from __future__ import annotations

import sys
from pathlib import Path

import pytest

# The same world as the library's tests have: trained once for both.
sys.path.insert(0, str(Path(__file__).parents[1] / "retrieval"))
from cyclic_world import World, world


@pytest.fixture(scope="session")
def cyclic(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A trained retriever over an easy log; tests must not write into it."""
    return world(tmp_path_factory.mktemp("cyclic"))
