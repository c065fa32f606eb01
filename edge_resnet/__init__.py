"""Compress a trained ResNet once; ship the same integers to TFLite, Core ML and ONNX.

>>> import edge_resnet
>>> edge_resnet.compress(  # doctest: +SKIP
...     "torchvision:resnet50", weights="mine.pt", data="images", targets=["tflite-int8", "coreml-int8"]
... )
"""

import os
from typing import TYPE_CHECKING, Any

from edge_resnet.version import __version__

# Read when ONNX Runtime is imported, which else keeps a database of its use in the user's cache folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from edge_resnet.pipeline import RunResult, compress

__all__ = ["RunResult", "__version__", "compress"]


def __getattr__(name: str) -> Any:
    """Import the pipeline when it is first asked for: it brings torch with it."""
    if name in ("RunResult", "compress"):
        from edge_resnet import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
