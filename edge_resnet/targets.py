"""The targets of `--target`: for each, how it is written, read back and run.

Everything heavy is imported when a target is used, so that listing them costs nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from edge_resnet.errors import InputError

if TYPE_CHECKING:
    from edge_resnet.graph.graph import Graph
    from edge_resnet.recipe import Export
    from edge_resnet.runners.base import Runner
    from edge_resnet.verify.contents import ArtifactContents, StoredFloats

__all__ = ["TARGETS", "Target", "parse_targets", "target_of_file"]


@dataclass(frozen=True)
class Target:
    """A kind of artifact. `exact`: its runtime computes the reference executor's integers to the bit.

    A float target's weights are in `float_type` and equal the graph's; its runtime must choose the float
    model's class (see verify/prove.py). With `palette_bits` each weight is one of so few values: classes may
    differ by design, which a warning tells, and what must hold is that the runtime computes with the weights
    of the file. `compiled_from`: the target whose file a vendor's compiler made it of; nothing but the
    compiler's own runtime reads it back, and `open` is None where that runs nowhere but on the device.
    `most_images`: so many are answered at most, where the runtime is slow.
    """

    name: str
    suffix: str
    quantized: bool
    exact: bool
    write: Callable[[Graph, Path, Export], None]
    read_back: Callable[[Path], ArtifactContents]
    read_floats: Callable[[Path], dict[str, StoredFloats]]
    open: Callable[[Path], Runner] | None
    float_type: Literal["float32", "float16"] | None = None
    palette_bits: int | None = None
    compiled_from: str | None = None
    most_images: int | None = None

    def path(self, directory: Path, model: str) -> Path:
        return directory / f"{model}-{self.name}{self.suffix}"


def parse_targets(names: Sequence[str]) -> tuple[Target, ...]:
    """Targets by name, each once. Raises InputError that lists them."""
    for name in names:
        if name not in TARGETS:
            near = difflib.get_close_matches(name, TARGETS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"targets: {', '.join(TARGETS)}"
            raise InputError(f"unknown target {name!r}; {hint}")
    return tuple(TARGETS[name] for name in dict.fromkeys(names))


def target_of_file(path: Path) -> Target:
    """The target of an artifact by its name, MODEL-TARGET.suffix; a renamed file is taken as int8."""
    by_suffix = [target for target in TARGETS.values() if target.suffix == path.suffix]
    for target in by_suffix:
        if path.stem.endswith(f"-{target.name}"):
            return target
    if not by_suffix:
        suffixes = ", ".join(dict.fromkeys(target.suffix for target in TARGETS.values()))
        raise InputError(f"{path}: not an artifact; artifacts end in {suffixes}")
    return by_suffix[0]


def _write_tflite(graph: Graph, path: Path, export: Export) -> None:
    from edge_resnet.export.tflite import IoType, tflite_bytes

    path.write_bytes(tflite_bytes(graph, IoType(export.tflite_io)))


def _write_half_tflite(graph: Graph, path: Path, export: Export) -> None:
    from edge_resnet.export.tflite import IoType, tflite_bytes

    path.write_bytes(tflite_bytes(graph, IoType(export.tflite_io), half=True))


def _write_onnx(graph: Graph, path: Path, export: Export) -> None:
    from edge_resnet.export.onnx import onnx_bytes

    path.write_bytes(onnx_bytes(graph))


def _write_half_onnx(graph: Graph, path: Path, export: Export) -> None:
    from edge_resnet.export.onnx import onnx_bytes

    path.write_bytes(onnx_bytes(graph, half=True))


def _write_coreml(graph: Graph, path: Path, export: Export) -> None:
    from edge_resnet.export.coreml import write_coreml

    precision = export.coreml_precision if graph.input.quant is not None else "float16"
    write_coreml(graph, path, precision=precision, labels=graph.labels)


def _palette(bits: int) -> Target:
    def write(graph: Graph, path: Path, export: Export) -> None:
        from edge_resnet.export.coreml import write_coreml
        from edge_resnet.export.coreml_palette import PALETTES

        write_coreml(graph, path, precision="float16", labels=graph.labels, palette=PALETTES[bits])

    return Target(
        f"coreml-palette{bits}",
        ".mlpackage",
        False,
        False,
        write,
        *_READ_COREML,
        "float16",
        palette_bits=bits,
    )


def _read_tflite(path: Path) -> ArtifactContents:
    from edge_resnet.verify.readback_tflite import read_tflite

    return read_tflite(path)


def _read_onnx(path: Path) -> ArtifactContents:
    from edge_resnet.verify.readback_onnx import read_onnx

    return read_onnx(path)


def _read_coreml(path: Path) -> ArtifactContents:
    from edge_resnet.verify.readback_coreml import read_coreml

    return read_coreml(path)


def _read_tflite_floats(path: Path) -> dict[str, StoredFloats]:
    from edge_resnet.verify.readback_tflite import read_tflite_floats

    return read_tflite_floats(path)


def _read_onnx_floats(path: Path) -> dict[str, StoredFloats]:
    from edge_resnet.verify.readback_onnx import read_onnx_floats

    return read_onnx_floats(path)


def _read_coreml_floats(path: Path) -> dict[str, StoredFloats]:
    from edge_resnet.verify.readback_coreml import read_coreml_floats

    return read_coreml_floats(path)


def _open_tflite(path: Path) -> Runner:
    from edge_resnet.runners.litert import LiteRTRunner

    return LiteRTRunner(path)


def _open_onnx(path: Path) -> Runner:
    from edge_resnet.runners.onnxruntime import OnnxRuntimeRunner

    return OnnxRuntimeRunner(path)


def _open_coreml(path: Path) -> Runner:
    from edge_resnet.runners.coreml import open_coreml

    return open_coreml(path)


def _open_hexagon(path: Path) -> Runner:
    from edge_resnet.runners.hexagon import HexagonRunner

    return HexagonRunner(path)


def _write_vela(graph: Graph, path: Path, export: Export) -> None:
    from edge_resnet.export.compiled import write_vela

    write_vela(graph, path, export)


def _write_qnn_context(graph: Graph, path: Path, export: Export) -> None:
    from edge_resnet.export.compiled import write_qnn_context

    write_qnn_context(graph, path, export)


def _unreadable(path: Path) -> NoReturn:
    raise InputError(
        f"{path}: a compiler's own format, which is not read back; look at the int8 file instead"
    )


_READ_TFLITE = (_read_tflite, _read_tflite_floats, _open_tflite)
_READ_ONNX = (_read_onnx, _read_onnx_floats, _open_onnx)
_READ_COREML = (_read_coreml, _read_coreml_floats, _open_coreml)

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("tflite-int8", ".tflite", True, True, _write_tflite, *_READ_TFLITE),
        Target("tflite-fp32", ".tflite", False, False, _write_tflite, *_READ_TFLITE, "float32"),
        Target("tflite-fp16", ".tflite", False, False, _write_half_tflite, *_READ_TFLITE, "float16"),
        Target("onnx-int8", ".onnx", True, True, _write_onnx, *_READ_ONNX),
        Target("onnx-fp32", ".onnx", False, False, _write_onnx, *_READ_ONNX, "float32"),
        Target("onnx-fp16", ".onnx", False, False, _write_half_onnx, *_READ_ONNX, "float16"),
        Target("coreml-int8", ".mlpackage", True, False, _write_coreml, *_READ_COREML),
        Target("coreml-fp16", ".mlpackage", False, False, _write_coreml, *_READ_COREML, "float16"),
        _palette(8),
        _palette(6),
        _palette(4),
        Target(
            "vela",
            ".tflite",
            True,
            False,
            _write_vela,
            _unreadable,
            _unreadable,
            None,
            compiled_from="tflite-int8",
        ),
        Target(
            "qnn-context",
            ".onnx",
            True,
            False,
            _write_qnn_context,
            _unreadable,
            _unreadable,
            _open_hexagon,
            compiled_from="onnx-int8",
            most_images=500,
        ),
    )
}
