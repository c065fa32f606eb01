"""What the stages of one run hand on to each other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edge_resnet.data.images import ImageData
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.frontends.sources import SourceModel
from edge_resnet.graph.graph import Graph
from edge_resnet.progress import Progress
from edge_resnet.pruning_record import PruningRecord
from edge_resnet.quantization_record import QuantizationRecord
from edge_resnet.recipe import Recipe
from edge_resnet.runners.base import Runner
from edge_resnet.stage_cache import StageCache
from edge_resnet.targets import Target
from edge_resnet.verify.import_check import ImportCheck

__all__ = ["Run", "StageTime"]


@dataclass(frozen=True)
class StageTime:
    """`resumed`: the stage went on from, or only loaded, what an earlier run had left."""

    name: str
    seconds: float
    resumed: bool = False


@dataclass
class Run:
    """One run of the pipeline: what was opened, and what the stages have made so far.

    `original`: the float graph as it was imported; `floating`: what it became, pruned and trained.
    `unpruned`: the original in integers, where it was pruned: what is to be beaten in speed.
    `stage_cache`: where stages keep what they made; None: in the run's own folder.
    """

    recipe: Recipe
    targets: tuple[Target, ...]
    progress: Progress
    model: SourceModel
    images: ImageData
    preprocess: Preprocess
    out: Path
    requantize: bool = False
    devices: int = 1
    stages: list[StageTime] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    teacher: Graph | None = None
    original: Graph | None = None
    floating: Graph | None = None
    quantized: Graph | None = None
    unpruned: Graph | None = None
    import_check: ImportCheck | None = None
    baseline: Runner | None = None
    record: QuantizationRecord = field(default_factory=QuantizationRecord)
    pruning: PruningRecord | None = None
    stage_cache: StageCache | None = None

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Any]:
        started = time.perf_counter()
        with self.progress.stage(name, total) as advance:
            yield advance
        self.stages.append(StageTime(name, time.perf_counter() - started))

    def mark_resumed(self) -> None:
        """Of the stage that ended last."""
        self.stages[-1] = replace(self.stages[-1], resumed=True)

    @property
    def state(self) -> Path:
        """Where checkpoints of training are: they outlive a run that fails."""
        return self.out / "state"

    @property
    def cache(self) -> StageCache:
        return self.stage_cache or StageCache(self.state / "stages")

    def images_identity(self) -> dict[str, Any]:
        """Of all that decides which pixels a stage sees, whatever split and number it takes."""
        return {
            "data": self.images.fingerprint,
            "preprocess": self.preprocess.to_json(),
            "seed": self.recipe.seed,
            "skip_corrupt": self.recipe.evaluate.skip_corrupt,
        }

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.progress.note(text)
