"""A recipe: everything that decides numbers, as a typed, validated value."""

from edge_resnet.recipe.load import load_recipe
from edge_resnet.recipe.sections import (
    Calibration,
    Distillation,
    Evaluation,
    Export,
    FineTuning,
    LocalBenchmark,
    Optimization,
    Prune,
    Qat,
    Recipe,
    Repair,
    Rounding,
    Sensitivity,
    Train,
)

__all__ = [
    "Calibration",
    "Distillation",
    "Evaluation",
    "Export",
    "FineTuning",
    "LocalBenchmark",
    "Optimization",
    "Prune",
    "Qat",
    "Recipe",
    "Repair",
    "Rounding",
    "Sensitivity",
    "Train",
    "load_recipe",
]
