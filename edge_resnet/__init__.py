"""Compress a trained ResNet once; ship the same integers to TFLite, Core ML and ONNX."""

from edge_resnet.version import __version__

__all__ = ["__version__"]
