"""Random residual graphs, for property tests: every node kind, odd sizes, all kinds of padding."""

from __future__ import annotations

import numpy as np

from edge_resnet.graph import nodes as g
from edge_resnet.graph.graph import Graph


def random_pixels(graph: Graph, count: int, seed: int = 0) -> np.ndarray:
    channels, height, width = graph.input.shape
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), np.uint8)


def random_graph(seed: int, blocks: int = 2) -> Graph:
    return _Builder(seed).build(blocks)


class _Builder:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[g.Node] = []
        self.shape: g.Shape = ()

    def build(self, blocks: int) -> Graph:
        rng = self.rng
        height, width = (int(n) for n in rng.integers(9, 20, 2))
        self._add(g.Input(name="image", shape=(3, height, width)))
        mean, std = rng.uniform(80, 150, 3), rng.uniform(40, 80, 3)
        self._add(
            g.Normalize(
                name="normalize", inputs=("image",), mean=mean.astype(np.float32), std=std.astype(np.float32)
            )
        )
        self._conv(int(rng.choice([4, 8])), kernel=3, padded=True)
        for _ in range(blocks):
            kinds = (
                self._basic,
                self._bottleneck,
                self._option_a,
                self._pool,
                self._depthwise,
                self._average,
            )
            kinds[rng.integers(len(kinds))]()
        if rng.random() < 0.75:
            self._follow(g.GlobalAvgPool)
        self._follow(g.Flatten)
        features = self.shape[0]
        weights = self._weights((5, features), features)
        self._add(g.Linear(name="classifier", inputs=(self._last,), weights=weights))
        return Graph("random", tuple(self.nodes), ("a", "b", "c", "d", "e"))

    @property
    def _last(self) -> str:
        return self.nodes[-1].name

    def _add(self, node: g.Node) -> str:
        shapes = {n.name: s for n, s in zip(self.nodes, self._shapes(), strict=True)}
        self.shape = node.output_shape(*(shapes[name] for name in node.inputs))
        self.nodes.append(node)
        return node.name

    def _shapes(self) -> list[g.Shape]:
        shapes: dict[str, g.Shape] = {}
        for node in self.nodes:
            shapes[node.name] = node.output_shape(*(shapes[name] for name in node.inputs))
        return list(shapes.values())

    def _follow(self, kind: type[g.Node], source: str = "", **values: object) -> str:
        name = f"{kind.__name__.lower()}{len(self.nodes)}"
        return self._add(kind(name=name, inputs=(source or self._last,), **values))  # type: ignore[arg-type]

    def _weights(self, shape: tuple[int, ...], fan_in: int) -> g.FloatWeights:
        weight = self.rng.normal(0, 1 / np.sqrt(fan_in), shape).astype(np.float32)
        return g.FloatWeights(weight, self.rng.normal(0, 0.1, shape[0]).astype(np.float32))

    def _conv(
        self,
        out: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        padded: bool = False,
        source: str = "",
        relu: bool = True,
    ) -> str:
        rng = self.rng
        channels = self._channels(source)
        pad = kernel // 2
        padding = g.Padding.symmetric(pad, pad)
        if pad and min(self.shape[1:]) >= kernel and rng.random() < 0.3:
            padding = g.Padding(pad - 1, pad - 1, pad, pad)  # as TensorFlow pads at stride 2
        if padded and pad and rng.random() < 0.5:
            source = self._follow(g.Pad, source, padding=padding)
            padding = g.Padding()
        weights = self._weights((out, channels // groups, kernel, kernel), channels // groups * kernel**2)
        name = self._follow(
            g.Conv, source, weights=weights, stride=(stride, stride), padding=padding, groups=groups
        )
        if rng.random() < 0.7:
            scale, shift = rng.uniform(0.5, 1.5, out), rng.normal(0, 0.2, out)
            name = self._follow(g.BatchNorm, scale=scale.astype(np.float32), shift=shift.astype(np.float32))
        return self._follow(g.Relu) if relu else name

    def _channels(self, source: str) -> int:
        shapes = {n.name: s for n, s in zip(self.nodes, self._shapes(), strict=True)}
        return shapes[source or self._last][0]

    def _sum(self, left: str, right: str) -> None:
        self._add(g.Add(name=f"add{len(self.nodes)}", inputs=(left, right)))
        if self.rng.random() < 0.8:
            self._follow(g.Relu)

    def _basic(self) -> None:
        source, channels = self._last, self.shape[0]
        out = channels * int(self.rng.choice([1, 2]))
        shortcut = self._conv(out, kernel=1, source=source, relu=False) if out != channels else source
        self._conv(out, source=source, kernel=1)
        self._sum(self._conv(out, kernel=1, relu=False), shortcut)

    def _bottleneck(self) -> None:
        source, channels = self._last, self.shape[0]
        self._conv(channels, kernel=1)
        weights = self._weights((channels, channels // 2, 3, 3), channels // 2 * 9)
        self._follow(g.Conv, weights=weights, padding=g.Padding.symmetric(1, 1), groups=2)
        self._follow(g.Relu)
        self._sum(self._conv(channels, kernel=1, relu=False), source)

    def _option_a(self) -> None:
        source, channels = self._last, self.shape[0]
        self._follow(g.Subsample, source, stride=(2, 2))
        shortcut = self._follow(g.PadChannels, before=channels // 2, after=channels - channels // 2)
        weights = self._weights((2 * channels, channels, 3, 3), channels * 9)
        self._add(
            g.Conv(
                name=f"conv{len(self.nodes)}",
                inputs=(source,),
                weights=weights,
                stride=(2, 2),
                padding=g.Padding.symmetric(1, 1),
            )
        )
        self._sum(self._last, shortcut)

    def _pool(self) -> None:
        if self.rng.random() < 0.3:  # a pool behind something that can be negative
            self._conv(self.shape[0], kernel=1, relu=False)
        padding = g.Padding.symmetric(1, 1) if self.rng.random() < 0.7 else g.Padding()
        if min(self.shape[1:]) >= 3:
            self._follow(g.MaxPool, kernel=(3, 3), stride=(2, 2), padding=padding)

    def _depthwise(self) -> None:
        channels = self.shape[0]
        self._conv(channels, groups=channels, stride=int(self.rng.choice([1, 2])), padded=True)

    def _average(self) -> None:
        if min(self.shape[1:]) >= 2:
            self._follow(g.AvgPool, kernel=(2, 2), stride=(2, 2))
