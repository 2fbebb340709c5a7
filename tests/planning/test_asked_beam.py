"""The beam that asks finds what the beam with hidden states finds, with the same scores."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import END, build, find, small_model

from serendip.planning.asked_beam import beam
from serendip.planning.search import Search

MODEL = small_model(1)
descriptions = st.lists(
    st.lists(st.integers(2, 6), min_size=1, max_size=6), min_size=1, max_size=24, unique_by=tuple
)
prompts = st.lists(st.lists(st.integers(2, 11), min_size=1, max_size=5), min_size=1, max_size=3)


class Asked:
    """Answers as an engine does: no more than was asked for, over all that the trie allows."""

    def __init__(self, trie, prompts):
        self.trie, self.prompts, self.rounds = trie, prompts, 0

    @torch.inference_mode()
    def __call__(self, prefixes):
        self.rounds += 1
        assert len({(p.prompt, p.tokens) for p in prefixes}) == len(prefixes), "asked twice"
        return [self._answer(p) for p in prefixes]

    def _answer(self, prefix):
        ids = torch.tensor([[*self.prompts[prefix.prompt], *prefix.tokens]])
        allowed = self.trie.token[self.trie.children(self.trie.walk(prefix.tokens))]
        assert len(allowed) > 1, "a forced token is not asked for"
        z = MODEL(input_ids=ids).logits[0, -1][torch.from_numpy(allowed.astype(np.int64))]
        top = z.log_softmax(0).topk(prefix.most)
        return dict(zip(allowed[top.indices.numpy()].tolist(), top.values.tolist(), strict=True))


@settings(deadline=None, max_examples=25)
@given(descriptions, prompts, st.integers(1, 4), st.integers(0, 3), st.data())
def test_it_finds_what_the_engine_s_own_beam_finds(rows, prompts, k, spare, data):
    trie = build(rows)
    views = []
    for _ in prompts:
        without = data.draw(st.sets(st.sampled_from(range(len(rows))), max_size=len(rows) - 1))
        views.append(trie.view(without=sorted(without)))
    how = Search(k=k, method="beam", beams=k + spare)
    own = find(MODEL, trie, prompts, how, views)
    asked = beam(trie, views, k, k + spare, Asked(trie, prompts))
    for a, b in zip(asked, own, strict=True):
        assert [f.rank for f in a.found] == [f.rank for f in b.found]
        assert [f.score for f in a.found] == pytest.approx([f.score for f in b.found], abs=1e-9)


def test_one_question_a_round_for_all_prompts_and_none_for_what_is_forced():
    trie = build([[2, 3, 4, 5, 6], [2, 3, 5, 5, 6], [2, 3, 5, 5, 7, END + 1]])
    asked = Asked(trie, [[4], [5], [6]])
    found = beam(trie, [trie.view()] * 3, 3, 3, asked)
    assert [len(o.found) for o in found] == [3, 3, 3]
    assert asked.rounds == 2
    only = Asked(build([[2, 3, 4]]), [[4]])
    (outcome,) = beam(only.trie, [only.trie.view()], 3, 3, only)
    assert [(f.rank, f.score) for f in outcome.found] == [(0, 0.0)]
    assert only.rounds == 0
