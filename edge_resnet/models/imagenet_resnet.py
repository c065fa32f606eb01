"""ResNets for ImageNet-size images: standard, bottleneck, wide and ResNeXt.

He et al., "Deep Residual Learning for Image Recognition", 2015 (arXiv 1512.03385), table 1.
Zagoruyko and Komodakis, "Wide Residual Networks", 2016 (1605.07146): the inner convolutions twice as wide.
Xie et al., "Aggregated Residual Transformations for Deep Neural Networks", 2016 (1611.05431): the 3x3
convolutions in groups.

Parameter names and shapes are torchvision's, so that weights published for torchvision's models load here.
A bottleneck strides in its 3x3 convolution, as torchvision has it; in the paper in the first 1x1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

__all__ = ["BasicBlock", "Bottleneck", "ImageNetResNet", "projection"]

_STAGE_WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, [N, in, H, W] -> [N, width, H / stride, W / stride]."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = projection(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        activated: Tensor = self.relu(out + shortcut)
        return activated


class Bottleneck(nn.Module):
    """1x1, 3x3 in `groups`, 1x1, and a shortcut: [N, in, H, W] -> [N, 4 width, H / stride, W / stride].

    The inner convolutions have `groups` * floor(width * base_width / 64) channels: with base_width 64 and one
    group `width` of them, twice as many with base_width 128 (wide), and twice as many with 32 groups of
    base_width 4 (ResNeXt 32x4d).
    """

    expansion = 4

    def __init__(
        self, inputs: int, width: int, stride: int = 1, groups: int = 1, base_width: int = 64
    ) -> None:
        super().__init__()
        inner, outputs = groups * (width * base_width // 64), width * self.expansion
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        activated: Tensor = self.relu(out + shortcut)
        return activated


class ImageNetResNet(nn.Module):
    """[N, 3, 224, 224] normalized images -> [N, classes] logits.

    `block(inputs, width, stride)` builds one block, of `expansion` * width channels; `depths` counts the
    blocks of the four stages.
    """

    def __init__(
        self,
        block: Callable[[int, int, int], nn.Module],
        expansion: int,
        depths: Sequence[int],
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = 64
        stages: list[nn.Sequential] = []
        for width, depth in zip(_STAGE_WIDTHS, depths, strict=True):
            blocks = [block(inputs, width, 2 if stages else 1)]
            inputs = width * expansion
            blocks += [block(inputs, width, 1) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def projection(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """The shortcut where a block changes its shape (option B), or None for the identity."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
