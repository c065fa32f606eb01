"""What a file is, whoever wrote it: bytes, operators, and its answers to images."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.runtimes import RUNTIMES
from edge_resnet.files import size_of
from edge_resnet.runners.litert import quiet_standard_error
from edge_resnet.runners.mil_evaluator import MilEvaluator
from edge_resnet.runners.mil_program import read_package
from edge_resnet.runners.onnxruntime import OnnxRuntimeRunner

__all__ = ["answers", "facts", "operators"]

_RUNTIME_OF = {".tflite": "litert", ".onnx": "onnxruntime"}


def facts(path: Path) -> dict[str, Any]:
    """`operators`: what is computed for an image: a file's own for TFLite; for ONNX those that ONNX Runtime
    makes of it; for Core ML without constants. `transposes` among them, and `requantizing`: those that do
    nothing but change the number format.
    """
    found = operators(path)
    changes = (
        "QUANTIZE",
        "DEQUANTIZE",
        "QuantizeLinear",
        "DequantizeLinear",
        "quantize",
        "dequantize",
        "cast",
    )
    return {
        "bytes": size_of(path),
        "operators": sum(found.values()),
        "transposes": sum(found[name] for name in ("TRANSPOSE", "Transpose", "transpose")),
        "requantizing": sum(found[name] for name in changes),
        "operator_kinds": dict(found.most_common()),
    }


def operators(path: Path) -> Counter[str]:
    if path.suffix == ".tflite":
        return _tflite(path)
    if path.suffix == ".onnx":
        return _onnx(path)
    computing = (op.op_type for op in read_package(path).operations if op.op_type != "const")
    return Counter(kind for kind in computing if not kind.startswith("constexpr_"))


def _tflite(path: Path) -> Counter[str]:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if name[0] != "_"}
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    return Counter(names[codes[op.opcodeIndex]] for op in model.subgraphs[0].operators)


def _onnx(path: Path) -> Counter[str]:
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        OnnxRuntimeRunner(path, 1, optimized)
        return Counter(node.op_type for node in onnx.load(str(optimized)).graph.node)


def answers(path: Path, images: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Logits [N, classes] of normalized images [N, 3, H, W], or of the raw ones [N, H, W, 3], whichever it
    takes. Core ML's program is evaluated by this project's MIL evaluator, on raw ones.
    """
    if path.suffix not in _RUNTIME_OF:
        return MilEvaluator(path).logits(pixels)
    with quiet_standard_error():
        opened = RUNTIMES[_RUNTIME_OF[path.suffix]](path)
    prepared = (opened.prepare(images[at : at + 1], pixels[at : at + 1]) for at in range(len(images)))
    return np.concatenate([np.array(opened.run(image)) for image in prepared])
