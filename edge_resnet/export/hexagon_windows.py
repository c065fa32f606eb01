"""Depthwise convolutions in a form that Qualcomm's compiler translates rightly.

QNN 2.7.0 computes a depthwise convolution of 2x2 with stride 2, which is what an average over 2x2 is written
as, wrongly for Hexagon v73 and newer (zeros, in its own emulator); v68 and v69 are right, and so is 3x3. The
same sums as a window of 3x3: a row and a column of zero weights more, below and to the right, and as much
padding there.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["widen_windows"]

_NARROW, _STRIDES = [2, 2], [2, 2]


def widen_windows(content: bytes) -> bytes:
    """An ONNX file, and the same function in an ONNX file without such convolutions.

    Only weights that lie behind a DequantizeLinear of their own are known here, as this program writes them.
    """
    model = onnx.load_from_string(content)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type != "Conv" or node.input[1] not in made_by:
            continue
        weights = constants[made_by[node.input[1]].input[0]]
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if (
            list(weights.dims[1:]) == [1, *_NARROW]
            and attributes["group"].i == weights.dims[0] > 1
            and list(attributes["strides"].ints) == _STRIDES
            and not any(attributes["pads"].ints)
        ):
            wide = np.pad(numpy_helper.to_array(weights), ((0, 0), (0, 0), (0, 1), (0, 1)))
            weights.CopyFrom(numpy_helper.from_array(wide, weights.name))
            attributes["kernel_shape"].ints[:] = [3, 3]
            attributes["pads"].ints[:] = [0, 0, 1, 1]  # top, left, bottom, right
    widened: bytes = model.SerializeToString(deterministic=True)
    return widened
