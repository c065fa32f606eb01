"""report.json and what people read."""

from __future__ import annotations

import html.parser
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from edge_resnet.errors import InputError
from edge_resnet.report import schema
from edge_resnet.report.html import to_html
from edge_resnet.report.markdown import to_markdown
from edge_resnet.report.save import save_report
from edge_resnet.report.schema import Report, load_report
from edge_resnet.report.terminal import print_summary


def _artifact(target: str, **changes: object) -> schema.Artifact:
    values: dict[str, object] = {
        "target": target,
        "path": f"m-{target}.tflite",
        "bytes": 300_832,
        "sha256": "0" * 64,
        "ranges": schema.Ranges(checked=76, equal=76),
        "parity": schema.Parity(
            against="reference executor", n=2000, identical=1.0, top1_agreement=1.0, max_lsb=0, mean_lsb=0.0,
            lsb_histogram={"0": 20000},
        ),
        "accuracy": schema.Accuracy(
            runtime="LiteRT/XNNPACK", top1=0.887, top5=0.99, n=10000, ci95=(0.881, 0.893), delta=0.0005,
            delta_ci95=(-0.001, 0.002),
        ),
        "benchmarks": [
            schema.Benchmark(
                device="local", runtime="LiteRT", runtime_version="2", threads=1, kind=schema.Kind.MEASURED,
                runs=9, latency_ms={"mean": 0.3, "p50": 0.242, "p95": 0.4, "p99": 0.5}, cold_start_ms=11.0,
                peak_memory_bytes=52_000_000, throughput_per_s=3000.0, notes=["a note of the benchmark"],
            )
        ],
        "cross_parity": [],
    }  # fmt: skip
    return schema.Artifact.model_validate(values | changes)


def _report(*artifacts: schema.Artifact, **changes: object) -> Report:
    values: dict[str, object] = {
        "created": "2026-01-01T00:00:00+00:00",
        "command": "edge-resnet compress m",
        "recipe": {"name": "ptq", "benchmark": {"threads": 1}},
        "environment": {"python": "3.11", "packages": {"torch": "2"}, "cpu": "A CPU", "os": "Linux"},
        "model": {
            "name": "m", "source": "m", "weights_sha256": None, "input_shape": [1, 3, 32, 32], "params": 9,
            "macs": 10,
        },
        "baseline": {
            "top1": 0.8865, "top5": 0.99, "n": 10000,
            "latency_ms": {"mean": 1, "p50": 1, "p95": 1, "p99": 1},
        },
        "compressed": {"params": 9, "macs": 10},
        "stages": [{"name": "import", "seconds": 1.5, "resumed": False}],
        "artifacts": [artifact.model_dump() for artifact in artifacts],
        "data": {"source": "d", "classes": ["a", "b"], "n_train": 4, "n_val": 2},
        "notes": ["a note"],
    }  # fmt: skip
    return Report.model_validate(values | changes)


NOT_MEASURED = {"accuracy": None, "parity": None, "benchmarks": []}
GOOD = _report(_artifact("tflite-int8"), _artifact("onnx-int8"))
FAILED = _report(
    _artifact("tflite-int8", failures=["m.tflite: conv1/weight: 3 integers differ"], **NOT_MEASURED)
)


def test_round_trip(tmp_path: Path) -> None:
    save_report(GOOD, tmp_path)
    assert load_report(tmp_path / "report.json") == GOOD
    values = json.loads((tmp_path / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps(values | {"a_later_key": 1}))
    assert load_report(tmp_path / "report.json").model_extra == {"a_later_key": 1}


def test_reports_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for content, message in (
        ("{", "not a report"),
        ("[]", "not a report"),
        ("{}", "not a report: created"),
        ('{"schema_version": 9}', "newer edge-resnet"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            load_report(path)
    with pytest.raises(InputError, match="cannot read"):
        load_report(tmp_path / "none.json")


class _Page(html.parser.HTMLParser):
    VOID = ("meta", "rect", "line", "circle", "link", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {"src", "href"} & {name for name, _ in attrs}, "a report loads nothing"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _page(report: Report) -> str:
    parser = _Page()
    source = to_html(report)
    parser.feed(source)
    assert parser.open == []
    assert "http" not in re.sub(r"<!doctype html>", "", source)
    return " ".join(parser.text.split())


def test_the_page_says_what_was_seen() -> None:
    text = _page(GOOD)
    assert "Verified. 2 artifacts verified." in text
    assert "bit for bit on 2,000 images" in text
    for figure in (
        "88.70%",
        "88.10% to 89.30%",
        "+0.05",
        "-0.10 to +0.20",
        "76 of 76",
        "0.242 ms",
        "52.00 MB",
    ):
        assert figure in text
    assert "measured" in text
    assert "a note of the benchmark" in text
    assert "edge-resnet compress m" in text


def test_a_failure_cannot_be_overlooked() -> None:
    assert "Failed. 1 of 1 artifacts failed verification: do not ship." in _page(FAILED)
    assert "3 integers differ" in _page(FAILED)
    assert "# m: FAILED" in to_markdown(FAILED)
    assert "do not ship" in _terminal(FAILED)


def test_missing_figures_are_dashes() -> None:
    report = _report(
        _artifact("coreml-int8", **NOT_MEASURED),
        baseline={"top1": None, "top5": None, "n": 0, "latency_ms": None},
    )
    assert "—" in _page(report)
    assert "| coreml-int8 | 301 KB | — |" in to_markdown(report)
    assert "coreml-int8" in _terminal(report)


def test_names_from_users_stay_names() -> None:
    evil = '<script>alert("x")</script>|'
    report = _report(_artifact("tflite-int8"), notes=[evil], data={"source": evil, "classes": [evil, "b"]})
    assert "<script>" not in to_html(report)
    markdown = to_markdown(report)
    assert "<script>" not in markdown


def test_markdown_tables_are_whole() -> None:
    for block in to_markdown(GOOD).split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
        assert len(widths) <= 1, block


def _terminal(report: Report) -> str:
    stream = io.StringIO()
    print_summary(report, Console(file=stream, width=80))
    return stream.getvalue()


def test_the_summary_fits_eighty_columns() -> None:
    lines = _terminal(GOOD).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("tflite-int8" in line and "76/76" in line and "0.242 ms" in line for line in lines)


def test_99_999_percent_is_not_100() -> None:
    parity = GOOD.artifacts[0].parity
    assert parity is not None
    almost = parity.model_copy(update={"identical": 0.999999})
    assert "99.99%" in to_markdown(_report(_artifact("tflite-int8", parity=almost.model_dump())))


@pytest.mark.slow
def test_a_browser_shows_it(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium: apt-get install chromium")
    (tmp_path / "report.html").write_text(to_html(GOOD))
    shot = tmp_path / "shot.png"
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
    ]
    command = [
        browser,
        *options,
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'p'}",
    ]
    command += ["--window-size=420,900", f"--screenshot={shot}", (tmp_path / "report.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    from PIL import Image

    with Image.open(shot) as image:
        colours = image.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 50
