""".pt2 archives: the same function as the module; nothing in them is executed."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edge_resnet.data.preprocess import Preprocess
from edge_resnet.errors import EdgeResnetError, InputError
from edge_resnet.frontends.sources import open_model, resolve_preprocess
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.passes import simplify
from edge_resnet.models.cifar_resnet import CifarResNet
from edge_resnet.verify.import_check import check_import, random_images

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = (16, 16)
Entries = dict[str, bytes]


def _module() -> nn.Module:
    torch.manual_seed(0)
    module = CifarResNet(8)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.normal_(layer.running_mean, std=0.1)
    return module.eval()


def _save(path: Path, dynamic: bool = False) -> nn.Module:
    module = _module()
    example = torch.zeros(2 if dynamic else 1, 3, *SIZE)
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},) if dynamic else None
    torch.export.save(torch.export.export(module, (example,), dynamic_shapes=shapes), path)
    return module


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Entries:
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    _save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _write(path: Path, entries: Entries) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


def _entry(entries: Entries, end: str) -> str:
    return next(name for name in entries if name.endswith(end))


def _changed(entries: Entries, end: str, change: Callable[[Any], None]) -> Entries:
    """The archive with one JSON file changed."""
    name = _entry(entries, end)
    document = json.loads(entries[name])
    change(document)
    return {**entries, name: json.dumps(document).encode()}


def _import(path: Path) -> None:
    source = open_model(str(path), None, None, 0)
    source.graph(resolve_preprocess({**source.preprocess_defaults, "mean": MEAN, "std": STD}, {}))


def _refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        _import(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_import_is_the_modules_function(tmp_path: Path, dynamic: bool) -> None:
    path = tmp_path / "model.pt2"
    module = _save(path, dynamic)
    source = open_model(str(path), None, None, 0)
    assert tuple(source.preprocess_defaults["size"]) == SIZE
    preprocess = Preprocess(SIZE, MEAN, STD)
    graph = source.graph(preprocess)
    pixels = random_images(graph, 5)
    with torch.no_grad():
        expected = module(preprocess.normalized(pixels)).numpy()
    for version in (graph, simplify(graph)):
        got = FloatExecutor(version).run(pixels)
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max(), rtol=1e-3)
        check_import("m", version, source.runner(preprocess), pixels)


def test_a_copy_of_the_entries_still_loads(tmp_path: Path, saved: Entries) -> None:
    """What the hostile archives below start from."""
    _import(_write(tmp_path / "m.pt2", saved))


# Hostile archives.


class _Evil:
    """Unpickled, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.target, "w"))


def _pickles(target: Path) -> list[bytes]:
    """The object as plain pickle, and as torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(_Evil(target), buffer)
    return [pickle.dumps(_Evil(target)), buffer.getvalue()]


def test_the_pickles_of_these_tests_are_harmful(tmp_path: Path) -> None:
    target = tmp_path / "harm"
    for data in _pickles(target):
        if data[:2] == b"PK":
            torch.load(io.BytesIO(data), weights_only=False)
        else:
            pickle.loads(data)
        assert target.exists()
        target.unlink()


@pytest.mark.parametrize("number", [0, 1])
def test_example_inputs_are_not_unpickled(tmp_path: Path, saved: Entries, number: int) -> None:
    target = tmp_path / "harm"
    name = _entry(saved, "data/sample_inputs/model.pt")
    path = _write(tmp_path / "m.pt2", {**saved, name: _pickles(target)[number]})
    _import(path)
    assert not target.exists()


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kind", ["weights", "constants"])
def test_objects_among_the_tensors_are_refused(
    tmp_path: Path, saved: Entries, kind: str, number: int
) -> None:
    target = tmp_path / "harm"

    def change(document: Any) -> None:
        entry = {
            "path_name": "weight_0" if kind == "weights" else "tensor_0",
            "is_param": False,
            "use_pickle": True,
            "tensor_meta": None,
        }
        document["config"]["evil"] = entry

    entries = _changed(saved, f"model_{kind}_config.json", change)
    folder = _entry(saved, f"model_{kind}_config.json").rpartition("/")[0]
    entries[f"{folder}/{'weight_0' if kind == 'weights' else 'tensor_0'}"] = _pickles(target)[number]
    _refused(_write(tmp_path / "m.pt2", entries), "'evil' is a Python object")
    assert not target.exists()


@pytest.mark.parametrize("truthy", [1, "yes", [0], {"a": 1}])
def test_use_pickle_in_other_words(tmp_path: Path, saved: Entries, truthy: Any) -> None:
    target = tmp_path / "harm"

    def change(document: Any) -> None:
        next(iter(document["config"].values()))["use_pickle"] = truthy

    entries = _changed(saved, "model_weights_config.json", change)
    name = _entry(saved, "data/weights/weight_0")
    _refused(_write(tmp_path / "m.pt2", {**entries, name: _pickles(target)[1]}), "Python object")
    assert not target.exists()


def test_guards_are_not_executed(tmp_path: Path, saved: Entries) -> None:
    target = tmp_path / "harm"

    def change(document: Any) -> None:
        document["guards_code"] = [f"open({str(target)!r}, 'w')", f"__import__('os').mkdir({str(target)!r})"]

    path = _write(tmp_path / "m.pt2", _changed(saved, "models/model.json", change))
    source = open_model(str(path), None, None, 0)
    preprocess = Preprocess(SIZE, MEAN, STD)
    source.runner(preprocess).logits(random_images(source.graph(preprocess)))
    assert not target.exists()


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.mine.evil.default",
        "torch.ops.higher_order.cond",
        "torch.ops.aten.relu.default.__init__",
        "torch._C._nn.gelu",
        "os.system",
        "builtins.eval",
        "eval",
        "_operator.add",
        "math.sqrt",
        "torch.ops.aten.relu.default\n",
    ],
)
def test_other_operators_are_refused(tmp_path: Path, saved: Entries, target: str) -> None:
    def change(document: Any) -> None:
        nodes = document["graph_module"]["graph"]["nodes"]
        next(node for node in nodes if "relu" in node["target"])["target"] = target

    path = _write(tmp_path / "m.pt2", _changed(saved, "models/model.json", change))
    with pytest.raises(InputError, match="is not supported"):
        _import(path)


@pytest.mark.parametrize(
    "code",
    [
        "__import__('os').system('touch HARM')",
        "open('HARM', 'w')",
        "Symbol('s0', positive=True) + open('HARM', 'w')",
        "Symbol('s0', positive=open('HARM', 'w'))",
        "(lambda: open('HARM', 'w'))()",
        "2**99**99",
        "s0\n",
        ["s0"],
        None,
    ],
)
def test_sizes_that_are_code_are_refused(tmp_path: Path, code: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _save(tmp_path / "model.pt2", dynamic=True)
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    found = 0

    def change(value: Any) -> None:
        nonlocal found
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if key == "expr_str":
                value[key], found = code, found + 1
            elif isinstance(item, dict | list):
                change(item)

    path = _write(tmp_path / "m.pt2", _changed(entries, "models/model.json", change))
    assert found
    _refused(path, "a size that is computed")
    assert not (tmp_path / "HARM").exists()


@pytest.mark.parametrize(
    "name",
    [
        "{}/extra/evil.py",
        "{}/data/aotinductor/model/model.so",
        "../evil",
        "/evil",
        "{}/data/weights/../../x",
        "{}/x.pt",
    ],
)
def test_extra_entries_are_refused(tmp_path: Path, saved: Entries, name: str) -> None:
    root = _entry(saved, "models/model.json").split("/")[0]
    path = _write(tmp_path / "m.pt2", {**saved, name.format(root): b"content"})
    _refused(path, "which is no tensor")
    assert not (tmp_path.parent / "evil").exists()


def test_a_second_program_is_refused(tmp_path: Path, saved: Entries) -> None:
    name = _entry(saved, "models/model.json")
    _refused(
        _write(tmp_path / "m.pt2", {**saved, f"other/{name.partition('/')[2]}": saved[name]}), "no program"
    )


@pytest.mark.parametrize("key", ["as_custom_obj", "as_graph", "as_operator"])
def test_objects_in_the_program_are_refused(tmp_path: Path, saved: Entries, key: str) -> None:
    def change(document: Any) -> None:
        node = document["graph_module"]["graph"]["nodes"][0]
        node["inputs"][0]["arg"] = {key: {"name": "evil", "class_fqn": "os.system"}}

    _refused(_write(tmp_path / "m.pt2", _changed(saved, "models/model.json", change)), key)


def test_deep_nesting_is_refused(tmp_path: Path, saved: Entries) -> None:
    name = _entry(saved, "models/model.json")
    text = saved[name].decode().rstrip().removesuffix("}") + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}"
    _refused(_write(tmp_path / "m.pt2", {**saved, name: text.encode()}), "not a readable")


def test_an_archive_that_unpacks_to_terabytes(tmp_path: Path, saved: Entries) -> None:
    """The directory says so; nothing is unpacked."""
    path = _write(tmp_path / "m.pt2", saved)
    data = bytearray(path.read_bytes())
    at = int.from_bytes(data[-6:-2], "little")  # where the directory begins
    for _ in range(3):
        data[at + 24 : at + 28] = (2**32 - 2).to_bytes(4, "little")  # the unpacked size
        at = data.index(b"PK\x01\x02", at + 4)
    path.write_bytes(data)
    _refused(path, "unpacks to more than a model can be")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_truncated_archives(tmp_path: Path, saved: Entries, part: float) -> None:
    path = _write(tmp_path / "m.pt2", saved)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    _refused(path, "not a readable .pt2 archive|no program of torch.export.save")


def test_files_that_are_no_archives(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    _refused(path, "there is no such model file")
    path.write_bytes(b"")
    _refused(path, "the model file is empty")
    path.write_bytes(np.random.default_rng(0).bytes(4000))
    _refused(path, "not a readable .pt2 archive")
    torch.save(_module().state_dict(), path)
    _refused(path, "no program of torch.export.save")
    path.unlink()
    path.mkdir()
    _refused(path, "a folder, not a model file")


def test_an_input_that_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(nn.Linear(8, 3), (torch.zeros(1, 8),)), path)
    _refused(path, "not an image")


def test_two_inputs(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a + b

    path = tmp_path / "m.pt2"
    image = torch.zeros(1, 3, 8, 8)
    torch.export.save(torch.export.export(Two(), (image, image)), path)
    _refused(path, "one input, this program has 2")


def test_several_outputs(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(3, 5)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = x.mean((2, 3))
            return self.one(x), self.two(x)

    path = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(Two().eval(), (torch.zeros(1, 3, 8, 8),)), path)
    _refused(path, "2 outputs; choose one: --output linear | linear_1".replace("|", r"\|"))
    source = open_model(str(path), None, None, 0, output="linear_1")
    preprocess = Preprocess((8, 8), MEAN, STD)
    graph = source.graph(preprocess)
    assert graph.output_shape == (5,)
    check_import("m", graph, source.runner(preprocess), random_images(graph))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_weights_that_are_no_numbers(tmp_path: Path, wrong: float) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with torch.no_grad():
        module[0].weight[0, 0, 0, 0] = wrong
    path = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(module, (torch.zeros(1, 3, 8, 8),)), path)
    with pytest.raises(EdgeResnetError, match="NaN or infinite"):
        _import(path)
