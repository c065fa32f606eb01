"""The tensors that student and teacher are compared by, and the maps from the one's to the other's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_resnet.errors import InputError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Add

__all__ = ["HintMap", "Pair", "attention_distance", "fitted_maps", "stage_pairs"]

# Of a channel's variance, which is 1: least squares stay solvable where channels are redundant.
_RIDGE = 1e-3
# A channel that varies less is constant, and not compared.
_LEAST_DEVIATION = 1e-6


@dataclass(frozen=True)
class Pair:
    """The names of two tensors of the same height and width."""

    student: str
    teacher: str


def stage_pairs(student: Graph, teacher: Graph) -> tuple[Pair, ...]:
    """The last residual sums at each resolution that both have.

    Raises InputError where they have none in common.
    """
    mine, theirs = _stage_ends(student), _stage_ends(teacher)
    pairs = tuple(Pair(name, theirs[size]) for size, name in mine.items() if size in theirs)
    if not pairs:
        raise InputError(
            f"the teacher {teacher.name} has residual sums at {_sizes(theirs)}, {student.name} at "
            f"{_sizes(mine)}: hints and attention compare those of one size; set both to 0 in distill"
        )
    return pairs


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """How differently two tensors [N, any C, H, W] are large over the image: 0, to 2 where nowhere together.

    The squared distance of their maps, each the mean over channels of the squares, of length 1 (Zagoruyko and
    Komodakis, "Paying More Attention to Attention", 2016, 1612.03928, section 3.1); the mean over images.
    """
    mine, theirs = (F.normalize(x.float().square().mean(1).flatten(1)) for x in (student, teacher))
    return (mine - theirs).square().sum(1).mean()


class HintMap(nn.Module):
    """A learned 1x1 convolution from the student's channels to the teacher's (FitNets: Romero et al., 2014,
    1412.6550, section 2.2).

    Both are normalized channel by channel, by the means and deviations that they had at the start.
    """

    mean: Tensor
    factor: Tensor
    target_mean: Tensor
    target_factor: Tensor

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(teacher, student))
        self.bias = nn.Parameter(torch.zeros(teacher))
        self.register_buffer("mean", torch.zeros(student))
        self.register_buffer("factor", torch.ones(student))
        self.register_buffer("target_mean", torch.zeros(teacher))
        self.register_buffer("target_factor", torch.ones(teacher))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The squared error in units of each teacher channel's variance: 1 where only means are known."""
        weight = self.weight * self.factor
        bias = self.bias - (weight * self.mean).sum(1)
        predicted = F.conv2d(student, weight[:, :, None, None], bias).float()
        shape = (-1, 1, 1)
        target = (teacher.float() - self.target_mean.view(shape)) * self.target_factor.view(shape)
        return F.mse_loss(predicted, target)


class _Moments:
    """Sums over all positions of two tensors' values and products, float64."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Tensor] = []

    def add(self, student: Tensor, teacher: Tensor) -> None:
        # [N, C, H, W] -> [C, N * H * W]
        s, t = (x.detach().transpose(0, 1).flatten(1).double() for x in (student, teacher))
        new = [s.sum(1), t.sum(1), s @ s.T, t @ s.T, t.square().sum(1)]
        self.sums = [a + b for a, b in zip(self.sums, new, strict=True)] if self.sums else new
        self.count += s.shape[1]

    def fitted(self) -> HintMap:
        """The map of least squares."""
        s_sum, t_sum, ss, ts, tt = (values / self.count for values in self.sums)
        covariance, cross = ss - torch.outer(s_sum, s_sum), ts - torch.outer(t_sum, s_sum)
        factor = _inverse(covariance.diagonal())
        target_factor = _inverse(tt - t_sum.square())
        covariance = factor[:, None] * covariance * factor
        cross = target_factor[:, None] * cross * factor
        ridge = _RIDGE * torch.eye(len(factor), dtype=torch.float64)
        result = HintMap(len(s_sum), len(t_sum))
        with torch.no_grad():
            result.weight.copy_(torch.linalg.solve(covariance + ridge, cross.T).T)
            result.mean.copy_(s_sum)
            result.factor.copy_(factor)
            result.target_mean.copy_(t_sum)
            result.target_factor.copy_(target_factor)
        return result


def fitted_maps(seen: Iterable[list[tuple[Tensor, Tensor]]]) -> nn.ModuleList:
    """A map for each pair, which begins as that of least squares. `seen`: of each batch, (student's tensor,
    teacher's) of each pair.

    So the student is drawn to what it lacks from the first step on, whatever the widths and scales; a map
    that began at random would first draw it to noise.
    """
    moments: list[_Moments] = []
    for tensors in seen:
        moments = moments or [_Moments() for _ in tensors]
        for pair, (student, teacher) in zip(moments, tensors, strict=True):
            pair.add(student, teacher)
    return nn.ModuleList(pair.fitted() for pair in moments)


def _stage_ends(graph: Graph) -> dict[tuple[int, int], str]:
    """The last sum at each height and width above one pixel."""
    ends: dict[tuple[int, int], str] = {}
    for node in graph.nodes:
        shape = graph.shapes[node.name]
        if isinstance(node, Add) and len(shape) == 3 and shape[1] * shape[2] > 1:
            ends[shape[1], shape[2]] = node.name
    return ends


def _sizes(ends: dict[tuple[int, int], str]) -> str:
    return ", ".join(f"{height}x{width}" for height, width in ends) or "no size"


def _inverse(variance: Tensor) -> Tensor:
    deviation = variance.clamp_min(0).sqrt()
    return torch.where(deviation > _LEAST_DEVIATION, 1 / deviation, 0.0)
