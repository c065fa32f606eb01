"""Muon: its directions, the lengths of its steps, and what it leaves to SGD."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edge_resnet.training.muon import Muon

RATE = 0.02


def stepped(parameter: Tensor, gradients: list[Tensor], decay: float = 0.0) -> Tensor:
    """The parameter after a step of Muon for each gradient."""
    moved = nn.Parameter(parameter.clone())
    optimizer = Muon([{"params": [moved], "weight_decay": decay}], RATE)
    for gradient in gradients:
        moved.grad = gradient.clone()
        optimizer.step()
    return moved.detach()


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (16, 2, 1, 1), (3, 16, 1, 1)])
def test_a_convolution_turns_in_all_directions_alike(shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(0)
    weight, gradient = (torch.randn(shape, generator=rng) for _ in range(2))
    step = (weight - stepped(weight, [gradient])).flatten(1)
    assert float(step.norm() / weight.norm()) == pytest.approx(RATE, rel=1e-4)
    values = torch.linalg.svdvals(step)
    assert float(values.min() / values.max()) > 0.5
    # Not far from the orthogonal matrix that is nearest to the gradient.
    left, _, right = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
    nearest = left @ right
    assert float((step * nearest).sum() / (step.norm() * nearest.norm())) > 0.97


def test_the_direction_is_that_of_torch() -> None:
    """torch.optim.Muon, which takes matrices only and computes in bfloat16."""
    rng = torch.Generator().manual_seed(1)
    weight = torch.randn(8, 36, generator=rng)
    gradients = [torch.randn(8, 36, generator=rng) for _ in range(3)]
    ours, theirs, before = weight.reshape(8, 4, 3, 3), nn.Parameter(weight.clone()), weight.clone()
    reference = torch.optim.Muon([theirs], lr=RATE, weight_decay=0.0, momentum=0.9, nesterov=True)
    moved = nn.Parameter(ours.clone())
    optimizer = Muon([{"params": [moved]}], RATE)
    for gradient in gradients:
        moved.grad, theirs.grad = gradient.reshape(8, 4, 3, 3), gradient.clone()
        optimizer.step()
        reference.step()
        mine, other = moved.detach().flatten(1) - before, theirs.detach() - before
        assert float((mine * other).sum() / (mine.norm() * other.norm())) > 0.99
        with torch.no_grad():  # from the same place again
            moved.copy_(ours)
            theirs.copy_(before)


@pytest.mark.parametrize("shape", [(5,), (4, 6), (8, 1, 3, 3)])
def test_all_else_is_done_by_sgd(shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(2)
    weight = torch.randn(shape, generator=rng)
    gradients = [torch.randn(shape, generator=rng) for _ in range(3)]
    expected = nn.Parameter(weight.clone())
    optimizer = torch.optim.SGD([expected], RATE, momentum=0.9, nesterov=True, weight_decay=0.1)
    for gradient in gradients:
        expected.grad = gradient.clone()
        optimizer.step()
    assert torch.allclose(stepped(weight, gradients, decay=0.1), expected, rtol=1e-6, atol=1e-7)


def test_a_gradient_of_zero_moves_nothing() -> None:
    weight = torch.ones(4, 4, 3, 3)
    assert torch.equal(stepped(weight, [torch.zeros_like(weight)]), weight)
