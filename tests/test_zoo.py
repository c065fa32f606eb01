"""The models of the zoo: sizes, shapes, torchvision's weights, and the command that lists them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge_resnet.data.preprocess import Preprocess
from edge_resnet.frontends.torch_export import graph_from_module
from edge_resnet.frontends.weights import load_into
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.models.cifar_variants import cifar_bottleneck, cifar_resnext, cifar_wide
from edge_resnet.models.torchvision_models import import_torchvision
from edge_resnet.models.zoo import ZOO
from edge_resnet.recipe import load_recipe

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
SMALL = ("resnet29_bottleneck", "wide_resnet16_4", "resnext20_8x8d", "mobile_resnet20")
# As torchvision publishes them, with 1000 classes.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnext50_32x4d": 25_028_904,
}


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_names_shapes_and_sizes_are_those_of_torchvision(name: str) -> None:
    theirs = import_torchvision().models.get_model
    with torch.device("meta"):
        ours_state = ZOO[name].build(1000).state_dict()
        module = ZOO[name].build(1000)
        theirs_state = theirs(name, weights=None).state_dict()
    assert parameters(module) == PARAMETERS[name]
    assert [(key, value.shape) for key, value in ours_state.items()] == [
        (key, value.shape) for key, value in theirs_state.items()
    ]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d"])
def test_answers_are_those_of_torchvision(name: str) -> None:
    torch.manual_seed(0)
    theirs = import_torchvision().models.get_model(name, weights=None, num_classes=7).eval()
    for module in theirs.modules():  # statistics as after training, so that every layer has its part
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    ours = ZOO[name].build(7).eval()
    load_into(ours, theirs.state_dict(), name)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        want = theirs(images)
        assert torch.allclose(ours(images), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_published_sizes_of_the_small_ones() -> None:
    # WRN-16-4: 2.7 M (Zagoruyko 2016, table 4). ResNet-164: 1.7 M (He 2016). The rest is of our own design.
    sizes = {name: parameters(ZOO[name].build(10)) for name in SMALL}
    assert round(sizes["wide_resnet16_4"] / 1e6, 2) == 2.75
    assert round(parameters(cifar_bottleneck(164)) / 1e6, 1) == 1.7
    assert sizes["resnet29_bottleneck"] == 313_114
    assert sizes["resnext20_8x8d"] == 544_858
    assert sizes["mobile_resnet20"] == 215_034
    assert parameters(ZOO["mobile_resnet"].build(1000)) < 3.5e6  # MobileNetV2's


def test_groups_and_widths() -> None:
    layers = dict(cifar_resnext(20, 8, 8).named_modules())
    first, last = layers["layer1.0.conv2"], layers["layer3.1.conv2"]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(last, nn.Conv2d)
    assert (first.groups, first.in_channels, first.stride) == (8, 64, (1, 1))
    assert (last.groups, last.in_channels) == (8, 256)
    mobile = [m for m in ZOO["mobile_resnet"].build(10).modules() if isinstance(m, nn.Conv2d)]
    assert all(conv.groups in (1, conv.in_channels) for conv in mobile)
    assert sum(conv.groups > 1 for conv in mobile) == 19
    for build, depth in ((cifar_bottleneck, 21), (cifar_bottleneck, 2)):
        with pytest.raises(ValueError, match="9n"):
            build(depth)
    with pytest.raises(ValueError, match="6n"):
        cifar_wide(17, 2)
    with pytest.raises(ValueError, match="9n"):
        cifar_resnext(21, 8, 8)


@pytest.mark.parametrize("name", [*SMALL, "mobile_resnet"])
def test_the_graph_answers_as_the_module_does(name: str) -> None:
    torch.manual_seed(0)
    module, size = ZOO[name].build(4).eval(), (64, 64) if name == "mobile_resnet" else (32, 32)
    values = {**ZOO[name].preprocess, "size": size}
    preprocess = Preprocess.from_json(values)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    graph = graph_from_module(module, name, size, preprocess.mean, preprocess.std)
    with torch.inference_mode():
        want = module(preprocess.normalized(pixels)).numpy()
    np.testing.assert_allclose(FloatExecutor(graph).run(pixels), want, rtol=1e-3, atol=1e-3)


def test_the_table_holds_every_kind_and_a_recipe_for_each() -> None:
    for size in (32, 224):
        kinds = {entry.kind for entry in ZOO.values() if entry.preprocess["size"] == size}
        assert kinds == {"standard", "bottleneck", "wide", "resnext", "mobile"}
    for name, entry in ZOO.items():
        assert "/" not in name
        assert entry.description.endswith(f"{entry.preprocess['size']}x{entry.preprocess['size']}") or (
            name == "demo"
        )
        assert load_recipe(RECIPES / f"{entry.recipe}.yaml").train.epochs > 0
    photos = Preprocess.from_json(ZOO["resnet50"].preprocess)
    assert (photos.size, photos.resize, photos.mean) == ((224, 224), 256, (0.485, 0.456, 0.406))


def test_the_list_is_aligned(edge_resnet: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = edge_resnet("models")
    assert code == 0
    *models, other = out.splitlines()
    assert [line.split()[0] for line in models] == list(ZOO)
    assert {line[20] for line in models} == {" "}
    assert all(len(line) <= 100 and line[21] != " " for line in models)
    assert "torchvision:NAME" in other
    listed = json.loads(edge_resnet("models", "--json")[1])
    assert {"name": "resnet50", "kind": "bottleneck", "recipe": "train-imagenet"}.items() <= next(
        entry for entry in listed if entry["name"] == "resnet50"
    ).items()


def test_listing_does_not_import_torch() -> None:
    code = "import sys; from edge_resnet.cli.lists import print_models; print_models(False); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
