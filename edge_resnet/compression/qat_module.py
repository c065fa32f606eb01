"""A quantized graph as a torch module whose weights can be trained.

In training it computes as integer_layer.py says; in evaluation it is the integer reference itself. Trained
are the weights and biases of the float graph, and, as the recipe says, batch normalization and the scales.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_resnet.compression.integer_layer import round_and_clamp
from edge_resnet.compression.qat_layer import QatLayer
from edge_resnet.compression.quantize import tensor_parameters
from edge_resnet.errors import GraphError
from edge_resnet.graph.execution import NodeFunction, run_nodes
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    Add,
    Conv,
    FloatWeights,
    GlobalAvgPool,
    Input,
    Linear,
    Mul,
    Node,
    QuantParams,
    Sigmoid,
    Subsample,
)
from edge_resnet.graph.reference import centred_bounds, integer_function
from edge_resnet.graph.streams import moves_integers, scale_groups
from edge_resnet.recipe import Qat
from edge_resnet.training.precision import graph_strides_over_one_pixel
from edge_resnet.training.ranks import mean_over_ranks

__all__ = ["QatModule"]

# How often (in steps) moving-average ranges become scales, and how much a step moves them.
_UPDATE_EVERY = 50
_MOMENTUM = 0.01


class QatModule(nn.Module):
    """`floating`: the lowered float graph; `quantized`: its integers, with the same node names.

    The module takes what `inputs` makes of images and answers real logits, float32 [N, classes].
    """

    scale: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor
    frozen: Tensor

    def __init__(self, floating: Graph, quantized: Graph, settings: Qat, weight_limit: int = 127) -> None:
        super().__init__()
        self.settings = settings
        self.graph = quantized
        low = settings.precision == "bfloat16" and not graph_strides_over_one_pixel(floating)
        self.dtype = torch.bfloat16 if low else torch.float32
        self._index = {node.name: index for index, node in enumerate(quantized.nodes)}
        self.layers = nn.ModuleDict()
        for node in floating.nodes:
            if isinstance(node, Conv | Linear):
                self.layers[_key(node)] = QatLayer(node, settings, weight_limit)
        parameters = [_quant(node) for node in quantized.nodes]
        self.register_buffer("scale", torch.tensor([p.scale for p in parameters], dtype=torch.float64))
        self.register_buffer("zero_point", torch.tensor([p.zero_point for p in parameters]))
        self.register_buffer("low", self.scale * (-128 - self.zero_point))
        self.register_buffer("high", self.scale * (127 - self.zero_point))
        self.register_buffer("frozen", torch.tensor(settings.scales == "fixed"))
        groups = _free_groups(quantized)
        self._group_of = {name: number for number, group in enumerate(groups) for name in group}
        if settings.scales == "learned":
            self.log_scale = nn.Parameter(torch.zeros(len(groups)))
        self._functions: list[tuple[Node, NodeFunction]] = []
        self.register_load_state_dict_post_hook(_rebuilt)  # type: ignore[no-untyped-call]
        self._rebuild()

    def inputs(self, pixels: np.ndarray) -> Tensor:
        """uint8 [N, H, W, C] -> centred integers [N, C, H, W], channels_last."""
        values = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.int16).sub_(self.byte_zero)
        return values.to(self.dtype if self.training else torch.float32)

    @property
    def byte_zero(self) -> int:
        """The byte that means 0."""
        return 128 + _quant(self.graph.input).zero_point

    def forward(self, images: Tensor) -> Tensor:
        return self.run(images, ())[0]

    def run(self, images: Tensor, wanted: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits, and the real values of the wanted nodes' outputs, float32."""
        found: dict[str, Tensor] = {}

        def observe(name: str, values: Tensor) -> None:
            if name in wanted:
                found[name] = values.float() * self._step(name)

        logits = run_nodes(self.graph, self._functions, images, observe if wanted else None)
        return logits.float() * self._step(self.graph.output.name), found

    def train(self, mode: bool = True) -> QatModule:
        super().train(mode)
        self._rebuild()
        return self

    def before_step(self, step: int, total: int) -> None:
        """Follow the schedules: call it before each step of training."""
        settings = self.settings
        if not bool(self.frozen):
            due = step >= settings.freeze_scales * total
            if due or (settings.scales == "moving-average" and step % _UPDATE_EVERY == _UPDATE_EVERY - 1):
                self.frozen.fill_(due)
                self._set_parameters()
        if settings.batch_norm == "trained" and step >= settings.freeze_batch_norm * total:
            for layer in self._layers():
                layer.freeze_batch_norm()

    def floating(self) -> Graph:
        """The trained weights in real numbers, batch normalization folded: what the integers stand for."""
        nodes: list[Node] = []
        for node in self.graph.nodes:
            quant = node.quant if isinstance(node, Input) else None
            if isinstance(node, Conv | Linear):
                weight, bias = (v.detach().cpu().contiguous().numpy() for v in self._layer(node).folded())
                nodes.append(replace(node, quant=quant, weights=FloatWeights(weight, bias)))
            else:
                nodes.append(replace(node, quant=quant))
        return self.graph.with_nodes(nodes)

    def finish(self) -> Graph:
        """The trained integers."""
        if not bool(self.frozen):
            self.frozen.fill_(True)
            self._set_parameters()
        return self._integers()

    def calibrate_batch_norm(self, batches: list[Tensor]) -> None:
        """Put batch normalization back behind every layer, with the statistics of these inputs.

        The function stays what it is: the layer's own mean and deviation become its shift and its scale. So
        it does not matter whether the source had its batch normalization folded.
        """
        for layer in self._layers():
            layer.observe_statistics(True)
        with torch.no_grad():
            for images in batches:
                self(images)
        for layer in self._layers():
            layer.observe_statistics(False)

    def _layer(self, node: Node) -> QatLayer:
        layer = self.layers[_key(node)]
        assert isinstance(layer, QatLayer)
        return layer

    def _layers(self) -> list[QatLayer]:
        return [layer for layer in self.layers.values() if isinstance(layer, QatLayer)]

    def _integers(self) -> Graph:
        nodes: list[Node] = []
        for node in self.graph.nodes:
            if isinstance(node, Conv | Linear):
                layer = self._layer(node)
                nodes.append(replace(node, weights=layer.integers(self._scale_of(node.inputs[0]))))
            else:
                nodes.append(node)
        return self.graph.with_nodes(nodes)

    def _scale_of(self, name: str) -> float:
        return float(self.scale[self._index[name]])

    def _set_parameters(self) -> None:
        """Scales and zero points that meet all runtimes' demands, from the ranges as they are now."""
        if self.settings.scales == "learned":
            for name, group in self._group_of.items():
                self.scale[self._index[name]] *= float(self.log_scale[group].detach().exp())
            self.log_scale.data.zero_()
            self.low.copy_((-128 - self.zero_point) * self.scale)
            self.high.copy_((127 - self.zero_point) * self.scale)
        ranges = {
            name: (min(0.0, float(self.low[index])), max(0.0, float(self.high[index])))
            for name, index in self._index.items()
        }
        for name, quant in tensor_parameters(self.graph, ranges).items():
            self.scale[self._index[name]] = quant.scale
            self.zero_point[self._index[name]] = quant.zero_point
        self._rebuild()

    def _rebuild(self) -> None:
        """The nodes' functions, for the scales and the mode as they are now."""
        quants = {
            name: QuantParams(float(self.scale[index]), int(self.zero_point[index]))
            for name, index in self._index.items()
        }
        self.graph = self.graph.with_nodes(replace(n, quant=quants[n.name]) for n in self.graph.nodes)
        if self.training:
            self._functions = [(node, self._function(node)) for node in self.graph.nodes[1:]]
        else:
            graph = self._integers()
            self._functions = [(node, integer_function(node, graph)) for node in graph.nodes[1:]]

    def _function(self, node: Node) -> NodeFunction:
        if isinstance(node, Subsample):
            # The same, but its gradient is in channels_last order, and so are all those that are added to it.
            return lambda x: F.max_pool2d(x, 1, node.stride)
        if moves_integers(node):
            return integer_function(node, self.graph)
        low, high = centred_bounds(node)
        if isinstance(node, Conv | Linear):
            return self._weighted(node, low, high)
        if isinstance(node, Add):
            return lambda a, b: F.hardtanh(a + b, low, high, inplace=True)
        if type(node) not in _REAL:
            raise GraphError(f"node {node.name!r} ({type(node).__name__}) cannot be trained in integers")
        compute = _REAL[type(node)]

        def run(*inputs: Tensor) -> Tensor:
            real = compute(*(x.float() * self._step(s) for x, s in zip(inputs, node.inputs, strict=True)))
            self._watch(node.name, real)
            values = round_and_clamp(real / self._step(node.name), low, high)
            return values.to(self.dtype)

        return run

    def _weighted(self, node: Conv | Linear, low: float, high: float) -> NodeFunction:
        layer = self._layer(node)
        source, last = node.inputs[0], node.name == self.graph.output.name

        def run(x: Tensor) -> Tensor:
            s_x, s_y = self._step(source), self._step(node.name)
            if last:
                # Logits are not rounded: their range is set anew in the end, and the largest of them, the one
                # that matters, would lose its gradient to a range that was seen before training.
                return layer.unrounded(x.float(), s_x, s_y)
            if bool(self.frozen) and layer.is_fixed:
                return layer.fixed(x, s_x, s_y, low, high)
            steps = layer.unrounded(x, s_x, s_y)
            self._watch(node.name, steps, s_y)
            return round_and_clamp(steps, low, high)

        return run

    def _step(self, name: str) -> float | Tensor:
        """The tensor's scale: a number, or, while it is learned, something with a gradient."""
        index = self._index[name]
        if self.settings.scales == "learned" and not bool(self.frozen) and name in self._group_of:
            return self.scale[index].float() * self.log_scale[self._group_of[name]].exp()
        return float(self.scale[index])

    @torch.no_grad()
    def _watch(self, name: str, values: Tensor, step: float | Tensor = 1.0) -> None:
        """Let the tensor's range follow what is seen, where ranges are moving averages."""
        if self.settings.scales != "moving-average" or bool(self.frozen):
            return
        for bounds, seen in zip((self.low, self.high), torch.aminmax(values), strict=True):
            index = self._index[name]
            mean = float(mean_over_ranks(seen.float())) * float(step)
            bounds[index] += _MOMENTUM * (mean - float(bounds[index]))


def _rebuilt(module: QatModule, _: object) -> None:
    module._rebuild()


def _mean(x: Tensor) -> Tensor:
    # Not x.mean: its gradient is no tensor in channels_last order, see Subsample.
    return F.avg_pool2d(x, list(x.shape[2:]))


# What is computed in real numbers before it is rounded; layers, sums and what moves integers are elsewhere.
_REAL: dict[type[Node], NodeFunction] = {
    GlobalAvgPool: _mean,
    Mul: torch.mul,
    Sigmoid: torch.sigmoid,
}


def _key(node: Node) -> str:
    """A name that torch takes for a module: no dots."""
    return "layer/" + node.name.replace(".", "/")


def _quant(node: Node) -> QuantParams:
    assert node.quant is not None
    return node.quant


def _free_groups(graph: Graph) -> list[tuple[str, ...]]:
    """The scales that can be learned: not the raw bytes', nor that of a sigmoid's output."""
    return [
        group
        for group in scale_groups(graph)
        if graph.input.name not in group
        and not any(isinstance(graph.by_name[name], Sigmoid) for name in group)
        and graph.output.name not in group
    ]
