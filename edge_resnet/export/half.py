"""Real numbers in the file's float type, refused where that type cannot hold them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import GraphError

__all__ = ["LARGEST_HALF", "stored_floats"]

LARGEST_HALF = float(np.finfo(np.float16).max)  # 65504


def stored_floats(name: str, values: Any, dtype: Any) -> NDArray[Any]:
    """`values` rounded to `dtype`. Raises GraphError that names the node where a number becomes infinite."""
    with np.errstate(over="ignore"):
        typed = np.asarray(values).astype(dtype)
    if not np.isfinite(typed).all():
        raise GraphError(f"node {name!r}: a number is too large for {np.dtype(dtype).name}")
    return typed
