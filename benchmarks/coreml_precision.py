"""What Core ML's float types do to an int8 program, on the MIL evaluator (emulated; not a Mac).

python -m benchmarks.coreml_precision
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks import record
from benchmarks.models import SEED, cifar, floating, integers, pixels_of
from edge_resnet.export.coreml import Precision, write_coreml
from edge_resnet.graph.reference import ReferenceExecutor, dequantize
from edge_resnet.runners.mil_evaluator import MilEvaluator
from edge_resnet.verify.parity import ParityTally
from edge_resnet.verify.ranges import compare_ranges
from edge_resnet.verify.readback_coreml import read_coreml

IMAGES = 2_000


def main() -> None:
    data = record.real_data()
    train, test = cifar(data)
    rows: dict[str, Any] = {}
    for name in ("resnet20", "resnet56"):
        graph, preprocess = floating(name, data / f"{name}-cifar10.pt")
        quantized = integers(graph, pixels_of(train, preprocess, 512)[0])
        pixels, labels = pixels_of(test, preprocess, IMAGES)
        output = quantized.output.quant
        assert output is not None
        expected = dequantize(ReferenceExecutor(quantized).run(pixels), output)
        rows[name] = {"reference top1": float((expected.argmax(1) == labels).mean())}
        for precision in get_args(Precision):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "m.mlpackage"
                write_coreml(quantized, path, precision=precision, labels=[str(i) for i in range(10)])
                ranges = compare_ranges(quantized, read_coreml(path))
                evaluator = MilEvaluator(path)
                got = np.concatenate([evaluator.logits(batch) for batch in np.array_split(pixels, 20)])
            tally = ParityTally("reference", output.scale, to_the_bit=False)
            tally.update(expected, got)
            rows[name][precision] = {
                "ranges": f"{ranges.equal} of {ranges.checked}",
                "identical": tally.identical,
                "top1_agreement": tally.top1_agreement,
                "max_lsb": tally.max_lsb,
                "mean_lsb": round(tally.mean_lsb or 0.0, 4),
                "top1": float((got.argmax(1) == labels).mean()),
            }
    record.save("coreml_precision", {"seed": SEED, "images": IMAGES, "kind": "emulated", "models": rows})


if __name__ == "__main__":
    main()
