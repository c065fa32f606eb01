"""What benchmark_model and phones print, quoted from their users' reports, and what is made of it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from edge_resnet.devices.benchmark_model import (
    DELEGATES,
    MOST_EXACT,
    Runs,
    arguments,
    external_delegate,
    image_arguments,
    parse_report,
)
from edge_resnet.devices.phone_state import conditions_from, facts_from, heat_notes
from edge_resnet.errors import MissingToolError
from tests.benchmark_model_script import counted

# A newer build on a Mali GPU, with two delegates (mask_estimator_phy.tflite).
GPU_NEW = """\
INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Num threads: [2]
INFO: Graph: [/data/local/tmp/mask_estimator_phy.tflite]
INFO: #threads used for CPU inference: [2]
INFO: Use gpu: [1]
INFO: Use NNAPI: [1]
INFO: NNAPI accelerators available: [nnapi-reference]
INFO: Loaded model /data/local/tmp/mask_estimator_phy.tflite
INFO: Initialized TensorFlow Lite runtime.
INFO: Created TensorFlow Lite delegate for GPU.
INFO: GPU delegate created.
INFO: Created TensorFlow Lite delegate for NNAPI.
INFO: Going to apply 2 delegates one after another.
INFO: Loaded OpenCL library with dlopen.
VERBOSE: Replacing 49 out of 49 node(s) with delegate (TfLiteGpuDelegateV2) node, yielding 1 partitions for subgraph 0.
INFO: Initialized OpenCL-based API.
INFO: Created 1 GPU delegate kernels.
INFO: Explicitly applied GPU delegate, and the model graph will be completely executed by the delegate.
INFO: Though NNAPI delegate is explicitly applied, the model graph will not be executed by the delegate.
INFO: The input model file size (MB): 16.1527
INFO: Initialized session in 5664.36ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=2 first=328140 curr=309932 min=309932 max=328140 avg=319036 std=9104 p5=309932 median=328140 p95=328140

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=50 first=307215 curr=309783 min=305938 max=333030 avg=309350 std=4411 p5=306372 median=307968 p95=315711

INFO: Inference timings in us: Init: 5664363, First inference: 328140, Warmup (avg): 319036, Inference (avg): 309350
"""  # noqa: E501
# tensorflow/tensorflow issue 43541: an older build, without prefixes.
GPU_OLD = """\
STARTING!
Use gpu: [1]
INFO: Initialized TensorFlow Lite runtime.
INFO: Created TensorFlow Lite delegate for GPU.
INFO: Initialized OpenCL-based API.
INFO: Created 1 GPU delegate kernels.
Explicitly applied GPU delegate, and the model graph will be completely executed by the delegate.
The input model file size (MB): 7.07479
Initialized session in 870.557ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
count=4 first=130565 curr=120829 min=117370 max=130565 avg=122373 std=4930

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=119212 curr=118055 min=113737 max=124776 avg=119375 std=1948

Inference timings in us: Init: 870557, First inference: 130565, Warmup (avg): 122373, Inference (avg): 119375
Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual
Peak memory footprint (MB): init=0 overall=12.8672
"""
# Of an i.MX 8 whose first inference took eleven seconds: a single warm-up, and a mean in powers of ten.
NPU = """\
Use NNAPI: [1]
NNAPI accelerators available: [vsi-npu]
INFO: Created TensorFlow Lite delegate for NNAPI.
Explicitly applied NNAPI delegate, and the model graph will be completely executed by the delegate.
Initialized session in 13.386ms.
count=1 curr=11403859

count=260 first=3918 curr=3711 min=3700 max=4026 avg=3756.87 std=35

Inference timings in us: Init: 13386, First inference: 11403859, Warmup (avg): 1.14039e+07, Inference (avg): 3756.87
"""  # noqa: E501
# ChromeOS's notes on a laptop's CPU.
CPU = """\
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
VERBOSE: Replacing 58 out of 58 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 1 partitions for the whole graph.
INFO: Initialized session in 3.337ms.
INFO: count=9 first=81913 curr=55502 min=55502 max=81913 avg=58984.7 std=8115
INFO: count=1061 first=56576 curr=56299 min=54669 max=60236 avg=56265.8 std=982
INFO: Inference timings in us: Init: 3337, First inference: 81913, Warmup (avg): 58984.7, Inference (avg): 56265.8
INFO: Overall peak memory footprint (MB) via periodic monitoring: 93.2383
"""  # noqa: E501
# tensorflow/tensorflow issue 56301, and the tool's source for what is counted partly.
REFUSED = """\
INFO: NNAPI accelerators available: [ipuadaptor,nnapi-reference]
INFO: NNAPI delegate created.
INFO: Though NNAPI delegate is explicitly applied, the model graph will not be executed by the delegate.
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
"""
PARTLY = """\
VERBOSE: Replacing 61 out of 68 node(s) with delegate (TfLiteGpuDelegateV2) node, yielding 3 partitions for subgraph 0.
INFO: Explicitly applied GPU delegate, and the model graph will be partially executed by the delegate w/ 3 delegate kernels.
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
VERBOSE: Replacing 7 out of 10 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 2 partitions for subgraph 0.
"""  # noqa: E501
TIMES = """\
INFO: count=2 first=900 curr=880 min=880 max=900 avg=890 std=10
INFO: Inference timings in us: Init: 3337, First inference: 1000, Warmup (avg): 900, Inference (avg): 890
"""


def test_a_gpu_that_took_all() -> None:
    report = parse_report(0, GPU_NEW, DELEGATES["gpu"])
    assert (report.initialized, report.first_inference) == (5664363, 328140)
    assert report.runs == Runs(50, 307215, 309783, 305938, 333030, 309350, 307968)
    assert (report.share, report.delegated, report.nodes, report.partitions) == ("all", 49, 49, 1)
    assert report.runtime(DELEGATES["gpu"]) == "LiteRT/GPU"
    assert "the GPU took the whole model (49 of 49 operators)" in report.notes(DELEGATES["gpu"])[0]
    # The same log, for who asked for the NPU: its delegate was applied, and took nothing.
    assert parse_report(0, GPU_NEW, DELEGATES["npu"]).share == "none"


def test_an_older_build() -> None:
    report = parse_report(0, GPU_OLD, DELEGATES["gpu"])
    assert (report.share, report.delegated, report.peak_bytes) == ("all", None, None)
    assert report.runs == Runs(50, 119212, 118055, 113737, 124776, 119375, None)
    assert report.notes(DELEGATES["gpu"]) == ["the GPU took the whole model"]


def test_an_npu() -> None:
    report = parse_report(0, NPU, DELEGATES["npu"])
    assert report.first_inference == 11403859
    assert report.runs.count == 260
    assert report.accelerators == "vsi-npu"
    assert report.runtime(DELEGATES["npu"]) == "LiteRT/NNAPI"


def test_the_cpu() -> None:
    report = parse_report(0, CPU, DELEGATES["cpu"])
    assert (report.runs.count, report.runs.mean) == (1061, 56265.8)
    assert report.peak_bytes == int(93.2383 * 2**20)
    assert (report.share, report.delegated, report.nodes) == (None, 58, 58)
    assert report.runtime(DELEGATES["cpu"]) == "LiteRT/XNNPACK"
    assert report.notes(DELEGATES["cpu"]) == []
    bare = parse_report(0, TIMES, DELEGATES["cpu"])
    assert bare.runtime(DELEGATES["cpu"]) == "LiteRT/CPU kernels"
    assert "XNNPACK was not there" in bare.notes(DELEGATES["cpu"])[0]


@pytest.mark.parametrize(
    ("log", "asked", "share", "runtime", "words"),
    [
        (
            REFUSED,
            "npu",
            "none",
            "LiteRT/XNNPACK instead of NNAPI",
            "fell back to the CPU: the NPU (by NNAPI) was asked for",
        ),
        (PARTLY, "gpu", "some", "LiteRT/GPU + XNNPACK", "the GPU took 61 of 68 operators in 3 pieces"),
        # No delegate was made, and nothing is said of one.
        ("", "gpu", "none", "LiteRT/CPU kernels instead of GPU", "fell back to the CPU"),
        (
            "WARN: NNAPI acceleration is unsupported on this platform.\n",
            "npu",
            "none",
            "LiteRT/CPU kernels instead of NNAPI",
            "took no operator: NNAPI acceleration is unsupported on this platform; what was timed is the CPU",
        ),
    ],
)
def test_falling_back_is_found(log: str, asked: str, share: str, runtime: str, words: str) -> None:
    delegate = DELEGATES[asked]
    report = parse_report(0, log + TIMES, delegate)
    assert report.share == share
    assert report.runtime(delegate) == runtime
    assert words in report.notes(delegate)[0]


@pytest.mark.parametrize(
    ("code", "text", "words"),
    [
        (1, "ERROR: Failed to load model x.tflite\nERROR: Benchmarking failed.\n", "Failed to load model x"),
        (1, "ERROR: Failed to apply GPU delegate.\nERROR: Benchmarking failed.\n", "Failed to apply GPU"),
        (1, TIMES + "ERROR: Benchmarking failed.\n", "Benchmarking failed"),
        (0, "", "it printed nothing"),
        (0, "INFO: STARTING!\n", "STARTING"),
        (134, "x", "ended by SIGABRT"),
        (137, "x", "SIGKILL (the system does that when memory runs out)"),
        (132, "x", "SIGILL"),
        (0, "WARN: Unconsumed cmdline flags: --use_nnapi=true\n" + TIMES, "does not know --use_nnapi=true"),
    ],
)
def test_what_measured_nothing(code: int, text: str, words: str) -> None:
    with pytest.raises(MissingToolError, match=re.escape(words)):
        parse_report(code, text, DELEGATES["cpu"])


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_latencies_of_few_runs_are_all_known(count: int, new: bool) -> None:
    """Printed as the tool prints them (six digits of the mean), and found again."""
    rng = np.random.default_rng(count)
    for _ in range(200):
        times = [int(value) for value in rng.integers(1, 10 ** rng.integers(1, 8), count)]
        line = f"INFO: {counted(times, new)}\n"
        runs = parse_report(0, line + TIMES.splitlines()[1], DELEGATES["cpu"]).runs
        assert runs.count == count <= MOST_EXACT
        error = 0 if new or count < 3 else 3 * 0.5e-5 * max(times)
        np.testing.assert_allclose(runs.each, times, atol=error + 1e-9)


def test_latencies_of_many_runs_are_not() -> None:
    assert parse_report(0, CPU, DELEGATES["cpu"]).runs.each is None


def test_runs_that_all_took_the_same() -> None:
    text = "count=3 curr=7(all same) p5=7 median=7 p95=7\n" + TIMES.splitlines()[1]
    assert parse_report(0, text, DELEGATES["cpu"]).runs.each == [7, 7, 7]


def test_command_lines() -> None:
    line = arguments("m.tflite", DELEGATES["gpu"], 2, 3, warm_runs=2, warm_seconds=0.2, most_seconds=120)
    assert line == [
        "--graph=m.tflite", "--num_threads=2", "--num_runs=3", "--min_secs=0", "--max_secs=120",
        "--warmup_runs=2", "--warmup_min_secs=0.2", "--use_gpu=true",
    ]  # fmt: skip
    vendor = external_delegate("/data/x/libQnnTFLiteDelegate.so", "backend_type:htp;htp_precision:1")
    assert vendor.runtime == "LiteRT/libQnnTFLiteDelegate.so"
    line = image_arguments("m.tflite", vendor, 1, (1, 32, 32, 3), "/i", "/o")
    assert "--input_layer_shape=1,32,32,3" in line
    assert "--input_layer_value_files=image:/i" in line
    assert "--output_filepath=/o" in line
    assert "--external_delegate_options=backend_type:htp;htp_precision:1" in line


# A Xiaomi 13T Pro with Android 16.
THERMAL = """\
IsStatusOverride: false
Thermal Status: {status}
Cached temperatures:
\tTemperature{{mValue=84.208, mType=0, mName=CPU, mStatus=0}}
\tTemperature{{mValue=48.517, mType=3, mName=SKIN, mStatus=0}}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{{mValue=57.9, mType=0, mName=CPU, mStatus=0}}
\tTemperature{{mValue=34.351, mType=3, mName=SKIN, mStatus=0}}
Temperature static thresholds from HAL:
\tTemperatureThreshold{{mType=3, mName=SKIN, mHotThrottlingThresholds=[NaN, NaN, NaN, 50.0, 70.0]}}
[battery]
  USB powered: true
  status: 3
  level: 80
  temperature: 360
[zones]
cpu-0-0=51200
battery=36000
soc=80
[clocks]
1800000 2000000
{clock} {most}
[load]
4.00 3.50 3.20 2/900 1234
[power]
  mWakefulness={awake}
{saver}
"""


def _state(
    status: int = 0, clock: int = 2800000, most: int = 3200000, awake: str = "Awake", saver: int = 0
) -> dict[str, object]:
    text = THERMAL.format(status=status, clock=clock, most=most, awake=awake, saver=saver)
    return conditions_from(text, 8)


def test_conditions() -> None:
    assert _state() == {
        "mhz": [1800, 2800], "mhz_allowed": [2000, 3200], "load_per_core": 0.5, "celsius": 57.9,
        "skin_celsius": 34.351, "battery_celsius": 36.0, "battery_percent": 80.0, "battery": "Discharging",
        "thermal_status": 0, "awake": True, "battery_saver": False,
    }  # fmt: skip
    silent = conditions_from(
        "Can't find service: thermalservice\n[battery]\n[zones]\n=\n[clocks]\n \n[load]\n[power]\nnull\n", 8
    )
    assert set(silent.values()) == {None}
    assert set(conditions_from("", 8).values()) == {None}
    zones = THERMAL.partition("[battery]")[1] + THERMAL.partition("[battery]")[2]
    assert conditions_from(zones, 8)["celsius"] == 51.2


def test_throttling_is_said() -> None:
    assert heat_notes(_state(), _state(), [2800] * 8) == []
    assert heat_notes(_state(0), _state(2), []) == [
        "throttled: the thermal status rose from none to moderate"
    ]
    assert "was light all the time" in heat_notes(_state(1), _state(1), [])[0]
    assert "may run at 2400 MHz, 3200 MHz before" in heat_notes(_state(), _state(most=2400000), [])[0]
    assert "the phone slept" in heat_notes(_state(awake="Dozing"), _state(), [])[0]
    assert "battery saver" in heat_notes(_state(saver=1), _state(), [])[0]
    falling = [2800, 2800, 2600, 2600, 2200, 2200, 1900, 1900]
    assert "ran at 1900 MHz at the end, at first 2800" in heat_notes(_state(), _state(), falling)[0]


def test_facts() -> None:
    facts = facts_from("ro.product.manufacturer=Google\nro.product.model=Pixel 8\ncores=9\n")
    assert (str(facts), facts.cores, facts.abis) == ("Google Pixel 8", 9, ())
    assert str(facts_from("ro.product.manufacturer=Nokia\nro.product.model=Nokia X30\n")) == "Nokia X30"
    assert facts_from("").cores == 1
