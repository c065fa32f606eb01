"""What people read about devices: every figure with its kind, and none that is not there."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from edge_resnet.report.figures import Reasons
from edge_resnet.report.html import to_html
from edge_resnet.report.markdown import to_markdown
from edge_resnet.report.present import headline_benchmark, present
from edge_resnet.report.present_devices import present_devices
from edge_resnet.report.schema import Report
from edge_resnet.report.terminal import print_summary
from tests.test_report import _artifact, _benchmark, _report

Json = dict[str, Any]

PREDICTED = {
    "device": "a-phone", "runtime": "QNN", "kind": "predicted", "runs": 0,
    "latency_interval_ms": [0.2, 0.4], "cold_start_ms": None, "peak_memory_bytes": None,
    "throughput_per_s": None, "latency_ms": {"mean": 0.3, "p50": 0.3, "p95": 0.3, "p99": 0.3},
    "notes": ["predicted from elsewhere"],
}  # fmt: skip
NO_TIME = {
    "runs": 0, "latency_ms": None, "cold_start_ms": None, "peak_memory_bytes": None, "throughput_per_s": None,
}  # fmt: skip
ANSWERS = {
    "accuracy": {
        "runtime": "QNN/HTP emulator", "top1": 0.88, "top5": 0.99, "n": 500, "ci95": [0.85, 0.91],
        "delta": -0.004, "delta_ci95": [-0.01, 0.002], "kind": "emulated", "runtime_version": "2.7",
    },
    "parity": {
        "against": "reference executor", "n": 500, "identical": 0.31, "top1_agreement": 0.994, "max_lsb": 3,
        "mean_lsb": 0.4, "lsb_histogram": {"0": 3000, "1": 1900, "3": 100}, "runtime": "QNN/HTP emulator",
        "kind": "emulated", "to_the_bit": True,
    },
}  # fmt: skip
EMULATED = NO_TIME | ANSWERS | {
    "device": "qnn-htp://73", "runtime": "QNN/HTP emulator", "kind": "emulated",
    "notes": ["no latency there"],
    "figures": {"context_bytes": 300_000, "npu_nodes": 41},
}  # fmt: skip
ESTIMATED = NO_TIME | {
    "device": "vela://<b>", "runtime": "Vela", "kind": "estimated", "figures": {"npu_cycles": 201_747},
    "layers": [{"name": "conv|1", "npu_cycles": 12_000, "share": 0.123456}, {"name": "add", "on": "CPU"}],
}  # fmt: skip


def _with(*benchmarks: Json) -> Report:
    return _report(_artifact("onnx-int8", "onnx", benchmarks=[_benchmark(**b) for b in benchmarks]))


@pytest.fixture
def report() -> Report:
    return _with(
        PREDICTED, EMULATED, {}, ESTIMATED, {"device": "ssh://pi", "batch": 8, "batch_throughput_per_s": 99.5}
    )


def test_the_main_table_has_what_was_measured_here(report: Report) -> None:
    headline = headline_benchmark(report.artifacts[0])
    assert headline is not None
    assert (headline.device, headline.kind) == ("local", "measured")
    for others, expected in (
        ((PREDICTED, EMULATED, {"device": "ssh://pi"}), "ssh://pi"),
        ((EMULATED, PREDICTED), "a-phone"),
    ):
        headline = headline_benchmark(_with(*others).artifacts[0])
        assert headline is not None
        assert headline.device == expected


def test_a_latency_that_was_not_measured_says_so_in_the_terminal() -> None:
    out = io.StringIO()
    print_summary(_with(PREDICTED), Console(file=out, width=100))
    assert "the latency is predicted (a-phone); 80 % interval 0.200 ms to 0.400 ms" in out.getvalue()
    assert present(_with(PREDICTED)).rows[1].p50.detail == "a-phone, 80 %: 0.200 ms to 0.400 ms"


def test_every_figure_has_its_kind(report: Report) -> None:
    page = present(report)
    assert page.devices is not None
    (answer,) = page.devices.answers
    assert (answer.device, answer.images) == ("qnn-htp://73", "500")
    for figure in (answer.top1, answer.delta, answer.identical, answer.agreement, answer.max_lsb):
        assert figure.kind == "emulated"
    assert (answer.top1.text, answer.delta.text, answer.max_lsb.text) == ("88.00%", "-0.40", "3")
    words = {(figure.name, figure.value.text, figure.value.kind) for figure in page.devices.figures}
    assert words == {
        ("context", "300 KB", "emulated"),
        ("npu nodes", "41", "emulated"),
        ("npu cycles", "201,747", "estimated"),
    }
    rows = {row.device: row for row in page.speed}
    assert rows["a-phone"].p50.detail == "80 %: 0.200 ms to 0.400 ms"
    assert rows["a-phone"].p50.kind == "predicted"
    assert rows["ssh://pi"].throughput.detail == "99.5 at batch 8"
    reason = rows["qnn-htp://73"].p50.reason
    assert reason is not None
    assert "no latency there" in page.reasons[reason - 1]
    assert any(note == "onnx-int8 on a-phone: predicted from elsewhere" for note in page.notes)


def test_layers_are_shown_as_the_device_names_them(report: Report) -> None:
    page = present_devices(report.artifacts, Reasons())
    assert page is not None
    (layers,) = page.layers
    assert layers.head == ["name", "npu cycles", "share", "on"]
    assert layers.rows == [["conv|1", "12,000", "0.1235", "—"], ["add", "—", "—", "CPU"]]


def test_a_device_that_is_only_fast_needs_no_section() -> None:
    assert present_devices(_with({}).artifacts, Reasons()) is None
    assert "Devices" not in to_html(_with({}))


def test_pages(report: Report) -> None:
    page = to_html(report)
    assert "Devices: what the model answers there" in page
    assert "onnx-int8 on qnn-htp://73: distance from the reference executor" in page
    assert "vela://&lt;b&gt;" in page
    assert "vela://<b>" not in page
    assert 'class="badge estimated"' in page
    text = to_markdown(report)
    assert (
        "| onnx-int8 | qnn-htp://73 | QNN/HTP emulator 2.7 | 500 | 88.00% (85.00% to 91.00%), emulated |"
        in text
    )
    assert "| npu cycles | 201,747, estimated |" in text


def test_a_report_with_devices_is_read_again(report: Report) -> None:
    assert Report.model_validate_json(report.model_dump_json()) == report
