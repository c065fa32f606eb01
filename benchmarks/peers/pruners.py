"""Torch-Pruning prunes a torch module to a part of its multiply-accumulates, as its users would."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["NOTE", "torch_pruning"]

NOTE = (
    "Torch-Pruning's graph of dependencies takes the padding of channels in option A shortcuts for an "
    "elementwise operation: indices are not shifted, pad widths stay, and the pruned module fails at its "
    "classifier. What writes the residual streams is therefore among its ignored_layers, and channels inside "
    "blocks are pruned, in one step. (Its own CIFAR models have convolutions as shortcuts.)"
)
# Widths are coarse with round_to, and MACs are no monotonic function of the ratio (a layer that would be
# rounded to nothing is left whole): ratios are tried in turn.
_RATIOS = [round(0.1 + 0.03 * step, 2) for step in range(21)]
# This far from the wanted part of the MACs, a setting is no rival.
_NEAR = 0.02


def torch_pruning(
    module: nn.Module,
    image: torch.Tensor,
    ignored: Sequence[str],
    part: float,
    round_to: int | None,
    top1: Callable[[nn.Module], float],
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The pruned module, and what was tried: of each importance the ratio that comes closest to `part`.

    The pruner is the README's BasePruner with global ranking, the importances the README's and those that
    its CIFAR-10 script has for pruning without sparse training. The one with the best `top1` (of the pruned,
    untrained module) is taken. `image`: one, [1, C, H, W].
    """
    best: tuple[float, nn.Module] | None = None
    rows = []
    for name, importance in _importances().items():
        found = min(_tries(module, image, ignored, importance, round_to), key=lambda t: abs(t[1] - part))
        ratio, reached, pruned = found
        row = {"importance": name, "pruning_ratio": ratio, "macs": round(reached, 4), "top1": top1(pruned)}
        rows.append(row)
        if abs(reached - part) <= _NEAR and (best is None or row["top1"] > best[0]):
            best = row["top1"], pruned
            for other in rows:
                other["taken"] = other is row
    if best is None:
        raise ValueError(f"Torch-Pruning comes no closer to {part:.2f} of the MACs than {rows}")
    return best[1], rows


def _importances() -> dict[str, Callable[[], Any]]:
    import torch_pruning as tp

    return {
        "GroupMagnitudeImportance(p=2)": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "GroupMagnitudeImportance(p=2, normalizer='max')": lambda: tp.importance.GroupMagnitudeImportance(
            p=2, normalizer="max"
        ),
        "MagnitudeImportance(p=1)": lambda: tp.importance.MagnitudeImportance(p=1),
        "LAMPImportance(p=2)": lambda: tp.importance.LAMPImportance(p=2),
    }


def _tries(
    module: nn.Module,
    image: torch.Tensor,
    ignored: Sequence[str],
    importance: Callable[[], Any],
    round_to: int | None,
) -> Iterator[tuple[float, float, nn.Module]]:
    """Ratio, part of the MACs that is left, and the module."""
    import torch_pruning as tp

    whole, _ = tp.utils.count_ops_and_params(module, image)
    for ratio in _RATIOS:
        pruned = copy.deepcopy(module).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = tp.pruner.BasePruner(
                pruned,
                image,
                importance=importance(),
                global_pruning=True,
                pruning_ratio=ratio,
                ignored_layers=[pruned.get_submodule(name) for name in ignored],
                round_to=round_to,
            )
            pruner.step()
        left, _ = tp.utils.count_ops_and_params(pruned, image)
        yield ratio, left / whole, pruned
