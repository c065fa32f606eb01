"""How far the student is from its teacher, each a mean over the batch. All in float32."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from edge_resnet.training.ranks import mean_over_ranks

__all__ = ["SOFT_LOSSES", "dist", "kl"]

# Of correlations, so that constant rows give 0 and not a division by 0.
_SMALLEST = 1e-8


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T**2 * KL(teacher || student) of logits [N, classes], both at temperature T.

    T**2 keeps the soft targets' gradients as large as the labels' (Hinton et al., "Distilling the Knowledge
    in a Neural Network", 2015, 1503.02531, section 2).
    """
    distance = F.kl_div(
        F.log_softmax(student / temperature, 1),
        F.log_softmax(teacher / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * distance


def dist(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T**2 * ((1 - inter) + (1 - intra)) of logits [N, classes], whose softmax at temperature T is compared.

    `inter`: the mean over images of Pearson's correlation over the classes; `intra`: the mean over classes of
    that over the images of the batch, in all processes (Huang et al., "Knowledge Distillation from A Stronger
    Teacher", 2022, 2205.10536, section 3.3; the factor T**2 is in the authors' code, hunto/DIST_KD).
    """
    p, q = F.softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
    inter = _cosine(p - p.mean(1, keepdim=True), q - q.mean(1, keepdim=True)).mean()
    return temperature**2 * (2 - inter - _over_images(p, q).mean())


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """[N, classes] -> [N]."""
    result: Tensor = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(_SMALLEST)
    return result


def _over_images(p: Tensor, q: Tensor) -> Tensor:
    """Pearson's correlation of each class over the images of all processes, [classes]."""
    count = mean_over_ranks(p.new_full((), len(p)))
    a, b = (values - mean_over_ranks(values.sum(0)) / count for values in (p, q))
    products = [mean_over_ranks(values.sum(0)) for values in (a * b, a * a, b * b)]
    result: Tensor = products[0] / (products[1] * products[2]).sqrt().clamp_min(_SMALLEST)
    return result


SOFT_LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"kl": kl, "dist": dist}
"""Keyed as `distill.loss` of a recipe."""
