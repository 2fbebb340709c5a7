from __future__ import annotations

import pytest
from cyclic_world import World, world


@pytest.fixture(scope="session")
def cyclic(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A trained retriever over an easy log; tests must not write into it."""
    return world(tmp_path_factory.mktemp("cyclic"))
