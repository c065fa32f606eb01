"""What a model is: a small typed graph, and what it means in floats and in integers.

Nothing in here imports the rest of the package.
"""

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Node, QuantParams

__all__ = ["Graph", "Node", "QuantParams"]
