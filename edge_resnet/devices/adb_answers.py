"""What an artifact answers to images on a phone: a loop there, over raw images in one file."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_resnet.benchmark.result import without_figures
from edge_resnet.devices.adb_session import AdbSession, command_line
from edge_resnet.devices.adb_timing import Tool, library_path
from edge_resnet.devices.benchmark_model import Delegate, image_arguments, parse_report
from edge_resnet.devices.device import Answers, DeviceLostError, Job, Measurement, Request
from edge_resnet.errors import EdgeResnetError, MissingToolError
from edge_resnet.frontends.tflite import TfliteSource, open_tflite
from edge_resnet.progress import Advance

__all__ = ["answer_images"]

_KIND = "measured"
# Of images in one file, and for how long one loop may be silent: the bar should move now and then.
_CHUNK_BYTES = 32e6
_CHUNK_SECONDS = 10.0
# How much longer than the first image, which no cache held, a later one may take.
_PATIENCE = 20.0


def answer_images(
    session: AdbSession,
    tool: Tool,
    uri: str,
    job: Job,
    delegate: Delegate,
    request: Request,
    advance: Advance,
    found: Measurement,
) -> None:
    """Puts the answers into `found`: as many as there are, and a note where it is not all.

    Raises DeviceLostError.
    """
    assert request.pixels is not None
    answering = _Answering(session, tool, job, delegate, request.settings.timeout)
    parts: list[NDArray[np.float32]] = []
    done = 0
    try:
        while done < len(request.pixels):
            count = answering.count(request.pixels.shape, done)
            parts.append(answering.chunk(request.pixels[done : done + count]))
            done += len(parts[-1])
            advance(len(parts[-1]))
    except DeviceLostError:
        raise
    except EdgeResnetError as error:
        note = f"only {done} of {len(request.pixels)} images: {job.path.name}: {error}"
        found.benchmarks.append(without_figures(uri, delegate.runtime, _KIND, note, 1, tool.version))
        advance(len(request.pixels) - done)
    finally:
        if parts:
            found.answers = Answers(np.concatenate(parts), answering.runtime, tool.version, _KIND)


class _Answering:
    def __init__(self, session: AdbSession, tool: Tool, job: Job, delegate: Delegate, timeout: float) -> None:
        self._session, self._tool, self._job, self._delegate = session, tool, job, delegate
        self._timeout = timeout
        self._source: TfliteSource | None = None
        self._seconds: float | None = None
        self.runtime = delegate.runtime

    def count(self, shape: tuple[int, ...], done: int) -> int:
        """How many images next. The first alone: it tells how long one takes."""
        if self._seconds is None:
            return 1
        # Four bytes a value where the input is float.
        room = int(_CHUNK_BYTES // (4 * int(np.prod(shape[1:]))))
        return max(1, min(room, int(_CHUNK_SECONDS / self._seconds), shape[0] - done))

    def chunk(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, H, W, 3] -> float32 [N, classes]."""
        source = self._source = self._source or open_tflite(self._job.path)
        file, session = source.file, self._session
        if (*source.size, 3) != pixels.shape[1:]:
            raise MissingToolError(f"takes images of {source.size}, not {pixels.shape[1:3]}")
        dtype, answer = file.dtype(source.input), np.dtype(file.dtype(source.output))
        images = (pixels.astype(np.int16) - 128 if dtype == "int8" else pixels).astype(dtype)
        size = answer.itemsize * int(np.prod(file.shape(source.output)[1:]))
        with tempfile.TemporaryDirectory(prefix="edge-resnet-") as folder:
            here = Path(folder) / "images"
            here.write_bytes(images.tobytes())
            remote = session.send(here, "images")
            begun = time.monotonic()
            self._run(session.put(self._job.path), remote, images[0].nbytes, images[:1].shape, len(images))
            self._seconds = max(0.001, (time.monotonic() - begun) / len(images))
            answers = Path(folder) / "answers"
            session.fetch("answers", answers, size * len(images))
            raw = answers.read_bytes()
        if len(raw) != size * len(images):
            raise MissingToolError(
                f"wrote {len(raw)} bytes of answers, not {size * len(images)}: does this build of "
                "benchmark_model know --output_filepath?"
            )
        values = np.frombuffer(raw, answer).reshape(len(images), -1)
        quant = file.quant(source.output)
        if quant is None:
            return values.astype(np.float32)
        zero = quant.zero_point + (128 if answer == np.uint8 else 0)
        return (values.astype(np.float32) - np.float32(zero)) * np.float32(quant.scale)

    def _run(self, graph: str, images: str, size: int, shape: tuple[int, ...], count: int) -> None:
        own, tool = self._session.own, self._tool
        given = image_arguments(graph, self._delegate, 1, shape, f"{own}/image", f"{own}/answer")
        code, said = self._session.loop(
            command_line(tool.path, given, library_path(self._delegate)),
            # What is left of the image before would else be taken for this one's answer.
            "rm -f answer; [ $i = 0 ] && rm -f answers; "
            f"dd if={images} of=image bs={size} skip=$i count=1 2>/dev/null || exit 1",
            "cat answer >> answers || exit 1",
            count,
            self._timeout + _PATIENCE * count * (self._seconds or 0),
        )
        self.runtime = parse_report(code, said, self._delegate).runtime(self._delegate)
