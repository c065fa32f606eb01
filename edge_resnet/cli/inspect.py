"""`edge-resnet inspect`: a model, an artifact or a run, as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_resnet.errors import InputError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.text import graph_to_text, node_details

__all__ = ["run"]


def run(what: str, weights: Path | None, settings: Sequence[str], as_json: bool) -> int:
    """Print to standard output what `what` is made of."""
    path = Path(what)
    if path.suffix in (".tflite", ".onnx", ".mlpackage"):
        if not path.exists():
            raise InputError(f"{path}: there is no such artifact")
        document = _artifact(path)
        print(json.dumps(document, indent=1) if as_json else _artifact_text(document))
        return 0
    graph = _run_graph(path) if path.is_dir() else _model_graph(what, weights, settings)
    print(json.dumps(_graph_document(graph), indent=1) if as_json else graph_to_text(graph))
    return 0


def _run_graph(directory: Path) -> Graph:
    from edge_resnet.run_directory import read_graphs

    return read_graphs(directory)[0]


def _model_graph(model: str, weights: Path | None, settings: Sequence[str]) -> Graph:
    from edge_resnet.frontends.sources import open_model, resolve_preprocess
    from edge_resnet.graph.passes import simplify
    from edge_resnet.recipe import load_recipe

    recipe = load_recipe(None, settings)
    loaded = open_model(model, weights, None, recipe.seed)
    preprocess = resolve_preprocess(loaded.preprocess_defaults, recipe.preprocess)
    return simplify(loaded.graph(preprocess))


def _graph_document(graph: Graph) -> dict[str, Any]:
    return {
        "name": graph.name,
        "quantized": graph.is_quantized,
        "params": graph.params,
        "macs": graph.macs,
        "labels": list(graph.labels),
        "nodes": [
            {
                "name": node.name,
                "kind": type(node).__name__,
                "inputs": list(node.inputs),
                "shape": list(graph.shapes[node.name]),
                "details": node_details(node),
                "macs": graph.node_macs(node),
                "scale": node.quant.scale if node.quant else None,
                "zero_point": node.quant.zero_point if node.quant else None,
            }
            for node in graph.nodes
        ],
    }


def _artifact(path: Path) -> dict[str, Any]:
    from edge_resnet.files import sha256_of, size_of
    from edge_resnet.targets import target_of_file

    target = target_of_file(path)
    document: dict[str, Any] = {
        "path": str(path),
        "target": target.name,
        "bytes": size_of(path),
        "sha256": sha256_of(path),
        "tensors": [],
        "weights": [],
    }
    if not target.quantized:
        return document
    contents = target.read_back(path)
    document["tensors"] = [
        {"name": name, "scale": quant.scale, "zero_point": quant.zero_point}
        for name, quant in contents.activations.items()
    ]
    document["weights"] = [
        {
            "name": name,
            "shape": list(stored.weight.shape),
            "scale_min": float(stored.scale.min()),
            "scale_max": float(stored.scale.max()),
            "largest": int(np.abs(stored.weight.astype(np.int16)).max()),
        }
        for name, stored in contents.weights.items()
    ]
    return document


def _artifact_text(document: dict[str, Any]) -> str:
    lines = [
        f"{document['path']}: {document['target']}, {document['bytes']:,} bytes, sha256 {document['sha256']}"
    ]
    for tensor in document["tensors"]:
        lines.append(
            f"  {tensor['name']}: scale {tensor['scale']:.6g} zero_point {tensor['zero_point']} (int8)"
        )
    for weight in document["weights"]:
        shape = "x".join(map(str, weight["shape"]))
        lines.append(
            f"  {weight['name']}/weight: {shape} int8, scales {weight['scale_min']:.3g} to "
            f"{weight['scale_max']:.3g}, largest |w| {weight['largest']}"
        )
    return "\n".join(lines)
