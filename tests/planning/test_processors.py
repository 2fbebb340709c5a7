"""Whatever ``generate`` does with what the processor leaves, it writes a description."""

import random
from collections import Counter

import pytest
import torch
from material import NODES, PREFIXES, after
from transformers import LogitsProcessor

from serendip.core import InvalidRequest
from serendip.planning.processors import TrieLogitsProcessor
from serendip.planning.trie import DescriptionTrie

END = 1

WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 2.0, "num_return_sequences": 8},
    "beams": {"num_beams": 5, "num_return_sequences": 5},
    "beams that sample": {"num_beams": 5, "num_return_sequences": 5, "do_sample": True},
}


@pytest.fixture(scope="module")
def asked(mllm):
    """Three left-padded prompts, the second of which has the opening in it."""
    texts = ["A viewer liked this video. rye", "Next: bike", "sea kayak Suggest a new interest."]
    batch = mllm.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    return dict(batch)


@pytest.fixture(scope="module")
def descriptions(mllm, trie):
    """Nodes to texts; None stays None."""
    text = {
        int(node): mllm.tokenizer.decode(trie.tokens_of(rank), skip_special_tokens=True).strip()
        for rank, node in enumerate(trie.node_of_rank)
    }
    assert text[101] == "bread: rye and oats"
    return lambda nodes: [text.get(node) for node in nodes]


@pytest.fixture(scope="module")
def writes(mllm, trie, asked):
    """Generates with a trie's processor; returns what was written (text) and the output."""

    def write(before=(), new=40, way=None, the=trie, **arguments):
        torch.manual_seed(0)
        length = asked["input_ids"].shape[1]
        processor = TrieLogitsProcessor(the, length, **arguments)
        out = mllm.model.generate(
            **asked,
            logits_processor=[*before, processor],
            max_new_tokens=new,
            return_dict_in_generate=True,
            output_scores=True,
            **(way or {}),
        )
        texts = mllm.tokenizer.batch_decode(out.sequences[:, length:], skip_special_tokens=True)
        return [t.strip() for t in texts], processor.nodes(out.sequences), out

    return write


class Wish(LogitsProcessor):
    """Makes a model want to write what it is told: token n at step n, and the last for ever."""

    def __init__(self, prompt_length, tokens):
        self.prompt_length, self.tokens = prompt_length, tokens

    def __call__(self, input_ids, scores):
        step = input_ids.shape[1] - self.prompt_length
        wished = scores.clone()
        wished[:, self.tokens[min(step, len(self.tokens) - 1)]] += 1000
        return wished


@pytest.mark.parametrize("way", WAYS)
def test_every_row_is_a_description(writes, descriptions, mllm, asked, way):
    texts, nodes, _ = writes(way=WAYS[way])
    assert len(texts) == 3 * WAYS[way].get("num_return_sequences", 1)
    assert texts == descriptions(nodes)
    # The same weights left alone write none.
    free = mllm.model.generate(**asked, max_new_tokens=12)[:, asked["input_ids"].shape[1] :]
    alone = mllm.tokenizer.batch_decode(free, skip_special_tokens=True)
    assert not {t.strip() for t in alone} & set(descriptions(NODES))


def test_sampling_comes_upon_a_description_and_upon_one_that_it_begins(writes):
    way = {"do_sample": True, "temperature": 3.0, "num_return_sequences": 40}
    found = Counter(writes(way=way)[1])
    assert None not in found
    for short, long in PREFIXES:
        assert found[short]
        assert found[long]


def test_beams_find_all_that_each_rows_view_keeps_and_nothing_else(writes, descriptions, trie):
    views = [
        trie.view(only=[100, 101, 109, 110]),
        trie.view(without=[n for n in NODES if n not in (100, 104, 107, 108)]),
        trie.view(only=[102, 103, 104, 105], without=[]),
    ]
    way = {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.0}
    texts, nodes, out = writes(way=way, views=views)
    assert texts == descriptions(nodes)
    assert set(nodes[:4]) == {100, 101, 109, 110}
    assert set(nodes[4:8]) == {100, 104, 107, 108}
    assert set(nodes[8:]) == {102, 103, 104, 105}
    assert out.sequences_scores.min() > -1e8


@pytest.mark.parametrize("way", WAYS)
def test_no_way_writes_what_a_view_removed(writes, trie, way):
    kept = [[101], [100, 105, 107], [104, 110]]
    _, whole, _ = writes(way=WAYS[way])
    _, nodes, out = writes(way=WAYS[way], views=[trie.view(only=k) for k in kept])
    each = len(nodes) // 3
    real = getattr(out, "sequences_scores", torch.zeros(len(nodes))) > -1e6
    for row, (node, is_real) in enumerate(zip(nodes, real.tolist(), strict=True)):
        assert node in kept[row // each] or (not is_real and node is None)
    assert [set(whole[i * each :][:each]) <= set(kept[i]) for i in range(3)] != [True] * 3


def test_beams_score_by_the_whole_vocabulary_whatever_the_view(writes, mllm, trie, asked):
    way = {"num_beams": 11, "num_return_sequences": 6, "length_penalty": 0.0}
    _, nodes, out = writes(way=way)
    length = asked["input_ids"].shape[1]
    whole = [{}, {}, {}]
    for row, (node, score) in enumerate(zip(nodes, out.sequences_scores, strict=True)):
        whole[row // 6][node] = float(score)
    for prompt, node in [(0, nodes[0]), (2, nodes[13])]:
        ids = asked["input_ids"][prompt][asked["attention_mask"][prompt].bool()]
        written = torch.tensor(trie.tokens_of(int(trie.ranks_of([node])[0])))
        with torch.no_grad():
            logits = mllm.model(torch.cat([ids, written])[None]).logits[0, len(ids) - 1 : -1]
        each = logits.float().log_softmax(-1)[torch.arange(len(written)), written]
        assert whole[prompt][node] == pytest.approx(float(each.sum()), abs=1e-2)
    without = [trie.view(without=[nodes[6 * i]]) for i in range(3)]
    _, fewer, out = writes(way=way, views=without)
    shared = 0
    for row, (node, score) in enumerate(zip(fewer, out.sequences_scores, strict=True)):
        assert node != nodes[6 * (row // 6)]
        if node in whole[row // 6]:
            shared += 1
            assert float(score) == pytest.approx(whole[row // 6][node], abs=1e-2)
    assert shared >= 9
    assert out.sequences.shape[1] > length


def test_free_text_goes_on_until_it_opens_the_answer(writes, descriptions, mllm, asked):
    opening = mllm.tokens("Next:")
    text = mllm.tokens("Look: sea sea") + opening
    wish = Wish(asked["input_ids"].shape[1], [*text, mllm.tokens(" rye")[0]])
    texts, nodes, _ = writes([wish], opening=opening, end_tokens=mllm.end_tokens)
    assert texts == [f"Look: sea seaNext: {d}" for d in descriptions(nodes)]
    # An opening in the prompt opens nothing.
    endless, none, _ = writes(
        [Wish(asked["input_ids"].shape[1], text[:-1])], opening=opening, new=20
    )
    assert none == [None] * 3
    assert all(len(t) > 20 for t in endless)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bound", [0, 5])
def test_the_bound_opens_the_answer_of_a_row_that_would_not_end(
    writes, descriptions, mllm, asked, way, bound
):
    opening = mllm.tokens("Next:")
    wish = Wish(asked["input_ids"].shape[1], [mllm.end_token])
    texts, nodes, out = writes(
        [wish], way=WAYS[way], opening=opening, max_free=bound, end_tokens=mllm.end_tokens
    )
    length = asked["input_ids"].shape[1]
    for row in out.sequences[:, length:].tolist():
        assert after(opening, row, within=bound + len(opening)) is not None
    assert [t.split("Next: ")[-1] for t in texts] == descriptions(nodes)


def test_a_rows_place_is_in_its_tokens_and_not_in_its_number(trie):
    def masked(processor, rows):
        width = max(map(len, rows))
        ids = torch.tensor([[0] * 3 + row[:width] for row in rows])
        return processor(ids, torch.zeros(len(rows), int(trie.token.max()) + 1)).isfinite()

    paths = [trie.tokens_of(rank) for rank in range(len(trie))]
    paths = [(p + p[-1:] * 9)[:9] for p in paths]
    chance = random.Random(0)
    kept = TrieLogitsProcessor(trie, 3)
    for n in range(10):
        chance.shuffle(paths)
        rows = [p[:n] for p in paths[: chance.randint(2, len(paths))]]
        expected = masked(TrieLogitsProcessor(trie, 3), rows)
        assert torch.equal(masked(kept, rows), expected)
        assert len(kept._known) <= len(rows)
        assert expected.any(dim=1).all()


def test_the_engines_own_scores_are_not_overwritten(trie):
    processor = TrieLogitsProcessor(trie, 2, opening=[7, 8])
    scores = torch.randn(2, int(trie.token.max()) + 1)
    before = scores.clone()
    masked = processor(torch.tensor([[0, 0, 7, 8], [0, 0, 7, 7]]), scores)
    assert torch.equal(scores, before)
    assert masked[0].isfinite().sum() == len({p[0] for p in map(trie.tokens_of, range(len(trie)))})
    assert (~masked[1].isfinite()).nonzero().flatten().tolist() == [trie.end_token]


def test_a_processor_that_does_not_fit_its_rows_says_so(trie):
    other = DescriptionTrie.build([[7]], [0], END)
    with pytest.raises(InvalidRequest, match="views: is a view of a trie with 1 descriptions"):
        TrieLogitsProcessor(trie, 0, views=[other.view()])
    ids = torch.zeros(3, 2, dtype=torch.int64)
    with pytest.raises(InvalidRequest, match="views: must have one entry a prompt, for 3 rows"):
        TrieLogitsProcessor(trie, 2, views=[trie.view()] * 2)(ids, torch.zeros(3, 400))
    with pytest.raises(InvalidRequest, match=r"prompt_length: .* 2 tokens of a row, got 9"):
        TrieLogitsProcessor(trie, 9)(ids, torch.zeros(3, 400))
    with pytest.raises(InvalidRequest, match="beyond a vocabulary of 100"):
        TrieLogitsProcessor(trie, 2)(ids, torch.zeros(3, 100))
