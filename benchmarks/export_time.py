"""How long writing one artifact takes, apart from everything else; formats in turn.

python -m benchmarks.export_time
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.models import SEED, blurred_noise, floating, integers
from edge_resnet.graph.passes import fold_normalization_std
from edge_resnet.recipe import Export
from edge_resnet.targets import TARGETS

ROUNDS = 7


def main() -> None:
    rows: dict[str, Any] = {}
    for name in ("resnet20", "torchvision:resnet50"):
        graph, preprocess = floating(name)
        quantized = integers(graph, blurred_noise(8, preprocess.size[0]))
        floats = fold_normalization_std(graph)
        with tempfile.TemporaryDirectory() as folder:
            writers = {
                name: partial(
                    target.write,
                    quantized if target.quantized else floats,
                    target.path(Path(folder), "m"),
                    Export(),
                )
                for name, target in TARGETS.items()
            }
            rows[graph.name] = record.in_turns(writers, ROUNDS)
    record.save("export_time", {"seed": SEED, "unit": "seconds", "models": rows})


if __name__ == "__main__":
    main()
