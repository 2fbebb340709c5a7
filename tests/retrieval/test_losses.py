"""Each loss against its formula, written out in the plain way."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
import torch.nn.functional as F

from serendip.retrieval import losses
from serendip.retrieval.losses import (
    binary_cross_entropy,
    full_cross_entropy,
    gbce_beta,
    log_expected_mixed,
    sampled_softmax,
)

P, N, D = 23, 50, 8


@pytest.fixture
def problem() -> dict[str, torch.Tensor]:
    """vector, items, bias, target, share, in doubles."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).double().requires_grad_()

    return {
        "vector": draw(P, D),
        "items": draw(N, D),
        "bias": draw(N),
        "target": torch.randint(N, (P,), generator=generator),
        "share": torch.rand(P, generator=generator).double(),
    }


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, problem: dict[str, torch.Tensor]) -> None:
    """Value and gradients, under a factor that backward must not forget."""
    by = [problem[name] for name in ("vector", "items", "bias")]
    assert torch.allclose(ours, theirs)
    gradients = torch.autograd.grad(ours * 3, by)
    for got, wanted in zip(gradients, torch.autograd.grad(theirs * 3, by), strict=True):
        assert torch.allclose(got, wanted)


def logits(problem: dict[str, torch.Tensor]) -> torch.Tensor:
    return problem["vector"] @ problem["items"].T + problem["bias"]


@pytest.mark.parametrize("block_floats", [50, 350, 1 << 21])
def test_full_cross_entropy_is_torchs_own(
    problem: dict[str, torch.Tensor], block_floats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "_BLOCK_FLOATS", block_floats)
    each = F.cross_entropy(logits(problem), problem["target"], reduction="none")
    assert_same(full_cross_entropy(**problem), (each * problem["share"]).sum(), problem)


def test_full_cross_entropy_survives_scores_beyond_exp(problem: dict[str, torch.Tensor]) -> None:
    far = {n: v.detach().float() if v.is_floating_point() else v for n, v in problem.items()}
    far["bias"] = far["bias"] + 500
    assert torch.isfinite(full_cross_entropy(**far))


def test_a_sample_of_every_item_once_is_the_full_softmax(
    problem: dict[str, torch.Tensor],
) -> None:
    every = sampled_softmax(**problem, negatives=torch.randperm(N), log_expected=0.0)
    assert_same(every, full_cross_entropy(**problem), problem)


def test_logq_makes_the_sum_over_a_skewed_sample_that_over_all_items(
    problem: dict[str, torch.Tensor],
) -> None:
    counts = torch.arange(1.0, N + 1) ** 2
    # Popular items score high, as a model has them.
    popular = {name: value.detach() for name, value in problem.items()}
    popular["bias"] = counts.log().double()
    expected = log_expected_mixed(counts, 40_000, 40_000).double()
    generator = torch.Generator().manual_seed(3)
    drawn = torch.cat([
        torch.randint(N, (40_000,), generator=generator),
        torch.multinomial(counts, 40_000, replacement=True, generator=generator),
    ])  # fmt: skip
    assert torch.allclose(torch.bincount(drawn, minlength=N).double(), expected.exp(), rtol=0.2)
    full = float(full_cross_entropy(**popular))
    corrected = sampled_softmax(**popular, negatives=drawn, log_expected=expected[drawn])
    assert float(corrected) == pytest.approx(full, rel=5e-3)
    as_if_uniform = math.log(len(drawn) / N)
    uncorrected = sampled_softmax(**popular, negatives=drawn, log_expected=as_if_uniform)
    assert float(uncorrected) > 1.02 * full


def test_a_negative_that_is_the_target_does_not_count(problem: dict[str, torch.Tensor]) -> None:
    own = {**problem, "target": torch.full((P,), 7)}
    nothing = sampled_softmax(**own, negatives=torch.tensor([7, 7]), log_expected=0.0)
    assert nothing.item() == 0


@pytest.mark.parametrize("block_floats", [1, 100, 1 << 19])
@pytest.mark.parametrize(("drawn", "beta"), [(1, 1.0), (6, 0.3)])
def test_binary_cross_entropy_is_torchs_own(
    problem: dict[str, torch.Tensor],
    drawn: int,
    beta: float,
    block_floats: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(losses, "_BLOCK_FLOATS", block_floats)
    negatives = torch.randint(N, (P, drawn), generator=torch.Generator().manual_seed(2))
    negatives[3] = problem["target"][3]  # counts as no negative
    score, right = logits(problem), problem["target"][:, None]
    wrong = score.gather(1, negatives)
    each = -beta * F.logsigmoid(score.gather(1, right))[:, 0]
    each = each - (F.logsigmoid(-wrong) * (negatives != right)).sum(dim=1)
    ours = binary_cross_entropy(**problem, negatives=negatives, beta=beta)
    assert_same(ours, (each * problem["share"]).sum(), problem)


def test_gbce_at_no_calibration_is_bce_and_at_full_is_the_sampling_rate() -> None:
    assert gbce_beta(256, 3417, 0.0) == pytest.approx(1)
    assert gbce_beta(256, 3417, 1.0) == pytest.approx(256 / 3416)


def test_the_examples_hold() -> None:
    failed, tried = doctest.testmod(losses)
    assert (failed, tried) == (0, 2)
