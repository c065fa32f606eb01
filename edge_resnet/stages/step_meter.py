"""What each step of quantization gains: measured after it, for the report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_resnet.compression.sensitivity import sqnr_db
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.mixed_executor import MixedExecutor
from edge_resnet.quantization_record import StepRecord
from edge_resnet.run import Run
from edge_resnet.stage_cache import StageOutput, stage_key
from edge_resnet.stages.images import labelled_images
from edge_resnet.stages.kept import kept_stage

__all__ = ["StepMeter", "measured_images"]

# Accuracy after each step is measured on fewer images than asked for where they would take more than this
# many multiply-accumulates: minutes.
_MOST_MACS = 4e11

Pixels = NDArray[np.uint8]


def measured_images(asked: int, graph: Graph) -> int:
    """On how many images a step is measured, where `asked` would take too long."""
    return min(asked, int(_MOST_MACS / max(1, graph.macs)))


class StepMeter:
    """What the integers are worth after each step: top-1, and the noise that they add to the logits."""

    def __init__(self, run: Run, floating: Graph) -> None:
        self._run = run
        recipe = run.recipe
        steps = (
            recipe.repair.equalize,
            recipe.repair.correct_biases,
            recipe.repair.rounding.steps,
            recipe.qat.epochs,
            recipe.prune.budget is not None,
        )
        self._count = 0  # of images, where there is more than one step
        if any(steps):
            self._count = measured_images(recipe.evaluate.step_images, floating)
        self._floating = floating
        self._images: tuple[Pixels, NDArray[np.int64], NDArray[np.float32]] | None = None

    @property
    def on(self) -> bool:
        return self._count > 0

    def add(self, name: str, seconds: float, quantized: Graph, detail: str = "") -> None:
        """A step's record, measured."""
        record = StepRecord(name, seconds, detail=detail)
        if self.on:
            key = stage_key(
                quantized=quantized,
                floating=self._floating,
                count=self._count,
                **self._run.images_identity(),
            )
            title = f"measure {name}"
            kind = title.replace(" ", "-")
            found = kept_stage(self._run, kind, key, title, None, lambda _: self._measured(quantized))
            record = replace(record, **found.record)
        self._run.record.steps.append(record)

    def _measured(self, quantized: Graph) -> StageOutput:
        pixels, labels, real = self._seen()
        logits = MixedExecutor(quantized).logits(pixels)
        top1 = float((logits.argmax(1) == labels).mean())
        noise = float(np.square(logits - real, dtype=np.float64).sum())
        signal = float(np.square(real, dtype=np.float64).sum())
        return StageOutput({}, {"top1": top1, "n": len(labels), "sqnr_db": sqnr_db(signal, noise)})

    def _seen(self) -> tuple[Pixels, NDArray[np.int64], NDArray[np.float32]]:
        if self._images is None:
            pixels, labels = labelled_images(self._run, "val", self._count)
            self._images = pixels, labels, FloatExecutor(self._floating).run(pixels)
        return self._images
