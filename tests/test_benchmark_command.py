"""`edge-resnet benchmark`: several devices, one report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from edge_resnet.benchmark import worker
from edge_resnet.devices import measure, registry
from edge_resnet.devices.device import Device, DeviceLostError, Job, Measurement, Request
from edge_resnet.devices.local import LocalDevice
from edge_resnet.errors import MissingToolError
from edge_resnet.progress import Advance
from edge_resnet.report.schema import load_report

Command = Callable[..., tuple[int, str, str]]

RUNS = ("--runs", 10)


class Unreliable(LocalDevice):
    """This machine, under another name; it is lost, or its owner loses patience, when it has one result."""

    def __init__(self, uri: str, end: type[BaseException]) -> None:
        self.uri, self._end = uri, end

    def measure(self, jobs: Sequence[Job], request: Request, advance: Advance) -> dict[str, Measurement]:
        found = super().measure(jobs[:1], request, advance)
        if self._end is DeviceLostError:
            raise DeviceLostError(f"{self.uri}: gone in the middle", found)
        raise self._end("no such tool: install it")


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def give(*found: Device) -> None:
        known = {device.uri: device for device in found}
        monkeypatch.setattr(
            "edge_resnet.devices.benchmark.open_devices", lambda uris: [known[u] for u in uris]
        )

    return give


def test_accuracy_and_latency_of_a_run_go_into_its_report(edge_resnet: Command, demo_run: Path) -> None:
    before = load_report(demo_run / "report.json")
    arguments = ("--device", "local", "--data", "demo", "--threads", 1, "--threads", 2, "--batch", 4, *RUNS)
    code, out, _ = edge_resnet("benchmark", demo_run, *arguments, "--json")
    assert code == 0
    printed = json.loads(out)
    report = load_report(demo_run / "report.json")
    assert {a.path for a in report.artifacts} == {Path(key).name for key in printed}
    assert before.artifacts[0].benchmarks == []
    for artifact in report.artifacts:
        assert [(b.device, b.threads, b.kind) for b in artifact.benchmarks] == [
            ("local", 1, "measured"),
            ("local", 2, "measured"),
        ]
        entry = artifact.benchmarks[0]
        assert entry.batch == 4
        assert entry.batch_throughput_per_s is not None
        # What compress saw in its own process is what the worker answers in another.
        assert entry.accuracy is not None
        assert artifact.accuracy is not None
        assert (entry.accuracy.top1, entry.accuracy.n) == (artifact.accuracy.top1, artifact.accuracy.n)
        assert (entry.accuracy.delta, entry.accuracy.delta_ci95) == (
            artifact.accuracy.delta,
            artifact.accuracy.delta_ci95,
        )
        assert entry.parity is not None
        assert entry.parity.identical == 1
        assert set(entry.conditions["before"]) == {"mhz", "load_per_core", "celsius", "battery"}
    page = (demo_run / "report.html").read_text()
    assert "Devices: what the model answers there" in page
    assert "## Devices" in (demo_run / "report.md").read_text()


def test_answers_stay_when_only_the_time_is_taken_again(edge_resnet: Command, demo_run: Path) -> None:
    arguments = ("--device", "local", "--threads", 1, *RUNS)
    assert edge_resnet("benchmark", demo_run, *arguments, "--data", "demo", "--images", 20)[0] == 0
    before = load_report(demo_run / "report.json").artifacts[0].benchmarks[0]
    assert edge_resnet("benchmark", demo_run, *arguments)[0] == 0
    (after,) = load_report(demo_run / "report.json").artifacts[0].benchmarks
    assert after.latency_ms != before.latency_ms
    assert after.accuracy is not None
    assert (after.accuracy, after.parity, after.accuracy.n) == (before.accuracy, before.parity, 20)


def test_measuring_again_replaces_and_leaves_other_devices(
    edge_resnet: Command, demo_run: Path, devices: Callable[..., None]
) -> None:
    other = LocalDevice()
    other.uri = "other"
    devices(LocalDevice(), other)
    for device in ("local", "other", "local"):
        assert edge_resnet("benchmark", demo_run, "--device", device, "--threads", 1, *RUNS)[0] == 0
    for artifact in load_report(demo_run / "report.json").artifacts:
        assert [b.device for b in artifact.benchmarks] == ["other", "local"]


@pytest.mark.parametrize(
    ("end", "kept"), [(DeviceLostError, 1), (MissingToolError, 0)], ids=["lost in the middle", "no tool"]
)
def test_a_lost_device_keeps_its_results_and_the_others(
    edge_resnet: Command,
    demo_run: Path,
    devices: Callable[..., None],
    end: type[BaseException],
    kept: int,
) -> None:
    devices(Unreliable("board", end), LocalDevice())
    arguments = ("--device", "board", "--device", "local", "--threads", 1, *RUNS)
    code, _, error = edge_resnet("benchmark", demo_run, *arguments)
    assert code == 3
    lines = [line for line in error.splitlines() if line.startswith("edge-resnet: ")]
    assert len(lines) == 1
    assert lines[0].startswith("edge-resnet: board: ")
    found = [b.device for a in load_report(demo_run / "report.json").artifacts for b in a.benchmarks]
    assert (found.count("board"), found.count("local")) == (kept, 2)


def test_an_interruption_keeps_what_was_found(
    edge_resnet: Command, demo_run: Path, devices: Callable[..., None]
) -> None:
    devices(LocalDevice(), Unreliable("board", KeyboardInterrupt))
    arguments = ("--device", "local", "--device", "board", "--threads", 1, *RUNS)
    code, _, error = edge_resnet("benchmark", demo_run, *arguments)
    assert code == 130
    assert "interrupted; what was found before is kept" in error
    assert all(a.benchmarks for a in load_report(demo_run / "report.json").artifacts)


def test_wrong_input(edge_resnet: Command, demo_run: Path, image_folder: Path, tmp_path: Path) -> None:
    artifact = next(demo_run.glob("*.tflite"))
    lone = tmp_path / artifact.name
    lone.write_bytes(artifact.read_bytes())
    for arguments, words in (
        ((demo_run, "--device", "locl"), "did you mean local?"),
        ((demo_run, "--device", "toaster"), "no such device; `edge-resnet devices` lists them"),
        ((demo_run, "--device", "local://x"), "with nothing behind it"),
        ((demo_run, "--data", image_folder), "not the images of this run"),
        ((lone, "--data", "demo"), "lies in no run's folder"),
        ((tmp_path / "none",), "there is no such artifact or folder"),
    ):
        code, _, error = edge_resnet("benchmark", *arguments, *RUNS)
        assert code == 2, arguments
        assert words in error
        assert "Traceback" not in error
    artifact.write_bytes(artifact.read_bytes() + b"x")
    code, _, error = edge_resnet("benchmark", demo_run, *RUNS)
    assert (code, "not the file that the run wrote" in error) == (2, True)


def test_an_artifact_alone_is_timed(edge_resnet: Command, demo_run: Path, tmp_path: Path) -> None:
    artifact = next(demo_run.glob("*.onnx"))
    lone = tmp_path / artifact.name
    lone.write_bytes(artifact.read_bytes())
    code, out, _ = edge_resnet("benchmark", lone, "--threads", 1, *RUNS, "--json")
    assert code == 0
    (entry,) = json.loads(out)[str(lone)]
    assert entry["latency_ms"]["p50"] > 0
    assert entry["accuracy"] is None


def test_devices_answer_as_many_images_as_they_can_bear(demo_run: Path) -> None:
    pixels = np.zeros((9, 1, 1, 3), np.uint8)
    request = Request(None, (1,), pixels)  # type: ignore[arg-type]  # nothing is timed
    slow = LocalDevice()
    slow.most_images = 4
    for images, expected in ((None, 4), (2, 2), (7, 7)):
        asked = measure._for_device(slow, request, images)
        assert asked.pixels is not None
        assert len(asked.pixels) == expected
    whole = measure._for_device(LocalDevice(), request, None)
    assert whole.pixels is pixels


def test_every_scheme_opens_its_example() -> None:
    for scheme in registry.SCHEMES.values():
        device = registry.open_device(scheme.example)
        assert device.uri == scheme.example


def test_compress_measures_on_devices(edge_resnet: Command, tmp_path: Path) -> None:
    settings = ("--set", "benchmark.runs=10", "--set", "calibration.images=64")
    arguments = ("--target", "tflite-int8", "--target", "onnx-int8", *settings, "--out", tmp_path / "run")
    assert edge_resnet("compress", "demo", *arguments, "--device", "locl")[0] == 2
    assert not (tmp_path / "run").exists()
    code, out, _ = edge_resnet("compress", "demo", *arguments, "--device", "local", "--json")
    assert code == 0
    for artifact in json.loads(out)["artifacts"]:
        (entry,) = artifact["benchmarks"]
        assert entry["latency_ms"]["p50"] > 0
        assert entry["accuracy"]["top1"] == artifact["accuracy"]["top1"]


@pytest.mark.parametrize(
    ("files", "used"),
    [
        ({"powercap/intel-rapl:0/energy_uj": "5"}, (7.0, 9.0, 2.0)),
        ({"powercap/intel-rapl:0/energy_uj": "5"}, (9.0, 7.0, None)),
        ({"power/BAT0/power_now": "3000000", "power/BAT0/status": "Discharging"}, (None, None, 6e6)),
        ({"power/BAT0/power_now": "3000000", "power/BAT0/status": "Charging"}, (None, None, None)),
        ({}, (None, None, None)),
    ],
    ids=["RAPL", "RAPL began again", "battery", "charging", "nothing tells"],
)
def test_energy(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    used: tuple[int | None, int | None, float | None],
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    monkeypatch.setattr(worker, "_RAPL", tmp_path / "powercap")
    monkeypatch.setattr(worker, "_POWER", tmp_path / "power")
    assert worker._energy_uj() == (5 if "RAPL" in str(files) or "rapl" in str(files) else None)
    before, after, expected = used
    assert worker._used_uj(before, after, 2.0) == expected


@pytest.mark.skipif(find_spec("tflite_micro") is None, reason='needs tflite-micro: pip install -e ".[npu]"')
def test_what_only_a_device_tells_is_printed(edge_resnet: Command, demo_run: Path) -> None:
    artifact = next(demo_run.glob("*.tflite"))
    code, _, err = edge_resnet("benchmark", artifact, "--device", "tflm://host")
    assert code == 0
    (line,) = [line for line in err.splitlines() if line.startswith(f"{artifact.name}: tflm://host: arena")]
    assert "scratch" in line
