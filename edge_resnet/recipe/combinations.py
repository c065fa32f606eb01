"""Settings that are sound alone and mean nothing together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from edge_resnet.recipe.sections import Recipe

__all__ = ["CONFLICT", "refuse_conflicts"]

# The type of the errors raised here; their context's `key` is the key at fault, dotted.
CONFLICT = "conflict"


def refuse_conflicts(recipe: Recipe) -> None:
    """Raises pydantic's error for the first impossible combination: nothing is silently left out."""
    for key, message in (*_nncf(recipe), *_quantization(recipe)):
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
            yield key, f"NNCF does not do this; set it to {off}, or quantizer to edge-resnet"
    usual = type(recipe.calibration).model_fields["estimator"].default
    if recipe.calibration.estimator != usual:
        yield (
            "calibration.estimator",
            f"NNCF chooses ranges in its own way; leave this at {usual}, or set quantizer to edge-resnet",
        )
    if qat.scales != "fixed":
        yield "qat.scales", "NNCF trains in its own way; leave this at fixed, or set quantizer to edge-resnet"
    if qat.batch_norm != "folded":
        yield (
            "qat.batch_norm",
            "NNCF is given the folded model; leave this at folded, or set quantizer to edge-resnet",
        )


def _quantization(recipe: Recipe) -> Iterator[tuple[str, str]]:
    calibration, repair = recipe.calibration, recipe.repair
    # A recipe with every default written out holds the percentile beside any estimator.
    unused = calibration.percentile != type(calibration).model_fields["percentile"].default
    if unused and calibration.estimator != "percentile":
        yield (
            "calibration.percentile",
            f"belongs to calibration.estimator percentile, but that is {calibration.estimator}",
        )
    if recipe.qat.distill.weight > 0 and recipe.qat.epochs == 0:
        yield "qat.distill.weight", "distillation needs training: set qat.epochs above 0, or this to 0"
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
