"""The models of the peers' table, each as a folder that every exporter starts from.

model.json  state.pt               the torch module (benchmarks/peers/torch_model.py builds it)
calibration.npy                    normalized images, float32 [N, 3, H, W]
calibration_pixels.npy             the same, raw, uint8 [N, H, W, 3]
images.npy  pixels.npy             those that are answered, likewise
layers.json  layers.npz            the network as a list, for Keras
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import record
from benchmarks.models import SEED, blurred_noise, cifar, normalized, pixels_of, settled
from edge_resnet.frontends.sources import open_model, resolve_preprocess
from edge_resnet.frontends.torch_export import graph_from_module
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import FloatWeights, Input, Normalize
from edge_resnet.graph.passes import simplify

__all__ = ["MODELS", "Prepared", "prepare"]


@dataclass(frozen=True)
class PeerModel:
    """`source`: its name in the zoo or torchvision's. `weights`: a file of the real data; None: random ones,
    with batch normalization settled on the calibration images.
    """

    source: str
    weights: str | None
    calibration: int
    images: int


MODELS = {
    "resnet20": PeerModel("resnet20", "resnet20-cifar10.pt", 128, 2000),
    "resnet18": PeerModel("torchvision:resnet18", None, 16, 64),
    "resnet50": PeerModel("torchvision:resnet50", None, 16, 64),
    "mobile_resnet": PeerModel("mobile_resnet", None, 16, 64),
}


@dataclass(frozen=True, eq=False)
class Prepared:
    """`floats`: torch's logits for images.npy, [N, classes]; `labels` where the images have any."""

    folder: Path
    about: dict[str, Any]
    floats: np.ndarray
    labels: np.ndarray | None


def prepare(name: str, folder: Path) -> Prepared:
    """Write the folder of a model of MODELS."""
    model = MODELS[name]
    folder.mkdir(parents=True)
    weights = None if model.weights is None else record.real_data() / model.weights
    opened: Any = open_model(model.source, weights, None, SEED)
    preprocess = resolve_preprocess(opened.preprocess_defaults, {})
    module, labels = opened.module, None
    if weights is None:
        both = blurred_noise(model.calibration + model.images, preprocess.size[0])
        calibration, pixels = both[: model.calibration], both[model.calibration :]
        torch.manual_seed(SEED)
        module = settled(module, normalized(calibration, preprocess))
    else:
        train, test = cifar(record.real_data())
        calibration, _ = pixels_of(train, preprocess, model.calibration)
        pixels, labels = pixels_of(test, preprocess, model.images)
    images = normalized(pixels, preprocess)
    np.save(folder / "calibration.npy", normalized(calibration, preprocess))
    np.save(folder / "calibration_pixels.npy", calibration)
    np.save(folder / "images.npy", images)
    np.save(folder / "pixels.npy", pixels)
    torch.save(module.state_dict(), folder / "state.pt")
    with torch.no_grad():
        floats = np.concatenate([module(part).numpy() for part in torch.from_numpy(images).split(50)])
    about = {
        "name": model.source,
        "classes": floats.shape[1],
        "size": preprocess.size,
        "mean": preprocess.mean,
        "std": preprocess.std,
    }
    (folder / "model.json").write_text(json.dumps(about))
    graph = graph_from_module(module, name, preprocess.size, preprocess.mean, preprocess.std)
    _write_layers(simplify(graph), folder)
    return Prepared(folder, _said(model, module, weights is None), floats, labels)


def _said(model: PeerModel, module: Any, random: bool) -> dict[str, Any]:
    kind = "blurred noise" if random else "CIFAR-10"
    return {
        "model": model.source,
        "params": sum(parameter.numel() for parameter in module.parameters()),
        "weights": "random, batch normalization settled" if random else model.weights,
        "calibration": f"{model.calibration} images, {kind}{'' if random else ' (train)'}",
        "images": f"{model.images} images, {kind}{'' if random else ' (test)'}",
    }


def _write_layers(graph: Graph, folder: Path) -> None:
    """The network behind its normalization, for benchmarks/peers/keras_model.py."""
    layers: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for node in graph.nodes:
        if isinstance(node, Input):
            layers.append({"kind": "Input", "name": node.name, "shape": node.shape})
            continue
        if isinstance(node, Normalize):
            layers[0]["name"] = node.name
            continue
        layer: dict[str, Any] = {"kind": type(node).__name__, "name": node.name, "inputs": node.inputs}
        for key in ("stride", "kernel", "groups", "before", "after"):
            if hasattr(node, key):
                layer[key] = getattr(node, key)
        if hasattr(node, "padding"):
            pads = node.padding
            layer["padding"] = (pads.top, pads.bottom, pads.left, pads.right)
        if hasattr(node, "activation"):
            layer["activation"] = node.activation.value
        weights = getattr(node, "weights", None)
        if isinstance(weights, FloatWeights):
            arrays |= {f"{node.name}/weight": weights.weight, f"{node.name}/bias": weights.bias}
            layer.setdefault("kernel", weights.weight.shape[2:])
        layers.append(layer)
    (folder / "layers.json").write_text(json.dumps(layers))
    np.savez(folder / "layers.npz", **arrays)
