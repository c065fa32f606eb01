"""Wide, bottleneck and ResNeXt members for 32x32 images, small enough to be trained on two CPU cores.

Three stages at 32, 16 and 8 pixels, as in CifarResNet, with projection shortcuts (option B) and the
activation after the sum. The papers' own CIFAR members (WRN-28-10 with 36 M parameters, ResNeXt-29 8x64d with
34 M) are for GPUs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from edge_resnet.models.cifar_resnet import BasicBlock
from edge_resnet.models.imagenet_resnet import Bottleneck

__all__ = ["CifarStages", "cifar_bottleneck", "cifar_resnext", "cifar_wide"]

_STEM = 16


class CifarStages(nn.Module):
    """[N, 3, 32, 32] normalized images -> [N, classes] logits.

    A 3x3 convolution to 16 channels, then three stages of `blocks` blocks. `block(inputs, width, stride)` has
    `expansion` * width channels; the stages' widths are `width`, 2 `width` and 4 `width`.
    """

    def __init__(
        self,
        block: Callable[[int, int, int], nn.Module],
        expansion: int,
        blocks: int,
        width: int,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, _STEM, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        inputs, stages = _STEM, []
        for stage_width, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            members = [block(inputs, stage_width, stride)]
            inputs = stage_width * expansion
            members += [block(inputs, stage_width, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*members))
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def cifar_wide(depth: int, factor: int, num_classes: int = 10) -> CifarStages:
    """The layout of WRN-depth-factor (Zagoruyko 2016, `depth` is 6n + 4), with the activation after the sum.

    The paper's blocks normalize and activate before each convolution; that order cannot fold batch
    normalization into convolutions, so on a device it costs one more pass over every activation.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth {depth} is not 6n + 4")
    return CifarStages(
        lambda inputs, width, stride: BasicBlock(inputs, width, stride, "B"),
        1,
        (depth - 4) // 6,
        16 * factor,
        num_classes,
    )


def cifar_bottleneck(depth: int, num_classes: int = 10) -> CifarStages:
    """Bottleneck blocks of inner widths 16, 32 and 64; `depth` is 9n + 2.

    The family of ResNet-164 (n = 18) in He et al., "Identity Mappings in Deep Residual Networks", 2016
    (1603.05027), with the activation after the sum.
    """
    if depth < 11 or (depth - 2) % 9:
        raise ValueError(f"depth {depth} is not 9n + 2")
    return CifarStages(Bottleneck, Bottleneck.expansion, (depth - 2) // 9, 16, num_classes)


def cifar_resnext(depth: int, cardinality: int, base_width: int, num_classes: int = 10) -> CifarStages:
    """ResNeXt of Xie 2016, section 5.2, scaled down: stages of 64, 128 and 256 channels; `depth` is 9n + 2.

    The first stage's 3x3 convolutions have `cardinality` groups of `base_width` channels; later stages double
    the channels of a group.
    """
    if depth < 11 or (depth - 2) % 9:
        raise ValueError(f"depth {depth} is not 9n + 2")
    width = 16
    return CifarStages(
        # Bottleneck scales its groups for a first stage of 64; here it is `width`.
        lambda inputs, inner, stride: Bottleneck(
            inputs, inner, stride, cardinality, base_width * 64 // width
        ),
        Bottleneck.expansion,
        (depth - 2) // 9,
        width,
        num_classes,
    )
