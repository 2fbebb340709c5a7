"""Free text first, then the trie: rows that open their answers where they like, or must."""

import numpy as np
import pytest
import torch
from checkpoints import tiny_gemma3, tiny_qwen2_5_vl, tiny_smolvlm
from material import DESCRIPTIONS, picture

from serendip.planning.decode import decode, write
from serendip.planning.head import Head
from serendip.planning.layout import NOWHERE
from serendip.planning.prompt import Content, build_prompt
from serendip.planning.search import Search, TrieHead
from serendip.planning.session import TorchSession
from serendip.planning.style import ANSWER, STYLES
from serendip.planning.trie import DescriptionTrie

ALL = Search(k=20, beams=50)  # more beams than descriptions: the search is exact


def new_session(mllm):
    return TorchSession(mllm.model, Head.of(mllm.model))


def run(mllm, trie, prompts, how=ALL, *, views=None, max_reasoning=4, **options):
    session = new_session(mllm)
    return decode(
        session,
        mllm.encode(prompts),
        TrieHead(session.head, trie),
        views or [trie.view() for _ in prompts],
        how,
        opening=mllm.tokens(ANSWER),
        ends=mllm.end_tokens,
        max_reasoning=max_reasoning,
        **options,
    )


@torch.inference_mode()
def exhaustive(mllm, trie, prompt, reasoning):
    """Rank -> renormalized score: one pass a description over all of it, no cache, no batch."""
    start = mllm.encode([prompt])
    before = [*reasoning, *mllm.tokens(ANSWER)]
    whole = [tuple(trie.tokens_of(rank)) for rank in range(len(trie))]
    scores = {}
    for rank, tokens in enumerate(whole):
        more = torch.tensor([[*before, *tokens[:-1]]])
        batch = dict(start)
        for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
            if name in start:
                fill = {"input_ids": more, "attention_mask": torch.ones_like(more)}
                addition = fill.get(name, torch.zeros_like(more))
                batch[name] = torch.cat([start[name], addition], dim=1)
        logits = mllm.model(**batch).logits[0, -len(tokens) :].double()
        scores[rank] = 0.0
        for n, token in enumerate(tokens):
            allowed = sorted({t[n] for t in whole if t[:n] == tokens[:n]})
            scores[rank] += float(logits[n, token] - logits[n, allowed].logsumexp(0))
    return scores


def test_every_description_has_its_exhaustive_score(mllm, trie, prompts):
    for prompt, found in zip(prompts, run(mllm, trie, prompts), strict=True):
        expected = exhaustive(mllm, trie, prompt, found.reasoning)
        scores = {f.rank: f.score for f in found.answer.found}
        assert scores == pytest.approx(expected, abs=2e-4)
        assert list(scores.values()) == sorted(scores.values(), reverse=True)


@pytest.mark.parametrize("builder", [tiny_gemma3, tiny_qwen2_5_vl, tiny_smolvlm])
def test_it_does_so_with_every_architecture_and_tokenizer(builder):
    other = builder()
    contents = [Content("rye bread", "", picture(0), (picture(1),)), Content("sea", "", picture(2))]
    asked = [build_prompt(c, STYLES["video_cot"], 100) for c in contents]
    trie = DescriptionTrie.build(
        other.description_tokens(DESCRIPTIONS), range(len(DESCRIPTIONS)), other.end_token
    )
    for method in ("beam", "best_first"):
        for prompt, found in zip(
            asked, run(other, trie, asked, Search(k=4, method=method, beams=11)), strict=True
        ):
            expected = exhaustive(other, trie, prompt, found.reasoning)
            best = sorted(expected.values(), reverse=True)[:4]
            assert [f.score for f in found.answer.found] == pytest.approx(best, abs=5e-4)


def test_a_view_is_a_row_s_own(mllm, trie, prompts):
    views = [trie.view(only=[101, 104]), trie.view(without=[100]), trie.view()]
    two, most, whole = run(mllm, trie, prompts, Search(k=11, beams=11), views=views)
    nodes = [{int(trie.node_of_rank[f.rank]) for f in d.answer.found} for d in (two, most, whole)]
    assert nodes[0] == {101, 104}
    assert 100 not in nodes[1]
    assert (len(nodes[1]), len(nodes[2])) == (10, 11)


def test_a_row_does_not_depend_on_its_batch(mllm, trie, prompts):
    for prompt, found in zip(prompts, run(mllm, trie, prompts), strict=True):
        (alone,) = run(mllm, trie, [prompt])
        assert alone.reasoning == found.reasoning
        assert [f.rank for f in alone.answer.found] == [f.rank for f in found.answer.found]
        assert [f.score for f in alone.answer.found] == pytest.approx(
            [f.score for f in found.answer.found], abs=1e-4
        )


def test_reasoning_is_the_greedy_text_and_is_cut_at_its_bound(mllm, trie, prompts):
    free = write(new_session(mllm), mllm.encode(prompts), mllm.end_tokens, 6)
    opening = mllm.tokens(ANSWER)
    for text, found in zip(free, run(mllm, trie, prompts, max_reasoning=6), strict=True):
        begun = text[len(found.reasoning) :]  # what the model wrote of the opening
        assert found.reasoning + begun == text
        assert begun == opening[: len(begun)]
        assert len(text) <= 6


def test_free_text_equals_that_of_generate(mllm, prompts):
    batch = mllm.encode(prompts)
    length = batch["input_ids"].shape[1]
    expected = mllm.model.generate(**batch, max_new_tokens=6, do_sample=False)[:, length:]
    for text, row in zip(
        write(new_session(mllm), batch, mllm.end_tokens, 6), expected.tolist(), strict=True
    ):
        stop = next((i for i, t in enumerate(row) if t in mllm.end_tokens), len(row))
        assert text == row[:stop]


def test_the_seconds_of_each_stage_add_up_over_calls(mllm, trie, prompts):
    seconds = {}
    run(mllm, trie, prompts, seconds=seconds)
    once = seconds["prefill"]
    run(mllm, trie, prompts, seconds=seconds)
    assert seconds["prefill"] > once > 0
    assert seconds["reasoning"] > 0 < seconds["answer"]


class Scripted:
    """A model that writes a script: it stands in to show when free text ends, nothing else."""

    def __init__(self, scripts, vocabulary):
        self.scripts = scripts
        self.head = Head(torch.eye(vocabulary))
        self.pushed = [[] for _ in scripts]
        self.passes = 0

    def _next(self):
        vocabulary = len(self.head.weight)
        rows = torch.zeros(len(self.scripts), vocabulary)
        for row, (script, pushed) in enumerate(zip(self.scripts, self.pushed, strict=True)):
            rows[row, script[len(pushed)] if len(pushed) < len(script) else 0] = 9.0
        return rows

    def prefill(self, batch):
        self.slots = 1
        return self._next()

    def extend(self, token, parent):
        self.passes += 1
        self.slots += token.shape[1]
        out = []
        for q in range(token.shape[1]):
            for row in range(len(token)):
                if parent[row, q] != NOWHERE:
                    self.pushed[row].append(int(token[row, q]))
            out.append(self._next())
        return torch.stack(out, dim=1)

    def reorder(self, rows):
        self.scripts = [self.scripts[r] for r in rows]
        self.pushed = [list(self.pushed[r]) for r in rows]


def scripted(scripts, max_reasoning):
    trie = DescriptionTrie.build([[20, 21], [22]], [0, 1], 1)
    session = Scripted(scripts, 30)
    found = decode(
        session, {}, TrieHead(session.head, trie), [trie.view()] * len(scripts),
        Search(k=2, beams=2), opening=[10, 11], ends=frozenset([1]), max_reasoning=max_reasoning,
    )  # fmt: skip
    return found, session


def test_rows_open_their_answer_at_different_lengths_or_are_made_to():
    scripts = [[5, 10, 11, 20], [5, 6, 7, 10, 11, 22], [5, 1], [5, 6, 7, 8, 9, 5, 6, 7]]
    found, session = scripted(scripts, 5)
    assert [f.reasoning for f in found] == [[5], [5, 6, 7], [5], [5, 6, 7, 8, 9]]
    # What is forced is pushed into the model like any other token, and in one pass.
    assert session.pushed == [[5, 10, 11], [5, 6, 7, 10, 11], [5, 10, 11], [5, 6, 7, 8, 9, 10, 11]]
    assert session.passes == 6
    assert [f.answer.found[0].rank for f in found[:2]] == [0, 1]


def test_an_opening_that_is_half_written_is_finished_and_not_begun_again():
    # At the bound, and where the model ends its turn in the middle of it.
    found, session = scripted([[5, 6, 7, 10, 11, 22], [5, 10, 1]], 4)
    assert [f.reasoning for f in found] == [[5, 6, 7], [5]]
    assert session.pushed == [[5, 6, 7, 10, 11], [5, 10, 11]]


def test_rows_that_reason_and_rows_that_do_not_go_together():
    scripts = [[5, 10, 11, 22], [22], [5, 6, 22], [5, 6, 7, 8]]
    found, session = scripted(scripts, [5, None, 0, 2])
    assert [f.reasoning for f in found] == [[5], [], [], [5, 6]]
    assert session.pushed == [[5, 10, 11], [], [10, 11], [5, 6, 10, 11]]
    assert [f.answer.found[0].rank for f in found[:3]] == [1, 1, 1]


def test_an_answer_is_scored_where_its_row_stands(mllm, trie, prompts):
    mixed = run(mllm, trie, prompts, max_reasoning=[6, 0, 2])
    for prompt, found in zip(prompts, mixed, strict=True):
        expected = exhaustive(mllm, trie, prompt, found.reasoning)
        assert {f.rank: f.score for f in found.answer.found} == pytest.approx(expected, abs=2e-4)


def test_a_bound_is_a_row_s_own(mllm, trie, prompts):
    lengths = [len(d.reasoning) for d in run(mllm, trie, prompts, max_reasoning=[6, 0, 2])]
    assert lengths[1] == 0
    assert lengths[2] <= 2 < 6 >= lengths[0]
    assert np.any(np.array(lengths) > 0)
