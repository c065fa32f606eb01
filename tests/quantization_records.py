"""A filled record of quantization, as a QAT run of ResNet-20 leaves it, for tests of the report."""

from __future__ import annotations

import math
import random

from edge_resnet.quantization_record import (
    EpochRecord,
    LayerCost,
    QuantizationRecord,
    SensitivityRecord,
    StepRecord,
    TrainingRecord,
)

__all__ = ["filled_record"]

NOTE = "tflite-int8: an NPU that takes int8 only leaves these layers to the CPU"


def filled_record(layers: int = 22, epochs: int = 3) -> QuantizationRecord:
    """Invented figures of the right size; the same at each call."""
    rng = random.Random(0)
    per_epoch = 391
    losses = [
        (step, 0.06 + 0.09 * math.exp(-step / 400) + rng.gauss(0, 0.012))
        for step in range(5, epochs * per_epoch, 5)
    ]
    means = [EpochRecord(e + 1, 0.12 / (e + 1), 0.985 + 0.002 * e / epochs, 137.0) for e in range(epochs)]
    costs = []
    for index in range(layers):
        stage, block = index // 7 + 1, index % 7 // 2
        drop = max(-0.004, rng.gauss(0.001, 0.003))
        costs.append(
            LayerCost(
                name=f"layer{stage}.{block}.conv{index % 2 + 1}", kind="Conv2d", macs=2_359_296,
                params=2320 * stage, sqnr_db=rng.uniform(18, 44), top1=0.886 - drop, drop=drop,
                from_weights=rng.random(), kept_float=index in (0, layers - 1),
            )
        )  # fmt: skip
    return QuantizationRecord(
        estimator="mse",
        portable_x86=True,
        steps=[
            StepRecord("calibrate", 3.2, 0.871, 1000, 21.4, "512 images"),
            StepRecord("correct biases", 6.0, 0.8755, 1000, 22.9, "22 layers"),
            StepRecord("qat", 412.0, 0.888, 1000, 19.1, "3 epochs, teacher resnet56"),
        ],
        training=[
            TrainingRecord(
                "qat",
                tuple(means), tuple(losses), 50_000, 412.0, "resnet56", (600,)
            )
        ],
        sensitivity=SensitivityRecord(
            500, 0.886, 0.872, tuple(costs), max_drop=0.5, mixed_top1=0.884, notes=(NOTE,)
        ),
    )  # fmt: skip
