"""Image folders, zips, the demo's digits, and preprocessing."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_resnet.data.images import open_images
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.errors import InputError

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
PREPROCESS = Preprocess((32, 32), MEAN, STD)


def _zip_of(folder: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def _all(data: str) -> tuple[np.ndarray, np.ndarray]:
    split = open_images(data).split("val")
    batches = list(split.batches(split.order(0), PREPROCESS, 4))
    return np.concatenate([b.pixels for b in batches]), np.concatenate([b.labels for b in batches])


def test_folder_and_zip_hold_the_same(image_folder: Path, tmp_path: Path) -> None:
    archive = _zip_of(image_folder, tmp_path / "images.zip", prefix="top/")
    folder, zipped = open_images(str(image_folder)), open_images(str(archive))
    assert folder.classes == zipped.classes == ("blue", "green", "red")
    assert (len(folder.split("train")), len(folder.split("val"))) == (24, 15)
    for ours, theirs in zip(_all(str(image_folder)), _all(str(archive)), strict=True):
        assert np.array_equal(ours, theirs)
    pixels, labels = _all(str(image_folder))
    assert pixels.shape == (15, 32, 32, 3)
    assert np.array_equal(pixels.mean((1, 2)).argmax(1), 2 - labels)  # blue, green, red


def test_order_is_shuffled_and_repeatable(image_folder: Path) -> None:
    split = open_images(str(image_folder)).split("val")
    assert np.array_equal(split.order(1), split.order(1))
    assert not np.array_equal(split.order(1), split.order(2))
    assert sorted(split.order(0).tolist()) == list(range(15))
    assert not np.array_equal(split.labels[split.order(0)], split.labels)


def test_a_fingerprint_follows_the_content(image_folder: Path) -> None:
    before = open_images(str(image_folder)).fingerprint
    assert open_images(str(image_folder)).fingerprint == before
    Image.new("RGB", (8, 8)).save(image_folder / "val" / "red" / "0.jpg")
    assert open_images(str(image_folder)).fingerprint != before


def test_test_is_val_and_missing_splits_are_told(image_folder: Path) -> None:
    (image_folder / "val").rename(image_folder / "test")
    assert open_images(str(image_folder)).notes == ()
    shutil.rmtree(image_folder / "train")
    assert "no train folder" in open_images(str(image_folder)).notes[0]
    assert "share the images" in open_images(str(image_folder / "test")).notes[0]


def test_data_that_cannot_be_used(image_folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for data, message in (
        (tmp_path / "nowhere", "there is no such image folder"),
        (empty, "no images"),
        (image_folder / "train" / "red" / "0.jpg", "not a readable .zip"),
    ):
        with pytest.raises(InputError, match=message):
            open_images(str(data))
    shutil.rmtree(image_folder / "val" / "red")
    with pytest.raises(InputError, match="class 'red' is in train only"):
        open_images(str(image_folder))
    shutil.rmtree(image_folder / "val" / "green")
    with pytest.raises(InputError, match=r"only one class \(blue\)"):
        open_images(str(image_folder))
    shutil.rmtree(image_folder / "val")
    with pytest.raises(InputError, match="has train but no val or test"):
        open_images(str(image_folder))


@pytest.mark.parametrize("name", ["0.jpg", "1.png"])
def test_corrupt_images_are_named_or_skipped(image_folder: Path, name: str) -> None:
    path = image_folder / "val" / "green" / name
    path.write_bytes(path.read_bytes()[:150])
    split = open_images(str(image_folder)).split("val")
    with pytest.raises(InputError, match=f"corrupt image val/green/{name}"):
        list(split.batches(split.order(0), PREPROCESS, 4))
    kept = list(split.batches(split.order(0), PREPROCESS, 4, skip_corrupt=True))
    assert sum(len(batch.pixels) for batch in kept) == 14
    assert split.skipped == [f"val/green/{name}"]
    assert sorted(np.concatenate([b.indices for b in kept]).tolist()) == [
        i for i, path in enumerate(split.paths) if path != f"val/green/{name}"
    ]


def test_hostile_zips(image_folder: Path, tmp_path: Path) -> None:
    picture = (image_folder / "val" / "red" / "0.jpg").read_bytes()
    for name in ("../../val/red/0.jpg", "/val/red/0.jpg"):
        path = tmp_path / "hostile.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, picture)
        with pytest.raises(InputError, match="points outside"):
            open_images(str(path))
    path = tmp_path / "cut.zip"
    path.write_bytes(_zip_of(image_folder, tmp_path / "whole.zip").read_bytes()[:-200])
    with pytest.raises(InputError, match=r"not a readable \.zip"):
        open_images(str(path))


def test_a_decompression_bomb_is_a_corrupt_image(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    split = open_images(str(image_folder)).split("val")
    with pytest.raises(InputError, match="decompression bomb"):
        list(split.batches(split.order(0), PREPROCESS, 4))


def test_the_demo_is_digits() -> None:
    data = open_images("demo")
    assert data.classes == tuple("0123456789")
    assert len(data.split("train")) + len(data.split("val")) == 1797
    pixels, labels = _all("demo")
    assert pixels.shape[1:] == (32, 32, 3)
    assert set(labels.tolist()) == set(range(10))


def test_preprocessing_is_torchvisions() -> None:
    from edge_resnet.models.torchvision_models import import_torchvision

    import_torchvision()
    from torchvision.transforms import v2

    rng = np.random.default_rng(0)
    for width, height in ((50, 37), (37, 50), (64, 64), (31, 90)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        theirs = v2.CenterCrop(28)(v2.Resize(36)(image))
        ours = Preprocess((28, 28), MEAN, STD, resize=36).to_pixels(image)
        assert np.array_equal(ours, np.asarray(theirs))


def test_preprocessing_edges() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    assert np.array_equal(PREPROCESS.to_pixels(image), np.asarray(image))
    assert PREPROCESS.to_pixels(Image.new("L", (80, 20))).shape == (32, 32, 3)
    assert PREPROCESS.to_pixels(Image.new("RGBA", (20, 80))).shape == (32, 32, 3)
    assert PREPROCESS.to_pixels(Image.new("CMYK", (9, 9))).shape == (32, 32, 3)
    deep = Image.fromarray(np.full((32, 32), 65535, np.uint16))
    assert PREPROCESS.to_pixels(deep).min() == 255
    stretched = Preprocess((10, 30), MEAN, STD, crop="none")
    assert stretched.to_pixels(image).shape == (10, 30, 3)
    assert Preprocess((24, 40), MEAN, STD).to_pixels(image).shape == (24, 40, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": [0.1, 0.0, 0.1]}, "preprocess.std"),
        ({"mean": [0.5]}, "preprocess.mean"),
        ({"mean": "abc"}, "preprocess"),
        ({"size": 0}, "preprocess.size"),
        ({"crop": "left"}, "preprocess.crop 'left'"),
        ({"interpolation": "magic"}, "preprocess.interpolation 'magic'"),
        ({"resize": -3}, "preprocess.resize"),
        ({"sizes": 3}, "unknown key 'preprocess.sizes'"),
    ],
)
def test_preprocessing_values_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preprocess.from_json({"size": 32, "mean": MEAN, "std": STD} | change)


def test_preprocessing_round_trip() -> None:
    preprocess = Preprocess((24, 40), MEAN, STD, resize=50, interpolation="bicubic")
    assert Preprocess.from_json(preprocess.to_json()) == preprocess
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 0, 255)).save(buffer, "PNG")
    normalized = preprocess.normalized(np.stack([preprocess.to_pixels(Image.open(buffer))]))
    assert normalized.shape == (1, 3, 24, 40)
    np.testing.assert_allclose(normalized[0, :, 0, 0], [(128 / 255 - 0.5) / 0.25, -2, 2], atol=1e-6)
