"""A weights file -> tensors by name. Only tensors are ever unpickled; no file runs code."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from edge_resnet.errors import InputError, first_line
from edge_resnet.files import check_regular_file

__all__ = ["check_finite", "is_torchscript", "load_into", "load_state_dict_file"]

_PICKLED = (".pt", ".pth", ".th", ".bin", ".ckpt")
_NESTED = ("state_dict", "model", "ema", "model_state_dict", "net", "state_dict_ema", "model_ema")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_WRAPPERS = re.compile(rf"^(?:{'|'.join(map(re.escape, _PREFIXES))})+")
_DEEPEST = 4  # levels of nesting: a hostile checkpoint may hold itself
_AVERAGED = "n_averaged"  # torch.optim.swa_utils.AveragedModel's counter, beside keys prefixed `module.`
_SHOWN = 3


def load_state_dict_file(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file or of a .pt/.pth/.th state dict, by name.

    Looks under `state_dict`, `model` and `ema`, and strips `module.` from the keys. Raises InputError for a
    file that is missing, unreadable, empty, truncated or no model, for code in the pickle, and for tensors
    that are NaN, infinite or not plain numbers (the tensor is named).
    """
    check_regular_file(path, "weights file")
    if path.suffix.lower() == ".safetensors":
        values: Any = _read_safetensors(path)
    elif path.suffix.lower() in _PICKLED:
        values = _read_pickled(path)
    else:
        raise InputError(f"{path}: weights are .safetensors or a {'/'.join(_PICKLED[:3])} state dict")
    state = _without_prefix(_unnested(path, values))
    check_finite(state, str(path))
    return state


def check_finite(state: Mapping[str, Tensor], origin: str) -> None:
    """Raises InputError that names the first tensor with NaN or infinite values, or of an unusual kind."""
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):  # a module's own extra state
            continue
        kind = _unusual(tensor)
        if kind is not None:
            raise InputError(f"{origin}: tensor {name!r} is {kind}; save it as plain floating point numbers")
        if not tensor.is_floating_point():
            continue
        numbers = tensor.float() if tensor.itemsize == 1 else tensor  # isfinite does not take float8
        if not bool(torch.isfinite(numbers).all()):
            raise InputError(
                f"{origin}: tensor {name!r} holds NaN or infinite values; training diverged there"
            )


def _unusual(tensor: Tensor) -> str | None:
    """What keeps a tensor from being read as numbers, in a word."""
    if is_lazy(tensor):
        return "not initialized (a lazy layer that never ran)"
    if tensor.is_meta:
        return "without values (on the meta device)"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_quantized:
        return "quantized"
    return "complex" if tensor.is_complex() else None


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: the weights file cannot be read: {error.strerror or error}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_safetensors(path.read_bytes())
    except OSError as error:
        raise _unreadable(path, error) from error
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path}: not a readable .safetensors file: {error}") from error


def _read_pickled(path: Path) -> Any:
    if is_torchscript(path):
        raise InputError(
            f"{path}: a TorchScript file holds a program, which is not run here; save the weights instead: "
            'torch.save(model.state_dict(), "weights.pt")'
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch words it "Unsupported global", "Unsupported class" or "unsupported GLOBAL ... is blocked".
        if any(word in str(error).lower() for word in ("unsupported global", "unsupported class")):
            raise InputError(
                f"{path}: holds Python objects besides tensors, which are not loaded (they could run code); "
                'save the weights alone: torch.save(model.state_dict(), "weights.pt")'
            ) from error
        raise InputError(f"{path}: not a weights file (not a torch pickle, or cut off)") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    except Exception as error:  # a damaged archive surfaces as many types
        raise InputError(f"{path}: truncated or damaged weights file: {first_line(error)}") from error


def is_torchscript(path: Path) -> bool:
    """Whether the file is a program of torch.jit.save, not weights."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/", 1)[-1] == "constants.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def _unnested(path: Path, values: Any) -> dict[str, Tensor]:
    tensors = _tensors_in(values, _DEEPEST)
    if tensors is None:
        kind = type(values).__name__
        raise InputError(
            f"{path}: holds no state dict (found {kind}); "
            f"looked for tensors, also under {', '.join(_NESTED[:3])}"
        )
    return tensors


def _tensors_in(values: Any, levels: int) -> dict[str, Tensor] | None:
    """Nested ones first: a training script may keep its best accuracy as a tensor beside `state_dict`."""
    if levels == 0 or not isinstance(values, Mapping):
        return None
    for key in _NESTED:
        found = _tensors_in(values.get(key), levels - 1)
        if found is not None:
            return found
    return {str(key): value for key, value in values.items() if isinstance(value, Tensor)} or None


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Wrappers nest in any order: DistributedDataParallel of a compiled model, or the other way round."""
    weights = {key: value for key, value in state.items() if key != _AVERAGED}
    prefix = next((p for p in _PREFIXES if weights and all(key.startswith(p) for key in weights)), None)
    if prefix is None:
        return state
    return _without_prefix({key.removeprefix(prefix): value for key, value in weights.items()})


def _with_prefix_of(wanted: Mapping[str, Any], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Put back what `_without_prefix` took, where the module itself has all its layers under `model.`."""
    first = next(iter(wanted), "")
    prefix = first[: len(first) - len(_WRAPPERS.sub("", first, count=1))]
    if not all(key.startswith(prefix) for key in wanted) or any(key.startswith(prefix) for key in state):
        return state
    return {prefix + key: value for key, value in state.items()}


def load_into(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load weights strictly. Raises InputError that lists the first missing, unknown and misshapen keys.

    `num_batches_tracked`, which inference does not use, may be missing.
    """
    wanted = {key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)}
    state = _with_prefix_of(wanted, state)
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
