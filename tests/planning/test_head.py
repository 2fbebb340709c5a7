"""Logits of the tokens that are asked for equal those of the whole head, however they are made."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import small_model
from transformers import CohereConfig, CohereForCausalLM, GraniteConfig, GraniteForCausalLM

from serendip.core import CorruptArtifact
from serendip.planning import head as head_module
from serendip.planning.head import Head, cheapest


def random_head(seed, vocabulary, bias, cap, scale):
    torch.manual_seed(seed)
    return Head(
        torch.randn(vocabulary, 6, dtype=torch.float64),
        torch.randn(vocabulary, dtype=torch.float64) if bias else None,
        scale,
        cap,
    )


def by_formula(head, hidden):
    z = hidden.numpy() @ head.weight.numpy().T
    z = head.scale * (z if head.bias is None else z + head.bias.numpy())
    return z if head.soft_cap is None else head.soft_cap * np.tanh(z / head.soft_cap)


methods = st.sampled_from(["unique", "by_row", "full", None])
heads = st.builds(
    random_head,
    st.integers(0, 5),
    st.integers(3, 40),
    st.booleans(),
    st.sampled_from([None, 2.0]),
    st.sampled_from([1.0, 0.25]),
)


@settings(deadline=None)
@given(heads, st.integers(1, 5), st.integers(1, 60), methods)
def test_edges_are_columns_of_the_whole_head(head, rows, edges, method):
    hidden = torch.randn(rows, 6, dtype=torch.float64)
    rng = np.random.default_rng(edges)
    row = np.sort(rng.integers(0, rows, edges))
    token = rng.integers(0, head.vocabulary, edges)
    expected = by_formula(head, hidden)
    assert head.full(hidden).numpy() == pytest.approx(expected)
    assert head.edges(hidden, row, token, method) == pytest.approx(expected[row, token])
    assert head.select(token).full(hidden).numpy() == pytest.approx(expected[:, token])


@settings(deadline=None)
@given(heads, st.integers(1, 5), st.integers(1, 50))
def test_the_norm_is_that_of_the_whole_vocabulary_whatever_the_chunk(head, rows, chunk):
    hidden = torch.randn(rows, 6, dtype=torch.float64)
    expected = np.log(np.exp(by_formula(head, hidden)).sum(axis=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_module, "_CHUNK_VOCABULARY", chunk)
        assert head.log_norm(hidden) == pytest.approx(expected)


def test_the_way_is_chosen_by_what_it_touches():
    few, many = np.arange(40), np.arange(30_000)
    assert cheapest(1, few, 32_000) == "unique"
    # Every row asks for tokens of its own: a GEMM would compute each for all rows.
    assert cheapest(256, np.arange(2_000), 262_144) == "by_row"
    # All ask for the same ones.
    assert cheapest(256, np.tile(few, 256), 262_144) == "unique"
    # Nearly the whole vocabulary: streaming it costs less than picking from it.
    assert cheapest(8, np.tile(many, 8), 32_000) == "full"


def cohere():
    torch.manual_seed(0)
    return CohereForCausalLM(
        CohereConfig(
            vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, logit_scale=0.25, initializer_range=0.5,
        )
    ).eval()  # fmt: skip


def granite():
    torch.manual_seed(0)
    return GraniteForCausalLM(
        GraniteConfig(
            vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, logits_scaling=4.0, initializer_range=0.5,
            tie_word_embeddings=False,
        )
    ).eval()  # fmt: skip


@pytest.mark.parametrize(
    "model",
    [
        small_model(vocabulary=50),
        small_model(vocabulary=50, tie_word_embeddings=False),
        small_model(vocabulary=50, final_logit_softcapping=2.0),
        cohere(),
        granite(),
    ],
    ids=["tied", "untied", "soft-capped", "scaled", "divided"],
)
@torch.inference_mode()
def test_a_model_s_head_gives_its_logits(model):
    ids = torch.tensor([[3, 7, 11], [4, 5, 6]])
    hidden = model.base_model(input_ids=ids).last_hidden_state[:, -1]
    expected = model(input_ids=ids).logits[:, -1]
    assert torch.allclose(Head.of(model).full(hidden), expected, atol=1e-5)


def test_a_bias_is_taken_along():
    model = small_model(vocabulary=50, tie_word_embeddings=False)
    model.lm_head.bias = torch.nn.Parameter(torch.randn(50, dtype=torch.float64))
    assert torch.equal(Head.of(model).bias, model.lm_head.bias)


def test_a_cap_that_the_config_names_and_the_model_leaves_out_is_left_out():
    model = small_model(vocabulary=50)
    model.config.get_text_config().final_logit_softcapping = 3.0
    forward = type(model).forward
    assert Head.of(model).soft_cap == 3.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "forward", _uncapped(forward))
        assert Head.of(model).soft_cap is None


def _uncapped(forward):
    def run(self, *args, **kwargs):
        cap, self.config.final_logit_softcapping = self.config.final_logit_softcapping, None
        try:
            return forward(self, *args, **kwargs)
        finally:
            self.config.final_logit_softcapping = cap

    return run


def test_a_head_of_another_form_is_refused():
    model = small_model(vocabulary=50)
    model.lm_head.register_forward_hook(lambda _, __, z: z * z)
    with pytest.raises(CorruptArtifact, match="no linear head"):
        Head.of(model)


@pytest.mark.parametrize("method", ["unique", "by_row"])
@pytest.mark.parametrize("rows", [1, 3])
def test_allowed_logits_in_half_precision_are_not_rounded_to_it(method, rows):
    torch.manual_seed(0)
    head = Head(torch.randn(40, 64).bfloat16())
    hidden = torch.randn(rows, 64).bfloat16()
    exact = (hidden.double() @ head.weight.double().T).numpy()
    row, token = np.repeat(np.arange(rows), 4), np.tile([3, 9, 11, 30], rows)
    assert head.edges(hidden, row, token, method) == pytest.approx(exact[row, token], abs=1e-4)
