"""The peers' table in words: which figures hold, and docs/peers.md, all from the results' JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["page", "verdicts"]

Rows = Mapping[str, Mapping[str, Any]]

FORMATS = {"tflite": "TFLite", "onnx": "ONNX", "coreml": "Core ML"}
# What must hold: ours as a part of the best peer's.
TFLITE_P50 = {"resnet20": 0.95, "resnet50": 1.0}
ONNX_P50 = 1.03
EXPORT = 1 / 20
MEMORY = 0.7


def verdicts(models: Rows) -> list[dict[str, Any]]:
    """Each required figure: `value` is ours as a part of the best peer's, `limit` what it may be at most.

    The best peer is the one with the smallest figure of this kind. Export here is writing the file from the
    quantized graph, against a peer's conversion (both without calibration and quantization): the whole way,
    which no limit is set for, is in `whole`.
    """
    found = []
    for model, about in models.items():
        rows = about["exporters"]
        for kind in FORMATS:
            limit = TFLITE_P50.get(model) if kind == "tflite" else ONNX_P50 if kind == "onnx" else None
            if limit is not None:
                found += _latency(model, kind, rows, limit)
            found += _cost(model, kind, rows)
    return found


def _latency(model: str, kind: str, rows: Rows, limit: float) -> Iterator[dict[str, Any]]:
    parts = {
        name: row["ours_to_this_p50"]["median"]
        for name, row in _peers(kind, rows).items()
        if "ours_to_this_p50" in row
    }
    if parts:
        best = max(parts, key=lambda name: parts[name])
        yield _verdict(f"{model}, {FORMATS[kind]}: p50", best, parts[best], limit)


def _cost(model: str, kind: str, rows: Rows) -> Iterator[dict[str, Any]]:
    ours, peers = rows.get(f"edge-resnet {kind}", {"failed": ""}), _peers(kind, rows)
    if "failed" in ours or not peers:
        return
    best, value = _smallest(ours["write_seconds"]["median"], peers, conversion_seconds)
    whole = _smallest(ours["whole_seconds"]["median"], peers, lambda row: row["whole_seconds"]["median"])
    export = _verdict(f"{model}, {FORMATS[kind]}: export time", best, value, EXPORT)
    yield export | {"whole": {"peer": whole[0], "value": round(whole[1], 4)}}
    best, value = _smallest(ours["peak_memory_bytes"], peers, lambda row: row["peak_memory_bytes"])
    yield _verdict(f"{model}, {FORMATS[kind]}: peak memory of the export", best, value, MEMORY)


def conversion_seconds(row: Mapping[str, Any]) -> float:
    """A peer's export without its calibration and quantization."""
    seconds: float = row["convert_seconds"]["median"] + row["write_seconds"]["median"]
    return seconds


def _smallest(ours: float, peers: Rows, figure: Callable[[Any], float]) -> tuple[str, float]:
    best = min(peers, key=lambda name: figure(peers[name]))
    return best, ours / figure(peers[best])


def _peers(kind: str, rows: Rows) -> dict[str, Mapping[str, Any]]:
    return {
        name: row
        for name, row in rows.items()
        if row["format"] == kind and not name.startswith("edge-resnet") and "failed" not in row
    }


def _verdict(what: str, peer: str, value: float, limit: float) -> dict[str, Any]:
    return {"what": what, "peer": peer, "value": round(value, 4), "limit": limit, "met": value <= limit}


def page(document: Mapping[str, Any]) -> str:
    lines = [
        "# Side by side with other exporters",
        "",
        "Written by `python -m benchmarks.peers_table`; do not edit. How it is measured says the beginning",
        "of `benchmarks/peers_table.py`; `benchmarks/results/peers_table.json` has all figures.",
        "",
        f"{document['machine']['cpu']}, {document['machine']['cores']} cores, {document['machine']['os']}. "
        f"{_versions(document)}. Latency is measured, on one thread; Core ML's accuracy is emulated (this",
        "project's MIL evaluator; no Mac was at hand, so there is no latency). Seconds of export are those",
        "of a process that has done it before; the first pass, imports included, stands beside them.",
        "",
    ]
    for name, about in document["models"].items():
        lines += [*_model(name, about), ""]
    return "\n".join([*lines, *_figures(document["figures"])]) + "\n"


def _versions(document: Mapping[str, Any]) -> str:
    found: dict[str, str] = {}
    for about in document["models"].values():
        for row in about["exporters"].values():
            found |= row.get("versions", {})
    for package in ("onnxruntime", "ai-edge-litert"):  # what the files were run with
        found[package] = document["versions"][package]
    return ", ".join(f"{package} {found[package]}" for package in sorted(found))


_HEAD = (
    "", "convert", "calibrate, quantize", "write", "first pass", "peak memory", "file",
    "operators (transposes)", "p50", "p99", "ours / this", "as float", "top-1",
)  # fmt: skip


def _model(name: str, about: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {name}"
    yield ""
    before, after = about["load_before_and_after"]
    yield (
        f"`{about['model']}`, {about['params']:,} parameters; weights: {about['weights']}; calibration: "
        f"{about['calibration']}; answered: {about['images']}. Load of the machine {before:.1f} before, "
        f"{after:.1f} after. {about.get('keras', '')}".strip()
    )
    for kind, title in FORMATS.items():
        rows = {key: row for key, row in about["exporters"].items() if row["format"] == kind}
        if not rows:
            continue
        yield ""
        yield "| " + " | ".join((title, *_HEAD[1:])) + " |"
        yield "|---" * len(_HEAD) + "|"
        for exporter, row in rows.items():
            yield "| " + " | ".join((exporter.removesuffix(f" {kind}"), *_cells(row))) + " |"
        yield ""
        for exporter, row in rows.items():
            yield f"* {exporter.removesuffix(f' {kind}')}: {row['setting']}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    if "failed" in row:
        return [f"failed: {row['failed']}", *[""] * (len(_HEAD) - 2)]
    top1 = f"{row['top1']:.4f} (float {row['float_top1']:.4f})" if "top1" in row else ""
    part = row.get("ours_to_this_p50")
    return [
        *(_seconds(row[f"{phase}_seconds"]["median"]) for phase in ("convert", "quantize", "write")),
        _seconds(row["first_seconds"]),
        f"{row['peak_memory_bytes'] / 2**20:.0f} MiB",
        f"{row['bytes'] / 1000:,.0f} KB",
        f"{row['operators']} ({row['transposes']})",
        *(_milliseconds(row.get(key)) for key in ("p50_ms", "p99_ms")),
        "" if part is None else f"{part['median']:.3f} ({part['p10']:.3f} to {part['p90']:.3f})",
        f"{row['top1_agreement']:.4f}" if "top1_agreement" in row else row["not_answered"],
        top1,
    ]


def _seconds(value: float) -> str:
    return f"{value:.4f} s" if value < 0.1 else f"{value:.2f} s"


def _milliseconds(value: Mapping[str, float] | None) -> str:
    return "" if value is None else f"{value['median']:.3f} ms ({value['p10']:.3f} to {value['p90']:.3f})"


def _figures(found: list[Mapping[str, Any]]) -> Iterator[str]:
    yield "## What must hold"
    yield ""
    yield (
        "Ours as a part of the best peer's, which is the one with the smallest figure of its kind. Export is "
        "writing the file from the quantized graph, against the peer's conversion; neither with calibration. "
        "`whole`: the whole way from the torch module, calibration included; no limit is set for that."
    )
    yield ""
    yield "| | best peer | ours / theirs | at most | | whole |"
    yield "|---|---|---|---|---|---|"
    for row in found:
        whole = row.get("whole")
        said = f"{whole['value']:.3f} of {whole['peer']}'s" if whole else ""
        mark = "met" if row["met"] else "**missed**"
        limit = f"{row['limit']:g}"
        yield f"| {row['what']} | {row['peer']} | {row['value']:.3g} | {limit} | {mark} | {said} |"
