"""The models that the benchmarks share, as graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edge_resnet.compression.plain import in_integers
from edge_resnet.data.images import ImageSplit, open_images
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.frontends.sources import import_graph, open_model, resolve_preprocess
from edge_resnet.graph.graph import Graph

SEED = 0


def floating(name: str, weights: Path | None = None) -> tuple[Graph, Preprocess]:
    """The simplified float graph of a model (random weights, seed 0, where none are given)."""
    loaded = open_model(name, weights, None, SEED)
    preprocess = resolve_preprocess(loaded.preprocess_defaults, {})
    return import_graph(loaded, preprocess), preprocess


def integers(graph: Graph, pixels: np.ndarray) -> Graph:
    """The graph in integers, calibrated on `pixels` [N, H, W, 3]."""
    return in_integers(graph, np.array_split(pixels, -(-len(pixels) // 32)))


def blurred_noise(count: int, size: int) -> np.ndarray:
    """Random images with structure at several scales, uint8 [count, size, size, 3]; the same each time."""
    rng = np.random.default_rng(SEED)
    small = rng.integers(0, 256, (count, 9, 9, 3), np.uint8)
    images = [Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC) for image in small]
    noise = rng.integers(-20, 21, (count, size, size, 3))
    return np.clip(np.stack([np.asarray(image) for image in images]) + noise, 0, 255).astype(np.uint8)


def normalized(pixels: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """uint8 [N, H, W, 3] -> what the torch module takes, float32 [N, 3, H, W]."""
    mean, std = (255 * np.float32(values) for values in (preprocess.mean, preprocess.std))
    images: np.ndarray = ((pixels.astype(np.float32) - mean) / std).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images)


def settled(module: Any, images: np.ndarray) -> Any:
    """Batch normalization as after training: the statistics are those of the images, float32 [N, 3, H, W].

    Factors that the model starts at 0 (the last of a residual branch) become small ones, as training leaves
    them; others are drawn around 1. With all around 1, a deep network of random weights is chaotic: its
    logits would say nothing about rounding.
    """
    import torch

    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            low, high = (0.1, 0.3) if not layer.weight.any() else (0.5, 1.5)
            torch.nn.init.uniform_(layer.weight, low, high)
            torch.nn.init.normal_(layer.bias, 0, 0.2)
            layer.momentum = None  # the mean over the batches below, instead of a moving one
    with torch.no_grad():
        module.train()(torch.from_numpy(images))
    return module.eval()


def settled_graph(module: Any, name: str, preprocess: Preprocess) -> Graph:
    """The simplified float graph of a module with random weights, its batch normalization settled."""
    import torch

    from edge_resnet.frontends.torch_export import graph_from_module
    from edge_resnet.graph.passes import simplify

    torch.manual_seed(SEED)
    images = normalized(blurred_noise(8, preprocess.size[0]), preprocess)
    module = settled(module, images)
    return simplify(graph_from_module(module, name, preprocess.size, preprocess.mean, preprocess.std))


def pixels_of(split: ImageSplit, preprocess: Preprocess, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of the shuffled split, and their labels."""
    batches = list(split.batches(split.order(SEED)[:count], preprocess, 100))
    return np.concatenate([b.pixels for b in batches]), np.concatenate([b.labels for b in batches])


def cifar(data: Path) -> tuple[ImageSplit, ImageSplit]:
    """Train and test split of the real images."""
    images = open_images(str(data / "cifar10-jpeg.zip"))
    return images.split("train"), images.split("val")
