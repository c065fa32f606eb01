"""The cases of benchmarks.pruning: their settings are recipes, and they run, on few images."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.pruning import BUDGETS, SHORT_EPOCHS, Tried, budget, cases, run_case
from edge_resnet.recipe import load_recipe

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@pytest.mark.parametrize("name", cases())
def test_settings_of_a_case_fit_its_recipe(name: str) -> None:
    case = cases()[name]
    settings = (*case.settings, *(budget(case.like, 0.4) if case.like else ()))
    recipe = load_recipe(RECIPES / f"{case.recipe}.yaml", settings)
    assert sum(getattr(recipe.prune, name) is not None for name in BUDGETS) == (case.recipe != "ptq")
    if name.startswith("vs"):
        assert (recipe.finetune.epochs, recipe.qat.epochs) == (SHORT_EPOCHS, 0)
        assert recipe.finetune.distill.on


@pytest.mark.slow
@pytest.mark.parametrize("name", ["criterion l1 resnet20", "vs torch-pruning seed 0"])
def test_a_case_runs_on_few_images(name: str, shared_data: Path, tmp_path: Path) -> None:
    case = cases()[name]
    if case.peer is not None:
        pytest.importorskip("torch_pruning")
    row = run_case(case, tmp_path / "case", tmp_path, Tried(epochs=1, images=40))
    assert row["n"] == 40
    assert 0.4 < row["pruning"]["macs"] <= 0.5
    assert all(row["identical"].values())
    assert (tmp_path / row["file"]).exists()
    if case.peer is not None:
        assert not any(width % 8 for layer, width in row["pruning"]["widths"].items() if layer != "linear")
