"""The torch module that every export starts from, with the weights of the folder.

The only thing here that imports edge_resnet: its models are plain torch modules.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["build", "load"]


def build(name: str, classes: int) -> Any:
    """A zoo name or torchvision:NAME, with random weights."""
    if name.startswith("torchvision:"):
        from edge_resnet.models.torchvision_models import import_torchvision

        return import_torchvision().models.get_model(
            name.removeprefix("torchvision:"), weights=None, num_classes=classes
        )
    from edge_resnet.models.zoo import ZOO

    return ZOO[name].build(classes)


def load(folder: Path) -> Any:
    import torch

    about = json.loads((folder / "model.json").read_text())
    module = build(about["name"], about["classes"])
    module.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    return module.eval()
