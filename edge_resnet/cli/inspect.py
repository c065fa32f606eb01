"""`edge-resnet inspect`: a model, an artifact or a run, as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_resnet.errors import InputError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.text import graph_to_text, node_details
from edge_resnet.targets import TARGETS

__all__ = ["run"]


def run(
    what: str,
    weights: Path | None,
    settings: Sequence[str],
    output: str | None,
    requantize: bool,
    as_json: bool,
) -> int:
    """Print to standard output what `what` is made of."""
    path = Path(what)
    if path.suffix in (".tflite", ".onnx", ".mlpackage") and not path.exists():
        raise InputError(f"{path}: there is no such artifact")
    artifact = _artifact(path) if path.suffix == ".mlpackage" or is_own_artifact(path) else None
    model = None
    # Packages are not read as models, nor are files with layers in float: their run's folder has the graph.
    if path.suffix != ".mlpackage" and not (artifact and artifact["float_weights"]):
        model = (
            _run_document(path)
            if path.is_dir() and (path / "report.json").exists()
            else _model_document(what, weights, settings, output, requantize)
        )
    if as_json:
        print(json.dumps((model or {}) | (artifact or {}), indent=1))
        return 0
    if artifact is not None:
        print(_artifact_text(artifact))
    if model is not None:
        print(_model_text(model))
    return 0


def is_own_artifact(path: Path) -> bool:
    """Whether a run of ours wrote the file: its name then says for which target."""
    return path.suffix in (".tflite", ".onnx") and any(path.stem.endswith(f"-{name}") for name in TARGETS)


def _run_document(directory: Path) -> dict[str, Any]:
    from edge_resnet.run_directory import read_graphs

    graph = read_graphs(directory)[0]
    return _graph_document(graph) | {"text": graph_to_text(graph)}


def _model_document(
    model: str, weights: Path | None, settings: Sequence[str], output: str | None, requantize: bool
) -> dict[str, Any]:
    """The graph, its family, the import check, what would lose in int8 and which target would refuse what."""
    from dataclasses import asdict

    from edge_resnet.compression.output_range import lacks_output_range, with_output_range
    from edge_resnet.compression.risks import quantization_risks
    from edge_resnet.frontends.sources import import_graph, open_model, resolve_preprocess
    from edge_resnet.graph.family import family
    from edge_resnet.recipe import load_recipe
    from edge_resnet.verify.import_check import check_import, random_images
    from edge_resnet.verify.trial import refusals

    recipe = load_recipe(None, settings)
    opened = open_model(model, weights, None, recipe.seed, output, keep_integers=not requantize)
    preprocess = resolve_preprocess(
        _assumed(opened.preprocess_defaults, recipe.preprocess), recipe.preprocess
    )
    graph = import_graph(opened, preprocess)
    if lacks_output_range(graph):
        graph = with_output_range(graph, [random_images(graph)])
    check = check_import(
        opened.name, graph, opened.checker(preprocess), random_images(graph), rounded=requantize
    )
    return _graph_document(graph) | {
        "family": family(graph),
        "import_check": asdict(check),
        "risks": [] if graph.is_quantized else quantization_risks(graph),
        "refusals": refusals(graph),
        "text": graph_to_text(graph),
    }


def _assumed(declared: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Layers and shapes do not depend on the normalization: an unknown one is no reason to refuse."""
    unknown = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    return {**{key: value for key, value in unknown.items() if key not in given}, **declared}


def _model_text(document: dict[str, Any]) -> str:
    lines = [str(document["text"])]
    if "family" not in document:
        return lines[0]
    check = document["import_check"]
    lines += [
        f"family: {document['family']}",
        f"import: at most {check['max_abs']:.2g} ({check['relative']:.1e} of the logits' range) from "
        f"{check['runtime']} on {check['images']} random images",
    ]
    lines += [f"int8: {risk}" for risk in document["risks"]]
    lines += [f"{target}: {reason or 'can be written'}" for target, reason in document["refusals"].items()]
    return "\n".join(lines)


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
                "in_integers": graph.computes_in_integers(node),
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
        "float_weights": [],
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
    document["float_weights"] = [
        {"name": name, "shape": list(stored.weight.shape), "type": str(stored.weight.dtype)}
        for name, stored in contents.floats.items()
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
    for weight in document["float_weights"]:
        shape = "x".join(map(str, weight["shape"]))
        lines.append(f"  {weight['name']}/weight: {shape} {weight['type']}, kept in float")
    return "\n".join(lines)
