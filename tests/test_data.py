"""Image folders, zips, the demo's digits, and preprocessing."""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import struct
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_resnet.data.images import open_images
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.data.stores import ZipStore
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


@pytest.mark.skipif(sys.platform != "linux", reason="training forks on Linux only")
def test_forked_processes_read_one_zip_side_by_side(image_folder: Path, tmp_path: Path) -> None:
    """As --devices 2 does: a file that was opened before has one position for all of them."""
    store = ZipStore(_zip_of(image_folder, tmp_path / "images.zip"))
    names = [name for name, _ in store.names()]
    expected = {name: store.pixels(name, PREPROCESS) for name in names}

    def read(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(100 * names)
        wrong = sum(not np.array_equal(store.pixels(name, PREPROCESS), expected[name]) for name in order)
        sys.exit(bool(wrong))

    children = [multiprocessing.get_context("fork").Process(target=read, args=(n,)) for n in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert np.array_equal(store.pixels(names[0], PREPROCESS), expected[names[0]])


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
        ({"resize": 10**9}, "preprocess.resize"),
        ({"resize": float("inf")}, "preprocess.resize inf"),
        ({"size": [31.7, 32]}, "preprocess.size 31.7"),
        ({"size": True}, "preprocess.size True"),
        ({"size": None}, "preprocess.size None"),
        ({"mean": None}, "preprocess.mean None"),
        ({"std": [1e-320] * 3}, "preprocess.std"),
        ({"sizes": 3}, "unknown key 'preprocess.sizes'"),
    ],
)
def test_preprocessing_values_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preprocess.from_json({"size": 32, "mean": MEAN, "std": STD} | change)


def test_preprocessing_asks_for_what_is_missing() -> None:
    with pytest.raises(InputError, match=r"preprocess\.size is missing"):
        Preprocess.from_json({"mean": MEAN, "std": STD})
    assert Preprocess.from_json({"size": 32.0, "mean": MEAN, "std": STD}).size == (32, 32)


def test_preprocessing_round_trip() -> None:
    preprocess = Preprocess((24, 40), MEAN, STD, resize=50, interpolation="bicubic")
    assert Preprocess.from_json(preprocess.to_json()) == preprocess
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 0, 255)).save(buffer, "PNG")
    normalized = preprocess.normalized(np.stack([preprocess.to_pixels(Image.open(buffer))]))
    assert normalized.shape == (1, 3, 24, 40)
    np.testing.assert_allclose(normalized[0, :, 0, 0], [(128 / 255 - 0.5) / 0.25, -2, 2], atol=1e-6)


def test_resizing_rounds_as_torchvision_does() -> None:
    from edge_resnet.models.torchvision_models import import_torchvision

    import_torchvision()
    from torchvision.transforms import v2

    # Sides where multiplying in another order gives one pixel less.
    for short, long in ((49, 98), (49, 147), (98, 196)):
        assert int(long * (32 / short)) == 32 * long // short - 1
        image = Image.fromarray(np.random.default_rng(long).integers(0, 256, (short, long, 3), np.uint8))
        for picture in (image, image.transpose(Image.Transpose.ROTATE_90)):
            theirs = v2.CenterCrop(32)(v2.Resize(32)(picture))
            ours = Preprocess((32, 32), MEAN, STD, resize=32).to_pixels(picture)
            assert np.array_equal(ours, np.asarray(theirs)), (short, long)


def test_splits_in_any_case_and_images_elsewhere_are_told(image_folder: Path) -> None:
    (image_folder / "train").rename(image_folder / "Train")
    (image_folder / "val").rename(image_folder / "TEST")
    (image_folder / "TEST" / "red" / "0.jpg").rename(image_folder / "TEST" / "red" / "0.JPEG")
    data = open_images(str(image_folder))
    assert (len(data.split("train")), len(data.split("val")), data.notes) == (24, 15, ())
    deeper = image_folder / "TEST" / "red" / "more"
    deeper.mkdir()
    Image.new("RGB", (8, 8)).save(deeper / "0.png")
    (note,) = open_images(str(image_folder)).notes
    assert "1 images in other folders are not used: TEST/red/more/0.png" in note


def test_hidden_files_and_folders_are_no_images(image_folder: Path, tmp_path: Path) -> None:
    picture = (image_folder / "val" / "red" / "0.jpg").read_bytes()
    (image_folder / "val" / ".ipynb_checkpoints").mkdir()
    for name in ("val/.ipynb_checkpoints/0.jpg", "val/red/._0.jpg"):
        (image_folder / name).write_bytes(picture)
    for data in (image_folder, _zip_of(image_folder, tmp_path / "images.zip")):
        images = open_images(str(data))
        assert (images.classes, len(images.split("val"))) == (("blue", "green", "red"), 15)


def test_classes_of_one_split_only_are_all_named(image_folder: Path) -> None:
    (image_folder / "val" / "red").rename(image_folder / "val" / "violet")
    with pytest.raises(InputError, match=r"class 'red' is in train only; class 'violet' is in val/test only"):
        open_images(str(image_folder))


def test_the_first_corrupt_images_are_named(image_folder: Path) -> None:
    for number in range(5):
        suffix = "png" if number % 2 else "jpg"
        (image_folder / "val" / "green" / f"{number}.{suffix}").write_bytes(b"no image")
    split = open_images(str(image_folder)).split("val")
    with pytest.raises(InputError, match=r"green/0.jpg, val/green/1.png, val/green/2.jpg and 2 more"):
        list(split.batches(np.arange(15), PREPROCESS, 15))


def test_links_and_pipes(image_folder: Path) -> None:
    red = image_folder / "val" / "red"
    (red / "5.jpg").symlink_to(red / "0.jpg")
    assert len(open_images(str(image_folder)).split("val")) == 16
    (red / "6.jpg").symlink_to(red / "gone.jpg")
    os.mkfifo(red / "7.jpg")
    split = open_images(str(image_folder)).split("val")
    with pytest.raises(InputError, match=r"val/red/6.jpg, val/red/7.jpg .*a broken link, or not a file"):
        list(split.batches(np.arange(18), PREPROCESS, 18))
    assert sum(len(b.labels) for b in split.batches(np.arange(18), PREPROCESS, 4, skip_corrupt=True)) == 16
    assert split.skipped == ["val/red/6.jpg", "val/red/7.jpg"]
    (red / "again").symlink_to(image_folder, target_is_directory=True)
    with pytest.raises(InputError, match="a link back to a folder that holds it"):
        open_images(str(image_folder))


def test_names_that_are_not_utf8(image_folder: Path) -> None:
    try:
        with open(os.fsencode(image_folder / "val" / "red") + b"/\xff.jpg", "wb") as file:
            file.write(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(InputError, match="is not UTF-8; rename it"):
        open_images(str(image_folder))


def test_encrypted_and_huge_members(image_folder: Path, tmp_path: Path) -> None:
    whole = _zip_of(image_folder, tmp_path / "whole.zip").read_bytes()
    header = whole.index(b"PK\x01\x02")  # the first entry of the central directory
    path = tmp_path / "changed.zip"
    for offset, value, message in (
        (8, struct.pack("<H", 1), "is encrypted"),
        (24, struct.pack("<I", 2**30), "unpacks to 1,073,741,824 bytes"),
    ):
        at = header + offset
        path.write_bytes(whole[:at] + value + whole[at + len(value) :])
        with pytest.raises(InputError, match=message):
            open_images(str(path))


def test_a_member_that_holds_more_than_it_declares(image_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "lie.zip"
    size = 200 * 2**20
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((image_folder / "val").rglob("*.*")):
            archive.write(file, file.relative_to(image_folder).as_posix())
        archive.writestr("val/red/9.png", bytes(size))
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", size), struct.pack("<I", 1000)))
    split = open_images(str(path)).split("val")
    tracemalloc.start()
    kept = sum(len(b.labels) for b in split.batches(np.arange(16), PREPROCESS, 4, skip_corrupt=True))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (kept, split.skipped) == (15, ["val/red/9.png"])
    assert peak < size / 4


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_members_are_corrupt_images(image_folder: Path, tmp_path: Path, method: int) -> None:
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted((image_folder / "val").rglob("*.*")):
            archive.write(file, file.relative_to(image_folder).as_posix())
        first = archive.infolist()[0]
    data = bytearray(path.read_bytes())
    start = first.header_offset + 30 + len(first.filename) + 20
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    split = open_images(str(path)).split("val")
    with pytest.raises(InputError, match=f"corrupt image {first.filename}"):
        list(split.batches(np.arange(15), PREPROCESS, 15))


def test_random_damage_is_always_an_input_error(image_folder: Path, tmp_path: Path) -> None:
    whole = _zip_of(image_folder / "val", tmp_path / "whole.zip", prefix="val/é").read_bytes()
    rng, path = np.random.default_rng(0), tmp_path / "damaged.zip"
    directory = whole.index(b"PK\x01\x02")
    messages: list[str] = []
    for number in range(150):
        data = bytearray(whole)
        for place in rng.integers(directory if number % 2 else 0, len(data), 4):
            data[place] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            split = open_images(str(path)).split("val")
            list(split.batches(np.arange(len(split)), PREPROCESS, 4, skip_corrupt=True))
        except InputError as error:
            messages.append(str(error))
    assert messages
    assert all(message.count("\n") <= 1 for message in messages)


def test_images_too_large_to_handle(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)  # images of 1,920: PIL alone would only warn
    split = open_images(str(image_folder)).split("val")
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(InputError, match="40 pixels, a decompression bomb"),
    ):
        list(split.batches(split.order(0), PREPROCESS, 4))
    strip = Image.new("RGB", (600, 2))
    with pytest.raises(ValueError, match="600x2 pixels become 32x9600"):
        PREPROCESS.to_pixels(strip)


def test_other_formats_are_not_opened(tmp_path: Path, image_folder: Path) -> None:
    path = image_folder / "val" / "red" / "0.jpg"
    Image.new("RGB", (32, 32)).save(path, "EPS")
    split = open_images(str(image_folder)).split("val")
    with pytest.raises(InputError, match=r"corrupt image val/red/0\.jpg"):
        list(split.batches(split.order(0), PREPROCESS, 4))
    Image.new("RGB", (32, 32)).save(path, "GIF")  # a wrong name alone is no harm
    assert sum(len(b.labels) for b in split.batches(split.order(0), PREPROCESS, 4)) == 15


def test_batches_do_not_depend_on_their_size(image_folder: Path) -> None:
    split = open_images(str(image_folder)).split("train")
    order = split.order(3)
    one, many = (list(split.batches(order, PREPROCESS, size)) for size in (1, 7))
    assert [len(b.labels) for b in many] == [7, 7, 7, 3]
    for name in ("pixels", "labels", "indices"):
        ones, manys = (np.concatenate([getattr(b, name) for b in batches]) for batches in (one, many))
        assert np.array_equal(ones, manys)
    assert np.array_equal(np.concatenate([b.indices for b in many]), order)


def test_the_real_images(shared_data: Path) -> None:
    data = open_images(str(shared_data / "cifar10-jpeg.zip"))
    assert data.classes[0] == "airplane"
    assert (len(data.split("train")), len(data.split("val")), data.notes) == (50_000, 10_000, ())
    split = data.split("val")
    batch = next(split.batches(split.order(0)[:200], PREPROCESS, 200))
    assert batch.pixels.shape == (200, 32, 32, 3)
    assert len(set(batch.labels.tolist())) == 10
