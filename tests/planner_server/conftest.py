"""What several of the planner server's tests share: both servers, on the small world."""

import shutil
from types import SimpleNamespace

import pytest

from serendip.catalog.items import read_items
from serendip.curation.curate import read_pairs
from serendip.local import both_servers
from serendip.tree.cluster_tree import ClusterTree


@pytest.fixture(scope="module")
def up(small_world, tmp_path_factory):
    """Servers whose catalogue has one item, outside the corpus, with a broken thumbnail."""
    # What another file's server has planned live would be looked up here.
    shutil.rmtree(small_world.config.artifacts_path / "live", ignore_errors=True)
    data = tmp_path_factory.mktemp("served") / "data"
    shutil.copytree(small_world.config.data_path, data)
    pairs = small_world.artifacts.current("pairs")
    corpus = read_pairs(pairs, "corpus").column("item_id").to_pylist()
    unplanned = sorted({i.item_id for i in read_items(data)} - set(corpus))
    broken, live, *_ = unplanned
    next(i for i in read_items(data) if i.item_id == broken).thumbnail.write_bytes(b"no jpeg")
    with both_servers(small_world.config.artifacts_path, data) as (planner, retriever):
        yield SimpleNamespace(
            planner=planner,
            retriever=retriever,
            tree=ClusterTree.open(small_world.artifacts.current("tree")),
            stored=corpus[0],
            live=live,
            broken=broken,
            world=small_world,
            data=data,
        )
