"""The planted truth of a synthetic world, seen through the learnt tree: *simulated*.

The only module that opens truth.parquet. Knows no model.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from serendip.catalog.lexicon import FACETS
from serendip.evaluation.metrics import purity, share
from serendip.tree.cluster_tree import ClusterTree

FILE = "truth.parquet"


@dataclass(frozen=True)
class Truth:
    """What was planted, by item ID.

    Attributes:
        topic, theme, target: own topic, facet that the frames show, topic that delights.
        node_of_topic: the node at the planning level that holds most of a topic's items.
        leaf_purity, parent_purity: of leaves against topics, of their parents against groups.
        shifts: whether the theme says how far the target is, and does not name it.
    """

    topic: Mapping[str, int]
    theme: Mapping[str, int]
    target: Mapping[str, int]
    node_of_topic: Mapping[int, int]
    leaf_purity: float
    parent_purity: float
    shifts: bool = False

    def target_node(self, item_id: str) -> int | None:
        """The learnt cluster that a perfect planner names."""
        return self.node_of_topic.get(self.target[item_id])

    def look(self, item_id: str) -> str:
        """What the frames show, as the captions call it."""
        return f"{FACETS[self.theme[item_id]]} scene"

    def node_if_seen(self, item_id: str, donor_id: str) -> int | None:
        """The cluster that follows from the item's title and the donor's frames.

        None where that is no test: the donor shows the item's own theme, or leads to its topic.
        """
        theme, topic = self.theme[donor_id], self.topic[item_id]
        facet = topic % len(FACETS)
        meant = (facet + theme) % len(FACETS) if self.shifts else theme
        if theme == self.theme[item_id] or meant == facet:
            return None
        return self.node_of_topic.get(topic - facet + meant)

    def text_ceiling(
        self, all_labels: Mapping[str, int], labels: Mapping[str, int]
    ) -> dict[str, float]:
        """The best recall_at_1 that text alone can reach: the Bayes rule given the topic.

        ``planted`` takes each topic's most frequent planted target, over all items;
        ``fitted`` each topic's most frequent label of ``all_labels``, judged on ``labels``.
        """
        targets = _by_topic(self.topic, self.target)
        planted = sum(max(c.values()) for c in targets.values()) / len(self.topic)
        fitted = _by_topic(self.topic, all_labels)
        modal = {t: max(c, key=lambda n: (c[n], -n)) for t, c in fitted.items()}
        return {
            "planted": planted,
            "fitted": share([modal[self.topic[i]] == n for i, n in labels.items()]),
        }


def read_truth(data_dir: Path, tree: ClusterTree, level: int) -> Truth | None:
    """The truth of a world seen through a tree; None where the data is real."""
    path = data_dir / FILE
    if not path.is_file():
        return None
    table = pq.read_table(path, columns=["item_id", "topic", "theme", "target_topic", "shifts"])
    ids, topic, theme, target, shifts = (table.column(c).to_pylist() for c in table.column_names)
    own = [_node(tree, i, level) for i in ids]
    held = _by_topic(dict(zip(ids, topic, strict=True)), dict(zip(ids, own, strict=True)))
    parent = [int(tree.nodes.parent[n]) for n in own]
    return Truth(
        topic=dict(zip(ids, topic, strict=True)),
        theme=dict(zip(ids, theme, strict=True)),
        target=dict(zip(ids, target, strict=True)),
        node_of_topic={t: max(c, key=lambda n: (c[n], -n)) for t, c in held.items()},
        leaf_purity=purity(own, topic),
        parent_purity=purity(parent, [t // len(FACETS) for t in topic]),
        shifts=any(shifts),
    )


def _node(tree: ClusterTree, item_id: str, level: int) -> int:
    node = tree.node_of(item_id, level)
    assert node is not None, item_id
    return node


def _by_topic(topic: Mapping[str, int], value: Mapping[str, int]) -> dict[int, Counter[int]]:
    counts: dict[int, Counter[int]] = defaultdict(Counter)
    for item_id, v in value.items():
        counts[topic[item_id]][v] += 1
    return counts


def swap_pairs(item_ids: Sequence[str]) -> list[tuple[str, str]]:
    """(item, donor of frames): each item with the one half a list further on."""
    half = len(item_ids) // 2
    return [(i, item_ids[(at + half) % len(item_ids)]) for at, i in enumerate(item_ids)]
