"""What layers in float mean for NPUs, runtime by runtime.

Sources:

  Ethos-U    activations and weights must be quantized; what is not runs on the CPU
             (https://arm-software.github.io/CMSIS-Ethos-U/main/vela/index.html)
  Hexagon    the TFLite delegate takes quantized operators only
             (https://github.com/tensorflow/tensorflow/tree/master/tensorflow/lite/delegates/hexagon);
             Qualcomm's own runtime runs INT4, INT8, INT16 and FP16 on the tensor processor
             (https://docs.qualcomm.com/doc/80-63195-1/topic/AI-hardware-cores-accelerators.html), FP16 not
             on every chip
  Apple      float32 operations do not run on the Neural Engine, float16 ones do
             (https://apple.github.io/coremltools/docs-guides/source/typed-execution.html); int8 times int8 is
             computed as such from iPhone 15 Pro onwards
             (https://apple.github.io/coremltools/docs-guides/source/opt-quantization-api.html)
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.mixed_executor import float_layers

__all__ = ["integer_segments", "npu_notes"]


def npu_notes(mixed: Graph, targets: Sequence[str]) -> list[str]:
    """One line for each of the targets (by name) whose NPU execution suffers; none for integers alone."""
    kept = len(float_layers(mixed))
    if not kept:
        return []
    layers = f"{kept} layer{'s' if kept > 1 else ''} in float"
    pieces = integer_segments(mixed)
    split = f"the integers between them are {pieces} separate part{'s' if pieces != 1 else ''}"
    notes = {
        "tflite-int8": (
            f"tflite-int8: {layers} run on the CPU beside NPUs that have integers only (Ethos-U, the Hexagon "
            f"delegate); {split}, and each change between CPU and NPU costs time. "
            "Delegates with float16 (QNN, NNAPI drivers) may keep them, slower than int8"
        ),
        "onnx-int8": (
            f"onnx-int8: {layers} run in float16 on Hexagon (QNN provider) where the chip has it, slower "
            f"than int8, and on the CPU where it has not; then {split}"
        ),
        "coreml-int8": (
            f"coreml-int8: {layers} stay on the Neural Engine, in float16, if export.coreml_precision is "
            "float16; a float32 program does not run there, with or without them"
        ),
    }
    return [notes[name] for name in dict.fromkeys(targets) if name in notes]


def integer_segments(graph: Graph) -> int:
    """In how many parts a delegate that takes integer nodes only would run the graph.

    The parts are those of TFLite's partitioning (tensorflow/lite/graph_info.cc): as many nodes of one kind as
    can run, then as many of the other, in turn.
    """
    done = {graph.input.name}
    waiting = list(graph.nodes[1:])
    segments, integers = 0, True
    while waiting:
        left = []
        for node in waiting:
            if graph.computes_in_integers(node) == integers and done.issuperset(node.inputs):
                done.add(node.name)
            else:
                left.append(node)
        if integers and len(left) < len(waiting):
            segments += 1
        waiting, integers = left, not integers
    return segments
