"""Graph -> Core ML, an mlprogram built with coremltools' MIL Builder, without any of its passes.

It is for iOS 17; one whose weights have several palettes each (coreml_palette.py) is for iOS 18.

Every value is called NODE_ROLE. NODE is the node's name as `program_names` spells it; the package's metadata
maps it back (NAMES_KEY). The roles, none of which holds an underscore:

  op, relu         what the node computes
  quantized        its integers
  value            what its readers take (in a quantized graph, the real values of the integers)
  weight, bias     its weights
  cast, centred, real    the way from the image's bytes to the input's real values

So NODE and ROLE can be told apart at the last underscore, and no two values share a name, nor does one take
the program's own: `image`, `probabilities`, `logits`. (Core ML wants each name once, its input's included;
coremltools checks this only in a pass that is not run here.)

The image comes as RGB bytes; the answer is the class label, the probabilities, and the logits.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import GraphError, InputError
from edge_resnet.export.coreml_library import import_coremltools, without_progress_bars
from edge_resnet.export.coreml_operations import WRITERS
from edge_resnet.export.coreml_palette import PaletteFormat, write_palettes
from edge_resnet.export.half import stored_floats
from edge_resnet.files import replace_directory
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import (
    Activation,
    BatchNorm,
    Conv,
    IntWeights,
    Linear,
    Node,
    Normalize,
    Relu,
)

__all__ = ["NAMES_KEY", "Precision", "program_names", "write_coreml"]

Precision = Literal["float16", "float32"]

NAMES_KEY = "edge_resnet.names"
_NAMESPACE = uuid.UUID("6f6c5f0e-6b1e-5f5f-9d3c-0e1b7a2d4c58")


def write_coreml(
    graph: Graph,
    path: Path,
    *,
    precision: Precision,
    labels: Sequence[str],
    palette: PaletteFormat | None = None,
) -> None:
    """Write `path`, an .mlpackage, of a quantized or a float graph. The same graph gives the same bytes.

    `precision` is the program's float type: float16 is what the Neural Engine runs. Scales are stored in it,
    which keeps them exact, since the graph's are exact in float16. Without labels the program has no
    classifier at its end, only `logits`. `palette` gives a float16 program weights of few different values.
    Raises MissingToolError without coremltools, GraphError for a node that should have been lowered and for a
    number that `precision` cannot hold, InputError for labels that do not fit and a place that cannot be
    written.
    """
    ct = import_coremltools()
    _check_labels(graph, labels)
    names = program_names(graph)
    writer = MilWriter(graph, names, np.dtype(precision).type, palette)
    program = writer.program(bool(labels))
    channels, height, width = graph.input.shape
    image = ct.ImageType(name="image", shape=(1, channels, height, width), color_layout=ct.colorlayout.RGB)
    with without_progress_bars():
        model = ct.convert(
            program,
            source="milinternal",
            convert_to="mlprogram",
            inputs=[image],
            minimum_deployment_target=writer.target,
            # No pass: among the default ones is one that rewrites the scales of residual sums.
            pass_pipeline=ct.PassPipeline.EMPTY,
            classifier_config=ct.ClassifierConfig(list(labels)) if labels else None,
            skip_model_load=True,
        )
    spec = model.get_spec()
    metadata = spec.description.metadata
    metadata.userDefined.clear()  # holds the date of conversion
    metadata.userDefined[NAMES_KEY] = json.dumps({mil: name for name, mil in names.items()})
    metadata.shortDescription = f"{graph.name}, written by edge-resnet"
    try:
        _write_package(spec.SerializeToString(deterministic=True), Path(model.weights_dir), path)
    finally:  # coremltools would keep its own copy until the process ends
        shutil.rmtree(model.package_path, ignore_errors=True)


def _check_labels(graph: Graph, labels: Sequence[str]) -> None:
    """Core ML answers with a dictionary from label to probability: one for each class, and no label twice."""
    if labels and graph.output_shape != (len(labels),):
        raise InputError(f"{len(labels)} class labels for an output of shape {graph.output_shape}")
    for label, count in Counter(labels).items():
        if count > 1:
            raise InputError(f"class label {label!r} appears {count} times; Core ML needs different ones")


def _write_package(spec: bytes, weights: Path, path: Path) -> None:
    """The package's folder, complete before it takes its name, with identifiers that do not change."""
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise InputError(f"{path}: cannot write: {error.strerror}") from error
    try:
        data = temporary / "Data" / "com.apple.CoreML"
        (data / "weights").mkdir(parents=True)
        (data / "model.mlmodel").write_bytes(spec)
        for blob in weights.iterdir():
            shutil.copyfile(blob, data / "weights" / blob.name)
        items = {
            str(uuid.uuid5(_NAMESPACE, name)).upper(): {
                "author": "com.apple.CoreML",
                "description": f"CoreML Model {description}",
                "name": name,
                "path": f"com.apple.CoreML/{name}",
            }
            for name, description in (("model.mlmodel", "Specification"), ("weights", "Weights"))
        }
        manifest = {
            "fileFormatVersion": "1.0.0",
            "itemInfoEntries": items,
            "rootModelIdentifier": next(iter(items)),
        }
        (temporary / "Manifest.json").write_text(json.dumps(manifest, indent=4) + "\n")
        temporary.chmod(0o755)
        replace_directory(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot write: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def program_names(graph: Graph) -> dict[str, str]:
    """Node name -> its name in the program: what is no letter or digit becomes `_`; equal names get more.

    >>> from edge_resnet.graph.nodes import Input
    >>> program_names(Graph("g", (Input(name="layer1.0", shape=(3, 1, 1)),)))
    {'layer1.0': 'layer1_0'}
    """
    names: dict[str, str] = {}
    used: set[str] = set()
    for node in graph.nodes:
        base = re.sub(r"\W", "_", node.name, flags=re.ASCII)
        mil = base if base[:1].isalpha() else f"n{base}"
        while mil in used:
            mil += "_"
        used.add(mil)
        names[node.name] = mil
    return names


class MilWriter:
    """Adds each node's operations; `made` maps a node to the variable that its readers take."""

    def __init__(
        self, graph: Graph, names: dict[str, str], dtype: Any, palette: PaletteFormat | None = None
    ) -> None:
        import coremltools as ct
        from coremltools.converters.mil import Builder

        self.palette = palette
        self.target = ct.target.iOS17 if palette is None or palette.channels is None else ct.target.iOS18
        self.mb = Builder
        self.graph = graph
        self.names = names
        self.dtype = dtype
        self.made: dict[str, Any] = {}

    def program(self, classifier: bool) -> Any:
        from coremltools.converters.mil.mil import Function, Program, types

        mb, shape = self.mb, (1, *self.graph.input.shape)
        program = Program()
        with Function({"image": mb.placeholder(shape, dtype=types.fp32)}, opset_version=self.target) as main:
            self._input(main.inputs["image"])
            for node in self.graph.nodes[1:]:
                if node.quant is not None and isinstance(node, BatchNorm):
                    raise GraphError(
                        f"node {node.name!r} ({type(node).__name__}) must be lowered before export"
                    )
                WRITERS[type(node)](self, node)
            output = mb.identity(x=self.made[self.graph.output.name], name="logits")
            if classifier:
                main.set_outputs([mb.softmax(x=output, axis=-1, name="probabilities"), output])
            else:
                main.set_outputs([output])
        program.add_function("main", main)
        return program

    def _input(self, image: Any) -> None:
        """The image's real values. Subtracting bytes and scaling by a power of two is exact in float16."""
        node, mb = self.graph.input, self.mb
        if node.quant is None:
            self.made[node.name] = image  # cast behind the normalization, whose mean float16 would round
            if not any(isinstance(reader, Normalize) for reader in self.graph.consumers[node.name]):
                self.made[node.name] = self.cast(node, image, "cast")
            return
        x = self.cast(node, image, "cast")
        x = mb.sub(x=x, y=self.dtype(128 + node.quant.zero_point), name=self.name(node, "centred"))
        x = mb.mul(x=x, y=self.dtype(node.quant.scale), name=self.name(node, "real"))
        self._quantize(node, x)

    def _quantize(self, node: Node, value: Any) -> None:
        quant = node.quant
        assert quant is not None
        scale = self.exact(node, quant.scale)[()]
        parameters = {"scale": scale, "zero_point": np.int8(quant.zero_point)}
        name = self.name(node, "quantized")
        integers = self.mb.quantize(input=value, output_dtype="int8", name=name, **parameters)
        self.made[node.name] = self.mb.dequantize(input=integers, name=self.name(node, "value"), **parameters)

    # What the node writers use.

    def name(self, node: Node, role: str) -> str:
        return f"{self.names[node.name]}_{role}"

    def cast(self, node: Node, value: Any, role: str) -> Any:
        if self.dtype is np.float32:
            return value
        return self.mb.cast(x=value, dtype="fp16", name=self.name(node, role))

    def emit(self, node: Node, operation: Callable[..., Any], **values: Any) -> None:
        """The operation, then its activation, then its integers."""
        activation = Activation.NONE if isinstance(node, Relu) else _activation(node)
        clips, quantized = activation is not Activation.NONE, node.quant is not None
        value = operation(
            name=self.name(node, "op" if clips or quantized else "value"),
            **values,
        )
        if clips:
            value = self.clip(value, activation, self.name(node, "relu" if quantized else "value"))
        if quantized:
            self._quantize(node, value)
        else:
            self.made[node.name] = value

    def clip(self, value: Any, activation: Activation, name: str) -> Any:
        if activation.limit is None:
            return self.mb.relu(x=value, name=name)
        return self.mb.clip(x=value, alpha=self.dtype(0), beta=self.dtype(activation.limit), name=name)

    def source(self, node: Node, index: int = 0) -> Any:
        return self.made[node.inputs[index]]

    def stored(self, node: Node, values: Any) -> Any:
        """The numbers in the program's type; GraphError where they would become infinite."""
        return stored_floats(node.name, values, self.dtype)

    def exact(self, node: Node, scales: Any) -> Any:
        """Scales in the program's type; GraphError where that would change them."""
        typed = self.stored(node, scales)
        if not np.array_equal(typed.astype(np.float32), np.asarray(scales, np.float32)):
            raise GraphError(
                f"node {node.name!r}: a scale of the source is not exact in {np.dtype(self.dtype).name}; "
                "--set export.coreml_precision=float32 keeps it"
            )
        return typed

    def weights(self, node: Conv | Linear) -> dict[str, Any]:
        """Weight and bias. Core ML has no integer bias: its real values stand there."""
        weights = node.weights
        if not isinstance(weights, IntWeights):
            return {"weight": self._floats(node, weights.weight), "bias": self.stored(node, weights.bias)}
        source = self.graph.by_name[node.inputs[0]].quant
        assert source is not None
        weight = self.mb.constexpr_affine_dequantize(
            quantized_data=weights.weight,
            zero_point=np.zeros(len(weights.scale), np.int8),
            scale=self.exact(node, weights.scale),
            axis=np.int32(0),
            name=self.name(node, "weight"),
        )
        bias = weights.bias.astype(np.float64) * (np.float32(source.scale) * weights.scale)
        return {
            "weight": weight,
            "bias": self.mb.const(val=self.stored(node, bias), name=self.name(node, "bias")),
        }

    def _floats(self, node: Node, weight: NDArray[np.float32]) -> Any:
        """The weight itself, or the entries of its palettes."""
        stored = self.stored(node, weight)
        if self.palette is None:
            return stored
        palettes = write_palettes(self.mb, weight, self.palette, self.name(node, "weight"))
        return stored if palettes is None else palettes


def _activation(node: Node) -> Activation:
    activation: Activation = getattr(node, "activation", Activation.NONE)
    return activation
