"""Take whole residual blocks out: the sum gives way to its identity shortcut, and what only it read goes.

"Deep Networks with Stochastic Depth" (Huang et al., 2016, 1603.09382) and "Residual Networks Behave Like
Ensembles of Relatively Shallow Networks" (Veit et al., 2016, 1605.06431) show why a block can be missed: it
is a small correction of what passes by.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from edge_resnet.errors import GraphError
from edge_resnet.graph.graph import Graph, needed_nodes
from edge_resnet.graph.nodes import Activation, Add, Node, Relu
from edge_resnet.graph.passes.fuse_activations import is_non_negative

__all__ = ["IdentityBlock", "identity_blocks", "remove_blocks"]


@dataclass(frozen=True)
class IdentityBlock:
    """A residual sum of a tensor, `shortcut`, and of what `branch`, nodes in their order, makes of it."""

    total: str
    shortcut: str
    branch: tuple[str, ...]


def identity_blocks(graph: Graph) -> list[IdentityBlock]:
    """The residual blocks whose shortcut is the identity, in the graph's order.

    A block that changes the size or the number of channels is none: nothing could take its place.
    """
    blocks = []
    for node in graph.nodes[:-1]:
        if isinstance(node, Add):
            first, second = node.inputs
            found = _block(graph, node, first, second) or _block(graph, node, second, first)
            blocks += [found] if found else []
    return blocks


def remove_blocks(graph: Graph, totals: Collection[str]) -> Graph:
    """The float graph without the identity blocks that end in these sums. Raises GraphError for other names.

    The sum's own activation stays where what passes by can be negative.
    """
    blocks = {block.total: block for block in identity_blocks(graph)}
    unknown = sorted(set(totals) - set(blocks))
    if unknown:
        raise GraphError(f"{unknown[0]!r} ends no residual block with an identity shortcut")
    nodes: dict[str, Node] = {}
    renamed: dict[str, str] = {}
    for original in graph.nodes:
        node = replace(original, inputs=tuple(renamed.get(name, name) for name in original.inputs))
        if node.name in totals:
            assert isinstance(node, Add)
            source = nodes[renamed.get(blocks[node.name].shortcut, blocks[node.name].shortcut)]
            if _changes_nothing(node.activation, source, nodes):
                renamed[node.name] = source.name
                continue
            node = Relu(name=node.name, inputs=(source.name,), activation=node.activation, quant=node.quant)
        nodes[node.name] = node
    return graph.with_nodes(needed_nodes(list(nodes.values()), graph.output.name))


def _block(graph: Graph, total: Node, branch: str, shortcut: str) -> IdentityBlock | None:
    """The block, if all of `branch` comes from `shortcut`."""
    inside: set[str] = set()
    waiting = [branch]
    while waiting:
        name = waiting.pop()
        if name == shortcut or name in inside:
            continue
        if not graph.by_name[name].inputs:
            return None  # the image: some path goes past the shortcut
        inside.add(name)
        waiting += graph.by_name[name].inputs
    if not inside:
        return None  # a tensor that is added to itself
    return IdentityBlock(total.name, shortcut, tuple(n.name for n in graph.nodes if n.name in inside))


def _changes_nothing(activation: Activation, source: Node, nodes: dict[str, Node]) -> bool:
    """Whether the shortcut's values are what the sum's activation would make of them."""
    if activation is Activation.NONE or getattr(source, "activation", None) is activation:
        return True
    return activation is Activation.RELU and is_non_negative(source, nodes)
