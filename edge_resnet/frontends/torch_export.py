"""Any nn.Module of the family -> Graph, through torch.export.

One code path and no table of models: the exported program is walked, and each operator goes to its function
in torch_operators.py. What has none is refused by operator, module and source line.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edge_resnet.errors import GraphError, InputError, UnsupportedOperatorError, first_line
from edge_resnet.frontends.builder import GraphBuilder
from edge_resnet.frontends.ends import chosen_output
from edge_resnet.frontends.node_builder import check_finite
from edge_resnet.frontends.torch_operators import OPERATORS, Call
from edge_resnet.frontends.values import Value
from edge_resnet.graph.graph import Graph

__all__ = ["graph_from_module", "graph_from_program"]

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
        raise InputError(
            f"{name}: torch.export cannot trace the model at input {list(example.shape)}: {first_line(error)}"
        ) from error
    return graph_from_program(program, name, mean, std, labels)


def graph_from_program(
    program: torch.export.ExportedProgram,
    name: str,
    mean: Sequence[float],
    std: Sequence[float],
    labels: Sequence[str] = (),
    output: str | None = None,
) -> Graph:
    """The graph of a program that torch.export made, at the input size that it has.

    `output` names one of several outputs.
    """
    return _Importer(program, name, mean, std, output).graph(labels)


class _Importer:
    """Walks an exported program. `made` maps an fx node to what it became: a Value, a list, or a constant."""

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        name: str,
        mean: Sequence[float],
        std: Sequence[float],
        output: str | None,
    ) -> None:
        self.program = program
        self.name = name
        self.output = output
        self.mean, self.std = mean, std
        self.builder = GraphBuilder(name, channels_last=False)
        self.made: dict[FxNode, Any] = {}
        self.parameters = _placeholder_tensors(program)

    @torch.no_grad()
    def graph(self, labels: Sequence[str]) -> Graph:
        for fx in self.program.graph.nodes:
            if fx.op == "placeholder":
                self.made[fx] = self.parameters[fx.name] if fx.name in self.parameters else self._input(fx)
            elif fx.op == "call_function":
                self.made[fx] = self._call(fx)
            elif fx.op == "output":
                return self._finished(fx, labels)
            else:
                raise self._unsupported(fx, f"{fx.op} {fx.target}")
        raise InputError(f"{self.name}: the program has no output")

    def _input(self, fx: FxNode) -> Value:
        if self.builder.nodes:
            raise InputError(f"{self.name}: the model has more than one input; an image classifier has one")
        shape = tuple(fx.meta["val"].shape) if "val" in fx.meta else ()
        if len(shape) != 4 or shape[1] != len(self.mean) or not all(isinstance(n, int) for n in shape[1:]):
            raise InputError(
                f"{self.name}: the input is {list(shape)}, not an image [N, {len(self.mean)}, H, W] "
                "of fixed size"
            )
        return self.builder.image(shape[1:], self.mean, self.std)

    def _call(self, fx: FxNode) -> Any:
        arguments = torch.fx.node.map_arg(fx.args, self.made.__getitem__)
        keywords = torch.fx.node.map_arg(dict(fx.kwargs), self.made.__getitem__)
        if not any(_of_image(self.made[source]) for source in fx.all_input_nodes):
            if any(source not in self.made for source in fx.all_input_nodes):
                raise self._unsupported(fx, str(fx.target))
            return self._constant(fx, arguments, keywords)
        function = OPERATORS.get(str(fx.target))
        if function is None:
            raise self._unsupported(fx, str(fx.target))
        try:
            return function(Call(self.builder, self._node_name(fx), tuple(arguments), keywords))
        except GraphError as error:
            raise self._unsupported(fx, f"{fx.target}: {error}") from None

    def _constant(self, fx: FxNode, arguments: Any, keywords: Any) -> Any:
        """What is computed from parameters alone, once, here. Only arithmetic: it may be from a file."""
        name = str(fx.target).split(".")[1] if str(fx.target).startswith("aten.") else str(fx.target)
        if name not in _CONSTANT_OPERATORS:
            raise self._unsupported(fx, f"{fx.target} of parameters")
        size = getattr(fx.meta.get("val"), "numel", lambda: 0)()
        if size > _LARGEST_CONSTANT:
            raise self._unsupported(fx, f"{fx.target}: a constant of {size:,} elements")
        return fx.target(*arguments, **keywords)  # type: ignore[operator]

    def _finished(self, fx: FxNode, labels: Sequence[str]) -> Graph:
        outputs = [node for node in fx.args[0] if isinstance(node, FxNode)]  # type: ignore[union-attr]
        named = {node.name: node for node in outputs}
        value = self.made[named[chosen_output(self.name, list(named), self.output)]]
        if not isinstance(value, Value):
            raise InputError(f"{self.name}: the output does not depend on the image")
        try:
            graph = self.builder.graph(value, labels)
            check_finite(graph)
            return graph
        except GraphError as error:
            raise InputError(f"{self.name}: the output: {error}") from None

    def _unsupported(self, fx: FxNode, what: str) -> UnsupportedOperatorError:
        stack = fx.meta.get("nn_module_stack") or {}
        path = [entry[0] for entry in stack.values() if entry[0]]
        trace = [line.strip() for line in str(fx.meta.get("stack_trace") or "").splitlines() if line.strip()]
        source = next((line for line in reversed(trace) if line.startswith("File ")), "")
        code = trace[-1] if trace and not trace[-1].startswith("File ") else ""
        where = f"in module {path[-1]!r}" if path else "in the model's forward"
        at = f", {source}: {code}" if source else ""
        return UnsupportedOperatorError(f"{self.name}: operator {what} {where} is not supported{at}")

    def _node_name(self, fx: FxNode) -> str:
        """The module's path where a module computes this node, else its parent's path and the operator."""
        parts = str(fx.target).split(".")
        kind_of = parts[1].rstrip("_") if len(parts) > 1 else fx.name
        stack = fx.meta.get("nn_module_stack") or {}
        entries = [entry for entry in stack.values() if entry[0]]
        path, kind = (entries[-1][0], str(entries[-1][1]).rsplit(".", 1)[-1]) if entries else ("", "")
        leaf = kind in _LEAF_MODULES
        return path if leaf else ".".join(part for part in (path, kind_of) if part)


def _of_image(made: Any) -> bool:
    """Whether something depends on the image."""
    return isinstance(made, Value) or (isinstance(made, list) and any(map(_of_image, made)))


# Standardized weights, blur kernels and the like: what may be computed from parameters.
_CONSTANT_OPERATORS = {
    *(
        "add",
        "sub",
        "mul",
        "div",
        "neg",
        "pow",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "exp",
        "abs",
        "sigmoid",
        "softmax",
    ),
    *("add_", "sub_", "mul_", "div_", "mean", "var", "var_mean", "std", "sum", "batch_norm"),
    *(
        "view",
        "view_as",
        "reshape",
        "reshape_as",
        "flatten",
        "expand",
        "expand_as",
        "permute",
        "transpose",
        "unsqueeze",
        "squeeze",
    ),
    *("repeat", "cat", "stack", "slice", "select", "flip", "clone", "detach", "alias", "contiguous", "to"),
    *("full", "zeros", "ones", "full_like", "zeros_like", "ones_like", "arange", "lift_fresh_copy"),
    "_assert_tensor_metadata",
    str(operator.getitem),
}
_LARGEST_CONSTANT = 2**26

# Modules that compute exactly one operator: the node takes their path as its name.
_LEAF_MODULES = {
    "Conv2d",
    "BatchNorm2d",
    "Linear",
    "ReLU",
    "ReLU6",
    "Sigmoid",
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
