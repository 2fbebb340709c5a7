"""The trie is the set of descriptions, in arrays; views take away and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serendip.core import CorruptArtifact, InvalidData, InvalidRequest
from serendip.planning.trie import START, DescriptionTrie, normalise

END = 1
sequences = st.lists(
    st.lists(st.integers(2, 6), min_size=1, max_size=5), min_size=1, max_size=30, unique_by=tuple
)


def build(rows):
    return DescriptionTrie.build(rows, range(len(rows)), END)


def walk(trie, tokens):
    """The state after some tokens, or None."""
    state = START
    for token in tokens:
        edges = trie.expand(np.array([state]))
        found = edges.state[edges.token == token]
        if not len(found):
            return None
        (state,) = found
    return int(state)


@given(sequences)
def test_every_description_is_a_path_to_its_node_and_nothing_else_is(rows):
    trie = build(rows)
    for node, row in enumerate(rows):
        rank = trie.terminal[walk(trie, [*row, END])]
        assert trie.node_of_rank[rank] == node
    assert (trie.terminal >= 0).sum() == len(rows)
    ends = trie.first_child[1:] == trie.first_child[:-1]
    assert (ends == (trie.terminal >= 0)).all()


@given(sequences)
def test_children_are_what_a_dictionary_would_say(rows):
    trie = build(rows)
    whole = [(*row, END) for row in rows]
    for prefix in {row[:n] for row in whole for n in range(len(row))}:
        edges = trie.expand(np.array([walk(trie, prefix)]))
        expected = {row[len(prefix)] for row in whole if row[: len(prefix)] == prefix}
        assert edges.token.tolist() == sorted(expected)


@given(sequences)
def test_the_ranks_below_a_state_are_a_range(rows):
    trie = build(rows)
    for row in rows:
        for n in range(len(row) + 1):
            state = walk(trie, row[:n])
            below = {node for node, other in enumerate(rows) if other[:n] == row[:n]}
            assert set(trie.node_of_rank[trie.lo[state] : trie.hi[state]].tolist()) == below


@given(sequences, st.sets(st.integers(0, 29)))
def test_a_view_keeps_just_what_is_left(rows, without):
    trie = build(rows)
    left = set(range(len(rows))) - without
    if not left:
        with pytest.raises(InvalidRequest, match="no cluster is left"):
            trie.view(without=sorted(without))
        return
    view = trie.view(without=sorted(without))
    assert view.count == len(left)
    live = view.live(trie.lo, trie.hi)
    for state in range(len(trie.token)):
        below = set(trie.node_of_rank[trie.lo[state] : trie.hi[state]].tolist())
        assert live[state] == bool(below & left)


def test_only_and_without_combine():
    trie = build([[2], [3], [4]])
    assert trie.view(only=[0, 1], without=[1]).count == 1


def test_many_rows_expand_side_by_side():
    trie = build([[2, 3], [2, 4], [5]])
    states = np.array([START, walk(trie, [2]), walk(trie, [5])])
    edges = trie.expand(states)
    assert edges.row.tolist() == [0, 0, 1, 1, 2]
    assert edges.token.tolist() == [2, 5, 3, 4, END]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[2, 3], [2, 3]], r"same tokens, got \[0, 1\]"),
        ([[2], []], "must have tokens"),
        ([[2, END, 3]], "not the end token"),
    ],
)
def test_descriptions_that_make_no_trie_are_named(rows, message):
    with pytest.raises(InvalidData, match=message):
        build(rows)


def test_a_saved_trie_is_the_same_and_asks_for_its_tokenizer(tmp_path):
    trie = DescriptionTrie.build(
        [[2, 3], [4]], [7, 9], END, tree_version="t", tokenizer_hash="right"
    )
    trie.save(tmp_path / "trie")
    again = DescriptionTrie.open(tmp_path / "trie", "right")
    assert again.node_of_rank.tolist() == trie.node_of_rank.tolist()
    assert again.token.tolist() == trie.token.tolist()
    assert again.tree_version == "t"
    with pytest.raises(CorruptArtifact, match="another tokenizer"):
        DescriptionTrie.open(tmp_path / "trie", "wrong")


def test_texts_are_compared_by_their_words():
    assert normalise("  rye \n and\toats ") == "rye and oats"
