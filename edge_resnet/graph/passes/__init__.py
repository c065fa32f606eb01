"""Small functions Graph -> Graph. Each does one thing, leaves the function unchanged, and is tested alone."""

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes.dequantize import dequantized
from edge_resnet.graph.passes.fold_batch_norm import fold_batch_norm
from edge_resnet.graph.passes.fold_normalization import fold_normalization_into_input, fold_normalization_std
from edge_resnet.graph.passes.fuse_activations import fuse_activations
from edge_resnet.graph.passes.fuse_pads import fuse_pads
from edge_resnet.graph.passes.lower_average_pools import lower_average_pools
from edge_resnet.graph.passes.lower_hard_sigmoids import lower_hard_sigmoids
from edge_resnet.graph.passes.merge_normalization import merge_normalization
from edge_resnet.graph.passes.reverse_channels import reverse_channels
from edge_resnet.graph.passes.split_large_averages import split_large_averages

__all__ = [
    "dequantized",
    "fold_batch_norm",
    "fold_normalization_into_input",
    "fold_normalization_std",
    "fuse_activations",
    "fuse_pads",
    "lower_average_pools",
    "lower_for_integers",
    "lower_hard_sigmoids",
    "merge_normalization",
    "reverse_channels",
    "simplify",
    "split_large_averages",
]


def simplify(graph: Graph) -> Graph:
    """What every model goes through after import: the same function in fewer nodes."""
    for apply in (merge_normalization, fuse_pads, fold_batch_norm, fuse_activations):
        graph = apply(graph)
    return graph


def lower_for_integers(graph: Graph) -> Graph:
    """What a graph goes through before it is quantized: what is left, every runtime rounds alike."""
    for apply in (split_large_averages, lower_average_pools, lower_hard_sigmoids):
        graph = apply(graph)
    return fold_normalization_into_input(graph)
