"""Filled records of pruning, as runs of ResNet-20, 56 and 50 leave them, for tests of the report."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable

from edge_resnet.pruning_record import BlockChange, LatencyRecord, LayerChange, PruningRecord, StageRecord

__all__ = ["basic_record", "bottleneck_record", "ranges"]


def ranges(channels: Iterable[int]) -> str:
    """`0-2,7` of 0, 1, 2, 7."""
    spans: list[list[int]] = []
    for channel in sorted(channels):
        if spans and channel == spans[-1][1] + 1:
            spans[-1][1] = channel
        else:
            spans.append([channel, channel])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def basic_record(depth: int = 20, removed: Collection[str] = ("layer1.1", "layer3.2")) -> PruningRecord:
    """ResNet-20 or ResNet-56: basic blocks without convolutions in their shortcuts; invented figures."""
    rng = random.Random(0)
    layers, blocks = [_layer(rng, "conv1", 16, 16, 32, 442_368)], []
    for stage, (width, size) in enumerate(((16, 32), (32, 16), (64, 8)), 1):
        for index in range((depth - 2) // 6):
            name = f"layer{stage}.{index}"
            gone = name in removed
            for conv in ("conv1", "conv2"):
                left = 0 if gone else width if conv == "conv2" else rng.choice((width // 2, width * 3 // 4))
                layers.append(_layer(rng, f"{name}.{conv}", width, left, size, 2_359_296))
            if index or stage == 1:
                cost = rng.uniform(0.002, 0.06) if gone else rng.uniform(0.05, 1.4)
                blocks.append(BlockChange(name, (f"{name}.conv1", f"{name}.conv2"), gone, cost))
    layers.append(_layer(rng, "linear", 10, 10, 1, 640))
    return _record(layers, blocks, (40_813_184, 20_100_000), (269_722, 131_402))


def bottleneck_record() -> PruningRecord:
    """ResNet-50: 53 convolutions of up to 2,048 channels and a classifier; invented figures."""
    rng = random.Random(1)
    layers, blocks = [_layer(rng, "conv1", 64, 40, 112, 118_013_952)], []
    for stage, (count, width, size) in enumerate(((3, 64, 56), (4, 128, 28), (6, 256, 14), (3, 512, 7)), 1):
        stream = frozenset(rng.sample(range(4 * width), int(rng.uniform(0.7, 1) * 4 * width) // 8 * 8))
        for index in range(count):
            name = f"layer{stage}.{index}"
            gone = name in ("layer1.2", "layer3.4")
            for conv, before in (("conv1", width), ("conv2", width), ("conv3", 4 * width)):
                left = 0 if gone else int(rng.uniform(0.3, 0.9) * before) // 8 * 8
                kept = stream if conv == "conv3" and not gone else None
                layers.append(_layer(rng, f"{name}.{conv}", before, left, size, 115_605_504, kept))
            if index:
                inside = tuple(f"{name}.conv{number}" for number in (1, 2, 3))
                blocks.append(BlockChange(name, inside, gone, rng.uniform(0.01, 3)))
            else:
                shortcut = f"{name}.downsample.0"
                layers.append(_layer(rng, shortcut, 4 * width, 0, size, 51_380_224, stream))
    layers.append(_layer(rng, "fc", 1000, 1000, 1, 2_048_000))
    return _record(layers, blocks, (4_089_184_256, 1_930_000_000), (25_530_472, 12_100_000))


def _layer(
    rng: random.Random, name: str, before: int, after: int, size: int, macs: int,
    channels: Collection[int] | None = None,
) -> LayerChange:  # fmt: skip
    if channels is None:
        channels = rng.sample(range(before), after)
    after = len(channels)
    kept = "" if after == before else ranges(channels)
    return LayerChange(name, before, after, kept, (size, size), macs, macs * after // before)


def _record(
    layers: list[LayerChange], blocks: list[BlockChange], macs: tuple[int, int], params: tuple[int, int]
) -> PruningRecord:
    after, file, ms = (macs[1], params[1]), (300_832, 158_208), (0.463, 0.241)
    return PruningRecord(
        "latency", 0.52, 0.5205, "distillation", 8, tuple(layers), tuple(blocks),
        [
            StageRecord("original", False, 0.8865, 10_000, macs[0], params[0], file[0], ms[0]),
            StageRecord("pruned", False, 0.4312, 1000, *after, file[1], ms[1], "one shot"),
            StageRecord("finetune", False, 0.881, 10_000, *after, file[1], ms[1], "8 epochs"),
            StageRecord("int8", True, 0.8795, 10_000, *after, file[1], ms[1]),
            StageRecord("qat", True, 0.8843, 10_000, *after, file[1], ms[1], "3 epochs"),
        ],
        LatencyRecord("LiteRT/XNNPACK 2.3", 1, "local, A CPU, 2026-01-01", 0.021, ms[1], ms[0], 0.25, 0.47),
    )  # fmt: skip
