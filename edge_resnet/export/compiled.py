"""Files that a vendor's compiler makes of an int8 file, to ship to one kind of NPU.

What was compiled is this program's own int8 file (for Hexagon see hexagon_windows.py); the result is the
compiler's own format.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from edge_resnet.export.hexagon_windows import widen_windows
from edge_resnet.export.onnx import onnx_bytes
from edge_resnet.export.tflite import IoType, tflite_bytes
from edge_resnet.files import atomic_write
from edge_resnet.graph.graph import Graph
from edge_resnet.recipe import Export

__all__ = ["check_compiler", "write_qnn_context", "write_vela"]

_COMPILING = 600.0  # seconds; ResNet-50 takes two


def check_compiler(target: str, export: Export) -> None:
    """Raises MissingToolError where the target's compiler is not here, InputError for an unknown NPU."""
    if target == "vela":
        from edge_resnet.devices.vela_compiler import VELA, check_accelerator

        VELA.check(f"--target {target}")
        check_accelerator("export.vela", export.vela)
    else:
        from edge_resnet.devices.qnn import QNN

        QNN.check(f"--target {target}")


def write_vela(graph: Graph, path: Path, export: Export) -> None:
    """For the Ethos-U of the recipe, on the board that Vela takes by itself."""
    from edge_resnet.devices.vela_compiler import Board, compile_with_vela

    with tempfile.TemporaryDirectory(prefix="edge-resnet-") as folder:
        source = Path(folder) / f"{graph.name}.tflite"
        source.write_bytes(tflite_bytes(graph, IoType(export.tflite_io)))
        out = Path(folder) / "out"
        compiled = compile_with_vela(source, Board(export.vela), out, _COMPILING).compiled
    atomic_write(path, compiled)


def write_qnn_context(graph: Graph, path: Path, export: Export) -> None:
    """For the Hexagon architecture of the recipe; the context binary is inside the ONNX file."""
    from edge_resnet.devices.qnn import compile_for_hexagon

    source = widen_windows(onnx_bytes(graph))
    atomic_write(path, compile_for_hexagon(source, str(export.qnn_htp), graph.name))
