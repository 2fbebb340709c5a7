"""The decoder needs nothing of torch: the same search runs on an exported graph."""

import numpy as np
import onnxruntime
import pytest
import torch
from oracle import batch_of, build, find, small_model
from transformers.cache_utils import DynamicCache

from serendip.planning.head import Head
from serendip.planning.search import Search, TrieHead, search
from serendip.planning.session import TokenTrees

LAYERS, KV_HEADS, HEAD_DIM = 2, 1, 8


class Graph(torch.nn.Module):
    """Token IDs, positions, an additive mask and the past in; hidden states and present out."""

    def __init__(self, model):
        super().__init__()
        self.body, self.config = model.model, model.config

    def forward(self, ids, positions, mask, past):
        cache = DynamicCache()
        for layer in range(LAYERS):
            cache.update(past[layer, 0], past[layer, 1], layer)
        hidden = self.body(
            input_ids=ids,
            position_ids=positions,
            attention_mask={"full_attention": mask},
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        present = [torch.stack([layer.keys, layer.values]) for layer in cache.layers]
        return hidden, torch.stack(present)


class OnnxSession:
    """The whole of what a session is, over an ONNX graph: past in, present out."""

    def __init__(self, path, head):
        self.head = head
        self._run = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run

    def prefill(self, batch):
        ids = batch["input_ids"].numpy()
        mask = batch["attention_mask"].numpy().astype(bool)
        sees = np.tril(np.ones((ids.shape[1],) * 2, bool)) & mask[:, None, :]
        sees |= np.eye(ids.shape[1], dtype=bool)
        self._past = np.zeros((LAYERS, 2, len(ids), KV_HEADS, 0, HEAD_DIM), np.float32)
        self._trees = TokenTrees(mask)
        self.slots = self._trees.slots
        return self._forward(ids, sees)[:, -1]

    def extend(self, token, parent):
        sees = self._trees.append(parent)
        self.slots = self._trees.slots
        return self._forward(token, sees)

    def reorder(self, rows):
        self._trees.reorder(rows)
        self._past = self._past[:, :, rows]

    def _forward(self, ids, sees):
        positions = np.maximum(self._trees.depth()[:, -ids.shape[1] :], 0)
        mask = np.where(sees, 0, np.finfo(np.float32).min).astype(np.float32)[:, None]
        given = {"ids": ids, "positions": positions, "mask": mask, "past": self._past}
        hidden, self._past = self._run(None, given)
        return torch.from_numpy(hidden)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = small_model().float()
    path = str(tmp_path_factory.mktemp("onnx") / "decoder.onnx")
    auto = torch.export.Dim.DYNAMIC
    example = (
        torch.ones(3, 4, dtype=torch.long),
        torch.ones(3, 4, dtype=torch.long),
        torch.zeros(3, 1, 4, 9),
        torch.zeros(LAYERS, 2, 3, KV_HEADS, 5, HEAD_DIM),
    )
    torch.onnx.export(
        Graph(model).eval(), example, path, dynamo=True, verbose=False,
        input_names=["ids", "positions", "mask", "past"], output_names=["hidden", "present"],
        dynamic_shapes=({0: auto, 1: auto}, {0: auto, 1: auto}, {0: auto, 2: auto, 3: auto},
                        {2: auto, 4: auto}),
    )  # fmt: skip
    return model, path


@pytest.mark.parametrize("score", ["renormalized", "full"])
@pytest.mark.parametrize("method", ["beam", "best_first", "sample"])
def test_an_onnx_session_finds_what_a_torch_session_finds(exported, method, score):
    model, path = exported
    rows = [[a, b, c] for a in range(2, 6) for b in range(2, 5) for c in range(2, 5)] + [
        [2],
        [3, 3],
    ]
    trie = build(rows)
    prompts = [[5, 6, 7], [8], [9, 10]]
    views = [trie.view(), trie.view(only=range(9)), trie.view(without=range(20))]
    how = Search(k=5, method=method, beams=6, score=score)
    session = OnnxSession(path, Head.of(model))
    hidden = session.prefill(batch_of(prompts))
    tips = np.full(len(prompts), session.slots - 1)
    found = search(session, hidden, tips, TrieHead(session.head, trie), views, how)
    for ours, expected in zip(found, find(model, trie, prompts, how, views), strict=True):
        assert [f.rank for f in ours.found] == [f.rank for f in expected.found]
        assert [f.score for f in ours.found] == pytest.approx(
            [f.score for f in expected.found], abs=1e-4
        )
