"""Models that are torch modules: our own, torchvision's, timm's, the user's code, and .pt2 programs."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge_resnet.data.preprocess import Preprocess
from edge_resnet.errors import EdgeResnetError, InputError, MissingToolError
from edge_resnet.files import sha256_of
from edge_resnet.frontends.torch_export import graph_from_module
from edge_resnet.frontends.weights import (
    check_finite,
    is_torchscript,
    load_into,
    load_state_dict_file,
)
from edge_resnet.graph.graph import Graph
from edge_resnet.models.torchvision_models import import_timm, import_torchvision
from edge_resnet.models.zoo import DEMO_WEIGHTS, ZOO
from edge_resnet.runners.torch_module import TorchModuleRunner

__all__ = ["TorchModel", "open_torch_model", "unknown_name"]

# Where the lines of a traceback are not the user's.
_LIBRARIES = ("<frozen", __file__, *{sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


@dataclass(frozen=True, eq=False)
class TorchModel:
    """A module at evaluation; see SourceModel."""

    module: nn.Module
    name: str
    source: str
    weights_sha256: str | None
    preprocess_defaults: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def params(self) -> int:
        return sum(parameter.numel() for parameter in self.module.parameters())

    def graph(self, preprocess: Preprocess) -> Graph:
        return graph_from_module(self.module, self.name, preprocess.size, preprocess.mean, preprocess.std)

    def runner(self, preprocess: Preprocess) -> TorchModuleRunner:
        return TorchModuleRunner(self.module, preprocess)

    def checker(self, preprocess: Preprocess) -> TorchModuleRunner:
        return self.runner(preprocess)


@dataclass(frozen=True)
class _Source:
    """How to build a model. `build(None)` takes its default number of classes."""

    name: str
    build: Callable[[int | None], nn.Module]
    preprocess: Mapping[str, Any]
    brings_weights: bool = False


def open_torch_model(model: str, weights: Path | None, classes_of_data: int | None, seed: int) -> TorchModel:
    """Build the model, with the classifier that its weights have; load them, or seed random ones.

    Raises InputError: an unknown name (the nearest are given), another architecture, an error in the user's
    own code (its type and line are given).
    """
    notes: list[str] = []
    state = load_state_dict_file(weights) if weights is not None else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        source = _source_of(model)  # runs the user's own code, and builds timm's models once to ask them
        torch.manual_seed(seed)
        module = source.build(None)
        wanted = None if source.brings_weights else _classes_wanted(module, state, classes_of_data)
        if wanted is not None:
            torch.manual_seed(seed)
            module = source.build(wanted)
            notes.append(
                f"{source.name}: built with {wanted} classes, as the {'weights' if state else 'data'} have"
            )
    digest = None
    if state is not None:
        assert weights is not None
        load_into(module, state, str(weights))
        digest = sha256_of(weights)
    elif model == "demo":
        load_into(module, load_state_dict_file(DEMO_WEIGHTS), str(DEMO_WEIGHTS))
        digest = sha256_of(DEMO_WEIGHTS)
    elif not source.brings_weights:
        notes.append(
            f"no weights were given: {source.name} has random weights (seed {seed}); accuracy means nothing"
        )
    check_finite(module.state_dict(), model)  # user code may bring weights of its own
    return TorchModel(module.eval(), source.name, model, digest, source.preprocess, tuple(notes))


def _classes_wanted(module: nn.Module, state: Mapping[str, Tensor] | None, of_data: int | None) -> int | None:
    """The number of classes to rebuild with, or None where the default build already fits."""
    classifier = _classifier(module)
    if classifier is None:
        return None
    name, linear = classifier
    if state is None:
        return of_data if of_data not in (None, linear.out_features) else None
    weight = state.get(f"{name}.weight")
    if weight is None or weight.ndim != 2 or weight.shape[1] != linear.in_features:
        return None
    return None if weight.shape[0] == linear.out_features else int(weight.shape[0])


def _classifier(module: nn.Module) -> tuple[str, nn.Linear] | None:
    linears = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    return linears[-1] if linears else None


def _source_of(model: str) -> _Source:
    if model in ZOO:
        entry = ZOO[model]
        return _Source(
            model,
            lambda classes: entry.build(entry.classes if classes is None else classes),
            entry.preprocess,
        )
    prefix, _, rest = model.partition(":")
    if prefix == "torchvision" and rest:
        return _torchvision(rest)
    if prefix == "timm" and rest:
        return _timm(rest)
    location, _, attribute = model.rpartition(":")
    if location and attribute:
        return _user_code(location, attribute)
    if model.removesuffix(":").endswith(".py"):
        raise InputError(f"{model}: name the callable that returns the model: {model.removesuffix(':')}:NAME")
    if Path(model).suffix in (".pt", ".pth", ".th", ".safetensors"):
        if is_torchscript(Path(model)):
            raise InputError(
                f"{model}: a TorchScript file; export the module itself: torch.export.save("
                "torch.export.export(model.eval(), (torch.zeros(1, 3, 224, 224),)), 'model.pt2')"
            )
        raise InputError(f"{model}: a weights file says nothing of the model; give MODEL --weights {model}")
    raise InputError(_elsewhere(model) or unknown_name("model", model, list(ZOO), "see `edge-resnet models`"))


def unknown_name(what: str, name: str, known: Sequence[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"unknown {what} {name!r}; {'did you mean ' + ', '.join(near) + '?' if near else otherwise}"


def _elsewhere(name: str) -> str | None:
    """Torchvision's name, given bare (`resnet50`): the nearest of our own names would be a wrong guess."""
    try:
        models = import_torchvision().models
    except MissingToolError:
        return None
    if name not in models.list_models(module=models):
        return None
    return f"unknown model {name!r}; did you mean torchvision:{name}?"


def _torchvision(name: str) -> _Source:
    models = import_torchvision().models
    if name not in models.list_models(module=models):
        raise InputError(
            unknown_name("torchvision model", name, models.list_models(module=models), "no such name")
        )
    enum = models.get_model_weights(name)
    entry = getattr(enum, "IMAGENET1K_V1", enum.DEFAULT)
    transforms = entry.transforms()

    def build(classes: int | None) -> nn.Module:
        extra = {} if classes is None else {"num_classes": classes}
        module: nn.Module = models.get_model(name, weights=None, **extra)
        return module

    declared = {
        "size": int(transforms.crop_size[0]),
        "resize": int(transforms.resize_size[0]),
        "mean": tuple(transforms.mean),
        "std": tuple(transforms.std),
        "interpolation": str(transforms.interpolation.value),
    }
    return _Source(name, build, declared)


def _timm(name: str) -> _Source:
    timm = import_timm()
    if not timm.is_model(name):
        raise InputError(unknown_name("timm model", name, timm.list_models(), "no such name"))
    try:
        config = timm.data.resolve_model_data_config(timm.create_model(name, pretrained=False))
    except RuntimeError as error:  # is_model() looks at the part before the dot, create_model() at the tag
        raise InputError(f"timm model {name!r}: {error}") from error
    size = tuple(int(side) for side in config["input_size"][1:])

    def build(classes: int | None) -> nn.Module:
        extra = {} if classes is None else {"num_classes": classes}
        module: nn.Module = timm.create_model(name, pretrained=False, **extra)
        return module

    declared = {
        "size": size,
        "resize": int(size[0] / config["crop_pct"]),
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
        "interpolation": config["interpolation"],
    }
    return _Source(re.sub(r"[^\w.-]", "_", name), build, declared)


def _user_code(location: str, attribute: str) -> _Source:
    """path/to/file.py:callable or package.module:callable: the user's own code, run as Python runs it.

    A module that stands there ready-made is taken too.
    """
    try:
        module = _import_file(Path(location)) if location.endswith(".py") else _import_module(location)
        function = getattr(module, attribute, None)
        if function is None:
            names = [name for name in vars(module) if callable(getattr(module, name)) and name[0] != "_"]
            raise InputError(
                f"{location}: {unknown_name('callable', attribute, names, 'it has no such name')}"
            )
        built = function if isinstance(function, nn.Module) else function()
    except EdgeResnetError:
        raise
    except (Exception, SystemExit) as error:  # a script without a __main__ guard may parse arguments and exit
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        raise InputError(f"{location}:{attribute} failed: {reason} ({_place(error)})") from error
    if not isinstance(built, nn.Module):
        raise InputError(f"{location}:{attribute} returned {type(built).__name__}, not an nn.Module")
    # The callable decides its own classifier, and may have loaded weights: it is built once.
    return _Source(re.sub(r"\W", "_", attribute), lambda classes: built, {}, brings_weights=True)


def _place(error: BaseException) -> str:
    """file:line of the user's last line, not of the library's that it called."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: there is no such Python file")
    spec = importlib.util.spec_from_file_location(f"edge_resnet_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # so that it can import its neighbours, as when run
    try:
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def _import_module(name: str) -> Any:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            raise InputError(f"unknown model: there is no Python module {error.name!r} to import") from error
        raise
    finally:
        sys.path.pop(0)
