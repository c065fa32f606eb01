"""Core ML packages: accepted, exact, readable without the writer, and evaluated as the graph says."""

from __future__ import annotations

import gc
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest

from edge_resnet.errors import GraphError, InputError, VerificationError
from edge_resnet.export import coreml as writer
from edge_resnet.export.coreml import Precision, program_names, write_coreml
from edge_resnet.export.coreml_library import import_coremltools
from edge_resnet.files import sha256_of
from edge_resnet.graph import nodes as g
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import simplify
from edge_resnet.graph.reference import ReferenceExecutor, dequantize
from edge_resnet.runners import coreml as runner
from edge_resnet.runners.mil_evaluator import MilEvaluator
from edge_resnet.verify.ranges import compare_ranges
from edge_resnet.verify.readback_coreml import read_coreml
from tests.conftest import quantized
from tests.random_graphs import random_graph, random_pixels

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
IMAGE = g.QuantParams(2.0**-6, -14)
STREAM = g.QuantParams(0.03125, -20)
PAD = g.Padding(top=1, left=0, bottom=2, right=1)
RELU = g.Activation.RELU


@pytest.fixture(scope="module", autouse=True)
def _quick_garbage() -> Iterator[None]:
    """coremltools collects garbage at each conversion: 0.2 s over all that torch and itself have loaded."""
    import_coremltools()
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def _data(package: Path) -> Path:
    return package / "Data" / "com.apple.CoreML"


def _int_weights(shape: tuple[int, ...], seed: int = 0) -> g.IntWeights:
    rng, out = np.random.default_rng(seed), shape[0]
    scale = rng.choice([2.0**-8, 2.0**-9, 3 * 2.0**-10], out).astype(np.float32)
    weight, bias = rng.integers(-127, 128, shape), rng.integers(-500, 500, out)
    return g.IntWeights(weight.astype(np.int8), scale, bias.astype(np.int32))


def _float_weights(shape: tuple[int, ...]) -> g.FloatWeights:
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(0, 0.2, shape), rng.normal(0, 0.2, shape[:1])
    return g.FloatWeights(weight.astype(np.float32), bias.astype(np.float32))


# One node of each kind (and each of its options) behind a convolution `first` of shape [8, 9, 11]. `w` makes
# its weights; `q` is `first`'s parameters in a quantized graph and None in a float one.
Make = Callable[[Callable[[tuple[int, ...]], Any], g.QuantParams | None], list[g.Node]]
OUT: Any = {"inputs": ("first",), "name": "last.node"}


def _out(q: g.QuantParams | None, scale: float = 0.0625) -> g.QuantParams | None:
    return None if q is None else g.QuantParams(scale, -3)


def _relu(q: g.QuantParams | None) -> g.QuantParams | None:
    return None if q is None else g.QuantParams(0.0625, -128)


BOTH: dict[str, Make] = {
    "conv": lambda w, q: [g.Conv(weights=w((6, 8, 3, 3)), padding=PAD, stride=(2, 1), quant=_out(q), **OUT)],
    "conv relu": lambda w, q: [g.Conv(weights=w((6, 8, 1, 1)), activation=RELU, quant=_relu(q), **OUT)],
    "conv groups": lambda w, q: [g.Conv(weights=w((4, 4, 3, 3)), groups=2, quant=_out(q), **OUT)],
    "depthwise": lambda w, q: [g.Conv(weights=w((8, 1, 3, 3)), groups=8, quant=_out(q), **OUT)],
    "conv dilation": lambda w, q: [g.Conv(weights=w((4, 8, 3, 2)), dilation=(2, 3), quant=_out(q), **OUT)],
    "add": lambda w, q: [g.Add(name="last.node", inputs=("first", "first"), quant=q)],
    "add relu": lambda w, q: [
        g.Conv(
            name="other", inputs=("first",), weights=w((8, 8, 1, 1)), quant=q and g.QuantParams(q.scale, 9)
        ),
        g.Add(
            name="last.node",
            inputs=("first", "other"),
            activation=RELU,
            quant=q and g.QuantParams(q.scale, -128),
        ),
    ],
    "max pool": lambda w, q: [g.MaxPool(kernel=(3, 2), stride=(2, 2), padding=PAD, quant=q, **OUT)],
    "global average": lambda w, q: [g.GlobalAvgPool(quant=_out(q, 0.0213623046875), **OUT)],
    "subsample": lambda w, q: [g.Subsample(stride=(2, 3), quant=q, **OUT)],
    "pad channels": lambda w, q: [g.PadChannels(before=3, after=2, quant=q, **OUT)],
    "pad": lambda w, q: [g.Pad(padding=PAD, quant=q, **OUT)],
    "flatten": lambda w, q: [g.Flatten(quant=q, **OUT)],
    "linear": lambda w, q: [
        g.Flatten(name="flat", inputs=("first",), quant=q),
        g.Linear(name="last.node", inputs=("flat",), weights=w((5, 8 * 9 * 11)), quant=_out(q, 0.25)),
    ],
}
VECTOR = np.linspace(0.5, 1.5, 8, dtype=np.float32)
FLOAT_ONLY: dict[str, Make] = {
    "batch norm": lambda w, q: [g.BatchNorm(scale=VECTOR, shift=1 - VECTOR, **OUT)],
    "relu": lambda w, q: [g.Relu(**OUT)],
    "average pool": lambda w, q: [g.AvgPool(kernel=(2, 3), stride=(2, 1), **OUT)],
}


def _float_graph(make: Make, std: float = 60.0) -> Graph:
    mean = np.array([120, 117, 104], np.float32)
    return Graph(
        "float",
        (
            g.Input(name="image", shape=(3, 9, 11)),
            g.Normalize(name="norm", inputs=("image",), mean=mean, std=np.full(3, std, np.float32)),
            g.Conv(name="first", inputs=("norm",), weights=_float_weights((8, 3, 1, 1))),
            *make(_float_weights, None),
        ),
    )


def _int_graph(make: Make) -> Graph:
    first = g.Conv(name="first", inputs=("image",), weights=_int_weights((8, 3, 1, 1)), quant=STREAM)
    nodes = make(lambda shape: _int_weights(shape, 7), STREAM)
    return Graph("int", (g.Input(name="image", shape=(3, 9, 11), quant=IMAGE), first, *nodes))


def _lsb(graph: Graph, package: Path, pixels: np.ndarray) -> np.ndarray:
    quant = graph.output.quant
    assert quant is not None
    expected = dequantize(ReferenceExecutor(graph).run(pixels), quant)
    got = MilEvaluator(package).logits(pixels)
    assert got.shape == expected.shape
    return np.rint(np.abs(got - expected) / quant.scale)


@pytest.mark.parametrize("kind", BOTH)
def test_every_quantized_kind(tmp_path: Path, kind: str) -> None:
    """One rounding of the stored type lies between the integers and the program: at most one step, rarely."""
    graph = _int_graph(BOTH[kind])
    pixels = random_pixels(graph, 20)
    for precision in PRECISIONS:
        write_coreml(graph, tmp_path / "g.mlpackage", precision=precision, labels=())
        assert compare_ranges(graph, read_coreml(tmp_path / "g.mlpackage")).mismatches == ()
        lsb = _lsb(graph, tmp_path / "g.mlpackage", pixels)
        if precision == "float32":
            assert lsb.max() <= 1
            assert (lsb == 0).mean() > 0.999
        else:
            assert (lsb == 0).mean() > 0.8
            assert lsb.mean() < 0.2


@pytest.mark.parametrize("kind", BOTH | FLOAT_ONLY)
def test_every_float_kind(tmp_path: Path, kind: str) -> None:
    cases: tuple[tuple[Precision, float, float], ...] = (("float32", 1.0, 1e-5), ("float16", 60.0, 4e-3))
    for precision, std, tolerance in cases:
        graph = _float_graph((BOTH | FLOAT_ONLY)[kind], std)
        pixels = random_pixels(graph, 20)
        expected = FloatExecutor(graph).run(pixels)
        write_coreml(graph, tmp_path / "g.mlpackage", precision=precision, labels=())
        got = MilEvaluator(tmp_path / "g.mlpackage").logits(pixels)
        np.testing.assert_allclose(got, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_whole_graphs_answer_as_the_reference(tmp_path: Path, precision: Precision) -> None:
    same = []
    for seed in range(2):
        graph = quantized(random_graph(seed, 3), seed)
        pixels = random_pixels(graph, 40, seed)
        write_coreml(graph, tmp_path / "g.mlpackage", precision=precision, labels=graph.labels)
        assert compare_ranges(graph, read_coreml(tmp_path / "g.mlpackage")).mismatches == ()
        got = MilEvaluator(tmp_path / "g.mlpackage").logits(pixels)
        same.append(got.argmax(1) == ReferenceExecutor(graph).run(pixels).argmax(1))
    assert np.mean(same) >= (0.99 if precision == "float32" else 0.9)


def _names(package: Path) -> list[str]:
    """Of everything that the program defines, its input included."""
    import coremltools as ct

    main = ct.utils.load_spec(str(package)).mlProgram.functions["main"]
    (block,) = main.block_specializations.values()
    return [i.name for i in main.inputs] + [o.name for op in block.operations for o in op.outputs]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_coremltools_accepts_it(tmp_path: Path, small_quantized: Graph, precision: Precision) -> None:
    import coremltools as ct

    path = tmp_path / "g.mlpackage"
    write_coreml(small_quantized, path, precision=precision, labels=small_quantized.labels)
    spec = ct.models.MLModel(str(path), skip_model_load=True).get_spec()
    assert spec.specificationVersion == ct.target.iOS17
    assert [o.name for o in spec.description.output] == ["classLabel", "classLabel_probs", "logits"]
    assert len(set(_names(path))) == len(_names(path))


@pytest.mark.parametrize(
    "names",
    [
        ("image", "logits", "probabilities", "classLabel"),
        ("input", "a", "a.relu", "a_op"),
        ("input", "a", "a.weight", "a_value"),
        ("tensor", "1", "ü", "_"),
        ("a.b", "a_b", "a-b", "a_b_"),
    ],
)
def test_names_cannot_meet(tmp_path: Path, names: tuple[str, ...]) -> None:
    image, first, second, last = names
    relu = g.QuantParams(0.0625, -128)
    graph = Graph(
        "names",
        (
            g.Input(name=image, shape=(3, 4, 4), quant=IMAGE),
            g.Conv(
                name=first, inputs=(image,), weights=_int_weights((8, 3, 1, 1)), activation=RELU, quant=relu
            ),
            g.Conv(name=second, inputs=(first,), weights=_int_weights((8, 8, 1, 1)), quant=STREAM),
            g.Conv(name=last, inputs=(second,), weights=_int_weights((8, 8, 1, 1)), quant=STREAM),
        ),
    )
    path = tmp_path / "g.mlpackage"
    write_coreml(graph, path, precision="float32", labels=())
    assert len(set(_names(path))) == len(_names(path))
    assert len(set(program_names(graph).values())) == 4
    assert compare_ranges(graph, read_coreml(path)).mismatches == ()
    assert _lsb(graph, path, random_pixels(graph, 4)).max() <= 1


def test_tiny_scales_and_dead_channels_survive(tmp_path: Path) -> None:
    weights = _int_weights((8, 3, 1, 1))
    weights.weight[2] = 0
    weights.scale[2:4] = 2.0**-14
    quant = g.QuantParams(2.0**-14, 127)
    conv = g.Conv(name="conv", inputs=("image",), weights=weights, quant=quant)
    graph = Graph("tiny", (g.Input(name="image", shape=(3, 4, 4), quant=IMAGE), conv))
    write_coreml(graph, tmp_path / "g.mlpackage", precision="float16", labels=())
    assert compare_ranges(graph, read_coreml(tmp_path / "g.mlpackage")).mismatches == ()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_byte_identical_twice(tmp_path: Path, precision: Precision, small_graph: Graph) -> None:
    for graph in (quantized(small_graph), simplify(small_graph)):
        for name in ("a.mlpackage", "b.mlpackage"):
            write_coreml(graph, tmp_path / name, precision=precision, labels=graph.labels)
        assert sha256_of(tmp_path / "a.mlpackage") == sha256_of(tmp_path / "b.mlpackage")


def test_a_failed_write_leaves_the_old_package(
    tmp_path: Path, small_quantized: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "g.mlpackage"
    write_coreml(small_quantized, path, precision="float32", labels=())
    before = sha256_of(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "replace_directory", full)
    with pytest.raises(InputError, match="No space left"):
        write_coreml(small_quantized, path, precision="float16", labels=())
    assert sha256_of(path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["g.mlpackage"]
    with pytest.raises(InputError, match="cannot write"):
        write_coreml(small_quantized, tmp_path / "no" / "g.mlpackage", precision="float16", labels=())


def test_what_cannot_be_written(tmp_path: Path, small_quantized: Graph) -> None:
    path = tmp_path / "g.mlpackage"
    for labels, message in (
        (("a", "b"), "2 class labels"),
        (("a", "b", "a", "c", "d"), "'a' appears 2 times"),
    ):
        with pytest.raises(InputError, match=message):
            write_coreml(small_quantized, path, precision="float32", labels=labels)
    weights = g.FloatWeights(np.full((8, 3, 1, 1), 1e5, np.float32), np.zeros(8, np.float32))
    conv = g.Conv(name="conv", inputs=("image",), weights=weights)
    graph = Graph("huge", (g.Input(name="image", shape=(3, 4, 4)), conv))
    with pytest.raises(GraphError, match="'conv': a number is too large for float16"):
        write_coreml(graph, path, precision="float16", labels=())
    assert not path.exists()


# Damage. `package` is written once; each test damages a copy.


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, small_quantized: Graph) -> Path:
    path = tmp_path_factory.mktemp("whole") / "g.mlpackage"
    write_coreml(small_quantized, path, precision="float32", labels=small_quantized.labels)
    return path


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "copy.mlpackage"))


def _replace(file: Path, old: bytes, new: bytes) -> None:
    """The first place of `old` only."""
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new, 1))


def _conv_node(graph: Graph) -> tuple[g.Conv, g.IntWeights]:
    node = [node for node in graph.nodes if isinstance(node, g.Conv)][1]
    assert isinstance(node.weights, g.IntWeights)
    return node, node.weights


def test_a_flipped_weight_and_a_changed_scale_show(copy: Path, small_quantized: Graph) -> None:
    node, weights = _conv_node(small_quantized)
    blob, model = _data(copy) / "weights" / "weight.bin", _data(copy) / "model.mlmodel"
    stored = weights.weight.tobytes()
    _replace(blob, stored, bytes([stored[0] ^ 1]) + stored[1:])
    found = read_coreml(copy).weights[node.name].weight
    assert np.argwhere(found != weights.weight).tolist() == [[0, 0, 0, 0]]
    assert node.quant is not None
    scale = np.float32(node.quant.scale)
    _replace(model, scale.tobytes(), np.float32(scale * 2).tobytes())  # in `quantize`, not in `dequantize`
    contents = read_coreml(copy)
    assert contents.conflicts
    assert len(compare_ranges(small_quantized, contents).mismatches) >= 2


def _edit(package: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Let `change` edit the program's operations, by the name of their result."""
    import coremltools as ct

    model = _data(package) / "model.mlmodel"
    spec = ct.utils.load_spec(str(model))
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    change({op.outputs[0].name: op for op in block.operations})
    model.write_bytes(spec.SerializeToString())


def test_another_layers_weight_is_noticed(copy: Path, small_quantized: Graph) -> None:
    names = program_names(small_quantized)
    order = {name: at for at, name in enumerate(names)}
    first, second = next(
        (a, b)
        for a in small_quantized.nodes
        for b in small_quantized.nodes
        if isinstance(a, g.Conv) and isinstance(b, g.Conv) and order[a.name] < order[b.name]
        if a.weights.weight.shape == b.weights.weight.shape
    )

    def share(operations: dict[str, Any]) -> None:
        (argument,) = operations[f"{names[second.name]}_op"].inputs["weight"].arguments
        argument.name = f"{names[first.name]}_weight"

    _edit(copy, share)
    with pytest.raises(VerificationError, match=r"copy\.mlpackage.* another layer's weight"):
        read_coreml(copy)


def test_other_bytes_of_the_image_are_noticed(copy: Path) -> None:
    def shift(operations: dict[str, Any]) -> None:
        value = operations["image_centred_y_0"].attributes["val"].immediateValue.tensor.floats
        value.values[0] += 1

    _edit(copy, shift)
    with pytest.raises(VerificationError, match="not scaled by the input's parameters"):
        read_coreml(copy)


@pytest.mark.parametrize("name", ["Manifest.json", "model.mlmodel", "weight.bin"])
def test_missing_empty_and_truncated_files(copy: Path, name: str) -> None:
    (file,) = copy.rglob(name)
    content = file.read_bytes()
    for cut in (len(content) // 2, len(content) // 7, 0):
        file.write_bytes(content[:cut])
        with pytest.raises(VerificationError, match=r"copy\.mlpackage: ") as caught:
            read_coreml(copy)
        assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(VerificationError, match=r"copy\.mlpackage: "):
        read_coreml(copy)


def test_float_packages_hold_no_ranges(tmp_path: Path) -> None:
    path = tmp_path / "float.mlpackage"
    write_coreml(_float_graph(BOTH["conv"]), path, precision="float32", labels=())
    with pytest.raises(VerificationError, match=r"float\.mlpackage: "):
        read_coreml(path)


def test_random_damage_raises_one_kind_of_error(copy: Path, small_quantized: Graph) -> None:
    files = [_data(copy) / "model.mlmodel", _data(copy) / "weights" / "weight.bin", copy / "Manifest.json"]
    whole = [file.read_bytes() for file in files]
    pixels = random_pixels(small_quantized, 1)
    messages: list[str] = []
    for seed in range(24):
        rng = random.Random(seed)
        at = seed % len(files)
        damaged = bytearray(whole[at])
        for _ in range(rng.randint(1, 5)):
            damaged[rng.randrange(len(damaged))] = rng.choice([0, 127, 128, 255, rng.randrange(256)])
        files[at].write_bytes(damaged)
        for use in (read_coreml, lambda path: MilEvaluator(path).logits(pixels)):
            try:
                use(copy)  # type: ignore[operator]
            except VerificationError as error:
                messages.append(str(error))
        files[at].write_bytes(whole[at])
    assert len(messages) > 10
    assert all(message.startswith(str(copy)) and "\n" not in message for message in messages)


# The Mac's side, with a stand-in for coremltools: the real one was never seen running.


class _StandIn:
    """`coremltools.models.MLModel` of a Mac, as documented."""

    def __init__(self, refuse: bool = False, fail: bool = False) -> None:
        self.refuse, self.fail = refuse, fail
        self.models = SimpleNamespace(MLModel=self._load)
        self.ComputeUnit = {"ALL": "all", "CPU_ONLY": "cpu"}
        self.units: list[str] = []

    def _load(self, path: str, compute_units: str) -> _StandIn:
        self.units.append(compute_units)
        if self.refuse:
            warnings.warn("You will not be able to run predict(): bad program", RuntimeWarning, stacklevel=2)
        return self

    def predict(self, values: dict[str, Any]) -> dict[str, np.ndarray]:
        if self.fail:
            raise RuntimeError("no predictions\nhere")
        image = np.asarray(values["image"])  # [H, W, 3]
        return {"logits": image.mean((0, 1))[None].astype(np.float16)}


def test_the_macs_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)

    def use(stand_in: _StandIn) -> _StandIn:
        monkeypatch.setattr(runner, "import_coremltools", lambda: stand_in)
        return stand_in

    stand_in = use(_StandIn())
    monkeypatch.setattr(runner.sys, "platform", "darwin")
    got = runner.open_coreml(tmp_path).logits(pixels)
    np.testing.assert_allclose(got, pixels.mean((1, 2)), rtol=1e-3)
    assert got.dtype == np.float32
    runner.CoreMLRunner(tmp_path, units="CPU_ONLY")
    assert stand_in.units == ["all", "cpu"]
    use(_StandIn(refuse=True))
    with pytest.raises(VerificationError, match=r"does not accept the package: .*bad program"):
        runner.open_coreml(tmp_path)
    use(_StandIn(fail=True))
    with pytest.raises(VerificationError, match=r"does not run it: no predictions$"):
        runner.open_coreml(tmp_path).logits(pixels)


def test_scales_that_float16_would_change_are_refused(small_quantized: Graph, tmp_path: Path) -> None:
    """As models that came quantized have them; our own are exact."""
    output = small_quantized.output
    assert output.quant is not None
    other = replace(output, quant=g.QuantParams(float(np.float32(0.1234567)), output.quant.zero_point))
    graph = small_quantized.with_nodes([*small_quantized.nodes[:-1], other])
    path = tmp_path / "m.mlpackage"
    with pytest.raises(GraphError, match=r"not exact in float16; --set export\.coreml_precision=float32"):
        write_coreml(graph, path, precision="float16", labels=())
    assert not path.exists()
    write_coreml(graph, path, precision="float32", labels=())
    assert not compare_ranges(graph, read_coreml(path)).mismatches
