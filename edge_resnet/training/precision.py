"""Where training in bfloat16 is unsound: a strided convolution that sees an image of one pixel.

The gradient of its weights in bfloat16 is computed from memory that was never written (oneDNN in torch 2.13;
seen with a 3x3 convolution of stride 2 on 1x1, and with no larger image). Such a model is trained in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv

__all__ = ["graph_strides_over_one_pixel", "module_strides_over_one_pixel"]


def graph_strides_over_one_pixel(graph: Graph) -> bool:
    """Of a graph, whose shapes are known."""
    return any(
        isinstance(node, Conv) and max(node.stride) > 1 and max(graph.shapes[node.inputs[0]][1:]) == 1
        for node in graph.nodes
    )


def module_strides_over_one_pixel(module: nn.Module, size: tuple[int, int]) -> bool:
    """Of a module for images [N, 3, *size], which is run on one to see."""
    found: list[bool] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Conv2d)
        found.append(max(layer.stride) > 1 and max(inputs[0].shape[2:]) == 1)

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    training = module.training
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(1, 3, *size))
    finally:
        module.train(training)
        for handle in handles:
            handle.remove()
    return any(found)
