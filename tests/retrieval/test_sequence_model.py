from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from serendip.retrieval import losses
from serendip.retrieval.losses import full_cross_entropy, sampled_softmax
from serendip.retrieval.model import ModelShape, SequenceModel, UserEncoder

SHAPE = ModelShape(items=50, dimensions=16, blocks=2, heads=2, max_history=12)


@pytest.fixture
def model() -> SequenceModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SequenceModel(SHAPE)
        with torch.no_grad():  # as if trained: nothing small, nothing zero
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.3)
            model.item.weight[0] = 0
    return model.eval()


def histories() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.arange(5 * 12).reshape(5, 12) * 7 % 50 + 1
    length = torch.tensor([12, 1, 7, 2, 11])
    ids[torch.arange(12)[None, :] >= length[:, None]] = 0
    return ids, length


def test_the_last_position_alone_is_the_full_pass(model: SequenceModel) -> None:
    ids, length = histories()
    full = model(ids, length)[torch.arange(5), length - 1]
    assert torch.allclose(model.encode(ids, length), full, rtol=0, atol=2e-6)


def test_what_stands_after_the_last_event_does_not_matter(model: SequenceModel) -> None:
    ids, length = histories()
    noisy = torch.where(ids == 0, 9, ids)
    assert torch.allclose(model.encode(noisy, length), model.encode(ids, length), atol=2e-6)


def test_padding_to_more_steps_changes_nothing(model: SequenceModel) -> None:
    ids, length = histories()
    alone = model.encode(ids[2:3, :7], length[2:3])
    assert torch.allclose(alone, model.encode(ids, length)[2:3], atol=2e-6)


def test_no_position_sees_what_comes_after_it(model: SequenceModel) -> None:
    ids, length = histories()
    changed = ids.clone()
    changed[0, 8:] = 3
    before, after = model(ids, length)[0], model(changed, length)[0]
    assert torch.allclose(before[:8], after[:8], atol=2e-6)
    assert not torch.allclose(before[8:], after[8:], atol=1e-2)


def test_one_dot_product_has_the_bias(model: SequenceModel) -> None:
    ids, length = histories()
    scores = UserEncoder(model)(ids, length) @ model.item_matrix().T
    plain = model.encode(ids, length) @ model.item.weight[1:].T + model.bias[1:]
    assert torch.allclose(scores, plain, atol=1e-5)


@pytest.mark.parametrize("block_floats", [50, 350, 1 << 21])
def test_full_cross_entropy_is_torchs_own(
    block_floats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "_BLOCK_FLOATS", block_floats)
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).double().requires_grad_()

    vector, items, bias = draw(23, 8), draw(50, 8), draw(50)
    target = torch.randint(50, (23,), generator=generator)
    share = torch.rand(23, generator=generator).double()

    ours = full_cross_entropy(vector, items, bias, target, share)
    gradients = torch.autograd.grad(ours * 3, (vector, items, bias))
    logits = vector @ items.T + bias
    theirs = (F.cross_entropy(logits, target, reduction="none") * share).sum()
    expected = torch.autograd.grad(theirs * 3, (vector, items, bias))
    assert torch.allclose(ours, theirs)
    for got, wanted in zip(gradients, expected, strict=True):
        assert torch.allclose(got, wanted)


def test_a_sample_of_every_item_once_is_the_full_softmax(model: SequenceModel) -> None:
    vector = torch.randn(9, 16, generator=torch.Generator().manual_seed(2))
    target = torch.arange(1, 10)
    share = torch.full((9,), 1 / 9)
    sampled = sampled_softmax(model, vector, target, share, torch.arange(1, 51))
    full = F.cross_entropy(vector @ model.item.weight[1:].T + model.bias[1:], target - 1)
    assert torch.allclose(sampled, full, atol=1e-5)
