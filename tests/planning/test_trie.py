"""The trie is the set of descriptions, in arrays; views take away and nothing else."""

import json
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serendip.core import CorruptArtifact, InvalidData, InvalidRequest, NotFound
from serendip.planning import trie as trie_module
from serendip.planning.trie import START, DescriptionTrie, normalise
from serendip.planning.trie_build import TokenLists
from serendip.planning.views import Views

END = 1
many = st.lists(st.lists(st.integers(2, 6), min_size=1, max_size=5), min_size=1, max_size=30)
sequences = st.lists(
    st.lists(st.integers(2, 6), min_size=1, max_size=5), min_size=1, max_size=30, unique_by=tuple
)


def build(rows, **options):
    return DescriptionTrie.build(rows, range(len(rows)), END, **options)


def edges_of(trie, state):
    return [*zip(trie.token[trie.children(state)].tolist(),
                 range(*trie.children(state).indices(len(trie.token))), strict=True)]  # fmt: skip


def states(trie):
    return range(len(trie.token))


def nodes_below(trie, state):
    return set(trie.node_of_rank[trie.lo[state] : trie.hi[state]].tolist())


# --- what it holds ----------------------------------------------------------------------------


@given(sequences)
def test_every_description_is_a_path_to_its_node_and_nothing_else_is(rows):
    trie = build(rows)
    for node, row in enumerate(rows):
        (rank,) = trie.ranks_of([node])
        assert trie.node_of_rank[rank] == node
        assert trie.tokens_of(rank) == [*row, END]
        state = trie.walk(trie.token[trie.path(rank)].tolist())
        assert state is not None
        assert (trie.lo[state], trie.hi[state]) == (rank, rank + 1)
    terminal = trie.degree(np.arange(len(trie.token))) == 0
    assert terminal.sum() == len(rows)
    prefixes = {tuple(row[:n]) for row in rows for n in range(len(row) + 1)}
    assert len(trie.token) == len(prefixes) + sum(_begins(row, rows) for row in rows)


def _begins(row, rows):
    return any(len(other) > len(row) and other[: len(row)] == row for other in rows)


@given(sequences)
def test_children_are_what_a_dictionary_would_say(rows):
    trie = build(rows)
    for prefix in {tuple(row[:n]) for row in rows for n in range(len(row) + 1)}:
        follow = {
            r[len(prefix)]
            for r in rows
            if len(r) > len(prefix) and tuple(r[: len(prefix)]) == prefix
        }
        # The end token competes only where something else goes on.
        ends = [END] if list(prefix) in rows and follow else []
        state = trie.walk(prefix)
        assert [t for t, _ in edges_of(trie, state)] == ends + sorted(follow)
        for token, child in edges_of(trie, state):
            assert trie.step(state, token) == child
        assert trie.step(state, 99) is None
        assert trie.step(state, 0) is None


@given(sequences)
def test_the_ranks_below_a_state_are_a_range(rows):
    trie = build(rows)
    for prefix in {tuple(row[:n]) for row in rows for n in range(len(row) + 1)}:
        below = {node for node, row in enumerate(rows) if tuple(row[: len(prefix)]) == prefix}
        assert nodes_below(trie, trie.walk(prefix)) == below
    assert sorted(rows) == [trie.tokens_of(rank)[:-1] for rank in range(len(rows))]


@pytest.mark.parametrize("long", [1, 512])  # tokens copied by the run, or taken one by one
@given(rows=sequences, data=st.data())
def test_many_states_expand_side_by_side(long, rows, data):
    trie = build(rows)
    inner = [s for s in states(trie) if edges_of(trie, s)]
    asked = data.draw(st.lists(st.sampled_from(inner), min_size=1, max_size=6))
    with patch.object(trie_module, "_LONG", long):
        out = trie.expand(np.array(asked))
        assert not len(trie.expand(np.empty(0, np.int64)).row)
    expected = [(r, t, c) for r, s in enumerate(asked) for t, c in edges_of(trie, s)]
    assert [*zip(out.row.tolist(), out.token.tolist(), out.state.tolist(), strict=True)] == expected


@given(sequences, st.booleans())
def test_a_run_goes_on_while_there_is_one_way(rows, whole):
    trie = build(rows)
    runs = trie.runs(np.arange(1, len(trie.token)), whole=whole)
    for i, state in enumerate(range(1, len(trie.token))):
        tokens = [int(trie.token[state])]
        while len(edges_of(trie, state)) == 1:
            ((token, state),) = edges_of(trie, state)
            tokens.append(token)
        if whole and not edges_of(trie, state) and tokens[-1] != END:
            tokens.append(END)
        assert runs.token[i, : runs.length[i]].tolist() == tokens
        assert (runs.token[i, runs.length[i] :] == -1).all()
        assert runs.end[i] == state


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_a_large_trie_equals_the_sorted_set(seed):
    rng = np.random.default_rng(seed)
    rows = sorted(
        {
            tuple(r[:n])
            for r, n in zip(
                rng.integers(2, 40, (2000, 9)).tolist(), rng.integers(1, 10, 2000), strict=True
            )
        }
    )
    trie = DescriptionTrie.build(rows, range(len(rows)), END)
    assert trie.node_of_rank.tolist() == list(range(len(rows)))
    for rank in rng.integers(0, len(rows), 50):
        assert tuple(trie.tokens_of(rank)[:-1]) == rows[rank]


def test_more_than_65535_children_and_long_descriptions():
    rows = [[i + 2] for i in range(70_000)] + [[9] * 600, [9] * 599]
    trie = build(rows)
    assert trie.degree(np.array([START]))[0] == 70_000
    assert trie.node_of_rank[trie.lo[trie.walk([69_000])]] == 68_998
    assert trie.tokens_of(trie.ranks_of([70_000])[0]) == [9] * 600 + [END]


# --- what makes none --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[2, 3], [4], [2, 3]], r"same tokens, got \[0, 2\]"),
        ([[2], []], "row 1: a description must have tokens"),
        ([[2], [3], [2, END, 3]], "row 2: .* not the end token"),
        ([[2], [-3]], "row 1: "),
        ([], "at least one"),
    ],
)
def test_descriptions_that_make_no_trie_are_named(rows, message):
    with pytest.raises(InvalidData, match=message):
        build(rows)


@given(many)
def test_of_equal_descriptions_the_first_may_be_kept(rows):
    first = {}
    for node, row in enumerate(rows):
        first.setdefault(tuple(row), node)
    trie = build(rows, duplicates="first")
    kept = {tuple(trie.tokens_of(r)[:-1]): int(trie.node_of_rank[r]) for r in range(len(trie))}
    assert kept == first


# --- views ------------------------------------------------------------------------------------


@st.composite
def viewed(draw):
    """A trie, a view, and the nodes that it keeps (perhaps none: then the view is None)."""
    trie = build(draw(sequences))
    nodes = range(len(trie))
    only = draw(st.none() | st.sets(st.integers(0, 40)))
    without = draw(st.sets(st.integers(0, 40)))
    allowed = draw(st.none() | st.lists(st.booleans(), max_size=40))
    kept = set(nodes) - without
    kept &= set(nodes) if only is None else only
    kept &= set(nodes) if allowed is None else set(np.flatnonzero(allowed).tolist())
    mask = None if allowed is None else trie.mask(np.array(allowed, bool))
    options = {"only": only and sorted(only), "without": sorted(without), "mask": mask}
    if only is not None and not only:
        options["only"] = []
    if not kept:
        with pytest.raises(InvalidRequest, match="no cluster is left"):
            trie.view(**options)
        return trie, trie.view(), set(nodes)
    return trie, trie.view(**options), kept


@given(viewed())
def test_a_view_keeps_just_what_is_left(viewed):
    trie, view, kept = viewed
    assert view.count == len(kept)
    expected = [bool(nodes_below(trie, s) & kept) for s in states(trie)]
    assert view.live(trie.lo, trie.hi).tolist() == expected
    for state in states(trie):
        children = trie.children(state)
        if children.stop > children.start:
            live = view.live_children(trie.lo[children], trie.hi[children])
            assert live.tolist() == expected[children]


@given(sequences, st.data())
def test_views_of_many_rows_are_asked_at_once(rows, data):
    trie = build(rows)
    node = st.integers(0, len(rows) - 1)
    mask = trie.mask(np.arange(len(rows)) % 2 == 0)
    views = [
        data.draw(
            st.sampled_from([trie.view(), trie.view(only=[0]), trie.view(mask=mask)])
            | node.map(lambda n: trie.view(without=[n] if len(rows) > 1 else []))
            | node.map(lambda n: trie.view(only=[n]))
        )
        for _ in range(4)
    ]
    row = np.repeat(np.arange(4), len(trie.token))
    lo, hi = np.tile(trie.lo, 4), np.tile(trie.hi, 4)
    expected = np.concatenate([v.live(trie.lo, trie.hi) for v in views])
    assert Views(views).live(row, lo, hi).tolist() == expected.tolist()


# --- nodes, texts, disk -----------------------------------------------------------------------


def described():
    return DescriptionTrie.build(
        [[2, 3], [4], [2]], [7, 9, 8], END,
        texts=["rye  bread", "naïve — 海", "rye"], tree_version="t", tokenizer_hash="right",
    )  # fmt: skip


def test_a_node_is_described_and_its_description_resolved():
    trie = described()
    assert [trie.describe(n) for n in (7, 9, 8)] == ["rye  bread", "naïve — 海", "rye"]
    assert trie.resolve(" rye\tbread\n") == 7
    assert trie.resolve("naïve — 海") == 9
    assert trie.resolve("rye") == 8
    assert trie.resolve("ry") is None
    with pytest.raises(NotFound, match="node_id: has no description here, got 3"):
        trie.describe(3)
    with pytest.raises(NotFound):
        build([[2]]).describe(0)


def test_texts_are_compared_by_their_words():
    assert normalise("  rye \n and\toats ") == "rye and oats"


def test_a_saved_trie_is_the_same_and_asks_for_its_tokenizer(tmp_path):
    trie = described()
    trie.save(tmp_path / "trie")
    again = DescriptionTrie.open(tmp_path / "trie", "right")
    assert again.node_of_rank.tolist() == trie.node_of_rank.tolist()
    assert again.token.tolist() == trie.token.tolist()
    assert (again.tree_version, again.end_token) == ("t", END)
    assert again.resolve("rye") == 8
    assert isinstance(again.token.base, np.memmap)
    with pytest.raises(CorruptArtifact, match="another tokenizer"):
        DescriptionTrie.open(tmp_path / "trie", "wrong")


def test_a_node_may_have_several_descriptions():
    trie = DescriptionTrie.build([[2, 3], [4], [2]], [7, 9, 7], END)
    assert trie.ranks_of([7, 7, 8]).tolist() == [0, 1]
    assert trie.view(without=[7]).count == 1


def test_a_trie_that_is_not_whole_is_refused(tmp_path):
    folder = tmp_path / "trie"
    described().save(folder)
    np.save(folder / "lo.npy", np.zeros(3, np.int32))
    with pytest.raises(CorruptArtifact, match="do not fit together"):
        DescriptionTrie.open(folder)
    (folder / "lo.npy").unlink()
    with pytest.raises(CorruptArtifact, match="no trie"):
        DescriptionTrie.open(folder)
    described().save(folder)
    np.save(folder / "token.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(CorruptArtifact, match="no trie"):
        DescriptionTrie.open(folder)
    described().save(folder)
    (folder / "trie.json").write_text(json.dumps({"end_token": 1, "more": 2}))
    with pytest.raises(CorruptArtifact, match="no trie"):
        DescriptionTrie.open(folder)


def test_token_lists_are_packed():
    lists = TokenLists.of([[2, 3], [4]])
    assert (lists.flat.tolist(), lists.start.tolist()) == ([2, 3, 4], [0, 2, 3])
