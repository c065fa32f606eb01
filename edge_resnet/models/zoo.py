"""The models of this project, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["DEMO_WEIGHTS", "ZOO", "ZooEntry"]

# torch is imported when a model is built, so that listing them costs nothing.

DEMO_WEIGHTS = Path(__file__).parent / "weights" / "demo.safetensors"

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@dataclass(frozen=True)
class ZooEntry:
    """How a model is built (`build(num_classes)`), and what its images go through."""

    description: str
    build: Callable[[int], Any]
    classes: int = 10
    preprocess: dict[str, Any] = field(default_factory=lambda: {"size": 32, **_IMAGENET})


def _cifar(depth: int, shortcut: str, width: int = 16) -> Callable[[int], Any]:
    def build(num_classes: int) -> Any:
        from edge_resnet.models.cifar_resnet import CifarResNet

        return CifarResNet(depth, num_classes, "B" if shortcut == "B" else "A", width)

    return build


def _entries() -> dict[str, ZooEntry]:
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
    return entries


ZOO: dict[str, ZooEntry] = _entries()
