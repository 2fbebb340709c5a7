"""Every search against a scorer that reads each description by itself."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import END, batch_of, build, find, score_all, small_model

from serendip.core import InvalidRequest, SerendipError
from serendip.planning import reader as reader_module
from serendip.planning.head import Head
from serendip.planning.search import Search, TrieHead, search
from serendip.planning.session import TorchSession

slow = settings(deadline=None, max_examples=40)
# Few tokens, so that descriptions share beginnings and begin one another.
descriptions = st.lists(
    st.lists(st.integers(2, 6), min_size=1, max_size=6), min_size=1, max_size=24, unique_by=tuple
)
prompts = st.lists(st.integers(2, 11), min_size=1, max_size=5)
scores = st.sampled_from(["renormalized", "full"])
seeds = st.integers(0, 3)


@cache
def model_of(seed):
    return small_model(seed, final_logit_softcapping=8.0 if seed % 2 else None)


@st.composite
def viewed(draw):
    """A trie, a view of it, and the ranks that the view keeps."""
    trie = build(draw(descriptions))
    nodes = list(range(len(trie)))
    only = draw(st.none() | st.sets(st.sampled_from(nodes), min_size=1))
    without = draw(st.sets(st.sampled_from(nodes)))
    allowed = draw(st.none() | st.lists(st.booleans(), min_size=len(nodes), max_size=len(nodes)))
    kept = set(nodes if only is None else only) - without
    kept &= set(nodes if allowed is None else np.flatnonzero(allowed).tolist())
    if not kept:
        only, without, allowed, kept = None, set(), None, set(nodes)
    view = trie.view(
        only=None if only is None else sorted(only),
        without=sorted(without),
        mask=None if allowed is None else trie.mask(np.array(allowed)),
    )
    return trie, view, set(trie.ranks_of(sorted(kept)).tolist())


def best(oracle, kept, k):
    return sorted((oracle[rank] for rank in kept), reverse=True)[:k]


@slow
@given(viewed(), prompts, seeds, scores, st.integers(1, 30), st.integers(1, 5))
def test_best_first_finds_the_k_best_of_a_view(viewed, prompt, seed, score, k, width):
    trie, view, kept = viewed
    model = model_of(seed)
    oracle = score_all(model, trie, prompt)[score == "full"]
    how = Search(k=k, method="best_first", score=score, beams=width)
    (outcome,) = find(model, trie, [prompt], how, [view])
    assert outcome.exact
    assert [f.score for f in outcome.found] == pytest.approx(best(oracle, kept, k), abs=1e-9)
    assert len({f.rank for f in outcome.found} & kept) == len(outcome.found)


@slow
@given(viewed(), prompts, seeds, scores, st.integers(1, 4), st.integers(0, 3))
def test_a_beam_holds_live_descriptions_with_their_scores(viewed, prompt, seed, score, k, spare):
    trie, view, kept = viewed
    model = model_of(seed)
    oracle = score_all(model, trie, prompt)[score == "full"]
    how = Search(k=k, method="beam", score=score, beams=k + spare)
    (outcome,) = find(model, trie, [prompt], how, [view])
    found = outcome.found
    assert {f.rank for f in found} <= kept
    assert len({f.rank for f in found}) == len(found) > 0
    assert [f.score for f in found] == pytest.approx([oracle[f.rank] for f in found], abs=1e-9)
    assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)
    if outcome.exact:
        assert [f.score for f in found] == pytest.approx(best(oracle, kept, k), abs=1e-9)


@slow
@given(descriptions, prompts, seeds)
def test_with_a_beam_a_description_nothing_is_lost_and_all_adds_up_to_one(rows, prompt, seed):
    trie = build(rows)
    (outcome,) = find(model_of(seed), trie, [prompt], Search(k=len(rows), beams=len(rows)))
    assert outcome.exact
    assert sorted(f.rank for f in outcome.found) == list(range(len(rows)))
    assert sum(np.exp(f.score) for f in outcome.found) == pytest.approx(1, abs=1e-12)


@slow
@given(descriptions, prompts, seeds)
def test_greedy_follows_the_best_edge(rows, prompt, seed):
    trie, model = build(rows), model_of(seed)
    (outcome,) = find(model, trie, [prompt], Search(k=1, method="greedy"))
    tokens, state = [], 0
    with torch.inference_mode():
        while trie.degree(np.array([state]))[0]:
            z = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, -1]
            edges = trie.expand(np.array([state]))
            at = int(z[torch.from_numpy(edges.token.astype(np.int64))].argmax())
            tokens.append(int(edges.token[at]))
            state = int(edges.state[at])
    assert [f.rank for f in outcome.found] == [trie.lo[state]]


@slow
@given(viewed(), prompts, seeds, scores)
def test_a_view_takes_away_and_leaves_every_other_score_alone(viewed, prompt, seed, score):
    trie, view, kept = viewed
    how = Search(k=len(trie), method="best_first", score=score)
    whole, narrowed = (find(model_of(seed), trie, [prompt], how, [v])[0].found
                       for v in (trie.view(), view))  # fmt: skip
    expected = {f.rank: f.score for f in whole if f.rank in kept}
    assert {f.rank: f.score for f in narrowed} == pytest.approx(expected, abs=1e-9)


@slow
@given(descriptions, prompts, seeds)
def test_full_is_renormalized_plus_the_allowed_mass(rows, prompt, seed):
    trie, model = build(rows), model_of(seed)
    k = len(rows)
    (full,) = find(model, trie, [prompt], Search(k=k, method="best_first", score="full"))
    (short,) = find(model, trie, [prompt], Search(k=k, method="best_first"))
    renormalized = {f.rank: f.score for f in short.found}
    assert {f.rank: f.score - f.mass for f in full.found} == pytest.approx(renormalized, abs=1e-9)
    assert all(f.mass < 0 for f in full.found)
    assert all(f.mass == 0 for f in short.found)


@slow
@given(
    st.lists(prompts, min_size=2, max_size=5), descriptions, seeds, scores,
    st.sampled_from(["greedy", "beam", "best_first", "sample"]), st.data(),
)  # fmt: skip
def test_a_batch_is_its_rows(many, rows, seed, score, method, data):
    trie, model = build(rows), model_of(seed)
    views = [trie.view(without=[n] if len(rows) > 1 else [])
             for n in data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=len(many),
                                         max_size=len(many)))]  # fmt: skip
    how = Search(k=1 if method == "greedy" else 3, method=method, beams=4, score=score)
    together = find(model, trie, many, how, views, range(len(many)))
    for i, (prompt, outcome) in enumerate(zip(many, together, strict=True)):
        (alone,) = find(model, trie, [prompt], how, [views[i]], [i])
        assert [f.rank for f in alone.found] == [f.rank for f in outcome.found]
        assert [f.score for f in alone.found] == pytest.approx(
            [f.score for f in outcome.found], abs=1e-9
        )
        assert (alone.exact, alone.opened) == (outcome.exact, outcome.opened)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_have_the_distribution_of_the_temperature_given_the_view(temperature):
    rows = [[2], [2, 3], [3, 2, 4], [3, 2, 5], [4, 4], [5, 3, 3], [5, 3, 4]]
    trie, model, prompt = build(rows), model_of(0), [7, 3]
    view = trie.view(without=[trie.node_of_rank[4]])
    # One opened at a time, so that a draw that stops too early is seen.
    how = Search(k=2, method="sample", temperature=temperature, beams=1)
    (probability,) = [np.exp(_tempered(model, trie, prompt, temperature))]
    probability[4] = 0
    probability /= probability.sum()
    runs = 1500
    outcomes = find(model, trie, [prompt] * runs, how, [view] * runs, range(runs))
    first = np.bincount([o.found[0].rank for o in outcomes], minlength=len(rows))
    pairs = np.zeros((len(rows), len(rows)))
    for outcome in outcomes:
        pairs[tuple(f.rank for f in outcome.found)] += 1
    with np.errstate(divide="ignore", invalid="ignore"):
        without_replacement = probability[:, None] * probability / (1 - probability[:, None])
    np.fill_diagonal(without_replacement, 0)
    # Four standard deviations of a share of so many draws.
    assert first / runs == pytest.approx(probability, abs=4 * 0.5 / np.sqrt(runs))
    assert pairs / runs == pytest.approx(without_replacement, abs=4 * 0.5 / np.sqrt(runs))


def _tempered(model, trie, prompt, temperature):
    return score_all(model, trie, prompt, temperature)[0]


def test_a_draw_reports_scores_at_temperature_one_and_is_repeated_by_its_seed():
    trie, model, prompt = build([[2, 3], [2, 4], [3], [4, 5], [4, 6]]), model_of(1), [5]
    how = Search(k=5, method="sample", temperature=3.0)
    oracle, _ = score_all(model, trie, prompt)
    once, again, other = find(model, trie, [prompt] * 3, how, seeds=[7, 7, 8])
    assert once == again
    assert {f.rank: f.score for f in other.found} == pytest.approx(dict(enumerate(oracle)))


def test_a_draw_does_not_depend_on_how_many_are_opened_at_once():
    rows = [[a, b, c] for a in range(2, 6) for b in range(2, 6) for c in range(2, 6)]
    trie, model = build(rows), model_of(1)
    draws = [
        find(model, trie, [[5]] * 3, Search(k=6, method="sample", beams=beams), seeds=[0, 1, 2])
        for beams in (1, 3, 16)
    ]
    ranks = [[[f.rank for f in o.found] for o in outcomes] for outcomes in draws]
    assert ranks[0] == ranks[1] == ranks[2]


def test_there_is_a_seed_a_row():
    with pytest.raises(InvalidRequest, match="seeds: must be 2, one a row, got 1"):
        find(model_of(0), build([[2]]), [[3], [4]], Search(k=1, method="sample"), seeds=[1])


@pytest.mark.parametrize("method", ["beam", "best_first"])
def test_a_model_that_gives_no_numbers_is_an_error(method):
    model = small_model(3)
    trie = build([[2, 3], [2, 4], [3]])
    head = Head.of(model)
    bias = torch.zeros(12, dtype=torch.float64)
    for token in (2, 4):  # at the start, and further down
        broken = Head(head.weight, bias.index_fill(0, torch.tensor(token), torch.nan))
        session = TorchSession(model, broken)
        hidden = session.prefill(batch_of([[3]]))
        with pytest.raises(SerendipError, match="logits that are not finite, got nan"):
            search(session, hidden, np.array([0]), TrieHead(broken, trie), [trie.view()],
                   Search(k=2, method=method))  # fmt: skip


def test_a_model_in_half_precision_is_searched_like_any_other():
    model = small_model(0).to(torch.bfloat16)
    trie = build([[2, 3], [2, 4], [3], [4, 5], [4, 6], [5]])
    few, many = (
        find(model, trie, [[3, 7]], Search(k=6, method="best_first", beams=beams))[0]
        for beams in (1, 8)
    )
    assert sum(np.exp(f.score) for f in few.found) == pytest.approx(1, abs=1e-5)
    assert {f.rank for f in few.found} == {f.rank for f in many.found}


def test_more_than_65535_descriptions_are_searched_exactly():
    count = 70_000
    model = small_model(2, vocabulary=count + 10, hidden_size=8, intermediate_size=8)
    rows = [[i + 2] for i in range(count)]
    rows[5] = [7, 9]  # and [7, 11], [7]: among single tokens, some that go on
    rows += [[7, 11], [7]]
    trie = build(rows)
    (outcome,) = find(model, trie, [[3, 4]], Search(k=8, method="best_first"))
    with torch.inference_mode():
        z = model(input_ids=torch.tensor([[3, 4]])).logits[0, -1]
        after = model(input_ids=torch.tensor([[3, 4, 7]])).logits[0, -1]
    first = (z - z[2 : count + 2].logsumexp(0)).tolist()
    second = (after[[END, 9, 11]] - after[[END, 9, 11]].logsumexp(0)).tolist()
    every = [first[t] for t in range(2, count + 2) if t != 7] + [first[7] + s for s in second]
    assert [f.score for f in outcome.found] == pytest.approx(sorted(every)[:-9:-1], abs=1e-9)


def test_a_bound_on_opened_prefixes_gives_what_it_has_and_says_so():
    rows = [[a, b, c] for a in range(2, 7) for b in range(2, 7) for c in range(2, 5)]
    trie, model = build(rows), model_of(0)
    oracle, _ = score_all(model, trie, [4])
    how = Search(k=6, method="best_first", beams=2, most_opened=5)
    (outcome,) = find(model, trie, [[4]], how)
    assert not outcome.exact
    assert outcome.opened == 5
    assert [f.score for f in outcome.found] == pytest.approx(
        [oracle[f.rank] for f in outcome.found], abs=1e-9
    )


@pytest.mark.parametrize("ahead", [0, 100])
def test_forced_tokens_are_one_pass_and_the_last_description_none(ahead, monkeypatch):
    monkeypatch.setattr(reader_module, "_ROOM_AHEAD", ahead)

    class Counting(TorchSession):
        passes = 0

        def extend(self, token, parent):
            self.passes += 1
            return super().extend(token, parent)

    model = model_of(0)
    head = Head.of(model)

    def passes(rows, **how):
        trie = build(rows)
        session = Counting(model, head)
        with torch.inference_mode():
            hidden = session.prefill(batch_of([[3]]))
        search(session, hidden, np.array([0]), TrieHead(head, trie), [trie.view()], Search(**how))
        return session.passes

    assert passes([[2, 3, 4, 5], [3, 4], [4, 4, 4, 4, 4]], k=3, beams=3) == 0
    assert passes([[2, 3, 4, 5], [2, 3, 4, 6]], k=2, beams=2) == 1
    # Where a pass has room, the next branching is read along with the first.
    assert passes([[2, 3, 4, 5, 5], [2, 3, 4, 6, 6], [2, 3]], k=3, beams=3) == (1 if ahead else 2)
    # The full score wants every token's probability, and gets it in one pass as well.
    assert passes([[2, 3, 4, 5]], k=1, score="full") == 1


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"k": 0}, "k"),
        ({"k": 9, "beams": 8}, "beams"),
        ({"k": 2, "method": "greedy"}, "k"),
        ({"method": "sample", "temperature": 0.0}, "temperature"),
        ({"method": "best_first", "beams": 0}, "beams"),
        ({"most_opened": 0}, "most_opened"),
        ({"method": "bestfirst"}, "method"),
        ({"score": "Full"}, "score"),
    ],
)
def test_settings_that_make_no_search_are_named(settings, field):
    with pytest.raises(InvalidRequest, match=rf"^{field}: "):
        Search(**settings)
