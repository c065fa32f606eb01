"""Large data sets: when training on 100,000 files begins, and how fast shards stream against a folder.

    python -m benchmarks.large_data

`start` is the time of a process of its own, from its first line to the first training batch of 128 decoded,
augmented images, with the imports, and without them. `stream` is images a second of one epoch, in turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from PIL import Image

from benchmarks import record
from benchmarks.models import blurred_noise
from edge_resnet.benchmark.timing import spread
from edge_resnet.data.images import open_images
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.recipe import Train
from edge_resnet.training import data

FILES, CLASSES, DIFFERENT = 100_000, 100, 50
STREAMED, SHARD = 2_000, 200
SIZE = 256
ROUNDS = 5

_FIRST_BATCH = """
import json, sys, time
start = time.perf_counter()
from edge_resnet.data.images import open_images
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.recipe import Train
from edge_resnet.training.data import TrainingImages
imported = time.perf_counter()
split = open_images(sys.argv[1]).split("train")
images = TrainingImages(split, Preprocess((224, 224), (0.5,) * 3, (0.5,) * 3), Train(epochs=1), 0, False)
pixels = next(iter(images.portions(0, 0, 0, 1))).pixels
ended = time.perf_counter()
print(json.dumps([len(split), ended - start, ended - imported]))
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ["EDGE_RESNET_CACHE"] = str(root / "cache")
        originals = _originals(root / "originals")
        folder = _linked(root / "large", originals, FILES)
        starts = [_first_batch(folder) for _ in range(ROUNDS)]
        small = _linked(root / "small", originals, STREAMED)
        rates = _streamed({"folder": small, "shards": _packed(root / "shards", small)})
    figures = {
        "files": FILES,
        "image": f"{SIZE}x{SIZE} JPEG, decoded to 224x224",
        "start_seconds": {
            "with_imports": _rounded([whole for whole, _ in starts]),
            "without_imports": _rounded([rest for _, rest in starts]),
        },
        "stream_images_per_second": {name: _rounded(values) for name, values in rates.items()},
    }
    record.save("large_data", figures)


def _originals(folder: Path) -> list[Path]:
    folder.mkdir()
    paths = []
    for index, pixels in enumerate(blurred_noise(DIFFERENT, SIZE)):
        paths.append(folder / f"{index}.jpg")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def _linked(folder: Path, originals: list[Path], count: int) -> Path:
    """A tenth of the files in val; hard links take no room."""
    for index in range(count):
        split = "val" if index // CLASSES % 10 == 0 else "train"
        path = folder / split / f"class{index % CLASSES:03}" / f"{index:06}.jpg"
        if not path.parent.exists():
            path.parent.mkdir(parents=True)
        os.link(originals[index % len(originals)], path)
    return folder


def _packed(folder: Path, images: Path) -> Path:
    """The same images as shards, in an order that mixes the classes."""
    folder.mkdir()
    for split in ("train", "val"):
        files = sorted((images / split).rglob("*.jpg"), key=lambda path: path.name)
        for start in range(0, len(files), SHARD):
            with tarfile.open(folder / f"{split}-{start // SHARD:04}.tar", "w") as shard:
                for path in files[start : start + SHARD]:
                    shard.add(path, f"{path.parent.name}/{path.name}")
    return folder


def _first_batch(folder: Path) -> tuple[float, float]:
    """Seconds with and without the imports."""
    command = [sys.executable, "-c", _FIRST_BATCH, str(folder)]
    count, whole, rest = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert count == FILES * 9 // 10
    return whole, rest


def _streamed(sources: dict[str, Path]) -> dict[str, list[float]]:
    """Each decodes every image anew: nothing is kept in memory."""
    data.MEMORY = 0
    rates: dict[str, list[float]] = {name: [] for name in sources}
    preprocess = Preprocess((224, 224), (0.5,) * 3, (0.5,) * 3)
    for _ in range(ROUNDS):
        for name, path in sources.items():
            split = open_images(str(path)).split("train")
            images = data.TrainingImages(split, preprocess, Train(epochs=1), 0, False)
            started = time.perf_counter()
            count = sum(len(portion.labels) for portion in images.portions(0, 0, 0, 1))
            rates[name].append(count / (time.perf_counter() - started))
    return rates


def _rounded(values: list[float]) -> dict[str, float]:
    return {key: round(value, 2) for key, value in spread(values).items()}


if __name__ == "__main__":
    main()
