"""Any nn.Module of the family -> Graph, through torch.export.

One code path and no table of models: the exported program is walked, and each operator goes to its function
in torch_operators.py. What has none is refused by operator, module and source line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge_resnet.errors import GraphError, InputError, UnsupportedOperatorError
from edge_resnet.frontends.torch_operators import IMPORTERS
from edge_resnet.graph import nodes as g
from edge_resnet.graph.graph import Graph

__all__ = ["graph_from_module"]

FxNode = torch.fx.Node


def graph_from_module(
    module: nn.Module,
    name: str,
    input_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    labels: Sequence[str] = (),
) -> Graph:
    """Trace `module` at evaluation and describe it, with its normalization in front.

    The module takes normalized images [N, 3, H, W], (RGB / 255 - mean) / std; the graph takes the raw image.
    Raises UnsupportedOperatorError for an operator that the graph lacks, InputError when tracing fails.
    """
    module = module.eval()
    example = torch.zeros(1, len(mean), *input_size)
    try:
        program = torch.export.export(module, (example,))
    except Exception as error:  # torch.export raises many types; the first line says what the model did
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{name}: torch.export cannot trace the model at input {list(example.shape)}: {reason}"
        ) from error
    return _Importer(program, name, mean, std, tuple(labels)).graph()


class _Importer:
    """Walks an exported program and collects graph nodes. `made` maps an fx node to the node it became."""

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        name: str,
        mean: Sequence[float],
        std: Sequence[float],
        labels: tuple[str, ...],
    ) -> None:
        self.program = program
        self.name = name
        self.labels = labels
        self.nodes: list[g.Node] = []
        self.made: dict[FxNode, str] = {}
        self.used_names: set[str] = set()
        self.parameters = _placeholder_tensors(program)
        self.mean = np.asarray(mean, np.float32) * np.float32(255)
        self.std = np.asarray(std, np.float32) * np.float32(255)

    def graph(self) -> Graph:
        for fx in self.program.graph.nodes:
            if fx.op == "placeholder":
                if fx.name not in self.parameters:
                    self._import_input(fx)
            elif fx.op == "call_function":
                self._import_call(fx)
            elif fx.op == "output":
                self._check_outputs(fx)
            else:
                raise self._unsupported(fx, f"{fx.op} {fx.target}")
        return _trimmed(self.name, self.nodes, self.labels)

    def _import_input(self, fx: FxNode) -> None:
        if self.nodes:
            raise InputError(f"{self.name}: the model has more than one input; an image classifier has one")
        shape = tuple(int(size) for size in fx.meta["val"].shape[1:])
        self.nodes.append(g.Input(name="image", shape=shape))
        self.nodes.append(g.Normalize(name="normalize", inputs=("image",), mean=self.mean, std=self.std))
        self.used_names |= {"image", "normalize"}
        self.made[fx] = "normalize"

    def _import_call(self, fx: FxNode) -> None:
        importer = IMPORTERS.get(str(fx.target))
        if importer is None:
            raise self._unsupported(fx, str(fx.target))
        try:
            importer(self, fx)
        except GraphError as error:
            raise self._unsupported(fx, f"{fx.target}: {error}") from None

    def _check_outputs(self, fx: FxNode) -> None:
        outputs = fx.args[0]
        if not isinstance(outputs, tuple) or len(outputs) != 1:
            raise InputError(f"{self.name}: the model has several outputs; an image classifier has one")
        # Identities (dropout, a second flatten) may have been skipped at the end.
        output = self.made[outputs[0]]  # type: ignore[index]
        while self.nodes and self.nodes[-1].name != output:
            self.nodes.pop()

    def _unsupported(self, fx: FxNode, what: str) -> UnsupportedOperatorError:
        stack = fx.meta.get("nn_module_stack") or {}
        path = [entry[0] for entry in stack.values() if entry[0]]
        trace = [line.strip() for line in str(fx.meta.get("stack_trace") or "").splitlines() if line.strip()]
        source = next((line for line in reversed(trace) if line.startswith("File ")), "")
        code = trace[-1] if trace and not trace[-1].startswith("File ") else ""
        where = f"in module {path[-1]!r}" if path else "in the model's forward"
        at = f", {source}: {code}" if source else ""
        return UnsupportedOperatorError(f"{self.name}: operator {what} {where} is not supported{at}")

    # What importers use.

    def source(self, fx: FxNode, index: int = 0) -> str:
        argument = fx.args[index]
        if not isinstance(argument, FxNode) or argument not in self.made:
            raise GraphError(f"argument {index} is not a tensor that the image flows through")
        return self.made[argument]

    def tensor(
        self, fx: FxNode, index: int, default: float | None = None, size: int = 0
    ) -> NDArray[np.float32]:
        argument = fx.args[index] if index < len(fx.args) else None
        if argument is None and default is not None:
            return np.full(size, default, np.float32)
        if not isinstance(argument, FxNode) or argument.name not in self.parameters:
            raise GraphError(f"argument {index} is not a parameter of the model")
        value: NDArray[np.float32] = self.parameters[argument.name].detach().float().numpy()
        return value

    def add(self, fx: FxNode, make: Callable[[str], g.Node]) -> None:
        name = self._node_name(fx)
        self.nodes.append(make(name))
        self.made[fx] = name

    def skip(self, fx: FxNode) -> None:
        """The operator does nothing at inference."""
        self.made[fx] = self.source(fx)

    def shape(self, fx: FxNode) -> tuple[int, ...]:
        return tuple(int(size) for size in fx.meta["val"].shape[1:])

    def _node_name(self, fx: FxNode) -> str:
        """The module's path where a module computes this node, else its parent's path and the operator."""
        operator = str(fx.target).split(".")[1].rstrip("_")
        stack = fx.meta.get("nn_module_stack") or {}
        entries = [entry for entry in stack.values() if entry[0]]
        path, kind = (entries[-1][0], str(entries[-1][1]).rsplit(".", 1)[-1]) if entries else ("", "")
        leaf = kind in _LEAF_MODULES
        base = path if leaf else ".".join(part for part in (path, operator) if part)
        name, number = base, 1
        while name in self.used_names:
            number += 1
            name = f"{base}_{number}"
        self.used_names.add(name)
        return name


# Modules that compute exactly one operator: the node takes their path as its name.
_LEAF_MODULES = {
    "Conv2d",
    "BatchNorm2d",
    "Linear",
    "ReLU",
    "MaxPool2d",
    "AvgPool2d",
    "AdaptiveAvgPool2d",
    "ZeroPad2d",
    "Flatten",
}


def _placeholder_tensors(program: torch.export.ExportedProgram) -> dict[str, torch.Tensor]:
    """Parameters, buffers and constants by the name of their placeholder."""
    signature = program.graph_signature
    named = {**program.state_dict, **program.constants}
    targets = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    return {placeholder: named[target] for placeholder, target in targets.items()}


def _trimmed(name: str, nodes: list[g.Node], labels: tuple[str, ...]) -> Graph:
    """The graph of what the output needs; a node that nothing reads (an auxiliary head) goes."""
    wanted = {nodes[-1].name}
    for node in reversed(nodes):
        if node.name in wanted:
            wanted.update(node.inputs)
    return Graph(name, tuple(node for node in nodes if node.name in wanted), labels)
