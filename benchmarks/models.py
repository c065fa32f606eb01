"""The models that the benchmarks share, as graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from edge_resnet.compression.calibrate import calibrate
from edge_resnet.compression.quantize import quantize
from edge_resnet.data.images import ImageSplit, open_images
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.frontends.sources import import_graph, open_model, resolve_preprocess
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import lower_for_integers

SEED = 0


def floating(name: str, weights: Path | None = None) -> tuple[Graph, Preprocess]:
    """The simplified float graph of a model (random weights, seed 0, where none are given)."""
    loaded = open_model(name, weights, None, SEED)
    preprocess = resolve_preprocess(loaded.preprocess_defaults, {})
    return import_graph(loaded, preprocess), preprocess


def integers(graph: Graph, pixels: np.ndarray) -> Graph:
    """The graph in integers, calibrated on `pixels` [N, H, W, 3]."""
    ready = lower_for_integers(graph)
    return quantize(ready, calibrate(ready, np.array_split(pixels, -(-len(pixels) // 32))))


def blurred_noise(count: int, size: int) -> np.ndarray:
    """Random images with structure at several scales, uint8 [count, size, size, 3]; the same each time."""
    rng = np.random.default_rng(SEED)
    small = rng.integers(0, 256, (count, 9, 9, 3), np.uint8)
    images = [Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC) for image in small]
    noise = rng.integers(-20, 21, (count, size, size, 3))
    return np.clip(np.stack([np.asarray(image) for image in images]) + noise, 0, 255).astype(np.uint8)


def pixels_of(split: ImageSplit, preprocess: Preprocess, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of the shuffled split, and their labels."""
    batches = list(split.batches(split.order(SEED)[:count], preprocess, 100))
    return np.concatenate([b.pixels for b in batches]), np.concatenate([b.labels for b in batches])


def cifar(data: Path) -> tuple[ImageSplit, ImageSplit]:
    """Train and test split of the real images."""
    images = open_images(str(data / "cifar10-jpeg.zip"))
    return images.split("train"), images.split("val")
