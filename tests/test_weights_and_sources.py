"""Weights files and MODEL names: what loads, what is refused, and how it is said."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edge_resnet.data.images import open_images
from edge_resnet.errors import InputError
from edge_resnet.frontends.sources import open_model, resolve_preprocess
from edge_resnet.frontends.weights import load_into, load_state_dict_file
from edge_resnet.models.cifar_resnet import CifarResNet
from edge_resnet.runners.torch_module import TorchModuleRunner


def _state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return CifarResNet(8).state_dict()


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"ema": {"model": s}}]
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_common_wrappings(tmp_path: Path, wrap: object, prefix: str) -> None:
    state = {prefix + key: value for key, value in _state().items()}
    torch.save(wrap(state), tmp_path / "w.pth")  # type: ignore[operator]
    loaded = load_state_dict_file(tmp_path / "w.pth")
    assert set(loaded) == set(_state())
    load_into(CifarResNet(8), loaded, "w.pth")


def test_safetensors(tmp_path: Path) -> None:
    save_file(_state(), tmp_path / "w.safetensors")
    assert set(load_state_dict_file(tmp_path / "w.safetensors")) == set(_state())
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-50])
    with pytest.raises(InputError, match=r"not a readable .safetensors"):
        load_state_dict_file(tmp_path / "w.safetensors")


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    victim = tmp_path / "owned"
    torch.save({"state_dict": _state(), "extra": _Evil(victim)}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Evil(victim), protocol=2))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(InputError, match=name) as error:
            load_state_dict_file(tmp_path / name)
        assert "\n" not in str(error.value)
    assert not victim.exists()


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt"
    torch.save(_state(), whole)
    for share in (0.001, 0.3, 0.9, 0.999):
        path = tmp_path / "cut.pt"
        path.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
        with pytest.raises(InputError, match=r"cut\.pt"):
            load_state_dict_file(path)
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("not a model at all\n" * 30)
    (tmp_path / "a.txt").write_text("x")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    torch.jit.trace(CifarResNet(8).eval(), torch.zeros(1, 3, 32, 32)).save(tmp_path / "script.pt")
    for name, message in (
        ("nowhere.pt", "no such weights file"),
        (".", "a folder"),
        ("empty.pt", "is empty"),
        ("text.pt", r"text\.pt"),
        ("a.txt", "weights are .safetensors"),
        ("numbers.pt", "holds no state dict"),
        ("script.pt", "TorchScript"),
    ):
        with pytest.raises(InputError, match=message):
            load_state_dict_file(tmp_path / name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_the_tensor(tmp_path: Path, value: float) -> None:
    state = _state()
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = value
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"'layer2\.0\.conv1\.weight' holds NaN or infinite"):
        load_state_dict_file(tmp_path / "w.pt")


def test_another_architecture_names_keys_and_shapes(tmp_path: Path) -> None:
    torch.save(CifarResNet(14, width=8).state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match="another architecture") as error:
        open_model("resnet20", tmp_path / "w.pt", None, 0)
    text = str(error.value)
    assert "missing layer1.2.conv1.weight" in text
    assert "conv1.weight [8, 3, 3, 3] (model: [16, 3, 3, 3])" in text


def test_the_classifier_follows_weights_or_data(tmp_path: Path) -> None:
    torch.save(CifarResNet(20, num_classes=7).state_dict(), tmp_path / "w.pt")
    loaded = open_model("resnet20", tmp_path / "w.pt", 10, 0)
    assert loaded.module.linear.out_features == 7  # type: ignore[union-attr]
    assert "7 classes, as the weights have" in loaded.notes[0]
    assert loaded.weights_sha256 is not None
    random = open_model("torchvision:resnet18", None, 5, 0)
    assert random.module.fc.out_features == 5  # type: ignore[union-attr]
    assert any("no weights were given" in note for note in random.notes)
    assert random.preprocess_defaults["size"] == 224
    assert random.preprocess_defaults["resize"] == 256


def test_random_weights_repeat_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (open_model("resnet20", None, None, 3).module.state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet2", "did you mean .*resnet20"),
        ("torchvision:resnet5", "did you mean resnet5"),
        ("timm:resnet5", "did you mean"),
        ("model.onnx", "there is no such model file"),
        ("weights.pth", "--weights weights.pth"),
        ("no_such_module:f", "no Python module 'no_such_module'"),
        ("nowhere.py:f", "no such Python file"),
        ("edge_resnet.models.cifar_resnet:CifarResnet", "did you mean CifarResNet"),
        ("edge_resnet.models.cifar_resnet:Shortcut", "."),
    ],
)
def test_models_that_are_not_there(model: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_model(model, None, None, 0)


def test_the_users_own_file(tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text("WIDTH = 8\n")
    path = tmp_path / "mine.py"
    path.write_text(
        "from part import WIDTH\nfrom edge_resnet.models.cifar_resnet import CifarResNet\n"
        "def build():\n    return CifarResNet(8, 3, width=WIDTH)\n"
        "def broken():\n    return 1 / 0\n"
        "def number():\n    return 3\n"
        "def diverged():\n    model = build()\n    model.linear.bias.data[0] = float('nan')\n"
        "    return model\n"
    )
    loaded = open_model(f"{path}:build", None, 3, 0)
    assert loaded.name == "build"
    with pytest.raises(InputError, match=r"ZeroDivisionError: division by zero \(.*mine.py:6\)"):
        open_model(f"{path}:broken", None, None, 0)
    with pytest.raises(InputError, match=r"tensor 'linear\.bias' holds NaN"):
        open_model(f"{path}:diverged", None, None, 0)
    with pytest.raises(InputError, match="returned int"):
        open_model(f"{path}:number", None, None, 0)
    with pytest.raises(InputError, match=r"--set preprocess.size=224 --set preprocess.mean=\["):
        resolve_preprocess(loaded.preprocess_defaults, {})
    values = {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
    assert resolve_preprocess(loaded.preprocess_defaults, values).size == (32, 32)


def test_timm_models_load() -> None:
    loaded = open_model("timm:resnet18", None, 4, 0)
    assert loaded.module.num_classes == 4
    assert set(loaded.preprocess_defaults) == {"size", "resize", "mean", "std", "interpolation"}


def test_the_demo_model_reads_digits() -> None:
    loaded = open_model("demo", None, 10, 0)
    split = open_images("demo").split("val")
    preprocess = resolve_preprocess(loaded.preprocess_defaults, {})
    batch = next(iter(split.batches(split.order(0), preprocess, 450)))
    answers = TorchModuleRunner(loaded.module, preprocess).logits(batch.pixels).argmax(1)
    assert np.mean(answers == batch.labels) > 0.97


def test_the_real_resnet20(shared_data: Path) -> None:
    loaded = open_model("resnet20", shared_data / "resnet20-cifar10.pt", 10, 0)
    split = open_images(str(shared_data / "cifar10-jpeg.zip")).split("val")
    preprocess = resolve_preprocess(loaded.preprocess_defaults, {})
    batch = next(iter(split.batches(split.order(0)[:500], preprocess, 500)))
    answers = TorchModuleRunner(loaded.module, preprocess).logits(batch.pixels).argmax(1)
    assert np.mean(answers == batch.labels) > 0.85
