"""Constrained decoding against an exhaustive scorer of every description."""

import numpy as np
import pytest
import torch

from serendip.planning.decode import decode, write
from serendip.planning.prompt import ANSWER
from serendip.planning.session import TorchSession

WIDE = 50  # more beams than descriptions: the search is exact


def run(mllm, trie, prompts, *, k=20, beams=WIDE, views=None, max_reasoning=4):
    return decode(
        TorchSession(mllm),
        mllm.encode(prompts),
        trie,
        views or [trie.view() for _ in prompts],
        k=k,
        beams=beams,
        opening=mllm.tokens(ANSWER),
        ends=mllm.end_tokens,
        max_reasoning=max_reasoning,
    )


@torch.inference_mode()
def exhaustive(mllm, trie, prompt, reasoning):
    """Rank -> score, one forward pass a description over the whole text, no cache, no batch."""
    scores = {}
    start = mllm.encode([prompt])
    opening = mllm.tokens(ANSWER)
    paths = {trie.terminal[s]: s for s in range(len(trie.token)) if trie.terminal[s] >= 0}
    parent = np.zeros(len(trie.token), int)
    for s in range(len(trie.token)):
        parent[trie.first_child[s] : trie.first_child[s + 1]] = s
    for rank, state in paths.items():
        states = [state]
        while states[0]:
            states.insert(0, parent[states[0]])
        tokens = [int(trie.token[s]) for s in states[1:]]
        text = torch.tensor([[*reasoning, *opening, *tokens[:-1]]])
        batch = dict(start)
        batch["input_ids"] = torch.cat([start["input_ids"], text], dim=1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        if "token_type_ids" in start:
            batch["token_type_ids"] = torch.cat(
                [start["token_type_ids"], torch.zeros_like(text)], dim=1
            )
        logits = mllm.model(**batch).logits[0, -len(tokens) :].double()
        total = 0.0
        for at, (state, token) in enumerate(zip(states[:-1], tokens, strict=True)):
            allowed = trie.token[trie.first_child[state] : trie.first_child[state + 1]]
            z = logits[at, torch.from_numpy(np.asarray(allowed, np.int64))]
            total += float(logits[at, token] - z.logsumexp(0))
        scores[int(rank)] = total
    return scores


def test_every_description_has_its_exhaustive_score(mllm, trie, prompts):
    for prompt, found in zip(prompts, run(mllm, trie, prompts), strict=True):
        expected = exhaustive(mllm, trie, prompt, found.reasoning)
        assert sorted(found.ranks) == sorted(expected)
        for rank, score in zip(found.ranks, found.scores, strict=True):
            assert score == pytest.approx(expected[rank], abs=2e-4)
        assert found.scores == sorted(found.scores, reverse=True)


def test_probabilities_of_all_descriptions_sum_to_one(mllm, trie, prompts):
    for found in run(mllm, trie, prompts):
        assert sum(map(np.exp, found.scores)) == pytest.approx(1, abs=1e-6)


def test_a_view_removes_and_leaves_every_other_score_alone(mllm, trie, prompts):
    whole = run(mllm, trie, prompts)
    banned = [[w.ranks[0], w.ranks[3]] for w in whole]
    views = [trie.view(without=[int(trie.node_of_rank[r]) for r in ranks]) for ranks in banned]
    for all_, kept, ranks in zip(whole, run(mllm, trie, prompts, views=views), banned, strict=True):
        expected = [(r, s) for r, s in zip(all_.ranks, all_.scores, strict=True) if r not in ranks]
        assert kept.ranks == [r for r, _ in expected]
        assert kept.scores == pytest.approx([s for _, s in expected], abs=1e-5)


def test_fewer_live_descriptions_than_k_are_all_that_come_back(mllm, trie, prompts):
    views = [trie.view(only=[101, 104]) for _ in prompts]
    for found in run(mllm, trie, prompts, k=8, views=views):
        assert {int(trie.node_of_rank[r]) for r in found.ranks} == {101, 104}


def test_k_clusters_are_different_and_the_first_of_more(mllm, trie, prompts):
    for few, many in zip(run(mllm, trie, prompts, k=3), run(mllm, trie, prompts, k=9), strict=True):
        assert len(set(many.ranks)) == len(many.ranks) == 9
        assert few.ranks == many.ranks[:3]


def test_a_row_does_not_depend_on_its_batch(mllm, trie, prompts):
    together = run(mllm, trie, prompts)
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = run(mllm, trie, [prompt])
        assert alone.reasoning == found.reasoning
        assert alone.ranks == found.ranks
        assert alone.scores == pytest.approx(found.scores, abs=1e-4)


def test_reasoning_is_the_greedy_text_and_is_cut_at_its_bound(mllm, trie, prompts):
    free = write(TorchSession(mllm), mllm.encode(prompts), mllm.end_tokens, 6)
    for text, found in zip(free, run(mllm, trie, prompts, max_reasoning=6), strict=True):
        assert found.reasoning == text
        assert len(text) <= 6


def test_free_text_equals_that_of_generate(mllm, prompts):
    batch = mllm.encode(prompts)
    length = batch["input_ids"].shape[1]
    expected = mllm.model.generate(**batch, max_new_tokens=6, do_sample=False)[:, length:]
    for text, row in zip(
        write(TorchSession(mllm), batch, mllm.end_tokens, 6), expected.tolist(), strict=True
    ):
        stop = next((i for i, t in enumerate(row) if t in mllm.end_tokens), len(row))
        assert text == row[:stop]


class Scripted:
    """A model that writes a script: it stands in to show when free text ends, nothing else."""

    def __init__(self, scripts, vocabulary):
        self.scripts, self.vocabulary = scripts, vocabulary
        self.at = None
        self.pushed = [[] for _ in scripts]

    def prefill(self, batch):
        self.at = torch.zeros(len(self.scripts), dtype=torch.long)
        return self.at[:, None].float()

    def extend(self, tokens, real):
        for row, (token, is_real) in enumerate(zip(tokens.tolist(), real.tolist(), strict=True)):
            if is_real:
                self.pushed[row].append(token)
        self.at = self.at + real
        return self.at[:, None].float()

    def reorder(self, rows):
        self.at = self.at[rows]
        self.scripts = [self.scripts[r] for r in rows.tolist()]
        self.pushed = [list(self.pushed[r]) for r in rows.tolist()]

    def logits(self, hidden):
        out = torch.zeros(len(hidden), self.vocabulary)
        for row, at in enumerate(hidden[:, 0].long().tolist()):
            script = self.scripts[row]
            out[row, script[at] if at < len(script) else 0] = 9.0
        return out


def test_rows_open_their_answer_at_different_lengths_or_are_made_to():
    from serendip.planning.trie import DescriptionTrie

    trie = DescriptionTrie.build([[20, 21], [22]], [0, 1], 1)
    opening, end = [10, 11], 1
    scripts = [[5, 10, 11, 20], [5, 6, 7, 10, 11, 22], [5, end], [5, 6, 7, 8, 9, 5, 6, 7]]
    session = Scripted(scripts, 30)
    found = decode(
        session, {}, trie, [trie.view()] * 4, k=2, beams=2, opening=opening,
        ends=frozenset([end]), max_reasoning=5,
    )  # fmt: skip
    assert [f.reasoning for f in found] == [[5], [5, 6, 7], [5], [5, 6, 7, 8, 9]]
    # What is forced is pushed into the model like any other token.
    assert session.pushed == [[5, 10, 11], [5, 6, 7, 10, 11], [5, 10, 11], [5, 6, 7, 8, 9, 10, 11]]
    assert [f.ranks[0] for f in found[:2]] == [0, 1]


@torch.inference_mode()
def test_a_row_that_waits_for_others_is_not_changed_by_it(mllm, prompts):
    together, alone = TorchSession(mllm), TorchSession(mllm)
    together.prefill(mllm.encode(prompts[:2]))
    for _ in range(3):
        together.extend(torch.tensor([20, 0]), torch.tensor([True, False]))
    waited = together.extend(torch.tensor([20, 30]), torch.tensor([True, True]))
    waited = together.extend(torch.tensor([20, 31]), torch.tensor([True, True]))
    alone.prefill(mllm.encode(prompts[1:2]))
    alone.extend(torch.tensor([30]), torch.tensor([True]))
    at_once = alone.extend(torch.tensor([31]), torch.tensor([True]))
    assert torch.allclose(waited[1], at_once[0], atol=1e-4)
