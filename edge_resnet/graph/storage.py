"""A graph on disk: NAME.json (structure, readable and diffable) and NAME.safetensors (arrays).

Nothing is pickled, so a graph from elsewhere cannot run code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from edge_resnet.errors import GraphError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    NODE_KINDS,
    Activation,
    FloatWeights,
    IntWeights,
    Node,
    Padding,
    PadMode,
    QuantParams,
)

__all__ = ["graph_digest", "graph_from_files", "graph_to_files"]

FORMAT_VERSION = 1
_WEIGHT_KINDS: dict[str, type[FloatWeights | IntWeights]] = {"float": FloatWeights, "int8": IntWeights}


def graph_to_files(graph: Graph, name: str) -> dict[str, bytes]:
    """The two files of a graph, by file name. The same graph gives the same bytes."""
    arrays: dict[str, np.ndarray] = {}
    nodes = [_node_to_json(node, arrays) for node in graph.nodes]
    document = {
        "format": FORMAT_VERSION,
        "name": graph.name,
        "labels": list(graph.labels),
        "nodes": nodes,
    }
    return {
        f"{name}.json": (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode(),
        f"{name}.safetensors": save({key: np.ascontiguousarray(arrays[key]) for key in sorted(arrays)}),
    }


def graph_from_files(directory: Path, name: str) -> Graph:
    """Read what graph_to_files wrote. Raises GraphError that names the file and, where possible, the node."""
    structure, weights = directory / f"{name}.json", directory / f"{name}.safetensors"
    try:
        document = json.loads(structure.read_text(encoding="utf-8"))
        arrays = load(weights.read_bytes())
    except (OSError, ValueError, SafetensorError) as error:
        raise GraphError(f"{directory}: cannot read graph {name!r}: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT_VERSION:
        raise GraphError(f"{structure}: not a graph of format {FORMAT_VERSION}")
    try:
        nodes = tuple(_node_from_json(entry, arrays) for entry in document["nodes"])
        return Graph(document["name"], nodes, tuple(document["labels"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise GraphError(f"{structure}: {type(error).__name__}: {error}") from error
    except GraphError as error:
        raise GraphError(f"{structure}: {error}") from None


def graph_digest(graph: Graph) -> str:
    """SHA-256 of all that the graph is: structure, arrays, names."""
    digest = hashlib.sha256()
    for name, content in sorted(graph_to_files(graph, "graph").items()):
        digest.update(name.encode())
        digest.update(content)
    return digest.hexdigest()


def _node_to_json(node: Node, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    entry: dict[str, Any] = {"kind": type(node).__name__}
    for field in fields(node):
        value = getattr(node, field.name)
        if isinstance(value, FloatWeights | IntWeights):
            entry["weights"] = "int8" if isinstance(value, IntWeights) else "float"
            for part in fields(value):
                arrays[f"{node.name}/{part.name}"] = getattr(value, part.name)
        elif isinstance(value, np.ndarray):
            arrays[f"{node.name}/{field.name}"] = value
        elif isinstance(value, QuantParams):
            entry["quant"] = {"scale": value.scale, "zero_point": value.zero_point}
        elif isinstance(value, Padding):
            entry["padding"] = [value.top, value.left, value.bottom, value.right]
        elif value is not None:
            entry[field.name] = value
    return entry


def _node_from_json(entry: dict[str, Any], arrays: dict[str, np.ndarray]) -> Node:
    kind, name = NODE_KINDS.get(entry["kind"]), entry["name"]
    if kind is None:
        raise GraphError(f"node {name!r} has the unknown kind {entry['kind']!r}")
    values: dict[str, Any] = {}
    for field in fields(kind):
        if field.name == "weights":
            weights = _WEIGHT_KINDS[entry["weights"]]
            values["weights"] = weights(
                **{part.name: arrays[f"{name}/{part.name}"] for part in fields(weights)}
            )
        elif f"{name}/{field.name}" in arrays:
            values[field.name] = arrays[f"{name}/{field.name}"]
        elif field.name in entry:
            values[field.name] = _field_from_json(field.name, entry[field.name])
    return kind(**values)


def _field_from_json(name: str, value: Any) -> Any:
    if name == "quant":
        return QuantParams(float(value["scale"]), int(value["zero_point"]))
    if name == "padding":
        return Padding(*map(int, value))
    if name == "activation":
        return Activation(value)
    if name == "mode":
        return PadMode(value)
    return tuple(value) if isinstance(value, list) else value
