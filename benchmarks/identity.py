"""Are logits the same to the bit, on ONNX Runtime, LiteRT/XNNPACK and the integer reference?

ResNet-20 on all 10,000 test images, ResNet-56 on 2,000, and torchvision's ResNets with random weights at
224x224 on 20 images each. Where they part, the node is named. Also counts what each runtime left unfused, and
compares the float artifacts' top-1 with torch.

    python -m benchmarks.identity
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema

from benchmarks import record
from benchmarks.models import SEED, blurred_noise, cifar, floating, integers, pixels_of
from edge_resnet.frontends.sources import open_model
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import fold_normalization_std
from edge_resnet.graph.reference import ReferenceExecutor, dequantize
from edge_resnet.recipe import Export
from edge_resnet.runners.base import Runner
from edge_resnet.runners.onnxruntime import OnnxRuntimeRunner
from edge_resnet.targets import TARGETS
from edge_resnet.verify.locate import first_difference
from edge_resnet.verify.parity import ParityTally

TORCHVISION = ("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2")


def main() -> None:
    data = record.real_data()
    train, test = cifar(data)
    rows: dict[str, Any] = {}
    for name, count in (("resnet20", 10_000), ("resnet56", 2_000)):
        weights = data / f"{name}-cifar10.pt"
        graph, preprocess = floating(name, weights)
        quantized = integers(graph, pixels_of(train, preprocess, 512)[0])
        pixels, labels = pixels_of(test, preprocess, count)
        baseline = open_model(name, weights, None, SEED).runner(preprocess)
        rows[name] = _compare(graph, quantized, baseline, pixels, labels)
    for name in TORCHVISION:
        graph, preprocess = floating(f"torchvision:{name}")
        pixels = blurred_noise(20, 224)
        baseline = open_model(f"torchvision:{name}", None, None, SEED).runner(preprocess)
        rows[name] = _compare(graph, integers(graph, pixels), baseline, pixels, None)
    record.save("identity", {"seed": SEED, "models": rows})


def _compare(
    graph: Graph,
    quantized: Graph,
    baseline: Runner,
    pixels: np.ndarray,
    labels: np.ndarray | None,
) -> dict[str, Any]:
    print(f"{graph.name}: {len(pixels)} images", file=sys.stderr)
    output = quantized.output.quant
    assert output is not None
    reference = ReferenceExecutor(quantized)
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            name: TARGETS[name].path(Path(folder), graph.name) for name in TARGETS if "coreml" not in name
        }
        for name, path in paths.items():
            written = quantized if TARGETS[name].quantized else fold_normalization_std(graph)
            TARGETS[name].write(written, path, Export())
        runners = {name: TARGETS[name].open(path) for name, path in paths.items()}
        answers: dict[str, list[np.ndarray]] = {name: [] for name in (*runners, "reference", "torch")}
        for batch in np.array_split(pixels, -(-len(pixels) // 100)):
            answers["reference"].append(dequantize(reference.run(batch), output))
            answers["torch"].append(baseline.logits(batch))
            for name, runner in runners.items():
                answers[name].append(runner.logits(batch))
        logits = {name: np.concatenate(parts) for name, parts in answers.items()}
        row: dict[str, Any] = {"images": len(pixels)}
        pairs = (("onnx-int8", "tflite-int8"), ("onnx-int8", "reference"), ("tflite-int8", "reference"))
        for first, second in pairs:
            row[f"{first} = {second}"] = int((logits[first] == logits[second]).all(1).sum())
        for target in ("onnx-int8", "tflite-int8"):
            if row[f"{target} = reference"] < len(pixels):
                row[f"{target} parts at"] = first_difference(quantized, TARGETS[target], pixels[:20])
        for target in ("onnx-fp32", "tflite-fp32"):
            tally = ParityTally("torch", None)
            tally.update(logits["torch"], logits[target])
            row[f"{target} top-1 as torch"] = tally.agreeing_images
        if labels is not None:
            row["top1"] = {
                name: float((values.argmax(1) == labels).mean()) for name, values in logits.items()
            }
        row["onnx runtime operators"] = _onnx_operators(paths["onnx-int8"], Path(folder))
        row["tflite operators"] = _tflite_operators(paths["tflite-int8"])
    return row


def _onnx_operators(path: Path, folder: Path) -> dict[str, int]:
    """What ONNX Runtime runs, after its own optimizations."""
    optimized = folder / "optimized.onnx"
    OnnxRuntimeRunner(path, optimized=optimized)
    return dict(Counter(node.op_type for node in onnx.load(str(optimized)).graph.node))


def _tflite_operators(path: Path) -> dict[str, int]:
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    codes = [names[code.builtinCode] for code in model.operatorCodes]
    return dict(Counter(codes[op.opcodeIndex] for op in model.subgraphs[0].operators))


if __name__ == "__main__":
    main()
