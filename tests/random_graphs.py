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
                self._squeeze_excite,
                self._channel_attention,
                self._pre_activation,
                self._inverted,
                self._blur,
                self._split,
                self._swish,
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
        same: bool = False,
    ) -> str:
        rng = self.rng
        channels = self._channels(source)
        pad = kernel // 2
        padding = g.Padding.symmetric(pad, pad)
        if not same and pad and min(self.shape[1:]) >= kernel and rng.random() < 0.3:
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

    def _gate(self, source: str) -> str:
        kind = g.Sigmoid if self.rng.random() < 0.6 else g.HardSigmoid
        return self._follow(kind, source)

    def _squeeze_excite(self) -> None:
        """Pool, two layers (convolutions or fully connected), gate; the product joins a residual sum."""
        source, channels = self._last, self.shape[0]
        image = self._conv(channels, kernel=1, relu=bool(self.rng.random() < 0.3))
        self._follow(g.GlobalAvgPool)
        inner = max(2, channels // 2)
        if self.rng.random() < 0.5:
            self._conv(inner, kernel=1)
            self._conv(channels, kernel=1, relu=False)
            gate = self._gate(self._last)
        else:
            self._follow(g.Flatten)
            self._follow(g.Linear, weights=self._weights((inner, channels), channels))
            self._follow(g.Relu)
            self._follow(g.Linear, weights=self._weights((channels, inner), inner))
            gate = self._follow(g.Reshape, self._gate(self._last), shape=(channels, 1, 1))
        self._add(g.Mul(name=f"mul{len(self.nodes)}", inputs=(image, gate)))
        if self.rng.random() < 0.7:
            self._sum(self._last, source)

    def _channel_attention(self) -> None:
        source, channels = self._last, self.shape[0]
        self._follow(g.GlobalAvgPool)
        self._follow(g.Reshape, shape=(1, channels, 1))
        weights = self._weights((1, 1, 3, 1), 3)
        self._follow(g.Conv, weights=weights, padding=g.Padding.symmetric(1, 0))
        self._follow(g.Reshape, shape=(channels, 1, 1))
        gate = self._gate(self._last)
        self._add(g.Mul(name=f"mul{len(self.nodes)}", inputs=(source, gate)))

    def _pre_activation(self) -> None:
        source, channels = self._last, self.shape[0]
        scale, shift = self.rng.uniform(0.5, 1.5, channels), self.rng.normal(0, 0.2, channels)
        self._follow(g.BatchNorm, source, scale=scale.astype(np.float32), shift=shift.astype(np.float32))
        if self.rng.random() < 0.5:
            self._follow(g.Relu)
        self._conv(channels, same=True)
        self._add(
            g.Add(name=f"add{len(self.nodes)}", inputs=(self._conv(channels, relu=False, same=True), source))
        )
        if self.rng.random() < 0.5:  # read twice: by a convolution behind a ReLU, and by the next sum
            total = self._last
            kind = g.Activation.RELU if self.rng.random() < 0.5 else g.Activation.RELU6
            self._follow(g.Relu, total, activation=kind)
            self._add(
                g.Add(
                    name=f"add{len(self.nodes)}", inputs=(self._conv(channels, relu=False, same=True), total)
                )
            )

    def _inverted(self) -> None:
        source, channels = self._last, self.shape[0]
        for groups, kernel in ((1, 1), (2 * channels, 3)):
            width = self.shape[0] if groups > 1 else channels
            weights = self._weights(
                (2 * channels, width // groups, kernel, kernel), width // groups * kernel**2
            )
            pad = kernel // 2
            self._follow(g.Conv, weights=weights, padding=g.Padding.symmetric(pad, pad), groups=groups)
            self._follow(g.Relu, activation=g.Activation.RELU6)
        self._sum(self._conv(channels, kernel=1, relu=False), source)

    def _blur(self) -> None:
        if min(self.shape[1:]) < 3:
            return
        channels = self.shape[0]
        self._follow(g.Pad, padding=g.Padding.symmetric(1, 1), mode=g.PadMode.REFLECT)
        row = np.array([1, 2, 1], np.float32)
        weight = np.tile((row[:, None] * row / 16)[None, None], (channels, 1, 1, 1))
        weights = g.FloatWeights(weight, np.zeros(channels, np.float32))
        self._follow(g.Conv, weights=weights, stride=(2, 2), groups=channels)

    def _split(self) -> None:
        """Res2Net's and CSP's way: one part of the channels is convolved, another goes along."""
        source, channels = self._last, self.shape[0]
        half = channels // 2
        first = self._follow(g.SliceChannels, source, start=0, stop=half)
        second = self._follow(g.SliceChannels, source, start=half, stop=channels)
        second = self._conv(channels - half, source=second, relu=bool(self.rng.random() < 0.5), same=True)
        self._add(g.Concat(name=f"concat{len(self.nodes)}", inputs=(second, first)))
        self._conv(channels, kernel=1)

    def _swish(self) -> None:
        source = self._conv(self.shape[0], kernel=1, relu=False)
        self._add(g.Mul(name=f"mul{len(self.nodes)}", inputs=(source, self._gate(source))))

    def _average(self) -> None:
        if min(self.shape[1:]) >= 2:
            self._follow(g.AvgPool, kernel=(2, 2), stride=(2, 2))
