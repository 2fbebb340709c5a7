"""Descriptions searched by words and resolved by equality, on made-up trees; no server."""

import asyncio
import random

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from planner_server.descriptions import Descriptions, ResolveMetrics, resolve, words_of
from serendip.core import InvalidRequest
from serendip.planning.trie import DescriptionTrie
from serendip.tree.cluster_tree import ClusterTree, Nodes

WORDS = ("Baking", "bread", "breadth", "rye", "ÉCLAIR", "straße", "２０", "x" * 40, "a", "of")


def made_tree(branching=(4, 5, 20, 10)) -> Nodes:
    """4,425 nodes: more than one piece is searched."""
    draw = random.Random(3)
    count = 1
    level = 1
    for width in branching:
        level *= width
        count += level
    texts = [""] + [
        f"{' '.join(draw.sample(WORDS, draw.randint(1, 4)))} {node}" for node in range(1, count)
    ]
    leaves = np.zeros(1, np.int64)
    return ClusterTree.from_leaves(branching, leaves, ["i"], texts, "t" * 12).nodes


NODES = made_tree()


def found(query, nodes=None, count=10_000):
    descriptions = Descriptions(NODES)
    everything = range(len(NODES)) if nodes is None else nodes
    return asyncio.run(descriptions.first(everything, words_of(query), count))


@pytest.mark.parametrize(
    ("query", "holds"),
    [
        ("bread", lambda t: "bread" in t),  # a part of breadth, too
        ("BREAD rye", lambda t: "bread" in t and "rye" in t),
        ("rye  of", lambda t: "rye" in t and "of" in t),
        ("éclair", lambda t: "ÉCLAIR" in t),
        ("STRASSE", lambda t: "straße" in t),
        ("20", lambda t: "２０" in t or "20" in t),
        ("aking", lambda t: "Baking" in t),
        ("rye 7", lambda t: "rye" in t and "7" in t),
        ("bread rye", lambda t: "bread" in t and "rye" in t),
        ("breadrye", lambda t: False),
        ("", lambda t: True),
        (" \t ", lambda t: True),
    ],
)
def test_every_word_is_a_part_of_a_word_whatever_its_case(query, holds):
    wanted = [node for node, text in enumerate(NODES.description) if holds(text)]
    assert found(query) == wanted
    assert found(query, count=7) == wanted[:7]
    some = range(100, 3000)
    assert found(query, some) == [node for node in wanted if node in some]


def test_pages_have_each_node_once():
    wanted = found("bread a")
    assert len(wanted) > 300
    pages, start = [], 0
    while start is not None:
        page = found("bread a", range(start, len(NODES)), 32)
        pages += page[:31]
        start = page[31] if len(page) == 32 else None
    assert pages == wanted


def test_a_long_search_lets_others_go_first():
    async def main():
        turns = 0

        async def other():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        descriptions = Descriptions(NODES)
        await descriptions.first(range(len(NODES)), words_of("rye"), 1)  # prepares
        beside = asyncio.create_task(other())
        await asyncio.sleep(0)
        before = turns
        assert await descriptions.first(range(len(NODES)), words_of("nowhere"), 1) == []
        beside.cancel()
        return turns - before

    assert asyncio.run(main()) >= len(NODES) // 1024


def test_a_search_that_was_given_up_leaves_the_next_one_its_texts():
    async def main():
        descriptions = Descriptions(NODES)
        search = descriptions.first(range(len(NODES)), words_of("rye"), 5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(search, 0)
        first = asyncio.create_task(descriptions.first(range(len(NODES)), words_of("rye"), 5))
        await asyncio.sleep(0)
        first.cancel()
        return await descriptions.first(range(len(NODES)), words_of("rye"), 5)

    assert asyncio.run(main()) == found("rye", count=5)


def test_no_node_is_found_in_nothing():
    assert found("rye", range(9, 3)) == []
    assert found("", range(9, 3)) == []


def test_a_query_of_more_than_200_bytes_is_refused_by_name():
    assert words_of("é" * 100)
    with pytest.raises(InvalidRequest, match=r"query: at most 200 bytes"):
        words_of("é" * 100 + "x")


# --- resolve -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trie():
    return DescriptionTrie.build([[2, 3], [4]], [7, 9], 1, texts=["dough and oven", "bike trail"])


def test_rows_say_what_each_text_is(trie):
    texts = ["bike trail", " dough  and oven ", "Bike trail", "x" * 2000, "x" * 2001, "é" * 500_000]
    rows = resolve(trie, texts)
    assert [row.status.code for row in rows] == [0, 0, 5, 5, 3, 3]
    assert [row.node_id for row in rows] == [9, 7, 0, 0, 0, 0]
    for at in (4, 5):
        assert rows[at].status.message.startswith(f"texts[{at}]: at most 2,000 bytes")
        assert rows[at].ByteSize() < 2000, "a text of a megabyte does not come back"


def test_texts_are_counted_by_outcome(trie):
    registry = CollectorRegistry()
    metrics = ResolveMetrics(registry)

    def counted():
        return [
            registry.get_sample_value("serendip_resolve_texts_total", {"outcome": outcome})
            for outcome in ("matched", "unmatched", "invalid")
        ]

    assert counted() == [0, 0, 0], "a rate has its parts from the first scrape"
    metrics.count(resolve(trie, ["bike trail", "bike", "x" * 3000, "bike trail"]))
    metrics.count(resolve(trie, ["nothing"]))
    assert counted() == [2, 2, 1]
