"""Muon over stacked matrices is Muon."""

import pytest
import torch

from serendip.planning import muon
from serendip.planning.muon import Muon

SHAPES = [(8, 8), (8, 8), (4, 8), (8, 4), (24, 8), (8, 24), (4, 8), (6, 9)]


def stepped(build, steps=6):
    torch.manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    still = torch.nn.Parameter(
        torch.ones(4, 8)
    )  # no gradient: stays, though others of its shape go
    optimizer = build([*matrices, still])
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.02 * (step + 1)
        for matrix in matrices:
            matrix.grad = torch.randn_like(matrix)
        optimizer.step()
    return [m.detach() for m in [*matrices, still]]


def torchs(matrices):
    return torch.optim.Muon(
        matrices, lr=0.0, weight_decay=0.3, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )


# In float32 the two differ by the rounding of torch's bfloat16.
@pytest.mark.parametrize(
    ("dtype", "together", "within"),
    [(torch.bfloat16, 1 << 22, 2e-3), (torch.bfloat16, 64, 2e-3), (torch.float32, 1 << 22, 5e-2)],
)
def test_steps_are_those_of_torchs_muon(monkeypatch, dtype, together, within):
    monkeypatch.setattr(muon, "_type_on", lambda device: dtype)
    monkeypatch.setattr(muon, "_TOGETHER", together)
    ours = stepped(lambda matrices: Muon(matrices, lr=0.0, weight_decay=0.3, momentum=0.9))
    theirs = stepped(torchs)
    start = stepped(torchs, steps=0)
    for a, b, before in zip(ours[:-1], theirs[:-1], start[:-1], strict=True):
        assert (b - before).norm() > 0.1 * before.norm()
        assert (a - b).norm() < within * (b - before).norm()
    assert torch.equal(ours[-1], torch.ones(4, 8))


def test_a_matrix_of_zeros_stays_one():
    assert muon.orthogonalised([torch.zeros(3, 5)])[0].eq(0).all()


def test_singular_values_come_out_near_one():
    torch.manual_seed(0)
    wide, tall = torch.randn(16, 40), torch.randn(40, 16) * 100
    for direction in muon.orthogonalised([wide, tall]):
        values = torch.linalg.svdvals(direction.float())
        assert values.min() > 0.6
        assert values.max() < 1.3
