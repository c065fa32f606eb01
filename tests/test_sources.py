"""MODEL names: seeds, the user's own code and its errors, what torchvision and timm declare."""

from __future__ import annotations

import hashlib
import importlib.util
import random
from pathlib import Path

import pytest
import torch

from edge_resnet.errors import InputError, MissingToolError
from edge_resnet.frontends.sources import open_model, resolve_preprocess
from edge_resnet.models.cifar_resnet import CifarResNet
from edge_resnet.models.zoo import DEMO_WEIGHTS, ZOO

CODE = """\
import sys
from torch import nn
from edge_resnet.models.cifar_resnet import CifarResNet

def build():
    return CifarResNet(8).train()

def lazy():
    return nn.Sequential(nn.LazyLinear(3))

def quits():
    sys.exit("usage: mine.py FILE")

def in_torch():
    return nn.Linear("a", 3)

def long_story():
    raise ValueError("first line\\nsecond\\nthird")

ready = CifarResNet(8)
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


@pytest.mark.parametrize("model", ["resnet20b", "torchvision:resnet18", "timm:resnet18", "own"])
def test_random_weights_follow_the_seed_alone(model: str, mine: Path) -> None:
    name = f"{mine}:build" if model == "own" else model
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = open_model(name, None, None, 3).module.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = open_model(name, None, None, 3).module.state_dict()
    other = open_model(name, None, None, 4).module.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_the_users_module_is_at_evaluation_and_ready_ones_are_taken(mine: Path) -> None:
    assert not open_model(f"{mine}:build", None, None, 0).module.training
    loaded = open_model(f"{mine}:ready", None, None, 0)
    assert isinstance(loaded.module, CifarResNet)
    assert (loaded.name, loaded.weights_sha256, dict(loaded.preprocess_defaults)) == ("ready", None, {})


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("quits", r"quits failed: SystemExit: usage: mine.py FILE \(.*mine\.py:12\)"),
        ("in_torch", r"in_torch failed: TypeError: .*mine\.py:15\)"),  # not the line inside torch
        ("long_story", r"failed: ValueError: first line \(.*mine\.py:18\)$"),
        ("lazy", "tensor '0.weight' is not initialized"),
        ("bild", "did you mean build"),
    ],
)
def test_errors_in_the_users_code(mine: Path, attribute: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        open_model(f"{mine}:{attribute}", None, None, 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\ndef f(:\n", r"SyntaxError: .*broken\.py:2\)"),
        ("import nothing_of_that_name\n", r"ModuleNotFoundError: No module .*broken\.py:1\)"),
        ("raise SystemExit\n", r"SystemExit: +\(.*broken\.py:1\)"),
    ],
)
def test_files_that_cannot_be_imported(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "broken.py").write_text(code)
    with pytest.raises(InputError, match=message):
        open_model(f"{tmp_path / 'broken.py'}:f", None, None, 0)


def test_a_colon_in_the_path(mine: Path) -> None:
    folder = mine.parent / "a:b"
    folder.mkdir()
    assert open_model(f"{mine.rename(folder / 'mine.py')}:build", None, None, 0).name == "build"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet152", r"did you mean torchvision:resnet152\?"),
        ("resnext101_32x8d", r"did you mean torchvision:resnext101_32x8d\?"),
        ("net.py", r"name the callable that returns the model: net\.py:NAME"),
        ("net.py:", r"name the callable that returns the model: net\.py:NAME"),
        ("torchvision:", "unknown model 'torchvision:'"),
        ("", "unknown model ''"),
        ("timm:resnet18.no_such_tag", "no_such_tag"),
        ("model.keras", "there is no such"),
        ("model.h5", "there is no such"),
        ("model.pt2", "there is no such"),
        ("model.tflite", "there is no such"),
    ],
)
def test_names_that_are_not_models(model: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_model(model, None, None, 0)


def test_missing_packages_are_told_with_their_command(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("torchvision", "timm") else found(name)
    )
    for model, extra in (("torchvision:resnet18", "torchvision"), ("timm:resnet18", "timm")):
        with pytest.raises(MissingToolError, match=rf'pip install "edge-resnet\[{extra}\]"') as error:
            open_model(model, None, None, 0)
        assert error.value.exit_code == 3
    with pytest.raises(InputError, match="did you mean resnet56"):  # a wrong name stays the user's mistake
        open_model("resnet565", None, None, 0)


def test_what_the_sources_declare() -> None:
    ours = resolve_preprocess(open_model("torchvision:resnet18", None, None, 0).preprocess_defaults, {})
    assert (ours.size, ours.resize, ours.interpolation) == ((224, 224), 256, "bilinear")
    theirs = resolve_preprocess(open_model("timm:resnet18.a1_in1k", None, None, 0).preprocess_defaults, {})
    assert (theirs.size, theirs.resize, theirs.interpolation) == ((224, 224), 235, "bicubic")
    changed = resolve_preprocess(ZOO["resnet20"].preprocess, {"size": [48, 40], "mean": [0.5, 0.5, 0.5]})
    assert (changed.size, changed.mean, changed.std) == ((48, 40), (0.5,) * 3, (0.229, 0.224, 0.225))
    with pytest.raises(InputError, match=r"--set preprocess\.std=\["):
        resolve_preprocess({"size": 32, "mean": [0.5] * 3}, {})


def test_weights_decide_the_classes_before_the_data_does(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(CifarResNet(20, num_classes=7).state_dict(), path)
    loaded = open_model("resnet20", path, 3, 0)
    assert loaded.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.notes == ("resnet20: built with 7 classes, as the weights have",)
    (built, none) = open_model("resnet20", None, 3, 0).notes
    assert built == "resnet20: built with 3 classes, as the data have"
    assert "random weights (seed 0)" in none


def test_the_zoo_builds_and_its_names_are_file_names() -> None:
    for name, entry in ZOO.items():
        assert name.replace("_", "").isalnum()
        assert entry.description
        resolve_preprocess(entry.preprocess, {})
    depths = random.Random(0).sample([20, 32, 44, 56], 2)
    with torch.inference_mode():
        for name in ("demo", *(f"resnet{depth}{option}" for depth in depths for option in ("", "b"))):
            assert ZOO[name].build(4).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 4)


def test_the_demo_is_small_and_says_which_file_it_is() -> None:
    assert DEMO_WEIGHTS.stat().st_size < 2**20
    loaded = open_model("demo", None, 10, 0)
    assert loaded.weights_sha256 == hashlib.sha256(DEMO_WEIGHTS.read_bytes()).hexdigest()
    assert loaded.notes == ()
