"""A .tflite file of the family -> Graph, in integers where the file has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_resnet.errors import GraphError, InputError, UnsupportedOperatorError
from edge_resnet.frontends.builder import GraphBuilder
from edge_resnet.frontends.ends import check_size, chosen_output
from edge_resnet.frontends.integers import IntegerConstant, are_bytes, finish_integers
from edge_resnet.frontends.node_builder import check_finite
from edge_resnet.frontends.tflite_file import TfliteFile, load_tflite
from edge_resnet.frontends.tflite_operators import OPERATORS, TfliteCall
from edge_resnet.frontends.values import Value
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import QuantParams

__all__ = ["TfliteSource", "open_tflite"]


@dataclass(frozen=True, eq=False)
class TfliteSource:
    """An opened file; `input` and `output` are numbers of tensors, `quant` the input's parameters, if any."""

    file: TfliteFile
    input: int
    output: int
    size: tuple[int, int]
    quant: QuantParams | None

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def declared(self) -> dict[str, Any]:
        """What the input's parameters say of the normalization: real = scale * (byte - zero point)."""
        if self.quant is None:
            return {"size": self.size}
        mean = (self.quant.zero_point + 128) / 255
        return {"size": self.size, "mean": (mean,) * 3, "std": (1 / (255 * self.quant.scale),) * 3}

    @property
    def takes_bytes(self) -> bool:
        return self.file.dtype(self.input) == "uint8" and self.quant is None

    def as_declared(self, mean: Sequence[float], std: Sequence[float]) -> bool:
        """Whether the image's bytes are the input's integers, but for the rounding of a tie."""
        if self.quant is None:
            return False
        ends = np.array([[0.0], [255.0]])
        wanted = (ends / 255 - np.asarray(mean)) / np.asarray(std) / self.quant.scale
        return are_bytes(wanted, ends, self.quant)

    def graph(
        self,
        name: str,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        keep_integers: bool = True,
    ) -> Graph:
        """The graph. Raises UnsupportedOperatorError that names the tensor which an operator writes."""
        check_size(str(self.path), self.size, size)
        return _Importer(self, name, keep_integers).graph(mean, std)


def open_tflite(path: Path, output: str | None = None) -> TfliteSource:
    """Open the file and look at its ends. Raises InputError: damaged, several inputs or outputs."""
    file = load_tflite(path)
    try:
        inputs = [int(index) for index in _numbers(file.subgraph.inputs)]
        outputs = [int(index) for index in _numbers(file.subgraph.outputs)]
        if len(inputs) != 1:
            names = ", ".join(file.name(index) for index in inputs) or "none"
            raise InputError(
                f"{path}: an image classifier has one input, this model has {len(inputs)}: {names}"
            )
        shape, dtype = file.shape(inputs[0]), file.dtype(inputs[0])
        if (
            len(shape) != 4
            or shape[3] != 3
            or min(shape[1:]) < 1
            or dtype not in ("float32", "uint8", "int8")
        ):
            raise InputError(f"{path}: the input is {dtype} {list(shape)}, not an image [N, H, W, 3]")
        named = {file.name(index): index for index in outputs}
        chosen = named[chosen_output(str(path), list(named), output)]
        return TfliteSource(file, inputs[0], chosen, (shape[1], shape[2]), file.quant(inputs[0]))
    except GraphError as error:
        raise InputError(f"{path}: {error}") from None
    except (IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: damaged TFLite file: {type(error).__name__}: {error}") from error


def _numbers(values: Any) -> Any:
    return () if values is None else values


class _Importer:
    """Walks the operators. `made` maps a tensor's number to what it became."""

    def __init__(self, source: TfliteSource, name: str, keep_integers: bool) -> None:
        self.source, self.file = source, source.file
        self.builder = GraphBuilder(name, channels_last=True, keep_integers=keep_integers)
        self.made: dict[int, Any] = {}

    def graph(self, mean: Sequence[float], std: Sequence[float]) -> Graph:
        source, path = self.source, self.source.path
        shape = (3, *source.size)
        if source.as_declared(mean, std) and self.builder.keep_integers:
            image = self.builder.raw_image(shape)
        else:
            image = self.builder.image(shape, mean, std)
        if source.quant is not None:
            image = self.builder.quantized(image, source.quant)
        self.made[source.input] = image
        for operator in self.file.operators:
            self._import(operator)
        output = self.made.get(source.output)
        if not isinstance(output, Value):
            raise InputError(f"{path}: the output does not depend on the image")
        try:
            graph = self.builder.graph(output)
            check_finite(graph)
        except GraphError as error:
            raise InputError(f"{path}: {error}") from None
        return finish_integers(graph, str(path)) if self.builder.quants else graph

    def _import(self, operator: Any) -> None:
        kind, outputs = "operator", []
        try:
            kind, outputs = self.file.kind(operator), [int(n) for n in _numbers(operator.outputs)]
            inputs = [self._input(int(index)) for index in _numbers(operator.inputs)]
            if kind == "SHAPE" and isinstance(inputs[0], Value):
                self.made[outputs[0]] = np.asarray(inputs[0].shape, np.int32)
                return
            if not any(isinstance(value, Value) for value in inputs):
                self.made[outputs[0]] = _constant(kind, inputs, operator.builtinOptions)
                return
            if kind not in OPERATORS or len(outputs) != 1:
                raise GraphError("")
            call = TfliteCall(self.builder, self._name(outputs[0]), tuple(inputs), operator.builtinOptions)
            with np.errstate(all="ignore"):  # what is not finite is refused
                value = OPERATORS[kind](call)
            quant = self.file.quant(outputs[0])
            if quant is not None and not value.softmax:
                value = self.builder.quantized(value, quant)
            self.made[outputs[0]] = value
        except GraphError as error:
            raise self._unsupported(kind, outputs, str(error)) from None
        except (IndexError, TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
            raise InputError(
                f"{self.source.path}: damaged TFLite file: {kind}: {type(error).__name__}: {error}"
            ) from error

    def _input(self, index: int) -> Any:
        if index == -1:
            return None
        if index in self.made:
            return self.made[index]
        constant = self.file.constant(index)
        if constant is None:
            raise GraphError(f"input {self.file.name(index)!r} was not computed")
        return constant

    def _name(self, index: int) -> str:
        """The converter joins the names of what it fused with semicolons."""
        return self.file.name(index).split(";")[0] or f"tensor_{index}"

    def _unsupported(self, kind: str, outputs: Sequence[int], why: str) -> UnsupportedOperatorError:
        name = self.file.name(outputs[0]) if outputs and 0 <= outputs[0] < len(self.file.tensors) else "?"
        hint = "; --requantize chooses new integers" if self.builder.quants else ""
        return UnsupportedOperatorError(
            f"{self.source.path}: operator {kind} that writes {name!r} is not supported"
            f"{': ' if why else ''}{why}{hint if why else ''}"
        )


def _constant(kind: str, inputs: Sequence[Any], options: Any) -> Any:
    """Weights behind a DEQUANTIZE, and the arithmetic on shapes that converters leave behind."""
    if kind == "DEQUANTIZE" and inputs[0] is not None:
        return inputs[0].real if isinstance(inputs[0], IntegerConstant) else inputs[0]
    arrays = [value for value in inputs if isinstance(value, np.ndarray) and value.size <= _LARGEST_SHAPE]
    if len(arrays) == len(inputs) and kind == "PACK":
        return np.stack(arrays, int(options.axis))
    if len(arrays) == len(inputs) == 4 and kind == "STRIDED_SLICE" and arrays[0].ndim == 1:
        (start,), (stop,), (step,) = (array.reshape(-1)[:1] for array in arrays[1:])
        first = None if options.beginMask & 1 else int(start)
        if options.shrinkAxisMask & 1:
            return np.asarray(arrays[0][int(start)])
        return arrays[0][first : None if options.endMask & 1 else int(stop) : int(step)]
    raise GraphError("of constants")


_LARGEST_SHAPE = 64
