"""What Torch-Pruning makes of the zoo's ResNet-56, as a graph, and what that costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.models import SEED, pixels_of
from benchmarks.peers.pruners import torch_pruning
from edge_resnet.data.images import open_images
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.frontends.sources import import_graph, open_model, resolve_preprocess
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, Linear
from edge_resnet.graph.passes import lower_for_integers
from edge_resnet.latency.table import latency_table
from edge_resnet.pruning.prune import Pruned

__all__ = ["Peer", "peer_of"]

MODEL = "resnet56"
# Train images on which the importances that Torch-Pruning offers are compared, before any training.
IMAGES = 1000


@dataclass(frozen=True, eq=False)
class Peer:
    """`macs`: the part of the original's that is left, counted on the graphs. `tried`: its settings."""

    original: Graph
    graph: Graph
    tried: list[dict[str, Any]]

    @property
    def macs(self) -> float:
        return self.graph.macs / self.original.macs

    @property
    def latency(self) -> float:
        """The part of the original's latency, as predicted for the int8 file."""
        table = latency_table(lower_for_integers(self.original), "local", "litert", 1, 8)
        before, after = (table.predict(lower_for_integers(g)) for g in (self.original, self.graph))
        return after / before

    @property
    def widths(self) -> dict[str, int]:
        layers = [node.name for node in self.graph.nodes if isinstance(node, Conv | Linear)]
        return {name: self.graph.shapes[name][0] for name in layers}

    def prune(self, graph: Graph, *_: Any, **__: Any) -> Pruned:
        """In the place of edge_resnet.pruning.prune: what Torch-Pruning left, whatever is asked for."""
        assert graph.macs == self.original.macs
        left = Graph(graph.name, self.graph.nodes, graph.labels)
        return Pruned(left, self.macs, (), ())


def peer_of(data: Path, images: Path, runs: Path, part: float, multiple: int) -> Peer:
    """ResNet-56 pruned to `part` of its multiply-accumulates; kept in `runs` as an exported program.

    `multiple` 0: widths are not rounded.
    """
    loaded: Any = open_model(MODEL, data / f"{MODEL}-cifar10.pt", None, SEED)
    preprocess = resolve_preprocess(loaded.preprocess_defaults, {})
    original = import_graph(loaded, preprocess)
    program = runs / f"torch-pruning-{part:g}-{multiple or 'any'}.pt2"
    record = program.with_suffix(".json")
    if not record.exists():
        module = loaded.module.eval()
        score = _top1(images, preprocess)
        pruned, tried = torch_pruning(
            module, torch.zeros(1, 3, 32, 32), _streams(module), part, multiple or None, score
        )
        runs.mkdir(parents=True, exist_ok=True)
        batch = ({0: torch.export.Dim("n", min=1)},)
        sample = (torch.zeros(2, 3, 32, 32),)
        torch.export.save(torch.export.export(pruned.eval(), sample, dynamic_shapes=batch), program)
        record.write_text(json.dumps(tried))
    graph = import_graph(open_model(str(program), None, None, SEED), preprocess)
    return Peer(original, graph, json.loads(record.read_text()))


def _streams(module: nn.Module) -> list[str]:
    """The layers that write residual streams, and the classifier."""
    return ["conv1", "linear", *(name for name, _ in module.named_modules() if name.endswith(".conv2"))]


def _top1(images: Path, preprocess: Preprocess) -> Callable[[nn.Module], float]:
    pixels, labels = pixels_of(open_images(str(images)).split("train"), preprocess, IMAGES)
    mean, std = (255 * np.float32(values) for values in (preprocess.mean, preprocess.std))
    batch = torch.from_numpy(((pixels - mean) / std).astype(np.float32).transpose(0, 3, 1, 2).copy())

    def score(module: nn.Module) -> float:
        with torch.no_grad():
            chosen = module(batch).argmax(1).numpy()
        return float((chosen == labels).mean())

    return score
