"""Weights files: the wrappings of training scripts, tensors of unusual kinds, hostile and damaged files."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edge_resnet.data.images import open_images
from edge_resnet.errors import InputError
from edge_resnet.frontends.sources import open_model, resolve_preprocess
from edge_resnet.frontends.weights import load_into, load_state_dict_file
from edge_resnet.models.cifar_resnet import CifarResNet


def _state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return CifarResNet(8).state_dict()


def _prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in _state().items()}


def _saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "content",
    [
        # What torch's own ImageNet example writes: a tensor stands beside the state dict.
        {"epoch": 3, "arch": "resnet20", "state_dict": _prefixed("module."), "best_acc1": torch.tensor(7.0)},
        {"model": "resnet20", "model_state_dict": OrderedDict(_state())},
        {"model": {"depth": 8}, "net": _state()},
        _prefixed("_orig_mod."),
        _prefixed("module._orig_mod."),
        _prefixed("_orig_mod.module."),
        _prefixed("module.model."),
        {"n_averaged": torch.tensor(3), **_prefixed("module.")},
    ],
    ids=["imagenet", "name", "config", "compiled", "ddp-compiled", "compiled-ddp", "ddp-model", "averaged"],
)
def test_wrappings_of_training_scripts(tmp_path: Path, content: object) -> None:
    loaded = load_state_dict_file(_saved(tmp_path / "w.pt", content))
    assert set(loaded) == set(_state())
    assert all(torch.equal(loaded[key], value) for key, value in _state().items())


class _Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = CifarResNet(8)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_module_that_itself_has_a_prefix(tmp_path: Path, prefix: str) -> None:
    module = _Wrapper()
    loaded = load_state_dict_file(_saved(tmp_path / "w.pt", _prefixed(f"{prefix}model.")))
    load_into(module, loaded, "w.pt")
    assert torch.equal(module.model.linear.weight, _state()["linear.weight"])
    load_into(module, load_state_dict_file(_saved(tmp_path / "bare.pt", _state())), "bare.pt")


def test_older_formats_and_capitals(tmp_path: Path) -> None:
    torch.save(_state(), tmp_path / "old.PTH", _use_new_zipfile_serialization=False)
    save_file(_state(), tmp_path / "w.SafeTensors")
    for name in ("old.PTH", "w.SafeTensors"):
        assert set(load_state_dict_file(tmp_path / name)) == set(_state())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_every_kind_of_floating_point_is_read(tmp_path: Path, kind: torch.dtype) -> None:
    state = {key: v.to(kind) if v.is_floating_point() else v for key, v in _state().items()}
    module = CifarResNet(8)
    load_into(module, load_state_dict_file(_saved(tmp_path / "w.pt", state)), "w.pt")
    assert module.linear.weight.dtype == torch.float32
    assert torch.equal(module.linear.weight, state["linear.weight"].float())


@pytest.mark.parametrize(
    ("tensor", "word"),
    [
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.zeros(3, device="meta"), "without values"),
        (torch.zeros(3, dtype=torch.complex64), "complex"),
    ],
    ids=["sparse", "meta", "complex"],
)
def test_tensors_that_are_no_plain_numbers(tmp_path: Path, tensor: Tensor, word: str) -> None:
    with pytest.raises(InputError, match=f"tensor 'linear.bias' is {word}"):
        load_state_dict_file(_saved(tmp_path / "w.pt", _state() | {"linear.bias": tensor}))


def test_numbers_too_large_for_float32(tmp_path: Path) -> None:
    state = _state() | {"linear.bias": torch.full((10,), 1e300, dtype=torch.float64)}
    with pytest.raises(InputError, match=r"tensor 'linear\.bias' holds NaN or infinite"):
        open_model("demo", _saved(tmp_path / "w.pt", state), None, 0)


def test_batch_counters_may_be_missing_and_nothing_else() -> None:
    state = {key: value for key, value in _state().items() if not key.endswith("num_batches_tracked")}
    load_into(CifarResNet(8), state, "w.pt")
    del state["bn1.running_var"]
    with pytest.raises(InputError, match=r"another architecture: missing bn1\.running_var$"):
        load_into(CifarResNet(8), state, "w.pt")
    with pytest.raises(InputError, match=r"unknown extra$"):
        load_into(CifarResNet(8), _state() | {"extra": torch.zeros(1)}, "w.pt")


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch {self.path}",))


def test_shell_commands_in_a_pickle_are_not_run(tmp_path: Path) -> None:
    victim = tmp_path / "owned"
    torch.save(_state() | {"x": _Evil(victim)}, tmp_path / "new.pt")
    torch.save({"x": _Evil(victim)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for protocol in (2, 4):
        (tmp_path / f"plain{protocol}.pt").write_bytes(pickle.dumps(_Evil(victim), protocol))
    for name, message in (
        ("new.pt", "could run code"),
        ("old.pt", "could run code"),
        ("plain2.pt", "plain2"),
        ("plain4.pt", "plain4"),
    ):
        with pytest.raises(InputError, match=message) as error:
            load_state_dict_file(tmp_path / name)
        assert "\n" not in str(error.value)
    assert not victim.exists()
    pickle.loads((tmp_path / "plain2.pt").read_bytes())
    assert victim.exists()  # the trap works: it is we who did not step into it


def test_a_checkpoint_that_holds_itself(tmp_path: Path) -> None:
    endless: dict[str, object] = {}
    endless["model"] = endless["state_dict"] = endless
    with pytest.raises(InputError, match="holds no state dict"):
        load_state_dict_file(_saved(tmp_path / "w.pt", endless))


@pytest.mark.parametrize("content", [[torch.zeros(2)], torch.zeros(2), {}, {"state_dict": {}}, 3])
def test_content_that_is_no_state_dict(tmp_path: Path, content: object) -> None:
    with pytest.raises(InputError, match="holds no state dict"):
        load_state_dict_file(_saved(tmp_path / "w.pt", content))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(InputError, match="a device or a pipe"):
        load_state_dict_file(tmp_path / "pipe.pt")
    with pytest.raises(InputError, match="no such weights file"):
        load_state_dict_file(_saved(tmp_path / "w.pt", _state()) / "inside.pt")
    with pytest.raises(InputError, match="cannot be read"):
        load_state_dict_file(tmp_path / f"{'x' * 300}.pt")
    if os.geteuid() == 0:
        return  # root reads everything
    (tmp_path / "w.pt").chmod(0)
    with pytest.raises(InputError, match=r"w\.pt: the weights file cannot be read: Permission denied"):
        load_state_dict_file(tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damage_is_never_a_traceback(tmp_path: Path, suffix: str) -> None:
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"damaged{suffix}"
    if suffix == ".pt":
        torch.save(_state(), whole)
    else:
        save_file(_state(), whole)
    data = whole.read_bytes()
    for length in (1, 7, 8, 9, 100, 1000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match="damaged"):
            load_state_dict_file(path)
    rng = np.random.default_rng(0)
    messages: list[str] = []
    for _ in range(150):
        changed = bytearray(data)
        for place in rng.integers(0, min(len(data), 8000), 3):
            changed[place] = rng.integers(0, 256)
        path.write_bytes(changed)
        try:
            load_into(CifarResNet(8), load_state_dict_file(path), "damaged")
        except InputError as error:
            messages.append(str(error))
    assert messages
    assert all(message.count("\n") <= 1 for message in messages)


def test_the_real_weights_reach_their_accuracy(shared_data: Path) -> None:
    loaded = open_model("resnet20", shared_data / "resnet20-cifar10.pt", 10, 0)
    assert loaded.notes == ()
    split = open_images(str(shared_data / "cifar10-jpeg.zip")).split("val")
    preprocess = resolve_preprocess(loaded.preprocess_defaults, {})
    right = 0
    with torch.inference_mode():
        for batch in split.batches(split.order(0)[:500], preprocess, 100):
            answers = loaded.module(preprocess.normalized(batch.pixels)).argmax(1).numpy()
            right += int((answers == batch.labels).sum())
    assert right / 500 > 0.87
