"""What depth, width, threads and batch do to the int8 files of CIFAR ResNets, as plots.

    python -m benchmarks.scaling [--runs N] [--plots]

Depth: ResNet-20 to ResNet-110. Width: ResNet-20 with 8 to 64 channels in its first stage. Random weights with
batch normalization settled (speed does not depend on them). Each file in a process of its own, all in turns
(A B A B), on one thread, in three rounds of which the fastest counts; memory is what the process took beyond
the runtime itself. Export: from the quantized graph to the file, in turns. Threads and batch: ResNet-20 and
ResNet-56, images a second.

`--plots` measures nothing and draws docs/scaling-*.svg again from the results.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.models import SEED, blurred_noise, integers, settled_graph
from edge_resnet.benchmark.result import BenchmarkResult, BenchmarkSettings
from edge_resnet.cpu import this_cpu
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.devices.local import benchmark_local
from edge_resnet.files import atomic_write
from edge_resnet.graph.graph import Graph
from edge_resnet.models.cifar_resnet import CifarResNet
from edge_resnet.models.zoo import ZOO
from edge_resnet.recipe import Export
from edge_resnet.report.curves import Curve, curve_chart
from edge_resnet.targets import TARGETS

DEPTHS = (20, 32, 44, 56, 110)
WIDTHS = (8, 16, 24, 32, 48, 64)
BATCHES = (1, 2, 4, 8, 16)
THROUGHPUT = (20, 56)
FORMATS = {"LiteRT/XNNPACK": "tflite-int8", "ONNX Runtime": "onnx-int8"}
EXPORT_ROUNDS = 7
ROUNDS = 3
DOCS = record.ROOT / "docs"


@dataclass(frozen=True)
class Plot:
    """`axis` of the results against `figure` of each row; `name` of the file, docs/scaling-NAME.svg."""

    name: str
    axis: str
    figure: str
    x_title: str
    y_title: str


PLOTS = (
    Plot("depth-latency", "depth", "p50_ms", "layers", "latency (p50), ms"),
    Plot("depth-memory", "depth", "memory_mib", "layers", "peak memory beyond the runtime's, MiB"),
    Plot("depth-export", "depth", "export_ms", "layers", "export, ms"),
    Plot("width-latency", "width", "p50_ms", "channels of the first stage", "latency (p50), ms"),
    Plot("width-memory", "width", "memory_mib", "channels of the first stage", "peak memory, MiB"),
    Plot("width-export", "width", "export_ms", "channels of the first stage", "export, ms"),
    Plot("threads", "threads", "images_per_s", "threads", "images a second"),
    Plot("batch", "batch", "images_per_s", "images at once (one thread)", "images a second"),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--plots", action="store_true")
    options = parser.parse_args()
    result = record.RESULTS / "scaling.json"
    if not options.plots:
        settings = BenchmarkSettings(runs=options.runs)
        before = os.getloadavg()[0]
        axes = {
            "depth": over(DEPTHS, depth_graph, settings),
            "width": over(WIDTHS, width_graph, settings),
            **throughput(THROUGHPUT, settings),
        }
        load = [round(before, 2), round(os.getloadavg()[0], 2)]
        record.save("scaling", {"seed": SEED, "load_before_and_after": load, **axes}, quiet=True)
    document = json.loads(result.read_text())
    for plot in PLOTS:
        atomic_write(DOCS / f"scaling-{plot.name}.svg", drawn(plot, document[plot.axis]))


def depth_graph(depth: int) -> Graph:
    return _quantized(ZOO[f"resnet{depth}"].build(10), f"resnet{depth}")


def width_graph(width: int) -> Graph:
    return _quantized(CifarResNet(20, width=width), f"resnet20-{width}")


def _quantized(module: Any, name: str) -> Graph:
    preprocess = Preprocess((32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return integers(settled_graph(module, name, preprocess), blurred_noise(8, 32))


def over(values: Sequence[int], graph_of: Callable[[int], Graph], settings: BenchmarkSettings) -> list[Any]:
    """A row for each value and format: latency, memory and export time."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        graphs = {value: graph_of(value) for value in values}
        files = {(v, f): _write(g, f, Path(folder) / str(v)) for v, g in graphs.items() for f in FORMATS}
        exports = record.in_turns(
            {f"{v} {f}": partial(_write, graphs[v], f, Path(folder) / str(v)) for v, f in files},
            EXPORT_ROUNDS,
        )
        found = _quietest([(f"{v} {f}", path) for (v, f), path in files.items()], 1, settings)
        for (value, name), path in files.items():
            key = f"{value} {name}"
            rows.append({"at": value, "format": name, **_figures(found[key])})
            rows[-1]["export_ms"] = round(1000 * exports[key]["median"], 3)
            rows[-1]["bytes"] = path.stat().st_size
            rows[-1]["macs"] = graphs[value].macs
    return rows


def _quietest(
    files: Sequence[tuple[str, Path]], threads: int, settings: BenchmarkSettings
) -> dict[str, BenchmarkResult]:
    """Of each file, the fastest round: another program only ever slows it down."""
    rounds = [benchmark_local(files, threads, settings) for _ in range(ROUNDS)]
    return {key: max((found[key] for found in rounds), key=_images_per_s) for key, _ in files}


def _images_per_s(result: BenchmarkResult) -> float:
    """At the batch that was asked for; 0 where it was not measured."""
    if result.batch_throughput_per_s is not None:
        return result.batch_throughput_per_s
    return 1000 / result.latency_ms["p50"] if result.latency_ms is not None else 0.0


def _write(graph: Graph, name: str, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    target = TARGETS[FORMATS[name]]
    path = target.path(folder, "m")
    target.write(graph, path, Export())
    return path


def _figures(result: BenchmarkResult) -> dict[str, Any]:
    """Raises SystemExit with the reason where the file could not be timed."""
    if result.latency_ms is None or result.peak_memory_bytes is None:
        raise SystemExit(result.notes[0])
    loaded = float(result.notes[0].split("of the peak memory, ")[1].split(" MiB")[0])
    return {
        "p50_ms": round(result.latency_ms["p50"], 4),
        "p99_ms": round(result.latency_ms["p99"], 4),
        "peak_memory_mib": round(result.peak_memory_bytes / 2**20, 1),
        "memory_mib": round(result.peak_memory_bytes / 2**20 - loaded, 1),
    }


def throughput(depths: Sequence[int], settings: BenchmarkSettings) -> dict[str, list[dict[str, Any]]]:
    """Images a second over threads (one image at once) and over batches (one thread)."""
    rows: dict[str, list[dict[str, Any]]] = {"threads": [], "batch": []}
    with tempfile.TemporaryDirectory() as name:
        files = {
            f"ResNet-{depth}, {form}": _write(depth_graph(depth), form, Path(name) / str(depth))
            for depth in depths
            for form in FORMATS
        }
        for threads in range(1, this_cpu().cores + 1):
            for key, found in _quietest(list(files.items()), threads, settings).items():
                rate = _images_per_s(found)
                rows["threads"].append({"at": threads, "format": key, "images_per_s": round(rate, 1)})
        for batch in BATCHES:
            at_once = BenchmarkSettings(runs=max(20, settings.runs // 4), batch=batch)
            for key, found in _quietest(list(files.items()), 1, at_once).items():
                if batch == 1 or found.batch is not None:  # some files take single images only
                    rate = round(_images_per_s(found), 1)
                    rows["batch"].append({"at": batch, "format": key, "images_per_s": rate})
    return rows


# What the report's page sets in its style sheet, for a picture that stands alone on either background.
_STYLE = (
    "text{font:11.5px sans-serif;fill:#777}.grid{stroke:#8884}.reference{stroke:#888;stroke-dasharray:4}"
    ".dot{stroke:none}.curve{fill:none;stroke-width:1.8}"
)
_COLOURS = ("#3b6fd4", "#d2691e", "#2e8b57", "#9932cc")


def drawn(plot: Plot, rows: Sequence[Mapping[str, Any]]) -> str:
    """One of PLOTS as an SVG file: a line for each format, its name in words beside its colour."""
    names = list(dict.fromkeys(row["format"] for row in rows))
    curves = [
        Curve(name, [(row["at"], row[plot.figure]) for row in rows if row["format"] == name], dots=True)
        for name in names
    ]
    lowest = Curve("", [(min(row["at"] for row in rows), 0.0)], faint=True)  # the vertical axis begins at 0
    chart = str(curve_chart([lowest, *curves], plot.x_title, plot.y_title))
    return _standing_alone(chart, curves, len(lowest.points))


def _standing_alone(chart: str, curves: Sequence[Curve], skipped: int) -> str:
    """The report's chart with a name space, its own style, a colour for each line, and a legend below."""
    head, _, body = chart.partition(">")
    width, height = (float(part) for part in head.split('viewBox="0 0 ')[1].split('"')[0].split())
    pieces = body.removesuffix("</svg>").split("<polyline")
    painted = [pieces[0], *(f"<polyline{piece}" for piece in pieces[1 : 1 + skipped])]
    for piece, colour in zip(pieces[1 + skipped :], _COLOURS, strict=False):
        painted.append(f'<g style="stroke:{colour};fill:{colour}"><polyline{piece}</g>')
    legend = "".join(
        f'<rect x="12" y="{height + 16 * index + 2:g}" width="10" height="10" fill="{colour}"/>'
        f'<text x="28" y="{height + 16 * index + 11:g}">{curve.name}</text>'
        for index, (curve, colour) in enumerate(zip(curves, _COLOURS, strict=False))
    )
    tall = height + 16 * len(curves) + 6
    head = head.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{1.5 * width:g}" ')
    head = head.replace(f'viewBox="0 0 {width:g} {height:g}"', f'viewBox="0 0 {width:g} {tall:g}"')
    return f"{head}><style>{_STYLE}</style>{''.join(painted)}{legend}</svg>\n"


if __name__ == "__main__":
    main()
