"""The one place that imports coremltools."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from edge_resnet.errors import MissingToolError
from edge_resnet.hidden_modules import hidden

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
    with hidden("tensorflow"):  # it would import it, for its converter, which takes seconds
        return importlib.import_module("coremltools")


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
