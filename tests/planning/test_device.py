"""The engine runs where the model lies: on a GPU as on the CPU."""

import numpy as np
import pytest
import torch
from checkpoints import tiny_gemma3, tiny_qwen2_5_vl, tiny_smolvlm
from material import DESCRIPTIONS, picture

from serendip.planning import layout
from serendip.planning.decode import decode, write
from serendip.planning.head import Head
from serendip.planning.prompt import Content, build_prompt
from serendip.planning.search import Search, TrieHead
from serendip.planning.session import TorchSession, check_trees
from serendip.planning.style import ANSWER, STYLES
from serendip.planning.trie import DescriptionTrie

WAYS = {
    "beam": Search(k=4, beams=6),
    "best first": Search(k=4, method="best_first"),
    "sampled": Search(k=3, method="sample"),
    "full": Search(k=4, beams=6, score="full"),
}
BUILDERS = {"gemma3": tiny_gemma3, "qwen2_5_vl": tiny_qwen2_5_vl, "smolvlm": tiny_smolvlm}


@pytest.fixture(scope="module", params=BUILDERS)
def mllm(request):
    return BUILDERS[request.param]()


def encoded(mllm):
    """Three items' prompts; that they are encoded on the CPU is the processor's own matter."""
    contents = [
        Content("rye bread", "", picture(0), (picture(1),)),
        Content("a bike on a hill, with a longer title", "", picture(2)),
        Content("sea", "", picture(3)),
    ]
    return mllm.encode([build_prompt(c, STYLES["video_cot"], 100) for c in contents])


def planned(mllm, how, batch, head):
    """(free text, reasoning, ranks, scores) of each prompt."""
    tokens = mllm.description_tokens(DESCRIPTIONS)
    trie = DescriptionTrie.build(tokens, range(len(tokens)), mllm.end_token)
    found = decode(
        TorchSession(mllm.model, head), batch, TrieHead(head, trie),
        [trie.view(), trie.view(without=[3]), trie.view()], how,
        opening=mllm.tokens(ANSWER), ends=mllm.end_tokens, max_reasoning=[4, 0, 2],
    )  # fmt: skip
    texts = write(TorchSession(mllm.model, head), batch, mllm.end_tokens, 5)
    return [
        (text, d.reasoning, [f.rank for f in d.answer.found], [f.score for f in d.answer.found])
        for text, d in zip(texts, found, strict=True)
    ]


@pytest.fixture
def shared(monkeypatch):
    monkeypatch.setattr(layout, "_WORTH_SHARING", 1)
    monkeypatch.setattr(layout, "_SHARED_PART", 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the GPU is not tested")
@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_a_gpu_plans_what_the_cpu_plans(mllm, how, shared):
    batch = encoded(mllm)
    expected = planned(mllm, how, batch, Head.of(mllm.model))
    mllm.model.to("cuda")
    try:
        head = Head.of(mllm.model)
        check_trees(mllm.model, head)
        found = planned(mllm, how, batch, head)
    finally:
        mllm.model.to("cpu")
    for (*same, scores), (*wanted, right) in zip(found, expected, strict=True):
        assert same == wanted
        assert np.allclose(scores, right, atol=1e-3)


# Qwen2.5-VL's vision tower makes tensors on the CPU by itself.
@pytest.mark.parametrize("mllm", ["gemma3", "smolvlm"], indirect=True)
@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_no_tensor_is_made_on_a_device_that_nobody_named(mllm, how, shared):
    batch, head = encoded(mllm), Head.of(mllm.model)
    expected = planned(mllm, how, batch, head)
    # What is made without a device now holds no numbers: to read them is an error.
    with torch.device("meta"):
        assert planned(mllm, how, batch, head) == expected
