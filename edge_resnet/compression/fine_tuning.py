"""A float graph that trains on: batch normalization put back behind its convolutions, and folded again.

Graphs come with batch normalization folded. What was pruned has other statistics than what the weights were
trained with, and without normalization deep networks stand only small learning rates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_resnet.compression.graph_module import GraphModule, module_key, with_trained_weights
from edge_resnet.distillation import Distiller
from edge_resnet.graph.float_executor import image_bytes, input_values
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv
from edge_resnet.recipe import Optimization
from edge_resnet.training import Portion, check_logits, decayed
from edge_resnet.training.precision import graph_strides_over_one_pixel

__all__ = ["FineTuningTask", "NormalizedConv", "normalized_module", "trained_graph"]

_EPSILON = 1e-5


@dataclass(frozen=True, eq=False)
class FineTuningTask:
    """What `fit` trains: the graph's `normalized_module`, on bytes as the graph takes them.

    Trainings between the steps of pruning have names of their own, finetune-step1 and so on.
    """

    student: GraphModule
    graph: Graph
    distiller: Distiller
    name: str = "finetune"

    @cached_property
    def module(self) -> nn.Module:
        return self.distiller.trained(self.student)

    def inputs(self, pixels: NDArray[np.uint8]) -> Tensor:
        return input_values(self.graph.input, pixels)

    def loss(
        self, module: nn.Module, inputs: Tensor, labels: Tensor, portion: Portion
    ) -> tuple[Tensor, Tensor]:
        logits, tensors = self.student.run(inputs, self.distiller.wanted)
        logits = check_logits(logits, labels)
        return self.distiller.loss(
            logits, labels, portion, lambda: image_bytes(self.graph.input, inputs), tensors
        ), logits

    def parameter_groups(self, settings: Optimization) -> list[dict[str, Any]]:
        return decayed(self.module, settings)

    def on_step(self, step: int, total: int) -> None:
        pass

    def autocast(self, settings: Optimization) -> bool:
        return settings.precision == "bfloat16" and not graph_strides_over_one_pixel(self.graph)


class NormalizedConv(nn.Module):
    """A convolution and the batch normalization behind it."""

    def __init__(self, conv: nn.Conv2d, mean: Tensor, variance: Tensor) -> None:
        super().__init__()
        self.conv, self.norm = conv, nn.BatchNorm2d(conv.out_channels, _EPSILON)
        assert conv.bias is not None
        with torch.no_grad():
            self.norm.running_mean.copy_(mean - conv.bias)  # type: ignore[union-attr]
            self.norm.running_var.copy_(variance)  # type: ignore[union-attr]
            self.norm.weight.copy_((variance + _EPSILON).sqrt())
            self.norm.bias.copy_(mean)
        conv.bias = None

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(x))
        return result

    def folded(self) -> nn.Conv2d:
        """The convolution that computes the same at evaluation."""
        norm, conv = self.norm, self.conv
        assert norm.running_mean is not None
        assert norm.running_var is not None
        with torch.no_grad():
            factor = norm.weight.double() / (norm.running_var.double() + _EPSILON).sqrt()
            weight = (conv.weight.double() * factor[:, None, None, None]).float()
            bias = (norm.bias.double() - norm.running_mean.double() * factor).float()
        conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
        return conv


@torch.no_grad()
def normalized_module(graph: Graph, batches: Iterable[Tensor]) -> GraphModule:
    """The float graph's module with batch normalization behind each convolution, at training.

    The mean and the variance of each convolution's sums over `batches`, images [N, C, H, W] as GraphModule
    takes them, become its statistics, and its shift and scale undo them: at evaluation the function is the
    graph's. Convolutions of a single pixel (the gates of squeeze-and-excitation) have none.
    """
    module = GraphModule(graph).eval()
    convs = {
        node.name: module.get_submodule(module_key(node.name))
        for node in graph.nodes
        if isinstance(node, Conv) and graph.shapes[node.name][1:] != (1, 1)
    }
    seen: dict[str, list[Tensor]] = {name: [] for name in convs}
    hooks = [
        layer.get_submodule("layer").register_forward_hook(_observer(seen[name]))
        for name, layer in convs.items()
    ]
    for batch in batches:
        module(batch)
    for hook in hooks:
        hook.remove()
    for name, layer in convs.items():
        mean, square = torch.stack(seen[name]).mean(0)
        conv = layer.get_submodule("layer")
        assert isinstance(conv, nn.Conv2d)
        layer.layer = NormalizedConv(conv, mean.float(), (square - mean.square()).clamp(min=0).float())
    return module.train()


def trained_graph(graph: Graph, module: GraphModule) -> Graph:
    """The graph with the trained weights of its `normalized_module`, which is folded on the way."""
    for layer in list(module.children()):
        inner = getattr(layer, "layer", None)
        if isinstance(inner, NormalizedConv):
            layer.layer = inner.folded()
    return with_trained_weights(graph, module)


def _observer(seen: list[Tensor]):  # type: ignore[no-untyped-def]
    def observe(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        values = output.double()
        seen.append(torch.stack([values.mean((0, 2, 3)), values.square().mean((0, 2, 3))]))

    return observe
