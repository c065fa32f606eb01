"""Recipes: errors that say where, the ready ones, and the schema that editors complete from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_resnet.errors import InputError
from edge_resnet.project import load_project
from edge_resnet.recipe import Recipe, load_recipe, load_space
from edge_resnet.recipe.ranges import recipe_schema
from edge_resnet.recipe.ready import description_of, ready_recipes

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "recipes"
SCHEMA = RECIPES / "recipe.schema.json"


def _error(tmp_path: Path, content: str, *settings: str) -> str:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(InputError) as error:
        load_recipe(path, settings)
    message = str(error.value)
    assert "\n" not in message
    return message.replace(f"{path}:", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "name: x\n\nepochs: 3\n",
            "3: unknown key 'epochs'; did you mean 'finetune.epochs', 'qat.epochs' or 'train.epochs'?",
        ),
        ("qat:\n  epoch: 3\n", "2: unknown key 'qat.epoch'; did you mean 'qat.epochs'?"),
        ("qat:\n  estimator: mse\n", "2: unknown key 'qat.estimator'; did you mean 'calibration.estimator'?"),
        ("distil: {}\n", "1: unknown key 'distil'; did you mean 'finetune.distill' or 'qat.distill'?"),
        ("export:\n  zebra: 1\n", "2: unknown key 'export.zebra'; known in export: tflite_io, "),
        ("\n1: 2\n", "2: unknown key '1'; known at the top level: name, "),
        ("qat:\n  epochs: -1\n", "2: qat.epochs: expected an integer of at least 0, got -1"),
        ("qat:\n  epochs: few\n", "2: qat.epochs: expected an integer of at least 0, got 'few'"),
        ("qat:\n  epochs: true\n", "2: qat.epochs: expected an integer of at least 0, got true"),
        ("qat:\n  flip: 7\n", "2: qat.flip: expected true or false, got 7"),
        ("qat:\n  learning_rate: .inf\n", "2: qat.learning_rate: expected a finite number above 0, got inf"),
        ("train: {\n crop_area: 2}\n", "2: train.crop_area: expected a number above 0 and at most 1, got 2"),
        ("qat:\n  scales: learnt\n", "2: qat.scales: expected one of fixed, moving-average, learned, got"),
        ("evaluate: {images: 0}\n", "1: evaluate.images: expected an integer of at least 1 or null, got 0"),
        ("name: 3\n", "1: name: expected text, got 3"),
        (
            "repair: 3\n",
            "1: repair: expected a section with the keys equalize, correct_biases, rounding, got",
        ),
        ("seed: 1\nqat: {}\nseed: 2\n", "3: 'seed' is here a second time (first on line 1)"),
        ("qat:\n  flip: true\n  batch: 4\n  flip: no\n", "4: 'flip' is here a second time (first on line 2)"),
        ("seed: 1\nqat: [\n", "3: not YAML: "),
        ("name: !!python/object/new:os.system [id]\n", "1: not YAML: could not determine a constructor"),
        ("? [a, b]\n: 3\n", "1: not YAML: "),
        ("name: 2026-99-99\n", "not YAML: month must be in 1..12"),
        ("a: " + "[" * 1500, "not a recipe: nested too deeply"),
        ("qat: &q {distill: *q}\n", "1: unknown key 'qat.distill.distill'"),
    ],
)
def test_an_error_says_the_line_the_key_and_what_to_do(tmp_path: Path, content: str, message: str) -> None:
    assert _error(tmp_path, content).strip().startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("quantizer: nncf\nrepair:\n  equalize: true\n", "3: repair.equalize: NNCF"),
        ("quantizer: nncf\nrepair:\n  correct_biases: true\n", "3: repair.correct_biases: NNCF"),
        ("repair: {rounding: {steps: 9}}\nquantizer: nncf\n", "1: repair.rounding.steps: NNCF"),
        ("portable_x86: true\nquantizer: nncf\n", "1: portable_x86: NNCF"),
        ("quantizer: nncf\nqat:\n  epochs: 1\n  scales: learned\n", "4: qat.scales: NNCF"),
        ("quantizer: nncf\nqat:\n  epochs: 1\n  batch_norm: trained\n", "4: qat.batch_norm: NNCF"),
        ("quantizer: nncf\ncalibration:\n  estimator: minmax\n", "3: calibration.estimator: NNCF"),
        ("qat:\n  distill:\n    weight: 0.5\n", "3: qat.distill.weight: distillation needs training"),
        ("sensitivity:\n  max_drop: 0.5\n", "2: sensitivity.max_drop: needs images"),
        ("calibration:\n  percentile: 99.9\n", "2: calibration.percentile: belongs to"),
        ("qat: {epochs: 1}\nrepair:\n  correct_biases: true\n", "3: repair.correct_biases: training begins"),
        ("repair: {rounding: {steps: 9}}\nqat: {epochs: 1}\n", "1: repair.rounding.steps: training begins"),
        ("qat:\n  epochs: 1\n  freeze_scales: 0.9\n", "3: qat.freeze_scales: qat.scales is fixed"),
        ("qat:\n  epochs: 1\n  freeze_batch_norm: 0.9\n", "3: qat.freeze_batch_norm: qat.batch_norm is"),
        ("repair: {correct_biases: true}\ncalibration: {images: 0}\n", "1: repair.correct_biases: works on"),
    ],
)
def test_impossible_combinations_name_the_key_at_fault(tmp_path: Path, content: str, message: str) -> None:
    assert _error(tmp_path, content).startswith(message)


def test_every_default_written_out_is_no_conflict() -> None:
    assert load_recipe(Recipe().model_dump()) == Recipe()
    assert load_recipe({"calibration": {"estimator": "percentile", "percentile": 99.9}})
    assert load_recipe({"quantizer": "nncf", "qat": {"epochs": 1, "distill": {"weight": 0.5}}})


def test_a_setting_at_fault_is_quoted_and_a_line_of_the_file_is_not_blamed(tmp_path: Path) -> None:
    content = "qat:\n  epochs: 1\n"
    assert _error(tmp_path, content, "qat.epochs=-1").startswith(
        "--set 'qat.epochs=-1': qat.epochs: expected"
    )
    assert _error(tmp_path, content, "qatt.epochs=1").startswith("--set 'qatt.epochs=1': unknown key 'qatt'")
    assert _error(tmp_path, "qat: {epoch: 1}", "qat.batch=4").startswith("1: unknown key 'qat.epoch'")
    # The file asks for what the setting rules out: the key that must go is in the file.
    message = _error(tmp_path, "repair:\n  equalize: true\n", "quantizer=nncf")
    assert message.startswith("2: repair.equalize")
    with pytest.raises(InputError, match=r"^the recipe: unknown key 'qatt'"):
        load_recipe({"qatt": 1})


def test_empty_sections_mean_the_defaults_and_aliases_stay_apart(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("qat:\n#  epochs: 3\nrepair:\n  rounding:\n")
    assert load_recipe(path) == Recipe()
    assert load_recipe(path, ["qat.epochs=2"]).qat.epochs == 2
    path.write_text("train: &t {epochs: 1, batch: 8}\nqat:\n  <<: *t\n  batch: 16\n")
    assert load_recipe(path).qat.batch == 16
    path.write_text("train: &t {epochs: 1}\nqat: *t\n")
    recipe = load_recipe(path, ["qat.epochs=5"])
    assert (recipe.train.epochs, recipe.qat.epochs) == (1, 5)


_SECTIONS = ("train", "calibration", "repair", "qat", "sensitivity", "evaluate", "export", "benchmark")


@given(
    sections=st.permutations(_SECTIONS),
    at=st.integers(0, len(_SECTIONS) - 1),
    gaps=st.lists(st.integers(0, 3), min_size=2 * len(_SECTIONS), max_size=2 * len(_SECTIONS)),
    flow=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_the_line_is_right_wherever_the_key_stands(
    tmp_path_factory: pytest.TempPathFactory, sections: list[str], at: int, gaps: list[int], flow: bool
) -> None:
    defaults = Recipe().model_dump()
    lines: list[str] = []
    for index, name in enumerate(sections):
        lines += ["# a comment"] * gaps[2 * index]
        inner = yaml.safe_dump(defaults[name], sort_keys=False, default_flow_style=flow, width=20)
        lines += [f"{name}:", *(f"  {line}" for line in inner.splitlines())]
        lines += [""] * gaps[2 * index + 1]
    broken = lines.index(f"{sections[at]}:")
    lines[broken] = "zzzzz:"
    path = tmp_path_factory.mktemp("r") / "r.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError) as error:
        load_recipe(path)
    assert str(error.value).startswith(f"{path}:{broken + 1}: unknown key 'zzzzz'")


def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("qat:\n  epoch: 3\n")
    command = [sys.executable, "-m", "edge_resnet", "compress", "demo", "--recipe", str(path)]
    done = subprocess.run([*command, "--out", str(tmp_path / "o")], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (f"edge-resnet: {path}:2: unknown key 'qat.epoch'; did you mean 'qat.epochs'?\n")


def test_ready_recipes_are_found_by_name_and_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"ptq", "ptq-repair", "qat", "qat-distill"} <= set(ready_recipes())
    assert set(ready_recipes()) == {path.stem for path in RECIPES.glob("*.yaml")}
    for name, path in ready_recipes().items():
        if name == "search":  # which holds ranges
            assert load_space(name).values == load_space(path).values
            assert load_space(name).values["name"] == name
        else:
            assert load_recipe(name).name == name
            assert load_recipe(name) == load_recipe(path)
        assert description_of(path).endswith(".")
        assert path.read_text().startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    with pytest.raises(InputError, match="did you mean 'qat-distill'"):
        load_recipe("qat-distil")
    with pytest.raises(InputError, match="ready ones: fast-phone, ptq, "):
        load_recipe("zzzz")
    (tmp_path / "qat").write_text("name: mine")
    assert load_recipe("qat").name == "mine"


def test_a_project_may_name_a_ready_recipe(tmp_path: Path) -> None:
    path = tmp_path / "edge-resnet.yaml"
    path.write_text("model: demo\nrecipe: qat\n")
    assert load_recipe(load_project(path).recipe).name == "qat"
    (tmp_path / "qat").write_text("name: mine")
    assert load_recipe(load_project(path).recipe).name == "mine"


def test_the_published_schema_is_current() -> None:
    current = recipe_schema()
    assert json.loads(SCHEMA.read_text()) == current, (
        "edge-resnet recipes schema > recipes/recipe.schema.json"
    )


def test_the_schema_accepts_the_recipes_and_refuses_typos() -> None:
    """By a validator of JSON schemas, which is what editors are."""
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    for path in RECIPES.glob("*.yaml"):
        validator.validate(yaml.safe_load(path.read_text()))
    for wrong in ({"qat": {"epoch": 3}}, {"qat": {"epochs": -1}}, {"qat": {"scales": "learnt"}}, {"zzz": 1}):
        assert not validator.is_valid(wrong)


@pytest.mark.slow
def test_a_wheel_holds_the_recipes(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a build leaves its folders behind
    source.mkdir()
    for name in ("edge_resnet", "recipes"):
        shutil.copytree(ROOT / name, source / name, symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    for path in RECIPES.iterdir():
        assert f"edge_resnet/recipe/ready/{path.name}" in names
