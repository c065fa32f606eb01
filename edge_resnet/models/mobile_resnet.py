"""The mobile members, of this project's own design: a ResNet's stages, four or three, of inverted residuals.

The block is that of Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018
(1801.04381): a 1x1 convolution widens, a depthwise 3x3 filters, a 1x1 without activation narrows, and the
shortcut connects the narrow ends. Only convolutions, ReLU6, sums and one average, which every mobile runtime
has in int8. ReLU6 bounds the wide activations, so that no rare large value can spoil their int8 scale.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["InvertedResidual", "MobileResNet", "cifar_mobile", "imagenet_mobile"]

_EXPANSION = 4
_HEAD = 4  # the last 1x1 convolution, as a multiple of the last stage's width


class InvertedResidual(nn.Module):
    """[N, in, H, W] -> [N, out, H / stride, W / stride], through `_EXPANSION` * in channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = inputs * _EXPANSION
        self.expand = _ConvNorm(inputs, wide, 1)
        self.depthwise = _ConvNorm(wide, wide, 3, stride, groups=wide)
        self.project = _ConvNorm(wide, outputs, 1)
        self.relu = nn.ReLU6(inplace=True)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.expand(x))
        out = self.relu(self.depthwise(out))
        narrow: Tensor = self.project(out)
        return x + narrow if self.has_shortcut else narrow


class MobileResNet(nn.Module):
    """[N, 3, H, W] normalized images -> [N, classes] logits.

    A 3x3 convolution to `stem` channels, stages of (width, blocks, stride), a 1x1 convolution to 4 times the
    last width, the global average and the classifier.
    """

    def __init__(
        self, stem: int, stem_stride: int, stages: Sequence[tuple[int, int, int]], num_classes: int
    ) -> None:
        super().__init__()
        self.stem = _ConvNorm(3, stem, 3, stem_stride)
        inputs, built = stem, []
        for width, blocks, stride in stages:
            members = [InvertedResidual(inputs, width, stride)]
            members += [InvertedResidual(width, width, 1) for _ in range(blocks - 1)]
            built.append(nn.Sequential(*members))
            inputs = width
        self.stages = nn.Sequential(*built)
        self.head = _ConvNorm(inputs, _HEAD * inputs, 1)
        self.relu = nn.ReLU6(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(_HEAD * inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = self.relu(self.head(self.stages(x)))
        logits: Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits


class _ConvNorm(nn.Sequential):
    """Convolution without bias and its batch normalization; the activation is the caller's."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        )


def imagenet_mobile(num_classes: int = 1000) -> MobileResNet:
    """For 224x224: four stages at 56, 28, 14 and 7 pixels, as a ResNet's.

    At 112 pixels there is only the stem, and it is narrow: one inverted residual of 32 channels there would
    cost as much as a whole later stage.
    """
    stages = ((24, 3, 2), (48, 4, 2), (96, 8, 2), (192, 4, 2))
    return MobileResNet(16, 2, stages, num_classes)


def cifar_mobile(num_classes: int = 10) -> MobileResNet:
    """For 32x32: ResNet-20's three stages of three blocks, at 32, 16 and 8 pixels."""
    return MobileResNet(16, 1, ((24, 3, 1), (40, 3, 2), (80, 3, 2)), num_classes)
