"""What several test files share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from edge_resnet.compression.plain import in_integers
from edge_resnet.devices.arm_root import arm_root_folder
from edge_resnet.errors import MissingToolError
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import simplify
from tests.adb_phone import adb_server, phone, phone_jobs  # noqa: F401  # fixtures
from tests.random_graphs import random_graph, random_pixels
from tests.ssh_board import ssh_board, ssh_jobs  # noqa: F401  # fixtures

# The same examples in every run: a failure here can be repeated anywhere.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What is measured or indexed once is kept for the session, and the user's own cache is left alone."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        # But for the ARM64 root, which takes a while to build.
        patch.setenv("EDGE_RESNET_ARM_ROOT", str(arm_root_folder()))
        patch.setenv("EDGE_RESNET_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The project's real models and images, which users do not have."""
    here = Path(__file__).resolve().parent.parent
    folder = Path(os.environ.get("EDGE_RESNET_DATA", here.parent / "shared" / "data"))
    if not (folder / "cifar10-jpeg.zip").exists():
        pytest.skip(
            "no real data: set EDGE_RESNET_DATA to the folder that holds cifar10-jpeg.zip and the weights"
        )
    return folder


@pytest.fixture(scope="session")
def arm_root(cache_folder: Path) -> Path:
    """The ARM64 root, where it was built."""
    from edge_resnet.devices.arm_root import arm_root as existing

    try:
        return existing()
    except MissingToolError as error:
        pytest.skip(str(error))


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Three classes of small pictures, told apart by their colour; train 8 and val 5 of each."""
    return write_image_folder(tmp_path / "images", ("blue", "green", "red"))


def write_image_folder(folder: Path, classes: tuple[str, ...], size: int = 40) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 5)):
        for number, name in enumerate(classes):
            directory = folder / split / name
            directory.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 120, (size, size + 8, 3), np.uint8)
                pixels[..., 2 - number % 3] += 100
                Image.fromarray(pixels).save(directory / f"{index}.{'png' if index % 2 else 'jpg'}")
    return folder


def quantized(graph: Graph, seed: int = 0) -> Graph:
    """The graph in integers, calibrated on random pixels."""
    return in_integers(simplify(graph), [random_pixels(graph, 8, seed)])


@pytest.fixture(scope="session")
def small_graph() -> Graph:
    return random_graph(seed=54, blocks=3)


@pytest.fixture(scope="session")
def small_quantized(small_graph: Graph) -> Graph:
    return quantized(small_graph)


@pytest.fixture(scope="session")
def _demo_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edge_resnet.pipeline import compress

    out = tmp_path_factory.mktemp("demo") / "run"
    settings = ("benchmark.runs=0", "calibration.images=64")
    compress("demo", targets=("tflite-int8", "onnx-int8"), settings=settings, out=out)
    return out


@pytest.fixture
def demo_run(_demo_once: Path, tmp_path: Path) -> Path:
    """A finished run of the demo model, for this test: int8 TFLite and ONNX, nothing timed."""
    return Path(shutil.copytree(_demo_once, tmp_path / "demo-run"))


@pytest.fixture
def edge_resnet(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process: edge_resnet("compress", ...) -> (exit code, stdout, stderr)."""
    from edge_resnet.cli.main import main

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        monkeypatch.setattr("sys.argv", ["edge-resnet", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run
