"""report.json and what people read."""

from __future__ import annotations

import copy
import html.parser
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edge_resnet.errors import InputError
from edge_resnet.report import charts, wording
from edge_resnet.report.html import to_html
from edge_resnet.report.markdown import to_markdown
from edge_resnet.report.present import headline_benchmark, present
from edge_resnet.report.save import save_report
from edge_resnet.report.schema import Artifact, Model, Report, load_report
from edge_resnet.report.terminal import print_summary
from edge_resnet.report.verdict import Status, verdict

Json = dict[str, Any]


def _benchmark(**changes: Any) -> Json:
    return {
        "device": "local", "runtime": "LiteRT", "runtime_version": "2", "threads": 1, "kind": "measured",
        "runs": 9, "latency_ms": {"mean": 0.3, "p50": 0.242, "p95": 0.4, "p99": 0.5}, "cold_start_ms": 11.0,
        "peak_memory_bytes": 52_000_000, "throughput_per_s": 3000.0, "notes": ["a note of the benchmark"],
    } | changes  # fmt: skip


def _artifact(target: str, suffix: str = "tflite", **changes: Any) -> Json:
    return {
        "target": target,
        "path": f"m-{target}.{suffix}",
        "bytes": 300_832,
        "sha256": "0" * 64,
        "ranges": {"checked": 76, "equal": 76, "mismatches": []},
        "parity": {
            "against": "reference executor", "n": 2000, "identical": 1.0, "top1_agreement": 1.0, "max_lsb": 0,
            "mean_lsb": 0.0, "lsb_histogram": {"0": 20000}, "runtime": "LiteRT/XNNPACK", "kind": "measured",
            "to_the_bit": True,
        },
        "accuracy": {
            "runtime": "LiteRT/XNNPACK", "top1": 0.887, "top5": 0.99, "n": 10000, "ci95": [0.881, 0.893],
            "delta": 0.0005, "delta_ci95": [-0.001, 0.002], "kind": "measured", "runtime_version": "2.3",
        },
        "benchmarks": [_benchmark()],
        "cross_parity": [],
    } | changes  # fmt: skip


def _report(*artifacts: Json, **changes: Any) -> Report:
    values: Json = {
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
        "artifacts": copy.deepcopy(list(artifacts)),
        "data": {"source": "d", "classes": ["a", "b"], "n_train": 4, "n_val": 2},
        "notes": ["a note"],
    }  # fmt: skip
    return Report.model_validate(values | changes)


CROSS = {"against": "tflite-int8", "n": 10000, "identical": 1.0, "top1_agreement": 1.0}
NO_MAC = "Core ML runs on a Mac only; not measured here"
EMULATED = _artifact("coreml-int8", "mlpackage")
EMULATED["parity"] |= {
    "identical": 0.95, "max_lsb": 1, "mean_lsb": 0.01, "lsb_histogram": {"0": 19800, "1": 200},
    "kind": "emulated", "runtime": "MIL evaluator", "to_the_bit": False,
}  # fmt: skip
EMULATED["accuracy"] |= {"kind": "emulated", "runtime": "MIL evaluator"}
NO_SPEED = dict.fromkeys(("latency_ms", "cold_start_ms", "peak_memory_bytes", "throughput_per_s"))
EMULATED["benchmarks"] = [_benchmark(runs=0, notes=[NO_MAC], **NO_SPEED)]
FLOAT = _artifact("tflite-fp32", ranges=None, bytes=1_203_328)
FLOAT["parity"] |= {
    "against": "torch",
    "identical": 0.0,
    "max_lsb": None,
    "mean_lsb": None,
    "lsb_histogram": {},
}
NOT_RUN: Json = {"accuracy": None, "parity": None, "benchmarks": []}

GOOD = _report(
    _artifact("tflite-int8"), _artifact("onnx-int8", "onnx", cross_parity=[CROSS]), EMULATED, FLOAT
)
FAILED = _report(
    _artifact(
        "tflite-int8", failures=["m.tflite: conv1/weight: 3 integers differ"], **NOT_RUN,
        ranges={"checked": 76, "equal": 75, "mismatches": ["conv1/weight: 3 of 432 integers differ"]},
    ),
    _artifact("onnx-int8", "onnx"),
)  # fmt: skip
NULLS = _report(
    _artifact("coreml-int8", "mlpackage", **NOT_RUN),
    baseline={"top1": None, "top5": None, "n": 0, "latency_ms": None},
    command="", data={}, notes=[],
)  # fmt: skip
ALL = {"good": GOOD, "failed": FAILED, "nulls": NULLS, "empty": _report()}


class _Page(html.parser.HTMLParser):
    VOID = ("meta", "rect", "line", "circle", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "img", "object"), "a report loads nothing"
        for name, value in attrs:
            assert name not in ("src", "srcset", "style")
            assert not name.startswith("on")
            if name == "id":
                assert value not in self.ids
                self.ids.add(str(value))
            if name == "href":
                assert str(value).startswith("#"), "links stay on the page"
                self.links.add(str(value)[1:])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += f"{data} "


def _page(report: Report) -> str:
    parser = _Page()
    source = to_html(report)
    parser.feed(source)
    assert parser.open == []
    assert parser.links <= parser.ids
    assert not re.search(r"https?:|url\(|@import|//[a-z]", source)
    return " ".join(parser.text.split())


def _terminal(report: Report, directory: Path | None = None, **options: Any) -> str:
    stream = io.StringIO()
    print_summary(report, Console(file=stream, width=80, **options), directory)
    return stream.getvalue()


@pytest.mark.parametrize("name", ALL)
def test_round_trip(tmp_path: Path, name: str) -> None:
    save_report(ALL[name], tmp_path)
    assert load_report(tmp_path / "report.json") == ALL[name]
    before = (tmp_path / "report.json").read_bytes()
    save_report(load_report(tmp_path / "report.json"), tmp_path)
    assert (tmp_path / "report.json").read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]


def test_keys_of_later_versions_stay(tmp_path: Path) -> None:
    save_report(GOOD, tmp_path)
    path = tmp_path / "report.json"
    values = json.loads(path.read_text())
    values["a_later_key"] = values["artifacts"][0]["parity"]["another"] = 1
    path.write_text(json.dumps(values))
    report = load_report(path)
    assert report.model_extra == {"a_later_key": 1}
    assert json.loads(report.model_dump_json()) == values


def test_a_report_of_the_contract_alone_is_enough(tmp_path: Path) -> None:
    values = GOOD.model_dump(mode="json")
    for key in ("data", "preprocess", "notes"):
        del values[key]
    for artifact in values["artifacts"]:
        for key in ("notes", "failures", "cross_parity"):
            del artifact[key]
        for key in ("lsb_histogram", "runtime", "kind", "to_the_bit", "max_abs"):
            del artifact["parity"][key]
        del artifact["accuracy"]["kind"], artifact["accuracy"]["runtime_version"]
    (tmp_path / "report.json").write_text(json.dumps(values))
    report = load_report(tmp_path / "report.json")
    assert "Verified" in _page(report)
    # Without the key that says so, nothing is claimed to be equal to the bit.
    assert "reference executor's on 2,000 of 2,000 images" in _page(report)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not a report"),
        (b"\xff", "not a report"),
        (b"[]", "not a report"),
        (b"{}", "not a report: created"),
        (b'{"schema_version": 9}', "newer edge-resnet"),
        (b'{"schema_version": "9"}', "not a report: schema_version"),
        (b'{"schema_version": 0}', "not a report: schema_version"),
    ],
)
def test_reports_that_cannot_be_read(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_report(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot read"):
        load_report(tmp_path / "none.json")


def test_a_latency_without_its_median_is_an_error(tmp_path: Path) -> None:
    values = GOOD.model_dump(mode="json")
    del values["artifacts"][0]["benchmarks"][0]["latency_ms"]["p50"]
    (tmp_path / "report.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"artifacts.0.benchmarks.0.latency_ms.p50"):
        load_report(tmp_path / "report.json")


def test_names_that_are_no_utf8_can_be_written(tmp_path: Path) -> None:
    raw = b"caf\xe9".decode("utf-8", "surrogateescape")
    report = _report(_artifact("tflite-int8"), command=raw, data={"source": raw, "classes": [raw, "größe"]})
    save_report(report, tmp_path)
    assert load_report(tmp_path / "report.json").data.classes == ["caf\\udce9", "größe"]
    values = GOOD.model.model_dump() | {"name": raw}
    assert Model.model_validate(values).name == "caf\\udce9"


def test_the_page_says_what_was_seen() -> None:
    text = _page(GOOD)
    assert "Verified. 3 int8 and 1 float artifacts, run and checked." in text
    assert "Same integers in tflite-int8, onnx-int8 and coreml-int8" in text
    for figure in (
        "Logits of tflite-int8 and onnx-int8 are identical to the reference executor's, bit for bit, on "
        "2,000 of 2,000 images.",
        "onnx-int8 and tflite-int8 give the same logits, bit for bit, on 10,000 of 10,000 images.",
        "coreml-int8 (emulated): logits identical on 1,900 of 2,000 images, at most 1 LSB away",
        "tflite-fp32: same top-1 as torch on 2,000 of 2,000 images.",
        "88.70% 88.10% to 89.30% measured", "+0.05 -0.10 to +0.20", "88.01% to 89.26%", "25% of fp32",
        "0.242 ms", "49.6 MiB", "MIL evaluator 2.3", "emulated", "1 LSB", "share of logits, %",
        "a note of the benchmark", "edge-resnet compress m", "name: ptq", NO_MAC,
    ):  # fmt: skip
        assert figure in text


def test_a_failure_cannot_be_overlooked() -> None:
    text = _page(FAILED)
    assert "Failed. 1 of 2 artifacts failed verification: do not ship." in text
    assert "m.tflite: conv1/weight: 3 integers differ" in text
    assert "conv1/weight: 3 of 432 integers differ" in text
    assert '<section class="verdict failed">' in to_html(FAILED)
    assert "# m: FAILED" in to_markdown(FAILED)
    assert "do not ship" in _terminal(FAILED)
    assert "tflite-int8" in next(line for line in _terminal(FAILED).splitlines() if "FAILED" in line)


def test_unequal_integers_fail_even_without_a_recorded_failure() -> None:
    report = _report(_artifact("tflite-int8", ranges={"checked": 76, "equal": 74}))
    assert verdict(report).status is Status.FAILED
    assert "2 tensors of 76 differ from the graph" in _page(report)


def test_what_was_not_run_is_not_called_verified() -> None:
    judged = verdict(_report(_artifact("tflite-int8"), _artifact("onnx-int8", "onnx", **NOT_RUN)))
    assert judged.status is Status.INCOMPLETE
    assert judged.headline == "onnx-int8 was not run: nothing is known of the logits."
    assert not judged.good
    assert verdict(_report()).status is Status.INCOMPLETE


def test_missing_figures_are_dashes_with_their_reason() -> None:
    text = _page(NULLS)
    assert "—" in text
    for reason in ("no labelled images were evaluated", "coreml-int8: no benchmark was run"):
        assert reason in text
        assert reason in to_markdown(NULLS)
    assert "coreml-int8" in _terminal(NULLS)
    assert f". coreml-int8: {NO_MAC}" in to_markdown(GOOD)
    for report in ALL.values():
        for row in present(report).rows:
            for cell in (row.size, row.top1, row.delta, row.p50, row.cold_start, row.memory):
                assert (cell.text == "—") == (cell.reason is not None)
                assert cell.kind or cell.reason or cell.text == "reference"


def test_names_from_users_stay_names() -> None:
    evil = '<script>alert("x")</script>|`a`[b](c)\n# *d* & "\' onload=x'
    broken = _artifact(
        evil,
        path=evil,
        failures=[evil],
        notes=[evil],
        ranges={"checked": 2, "equal": 1, "mismatches": [evil]},
    )
    broken["benchmarks"] = [_benchmark(device=evil, runtime=evil, kind="predicted", notes=[evil])]
    report = _report(
        broken, notes=[evil], command=evil, recipe={"name": evil},
        stages=[{"name": evil, "seconds": 1, "resumed": True}],
        data={"source": evil, "classes": [evil, "b"]},
        model=GOOD.model.model_dump() | {"name": evil, "source": evil},
    )  # fmt: skip
    assert 'alert("x")' in _page(report)
    fenced = re.compile(r"^(`{3,})\w*\n.*?^\1$", re.MULTILINE | re.DOTALL)
    outside = fenced.sub("", to_markdown(report))
    assert "<script>" not in outside
    assert not re.search(r"(?<!\\)`", outside)
    assert "[b](c)" not in outside
    _tables_are_whole(outside)
    assert "[bold" not in _terminal(_report(_artifact("[bold red]x"))).replace("[bold red]x", "")


def _tables_are_whole(markdown: str) -> int:
    count = 0
    for block in markdown.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
        assert len(widths) <= 1, block
        count += bool(rows)
    return count


@pytest.mark.parametrize("name", ALL)
def test_markdown_tables_are_whole(name: str) -> None:
    assert _tables_are_whole(to_markdown(ALL[name])) == {"good": 5, "failed": 5, "nulls": 4, "empty": 2}[name]
    assert "Artifacts" in _page(ALL[name])


@pytest.mark.parametrize("name", ALL)
def test_the_summary_fits_eighty_columns(tmp_path: Path, name: str) -> None:
    text = _terminal(ALL[name])
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "…" not in text
    if name == "good":
        row = next(line for line in text.splitlines() if line.startswith("tflite-int8"))
        assert row.split() == [
            "tflite-int8",
            "301",
            "KB",
            "88.70%",
            "+0.05",
            "±0.15",
            "100%",
            "0.242",
            "ms",
            "measured",
        ]
        assert re.search(r"coreml-int8 .* 95.00% .* — +emulated", text)


def test_the_summary_says_where_the_report_is_in_one_piece() -> None:
    directory = Path("a-rather-long-folder") / ("b" * 70) / "run-1"
    assert str(directory / "report.html") in _terminal(GOOD, directory)
    assert "\x1b[1;31m" in _terminal(FAILED, force_terminal=True, color_system="standard")


def test_a_latency_had_in_another_way_is_said_everywhere() -> None:
    slow = {"mean": 1300.0, "p50": 1234.5, "p95": 1400.0, "p99": 1500.0}
    predicted = _benchmark(device="cortex-a76", kind="predicted", latency_ms=slow, threads=4)
    report = _report(_artifact("tflite-int8", benchmarks=[predicted]))
    text = _page(report)
    assert "4 threads" in text
    assert "1,234 ms predicted" in text
    assert "1,234 ms (cortex-a76, 4 threads), predicted" in to_markdown(report)
    assert "the latency is predicted (cortex-a76)" in _terminal(report)
    several = [_benchmark(latency_ms=None), predicted, _benchmark()]
    chosen = headline_benchmark(Artifact.model_validate(_artifact("tflite-int8", benchmarks=several)))
    assert chosen is not None
    assert (chosen.threads, chosen.kind) == (1, "measured")


def test_numbers_are_worded_with_care() -> None:
    assert [wording.share(x) for x in (1, 0, 0.999999, 0.0000001, 0.5)] == [
        "100%",
        "0%",
        "99.99%",
        "0.01%",
        "50.00%",
    ]
    assert [wording.milliseconds(x) for x in (0.0042, 0.242, 12.5, 999.9, 1234.5, 0)] == [
        "0.0042 ms", "0.242 ms", "12.5 ms", "1,000 ms", "1,234 ms", "0.000 ms",
    ]  # fmt: skip
    assert [wording.bytes_words(x) for x in (0, 999, 999_499, 999_500, 26_300_000)] == [
        "0 B", "999 B", "999 KB", "1.00 MB", "26.30 MB",
    ]  # fmt: skip
    assert [wording.points(x) for x in (-0.00001, 0.0, -0.004)] == ["+0.00", "+0.00", "-0.40"]


def test_charts_hold_any_values() -> None:
    for value in (0.0, 1e-9, 0.5, 1e12):
        for kind in ("measured", "estimated"):
            chart = charts.bar_chart([charts.Bar("a" * 99, value, "x", kind)], "axis")
            assert chart is not None
            assert "…" in chart
            assert ("estimated" in chart) == (kind == "estimated")
    for low, high in ((0.5, 0.5), (0.0, 0.0), (-1e-9, 1e-9), (-40, 40)):
        rows = [charts.Interval("a", (low + high) / 2, low, high, "measured")]
        chart = charts.interval_chart(rows, "axis", None, "{:+.2f}".format)
        assert chart is not None
        assert "nan" not in chart
    far = charts.histogram_chart({str(lsb): 1 for lsb in range(256)}, "measured")
    assert far is not None
    assert far.count("<rect") == 9
    assert "8 or more" in far


@pytest.mark.slow
@pytest.mark.parametrize("width", [420, 1200])
def test_a_browser_shows_it(tmp_path: Path, width: int) -> None:
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
    options += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'p'}"]
    command = [browser, *options, f"--window-size={width},900", f"--screenshot={shot}"]
    subprocess.run(
        [*command, (tmp_path / "report.html").as_uri()], check=True, capture_output=True, timeout=120
    )
    from PIL import Image

    with Image.open(shot) as image:
        colours = image.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 50
