"""Published phone latencies: the project's table of them, and a clone of the repository that they come from.

Qualcomm AI Hub Models (https://github.com/quic/ai-hub-models, BSD-3-Clause) measures its models on hosted
devices with each release and writes the figures into qai_hub_models/models/MODEL/perf.yaml. phone_latency.csv
has four models of release 0.46.1. The clone adds devices that only older releases measured, and other models.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SOURCE = "Qualcomm AI Hub Models, https://github.com/quic/ai-hub-models, qai_hub_models/models/*/perf.yaml"
RELEASES = {
    "0.46.1": "52c080d245d2d20c634459208ff2548ce10b3c9f",
    "0.43.0": "6b67c7151823ffab55bcdd93b9ac5f53cd6ad9b9",
    "0.37.1": "19dc3e8bdf7722c561dc7bb22f11fdd0ffea2c33",
}
NEWEST = "0.46.1"
# Devices that the newest release does not measure, with the last one that does.
OLDER = {
    "Samsung Galaxy S23": "0.37.1",
    "Snapdragon 8 Elite QRD": "0.37.1",
    "RB5 (Proxy)": "0.43.0",
    "SA8255 (Proxy)": "0.43.0",
    "SA8650 (Proxy)": "0.43.0",
    "QCS9075 (Proxy)": "0.43.0",
}


@dataclass(frozen=True)
class Figure:
    """One published figure: the shortest of an inference's runs, in milliseconds."""

    device: str
    release: str
    runtime: str
    precision: str
    model: str
    milliseconds: float
    unit: str


def from_table(path: Path) -> list[Figure]:
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Figure(
                row["device"],
                NEWEST,
                row["runtime"],
                row["precision"],
                row["model"],
                float(row["inference_time_ms"]),
                row["primary_compute_unit"],
            )
            for row in csv.DictReader(file)
        ]


def from_clone(clone: Path, release: str, models: Iterable[str]) -> Iterator[Figure]:
    """All figures of the models in floats and int8; exits where the clone does not have the release."""
    for model in models:
        name = f"{RELEASES[release]}:qai_hub_models/models/{model}/perf.yaml"
        shown = subprocess.run(
            ["git", "-C", str(clone), "show", name], capture_output=True, text=True, check=False
        )
        if shown.returncode != 0:
            sys.exit(f"{clone}: {shown.stderr.strip()}; git clone https://github.com/quic/ai-hub-models")
        values = yaml.load(shown.stdout, yaml.CSafeLoader)
        for precision in values["precisions"].keys() & {"float", "w8a8"}:
            for component in values["precisions"][precision]["components"].values():
                for device, runtimes in component["performance_metrics"].items():
                    for runtime, run in runtimes.items():
                        if figure := _figure(run):
                            yield Figure(device, release, runtime, precision, model, *figure)


def _figure(run: dict[str, Any]) -> tuple[float, str] | None:
    value = run.get("inference_time_milliseconds")
    if run.get("job_status", "Passed") != "Passed" or not isinstance(value, float):
        return None
    return value, run["primary_compute_unit"]
