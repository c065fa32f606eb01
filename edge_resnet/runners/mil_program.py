"""A Core ML package, read from disk: its specification and its program, with weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import VerificationError, first_line
from edge_resnet.export.coreml_library import import_coremltools

__all__ = ["MilProgram", "palettes", "read_package"]

_DATA = Path("Data") / "com.apple.CoreML"


@dataclass(frozen=True)
class MilProgram:
    """`operations` of the main function in order; `metadata` is what the writer left in the file."""

    operations: list[Any]
    outputs: list[str]
    metadata: dict[str, str]
    version: str


def read_package(path: Path) -> MilProgram:
    """Load an .mlpackage. Raises VerificationError that names the file when it is damaged."""
    ct = import_coremltools()
    model, weights = path / _DATA / "model.mlmodel", path / _DATA / "weights"
    if not model.is_file() or not (weights / "weight.bin").is_file():
        raise VerificationError(f"{path}: not a complete Core ML package")
    try:
        from coremltools.converters.mil.frontend.milproto import load as milproto

        spec = ct.utils.load_spec(str(model))
        if spec.WhichOneof("Type") != "mlProgram":
            raise VerificationError(f"{path}: not an mlprogram")
        program = milproto.load(spec, spec.specificationVersion, file_weights_dir=str(weights))
        main = program.functions["main"]
        return MilProgram(
            operations=list(main.operations),
            outputs=[output.name for output in main.outputs],
            metadata=dict(spec.description.metadata.userDefined),
            version=str(ct.__version__),
        )
    except VerificationError:
        raise
    except Exception as error:  # protobuf, the blob reader and MIL each have their own types
        raise VerificationError(f"{path}: damaged Core ML package: {first_line(error)}") from error


def palettes(op: Any) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Of a constexpr_lut_to_dense: the entries' numbers [O, ...] and the palettes [groups, entries].

    The groups divide the first axis into equal parts. iOS 17 packs the numbers and has one palette; iOS 18
    has a palette for each part of the weight. Raises ValueError for one whose parts lie along another axis.
    """
    lut = np.array(op.lut.val)
    if "shape" in op.inputs and op.inputs["shape"] is not None:
        shape = [int(n) for n in op.shape.val]
        bits = int(np.log2(len(lut)))
        single = np.unpackbits(np.array(op.indices.val), bitorder="little")[: int(np.prod(shape)) * bits]
        indices = np.packbits(single.reshape(-1, bits), axis=1, bitorder="little")
        return indices.reshape(shape), lut[None]
    indices = np.array(op.indices.val).astype(np.uint8)
    if lut.size != lut.shape[0] * lut.shape[-2] or len(indices) % len(lut):
        raise ValueError(f"the palettes of {op.name} are not along the output channels")
    return indices, lut.reshape(len(lut), -1)
