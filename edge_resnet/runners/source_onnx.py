"""A user's own .onnx file on ONNX Runtime: the baseline of a model that came as one."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from edge_resnet.data.preprocess import Preprocess
from edge_resnet.errors import InputError, first_line
from edge_resnet.frontends.onnx import OnnxSource

__all__ = ["SourceOnnxRunner"]


class SourceOnnxRunner:
    """The file, fed with images as it wants them: normalized or raw, channels first or last.

    It answers what the graph answers: a softmax at the file's end is left out.
    """

    runtime = "ONNX Runtime (the source file)"
    emulated = False

    def __init__(self, source: OnnxSource, preprocess: Preprocess, threads: int = 2) -> None:
        import onnxruntime

        self.version = str(onnxruntime.__version__)
        self._source, self._preprocess = source, preprocess
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        self._output = _before_softmax(source)
        try:
            self._session = onnxruntime.InferenceSession(
                _answering(source.model, self._output), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exception types are created at run time, under no common base
            raise InputError(
                f"{source.path}: ONNX Runtime does not run the file: {first_line(error)}"
            ) from error
        shape = self._session.get_inputs()[0].shape
        self._one_by_one = shape[0] == 1
        self._dtype = _DTYPES[self._session.get_inputs()[0].type]

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, H, W, 3] -> float32 [N, ...]."""
        if self._source.raw_bytes:
            images = self._preprocess.in_model_order(pixels)
        else:
            images = self._preprocess.normalized(pixels).numpy().transpose(0, 2, 3, 1).astype(self._dtype)
        if not self._source.channels_last:
            images = images.transpose(0, 3, 1, 2)
        step = 1 if self._one_by_one else max(1, len(images))
        try:
            answers = [
                self._session.run(
                    [self._output], {self._source.input: np.ascontiguousarray(images[at : at + step])}
                )[0]
                for at in range(0, len(images), step)
            ]
        except Exception as error:
            raise InputError(
                f"{self._source.path}: ONNX Runtime cannot run it: {first_line(error)}"
            ) from error
        answer = np.concatenate(answers).astype(np.float32, copy=False)
        return answer.reshape(len(answer), -1)


_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}


def _before_softmax(source: OnnxSource) -> str:
    """The tensor whose softmax the chosen output is, else the output."""
    makers = {name: node for node in source.model.graph.node for name in node.output}
    name = source.output
    while name in makers and makers[name].op_type in ("Identity", "Dropout", "Squeeze", "Flatten", "Reshape"):
        name = makers[name].input[0]
    maker = makers.get(name)
    return str(maker.input[0]) if maker is not None and maker.op_type in _SOFTMAX else source.output


_SOFTMAX = ("Softmax", "LogSoftmax")


def _answering(model: onnx.ModelProto, output: str) -> bytes:
    """The model with `output` as its only output."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    known = [value for value in changed.graph.output if value.name == output]
    value = known[0] if known else onnx.ValueInfoProto(name=output)
    del changed.graph.output[:]
    changed.graph.output.append(value)
    return changed.SerializeToString()  # type: ignore[no-any-return]
