"""What a guide allows after some tokens, whatever engine asks."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serendip.core import InvalidRequest
from serendip.planning.processors import Guide
from serendip.planning.trie import START, DescriptionTrie

END = 1
sequences = st.lists(
    st.lists(st.integers(2, 6), min_size=1, max_size=5), min_size=1, max_size=30, unique_by=tuple
)


@given(sequences, st.sets(st.integers(0, 29)), st.sampled_from(["only", "without", "mask"]),
       st.randoms(use_true_random=False))  # fmt: skip
def test_what_may_follow_is_what_a_dictionary_says(rows, named, how, chance):
    trie = DescriptionTrie.build(rows, range(len(rows)), END)
    every = set(range(len(rows)))
    kept = every - named if how == "without" else every & named
    view = None
    if not kept:
        kept = every
    elif how == "mask":
        view = trie.view(mask=trie.mask(np.isin(np.arange(len(rows)), sorted(kept))))
    else:
        view = trie.view(**{how: sorted(named)})
    follows = {}
    for node in kept:
        whole = (*rows[node], END)
        for n in range(len(whole)):
            follows.setdefault(whole[:n], set()).add(whole[n])
    guide = Guide(trie)
    for _ in range(5):
        written, cursor = (), guide.start()
        while not cursor.done:
            allowed = guide.allowed(cursor, view).tolist()
            assert len(allowed) == len(set(allowed))
            assert set(allowed) == follows[written]
            written += (chance.choice(allowed),)
            cursor = guide.push(cursor, written[-1])
        assert list(written[:-1]) == rows[guide.node(written)]
        assert guide.node(written) in kept
        assert guide.node(written[:-1]) is None
        assert guide.allowed(guide.push(cursor, 3), view).tolist() == [END]


@given(sequences, st.lists(st.integers(1, 7), max_size=6))
def test_only_whole_descriptions_are_nodes_and_a_stray_row_may_but_end(rows, tokens):
    trie = DescriptionTrie.build(rows, range(len(rows)), END)
    guide = Guide(trie)
    wholes = {(*row, END): node for node, row in enumerate(rows)}
    expected = [wholes[tuple(tokens[:n])] for n in range(7) if tuple(tokens[:n]) in wholes]
    assert guide.node(tokens) == (expected[0] if expected else None)
    cursor = guide.walk(tokens)
    if not any(whole[: len(tokens)] == tuple(tokens) for whole in wholes):
        assert cursor.done
        assert guide.allowed(cursor).tolist() == [END]


few = st.integers(2, 3)  # so few tokens that an opening often overlaps with itself


@given(st.lists(few, min_size=1, max_size=5), st.lists(few, max_size=40))
@example([2, 2, 3], [2, 2, 2, 3])
def test_the_opening_is_heard_where_it_first_ends(opening, text):
    guide = Guide(DescriptionTrie.build([[7]], [0], END), opening)
    cursor = guide.start()
    for n in range(len(text) + 1):
        heard = any(text[i : i + len(opening)] == opening for i in range(n - len(opening) + 1))
        assert (cursor.state == START) == heard
        if heard or n == len(text):
            break
        assert guide.allowed(cursor) is None
        cursor = guide.push(cursor, text[n])


@given(st.lists(few, min_size=1, max_size=5), st.lists(few, min_size=9), st.integers(0, 9))
def test_the_bound_forces_what_the_opening_lacks(opening, text, bound):
    guide = Guide(DescriptionTrie.build([[7]], [0], END), opening, bound)
    cursor, written = guide.start(), []
    while cursor.state is None:
        forced = guide.allowed(cursor)
        assert (forced is None) == (len(written) < bound)
        written.append(text[len(written)] if forced is None else int(forced[0]))
        cursor = guide.push(cursor, written[-1])
    assert written[-len(opening) :] == opening
    assert len(written) <= bound + len(opening)
    assert written[:bound] == text[: len(written[:bound])]


def test_free_text_does_not_end_the_turn():
    guide = Guide(DescriptionTrie.build([[7]], [0], END), [2, 3], end_tokens=[9])
    assert guide.end_tokens == {END, 9}
    ended = guide.push(guide.push(guide.start(), 2), 9)
    assert ended.done
    assert ended.rank is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"opening": [2, END]}, "opening: holds an end token"),
        ({"opening": [2, 9], "end_tokens": [9]}, "opening: holds an end token"),
        ({"opening": [2], "max_free": -1}, "max_free: must be 0 or more"),
        ({"max_free": 3}, "max_free: .* before an opening"),
    ],
)
def test_a_guide_that_cannot_lead_is_refused(arguments, message):
    with pytest.raises(InvalidRequest, match=message):
        Guide(DescriptionTrie.build([[7]], [0], END), **arguments)
