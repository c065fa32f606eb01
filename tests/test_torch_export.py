"""Torch modules become graphs that compute the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edge_resnet.data.preprocess import Preprocess
from edge_resnet.errors import InputError, UnsupportedOperatorError
from edge_resnet.frontends.torch_export import graph_from_module
from edge_resnet.graph import nodes as g
from edge_resnet.graph.float_executor import FloatExecutor
from edge_resnet.graph.passes import simplify
from edge_resnet.models.cifar_resnet import CifarResNet
from edge_resnet.models.torchvision_models import import_torchvision

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _with_statistics(module: nn.Module) -> nn.Module:
    """Random batch norm statistics: with the initial ones, forgetting a factor would not show."""
    torch.manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return module.eval()


def _check(module: nn.Module, size: int) -> None:
    module = _with_statistics(module)
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    with torch.no_grad():
        expected = module(Preprocess((size, size), MEAN, STD).normalized(pixels)).numpy()
    graph = graph_from_module(module, "m", (size, size), MEAN, STD)
    for version in (graph, simplify(graph)):
        got = FloatExecutor(version).run(pixels)
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max(), rtol=1e-3)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_cifar_resnets(shortcut: str) -> None:
    torch.manual_seed(0)
    _check(CifarResNet(20, 7, shortcut), 32)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_torchvision_models(name: str) -> None:
    torch.manual_seed(0)
    models = import_torchvision().models
    _check(models.get_model(name, weights=None, num_classes=10), 64)


def test_odd_ends_of_the_family() -> None:
    """ceil_mode, named padding, dilation, mean instead of pooling, dropout, a bias-free classifier."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding="same", dilation=2)
            self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
            self.average = nn.AvgPool2d(2)
            self.drop = nn.Dropout(0.5)
            self.fc = nn.Linear(8, 4, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.average(self.pool(F.relu(self.conv(F.pad(x, (1, 0, 2, 1))))))
            return self.fc(self.drop(x.mean((2, 3))))

    torch.manual_seed(0)
    _check(Odd(), 18)


def test_gates_of_images_and_of_vectors() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    _check(nn.Sequential(*layers, nn.Linear(8, 8), nn.Hardswish(), nn.Linear(8, 4), nn.SiLU()), 16)


def test_names_are_the_modules_paths() -> None:
    graph = graph_from_module(CifarResNet(8), "m", (32, 32), MEAN, STD)
    names = {node.name for node in graph.nodes}
    assert {"conv1", "layer1.0.conv1", "layer1.0.bn1", "layer2.0.shortcut.pad", "linear"} <= names


class _Swish(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.erf(x)


def test_an_unknown_operator_is_named_with_its_place() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), _Swish(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UnsupportedOperatorError) as error:
        graph_from_module(module, "mine", (16, 16), MEAN, STD)
    text = str(error.value)
    assert "aten.erf.default" in text
    assert "module '1'" in text
    assert "test_torch_export.py" in text
    assert "return torch.erf(x)" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
            "leaves its padding out of the mean",
        ),
        (lambda: nn.MaxPool2d(2, dilation=2), "max pooling with dilation"),
        (lambda: nn.ReplicationPad2d(1), "not supported"),
        (nn.Softmax2d, "a softmax over other axes"),
        (lambda: nn.GroupNorm(1, 3), "group_norm"),
        (nn.LeakyReLU, "leaky_relu"),
        (nn.Hardtanh, r"a clip to \[-1.0, 1.0\]"),
        (lambda: nn.AdaptiveAvgPool2d(5), "adaptive average pooling from 16x16 to 5x5"),
    ],
)
def test_what_the_graph_cannot_say_is_refused(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(UnsupportedOperatorError, match=message):
        graph_from_module(nn.Sequential(build(), nn.Flatten()), "m", (16, 16), MEAN, STD)


def test_a_model_that_cannot_be_traced_is_one_line() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(1, 7)

    with pytest.raises(InputError, match="cannot trace the model at input"):
        graph_from_module(Broken(), "m", (16, 16), MEAN, STD)


def test_auxiliary_branches_go() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.conv(x)
            return F.adaptive_avg_pool2d(x, 1).flatten(1)

    graph = graph_from_module(Branch(), "m", (16, 16), MEAN, STD)
    assert not [node for node in graph.nodes if isinstance(node, g.Conv)]
