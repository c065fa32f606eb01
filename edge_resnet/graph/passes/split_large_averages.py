"""Average a large image in two steps.

Rule: GlobalAvgPool over more than 160 positions becomes an AvgPool whose window divides the image, then a
GlobalAvgPool over the windows. A scale at which no sum comes near a rounding tie exists for few positions
only (see compression/rounding_ties.py); the first step becomes a convolution, which has no such need.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import AvgPool, GlobalAvgPool, Node

__all__ = ["split_large_averages"]

_MOST_POSITIONS = 160


def split_large_averages(graph: Graph) -> Graph:
    """The same function with at most 160 positions in each GlobalAvgPool."""
    nodes: list[Node] = []
    for original in graph.nodes:
        node: Node = original
        if isinstance(node, GlobalAvgPool):
            _, height, width = graph.shapes[node.inputs[0]]
            if height * width > _MOST_POSITIONS:
                window = _window(height, width)
                windows = f"{node.name}/windows"
                nodes.append(AvgPool(name=windows, inputs=node.inputs, kernel=window, stride=window))
                node = replace(node, inputs=(windows,))
        nodes.append(node)
    return graph.with_nodes(nodes)


def _window(height: int, width: int) -> tuple[int, int]:
    """The smallest window that divides the image and leaves few enough of itself; the squarest of those."""
    fitting = [
        (rows, columns)
        for rows, columns in product(_divisors(height), _divisors(width))
        if (height // rows) * (width // columns) <= _MOST_POSITIONS
    ]
    return min(fitting, key=lambda window: (window[0] * window[1], abs(window[0] - window[1])))


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
