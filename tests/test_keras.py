"""Keras models become graphs that answer as Keras does. Each import starts TensorFlow: seconds, not less."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_resnet.errors import InputError, MissingToolError, UnsupportedOperatorError
from edge_resnet.frontends import keras as frontend
from edge_resnet.frontends.keras import KerasImport, is_keras_model, keras_outputs, read_keras
from edge_resnet.frontends.keras_graph import GraphDefImporter, LayerNames
from edge_resnet.graph import nodes as g
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.passes import simplify

needs_keras = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("tensorflow", "keras", "h5py")),
    reason="TensorFlow is not installed: pip install 'edge-resnet[keras]'",
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

PRELUDE = """
import sys
import keras, numpy as np
L = keras.layers
rng = np.random.default_rng(0)

def randomized(model):
    for weight in model.weights:
        value = np.asarray(weight.numpy())
        if value.dtype.kind != "f":
            continue
        if "variance" in weight.path:
            value = rng.uniform(0.5, 2, value.shape)
        elif "gamma" in weight.path:
            value = rng.uniform(0.5, 1.5, value.shape)
        elif value.ndim < 2:
            value = rng.normal(0, 0.2, value.shape)
        weight.assign(value)
    return model
"""

SMALL = """
def everything():
    i = keras.Input((32, 32, 3), name="pixels")
    x = L.Rescaling(2.0, 0.25, name="scale")(i)
    x = L.Normalization(mean=[0.1, 0.2, 0.3], variance=[1, 2, 3.0], name="norm")(x)
    x = L.ZeroPadding2D(1, name="zeros")(x)
    x = L.Conv2D(8, 3, strides=2, padding="same", name="conv")(x)
    x = L.Conv2D(8, 3, padding="same", dilation_rate=2, groups=2, name="grouped")(x)
    x = L.ReLU(max_value=6, name="relu6")(x)
    x = L.Activation("silu", name="swish")(x)
    x = L.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2, name="depthwise")(x)
    x = L.BatchNormalization(name="norm2")(x)
    x = L.Activation("hard_swish", name="hard")(x)
    x = L.SeparableConv2D(8, 3, padding="same", name="separable")(x)
    x = L.DepthwiseConv2D(3, padding="same", dilation_rate=2, name="dilated")(x)
    s = L.GlobalAveragePooling2D(name="squeeze")(x)
    s = L.Dense(4, activation="relu", name="reduce")(L.Reshape((1, 1, 8))(s))
    x = L.Multiply(name="gate")([x, L.Dense(8, activation="sigmoid", name="expand")(s)])
    y = L.Conv2D(8, 1, name="side")(x)
    t = L.GlobalAveragePooling2D(keepdims=True)(y)
    y = L.Multiply()([y, L.Conv2D(8, 1, activation="hard_sigmoid", name="gate2")(t)])
    x = L.Concatenate(name="both")([x, y])
    x = L.MaxPooling2D(3, strides=2, padding="same", name="pool")(x)
    x = L.Flatten()(L.Dropout(0.5)(L.AveragePooling2D(2, name="average")(x)))
    return keras.Model(i, L.Dense(10, activation="softmax", name="probs")(x), name="everything")

def head(x, *names):
    x = L.GlobalAveragePooling2D()(x)
    outputs = [L.Dense(5, name=name)(x) for name in names]
    return outputs[0] if len(names) == 1 else outputs

def nested():
    inner = keras.Sequential(
        [keras.Input((16, 16, 8)), L.Conv2D(8, 3, padding="same", name="inside"), L.BatchNormalization()])
    i = keras.Input((32, 32, 3))
    x = L.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="stem")(i)
    x = keras.ops.relu(L.Add(name="residual")([x, inner(x)])) * 2.0 + 1.0
    return keras.Model(i, head(x, "classes"))

def two():
    i = keras.Input((32, 32, 3))
    return keras.Model(i, head(L.Conv2D(8, 3)(i), "one", "other"))

def inputs():
    i, j = keras.Input((32, 32, 3), name="left"), keras.Input((32, 32, 3), name="right")
    return keras.Model([i, j], head(L.Conv2D(8, 3)(i + j), "classes"))

def bgr():
    i = keras.Input((32, 32, 3))
    x = i[..., ::-1] * 255.0 - np.array([103.0, 116.0, 123.0], "float32")
    return keras.Model(i, head(L.Conv2D(8, 3, strides=2)(x), "classes"))

def leaky():
    i = keras.Input((32, 32, 3))
    return keras.Model(i, head(L.LeakyReLU(name="leak")(L.Conv2D(8, 3)(i)), "classes"))

def first():
    i = keras.Input((3, 32, 32))
    x = L.Conv2D(8, 3, strides=2, data_format="channels_first")(i)
    x = L.ReLU()(L.BatchNormalization(axis=1)(x))
    x = L.MaxPooling2D(2, data_format="channels_first")(x)
    return keras.Model(i, L.Dense(5)(L.Flatten(data_format="channels_first")(x)))

def sizes():
    return keras.Sequential([
        keras.Input((None, None, 3)), L.Conv2D(8, 7, strides=2, padding="same", use_bias=False),
        L.BatchNormalization(), L.ReLU(), L.GlobalMaxPooling2D(), L.Dense(5)])

def raw():
    i = keras.Input((32, 32, 3), dtype="uint8")
    return keras.Model(i, head(L.Conv2D(8, 3)(L.Rescaling(1 / 127.5, -1)(i)), "classes"))

def broken():
    i = keras.Input((32, 32, 3))
    model = keras.Model(i, head(L.Conv2D(8, 3, name="stem")(i), "classes"))
    model.get_layer("stem").kernel.assign(np.full((3, 3, 3, 8), np.nan))
    return model

for make in (everything, nested, two, inputs, bgr, leaky, first, sizes, raw):
    randomized(make()).save(f"{sys.argv[1]}/{make.__name__}.keras")
broken().save(f"{sys.argv[1]}/broken.keras")
model = randomized(everything())
model.save(f"{sys.argv[1]}/everything.h5")
model.export(f"{sys.argv[1]}/exported", verbose=False)
model.save_weights(f"{sys.argv[1]}/only.weights.h5")
import tensorflow as tf
class Reader(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, 3])])
    def __call__(self, x):
        return {"y": x + tf.cast(tf.strings.length(tf.io.read_file("/etc/hostname")), tf.float32)}
reader = Reader()
tf.saved_model.save(reader, f"{sys.argv[1]}/reader", signatures=reader.__call__)
"""

LARGE = """
A = keras.applications
small = {"weights": None, "input_shape": (64, 64, 3), "classes": 10}
model = randomized(A.ResNet50(weights=None))
model.save(f"{sys.argv[1]}/resnet50.keras")
model.save(f"{sys.argv[1]}/resnet50.h5")
randomized(A.ResNet50V2(**small)).save(f"{sys.argv[1]}/resnet50v2.keras")
randomized(A.ResNet101(**small)).save(f"{sys.argv[1]}/resnet101.keras")
randomized(A.MobileNetV3Small(**small)).save(f"{sys.argv[1]}/mobilenet.keras")
top = A.ResNet50(weights=None, include_top=False, input_shape=(64, 64, 3))
randomized(top).save(f"{sys.argv[1]}/top.keras")
"""


def build(script: str, folder: Path) -> Path:
    subprocess.run([sys.executable, "-c", PRELUDE + script, str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(SMALL, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(LARGE, tmp_path_factory.mktemp("large"))


def imported(path: Path, size: tuple[int, int] | None = None, output: str | None = None) -> KerasImport:
    """The import, once its graph was found to answer as Keras does, before and after simplification."""
    result = read_keras(path, "net", size, MEAN, STD, output)
    expected = result.check_outputs
    spread = float(np.ptp(expected))
    for graph in (result.graph, simplify(result.graph)):
        answers = FloatExecutor(graph).run(result.check_inputs)
        assert answers.shape == expected.shape
        assert np.abs(answers - expected).max() <= 1e-4 * spread
    assert spread > 0
    return result


@needs_keras
def test_every_layer_of_the_family(small: Path) -> None:
    result = imported(small / "everything.keras")
    nodes = result.graph.by_name
    kinds = {
        name: type(nodes[name]) for name in ("conv", "grouped", "depthwise", "separable", "dilated", "probs")
    }
    assert set(kinds.values()) == {g.Conv, g.Linear}
    assert nodes["grouped"].groups == 2  # type: ignore[attr-defined]
    assert nodes["dilated"].dilation == (2, 2)  # type: ignore[attr-defined]
    assert isinstance(nodes["hard/hardsigmoid"], g.HardSigmoid)
    assert result.input_size == (32, 32)
    assert any("softmax" in note for note in result.notes)
    # Rescaling and Normalization went into the image's own normalization.
    assert nodes["zeros"].inputs == ("normalize",)


@needs_keras
def test_the_source_can_be_asked_again(small: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), np.uint8)
    answers = keras_outputs(small / "two.keras", pixels, MEAN, STD, "other")
    graph = read_keras(small / "two.keras", "two", None, MEAN, STD, "other").graph
    assert answers.dtype == np.float32
    np.testing.assert_allclose(FloatExecutor(graph).run(pixels), answers, atol=1e-4)


@needs_keras
@pytest.mark.slow
@pytest.mark.parametrize("name", ["everything.h5", "exported", "nested.keras", "bgr.keras", "first.keras"])
def test_other_forms_and_models(small: Path, name: str) -> None:
    imported(small / name)


@needs_keras
@pytest.mark.slow
def test_an_open_size(small: Path) -> None:
    assert imported(small / "sizes.keras", (40, 24)).input_size == (40, 24)
    with pytest.raises(InputError, match=r"any size.*--set preprocess\.size=224"):
        read_keras(small / "sizes.keras", "net", None, MEAN, STD)


@needs_keras
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("two.keras", r"2: 'one', 'other' as outputs; choose one: --output one \| other"),
        ("inputs.keras", "one input; this model has 2: 'left', 'right'"),
        ("leaky.keras", "layer 'leak': TensorFlow operator LeakyRelu is not supported"),
        ("broken.keras", "layer 'stem' holds NaN"),
        ("raw.keras", "takes uint8 pixels.*preprocess.mean"),
        ("only.weights.h5", "weights only"),
        ("reader", "operator (ReadFile|StringLength)"),
    ],
)
def test_what_cannot_be_imported_is_said_in_one_line(small: Path, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read_keras(small / name, "net", None, MEAN, STD)
    assert "\n" not in str(caught.value)
    assert str(small / name) in str(caught.value)


@needs_keras
@pytest.mark.slow
def test_a_model_that_takes_bytes(small: Path) -> None:
    result = read_keras(small / "raw.keras", "net", None, (0, 0, 0), (1 / 255,) * 3)
    answers = FloatExecutor(result.graph).run(result.check_inputs)
    np.testing.assert_allclose(answers, result.check_outputs, atol=1e-4)


@needs_keras
@pytest.mark.slow
def test_a_wrong_size_and_a_wrong_output(small: Path) -> None:
    with pytest.raises(InputError, match=r"takes 32x32 images, not 64x64"):
        read_keras(small / "two.keras", "net", (64, 64), MEAN, STD, "one")
    with pytest.raises(InputError, match=r"no output 'third'; it has 2: 'one', 'other'"):
        read_keras(small / "two.keras", "net", None, MEAN, STD, "third")


@needs_keras
@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_resnet50(large: Path, suffix: str) -> None:
    start = time.monotonic()
    result = imported(large / f"resnet50.{suffix}")
    assert result.graph.output_shape == (1000,)
    assert {"conv1_conv", "conv5_block3_3_bn", "predictions"} <= set(result.graph.by_name)
    assert time.monotonic() - start < 60  # 14 s on two cores; the machine may be busy


@needs_keras
@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50v2", "resnet101", "mobilenet"])
def test_other_applications(large: Path, name: str) -> None:
    imported(large / f"{name}.keras")


@needs_keras
@pytest.mark.slow
def test_a_model_without_its_top(large: Path) -> None:
    result = read_keras(large / "top.keras", "net", None, MEAN, STD)
    answers = FloatExecutor(result.graph).run(result.check_inputs)
    assert answers.shape == (4, 2048, 2, 2)
    expected = result.check_outputs.transpose(0, 3, 1, 2)
    assert np.abs(answers - expected).max() <= 1e-4 * np.ptp(expected)


def test_without_tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontend, "check_keras_archive", lambda path: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingToolError, match=r"pip install 'edge-resnet\[keras\]'"):
        read_keras(tmp_path / "a.keras", "net", None, MEAN, STD)


@needs_keras
def test_a_process_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontend, "check_keras_archive", lambda path: None)
    monkeypatch.setattr(frontend, "_TIME_LIMIT", 1e-3)
    with pytest.raises(InputError, match="took more than"):
        read_keras(tmp_path / "a.keras", "net", None, MEAN, STD)


def test_what_looks_like_keras(tmp_path: Path) -> None:
    assert is_keras_model(Path("a.keras"))
    assert is_keras_model(Path("a.H5"))
    assert not is_keras_model(Path("a.onnx"))
    assert not is_keras_model(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    assert is_keras_model(tmp_path)


# The walk over a GraphDef, on graphs written by hand: TensorFlow is not needed.


def operator(kind: str, name: str, *inputs: str, **attributes: Any) -> Any:
    return SimpleNamespace(op=kind, name=name, input=list(inputs), attr=attributes)


def constant(name: str, value: Any) -> Any:
    return operator("Const", name, value=np.asarray(value))


def walked(*nodes: Any, output: str, functions: tuple[Any, ...] = (), layers: tuple[str, ...] = ()) -> Any:
    definition = SimpleNamespace(
        node=[operator("Placeholder", "x"), *nodes], library=SimpleNamespace(function=list(functions))
    )
    names = LayerNames(layers, "model", [node.name for node in nodes])
    importer = GraphDefImporter("net", definition, lambda node: node.attr, names)
    return importer.graph("x", output, (3, 8, 8), ((0, 0, 0), (1, 1, 1)), True)


def test_operators_may_stand_in_any_order() -> None:
    graph = walked(
        operator("Mean", "model/pool/Mean", "model/act/Relu", "axes"),
        constant("axes", [1, 2]),
        operator("Relu", "model/act/Relu", "x"),
        output="model/pool/Mean:0",
        layers=("act", "pool"),
    )
    assert [node.name for node in graph.nodes] == ["image", "normalize", "act", "pool", "pool/flatten"]


def test_a_function_that_was_not_inlined() -> None:
    body = SimpleNamespace(
        signature=SimpleNamespace(
            name="f", input_arg=[SimpleNamespace(name="a")], output_arg=[SimpleNamespace(name="result")]
        ),
        node_def=[operator("Relu", "r", "a"), operator("Identity", "i", "r:activations:0")],
        ret={"result": "i:output:0"},
    )
    graph = walked(
        operator("PartitionedCall", "model/act/call", "x", f="f"), output="model/act/call", functions=(body,)
    )
    assert isinstance(graph.nodes[2], g.Relu)
    body.node_def = [operator("PartitionedCall", "i", "a", f="f")]
    with pytest.raises(UnsupportedOperatorError, match="a call of function 'f'"):
        walked(operator("PartitionedCall", "c", "x", f="f"), output="c", functions=(body,))


def test_graphs_that_mean_nothing() -> None:
    with pytest.raises(InputError, match="a loop"):
        walked(operator("Relu", "a", "b"), operator("Relu", "b", "a"), output="a")
    with pytest.raises(InputError, match="no operator 'gone'"):
        walked(operator("Relu", "a", "gone"), output="a")
    with pytest.raises(InputError, match="does not depend on the image"):
        walked(constant("a", [1.0]), output="a")
    with pytest.raises(UnsupportedOperatorError, match="operator Erf"):
        walked(operator("Erf", "model/odd/Erf", "x"), output="model/odd/Erf")
    with pytest.raises(UnsupportedOperatorError, match="a constant of"):
        walked(
            constant("n", np.ones(30000, np.float32)),
            operator("Reshape", "m", "n", "shape"),
            constant("shape", [-1, 1]),
            operator("Mul", "big", "n", "m"),
            operator("Mul", "y", "x", "big"),
            output="y",
        )


def test_a_hard_sigmoid_behind_a_scale() -> None:
    """relu6(0.5 x + 3) / 6 with the sums merged into one node."""
    nodes = [
        constant("half", np.float32(0.5)),
        constant("three", np.float32(3)),
        constant("six", np.float32(6)),
        operator("Mul", "a", "r", "half"),
        operator("AddV2", "b", "a", "three"),
        operator("Relu6", "c", "b"),
        operator("RealDiv", "d", "c", "six"),
    ]
    graph = walked(operator("Relu", "r", "x"), *nodes, output="d")
    assert isinstance(graph.output, g.HardSigmoid)
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(1, 8, 8, 3)
    expected = np.clip(pixels.astype(np.float32) / 255 * 0.5 + 3, 0, 6) / 6
    np.testing.assert_allclose(FloatExecutor(graph).run(pixels).transpose(0, 2, 3, 1), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("operators", "expected"),
    [
        (["model_1/conv_1/Conv2D", "model_1/conv_1_1/Conv2D"], ["conv", "conv_1"]),
        (["model/conv/Conv2D", "model/conv_1/Conv2D"], ["conv", "conv_1"]),
    ],
)
def test_layer_names(operators: list[str], expected: list[str]) -> None:
    names = LayerNames(["conv", "conv_1"], "model", operators)
    assert [names(entry) for entry in operators] == expected


def test_a_softmax_in_the_middle_is_refused() -> None:
    nodes = [
        constant("axes", [1, 2]),
        constant("weight", np.eye(3, dtype=np.float32)),
        constant("bias", np.ones(3, np.float32)),
        operator("Mean", "mean", "x", "axes"),
        operator("MatMul", "dense", "mean", "weight"),
        operator("Softmax", "model/attention/Softmax", "dense"),
        operator("BiasAdd", "model/shift/BiasAdd", "model/attention/Softmax", "bias"),
    ]
    assert isinstance(walked(*nodes, output="model/attention/Softmax").output, g.Linear)
    with pytest.raises(UnsupportedOperatorError, match=r"layer 'shift'.*softmax inside"):
        walked(*nodes, output="model/shift/BiasAdd")


def test_channels_that_are_taken_apart_and_stacked() -> None:
    """Keras' preprocess_input turns RGB into BGR so."""
    bounds = {"begin_mask": 0, "end_mask": 0, "ellipsis_mask": 1, "shrink_axis_mask": 2}
    nodes = [constant("step", [1, 1]), operator("Relu", "r", "x")]
    for channel in range(3):
        nodes += [
            constant(f"b{channel}", [0, channel]),
            constant(f"e{channel}", [0, channel + 1]),
            operator("StridedSlice", f"s{channel}", "r", f"b{channel}", f"e{channel}", "step", **bounds),
        ]
    graph = walked(*nodes, operator("Pack", "p", "s2", "s1", "s0", axis=3), output="p")
    assert [type(node) for node in graph.nodes[3:]] == [g.Conv]
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    expected = pixels[..., ::-1].astype(np.float32) / 255
    np.testing.assert_allclose(FloatExecutor(graph).run(pixels).transpose(0, 2, 3, 1), expected, atol=1e-6)
