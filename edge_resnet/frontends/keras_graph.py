"""A frozen TensorFlow GraphDef -> Graph. TensorFlow itself is not needed here: the caller decodes attributes.

What depends on the image goes through keras_operators.py, what is computed from constants alone is evaluated
(keras_constants.py). Functions that were not inlined are walked where they are called.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import GraphError, InputError, UnsupportedOperatorError
from edge_resnet.frontends.builder import GraphBuilder
from edge_resnet.frontends.keras_call import Below, Blocks, TensorflowCall
from edge_resnet.frontends.keras_constants import evaluate
from edge_resnet.frontends.keras_operators import OPERATORS
from edge_resnet.frontends.values import Value
from edge_resnet.graph import nodes as g
from edge_resnet.graph.graph import Graph

__all__ = ["GraphDefImporter", "LayerNames"]

Array = NDArray[Any]
Reference = tuple[str, int]
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_DEEPEST = 8  # functions that call functions


class LayerNames:
    """An operator's name -> the Keras layer that it belongs to.

    Keras opens a name scope for each layer, and TensorFlow numbers a scope that it has seen: where the
    model's own scope came out numbered, each layer's did.
    """

    def __init__(self, layers: Iterable[str], model: str, operators: Iterable[str]) -> None:
        self._layers = set(layers)
        self._numbered = not any(name.split("/")[0] == model for name in operators)

    def __call__(self, operator: str) -> str:
        *scopes, own = [part for part in operator.split("/") if not part.startswith(_CALLS)] or [operator]
        for scope in scopes:
            plain = re.sub(r"_\d+$", "", scope)
            for candidate in (plain, scope) if self._numbered else (scope, plain):
                if candidate in self._layers:
                    return candidate
        if self._layers or not scopes:
            return own
        layer = scopes[1] if len(scopes) > 1 else scopes[0]  # a SavedModel: MODEL/LAYER/...
        return re.sub(r"_1$", "", layer)


class GraphDefImporter:
    """Walks what the output needs. `attributes` decodes a node's attributes, TensorProtos included."""

    def __init__(
        self,
        name: str,
        definition: Any,
        attributes: Callable[[Any], Mapping[str, Any]],
        layers: LayerNames,
    ) -> None:
        self.builder = GraphBuilder(name, channels_last=True)
        self._nodes = {node.name: node for node in definition.node}
        self._functions = {function.signature.name: function for function in definition.library.function}
        self._attributes = attributes
        self._layers = layers
        self._layer_of: dict[str, str] = {}

    def graph(
        self,
        source: str,
        output: str,
        shape: g.Shape,
        image: tuple[Sequence[float], Sequence[float]],
        last: bool,
    ) -> Graph:
        """The graph from placeholder `source` to `output`; `shape` is [C, H, W], `image` mean and std.

        `last`: the model has its channels last. Raises UnsupportedOperatorError that names the layer.
        """
        value = self.builder.image(shape, *image)
        value = value if last else replace(value, axes=(0, 1, 2, 3))
        reference = _reference(output)
        result = self._walk(self._nodes, {(source, 0): value}, [reference], "", 0)[reference]
        if not isinstance(result, Value):
            raise InputError("the output does not depend on the image")
        try:
            return self._named_after_layers(self.builder.graph(result))
        except GraphError as error:
            raise InputError(f"the output: {error}") from None

    def _walk(
        self,
        nodes: Mapping[str, Any],
        made: dict[Reference, Any],
        outputs: Sequence[Reference],
        prefix: str,
        depth: int,
    ) -> dict[Reference, Any]:
        order = _ordered(nodes, made, outputs)
        readers = Counter(entry for node in order for entry in _inputs(node))
        readers.update(outputs)
        for node in order:
            inputs = _inputs(node)
            first = next((entry for entry in inputs if isinstance(made.get(entry), Value)), None)
            # What comes into a function may be read outside of it too.
            alone = first is not None and readers[first] == 1 and (not depth or first[0] in nodes)
            name = f"{prefix}{node.name}"
            results = self._import(node, name, [made[entry] for entry in inputs], alone, depth)
            made.update({(node.name, number): result for number, result in enumerate(results)})
        missing = [name for name, _ in outputs if (name, 0) not in made]
        if missing:
            raise InputError(f"the model's graph has no tensor {missing[0]!r}")
        return made

    def _import(self, node: Any, name: str, inputs: list[Any], alone: bool, depth: int) -> Sequence[Any]:
        attributes = self._attributes(node)
        if node.op == "Const":
            return [attributes["value"]]
        layer = self._layers(name)
        before = len(self.builder.nodes)
        try:
            if node.op in _CALLS:
                return self._call(attributes["f"], name, inputs, depth)
            if node.op in ("Shape", "Size") and isinstance(inputs[0], Value):
                sizes = np.asarray(inputs[0].shape, np.int32)
                return [sizes if node.op == "Shape" else sizes.prod()]
            if not any(isinstance(value, Value | Blocks | Below) for value in inputs):
                return evaluate(node.op, inputs, attributes)
            function = OPERATORS.get(node.op)
            if function is None:
                raise GraphError("")
            call = TensorflowCall(self.builder, f"{layer}/{node.op}", tuple(inputs), attributes, alone)
            result = function(call)
        except GraphError as error:
            why = f": {error}" if str(error) else ""
            raise UnsupportedOperatorError(
                f"layer {layer!r}: TensorFlow operator {node.op} is not supported{why}"
            ) from None
        self._layer_of.update({made.name: layer for made in self.builder.nodes[before:]})
        return result if isinstance(result, list) else [result]

    def _call(self, function: str, name: str, inputs: list[Any], depth: int) -> list[Any]:
        body = self._functions.get(function)
        if body is None or depth >= _DEEPEST:
            raise GraphError(f"a call of function {function!r}")
        arguments = [argument.name for argument in body.signature.input_arg]
        made = {(argument, 0): value for argument, value in zip(arguments, inputs, strict=True)}
        outputs = [_reference(body.ret[argument.name]) for argument in body.signature.output_arg]
        nodes = {node.name: node for node in body.node_def}
        results = self._walk(nodes, made, outputs, f"{name.rpartition('/')[0]}/", depth + 1)
        return [results[entry] for entry in outputs]

    def _named_after_layers(self, graph: Graph) -> Graph:
        """A layer's name for its one node, or its first convolution; the others come behind it."""
        by_layer: dict[str, list[g.Node]] = {}
        for node in graph.nodes:
            if node.name not in self._layer_of and node.inputs:  # a Flatten that the builder adds at the end
                self._layer_of[node.name] = self._layer_of.get(node.inputs[0], "")
            if self._layer_of.get(node.name):
                by_layer.setdefault(self._layer_of[node.name], []).append(node)
        names: dict[str, str] = {}
        used = {"image", "normalize"} | set(by_layer)
        for layer, members in by_layer.items():
            heavy = [node for node in members if isinstance(node, g.Conv | g.Linear)]
            last = [node for node in reversed(members) if not isinstance(node, g.Flatten | g.Reshape)]
            main = (heavy or last or members)[0]
            for node in members:
                if isinstance(node, g.Normalize):
                    names[node.name] = "normalize"
                elif node is main and layer not in ("image", "normalize"):
                    names[node.name] = layer
                else:
                    names[node.name] = _unused(f"{layer}/{type(node).__name__.lower()}", used)
        nodes = [
            replace(
                node,
                name=names.get(node.name, node.name),
                inputs=tuple(names.get(entry, entry) for entry in node.inputs),
            )
            for node in graph.nodes
        ]
        return Graph(graph.name, tuple(nodes))


def _unused(name: str, used: set[str]) -> str:
    unique, number = name, 1
    while unique in used:
        number += 1
        unique = f"{name}_{number}"
    used.add(unique)
    return unique


def _reference(text: str) -> Reference:
    """`node`, `node:1` in a graph; `argument`, `node:output:0` in a function."""
    parts = text.split(":")
    return parts[0], int(parts[-1]) if len(parts) > 1 and parts[-1].isdigit() else 0


def _inputs(node: Any) -> list[Reference]:
    return [_reference(entry) for entry in node.input if not entry.startswith("^")]


def _ordered(
    nodes: Mapping[str, Any], made: Mapping[Reference, Any], outputs: Sequence[Reference]
) -> list[Any]:
    """The nodes that the outputs need, inputs first. Not recursive: a ResNet-152 is a thousand nodes deep."""
    order: list[Any] = []
    done: set[str] = set()
    open_: set[str] = set()
    stack = [name for name, _ in reversed(outputs)]
    while stack:
        name = stack[-1]
        if name in done or (name, 0) in made:
            stack.pop()
            continue
        node = nodes.get(name)
        if node is None:
            raise InputError(f"the model's graph has no operator {name!r}")
        wanted = [entry for entry, _ in _inputs(node) if entry not in done and (entry, 0) not in made]
        if not wanted:
            order.append(node)
            done.add(name)
            stack.pop()
        elif name in open_ and any(entry in open_ for entry in wanted):
            raise InputError(f"the model's graph has a loop at {name!r}")
        else:
            open_.add(name)
            stack.extend(wanted)
    return order
