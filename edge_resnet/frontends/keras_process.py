"""The process that TensorFlow lives in: `python -m edge_resnet.frontends.keras_process FOLDER`.

FOLDER/request.json says what to do; result.json, the graph's two files and outputs.npy are written beside it.
It is the only module that imports TensorFlow and Keras; keras.py is its other end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_resnet.errors import EdgeResnetError, InputError
from edge_resnet.frontends.keras_graph import GraphDefImporter, LayerNames
from edge_resnet.frontends.node_builder import check_finite
from edge_resnet.graph.storage import graph_to_files

__all__ = ["main"]

_CHECKED = 4  # images on which the graph and its source are compared
_SKIPPED = ("Identity", "Reshape", "Squeeze", "Cast", "IdentityN")


@dataclass(frozen=True)
class _Frozen:
    """A model as one function without variables, and what Keras knows of it."""

    function: Any
    output: Any
    shape: tuple[int, ...]
    dtype: str
    layers: tuple[str, ...]
    model: str
    half: bool


def main(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    try:
        result = _answer(folder, request)
    except EdgeResnetError as error:
        result = {"error": str(error), "kind": type(error).__name__}
    except MemoryError:
        result = {"error": "the model does not fit this machine's memory", "kind": "InputError"}
    except Exception as error:  # Keras and TensorFlow raise many types; the first line says what it was
        result = {"error": f"Keras cannot load or trace the model: {_reason(error)}", "kind": "InputError"}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def _answer(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    mean, std = (np.asarray(request[key], np.float32) for key in ("mean", "std"))
    size = tuple(request["size"]) if request["size"] else None
    path = Path(request["path"])
    if path.is_dir():
        frozen = _from_saved_model(path, size, request["output"])
    else:
        frozen = _from_keras(path, size, request["output"])
    last = frozen.shape[3] == len(mean) or frozen.shape[1] != len(mean)
    channels, rows, columns = (frozen.shape[i] for i in ((3, 1, 2) if last else (1, 2, 3)))
    if channels != len(mean):
        raise InputError(f"the model takes images of {channels} channels, not {len(mean)}")
    notes = _check_dtype(frozen, mean, std)
    source = _before_softmax(frozen.output)
    if source is not frozen.output:
        notes.append("the softmax at the end is left out: the outputs are logits")
    if request["pixels"]:
        pixels = np.load(folder / "pixels.npy")
    else:
        importer = _importer(request["name"], frozen)
        shape = (channels, rows, columns)
        graph = importer.graph(
            frozen.function.inputs[0].op.name, frozen.output.name, shape, (mean.tolist(), std.tolist()), last
        )
        check_finite(graph)
        for name, content in graph_to_files(graph, "graph").items():
            (folder / name).write_bytes(content)
        random = np.random.default_rng(0)
        pixels = random.integers(0, 256, (_CHECKED, rows, columns, channels), np.uint8)
        np.save(folder / "pixels.npy", pixels)
    if pixels.shape[1:] != (rows, columns, channels):
        raise InputError(f"the model takes {rows}x{columns} images, not {pixels.shape[1]}x{pixels.shape[2]}")
    np.save(folder / "outputs.npy", _run(frozen, source, pixels, mean, std, last))
    return {"input_size": [rows, columns], "notes": notes}


def _from_keras(path: Path, size: tuple[int, ...] | None, output: str | None) -> _Frozen:
    import keras
    import tensorflow as tf

    model = keras.saving.load_model(path, compile=False, safe_mode=True)
    try:
        inputs, outputs = list(model.inputs), list(model.outputs)
    except (AttributeError, ValueError, TypeError):
        inputs, outputs = [], []
    if not inputs or not outputs:
        raise InputError(
            "the model does not say its input; begin it with keras.Input((224, 224, 3)) and save again"
        )
    if len(inputs) != 1:
        raise InputError(
            f"an image classifier has one input; this model has {_listed(i.name for i in inputs)}"
        )
    # A Sequential has no output_names; its output is the last layer's.
    names = getattr(model, "output_names", None) or [model.layers[-1].name]
    number = _chosen([str(name) for name in names], output)
    shape = _sized(tuple(inputs[0].shape), size)
    dtype = str(keras.backend.standardize_dtype(inputs[0].dtype))

    def outputs_of(x: Any) -> Any:
        return keras.tree.flatten(model(x, training=False))[number]

    traced = tf.function(outputs_of).get_concrete_function(tf.TensorSpec((1, *shape[1:]), dtype))
    function = _without_variables(traced)
    policies = {str(layer.compute_dtype) for layer in model._flatten_layers()}
    return _Frozen(
        function=function,
        output=function.outputs[0],
        shape=shape,
        dtype=dtype,
        layers=tuple(layer.name for layer in _leaves(model)),
        model=str(model.name),
        half=bool(policies & {"float16", "bfloat16"}),
    )


def _leaves(model: Any) -> list[Any]:
    """Layers that hold no others: nested models are not layers that a user would look for."""
    return [layer for layer in model._flatten_layers() if len(list(layer._flatten_layers())) == 1]


def _from_saved_model(path: Path, size: tuple[int, ...] | None, output: str | None) -> _Frozen:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    signatures = dict(loaded.signatures)
    name = next((key for key in ("serving_default", "serve", *sorted(signatures)) if key in signatures), None)
    if name is None:
        raise InputError("the SavedModel has no signature; save it with model.export(FOLDER)")
    signature = signatures[name]
    specs = signature.structured_input_signature[1]
    if len(specs) != 1:
        raise InputError(f"an image classifier has one input; this model has {_listed(specs)}")
    spec = next(iter(specs.values()))
    names = sorted(signature.structured_outputs)
    index = _chosen(names, output)  # a function's results are flattened in the order of their names
    function = _without_variables(signature)
    shape = _sized(tuple(spec.shape.as_list()) if spec.shape.rank is not None else (), size)
    return _Frozen(
        function=function,
        output=function.outputs[index],
        shape=shape,
        dtype=spec.dtype.name,
        layers=(),
        model="",
        half=False,
    )


def _without_variables(function: Any) -> Any:
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    return convert_variables_to_constants_v2(function, lower_control_flow=False)


def _chosen(names: Sequence[str], output: str | None) -> int:
    if output is None and len(names) == 1:
        return 0
    if output is None:
        raise InputError(
            f"the model has {_listed(names)} as outputs; choose one: --output {' | '.join(names)}"
        )
    if output not in names:
        raise InputError(f"the model has no output {output!r}; it has {_listed(names)}")
    return list(names).index(output)


def _listed(names: Any) -> str:
    names = [repr(str(name)) for name in names]
    return f"{len(names)}: {', '.join(names)}"


def _sized(shape: tuple[int | None, ...], size: tuple[int, ...] | None) -> tuple[int, ...]:
    """The input's shape with batch 1 and the size that was asked for."""
    if len(shape) != 4:
        raise InputError(f"the model's input has the shape {list(shape)}; an image has [N, rows, columns, 3]")
    first = 2 if shape[1] in (1, 3) and shape[3] not in (1, 3) else 1
    own = shape[first : first + 2]
    if size is None and None in own:
        raise InputError("the model takes images of any size; say which: --set preprocess.size=224")
    sizes = [int(a if a is not None else b) for a, b in zip(own, size or own, strict=True)]  # type: ignore[arg-type]
    if size is not None and tuple(sizes) != tuple(size):
        wanted = f"{sizes[0]}x{sizes[1]}"
        raise InputError(
            f"the model takes {wanted} images, not {size[0]}x{size[1]}; "
            f"--set preprocess.size=[{sizes[0]},{sizes[1]}]"
        )
    full = list(shape)
    full[0], full[first : first + 2] = 1, sizes
    if None in full:
        raise InputError(
            f"the model's input has the shape {list(shape)}; the number of channels must be fixed"
        )
    return tuple(int(number) for number in full if number is not None)


def _check_dtype(frozen: _Frozen, mean: NDArray[Any], std: NDArray[Any]) -> list[str]:
    """Notes; raises InputError where a model that takes bytes would be given normalized images."""
    raw = np.all(mean == 0) and np.allclose(std * 255, 1)
    if not frozen.dtype.startswith(("float", "bfloat")) and not raw:
        raise InputError(
            f"the model takes {frozen.dtype} pixels, 0 to 255: --set preprocess.mean=[0,0,0] "
            "--set preprocess.std=[0.00392156862745098,0.00392156862745098,0.00392156862745098]"
        )
    return (
        ["the model computes in 16 bits; the graph in 32, so they agree to 16 bits only"]
        if frozen.half
        else []
    )


def _importer(name: str, frozen: _Frozen) -> GraphDefImporter:
    definition = frozen.function.graph.as_graph_def()
    operators = [node.name for node in definition.node if "/" in node.name]
    layers = LayerNames(frozen.layers, frozen.model, operators)
    return GraphDefImporter(name, definition, _attributes, layers)


def _attributes(node: Any) -> Mapping[str, Any]:
    from tensorflow.python.framework import dtypes, tensor_util

    def decode(value: Any) -> Any:
        kind = value.WhichOneof("value")
        if kind == "tensor":
            return tensor_util.MakeNdarray(value.tensor)
        if kind == "type":
            return dtypes.as_dtype(value.type).name
        if kind == "s":
            return value.s.decode("utf-8", "replace")
        if kind == "list":
            return list(value.list.i) or list(value.list.f)
        if kind == "func":
            return value.func.name
        return getattr(value, kind) if kind in ("i", "f", "b") else None

    return {key: decode(value) for key, value in node.attr.items()}


def _before_softmax(output: Any) -> Any:
    """The tensor that a softmax at the end reads; the output itself, where none is there."""
    tensor = output
    while tensor.op.type in _SKIPPED:
        tensor = tensor.op.inputs[0]
    return tensor.op.inputs[0] if tensor.op.type == "Softmax" else output


def _run(
    frozen: _Frozen, output: Any, pixels: NDArray[np.uint8], mean: NDArray[Any], std: NDArray[Any], last: bool
) -> NDArray[np.float32]:
    """What TensorFlow answers, one image at a time: the model was traced so."""
    import tensorflow as tf

    answers = []
    # A session runs the frozen graph as it lies there; a function of it would first have to be copied.
    with tf.compat.v1.Session(graph=frozen.function.graph) as session:
        for image in pixels:
            values = (image.astype(np.float32) / np.float32(255) - mean) / std
            if not frozen.dtype.startswith(("float", "bfloat")):
                values = np.rint(values)
            if not last:
                values = values.transpose(2, 0, 1)
            source = frozen.function.inputs[0]
            answer = session.run(output.name, {source.name: values[None].astype(source.dtype.as_numpy_dtype)})
            answers.append(np.asarray(answer, np.float32)[0])
    return np.stack(answers) if answers else np.zeros((0,), np.float32)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


if __name__ == "__main__":
    main(Path(sys.argv[1]))
