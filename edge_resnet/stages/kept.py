"""Stages and steps of quantization that are not run again where an earlier run made the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_resnet.graph.graph import Graph
from edge_resnet.progress import Advance
from edge_resnet.run import Run
from edge_resnet.stage_cache import StageOutput, stage_key

if TYPE_CHECKING:
    from edge_resnet.stages.step_meter import StepMeter

__all__ = ["Made", "Step", "kept_stage", "kept_step"]

# Graphs by their role, and what the user should know of how they came about.
Made = tuple[Mapping[str, Graph], Sequence[str]]


@dataclass(frozen=True)
class Step:
    """A step of quantization: its name in the report, the stage's title and size, what it does."""

    name: str
    title: str
    total: int | None
    detail: str = ""


def kept_stage(
    run: Run, kind: str, key: str, title: str, total: int | None, make: Callable[[Advance], StageOutput]
) -> StageOutput:
    """What `make` makes, or made in an earlier run: then the stage, `title`, is marked as resumed.

    `kind`: under which the cache keeps it, by `key`, a `stage_key` of all that decides the output. `total`:
    what the numbers given to advance add up to. Raises InputError where it cannot be kept.
    """
    kept = run.cache.get(kind, key)
    with run.stage(title, total) as advance:
        if kept is None:
            output = make(advance)
            run.cache.put(kind, key, output)
            # Read back: arrays in another memory layout could let later stages round another way than in a
            # run that begins with the files.
            return run.cache.get(kind, key) or output
    run.mark_resumed()
    return kept


def kept_step(
    run: Run, meter: StepMeter, step: Step, make: Callable[[Advance], Made], **decides: Any
) -> Mapping[str, Graph]:
    """The graphs of a step that works on the calibration images, one of them "quantized"; it is measured.

    `decides`: what decides the graphs besides these images, as `stage_key` takes it.
    """

    def timed(advance: Advance) -> StageOutput:
        started = time.perf_counter()
        graphs, notes = make(advance)
        return StageOutput(graphs, {"seconds": time.perf_counter() - started, "notes": list(notes)})

    calibration = run.recipe.calibration.model_dump(mode="json")
    key = stage_key(calibration=calibration, **decides, **run.images_identity())
    output = kept_stage(run, step.name.replace(" ", "-"), key, step.title, step.total, timed)
    for note in output.record["notes"]:
        if note not in run.notes:
            run.note(note)
    meter.add(step.name, output.record["seconds"], output.graphs["quantized"], step.detail)
    return output.graphs
