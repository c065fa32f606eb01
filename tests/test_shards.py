"""WebDataset shards: the webdataset library reads what we read, and we read what it writes."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from edge_resnet.data import shard_index
from edge_resnet.data.images import ImageSplit, open_images
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.data.shards import streaming_order
from edge_resnet.data.stores import FolderStore
from edge_resnet.errors import InputError
from edge_resnet.recipe import Train
from edge_resnet.training import data
from edge_resnet.training.data import TrainingImages

SMALL = Preprocess((16, 16), (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_RESNET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def shards(image_folder: Path, tmp_path: Path) -> Path:
    """The same images as image_folder's, as the library's own writer leaves them, five in a shard."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for split in ("train", "val"):
        files = sorted((image_folder / split).rglob("*.*"), key=lambda f: (f.stem, f.parent.name))
        with webdataset.ShardWriter(f"{folder}/{split}-%04d.tar", maxcount=5, verbose=0) as writer:
            for number, file in enumerate(files):
                label = ("blue", "green", "red").index(file.parent.name)
                kind = file.suffix[1:]
                writer.write({"__key__": f"{number:06d}", kind: file.read_bytes(), "cls": label})
    (folder / "classes.txt").write_text("blue\ngreen\nred\n")
    return folder


def _seen(split: ImageSplit) -> set[tuple[int, bytes]]:
    batches = split.batches(np.arange(len(split)), SMALL, 4)
    return {(int(n), p.tobytes()) for b in batches for n, p in zip(b.labels, b.pixels, strict=True)}


def _tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_shards_hold_what_the_folder_holds(shards: Path, image_folder: Path) -> None:
    ours, folder = open_images(str(shards)), open_images(str(image_folder))
    assert ours.classes == folder.classes
    for name in ("train", "val"):
        assert _seen(ours.split(name)) == _seen(folder.split(name))
    only = open_images(str(shards / "val-{0000..0002}.tar"))
    assert _seen(only.split("val")) == _seen(folder.split("val"))


def test_the_library_sees_the_same_samples(shards: Path) -> None:
    files = [str(file) for file in sorted(shards.glob("train-*.tar"))]
    theirs = [
        (int(sample["cls"]), sample["__key__"])
        for sample in webdataset.WebDataset(files, shardshuffle=False, empty_check=False)
    ]
    split = open_images(str(shards)).split("train")
    names = sorted(zip(split.paths, split.labels.tolist(), strict=True))
    assert [(label, name.split("/")[1].split(".")[0]) for name, label in names] == theirs


def test_classes_from_json_and_from_folders(tmp_path: Path) -> None:
    picture = _jpeg()
    members = {f"{c}/{i}.JPEG": picture for c in ("cat", "dog") for i in range(3)}
    assert open_images(str(_tar(tmp_path / "a.tar", members))).classes == ("cat", "dog")
    members = {}
    for i in range(12):
        members |= {f"{i}.jpg": picture, f"{i}.json": json.dumps({"label": i}).encode()}
    numbered = open_images(str(_tar(tmp_path / "b.tar", members)))
    assert numbered.classes == tuple(map(str, range(12)))  # 10 is behind 9, not behind 1
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": [f"c{i}" for i in range(12)]}))
    assert open_images(str(tmp_path / "b.tar")).classes[10] == "c10"
    with pytest.raises(InputError, match="has no class"):
        open_images(str(_tar(tmp_path / "c.tar", {"0.jpg": picture})))


def test_nothing_in_a_shard_runs(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    members: dict[str, bytes] = {}
    for i in range(4):
        members |= {f"{i}.jpg": _jpeg(), f"{i}.cls": b"%d" % (i % 2)}
        members |= {f"{i}.{kind}": pickle.dumps(Bomb()) for kind in ("pyd", "pickle", "pth")}
    members["../../outside.jpg"] = _jpeg()
    members["../../outside.cls"] = b"1"
    _seen(open_images(str(_tar(tmp_path / "a.tar", members))).split("val"))
    assert not (tmp_path / "ran").exists()
    assert not list(tmp_path.parent.glob("outside*"))


@pytest.mark.parametrize("cut", [0, 700, 1024, 2049, 5000])
def test_a_damaged_shard_is_named_or_skipped(shards: Path, cut: int) -> None:
    path = shards / "train-0001.tar"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"train-0001\.tar is damaged at byte .*skip_corrupt=true"):
        open_images(str(shards))
    images = open_images(str(shards), skip_corrupt=True)
    assert "1 damaged shards was skipped" in images.notes[0]
    assert "train-0001.tar" in images.notes[0]
    split = images.split("train")
    assert 19 <= len(split) <= 24
    assert len(_seen(split)) == len(split)  # all that is left can be decoded


def test_a_spoiled_header_and_a_compressed_shard(shards: Path, tmp_path: Path) -> None:
    path = shards / "train-0001.tar"
    spoiled = bytearray(path.read_bytes())
    spoiled[1024:1034] = b"\xff" * 10
    path.write_bytes(spoiled)
    with pytest.raises(InputError, match=r"damaged at byte 0 \(bad checksum\)"):
        open_images(str(shards))
    with webdataset.TarWriter(str(tmp_path / "a.tar.gz")) as writer:
        writer.write({"__key__": "0", "jpg": _jpeg(), "cls": 0})
    renamed = tmp_path / "b.tar"
    renamed.write_bytes((tmp_path / "a.tar.gz").read_bytes())
    for file in (tmp_path / "a.tar.gz", renamed):
        with pytest.raises(InputError, match="unpack it"):
            open_images(str(file))


def test_headers_are_read_once(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_images(str(shards))
    monkeypatch.setattr(shard_index, "_read", lambda *_: pytest.fail("read again"))
    assert open_images(str(shards)).fingerprint == first.fingerprint
    monkeypatch.undo()
    for kept in Path(shard_index.cache_folder()).rglob("*.json"):
        kept.write_text("{")
    assert open_images(str(shards)).split("train").paths == first.split("train").paths


def test_the_order_reads_shards_from_front_to_back() -> None:
    shards = np.repeat(np.arange(40), 1000)
    order = streaming_order(shards, np.random.default_rng(3))
    assert np.array_equal(np.sort(order), np.arange(len(shards)))
    assert np.array_equal(order, streaming_order(shards, np.random.default_rng(3)))
    opened = [len(set(shards[order[i : i + 256]].tolist())) for i in range(0, len(order), 256)]
    assert max(opened) <= 2 * 8 + 8
    assert np.mean(np.diff(order) == 1) < 0.01


@pytest.mark.parametrize("memory", [0, 2**30])
def test_every_step_is_reached_alike(shards: Path, monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    monkeypatch.setattr(data, "MEMORY", memory)

    def images() -> TrainingImages:
        return TrainingImages(open_images(str(shards)).split("train"), SMALL, Train(batch=8), 5, False)

    whole = images()
    for epoch in (0, 1):
        steps = list(whole.portions(epoch, 0, 0, 1))
        (resumed,) = images().portions(epoch, 2, 0, 1)
        assert np.array_equal(resumed.pixels, steps[2].pixels)
        halves = [list(images().portions(epoch, 0, rank, 2)) for rank in (0, 1)]
        for step, *parts in zip(steps, *halves, strict=True):
            assert np.array_equal(step.pixels, np.concatenate([part.pixels for part in parts]))
            assert np.array_equal(step.labels, np.concatenate([part.labels for part in parts]))


def test_training_starts_before_all_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 files, links to one: only what the first steps need is opened."""
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(_jpeg())
    for split, count in (("train", 9990), ("val", 10)):
        for name in ("a", "b"):
            folder = tmp_path / "many" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.jpg").hardlink_to(picture)
    opened: list[str] = []
    decode = FolderStore.pixels

    def counted(store: FolderStore, name: str, preprocess: Preprocess) -> np.ndarray:
        opened.append(name)
        return decode(store, name, preprocess)

    monkeypatch.setattr(FolderStore, "pixels", counted)
    split = open_images(str(tmp_path / "many")).split("train")
    portions = TrainingImages(split, SMALL, Train(batch=32), 0, False).portions(0, 0, 0, 1)
    next(portions)
    portions.close()
    assert 32 <= len(opened) <= 32 + 16 * 5 * 16 + 32


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--devices", "2"]])
def test_compress_trains_from_shards(shards: Path, tmp_path: Path, extra: list[str]) -> None:
    settings = ["train.epochs=1", "train.batch=8", "calibration.images=8", "preprocess.size=32"]
    out = tmp_path / "out"
    command = [sys.executable, "-m", "edge_resnet", "compress", "resnet20", "--data", str(shards)]
    command += ["--target", "tflite-int8", "--out", str(out), *extra]
    command += [word for setting in settings for word in ("--set", setting)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode in (0, 1), ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(out.glob("*-trained.safetensors"))
