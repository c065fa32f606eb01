"""NNCF quantizes, and trains; its ranges become the graph's.

NNCF is given the lowered graph as a torch module, so that any source can be quantized by it. PTQ and QAT go
the same way, training only comes in between; the parameters are read from NNCF's own quantizers, by node.

What NNCF decides    which tensors share a range, every range, the weights' scales, bias correction.
What is asked of it  8 bit, one scale for each activation, symmetric weights with a scale for each channel:
                     what every runtime computes in integers.
What stays ours      the image (its bytes are the integers), a sigmoid's output (TFLite prescribes it), and
                     what NNCF leaves in float: the logits, the layers of squeeze-and-excitation.

NNCF's scales differ at residual sums, so that runtimes may round those differently (verify/exactness.py).
At its first use NNCF compiles a C++ extension (half a minute; torch keeps it); without a compiler it computes
the same more slowly.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edge_resnet.compression.calibrate import calibrate
from edge_resnet.compression.graph_module import GraphModule, with_trained_weights
from edge_resnet.compression.nncf_scheme import NncfScheme, read_scheme
from edge_resnet.compression.quantize import MAX_BIAS, integer_weights, tensor_parameters, weight_scales
from edge_resnet.errors import GraphError, InputError, MissingToolError
from edge_resnet.graph.float_executor import input_values
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, FloatWeights, Linear, Node, Sigmoid
from edge_resnet.graph.streams import parameter_groups
from edge_resnet.hidden_modules import hidden

__all__ = [
    "NncfModel",
    "NncfResult",
    "calibrate_with_nncf",
    "check_nncf",
    "import_nncf",
]

_LEAST_VERSION = (3, 4)
# NNCF gives its compiler a minute, which a busy machine exceeds.
_COMPILE_SECONDS = "600"


@dataclass(frozen=True)
class NncfResult:
    """The quantized graph, and what the user should know of how it came about.

    `floating` is the same graph in float, with the biases that NNCF corrected and the weights that were
    trained.
    """

    graph: Graph
    floating: Graph
    notes: tuple[str, ...]


def import_nncf() -> ModuleType:
    """NNCF, silent, and without its telemetry: nothing is sent.

    Raises MissingToolError where it is not installed, or too old.
    """
    if importlib.util.find_spec("nncf") is None:
        raise MissingToolError("--quantizer nncf needs NNCF: pip install 'edge-resnet[nncf]'")
    os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", _COMPILE_SECONDS)
    with _silent(), hidden("openvino_telemetry"):
        nncf = importlib.import_module("nncf")
    if tuple(int(part) for part in nncf.__version__.split(".")[:2]) < _LEAST_VERSION:
        raise MissingToolError(
            f"--quantizer nncf needs NNCF {'.'.join(map(str, _LEAST_VERSION))} or newer, here is "
            f"{nncf.__version__}: pip install --upgrade 'edge-resnet[nncf]'"
        )
    nncf.set_log_level(logging.CRITICAL)  # it logs to standard output, where results go
    return nncf


def check_nncf(floating: Graph) -> None:
    """Whether NNCF's scheme for this graph can be carried, from one image of noise; takes a second or two.

    `floating` is the lowered graph, as for calibrate_with_nncf. Raises what NncfModel.quantized raises.
    """
    noise = np.random.default_rng(0).integers(0, 256, (1, *floating.input.shape[1:], 3), np.uint8)
    module = _quantized_module(floating, [noise], correct_biases=False)
    read_scheme(floating, _hooks(module))


@dataclass(frozen=True, eq=False)
class NncfModel:
    """NNCF's module of a graph, calibrated. Train it or not, then ask for its integers.

    `module` takes what float_executor.input_values makes of images and answers logits; NNCF's ranges are
    among its parameters. `floating` and `images` are what it was made of.
    """

    floating: Graph
    module: nn.Module
    images: Sequence[NDArray[np.uint8]]

    def quantized(self) -> NncfResult:
        """The graph with the module's weights and ranges, as they are now.

        Raises InputError that names the node where NNCF's scheme has no counterpart in the graph.
        """
        trained = with_trained_weights(self.floating, self.module)
        return _carried(trained, read_scheme(self.floating, _hooks(self.module)), self.images)


def calibrate_with_nncf(floating: Graph, batches: Iterable[NDArray[np.uint8]]) -> NncfModel:
    """Ranges from these images, uint8 [N, H, W, C], and corrected biases.

    `floating` is the lowered float graph whose input holds its bytes' parameters (lower_for_integers).
    Raises MissingToolError without NNCF, and InputError without images.
    """
    if floating.input.quant is None:
        raise GraphError(f"graph {floating.name!r}: the input has no quantization parameters")
    images = list(batches)
    if not sum(map(len, images)):
        raise InputError(
            "calibration needs at least one image (calibration.images is 0, or there is no data)"
        )
    module = _quantized_module(floating, images)
    _release_image(module)
    return NncfModel(floating, module, images)


def _carried(floating: Graph, scheme: NncfScheme, images: Sequence[NDArray[np.uint8]]) -> NncfResult:
    """The graph with NNCF's parameters; with ours where NNCF has none or where no choice is left."""
    parameters = tensor_parameters(floating, calibrate(floating, images))
    ours: list[str] = []
    for group in parameter_groups(floating):
        given = next((scheme.activations[name] for name in group if name in scheme.activations), None)
        if _is_prescribed(floating, group):
            continue
        if given is None:
            ours.extend(name for name in group if name != floating.output.name)
        else:
            parameters.update(dict.fromkeys(group, given))
    nodes: list[Node] = []
    for node in floating.nodes:
        quantized = replace(node, quant=parameters[node.name])
        if isinstance(quantized, Conv | Linear):
            assert isinstance(quantized.weights, FloatWeights)
            s_x = parameters[node.inputs[0]].scale
            scale = _weight_scale(quantized.weights, s_x, scheme.weights.get(node.name))
            quantized = replace(quantized, weights=integer_weights(quantized.weights, s_x, scale))
        nodes.append(quantized)
    floats = [
        node.name
        for node in floating.nodes
        if isinstance(node, Conv | Linear) and node.name not in scheme.weights
    ]
    return NncfResult(floating.with_nodes(nodes), floating, _notes(ours, floats))


def _is_prescribed(graph: Graph, group: Sequence[str]) -> bool:
    return any(name == graph.input.name or isinstance(graph.by_name[name], Sigmoid) for name in group)


def _weight_scale(
    weights: FloatWeights, s_x: float, given: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """[O]: NNCF's, larger only where the bias of an almost dead channel would not fit int32."""
    if given is None:
        return weight_scales(weights, s_x)
    for_bias = np.abs(weights.bias.astype(np.float64)) / (s_x * MAX_BIAS)
    return np.maximum(given, for_bias).astype(np.float32)


def _notes(ours: Sequence[str], floats: Sequence[str]) -> tuple[str, ...]:
    notes = ["NNCF gives the logits no range: theirs is that of the calibration images"]
    if ours or floats:
        first = (*floats, *ours)[0]
        notes.append(
            f"NNCF leaves {len(floats)} layers' weights and {len(ours)} tensors in float (node {first!r} is "
            "the first); edge-resnet chose their integers"
        )
    return tuple(notes)


def _quantized_module(
    floating: Graph, images: Sequence[NDArray[np.uint8]], correct_biases: bool = True
) -> nn.Module:
    """NNCF's module, in evaluation mode, calibrated on all the images."""
    nncf = import_nncf()
    advanced = importlib.import_module("nncf.quantization.advanced_parameters")
    structs = importlib.import_module("nncf.common.quantization.structs")
    parameters = advanced.AdvancedQuantizationParameters(
        disable_bias_correction=not correct_biases,
        # Its default takes 7 bits for the first layer's weights (for the CPUs that portable_x86 is about), at
        # a scale that puts each channel's largest weight on a rounding tie.
        overflow_fix=advanced.OverflowFix.DISABLE,
        batchwise_statistics=True,  # one range for each image of a batch, as if they came singly
        activations_quantization_params=advanced.QuantizationParameters(num_bits=8, per_channel=False),
        weights_quantization_params=advanced.QuantizationParameters(
            num_bits=8, per_channel=True, mode=structs.QuantizationScheme.SYMMETRIC, narrow_range=True
        ),
    )
    data = nncf.Dataset(images, lambda batch: input_values(floating.input, batch))
    try:
        with _silent():
            module: nn.Module = nncf.quantize(
                GraphModule(floating).eval(),
                data,
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(images),
                fast_bias_correction=True,
                advanced_parameters=parameters,
            )
    except Exception as error:  # NNCF's errors have no class in common
        if type(error).__name__ == "ExtensionLoaderTimeoutException":
            raise MissingToolError(f"NNCF did not compile its extension in time: {error}") from error
        raise InputError(
            f"NNCF cannot quantize {floating.name}: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    return module.eval()


def _hooks(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and quantizers of NNCF's module."""
    storage = importlib.import_module("nncf.torch.function_hook").get_hook_storage(module)
    hooks: Iterator[tuple[str, Any]] = storage.named_hooks()
    return hooks


def _release_image(module: nn.Module) -> None:
    """The image is in integers already; NNCF's range for it would cut off the brightest and darkest."""
    for name, quantizer in _hooks(module):
        if "/" not in name:
            quantizer.disable_quantization()


@contextmanager
def _silent() -> Iterator[None]:
    """Without NNCF's progress bars and log on standard output, and torch's warnings of its internals."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
