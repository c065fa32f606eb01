"""How long writing one artifact takes, apart from everything else; formats in turn.

python -m benchmarks.export_time
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.models import SEED, blurred_noise, floating, integers
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import fold_normalization_std
from edge_resnet.recipe import Export
from edge_resnet.targets import TARGETS

ROUNDS = 7


def main() -> None:
    rows: dict[str, Any] = {}
    for name in ("resnet20", "torchvision:resnet50"):
        graph, preprocess = floating(name)
        quantized = integers(graph, blurred_noise(8, preprocess.size[0]))
        with tempfile.TemporaryDirectory() as folder:
            timers = {
                target: _timer(target, quantized, fold_normalization_std(graph), Path(folder))
                for target in TARGETS
            }
            rows[graph.name] = record.interleaved(timers, ROUNDS)
    record.save("export_time", {"seed": SEED, "unit": "seconds", "models": rows})


def _timer(name: str, quantized: Graph, graph: Graph, folder: Path) -> Callable[[], float]:
    target = TARGETS[name]
    written = quantized if target.quantized else graph

    def once() -> float:
        begun = time.perf_counter()
        target.write(written, target.path(folder, "m"), Export())
        return time.perf_counter() - begun

    return once


if __name__ == "__main__":
    main()
