"""Settings that are sound alone and mean nothing together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import BaseModel
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from edge_resnet.recipe.sections import Prune, Recipe

__all__ = ["CONFLICT", "refuse_conflicts"]

# The type of the errors raised here; their context's `key` is the key at fault, dotted.
CONFLICT = "conflict"


def refuse_conflicts(recipe: Recipe) -> None:
    """Raises pydantic's error for the first impossible combination: nothing is silently left out."""
    for key, message in (*_nncf(recipe), *_pruning(recipe), *_training(recipe), *_quantization(recipe)):
        raise PydanticCustomError(CONFLICT, "{message}", {"key": key, "message": message})


def _nncf(recipe: Recipe) -> Iterator[tuple[str, str]]:
    if recipe.quantizer != "nncf":
        return
    repair, qat = recipe.repair, recipe.qat
    asked = {
        "repair.equalize": repair.equalize,
        "repair.correct_biases": repair.correct_biases,
        "repair.rounding.steps": repair.rounding.steps > 0,
        "portable_x86": recipe.portable_x86,
    }
    for key, wanted in asked.items():
        if wanted:
            off = "0" if key.endswith("steps") else "false"
            yield key, f"NNCF is not asked for this; set it to {off}, or quantizer to edge-resnet"
    if _is_set(recipe.calibration, "estimator"):
        yield (
            "calibration.estimator",
            "NNCF chooses ranges in its own way; leave this out, or set quantizer to edge-resnet",
        )
    for key in ("hints", "attention"):
        if getattr(qat.distill, key) > 0:
            yield (
                f"qat.distill.{key}",
                "NNCF's module does not show its inner tensors; set it to 0 (qat.distill.weight works), or "
                "quantizer to edge-resnet",
            )
    if qat.scales != "fixed":
        yield "qat.scales", "NNCF trains in its own way; leave this at fixed, or set quantizer to edge-resnet"
    if qat.batch_norm != "folded":
        yield (
            "qat.batch_norm",
            "NNCF is given the folded model; leave this at folded, or set quantizer to edge-resnet",
        )


def _pruning(recipe: Recipe) -> Iterator[tuple[str, str]]:
    prune = recipe.prune
    given = [name for name, _ in prune.budgets]
    if len(given) > 1:
        yield f"prune.{given[1]}", f"prune.{given[0]} is the budget already; leave one of them out"
    if not given:
        if recipe.finetune.epochs:
            yield (
                "finetune.epochs",
                "belongs to pruning: set a budget, for example prune.latency=0.5, or train with train.epochs",
            )
        return
    if not (prune.channels or prune.blocks):
        yield "prune.blocks", "neither channels nor blocks may go: nothing can be pruned; allow one of them"
    if prune.schedule == "one-shot" and prune.steps > 1:
        yield "prune.steps", "prune.schedule one-shot has one step; set it to linear or cubic"
    if prune.step_epochs and prune.steps == 1:
        yield "prune.step_epochs", "trains between steps, and there is one; raise prune.steps, or set it to 0"
    if prune.reconstruct_candidates:
        yield from _candidates(prune)
    if prune.device != "local" and prune.latency is None:
        yield "prune.device", "belongs to a budget of latency; set prune.latency, or leave this out"


def _candidates(prune: Prune) -> Iterator[tuple[str, str]]:
    if not prune.reconstruct:
        yield "prune.reconstruct_candidates", "belongs to prune.reconstruct; set that to true as well"
    elif not prune.blocks:
        yield "prune.reconstruct_candidates", "judges blocks, and prune.blocks is false; leave it out"
    elif prune.criterion == "random":
        yield (
            "prune.reconstruct_candidates",
            "judges blocks, and prune.criterion random does not; leave it out",
        )


def _training(recipe: Recipe) -> Iterator[tuple[str, str]]:
    qat, rounding = recipe.qat, recipe.repair.rounding
    if qat.epochs == 0:
        for key in ("weight", "hints", "attention"):
            if getattr(qat.distill, key) > 0:
                yield (
                    f"qat.distill.{key}",
                    "distillation needs training: set qat.epochs above 0, or this to 0",
                )
        return
    undone = "training begins with the float weights, so that nothing of this is left; set it to"
    if recipe.repair.correct_biases:
        yield "repair.correct_biases", f"{undone} false, or qat.epochs to 0"
    if rounding.steps > 0:
        yield "repair.rounding.steps", f"{undone} 0, or qat.epochs to 0"
    if qat.scales == "fixed" and _is_set(qat, "freeze_scales"):
        yield "qat.freeze_scales", "qat.scales is fixed from the beginning; leave this out, or change that"
    if qat.batch_norm == "folded" and _is_set(qat, "freeze_batch_norm"):
        yield "qat.freeze_batch_norm", "qat.batch_norm is folded: nothing is left to freeze; leave this out"


def _quantization(recipe: Recipe) -> Iterator[tuple[str, str]]:
    calibration, repair = recipe.calibration, recipe.repair
    if calibration.estimator != "percentile" and _is_set(calibration, "percentile"):
        yield (
            "calibration.percentile",
            f"belongs to calibration.estimator percentile, but that is {calibration.estimator}",
        )
    if recipe.sensitivity.max_drop is not None and recipe.sensitivity.images == 0:
        yield (
            "sensitivity.max_drop",
            "needs images to measure the drop on: set sensitivity.images, for example to 500",
        )
    if calibration.images == 0:
        needs = {"correct_biases": repair.correct_biases, "rounding.steps": repair.rounding.steps > 0}
        for key, wanted in needs.items():
            if wanted:
                yield f"repair.{key}", "works on the calibration images: set calibration.images above 0"


def _is_set(section: BaseModel, key: str) -> bool:
    """Whether it is another value than the default: a recipe may write every default out."""
    return bool(getattr(section, key) != type(section).model_fields[key].default)
