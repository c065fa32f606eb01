"""The one place that imports coremltools."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from edge_resnet.errors import MissingToolError

__all__ = ["import_coremltools", "without_progress_bars"]


def import_coremltools() -> ModuleType:
    """coremltools, without what it logs at import (missing macOS parts, untested torch versions).

    Raises MissingToolError where it is not installed; Linux on ARM has no wheel of it.
    """
    if importlib.util.find_spec("coremltools") is None:
        raise MissingToolError(
            "Core ML targets need coremltools, which is not installed (it has no wheel for Linux on ARM): "
            "pip install coremltools on x86-64 Linux or a Mac"
        )
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    with _hidden("tensorflow"):
        return importlib.import_module("coremltools")


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """The module cannot be imported meanwhile: coremltools would, for its converter, and take seconds."""
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """coremltools draws bars over its passes and has no option to turn them off."""
    module = importlib.import_module("coremltools.converters.mil.mil.passes.pass_pipeline")
    bar = module.tqdm
    module.tqdm = lambda steps, **_: steps  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.tqdm = bar  # type: ignore[attr-defined]
