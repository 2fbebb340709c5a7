"""Whatever the engine does with what a processor leaves, it writes a description of the trie.

vLLM is not among the tests' requirements. Its processor is tested through a stand-in: the public
shapes of ``vllm.v1.sample.logits_processor``, and an engine that uses them as vLLM's V1 runner
does (rows that are removed, added, moved and swapped; output lists that live on, and that show
placeholders before they are repaired).
"""

import enum
import importlib
import random
import sys
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import LogitsProcessor

from serendip.core import CorruptArtifact, InvalidRequest
from serendip.planning.processors import Guide, TrieLogitsProcessor
from serendip.planning.trie import START, DescriptionTrie

END = 1
NODES = range(100, 111)  # conftest.trie: "bread: rye" is 100, "bread: rye and oats" 101, ...
PREFIXES = [(100, 101), (103, 104), (108, 107), (109, 110)]
sequences = st.lists(
    st.lists(st.integers(2, 6), min_size=1, max_size=5), min_size=1, max_size=30, unique_by=tuple
)


# --- the guide, which knows no engine --------------------------------------------------------


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


# --- transformers' generate ------------------------------------------------------------------

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


def after(opening, tokens, within):
    """What follows the first opening, which must end within some tokens; None if it does not."""
    for end in range(len(opening), min(within, len(tokens)) + 1):
        if tokens[end - len(opening) : end] == opening:
            return tokens[end:]
    return None


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


# --- vLLM, through a stand-in of its interface -----------------------------------------------


class MoveDirectionality(enum.Enum):
    UNIDIRECTIONAL = enum.auto()
    SWAP = enum.auto()


@dataclass(frozen=True)
class BatchUpdate:
    batch_size: int
    removed: list  # of indices
    added: list  # of (index, sampling parameters, prompt tokens, live output tokens)
    moved: list  # of (from, to, direction)


class StandIn(ABC):
    @classmethod
    def validate_params(cls, sampling_params):
        return None

    @abstractmethod
    def __init__(self, vllm_config, device, is_pin_memory): ...

    @abstractmethod
    def apply(self, logits): ...

    @abstractmethod
    def is_argmax_invariant(self): ...

    @abstractmethod
    def update_state(self, batch_update): ...


@pytest.fixture
def vllm_processor(monkeypatch, tmp_path, trie):
    """The module with the stand-in for vllm, and an environment that names a saved trie."""
    interface = ModuleType("vllm.v1.sample.logits_processor")
    interface.LogitsProcessor = StandIn
    interface.BatchUpdate = BatchUpdate
    interface.MoveDirectionality = MoveDirectionality
    for name in ("vllm", "vllm.v1", "vllm.v1.sample"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    monkeypatch.delitem(sys.modules, "serendip.planning.vllm_processor", raising=False)
    trie.save(tmp_path / "trie")
    monkeypatch.setenv("SERENDIP_TRIE", str(tmp_path / "trie"))
    monkeypatch.setenv("SERENDIP_TRIE_TOKENIZER", trie.tokenizer_hash)
    yield importlib.import_module("serendip.planning.vllm_processor")
    sys.modules.pop("serendip.planning.vllm_processor", None)


def made(module):
    return module.VllmTrieProcessor(None, torch.device("cpu"), False)


def wants(**extra):
    return SimpleNamespace(extra_args=extra or None, all_stop_token_ids={END})


class Engine:
    """A batch of rows that come, go and move, as in vLLM's V1 model runner.

    Output lists get a placeholder as soon as a token is scheduled, and the token itself between
    ``update_state`` and ``apply``.
    """

    def __init__(self, processor, vocabulary, end, seed):
        self.processor, self.vocabulary, self.end = processor, vocabulary, end
        self.rows, self.chance = [], random.Random(seed)
        self.torch_chance = torch.Generator().manual_seed(seed)
        self.finished, self.seen = [], set()

    def run(self, requests, room):
        waiting = list(requests)
        while waiting or self.rows:
            self._change(waiting, room)
            for row in self.rows:
                if row["next"] is not None:
                    row["written"][-1] = row["next"]
            logits = torch.randn(len(self.rows), self.vocabulary, generator=self.torch_chance)
            before = logits.clone()
            logits = self.processor.apply(logits)
            chosen = torch.multinomial(logits.softmax(-1), 1, generator=self.torch_chance)
            for i, row in enumerate(self.rows):
                if not row["params"].extra_args:
                    assert torch.equal(logits[i], before[i])
                row["next"] = int(chosen[i])
                row["written"].append(-1)
        return self.finished

    def _change(self, waiting, room):
        at = [i for i, r in enumerate(self.rows) if r["next"] == self.end or len(r["written"]) > 30]
        for i in at:
            self.rows[i]["written"][-1] = self.rows[i]["next"]
            self.finished.append((self.rows[i]["params"], self.rows[i]["written"]))
        holes, added, moved = sorted(at), [], []
        while waiting and len(self.rows) - len(holes) < room and self.chance.random() < 0.7:
            row = {"params": waiting.pop(), "written": [], "next": None}
            index = holes.pop(0) if holes else len(self.rows)
            self.rows[index : index + 1] = [row]
            added.append((index, row["params"], [5, 5], row["written"]))
        removed = sorted(holes, reverse=True)
        while holes:
            last = len(self.rows) - 1
            if last in holes:
                holes.remove(last)
            else:
                self.rows[holes[0]] = self.rows[last]
                moved.append((last, holes.pop(0), MoveDirectionality.UNIDIRECTIONAL))
            self.rows.pop()
        if len(self.rows) > 1 and self.chance.random() < 0.5:
            a, b = self.chance.sample(range(len(self.rows)), 2)
            self.rows[a], self.rows[b] = self.rows[b], self.rows[a]
            moved.append((a, b, MoveDirectionality.SWAP))
        update = BatchUpdate(len(self.rows), removed, added, moved)
        self.seen |= {m[2] for m in moved} | ({"removed"} if removed else set())
        self.processor.update_state(update if removed or added or moved else None)


def test_requests_that_opt_in_get_descriptions_of_their_view(vllm_processor, trie, mllm):
    processor = made(vllm_processor)
    assert not processor.is_argmax_invariant()
    assert processor.needs_output_token_ids()
    opening = mllm.tokens("Next:")
    kinds = [
        {},
        {"serendip_trie": True},
        {"serendip_trie": 1, "serendip_only": [100, 101, 108]},
        {"serendip_trie": True, "serendip_without": [109, 110]},
        {"serendip_trie": True, "serendip_opening": opening, "serendip_max_free": 4},
    ]
    vocabulary = max(int(trie.token.max()), *opening) + 9
    engine = Engine(processor, vocabulary, trie.end_token, seed=1)
    finished = engine.run([wants(**kinds[i % 5]) for i in range(150)], room=6)
    assert engine.seen == {*MoveDirectionality, "removed"}
    assert len(finished) == 150
    found = {i: set() for i in range(5)}
    for params, written in finished:
        kind = kinds.index(params.extra_args or {})
        if kind == 4:
            written = after(opening, written, within=4 + len(opening))
        found[kind].add(Guide(trie).node(written))
    assert found[0] == {None}
    assert found[2] == {100, 101, 108}
    assert found[3] <= set(NODES) - {109, 110}
    assert None not in found[1] | found[4]
    assert len(found[1]) > 5
    assert not processor._rows.keys() - set(range(6))


def test_tokens_that_the_engine_drops_or_already_has_are_walked_anew(vllm_processor, trie):
    processor = made(vllm_processor)
    path = trie.tokens_of(len(trie) - 1)
    written = path[:2]  # as of a request that was preempted and comes back
    added = [(0, wants(serendip_trie=True), None, written)]
    processor.update_state(BatchUpdate(1, [], added, []))

    def allowed():
        masked = processor.apply(torch.zeros(1, int(trie.token.max()) + 1))
        return masked[0].isfinite().nonzero().flatten().tolist()

    guide = Guide(trie)
    for tokens in (path[:2], path[:3], path[:1], [], path[:4]):
        written[:] = tokens
        assert allowed() == sorted(guide.allowed(guide.walk(tokens)).tolist())


def test_an_engine_that_hides_its_tokens_is_stopped(vllm_processor, trie):
    processor = made(vllm_processor)
    added = [(0, wants(serendip_trie=True), None, [-1])]
    processor.update_state(BatchUpdate(1, [], added, []))
    with pytest.raises(InvalidRequest, match="--logits-processors: the engine hides"):
        processor.apply(torch.zeros(1, 400))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"serendip_trie": "yes"}, "extra_args.serendip_trie: must be true or false"),
        ({"serendip_only": [100]}, "extra_args.serendip_only: needs serendip_trie"),
        ({"serendip_trie": True, "serendip_onyl": [1]}, "serendip_onyl: is no argument"),
        ({"serendip_trie": True, "serendip_only": "100"}, "serendip_only: must be integers"),
        ({"serendip_trie": True, "serendip_without": [1.5]}, "serendip_without: must be integers"),
        ({"serendip_trie": True, "serendip_max_free": [3]}, "serendip_max_free: must be an int"),
        ({"serendip_trie": True, "serendip_max_free": 3}, "max_free: .* before an opening"),
        ({"serendip_trie": True, "serendip_opening": [END]}, "opening: holds an end token"),
        ({"serendip_trie": True, "serendip_only": [7]}, "no cluster is left"),
        ({"serendip_trie": True, "serendip_without": list(NODES)}, "no cluster is left"),
    ],
)
def test_a_request_that_can_never_be_served_is_refused_at_the_door(vllm_processor, extra, message):
    with pytest.raises(ValueError, match=message):
        vllm_processor.VllmTrieProcessor.validate_params(wants(**extra))


def test_a_request_that_can_be_served_is_let_in(vllm_processor):
    validate = vllm_processor.VllmTrieProcessor.validate_params
    validate(wants())
    validate(wants(other=3))
    validate(wants(serendip_trie=False))
    validate(wants(serendip_trie=True, serendip_only=[100, 101], serendip_without=[101]))
    validate(wants(serendip_trie=True, serendip_opening=[7, 8], serendip_max_free=0))


def test_an_engine_without_its_trie_does_not_start(vllm_processor, monkeypatch, tmp_path):
    monkeypatch.setenv("SERENDIP_TRIE_TOKENIZER", "another")
    with pytest.raises(CorruptArtifact, match="another tokenizer"):
        made(vllm_processor)
    monkeypatch.delenv("SERENDIP_TRIE")
    with pytest.raises(InvalidRequest, match="SERENDIP_TRIE: is not set"):
        made(vllm_processor)
