"""What NNCF's quantizers say of a graph's tensors, and what of it a graph can hold.

NNCF hooks a quantizer behind an operation (`post_hooks.MODULE/relu/0__0.0`) or in front of one of its inputs
(`pre_hooks.MODULE/conv2d/0__1.0`, port 1 is the weight); MODULE begins with a node's module_key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_resnet.compression.graph_module import module_key
from edge_resnet.errors import InputError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Activation, Conv, Linear, Node, QuantParams, Relu
from edge_resnet.graph.streams import parameter_groups

__all__ = ["NncfScheme", "read_scheme"]

_WAY_OUT = "leave --quantizer nncf out, and the graph is quantized by edge-resnet"


@dataclass
class NncfScheme:
    """`activations`: tensor -> parameters; `weights`: layer -> scales [O] of its symmetric integers."""

    activations: dict[str, QuantParams] = field(default_factory=dict)
    weights: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def read_scheme(graph: Graph, hooks: Iterable[tuple[str, Any]]) -> NncfScheme:
    """The quantizers of the NNCF model that was made of `graph`'s module, by tensor.

    `hooks`: names and quantizers. Raises InputError, which names the node, for what a graph cannot hold:
    activations with a scale for each channel, other than 8 bit, several parameters for one tensor or for
    tensors that hold the same integers, asymmetric weights.
    """
    nodes = {module_key(node.name): node for node in graph.nodes}
    scheme = NncfScheme()
    for name, quantizer in hooks:
        kind, key, _ = name.split(".")
        operation, port = key.rsplit("__", 1)
        module, *path = operation.split("/")
        if not path:  # the image has no module
            _set_activation(scheme, graph.input, graph.input.name, quantizer)
            continue
        node = nodes[module]
        if kind == "pre_hooks" and isinstance(node, Conv | Linear) and port == "1":
            scheme.weights[node.name] = _weight_scales(node, quantizer)
        else:
            _set_activation(scheme, node, _tensor(node, kind, path, int(port)), quantizer)
    _check_groups(graph, scheme.activations)
    return scheme


def _tensor(node: Node, kind: str, path: list[str], port: int) -> str:
    """Whose integers a quantizer at this place of the node's module makes."""
    if kind == "pre_hooks":
        if path[0] == "activation":
            raise _refused(node, "the sum in front of its activation has a range of its own")
        return node.inputs[port]
    if path[0] == "pad":  # zero padding of the node's input
        return node.inputs[0]
    fused = getattr(node, "activation", Activation.NONE) is not Activation.NONE and not isinstance(node, Relu)
    if fused and path[0] != "activation":
        raise _refused(node, "the sum in front of its activation has a range of its own")
    return node.name


def _set_activation(scheme: NncfScheme, node: Node, tensor: str, quantizer: Any) -> None:
    low, high, scale, zero = quantizer.get_parameters_for_torch_fq()
    if scale.numel() != 1:
        raise _refused(node, f"an activation with a scale for each of {scale.numel()} channels")
    if high - low != 255:
        raise _refused(node, f"an activation of {high - low + 1} levels; 8 bit can be carried")
    offset = 128 if low == 0 else 0
    params = QuantParams(float(np.float32(scale.item())), int(zero.item()) - offset)
    if scheme.activations.setdefault(tensor, params) != params:
        raise _refused(node, f"tensor {tensor!r} has several ranges")


def _weight_scales(node: Conv | Linear, quantizer: Any) -> NDArray[np.float32]:
    low, high, scale, zero = quantizer.get_parameters_for_torch_fq()
    if high - low != 255:
        raise _refused(node, f"weights of {high - low + 1} levels; int8 can be carried")
    if low == 0 or zero.any():
        raise _refused(node, "asymmetric weights (their zero point is not 0)")
    channels = len(node.weights.weight)
    if scale.numel() not in (1, channels):
        raise _refused(node, f"weights with {scale.numel()} scales for {channels} channels")
    return np.array(np.broadcast_to(scale.detach().cpu().numpy().reshape(-1), channels), np.float32)


def _check_groups(graph: Graph, activations: Mapping[str, QuantParams]) -> None:
    """Pooling, slicing and the like move integers: there is no other range behind than in front."""
    for group in parameter_groups(graph):
        named = [name for name in group if name in activations]
        for name in named[1:]:
            if activations[name] != activations[named[0]]:
                what = f"it holds the same integers as {named[0]!r}, in another range"
                raise _refused(graph.by_name[name], what)
    for node in graph.nodes:
        if isinstance(node, Relu) and node.name in activations:
            source = node.inputs[0]
            if source not in activations and len(graph.consumers[source]) > 1:
                raise _refused(node, f"{source!r}, which others read too, has a range only behind it")


def _refused(node: Node, what: str) -> InputError:
    return InputError(f"NNCF's scheme cannot be carried: node {node.name!r}: {what}; {_WAY_OUT}")
