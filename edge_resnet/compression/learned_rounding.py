"""Which way each weight is rounded, learned so that every block's output stays what it was in float.

To the nearest integer is best for each weight, not for a layer, whose errors add up over its inputs. Here
each weight may go to the integer below or above it; scales and everything about activations stay, so the
result is written and runs like any other quantized graph.

AdaRound (Nagel et al., 2020, 2004.10568): a weight is floor(w / s) + h(v), with the rectified sigmoid
h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1); v is trained, and the regularizer 1 - |2h - 1|^beta pushes h to 0 or
1 as beta falls (section 3.2). The reconstruction is BRECQ's (Li et al., 2021, 2102.05426): not a layer's
output is compared with the float graph's but a residual block's, and the block reads what the integers
before it computed, their errors included (blocks.py, block_streams.py).

Both errors are relative here: the squared error to that of rounding to nearest, the regularizer to the number
of weights. So one strength of regularization serves weights of 8 bits and of 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_resnet.compression.block_streams import BlockStreams, affordable_images
from edge_resnet.compression.blocks import Block, find_blocks
from edge_resnet.compression.integer_layer import Geometry, per_channel, round_and_clamp, stored_like
from edge_resnet.errors import GraphError, InputError
from edge_resnet.graph.float_executor import float_function
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, FloatWeights, IntWeights, Linear, Node
from edge_resnet.graph.reference import centred_bounds, integer_function
from edge_resnet.graph.streams import moves_integers
from edge_resnet.progress import Advance
from edge_resnet.recipe import Rounding

__all__ = ["learn_rounding", "rounding_steps"]

# The rectified sigmoid's stretch (AdaRound, equation 23).
_ZETA, _GAMMA = 1.1, -0.1
# For this part of the steps nothing pushes h to its ends; then beta falls from the first to the second.
_FREE = 0.2
_BETA = (20.0, 2.0)


def rounding_steps(quantized: Graph, settings: Rounding) -> int:
    """What `learn_rounding` advances by in all."""
    return settings.steps * sum(bool(block.layers) for block in find_blocks(quantized))


def learn_rounding(
    quantized: Graph,
    floating: Graph,
    pixels: NDArray[np.uint8],
    settings: Rounding,
    seed: int,
    weight_limit: int = 127,
    advance: Advance = lambda steps: None,
) -> Graph:
    """`quantized` with each weight rounded down or up as serves its block, in [-weight_limit, weight_limit].

    `floating` is the lowered float graph that `quantized` was made from: nodes have the same names. `pixels`
    are calibration images, uint8 [N, H, W, C]; as many of them are used as fit in memory (block_streams.py).
    A block that ends further from the float graph than it was keeps its integers. The same seed gives the
    same integers on one machine with one number of threads. `advance` is called with the steps done.

    Raises InputError without images and GraphError for graphs that do not belong together.
    """
    if not settings.steps:
        return quantized
    if not len(pixels):
        raise InputError("learned rounding needs at least one calibration image (calibration.images)")
    if not quantized.is_quantized:
        raise GraphError(f"graph {quantized.name!r} is not quantized: there are no integers to round to")
    if [(node.name, type(node)) for node in floating.nodes] != [(n.name, type(n)) for n in quantized.nodes]:
        raise GraphError(f"graph {quantized.name!r}: the float and the quantized graph have different nodes")
    blocks = find_blocks(quantized)
    streams = BlockStreams(quantized, floating, pixels[: affordable_images(quantized, blocks)])
    generator = torch.Generator().manual_seed(seed)
    nodes: list[Node] = [quantized.input]
    for block in blocks:
        exact = streams.float_outputs(block)
        best = block.nodes
        integers = streams.run(block, best)
        if block.layers:
            error = streams.squared_error(block, integers, exact)
            learned = _learn(block, streams, exact, error, settings, weight_limit, generator, advance)
            after = streams.run(block, learned)
            if streams.squared_error(block, after, exact) < error:
                best, integers = learned, after
        nodes += best
        streams.move(block, integers, exact)
    return quantized.with_nodes(nodes)


def _learn(
    block: Block,
    streams: BlockStreams,
    exact: dict[str, Tensor],
    error: float,
    settings: Rounding,
    limit: int,
    generator: torch.Generator,
    advance: Advance,
) -> tuple[Node, ...]:
    """The block's nodes after training. `error`: the squared error that it starts with."""
    soft = _SoftBlock(block, streams.quantized, streams.floating, limit)
    optimizer = torch.optim.Adam(soft.parameters(), lr=settings.learning_rate)
    scales = {name: streams.quantized.by_name[name].quant for name in block.outputs}
    free = int(_FREE * settings.steps)
    for step in range(settings.steps):
        which = torch.randperm(streams.count, generator=generator)[: settings.batch]
        outputs = soft({name: streams.centred(name, which) for name in block.inputs})
        loss = torch.zeros(())
        for name, quant in scales.items():
            assert quant is not None
            loss = loss + (outputs[name] - exact[name][which] / quant.scale).square().mean()
        loss = loss / max(error, 1e-12)
        if step >= free:
            progress = (step - free) / max(1, settings.steps - free)
            beta = _BETA[0] + (_BETA[1] - _BETA[0]) * progress
            loss = loss + settings.regularization * soft.undecided(beta)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        advance(1)
    return soft.decided()


class _SoftBlock(nn.Module):
    """The block in integers, but with weights that may lie between two of them; it has a gradient."""

    def __init__(self, block: Block, quantized: Graph, floating: Graph, limit: int) -> None:
        super().__init__()
        self._nodes, self._outputs = block.nodes, block.outputs
        self._layers = nn.ModuleList()
        self._functions: list[Callable[..., Tensor]] = []
        for node in block.nodes:
            if isinstance(node, Conv | Linear):
                layer = _SoftLayer(node, floating.by_name[node.name], quantized, limit)
                self._layers.append(layer)
                self._functions.append(layer)
            else:
                self._functions.append(_with_gradient(node, quantized))

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Centred integers of the block's inputs -> those of its outputs."""
        values = dict(inputs)
        for node, function in zip(self._nodes, self._functions, strict=True):
            values[node.name] = function(*(values[name] for name in node.inputs))
        return {name: values[name] for name in self._outputs}

    def undecided(self, beta: float) -> Tensor:
        """The regularizer, in [0, 1]: 0 when every weight is an integer."""
        layers: Sequence[_SoftLayer] = list(self._layers)  # type: ignore[arg-type]
        total = torch.stack([(1 - (2 * layer.part() - 1).abs().pow(beta)).sum() for layer in layers]).sum()
        return total / sum(layer.choice.numel() for layer in layers)

    def decided(self) -> tuple[Node, ...]:
        """The block's nodes with each weight at the integer that it is nearer to now."""
        return tuple(
            function.decided() if isinstance(function, _SoftLayer) else node
            for node, function in zip(self._nodes, self._functions, strict=True)
        )


class _SoftLayer(nn.Module):
    """A convolution or fully connected layer between centred integers, with `choice` between two weights."""

    def __init__(self, node: Conv | Linear, floating: Node, quantized: Graph, limit: int) -> None:
        super().__init__()
        weights = node.weights
        assert isinstance(floating, Conv | Linear)
        assert isinstance(floating.weights, FloatWeights)
        source = quantized.by_name[node.inputs[0]].quant
        assert isinstance(weights, IntWeights)
        assert source is not None
        assert node.quant is not None
        self._node, self._weights = node, weights
        shape = (-1, *[1] * (weights.weight.ndim - 1))
        exact = floating.weights.weight / weights.scale.astype(np.float64).reshape(shape)
        below, above = (np.clip(side(exact), -limit, limit) for side in (np.floor, np.ceil))
        self._below = torch.from_numpy(below.astype(np.float32))
        self._span = torch.from_numpy((above - below).astype(np.float32))
        stretched = (np.clip(exact - below, 0.0, 1.0) - _GAMMA) / (_ZETA - _GAMMA)
        self.choice = nn.Parameter(torch.from_numpy(np.log(stretched / (1 - stretched)).astype(np.float32)))
        multiplier = np.float32(source.scale) * weights.scale / np.float32(node.quant.scale)
        self._multiplier = torch.from_numpy(multiplier)
        self._bias = torch.from_numpy(weights.bias.astype(np.float32)) * self._multiplier
        self._bounds, self._geometry = centred_bounds(node), Geometry.of(node)

    def part(self) -> Tensor:
        """h: 0 is the integer below, 1 the one above."""
        return (self.choice.sigmoid() * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self._below + self._span * self.part()
        weight = stored_like(weight * per_channel(self._multiplier, weight), x)
        sums = self._geometry.sums(self._geometry.bordered(x), weight, self._bias)
        return round_and_clamp(sums, *self._bounds)

    @torch.no_grad()
    def decided(self) -> Conv | Linear:
        integers = self._below + self._span * (self.choice >= 0)
        return replace(
            self._node, weights=replace(self._weights, weight=integers.contiguous().to(torch.int8).numpy())
        )


class _Straight(torch.autograd.Function):
    """Forward the exact integers; backward as if they were the smooth values (straight-through)."""

    @staticmethod
    def forward(ctx: object, smooth: Tensor, exact: Tensor) -> Tensor:
        return exact

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


_straight: Callable[..., Tensor] = _Straight.apply


def _with_gradient(node: Node, graph: Graph) -> Callable[..., Tensor]:
    """What a node without weights does to centred integers. Where it rounds, it has the float gradient."""
    exact = integer_function(node, graph)
    if moves_integers(node):
        return exact
    scales = [quant.scale for name in node.inputs if (quant := graph.by_name[name].quant) is not None]
    assert node.quant is not None
    smooth, scale, bounds = float_function(node), node.quant.scale, centred_bounds(node)

    def run(*inputs: Tensor) -> Tensor:
        real = smooth(*(x * s for x, s in zip(inputs, scales, strict=True))) / scale
        with torch.no_grad():
            integers = exact(*inputs)
        return _straight(real.clamp(*bounds), integers)

    return run
