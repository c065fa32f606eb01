"""The one place that imports torchvision and timm."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import torch

from edge_resnet.errors import MissingToolError

__all__ = ["import_timm", "import_torchvision"]

_OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[torch.library.Library] = []  # a declaration lives as long as its library object


def import_torchvision() -> ModuleType:
    """torchvision, also beside a CPU build of torch.

    torchvision's compiled part is published for CUDA builds; on a CPU torch it does not load, and importing
    the package then fails on two operators that no classifier uses. Declaring them is enough.
    Raises MissingToolError with the command that installs it.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise MissingToolError('torchvision is not installed: pip install "edge-resnet[torchvision]"')
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name, schema in _OPERATORS.items():
        if not hasattr(torch.ops.torchvision, name):
            library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
            library.define(schema)  # type: ignore[no-untyped-call]
            _libraries.append(library)
    return importlib.import_module("torchvision")


def import_timm() -> ModuleType:
    """timm, which imports torchvision. Raises MissingToolError with the command that installs it."""
    if importlib.util.find_spec("timm") is None:
        raise MissingToolError('timm is not installed: pip install "edge-resnet[timm]"')
    import_torchvision()
    return importlib.import_module("timm")
