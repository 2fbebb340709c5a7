from __future__ import annotations

import pytest
import torch

from serendip.retrieval.model import Dropout, ModelShape, SequenceModel, UserEncoder

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


def test_dropout_keeps_the_mean_and_its_share() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dropped = Dropout(0.2)(torch.ones(401, 257))
    zero = dropped == 0
    assert zero.float().mean() == pytest.approx(0.2, abs=5e-3)
    assert zero.float().mean(dim=0).max() < 0.3  # no column falls with its neighbours
    assert dropped.mean() == pytest.approx(1, abs=1e-2)
    assert torch.unique(dropped).numel() == 2


def test_dropout_passes_gradients_where_it_passes_values() -> None:
    x = torch.ones(3, 5, requires_grad=True)
    y = Dropout(0.5)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_dropout_ends_with_training() -> None:
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
