"""Where there is no Core ML: its program, evaluated operation by operation, as MIL's documentation says.

It reads the package from disk and knows nothing of the writer. In a float16 program each operation computes
in float32 and its result is rounded to float16, the storage type; what Apple's kernels do inside an operation
is not documented.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edge_resnet.errors import VerificationError
from edge_resnet.runners.mil_program import palettes, read_package

__all__ = ["MilEvaluator"]

Values = dict[str, Any]

# So many pixels go through the program at once (64 images of CIFAR's size). Fewer are a little faster on idle
# cores, since they stay in the caches, but much slower on busy ones, where each operation waits for a thread.
_CHUNK_PIXELS = 64 * 32 * 32


class MilEvaluator:
    """Evaluates an .mlpackage on batches, though the program is for one image.

    Raises VerificationError for a damaged package or an operation that is not known here.
    """

    emulated = True

    def __init__(self, path: Path) -> None:
        self._path = path
        program = read_package(path)
        self.version = program.version
        try:
            operations = _needed(program.operations)
            self._steps = [_step(op) for op in operations]
            self._dead = _dead_after(operations)
            half = any(op.outputs[0].dtype.__name__ == "fp16" for op in operations)
        except Exception as error:  # what a damaged program lacks shows as any type
            raise self._damaged(error) from error
        self.runtime = f"MIL evaluator ({'float16' if half else 'float32'})"

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, H, W, 3] -> the output `logits`, float32 [N, ...]."""
        count = max(1, _CHUNK_PIXELS // (pixels.shape[1] * pixels.shape[2]))
        try:
            chunks = [self._run(pixels[at : at + count]) for at in range(0, max(1, len(pixels)), count)]
        except (RuntimeError, ValueError, TypeError, KeyError) as error:  # shapes that do not fit
            raise self._damaged(error) from error
        return np.concatenate(chunks)

    @torch.no_grad()
    def _run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        image = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
        values: Values = {"image": image.contiguous(memory_format=torch.channels_last)}
        for (name, function), dead in zip(self._steps, self._dead, strict=True):
            values[name] = function(values)
            for unread in dead:
                values.pop(unread, None)
        result: NDArray[np.float32] = values["logits"].numpy()
        return result

    def _damaged(self, error: Exception) -> VerificationError:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return VerificationError(f"{self._path}: the MIL evaluator cannot run it: {reason}")


def _needed(operations: list[Any]) -> list[Any]:
    """The operations up to the one that writes `logits`, without constants."""
    computing = [op for op in operations if op.op_type != "const"]
    names = [op.outputs[0].name for op in computing]
    if "logits" not in names:
        raise ValueError("it has no value `logits`")
    return computing[: names.index("logits") + 1]


def _dead_after(operations: list[Any]) -> list[list[str]]:
    """For each operation, the results that nothing reads after it."""
    last: dict[str, int] = {}
    for index, op in enumerate(operations):
        for value in op.inputs.values():
            for variable in value if isinstance(value, list | tuple) else (value,):
                if variable is not None:
                    last[variable.name] = index
    last["logits"] = len(operations)
    return [[name for name, at in last.items() if at == index] for index in range(len(operations))]


def _step(op: Any) -> tuple[str, Callable[[Values], Tensor]]:
    """The name of the operation's result, and the function that computes it from earlier ones."""
    if op.op_type not in _FUNCTIONS:
        raise ValueError(f"operation {op.op_type} ({op.name}) is not known")
    function = _FUNCTIONS[op.op_type](op)
    half = op.outputs[0].dtype.__name__ == "fp16"

    def run(values: Values) -> Tensor:
        result = function(values)
        return result.half().float() if half else result

    if op.op_type.startswith("constexpr_"):  # the same for every image
        weight = run({})
        return op.outputs[0].name, lambda values: weight
    return op.outputs[0].name, run


def _tensor(variable: Any) -> Callable[[Values], Tensor]:
    """Reads an input: a constant of the program, or an earlier result."""
    if variable.val is not None and variable.op.op_type == "const":
        constant = torch.from_numpy(np.array(variable.val))
        constant = constant.float() if constant.is_floating_point() else constant
        return lambda values: constant
    name = variable.name
    return lambda values: values[name]


def _list(variable: Any) -> list[int]:
    return [int(value) for value in np.atleast_1d(variable.val)]


def _pads(op: Any) -> tuple[int, int, int, int]:
    """(left, right, top, bottom), as torch wants them; MIL has top, bottom, left, right."""
    if str(op.pad_type.val) == "valid":
        return (0, 0, 0, 0)
    top, bottom, left, right = _list(op.pad)
    return (left, right, top, bottom)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any], Callable[[Values], Tensor]]:
    def make(op: Any) -> Callable[[Values], Tensor]:
        x, y = _tensor(op.x), _tensor(op.y)
        return lambda values: function(x(values), y(values))

    return make


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Any], Callable[[Values], Tensor]]:
    def make(op: Any) -> Callable[[Values], Tensor]:
        x = _tensor(op.x)
        return lambda values: function(x(values))

    return make


def _quantize(op: Any) -> Callable[[Values], Tensor]:
    x, scale, zero = _tensor(op.input), float(op.scale.val), _zero_point(op)
    low, high = (0, 255) if str(op.output_dtype.val) == "uint8" else (-128, 127)
    return lambda values: x(values).div(scale).round_().add_(zero).clamp_(low, high)


def _dequantize(op: Any) -> Callable[[Values], Tensor]:
    x, scale, zero = _tensor(op.input), float(op.scale.val), _zero_point(op)
    return lambda values: x(values).sub(zero).mul_(scale)


def _zero_point(op: Any) -> int:
    return 0 if op.zero_point is None else int(op.zero_point.val)


def _constexpr(op: Any) -> Callable[[Values], Tensor]:
    q, axis = np.array(op.quantized_data.val, np.float32), int(op.axis.val)
    shape = [-1 if a == axis else 1 for a in range(q.ndim)]
    scale = np.array(op.scale.val, np.float32).reshape(shape)
    zero = np.array(op.zero_point.val, np.float32).reshape(shape)
    weight = torch.from_numpy((q - zero) * scale)
    return lambda values: weight


def _lut_to_dense(op: Any) -> Callable[[Values], Tensor]:
    indices, entries = palettes(op)
    group = np.repeat(np.arange(len(entries)), len(indices) // len(entries))
    dense = entries[group.reshape(-1, *(1,) * (indices.ndim - 1)), indices]
    weight = torch.from_numpy(dense.astype(np.float32))
    return lambda values: weight


def _conv(op: Any) -> Callable[[Values], Tensor]:
    x, weight, bias = _tensor(op.x), _tensor(op.weight), _tensor(op.bias)
    stride, dilation, groups, pads = _list(op.strides), _list(op.dilations), int(op.groups.val), _pads(op)

    def run(values: Values) -> Tensor:
        padded = F.pad(x(values), pads) if any(pads) else x(values)
        return F.conv2d(padded, weight(values), bias(values), stride, 0, dilation, groups)

    return run


def _linear(op: Any) -> Callable[[Values], Tensor]:
    x, weight, bias = _tensor(op.x), _tensor(op.weight), _tensor(op.bias)
    return lambda values: F.linear(x(values), weight(values), bias(values))


def _max_pool(op: Any) -> Callable[[Values], Tensor]:
    x, kernel, stride, pads = _tensor(op.x), _list(op.kernel_sizes), _list(op.strides), _pads(op)
    return lambda values: F.max_pool2d(F.pad(x(values), pads, value=-torch.inf), kernel, stride)


def _avg_pool(op: Any) -> Callable[[Values], Tensor]:
    x, kernel, stride = _tensor(op.x), _list(op.kernel_sizes), _list(op.strides)
    if any(_pads(op)):
        raise ValueError(f"average pooling with padding ({op.name}) is not known")
    return lambda values: F.avg_pool2d(x(values), kernel, stride)


def _reduce_mean(op: Any) -> Callable[[Values], Tensor]:
    x, axes, keep = _tensor(op.x), _list(op.axes), bool(op.keep_dims.val)
    return lambda values: x(values).mean(axes, keepdim=keep)


def _pad(op: Any) -> Callable[[Values], Tensor]:
    x, amounts, fill = _tensor(op.x), _list(op.pad), float(op.constant_val.val)
    pairs = [amounts[i : i + 2] for i in range(0, len(amounts), 2)]
    reverse = [amount for pair in reversed(pairs) for amount in pair]  # torch starts at the last axis
    mode = str(op.mode.val)
    if mode == "reflect":
        return lambda values: F.pad(x(values), reverse, mode="reflect")
    if mode != "constant":
        raise ValueError(f"padding in mode {mode} ({op.name}) is not known")
    return lambda values: F.pad(x(values), reverse, value=fill)


def _clip(op: Any) -> Callable[[Values], Tensor]:
    x, low, high = _tensor(op.x), float(op.alpha.val), float(op.beta.val)
    return lambda values: x(values).clamp(low, high)


def _sigmoid_hard(op: Any) -> Callable[[Values], Tensor]:
    x, alpha, beta = _tensor(op.x), float(op.alpha.val), float(op.beta.val)
    return lambda values: x(values).mul(alpha).add_(beta).clamp_(0, 1)


def _concat(op: Any) -> Callable[[Values], Tensor]:
    parts, axis = [_tensor(variable) for variable in op.values], int(op.axis.val)
    return lambda values: torch.cat([part(values) for part in parts], axis)


def _slice_by_size(op: Any) -> Callable[[Values], Tensor]:
    x, begin, size = _tensor(op.x), _list(op.begin), _list(op.size)

    def run(values: Values) -> Tensor:
        value = x(values)
        for axis in range(1, value.dim()):  # the batch axis is the evaluator's own
            length = size[axis] if size[axis] != -1 else value.shape[axis] - begin[axis]
            value = value.narrow(axis, begin[axis], length)
        return value

    return run


def _slice_by_index(op: Any) -> Callable[[Values], Tensor]:
    """As other tools write it. The batch axis is the evaluator's own and stays whole."""
    x, begin, end = _tensor(op.x), _list(op.begin), _list(op.end)
    off = [0] * len(begin)
    from_start, to_end = (_list(mask) if mask else off for mask in (op.begin_mask, op.end_mask))
    step = _list(op.stride) if op.stride else [1] * len(begin)
    first = [None if whole else at for whole, at in zip(from_start, begin, strict=True)]
    last = [None if whole else at for whole, at in zip(to_end, end, strict=True)]
    return lambda values: x(values)[:, *map(slice, first[1:], last[1:], step[1:])]


def _reshape(op: Any) -> Callable[[Values], Tensor]:
    x, shape = _tensor(op.x), _list(op.shape)
    return lambda values: x(values).reshape(-1, *shape[1:])


_FUNCTIONS: dict[str, Callable[[Any], Callable[[Values], Tensor]]] = {
    "add": _binary(torch.add),
    "sub": _binary(torch.sub),
    "mul": _binary(torch.mul),
    "real_div": _binary(torch.div),
    "cast": _unary(lambda x: x),  # the result's type does the rounding
    "identity": _unary(lambda x: x),
    "relu": _unary(torch.relu),
    "sigmoid": _unary(torch.sigmoid),
    "silu": _unary(F.silu),  # coremltools writes x * sigmoid(x) so
    "sigmoid_hard": _sigmoid_hard,
    "clip": _clip,
    "concat": _concat,
    "slice_by_size": _slice_by_size,
    "slice_by_index": _slice_by_index,
    "reshape": _reshape,
    "flatten2d": _unary(lambda x: x.flatten(1)),
    "quantize": _quantize,
    "dequantize": _dequantize,
    "constexpr_affine_dequantize": _constexpr,
    "constexpr_lut_to_dense": _lut_to_dense,
    "conv": _conv,
    "linear": _linear,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "reduce_mean": _reduce_mean,
    "pad": _pad,
}
