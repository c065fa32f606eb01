"""Small functions Graph -> Graph. Each does one thing, leaves the function unchanged, and is tested alone."""

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes.fold_batch_norm import fold_batch_norm
from edge_resnet.graph.passes.fold_normalization import fold_normalization_into_input, fold_normalization_std
from edge_resnet.graph.passes.fuse_activations import fuse_activations
from edge_resnet.graph.passes.fuse_pads import fuse_pads
from edge_resnet.graph.passes.lower_average_pools import lower_average_pools

__all__ = [
    "fold_batch_norm",
    "fold_normalization_into_input",
    "fold_normalization_std",
    "fuse_activations",
    "fuse_pads",
    "lower_average_pools",
    "simplify",
]


def simplify(graph: Graph) -> Graph:
    """What every model goes through after import: the same function in fewer nodes."""
    for apply in (fuse_pads, fold_batch_norm, fuse_activations):
        graph = apply(graph)
    return graph
