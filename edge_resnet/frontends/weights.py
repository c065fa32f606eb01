"""A weights file -> tensors by name. Only tensors are ever unpickled; no file runs code."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from edge_resnet.errors import InputError

__all__ = ["check_finite", "load_into", "load_state_dict_file"]

_PICKLED = (".pt", ".pth", ".th", ".bin", ".ckpt")
_NESTED = ("state_dict", "model", "ema", "model_state_dict", "net", "state_dict_ema", "model_ema")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_SHOWN = 3


def load_state_dict_file(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file or of a .pt/.pth/.th state dict, by name.

    Looks under `state_dict`, `model` and `ema`, and strips `module.` from the keys. Raises InputError for a
    file that is missing, empty, truncated or no model, for code in the pickle, and for NaN or infinite values
    (the tensor is named).
    """
    if not path.exists():
        raise InputError(f"{path}: there is no such weights file")
    if path.is_dir():
        raise InputError(f"{path}: a folder, not a weights file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the weights file is empty")
    if path.suffix == ".safetensors":
        values: Any = _read_safetensors(path)
    elif path.suffix in _PICKLED:
        values = _read_pickled(path)
    else:
        raise InputError(f"{path}: weights are .safetensors or a {'/'.join(_PICKLED[:3])} state dict")
    state = _without_prefix(_unnested(path, values))
    check_finite(state, str(path))
    return state


def check_finite(state: Mapping[str, Tensor], origin: str) -> None:
    """Raises InputError that names the first tensor with NaN or infinite values."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"{origin}: tensor {name!r} holds NaN or infinite values; training diverged there"
            )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_safetensors(path.read_bytes())
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable .safetensors file: {error}") from error


def _read_pickled(path: Path) -> Any:
    if _is_torchscript(path):
        raise InputError(
            f"{path}: a TorchScript file holds a program, which is not run here; save the weights instead: "
            'torch.save(model.state_dict(), "weights.pt")'
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise InputError(
                f"{path}: holds Python objects besides tensors, which are not loaded (they could run code); "
                'save the weights alone: torch.save(model.state_dict(), "weights.pt")'
            ) from error
        raise InputError(f"{path}: not a weights file (not a torch pickle, or cut off)") from error
    except Exception as error:  # a damaged archive surfaces as many types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: truncated or damaged weights file: {reason}") from error


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/", 1)[-1] == "constants.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _unnested(path: Path, values: Any) -> dict[str, Tensor]:
    while isinstance(values, Mapping):
        tensors = {str(key): value for key, value in values.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
        inner = next((values[key] for key in _NESTED if key in values), None)
        if inner is None:
            break
        values = inner
    kind = type(values).__name__
    raise InputError(
        f"{path}: holds no state dict (found {kind}); looked for tensors, also under {', '.join(_NESTED[:3])}"
    )


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def load_into(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load weights strictly. Raises InputError that lists the first missing, unknown and misshapen keys.

    `num_batches_tracked`, which inference does not use, may be missing.
    """
    wanted = module.state_dict()
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in wanted]
    misshapen = [
        f"{key} {list(state[key].shape)} (model: {list(value.shape)})"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    problems = [
        f"{word} {', '.join(keys[:_SHOWN])}{f' and {len(keys) - _SHOWN} more' if len(keys) > _SHOWN else ''}"
        for word, keys in (("missing", missing), ("unknown", unknown), ("other shape:", misshapen))
        if keys
    ]
    if problems:
        raise InputError(f"{origin}: weights of another architecture: {'; '.join(problems)}")
    module.load_state_dict(dict(state), strict=False)
