"""The weights that training leaves in a run's folder."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save
from torch import nn

from edge_resnet.files import atomic_write

__all__ = ["save_trained", "trained_path"]


def trained_path(directory: Path, name: str) -> Path:
    """Where a run leaves the weights that it trained."""
    return directory / f"{name}-trained.safetensors"


def save_trained(module: nn.Module, path: Path) -> None:
    """Write the state dict, the same bytes for the same weights. Raises InputError when it cannot."""
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    state = {name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}
    atomic_write(path, save(state))
