"""Android phones: adb://SERIAL, measured by LiteRT's benchmark_model through the real `adb`.

    adb://               the only phone that is attached: its CPU, GPU and NPU
    adb://SERIAL         that one
    adb://SERIAL/gpu     only this delegate; several: cpu,gpu,npu,external

Artifacts take turns, A B A B, a process each time; adb_timing.py says how latencies are had.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_resnet.benchmark.result import without_figures
from edge_resnet.devices.adb_answers import answer_images
from edge_resnet.devices.adb_client import Adb, Phone
from edge_resnet.devices.adb_session import AdbSession, command_line, open_session
from edge_resnet.devices.adb_timing import TimedOnPhone, Tool
from edge_resnet.devices.adb_tools import (
    BENCHMARK_MODEL,
    EXTERNAL_DELEGATE,
    NIGHTLY,
    BenchmarkModel,
    benchmark_model,
    check_architecture,
    delegate_files,
)
from edge_resnet.devices.benchmark_model import DELEGATES, KEEPING, Delegate, external_delegate
from edge_resnet.devices.device import DeviceLostError, Job, Measurement, Request
from edge_resnet.errors import InputError, MissingToolError
from edge_resnet.files import sha256_of
from edge_resnet.progress import Advance

__all__ = ["AdbDevice", "open_adb"]

_KIND = "measured"
_EXTERNAL = "external"
_ELSEWHERE = {
    ".onnx": (
        "ONNX Runtime",
        "on a phone an app runs this; benchmark_model takes .tflite: not measured here",
    ),
    ".mlpackage": ("Core ML", "Core ML is Apple's; an Android phone does not run it"),
}
# The shell's codes for what cannot be started, and from 128 on for what a signal ended.
_NOT_EXECUTABLE = 126
_HELP_SECONDS = 60.0


class AdbDevice:
    """`delegates`: what is asked for, by the names of the URI; empty: all that there is."""

    kind = _KIND
    # Each image is a process there: a thousand take a minute with ResNet-20, several with ResNet-50.
    most_images: int | None = 1000

    def __init__(self, uri: str, serial: str, delegates: Sequence[str]) -> None:
        self.uri, self._serial, self._delegates = uri, serial, tuple(delegates)

    def steps(self, jobs: Sequence[Job], request: Request) -> int:
        images = 0 if request.pixels is None else len(request.pixels)
        return len(jobs) * self._steps_of_one(request, images)

    def _steps_of_one(self, request: Request, images: int) -> int:
        names = self._names()
        timings = len(names) + (len(request.threads) - 1 if "cpu" in names else 0)
        return timings * request.settings.runs + images

    def _names(self) -> tuple[str, ...]:
        external = (_EXTERNAL,) if delegate_files() else ()
        return self._delegates or (*DELEGATES, *external)

    def measure(self, jobs: Sequence[Job], request: Request, advance: Advance) -> dict[str, Measurement]:
        """See Device. Benchmarks are in the delegates' order; the first delegate answers the images."""
        for job in jobs:
            if job.path.suffix not in (".tflite", *_ELSEWHERE):
                raise InputError(f"{job.path}: not an artifact (.tflite, {', '.join(_ELSEWHERE)})")
        found = {job.key: Measurement() for job in jobs}
        able = [job for job in jobs if job.path.suffix == ".tflite"]
        for job in jobs:
            if job not in able:
                runtime, note = _ELSEWHERE[job.path.suffix]
                found[job.key].benchmarks.append(without_figures(self.uri, runtime, _KIND, note))
                advance(self.steps([job], request))
        if not able:
            return found
        binary, names = benchmark_model(), self._names()
        adb = Adb()
        try:
            phone = Phone(adb, self.uri, adb.choose(self.uri, self._serial))
            with open_session(phone, self.uri) as session:
                check_architecture(binary, self.uri, session.facts.abis)
                self._measure(session, self._tool(session, binary), names, able, request, advance, found)
        except MissingToolError as error:
            line = str(error)
            raise DeviceLostError(line if self.uri in line else f"{self.uri}: {line}", found) from error
        return found

    def _measure(
        self,
        session: AdbSession,
        tool: Tool,
        names: Sequence[str],
        jobs: Sequence[Job],
        request: Request,
        advance: Advance,
        found: dict[str, Measurement],
    ) -> None:
        delegates = [self._delegate(session, name) for name in names]
        timed = TimedOnPhone(session, tool, self.uri, request.settings, advance)
        for delegate in delegates:
            for threads in request.threads if delegate.on_cpu else request.threads[:1]:
                results = timed.measure(jobs, delegate, threads or session.facts.cores)
                for key, result in results.items():
                    found[key].benchmarks.append(result)
        if request.pixels is not None:
            for job in jobs:
                answer_images(session, tool, self.uri, job, delegates[0], request, advance, found[job.key])

    def _tool(self, session: AdbSession, binary: BenchmarkModel) -> Tool:
        """Installs benchmark_model there, and sees that it starts."""
        path = f"{session.install([binary.path])}/{binary.path.name}"
        version = f"benchmark_model {sha256_of(binary.path)[:12]}"
        # It ends with 1 after its help, by design.
        code, said = session.call(command_line(path, ["--help"]), _HELP_SECONDS)
        if code >= _NOT_EXECUTABLE:
            lines = [line for line in said.splitlines() if line.strip()] or [f"exit code {code}"]
            raise MissingToolError(
                f"{self.uri}: {binary.path} does not run on the phone ({lines[-1].strip()[:200]}): is it "
                f"for {', '.join(session.facts.abis) or 'its processor'}? See {NIGHTLY} ({BENCHMARK_MODEL})"
            )
        if "--num_runs" in said and "--input_layer_value_files" not in said:
            raise MissingToolError(
                f"{self.uri}: {binary.path} is LiteRT's benchmark_model for the CompiledModel API, which "
                f"takes no images; take the Interpreter API's: {NIGHTLY}"
            )
        return Tool(path, version, keeps=KEEPING in said)

    def _delegate(self, session: AdbSession, name: str) -> Delegate:
        if name != _EXTERNAL:
            return DELEGATES[name]
        brought = delegate_files()
        if brought is None:
            raise MissingToolError(f"{self.uri}: `external` needs {EXTERNAL_DELEGATE}: a delegate's .so file")
        files, options = brought
        return external_delegate(f"{session.install(files)}/{files[0].name}", options)


def open_adb(uri: str) -> AdbDevice:
    """Raises InputError where what follows the scheme means nothing."""
    scheme, separator, rest = uri.partition("://")
    serial, _, wanted = rest.partition("/")
    known = (*DELEGATES, _EXTERNAL)
    delegates = [name for name in wanted.split(",") if name]
    wrong = next((name for name in delegates if name not in known), None)
    if scheme != "adb" or not separator:
        raise InputError(f"--device {uri}: write adb://SERIAL, or adb:// for the only phone")
    if wrong is not None:
        raise InputError(f"--device {uri}: no delegate {wrong!r}; there are {', '.join(known)}")
    if serial.startswith("-") or any(character.isspace() for character in serial):
        raise InputError(f"--device {uri}: {serial!r} is no serial number; `adb devices` lists them")
    return AdbDevice(uri, serial, list(dict.fromkeys(delegates)))
