"""Constants of an ONNX graph: initializers, Constant nodes, and what is computed from them alone.

Shapes are constants here too, since the image has one size: the chains of Shape, Gather and Concat that
exporters write in front of a Reshape are evaluated, by the onnx package's reference implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from edge_resnet.errors import GraphError

__all__ = ["FOLDED", "evaluate"]

Array = NDArray[Any]

FOLDED = {
    *("Constant", "ConstantOfShape", "Identity", "Cast", "Shape", "Size", "Gather", "Concat", "Slice"),
    *("Squeeze", "Unsqueeze", "Reshape", "Transpose", "Flatten", "Expand", "Tile", "Range", "Split"),
    *("Add", "Sub", "Mul", "Div", "Neg", "Sqrt", "Reciprocal", "Pow", "Abs", "Exp", "Floor", "Ceil"),
    *("Min", "Max", "Equal", "Where", "Not", "And", "Or", "Less", "Greater", "Mod", "Clip"),
    *("ReduceProd", "ReduceSum", "ReduceMean", "QuantizeLinear", "CastLike"),
}
_LARGEST = 2**27  # elements; the largest classifier of a ResNet has a fiftieth of them


def evaluate(node: onnx.NodeProto, inputs: Sequence[Array | None], opset: int) -> list[Array]:
    """The node's outputs. Raises GraphError where it cannot be computed or would be huge."""
    _check_size(node, inputs)
    names = [name for name, value in zip(node.input, inputs, strict=True) if value is not None]
    values = [value for value in inputs if value is not None]
    graph = helper.make_graph(
        [node],
        "constant",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in dict(zip(names, values, strict=True)).items()
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model).run(None, dict(zip(names, values, strict=True)))
    except Exception as error:  # the reference raises whatever numpy does
        reason = next(iter(str(error).splitlines()), "")
        raise GraphError(f"it cannot be computed: {type(error).__name__}: {reason}") from error
    return [np.asarray(result) for result in results]


def _check_size(node: onnx.NodeProto, inputs: Sequence[Array | None]) -> None:
    """A hostile file may ask for terabytes in a few bytes."""
    given = [value for value in inputs if value is not None]
    size = max((value.size for value in given), default=0)
    kind = node.op_type
    with np.errstate(all="ignore"):
        if kind in ("ConstantOfShape", "Expand") and given:
            size = max(size, _product(given[-1]))
            if kind == "Expand":
                size = max(size, _broadcast(given[0].shape, given[-1]))
        elif kind == "Tile" and len(given) == 2:
            size = given[0].size * _product(given[1])
        elif kind == "Range" and len(given) == 3 and all(value.size == 1 for value in given):
            start, stop, step = (float(value.reshape(())) for value in given)
            size = int(min(abs((stop - start) / step), 1e18)) if step else 0
        elif kind == "Gather" and len(given) == 2:
            size = given[0].size * max(1, given[1].size)
        elif kind == "Concat":
            size = sum(value.size for value in given)
        elif kind not in ("Reshape", "Slice") and len(given) > 1:
            size = max(size, _elementwise(given))
    if size > _LARGEST:
        raise GraphError(f"a constant of {size:,} elements")


def _product(shape: Array) -> int:
    result = 1
    for number in np.asarray(shape).reshape(-1)[:64].tolist():
        result *= max(1, abs(int(number)))
    return result


def _broadcast(shape: tuple[int, ...], other: Array) -> int:
    sizes = [abs(int(number)) for number in np.asarray(other).reshape(-1)[:64].tolist()]
    return _product(np.array(shape, object)) * _product(np.array(sizes, object))


def _elementwise(arrays: Sequence[Array]) -> int:
    """The size of what the arrays broadcast to."""
    try:
        return _product(np.array(np.broadcast_shapes(*(array.shape for array in arrays)), object))
    except ValueError:
        return 0
