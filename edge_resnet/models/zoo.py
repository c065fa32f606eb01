"""The models of this project, by name: how each is built, what its images go through, what trains it.

torch is imported when a model is built, so that listing them costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["DEMO_WEIGHTS", "ZOO", "Kind", "ZooEntry"]

DEMO_WEIGHTS = Path(__file__).parent / "weights" / "demo.safetensors"

Kind = Literal["standard", "bottleneck", "wide", "resnext", "mobile"]

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_PHOTOS = {"size": 224, "resize": 256, **_IMAGENET}  # as torchvision's published weights were evaluated


@dataclass(frozen=True)
class ZooEntry:
    """How a model is built (`build(num_classes)`), and what its images go through (keys of Preprocess).

    `recipe` names the file in recipes/ that trains it from scratch, without `.yaml`.
    """

    description: str
    build: Callable[[int], Any]
    classes: int = 10
    preprocess: dict[str, Any] = field(default_factory=lambda: {"size": 32, **_IMAGENET})
    kind: Kind = "standard"
    recipe: str = "train-cifar"


def _cifar(depth: int, shortcut: str, width: int = 16) -> Callable[[int], Any]:
    def build(num_classes: int) -> Any:
        from edge_resnet.models.cifar_resnet import CifarResNet

        return CifarResNet(depth, num_classes, "B" if shortcut == "B" else "A", width)

    return build


def _cifar_wide(num_classes: int) -> Any:
    from edge_resnet.models.cifar_variants import cifar_wide

    return cifar_wide(16, 4, num_classes)


def _cifar_bottleneck(num_classes: int) -> Any:
    from edge_resnet.models.cifar_variants import cifar_bottleneck

    return cifar_bottleneck(29, num_classes)


def _cifar_resnext(num_classes: int) -> Any:
    from edge_resnet.models.cifar_variants import cifar_resnext

    return cifar_resnext(20, 8, 8, num_classes)


def _cifar_mobile(num_classes: int) -> Any:
    from edge_resnet.models.mobile_resnet import cifar_mobile

    return cifar_mobile(num_classes)


def _imagenet_mobile(num_classes: int) -> Any:
    from edge_resnet.models.mobile_resnet import imagenet_mobile

    return imagenet_mobile(num_classes)


def _basic(*depths: int) -> Callable[[int], Any]:
    def build(num_classes: int) -> Any:
        from edge_resnet.models.imagenet_resnet import BasicBlock, ImageNetResNet

        return ImageNetResNet(BasicBlock, BasicBlock.expansion, depths, num_classes)

    return build


def _bottleneck(*depths: int, groups: int = 1, base_width: int = 64) -> Callable[[int], Any]:
    def build(num_classes: int) -> Any:
        from edge_resnet.models.imagenet_resnet import Bottleneck, ImageNetResNet

        def block(inputs: int, width: int, stride: int) -> Bottleneck:
            return Bottleneck(inputs, width, stride, groups, base_width)

        return ImageNetResNet(block, Bottleneck.expansion, depths, num_classes)

    return build


def _small() -> dict[str, ZooEntry]:
    """For 32x32."""
    entries = {
        "demo": ZooEntry(
            "the bundled demo: ResNet-8 on handwritten digits, trained",
            _cifar(8, "A"),
            10,
            {"size": 32, **_HALF},
        )
    }
    for depth in (20, 32, 44, 56, 110):
        for shortcut, suffix in (("A", ""), ("B", "b")):
            entries[f"resnet{depth}{suffix}"] = ZooEntry(
                f"CIFAR ResNet-{depth} of the original paper, option {shortcut} shortcuts, 32x32",
                _cifar(depth, shortcut),
            )
    entries["resnet29_bottleneck"] = ZooEntry(
        "bottleneck blocks, 29 layers, 32x32", _cifar_bottleneck, kind="bottleneck"
    )
    entries["wide_resnet16_4"] = ZooEntry(
        "wide: 16 layers, 4 times the channels, 32x32", _cifar_wide, kind="wide"
    )
    entries["resnext20_8x8d"] = ZooEntry(
        "ResNeXt: 20 layers, 8 groups of 8 channels, 32x32", _cifar_resnext, kind="resnext"
    )
    entries["mobile_resnet20"] = ZooEntry(
        "mobile: inverted residuals in ResNet-20's stages, 32x32", _cifar_mobile, kind="mobile"
    )
    return entries


def _large() -> dict[str, ZooEntry]:
    """For 224x224. Takes torchvision's published weights, but for the mobile one."""

    def entry(kind: Kind, description: str, build: Callable[[int], Any]) -> ZooEntry:
        return ZooEntry(f"{description}, 224x224", build, 1000, dict(_PHOTOS), kind, "train-imagenet")

    return {
        "resnet18": entry("standard", "ResNet-18", _basic(2, 2, 2, 2)),
        "resnet34": entry("standard", "ResNet-34", _basic(3, 4, 6, 3)),
        "resnet50": entry("bottleneck", "ResNet-50", _bottleneck(3, 4, 6, 3)),
        "resnet101": entry("bottleneck", "ResNet-101", _bottleneck(3, 4, 23, 3)),
        "wide_resnet50_2": entry(
            "wide", "wide ResNet-50, inner width doubled", _bottleneck(3, 4, 6, 3, base_width=128)
        ),
        "wide_resnet101_2": entry(
            "wide", "wide ResNet-101, inner width doubled", _bottleneck(3, 4, 23, 3, base_width=128)
        ),
        "resnext50_32x4d": entry(
            "resnext", "ResNeXt-50, 32 groups of 4 channels", _bottleneck(3, 4, 6, 3, groups=32, base_width=4)
        ),
        "mobile_resnet": entry("mobile", "mobile: inverted residuals", _imagenet_mobile),
    }


ZOO: dict[str, ZooEntry] = _small() | _large()
