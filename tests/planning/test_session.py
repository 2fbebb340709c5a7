"""A session reads trees of tokens as if every branch were a text of its own."""

import numpy as np
import pytest
import torch
from checkpoints import (
    tiny_gemma3,
    tiny_gemma3_capped,
    tiny_qwen2_5_vl,
    tiny_qwen3_vl,
    tiny_smolvlm,
)
from oracle import batch_of, small_model
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from serendip.core import CorruptArtifact
from serendip.planning import layout
from serendip.planning.head import Head
from serendip.planning.layout import NOWHERE
from serendip.planning.prompt import Content, build_prompt
from serendip.planning.session import TorchSession, check_trees
from serendip.planning.style import STYLES


def picture(seed, height=40, width=40):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def prompts(pictures):
    contents = [
        Content("rye bread", "", picture(0), (picture(1, 30, 60),)),
        Content("a bike on a hill, with a longer title", "", picture(2)),
        Content("sea", "", picture(3)),
    ]
    contents = contents if pictures else [Content(c.title, "some text") for c in contents]
    style = STYLES["video_cot" if pictures else "text"]
    return [build_prompt(c, style, 100) for c in contents]


BUILDERS = {
    "gemma3": tiny_gemma3,
    "gemma3, window of 8": lambda: tiny_gemma3(window=8),
    "gemma3 capped": tiny_gemma3_capped,
    "qwen2_5_vl": tiny_qwen2_5_vl,
    "qwen3_vl": tiny_qwen3_vl,
    "smolvlm": tiny_smolvlm,
}


@pytest.fixture(scope="module", params=BUILDERS)
def mllm(request):
    return BUILDERS[request.param]()


def without_cache(mllm, prompt, tokens):
    """The hidden state after a prompt and tokens, in one pass over all of it."""
    batch = mllm.encode([prompt])
    more = torch.tensor([tokens], dtype=torch.long)
    for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in batch:
            fill = {"input_ids": more, "attention_mask": torch.ones_like(more)}
            batch[name] = torch.cat([batch[name], fill.get(name, torch.zeros_like(more))], dim=1)
    # What the model keeps of an earlier call must not matter.
    return mllm.model.base_model(**batch, use_cache=False).last_hidden_state[0, -1]


# A tree a row: (token, parent), the parent an earlier one of the row or -1, the prompt.
TREES = [
    [[(20, -1), (21, 0), (22, 0), (23, 2)], [(24, 1), (25, 3)], [(26, 5)]],
    [[(30, -1), (31, -1)], [(32, 0), (33, 1), (34, 2)], [(35, 3), (36, 0)]],
    [[(40, -1)], [], [(41, 0), (42, 1), (43, 2)]],
]


@pytest.mark.parametrize("pictures", [True, False], ids=["pictures", "text"])
@pytest.mark.parametrize("share", [True, False], ids=["shared", "each"])
@torch.inference_mode()
def test_every_token_of_a_tree_is_the_end_of_its_own_branch(mllm, pictures, share, monkeypatch):
    monkeypatch.setattr(layout, "_WORTH_SHARING", 1 if share else 10_000)
    monkeypatch.setattr(layout, "_SHARED_PART", 0)
    given = prompts(pictures)
    session = TorchSession(mllm.model, Head.of(mllm.model))
    read = []
    with mllm.model.base_model.register_forward_pre_hook(
        lambda _, __, inputs: read.append(len(inputs["input_ids"])), with_kwargs=True
    ):
        hidden = session.prefill(mllm.encode(given))
    assert read == ([1, len(given)] if share else [len(given)])
    root = session.slots - 1
    for row, prompt in enumerate(given):
        assert torch.allclose(hidden[row], without_cache(mllm, prompt, []), atol=2e-4)
    slots = [[] for _ in given]  # (slot, tokens of the branch)
    for level in range(3):
        wide = max(len(tree[level]) for tree in TREES)
        token = np.zeros((len(given), wide), np.int64)
        parent = np.full((len(given), wide), NOWHERE, np.int64)
        base = session.slots
        for row, tree in enumerate(TREES):
            for q, (t, above) in enumerate(tree[level]):
                token[row, q] = t
                parent[row, q] = root if above < 0 else slots[row][above][0]
                before = [] if above < 0 else slots[row][above][1]
                slots[row].append((base + q, [*before, t]))
        hidden = session.extend(token, parent)
        for row, prompt in enumerate(given):
            for slot, branch in slots[row]:
                if slot >= base:
                    expected = without_cache(mllm, prompt, branch)
                    assert torch.allclose(hidden[row, slot - base], expected, atol=2e-4)


@torch.inference_mode()
def test_rows_may_be_left_out_repeated_and_go_on(mllm):
    given = prompts(pictures=True)
    session = TorchSession(mllm.model, Head.of(mllm.model))
    session.prefill(mllm.encode(given))
    tip = session.slots - 1
    session.extend(np.array([[20], [30], [0]]), np.array([[tip], [tip], [NOWHERE]]))
    session.reorder(np.array([2, 0, 0]))
    hidden = session.extend(np.array([[40], [21], [22]]), np.array([[tip], [tip + 1], [tip + 1]]))
    for row, (prompt, branch) in enumerate([(2, [40]), (0, [20, 21]), (0, [20, 22])]):
        expected = without_cache(mllm, given[prompt], branch)
        assert torch.allclose(hidden[row, 0], expected, atol=2e-4)


@torch.inference_mode()
def test_what_all_prompts_begin_with_is_read_once():
    model = small_model()
    session = TorchSession(model, Head.of(model))
    lengths = []
    model.model.register_forward_pre_hook(
        lambda _, __, inputs: lengths.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    begin = [5, 6, 7, 8] * 8
    hidden = session.prefill(batch_of([[*begin, 2], [*begin, 3, 4], [*begin, 5]]))
    assert lengths == [(1, 32), (3, 2)]
    expected = model.model(input_ids=torch.tensor([[*begin, 3, 4]])).last_hidden_state[0, -1]
    assert torch.allclose(hidden[1], expected, atol=1e-9)
    lengths.clear()
    session.prefill(batch_of([[2, *begin], [3, *begin]]))
    assert lengths == [(2, 33)]


def windowed(kind):
    config_class, model_class = {
        "mistral": (MistralConfig, MistralForCausalLM),
        "phi3": (Phi3Config, Phi3ForCausalLM),
    }[kind]
    torch.manual_seed(0)
    return model_class(
        config_class(
            vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, sliding_window=4, pad_token_id=0,
            initializer_range=0.5,
        )
    ).eval().double()  # fmt: skip


@pytest.mark.parametrize("kind", ["mistral", "phi3"])
def test_a_window_of_all_layers_is_kept(kind):
    model = windowed(kind)
    session = TorchSession(model, Head.of(model))
    session.prefill(batch_of([[3, 4, 5, 6, 7, 8]]))
    tip = session.slots - 1
    hidden = session.extend(np.array([[9, 10, 11]]), np.array([[tip, tip + 1, tip]]))
    for at, branch in enumerate([[9], [9, 10], [11]]):
        whole = torch.tensor([[3, 4, 5, 6, 7, 8, *branch]])
        expected = model.model(input_ids=whole, use_cache=False).last_hidden_state[0, -1]
        assert torch.allclose(hidden[0, at], expected, atol=1e-9)


def test_an_architecture_that_reads_no_trees_is_refused():
    torch.manual_seed(0)
    alibi = MptForCausalLM(
        MptConfig(vocab_size=50, d_model=16, n_heads=2, n_layers=2, max_seq_len=64)
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in alibi.parameters():
            parameter.normal_(std=0.5)
    with pytest.raises(CorruptArtifact, match="cannot read a tree of tokens"):
        check_trees(alibi, Head.of(alibi))
    check_trees(model := small_model(), Head.of(model))


@torch.inference_mode()
def test_a_long_chain_outgrows_its_room():
    model = small_model()
    session = TorchSession(model, Head.of(model))
    session.prefill(batch_of([[3, 4]]))
    tokens = np.random.default_rng(0).integers(2, 12, 200)
    for token in tokens:
        hidden = session.extend(np.array([[token]]), np.array([[session.slots - 1]]))
    whole = model.model(input_ids=torch.tensor([[3, 4, *tokens]])).last_hidden_state[0, -1]
    assert torch.allclose(hidden[0, 0], whole, atol=1e-9)
