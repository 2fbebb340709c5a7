"""vLLM's processor, tested through a stand-in, since vLLM is not among the tests' requirements.

Beside the public shapes of vLLM there is an engine here that uses them as its V1 runner does: rows
that are removed, added, moved and swapped; output lists that live on, and that show placeholders
before they are repaired.
"""

import importlib
import random
from types import SimpleNamespace

import pytest
import torch
import vllm_stand_in
from material import NODES, after
from vllm_stand_in import BatchUpdate, MoveDirectionality

from serendip.core import CorruptArtifact, InvalidRequest
from serendip.planning.processors import Guide

END = 1


@pytest.fixture
def vllm_processor(monkeypatch, tmp_path, trie):
    """The module with the stand-in for vllm, and an environment that names a saved trie."""
    trie.save(tmp_path / "trie")
    monkeypatch.setenv("SERENDIP_TRIE", str(tmp_path / "trie"))
    monkeypatch.setenv("SERENDIP_TRIE_TOKENIZER", trie.tokenizer_hash)
    with vllm_stand_in.installed(monkeypatch):
        yield importlib.import_module("serendip.planning.vllm_processor")


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


def test_a_row_goes_on_where_its_prompt_has_begun(vllm_processor, trie):
    processor = made(vllm_processor)
    path = trie.tokens_of(len(trie) - 1)
    written = []
    params = wants(serendip_trie=True, serendip_begun=path[:2])
    vllm_processor.VllmTrieProcessor.validate_params(params)
    processor.update_state(BatchUpdate(1, [], [(0, params, [5, *path[:2]], written)], []))
    guide = Guide(trie)
    for more in ([], path[2:3], path[2:4], []):  # the last: what was written is dropped
        written[:] = more
        masked = processor.apply(torch.zeros(1, int(trie.token.max()) + 1))
        expected = sorted(guide.allowed(guide.walk([*path[:2], *more])).tolist())
        assert masked[0].isfinite().nonzero().flatten().tolist() == expected


def test_a_row_that_only_reasons_ends_with_the_opening(vllm_processor, trie):
    processor = made(vllm_processor)
    written = []
    params = wants(
        serendip_trie=True, serendip_answer=False, serendip_opening=[7, 8], serendip_max_free=2
    )
    processor.update_state(BatchUpdate(1, [], [(0, params, [5], written)], []))
    for more in ([], [9], [9, 9], [9, 9, 7], [9, 9, 7, 8]):
        written[:] = more
        masked = processor.apply(torch.zeros(1, 400))
        allowed = masked[0].isfinite().nonzero().flatten().tolist()
        if len(more) < 2:
            assert set(range(400)) - set(allowed) == {END, trie.end_token}
        else:
            assert allowed == [[7], [8], [trie.end_token]][len(more) - 2]


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
        ({"serendip_trie": True, "serendip_answer": 3}, "serendip_answer: must be true or false"),
        ({"serendip_trie": True, "serendip_answer": False}, "answers: leaves nothing"),
        ({"serendip_answer": False}, "serendip_answer: needs serendip_trie"),
        ({"serendip_trie": True, "serendip_begun": [END]}, "serendip_begun: begins no description"),
        (
            {"serendip_trie": True, "serendip_begun": [7], "serendip_opening": [7]},
            "serendip_begun: is of a prompt that is open",
        ),
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
