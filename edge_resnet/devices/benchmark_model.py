"""LiteRT's benchmark_model: its command line, and what it prints.

Written from its source (google-ai-edge/LiteRT, tflite/tools/benchmark and tflite/tools/delegates). It does
not tell single latencies, but for three runs or fewer they follow from what it does tell: the first, the
last, and the sum.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from edge_resnet.errors import MissingToolError

__all__ = [
    "DELEGATES",
    "KEEPING",
    "MOST_EXACT",
    "XNNPACK",
    "Delegate",
    "Report",
    "Runs",
    "arguments",
    "external_delegate",
    "image_arguments",
    "parse_report",
]

# Of so many runs in one process every latency is known.
MOST_EXACT = 3
XNNPACK = "LiteRT/XNNPACK"
_WITHOUT_XNNPACK = "LiteRT/CPU kernels"
# Of the peak memory; the tool's own default, 50 ms, is longer than a small model's whole life.
_MEMORY_EVERY_MS = 5
KEEPING = "--delegate_serialize_dir"


@dataclass(frozen=True)
class Delegate:
    """`runtime`: as BenchmarkResult names it. `flags`: what asks for it; none for the CPU, where the tool
    does as an app does. `tool`: its name in the tool's log. `unit`: what it runs on, for the notes.
    """

    runtime: str
    tool: str
    unit: str
    flags: tuple[str, ...] = ()

    @property
    def on_cpu(self) -> bool:
        return not self.flags


DELEGATES = {
    "cpu": Delegate(XNNPACK, "XNNPACK", "CPU"),
    "gpu": Delegate("LiteRT/GPU", "GPU", "GPU", ("--use_gpu=true",)),
    "npu": Delegate("LiteRT/NNAPI", "NNAPI", "NPU (by NNAPI)", ("--use_nnapi=true",)),
}


def external_delegate(library: str, options: str) -> Delegate:
    """A vendor's delegate. `library`: its path there. `options`: as the tool takes them, `key:value;…`."""
    name = library.rpartition("/")[2]
    flags: tuple[str, ...] = (f"--external_delegate_path={library}",)
    if options:
        flags += (f"--external_delegate_options={options}",)
    return Delegate(f"LiteRT/{name}", "EXTERNAL", f"delegate {name}", flags)


def arguments(
    graph: str,
    delegate: Delegate,
    threads: int,
    runs: int,
    *,
    warm_runs: int,
    warm_seconds: float,
    most_seconds: float,
    memory: bool = False,
    shape: Sequence[int] = (),
    compiled: str = "",
) -> list[str]:
    """For `runs` timed inferences of random input. `memory`: watch the peak too, which disturbs the times.

    `shape`: of the input, for several images at once. `compiled`: a folder where the delegate keeps what it
    compiles, for the next process.
    """
    more = list(delegate.flags)
    if memory:
        every = f"--memory_footprint_check_interval_ms={_MEMORY_EVERY_MS}"
        more += ["--report_peak_memory_footprint=true", every]
    if compiled:
        # Our artifacts are named by their content: the token must be the model's own.
        more += [f"{KEEPING}={compiled}", f"--delegate_serialize_token={graph.rpartition('/')[2]}"]
    if shape:
        # Any name will do; the tool asks only that these agree.
        more += ["--input_layer=image", f"--input_layer_shape={','.join(map(str, shape))}"]
    return [
        f"--graph={graph}",
        f"--num_threads={threads}",
        f"--num_runs={runs}",
        "--min_secs=0",
        f"--max_secs={most_seconds:g}",
        f"--warmup_runs={warm_runs}",
        f"--warmup_min_secs={warm_seconds:g}",
        *more,
    ]


def image_arguments(
    graph: str, delegate: Delegate, threads: int, shape: Sequence[int], image: str, output: str
) -> list[str]:
    """For one inference of a raw image [N, H, W, C] in the input's type; the output's bytes go to a file."""
    once = arguments(graph, delegate, threads, 1, warm_runs=0, warm_seconds=-1, most_seconds=60, shape=shape)
    return [*once, f"--input_layer_value_files=image:{image}", f"--output_filepath={output}"]


@dataclass(frozen=True)
class Runs:
    """One `count=…` line, in microseconds. `median`: of newer builds only."""

    count: int
    first: float
    last: float
    least: float
    most: float
    mean: float
    median: float | None = None

    @property
    def each(self) -> list[float] | None:
        """Every latency, in the order of the runs; None where there were too many to know."""
        if self.count > MOST_EXACT:
            return None
        if self.count < MOST_EXACT:
            return [self.first, self.last][2 - self.count :]
        # The mean is printed with six digits: the middle one is right to a few millionths of itself.
        middle = 3 * self.mean - self.first - self.last
        if self.median is not None:
            middle = self.least + self.median + self.most - self.first - self.last
        return [self.first, min(max(middle, self.least), self.most), self.last]


@dataclass(frozen=True)
class Report:
    """What one process said, times in microseconds.

    `delegated` of `nodes` operators went to the delegate that was asked for, in `partitions`; None where the
    log does not say. `share`: "all", "some" or "none" of the graph; None for the CPU, where none is.
    `xnnpack`: XNNPACK was there for the CPU. `peak_bytes`: resident memory of the process, where it was
    watched; `model_bytes`: how far its peak rose since the tool began. `accelerators`: those of NNAPI.
    """

    initialized: float
    first_inference: float
    runs: Runs
    share: str | None
    xnnpack: bool
    delegated: int | None = None
    nodes: int | None = None
    partitions: int | None = None
    peak_bytes: int | None = None
    model_bytes: int | None = None
    accelerators: str = ""
    warnings: list[str] = field(default_factory=list)

    def runtime(self, asked: Delegate) -> str:
        """What really computed."""
        on_cpu = XNNPACK if self.xnnpack else _WITHOUT_XNNPACK
        wanted = asked.runtime.rpartition("/")[2]
        if asked.on_cpu:
            return on_cpu
        if self.share == "none":
            # Not the CPU's name alone: beside the figures of the CPU these would look like a second try.
            return f"{on_cpu} instead of {wanted}"
        return asked.runtime if self.share == "all" else f"{asked.runtime} + {on_cpu.rpartition('/')[2]}"

    def notes(self, asked: Delegate) -> list[str]:
        """What a reader of the figures must know about where they come from."""
        if asked.on_cpu:
            return [] if self.xnnpack else ["XNNPACK was not there; LiteRT's own kernels were timed"]
        nodes = "" if self.delegated is None else f"{self.delegated} of {self.nodes or 'its'} operators"
        known = f"; NNAPI knows [{self.accelerators}]" if self.accelerators else ""
        if self.share == "none":
            reason = f": {self.warnings[0].rstrip('.')}" if self.warnings else ""
            return [
                f"fell back to the CPU: the {asked.unit} was asked for and took no operator{reason}; "
                f"what was timed is the CPU{known}"
            ]
        if self.share == "some":
            pieces = f" in {self.partitions} pieces" if self.partitions else ""
            taken = nodes or "a part of the model"
            return [
                f"partly on the CPU: the {asked.unit} took {taken}{pieces}; the rest ran on the CPU{known}"
            ]
        return [f"the {asked.unit} took the whole model{f' ({nodes})' if nodes else ''}{known}"]


_COUNT = re.compile(r"\bcount=(\d+)((?: ?(?:\(all same\)|\w+=\S+))*)")
_PAIR = re.compile(r"(\w+)=([-+.\deE]+)")
_TIMINGS = re.compile(r"Inference timings in us: Init: ([\d.eE+]+), First inference: ([\d.eE+]+)")
_REPLACING = re.compile(
    r"Replacing (\d+)(?: out of (\d+))? node\(s\) with delegate \((\w+)\) node, yielding (\d+) partitions"
)
_PEAK = re.compile(r"Overall peak memory footprint \(MB\) via periodic monitoring: ([\d.eE+]+)")
_GROWN = re.compile(r"Memory footprint delta from the start of the tool \(MB\): .*overall=([\d.eE+]+)")
_ACCELERATORS = re.compile(r"NNAPI accelerators available: \[(.*)\]")
_XNNPACK_MADE = "Created TensorFlow Lite XNNPACK delegate for CPU"
_XNNPACK_NODE = "TfLiteXNNPackDelegate"
_COMPLAINT = re.compile(r"^(?:ERROR|WARN|WARNING|FATAL): ?(.+)$", re.MULTILINE)
_UNKNOWN_FLAGS = re.compile(r"Unconsumed cmdline flags: (.+)")


def parse_report(code: int, text: str, asked: Delegate) -> Report:
    """Exit code, standard output and error of one process.

    Raises MissingToolError with the tool's own last complaint where it failed, and where this build of it
    does not know a flag: it would then measure something else than what was asked for.
    """
    if code > _SIGNAL:
        how = _SIGNALS.get(code - _SIGNAL, f"signal {code - _SIGNAL}")
        raise MissingToolError(f"benchmark_model was ended by {how}")
    unknown = _UNKNOWN_FLAGS.search(text)
    if unknown:
        raise MissingToolError(
            f"this build of benchmark_model does not know {unknown[1].strip()}; take LiteRT's for the "
            "Interpreter API"
        )
    timings, runs = _TIMINGS.search(text), _runs(text)
    if code != 0 or timings is None or runs is None:
        raise MissingToolError(_complaint(text))
    replaced = [match for match in _REPLACING.finditer(text) if (match[3] == _XNNPACK_NODE) == asked.on_cpu]
    peak, grown, accelerators = _PEAK.search(text), _GROWN.search(text), _ACCELERATORS.search(text)
    return Report(
        initialized=float(timings[1]),
        first_inference=float(timings[2]),
        runs=runs,
        share=None if asked.on_cpu else _share(text, asked.tool),
        xnnpack=_XNNPACK_MADE in text or _XNNPACK_NODE in text,
        delegated=sum(int(match[1]) for match in replaced) if replaced else None,
        nodes=int(replaced[0][2]) if replaced and replaced[0][2] else None,
        partitions=sum(int(match[4]) for match in replaced) if replaced else None,
        peak_bytes=int(float(peak[1]) * 2**20) if peak else None,
        model_bytes=int(float(grown[1]) * 2**20) if grown else None,
        accelerators=accelerators[1] if accelerators else "",
        warnings=[match[1].strip() for match in _COMPLAINT.finditer(text)],
    )


def _share(text: str, tool: str) -> str:
    """The tool says one of these three; where it says none, it made no delegate at all."""
    if re.search(rf"Explicitly applied {tool} delegate, and the model graph will be completely", text):
        return "all"
    if re.search(rf"Explicitly applied {tool} delegate, and the model graph will be partially", text):
        return "some"
    return "none"


def _runs(text: str) -> Runs | None:
    """The last line of counts: those before are the warm-up's."""
    lines = [match for match in _COUNT.finditer(text) if int(match[1]) > 0]
    if not lines:
        return None
    count, rest = int(lines[-1][1]), lines[-1][2]
    values = {name: float(value) for name, value in _PAIR.findall(rest)}
    last = values.get("curr")
    if last is None:
        return None
    # Of runs that all took the same time, the tool prints only the last.
    return Runs(
        count,
        values.get("first", last),
        last,
        values.get("min", last),
        values.get("max", last),
        values.get("avg", last),
        values.get("median"),
    )


# A shell's exit code for a program that a signal ended, less the signal.
_SIGNAL = 128
_SIGNALS = {
    4: "SIGILL (compiled for another processor?)",
    6: "SIGABRT",
    7: "SIGBUS",
    9: "SIGKILL (the system does that when memory runs out)",
    11: "SIGSEGV",
}


def _complaint(text: str) -> str:
    """The line that says most about why nothing was measured."""
    said = [match[1].strip() for match in _COMPLAINT.finditer(text)]
    useful = [line for line in said if not line.startswith("Benchmarking failed")]
    other = [line.strip() for line in text.splitlines() if line.strip()]
    line = (useful or said or other or ["it printed nothing"])[-1]
    return f"benchmark_model measured nothing: {line[:300]}"
