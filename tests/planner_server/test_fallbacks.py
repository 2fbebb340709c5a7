"""The fallback of a cluster: its siblings, those that satisfied most first."""

import numpy as np

from planner_server.release import Fallbacks
from serendip.tree.cluster_tree import ClusterTree

# 2 x 2 x 2 x 3 leaves; leaf r has r % 4 items.
LEAF = np.concatenate([np.full(r % 4, r) for r in range(24)])
TREE = ClusterTree.from_leaves(
    (2, 2, 2, 3), LEAF, [f"i{n}" for n in range(len(LEAF))], None, "t" * 12
)
LEAVES = TREE.nodes.at_level(4)


def ranks(found):
    return [c.node_id - LEAVES.start for c in found]


def test_what_was_observed_comes_by_satisfaction_the_rest_by_size():
    own = LEAVES[13]  # its siblings two levels up are leaves 12 to 17: 0, 1, 2, 3, 0, 1 items
    seen = {(own, LEAVES[12]): 0.4, (own, LEAVES[17]): 0.9, (LEAVES[14], LEAVES[16]): 1.0}
    found = Fallbacks(TREE, 4, 2, seen).of(own)
    assert ranks(found) == [17, 12, 15, 14, 16]
    assert [c.score for c in found] == [0.9, 0.4, 0.0, 0.0, 0.0]
    assert all(c.serendipitous for c in found)
    assert [c.description for c in found] == [TREE.nodes.description[c.node_id] for c in found]


def test_there_are_at_most_eight():
    assert len(Fallbacks(TREE, 4, 4, {}).of(LEAVES[0])) == 8


def test_siblings_of_a_higher_level_are_nodes_of_that_level():
    level = TREE.nodes.at_level(2)
    assert [c.node_id for c in Fallbacks(TREE, 2, 1, {}).of(level[3])] == [level[2]]
