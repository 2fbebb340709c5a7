"""A checkpoint exported as graphs finds, in ONNX Runtime, what its torch module finds."""

import numpy as np
import pytest
import torch
from checkpoints import tiny_gemma3, tiny_qwen2_5_vl, tiny_smolvlm

from serendip.core import CorruptArtifact
from serendip.planning import layout, onnx_session
from serendip.planning.decode import decode
from serendip.planning.head import Head
from serendip.planning.layout import NOWHERE
from serendip.planning.onnx_session import Graphs, OnnxSession, can_export, export_graphs
from serendip.planning.search import Search, TrieHead
from serendip.planning.session import TorchSession


@pytest.fixture(scope="module")
def exported(mllm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    export_graphs(mllm.model, folder)
    return folder


@pytest.fixture
def sessions(mllm, exported):
    """A session of each kind on the same checkpoint."""
    head = Head.of(mllm.model)
    image_token = mllm.model.config.image_token_id
    return lambda: (
        TorchSession(mllm.model, head),
        OnnxSession(Graphs(exported), head, image_token),
    )


@pytest.mark.parametrize("share", [False, True])
def test_hidden_states_are_those_of_the_module(mllm, prompts, sessions, monkeypatch, share):
    monkeypatch.setattr(layout, "_WORTH_SHARING", 1 if share else 10_000)
    batch = mllm.encode(prompts)
    found = []
    for session in sessions():
        first = session.prefill(batch)
        assert share == (session.slots < batch["input_ids"].shape[1] + share)
        tip = session.slots - 1
        tree = session.extend(
            np.array([[5, 6, 7], [8, 9, 5], [6, 6, 6]]),
            np.array([[tip, tip + 1, tip], [tip, tip, NOWHERE], [NOWHERE, tip, tip + 2]]),
        )
        session.reorder(np.array([2, 0, 0]))
        more = session.extend(np.array([[9]] * 3), np.array([[tip + 2], [tip + 2], [tip]]))
        found.append((first, tree[[0, 0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 1, 2]], more))
    for torch_found, onnx_found in zip(*found, strict=True):
        assert torch.allclose(torch_found, onnx_found, atol=1e-4)


@pytest.mark.parametrize("score", ["renormalized", "full"])
@pytest.mark.parametrize("method", ["beam", "best_first", "sample"])
def test_a_search_finds_the_same_descriptions(mllm, trie, prompts, sessions, method, score):
    views = [trie.view(), trie.view(without=[100, 101]), trie.view(only=range(102, 108))]
    how = Search(k=4, method=method, beams=6, score=score)
    found = [
        decode(
            session, mllm.encode(prompts), TrieHead(session.head, trie), views, how,
            opening=mllm.tokens("\nNext:"), ends=mllm.end_tokens, max_reasoning=6,
        )
        for session in sessions()
    ]  # fmt: skip
    for ours, expected in zip(*found, strict=True):
        assert ours.reasoning == expected.reasoning
        assert [f.rank for f in ours.answer.found] == [f.rank for f in expected.answer.found]
        assert [f.score for f in ours.answer.found] == pytest.approx(
            [f.score for f in expected.answer.found], abs=1e-4
        )


def test_prompts_without_pictures_are_read_as_well(mllm, sessions):
    batch = mllm.tokenizer(["sea kayak", "bread"], return_tensors="pt", padding=True)
    first, second = (session.prefill(dict(batch)) for session in sessions())
    assert torch.allclose(first, second, atol=1e-4)


def test_what_the_graphs_do_not_cover_is_left_to_torch(mllm):
    assert can_export(mllm.model)
    others = tiny_gemma3(window=8), tiny_qwen2_5_vl(), tiny_smolvlm()
    assert not any(can_export(other.model) for other in others)


def test_graphs_that_differ_from_the_module_are_refused(mllm, tmp_path, monkeypatch):
    class Wrong(onnx_session._Decoder):
        def forward(self, *given):
            hidden, present = super().forward(*given)
            return hidden * 1.01, present

    monkeypatch.setattr(onnx_session, "_Decoder", Wrong)
    with pytest.raises(CorruptArtifact, match="the exported graphs differ"):
        export_graphs(mllm.model, tmp_path)


def test_a_folder_without_graphs_is_refused(tmp_path):
    (tmp_path / onnx_session.VISION).write_bytes(b"no graph")
    with pytest.raises(CorruptArtifact, match="serendip finetune"):
        Graphs(tmp_path)
