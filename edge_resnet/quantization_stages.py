"""From the float graph to the integers: calibrate, quantize, repair, train."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edge_resnet.compression.calibrate import calibrate
from edge_resnet.compression.quantize import quantize
from edge_resnet.graph.passes import lower_for_integers
from edge_resnet.run import Run

__all__ = ["quantize_source"]


def quantize_source(run: Run) -> None:
    """The run's float graph in integers, as the recipe says."""
    assert run.floating is not None
    train = run.images.split("train")
    settings = run.recipe.calibration
    chosen = train.order(run.recipe.seed)[: settings.images]
    if len(chosen) < settings.images:
        run.note(
            f"calibration takes all {len(chosen)} images there are (calibration.images {settings.images})"
        )
    with run.stage("quantize", len(chosen)) as advance:
        graph = lower_for_integers(run.floating)

        def pixels() -> Iterator[np.ndarray]:
            for batch in train.batches(
                chosen, run.preprocess, settings.batch, run.recipe.evaluate.skip_corrupt
            ):
                yield batch.pixels
                advance(len(batch.pixels))

        run.quantized = quantize(graph, calibrate(graph, pixels()))
