"""A recipe: everything that decides numbers, as a typed, validated value."""

from edge_resnet.recipe.load import SearchSpace, load_recipe, load_space
from edge_resnet.recipe.sections import (
    BUDGETS,
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
    Search,
    Sensitivity,
    Train,
)

__all__ = [
    "BUDGETS",
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
    "Search",
    "SearchSpace",
    "Sensitivity",
    "Train",
    "load_recipe",
    "load_space",
]
