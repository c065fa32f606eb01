"""Writing files, and reading recipes and project files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edge_resnet.errors import InputError
from edge_resnet.files import atomic_write, check_writable, replace_directory, sha256_of, size_of
from edge_resnet.project import load_project
from edge_resnet.recipe import Recipe, load_recipe, load_space

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    atomic_write(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"report.json: cannot write: No space left"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_replacing_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    replace_directory(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "file").read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["old"]
    with pytest.raises(InputError, match="cannot write"):
        replace_directory(tmp_path / "nowhere", tmp_path / "old")
    assert (tmp_path / "old" / "file").read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["old"]


def test_digests_follow_names_and_contents(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "x").write_text("1")
    assert sha256_of(tmp_path / "a") == sha256_of(tmp_path / "b")
    assert size_of(tmp_path / "a") == 1
    (tmp_path / "b" / "sub" / "x").rename(tmp_path / "b" / "sub" / "y")
    assert sha256_of(tmp_path / "a") != sha256_of(tmp_path / "b")


def test_check_writable(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write the run there"):
        check_writable(tmp_path / "file")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    if path.stem == "search":
        space = load_space(path)
        assert space.recipe(space.middle).name == path.stem
    else:
        assert load_recipe(path).name == path.stem


def test_settings_change_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("calibration: {images: 7}\n")
    recipe = load_recipe(
        path, ["calibration.batch=4", "preprocess.mean=[0.5, 0.5, 0.5]", "evaluate.images=null"]
    )
    assert (recipe.calibration.images, recipe.calibration.batch) == (7, 4)
    assert recipe.preprocess == {"mean": [0.5, 0.5, 0.5]}
    assert load_recipe(None) == Recipe()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("calibration: [", "not YAML"),
        ("- 1", "a mapping"),
        ("calibrate: {}", "unknown key 'calibrate'"),
        ("calibration: {imagse: 3}", "did you mean 'calibration.images'"),
        ("seed: -1", "seed: "),
        ("evaluate: {images: 0}", "evaluate.images"),
    ],
)
def test_recipes_that_are_wrong_name_the_key(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        load_recipe(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_setting_under_a_value_is_an_error() -> None:
    with pytest.raises(InputError, match="holds a value"):
        load_recipe({"seed": 1}, ["seed.x=1"])
    with pytest.raises(InputError, match="not YAML"):
        load_recipe(None, ["seed=["])


def test_project_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "edge-resnet.yaml"
    path.write_text("model: resnet20\nweights: w.pt\ndata: images\n")
    project = load_project(path)
    assert project.weights == tmp_path / "w.pt"
    assert project.data == str(tmp_path / "images")
    path.write_text("model: demo\ndata: demo\n")
    assert load_project(path).data == "demo"
    path.write_text("{")
    with pytest.raises(InputError, match="not YAML"):
        load_project(path)
