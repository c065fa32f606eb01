"""Any nn.Module of the family -> Graph, through torch.export.

One code path and no table of models: an importer function for each aten operator of the family. What the
exported program holds beyond them is refused by operator, module and source line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge_resnet.errors import GraphError, InputError, UnsupportedOperatorError
from edge_resnet.graph import nodes as g
from edge_resnet.graph.graph import Graph

__all__ = ["graph_from_module"]

FxNode = torch.fx.Node


def graph_from_module(
    module: nn.Module,
    name: str,
    input_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    labels: Sequence[str] = (),
) -> Graph:
    """Trace `module` at evaluation and describe it, with its normalization in front.

    The module takes normalized images [N, 3, H, W], (RGB / 255 - mean) / std; the graph takes the raw image.
    Raises UnsupportedOperatorError for an operator that the graph lacks, InputError when tracing fails.
    """
    module = module.eval()
    example = torch.zeros(1, len(mean), *input_size)
    try:
        program = torch.export.export(module, (example,))
    except Exception as error:  # torch.export raises many types; the first line says what the model did
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{name}: torch.export cannot trace the model at input {list(example.shape)}: {reason}"
        ) from error
    return _Importer(program, name, mean, std, tuple(labels)).graph()


class _Importer:
    """Walks an exported program and collects graph nodes. `made` maps an fx node to the node it became."""

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        name: str,
        mean: Sequence[float],
        std: Sequence[float],
        labels: tuple[str, ...],
    ) -> None:
        self.program = program
        self.name = name
        self.labels = labels
        self.nodes: list[g.Node] = []
        self.made: dict[FxNode, str] = {}
        self.used_names: set[str] = set()
        self.parameters = _placeholder_tensors(program)
        self.mean = np.asarray(mean, np.float32) * np.float32(255)
        self.std = np.asarray(std, np.float32) * np.float32(255)

    def graph(self) -> Graph:
        for fx in self.program.graph.nodes:
            if fx.op == "placeholder":
                if fx.name not in self.parameters:
                    self._import_input(fx)
            elif fx.op == "call_function":
                self._import_call(fx)
            elif fx.op == "output":
                self._check_outputs(fx)
            else:
                raise self._unsupported(fx, f"{fx.op} {fx.target}")
        return _trimmed(self.name, self.nodes, self.labels)

    def _import_input(self, fx: FxNode) -> None:
        if self.nodes:
            raise InputError(f"{self.name}: the model has more than one input; an image classifier has one")
        shape = tuple(int(size) for size in fx.meta["val"].shape[1:])
        self.nodes.append(g.Input(name="image", shape=shape))
        self.nodes.append(g.Normalize(name="normalize", inputs=("image",), mean=self.mean, std=self.std))
        self.used_names |= {"image", "normalize"}
        self.made[fx] = "normalize"

    def _import_call(self, fx: FxNode) -> None:
        importer = _IMPORTERS.get(str(fx.target))
        if importer is None:
            raise self._unsupported(fx, str(fx.target))
        try:
            importer(self, fx)
        except GraphError as error:
            raise self._unsupported(fx, f"{fx.target}: {error}") from None

    def _check_outputs(self, fx: FxNode) -> None:
        outputs = fx.args[0]
        if not isinstance(outputs, tuple) or len(outputs) != 1:
            raise InputError(f"{self.name}: the model has several outputs; an image classifier has one")
        # Identities (dropout, a second flatten) may have been skipped at the end.
        output = self.made[outputs[0]]  # type: ignore[index]
        while self.nodes and self.nodes[-1].name != output:
            self.nodes.pop()

    def _unsupported(self, fx: FxNode, what: str) -> UnsupportedOperatorError:
        stack = fx.meta.get("nn_module_stack") or {}
        path = [entry[0] for entry in stack.values() if entry[0]]
        trace = [line.strip() for line in str(fx.meta.get("stack_trace") or "").splitlines() if line.strip()]
        source = next((line for line in reversed(trace) if line.startswith("File ")), "")
        code = trace[-1] if trace and not trace[-1].startswith("File ") else ""
        where = f"in module {path[-1]!r}" if path else "in the model's forward"
        at = f", {source}: {code}" if source else ""
        return UnsupportedOperatorError(f"{self.name}: operator {what} {where} is not supported{at}")

    # What importers use.

    def source(self, fx: FxNode, index: int = 0) -> str:
        argument = fx.args[index]
        if not isinstance(argument, FxNode) or argument not in self.made:
            raise GraphError(f"argument {index} is not a tensor that the image flows through")
        return self.made[argument]

    def tensor(
        self, fx: FxNode, index: int, default: float | None = None, size: int = 0
    ) -> NDArray[np.float32]:
        argument = fx.args[index] if index < len(fx.args) else None
        if argument is None and default is not None:
            return np.full(size, default, np.float32)
        if not isinstance(argument, FxNode) or argument.name not in self.parameters:
            raise GraphError(f"argument {index} is not a parameter of the model")
        value: NDArray[np.float32] = self.parameters[argument.name].detach().float().numpy()
        return value

    def add(self, fx: FxNode, make: Callable[[str], g.Node]) -> None:
        name = self._node_name(fx)
        self.nodes.append(make(name))
        self.made[fx] = name

    def skip(self, fx: FxNode) -> None:
        """The operator does nothing at inference."""
        self.made[fx] = self.source(fx)

    def shape(self, fx: FxNode) -> tuple[int, ...]:
        return tuple(int(size) for size in fx.meta["val"].shape[1:])

    def _node_name(self, fx: FxNode) -> str:
        """The module's path where a module computes this node, else its parent's path and the operator."""
        operator = str(fx.target).split(".")[1].rstrip("_")
        stack = fx.meta.get("nn_module_stack") or {}
        entries = [entry for entry in stack.values() if entry[0]]
        path, kind = (entries[-1][0], str(entries[-1][1]).rsplit(".", 1)[-1]) if entries else ("", "")
        leaf = kind in _LEAF_MODULES
        base = path if leaf else ".".join(part for part in (path, operator) if part)
        name, number = base, 1
        while name in self.used_names:
            number += 1
            name = f"{base}_{number}"
        self.used_names.add(name)
        return name


# Modules that compute exactly one operator: the node takes their path as its name.
_LEAF_MODULES = {
    "Conv2d",
    "BatchNorm2d",
    "Linear",
    "ReLU",
    "MaxPool2d",
    "AvgPool2d",
    "AdaptiveAvgPool2d",
    "ZeroPad2d",
    "Flatten",
}


def _argument(fx: FxNode, index: int, default: Any) -> Any:
    return fx.args[index] if index < len(fx.args) else default


def _pair(value: Any) -> tuple[int, int]:
    values = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) == 1:
        values *= 2
    return int(values[0]), int(values[1])


def _conv(importer: _Importer, fx: FxNode) -> None:
    source, weight = importer.source(fx), importer.tensor(fx, 1)
    bias = importer.tensor(fx, 2, default=0.0, size=len(weight))
    stride, dilation = _pair(_argument(fx, 3, 1)), _pair(_argument(fx, 5, 1))
    padding = _argument(fx, 4, 0)
    if isinstance(padding, str):
        padding = _named_padding(padding, weight.shape[2:], dilation)
    else:
        padding = g.Padding.symmetric(*_pair(padding))
    importer.add(
        fx,
        lambda name: g.Conv(
            name=name,
            inputs=(source,),
            weights=g.FloatWeights(weight, bias),
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=int(_argument(fx, 6, 1)),
        ),
    )


def _named_padding(name: str, kernel: tuple[int, ...], dilation: tuple[int, int]) -> g.Padding:
    if name == "valid":
        return g.Padding()
    rows, columns = ((k - 1) * d for k, d in zip(kernel, dilation, strict=True))
    return g.Padding(rows // 2, columns // 2, rows - rows // 2, columns - columns // 2)


def _batch_norm(importer: _Importer, fx: FxNode) -> None:
    source = importer.source(fx)
    if _argument(fx, 5, False):
        raise GraphError("batch normalization in training mode")
    mean, variance = importer.tensor(fx, 3), importer.tensor(fx, 4)
    gamma = importer.tensor(fx, 1, default=1.0, size=len(mean)).astype(np.float64)
    beta = importer.tensor(fx, 2, default=0.0, size=len(mean)).astype(np.float64)
    scale = gamma / np.sqrt(variance.astype(np.float64) + float(_argument(fx, 7, 1e-5)))
    shift = beta - mean * scale
    importer.add(
        fx,
        lambda name: g.BatchNorm(
            name=name, inputs=(source,), scale=scale.astype(np.float32), shift=shift.astype(np.float32)
        ),
    )


def _relu(importer: _Importer, fx: FxNode) -> None:
    source = importer.source(fx)
    importer.add(fx, lambda name: g.Relu(name=name, inputs=(source,)))


def _add(importer: _Importer, fx: FxNode) -> None:
    if fx.kwargs.get("alpha", 1) != 1:
        raise GraphError("a sum with alpha other than 1")
    sources = (importer.source(fx, 0), importer.source(fx, 1))
    importer.add(fx, lambda name: g.Add(name=name, inputs=sources))


def _max_pool(importer: _Importer, fx: FxNode) -> None:
    source, kernel = importer.source(fx), _pair(fx.args[1])
    if _pair(_argument(fx, 4, 1)) != (1, 1):
        raise GraphError("max pooling with dilation")
    stride = _pair(_argument(fx, 2, None) or kernel)
    padding = g.Padding.symmetric(*_pair(_argument(fx, 3, 0)))
    if _argument(fx, 5, False):
        padding = padding + _ceil_padding(importer, fx, kernel, stride, padding)
    importer.add(
        fx,
        lambda name: g.MaxPool(name=name, inputs=(source,), kernel=kernel, stride=stride, padding=padding),
    )


def _ceil_padding(
    importer: _Importer, fx: FxNode, kernel: tuple[int, int], stride: tuple[int, int], padding: g.Padding
) -> g.Padding:
    """The extra rows and columns at the end that ceil_mode makes room for."""
    source = fx.args[0]
    assert isinstance(source, FxNode)
    (_, height, width), (_, rows, columns) = importer.shape(source), importer.shape(fx)
    need = ((rows - 1) * stride[0] + kernel[0], (columns - 1) * stride[1] + kernel[1])
    have = (height + padding.top + padding.bottom, width + padding.left + padding.right)
    return g.Padding(bottom=max(0, need[0] - have[0]), right=max(0, need[1] - have[1]))


def _avg_pool(importer: _Importer, fx: FxNode) -> None:
    source, kernel = importer.source(fx), _pair(fx.args[1])
    stride = _pair(_argument(fx, 2, None) or kernel)
    padding = _pair(_argument(fx, 3, 0))
    argument = fx.args[0]
    assert isinstance(argument, FxNode)
    height, width = importer.shape(argument)[1:]
    ragged = (height - kernel[0]) % stride[0] or (width - kernel[1]) % stride[1]
    if padding != (0, 0) or (_argument(fx, 4, False) and ragged) or _argument(fx, 6, None) is not None:
        raise GraphError("average pooling with padding, ragged ceil_mode or divisor_override")
    if kernel == (height, width):
        importer.add(fx, lambda name: g.GlobalAvgPool(name=name, inputs=(source,)))
    else:
        importer.add(fx, lambda name: g.AvgPool(name=name, inputs=(source,), kernel=kernel, stride=stride))


def _adaptive_avg_pool(importer: _Importer, fx: FxNode) -> None:
    source, size = importer.source(fx), _pair(fx.args[1])
    argument = fx.args[0]
    assert isinstance(argument, FxNode)
    height, width = importer.shape(argument)[1:]
    if size == (1, 1):
        importer.add(fx, lambda name: g.GlobalAvgPool(name=name, inputs=(source,)))
    elif size == (height, width):
        importer.skip(fx)
    elif height % size[0] == 0 and width % size[1] == 0:
        kernel = (height // size[0], width // size[1])
        importer.add(fx, lambda name: g.AvgPool(name=name, inputs=(source,), kernel=kernel, stride=kernel))
    else:
        raise GraphError(f"adaptive average pooling from {height}x{width} to {size[0]}x{size[1]}")


def _mean(importer: _Importer, fx: FxNode) -> None:
    """x.mean((2, 3)): global average pooling, with or without the two axes kept."""
    source, argument = importer.source(fx), fx.args[0]
    assert isinstance(argument, FxNode)
    rank = len(importer.shape(argument)) + 1
    axes = {axis % rank for axis in _argument(fx, 1, ()) or ()}
    if rank != 4 or axes != {2, 3}:
        raise GraphError("a mean over other axes than height and width")
    importer.add(fx, lambda name: g.GlobalAvgPool(name=name, inputs=(source,)))
    if not _argument(fx, 2, False):
        pooled = importer.made[fx]
        importer.add(fx, lambda name: g.Flatten(name=name, inputs=(pooled,)))


def _flatten(importer: _Importer, fx: FxNode) -> None:
    source, argument = importer.source(fx), fx.args[0]
    assert isinstance(argument, FxNode)
    before, after = importer.shape(argument), importer.shape(fx)
    if before == after:
        importer.skip(fx)
    elif len(after) == 1 and len(before) == 3:
        importer.add(fx, lambda name: g.Flatten(name=name, inputs=(source,)))
    else:
        raise GraphError(f"a reshape from {before} to {after}")


def _linear(importer: _Importer, fx: FxNode) -> None:
    source, weight = importer.source(fx), importer.tensor(fx, 1)
    bias = importer.tensor(fx, 2, default=0.0, size=len(weight))
    importer.add(fx, lambda name: g.Linear(name=name, inputs=(source,), weights=g.FloatWeights(weight, bias)))


def _pad(importer: _Importer, fx: FxNode) -> None:
    source = importer.source(fx)
    amounts = [int(value) for value in fx.args[1]]  # type: ignore[union-attr,arg-type]
    mode, value = _argument(fx, 2, "constant"), _argument(fx, 3, None)
    if mode != "constant" or value not in (None, 0, 0.0):
        raise GraphError(f"padding in mode {mode!r} with value {value}")
    left, right, top, bottom, before, after = (amounts + [0] * 6)[:6]
    if any(amounts[6:]) or min(amounts) < 0:
        raise GraphError(f"padding by {amounts}")
    if before or after:
        importer.add(fx, lambda name: g.PadChannels(name=name, inputs=(source,), before=before, after=after))
        source = importer.made[fx]
    if any((left, right, top, bottom)):
        padding = g.Padding(top, left, bottom, right)
        importer.add(fx, lambda name: g.Pad(name=name, inputs=(source,), padding=padding))
    importer.made[fx] = importer.nodes[-1].name if any(amounts) else source


def _slice(importer: _Importer, fx: FxNode) -> None:
    """x[:, :, ::s, ::s] comes as one slice an axis; each that takes everything is skipped."""
    source, argument = importer.source(fx), fx.args[0]
    assert isinstance(argument, FxNode)
    axis, start, end, step = (_argument(fx, i, d) for i, d in ((1, 0), (2, None), (3, None), (4, 1)))
    size = int(argument.meta["val"].shape[axis])
    if start not in (None, 0) or (end is not None and end < size):
        raise GraphError(f"a slice [{start}:{end}:{step}] of axis {axis}")
    if step == 1:
        importer.skip(fx)
    elif axis in (2, 3):
        _subsample(importer, fx, source, axis, step)
    else:
        raise GraphError(f"a slice [{start}:{end}:{step}] of axis {axis}")


def _subsample(importer: _Importer, fx: FxNode, source: str, axis: int, step: int) -> None:
    """Rows, then columns: the second slice joins the first when nothing else reads it."""
    argument = fx.args[0]
    assert isinstance(argument, FxNode)
    last = importer.nodes[-1]
    if axis == 3 and isinstance(last, g.Subsample) and last.name == source and len(argument.users) == 1:
        importer.nodes[-1] = g.Subsample(name=last.name, inputs=last.inputs, stride=(last.stride[0], step))
        importer.made[fx] = last.name
        return
    stride = (step, 1) if axis == 2 else (1, step)
    importer.add(fx, lambda name: g.Subsample(name=name, inputs=(source,), stride=stride))


_IMPORTERS: dict[str, Callable[[_Importer, FxNode], None]] = {
    "aten.conv2d.default": _conv,
    "aten.conv2d.padding": _conv,
    "aten.batch_norm.default": _batch_norm,
    "aten.relu.default": _relu,
    "aten.relu_.default": _relu,
    "aten.add.Tensor": _add,
    "aten.add_.Tensor": _add,
    "aten.max_pool2d.default": _max_pool,
    "aten.avg_pool2d.default": _avg_pool,
    "aten.adaptive_avg_pool2d.default": _adaptive_avg_pool,
    "aten.mean.dim": _mean,
    "aten.flatten.using_ints": _flatten,
    "aten.view.default": _flatten,
    "aten.reshape.default": _flatten,
    "aten.linear.default": _linear,
    "aten.pad.default": _pad,
    "aten.slice.Tensor": _slice,
    "aten.dropout.default": _Importer.skip,
    "aten.dropout_.default": _Importer.skip,
    "aten.feature_dropout.default": _Importer.skip,
    "aten.clone.default": _Importer.skip,
    "aten.contiguous.default": _Importer.skip,
    "aten.alias.default": _Importer.skip,
}


def _placeholder_tensors(program: torch.export.ExportedProgram) -> dict[str, torch.Tensor]:
    """Parameters, buffers and constants by the name of their placeholder."""
    signature = program.graph_signature
    named = {**program.state_dict, **program.constants}
    targets = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    return {placeholder: named[target] for placeholder, target in targets.items()}


def _trimmed(name: str, nodes: list[g.Node], labels: tuple[str, ...]) -> Graph:
    """The graph of what the output needs; a node that nothing reads (an auxiliary head) goes."""
    wanted = {nodes[-1].name}
    for node in reversed(nodes):
        if node.name in wanted:
            wanted.update(node.inputs)
    return Graph(name, tuple(node for node in nodes if node.name in wanted), labels)
