"""What an untrusted Keras file may not do. No file here is ever loaded; TensorFlow is not needed."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import os
import random
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edge_resnet.errors import InputError
from edge_resnet.frontends import keras_hdf5
from edge_resnet.frontends.keras_archive import check_keras_archive

needs_h5py = pytest.mark.skipif(
    importlib.util.find_spec("h5py") is None, reason="h5py is not installed: pip install 'edge-resnet[keras]'"
)

LAYER: dict[str, Any] = {
    "module": "keras.layers",
    "class_name": "Conv2D",
    "config": {
        "name": "stem",
        "filters": 4,
        "activation": "relu",
        "dtype": {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}},
        "kernel_initializer": {"module": "keras.initializers", "class_name": "GlorotUniform", "config": {}},
    },
    "registered_name": None,
    "name": "stem",
}
MODEL: dict[str, Any] = {
    "module": "keras.src.models.functional",
    "class_name": "Functional",
    "config": {"name": "net", "layers": [LAYER]},
    "registered_name": "Functional",
}


def with_layer(**changes: Any) -> dict[str, Any]:
    """MODEL with another layer behind its own."""
    model = copy.deepcopy(MODEL)
    model["config"]["layers"].append({**copy.deepcopy(LAYER), **changes})
    return model


def weights_file(change: Any = None) -> bytes:
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_group("layers/stem/vars").create_dataset("0", data=[1.0, 2.0])
        if change:
            change(h5py, file)
    return buffer.getvalue()


def keras_file(path: Path, config: Any = MODEL, weights: bytes | None = None, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", config if isinstance(config, str | bytes) else json.dumps(config))
        archive.writestr("model.weights.h5", weights if weights is not None else b"not HDF5")
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def h5_file(path: Path, config: Any = MODEL, change: Any = None) -> Path:
    def attach(h5py: Any, file: Any) -> None:
        if config is not None:
            file.attrs["model_config"] = config if isinstance(config, str) else json.dumps(config)
        if change:
            change(h5py, file)

    path.write_bytes(weights_file(attach))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        check_keras_archive(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert caught.value.exit_code == 2
    return message


@needs_h5py
def test_a_plain_model_passes(tmp_path: Path) -> None:
    check_keras_archive(keras_file(tmp_path / "a.keras", weights=weights_file()))
    check_keras_archive(h5_file(tmp_path / "a.h5"))


@needs_h5py
def test_the_training_configuration_may_name_anything(tmp_path: Path) -> None:
    """It is not loaded."""
    model = {**MODEL, "compile_config": {"loss": {"class_name": "function", "config": "mine"}}}
    check_keras_archive(keras_file(tmp_path / "a.keras", model, weights_file()))


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (
            {"class_name": "Lambda", "config": {"name": "f", "function": "x"}, "name": "f"},
            "Lambda layer 'f' runs",
        ),
        ({"class_name": "TFSMLayer"}, "TFSMLayer layer 'stem' runs a TensorFlow graph"),
        ({"class_name": "TFOpLambda"}, "names a Python function"),
        ({"class_name": "Mine", "module": "mine", "registered_name": "mine>Mine"}, "class 'Mine'"),
        ({"module": "os"}, "module 'os'"),
        ({"module": "keras.utils"}, "module 'keras.utils'"),
        ({"class_name": "get_file", "module": "keras.utils"}, "class 'get_file'"),
        ({"class_name": "StringLookup"}, "class 'StringLookup'"),
        ({"registered_name": "mine>Other"}, "registered as 'mine>Other'"),
        ({"class_name": ["Conv2D"]}, "without a proper class_name"),
        ({"config": {"a": [{"b": {"class_name": "__lambda__", "config": {}}}]}}, "runs Python code"),
        ({"config": {"activation": {"class_name": "function", "config": "system"}}}, "function 'system'"),
        ({"config": {"t": {"class_name": "__typespec__", "config": []}}}, "class '__typespec__'"),
        ({"compile_config": {"loss": {"class_name": "Mine", "config": {}}}}, "class 'Mine'"),
    ],
)
def test_what_could_run_code_is_refused(tmp_path: Path, layer: dict[str, Any], said: str) -> None:
    assert said in refusal(keras_file(tmp_path / "a.keras", with_layer(**layer)))


@needs_h5py
def test_the_same_holds_for_h5(tmp_path: Path) -> None:
    layer = {"class_name": "Lambda", "config": {"function": ["4wEA", None, None]}, "name": "f"}
    assert "Lambda layer 'f' runs Python code" in refusal(h5_file(tmp_path / "a.h5", with_layer(**layer)))


def test_a_custom_model_class_is_told_how_to_come(tmp_path: Path) -> None:
    message = refusal(keras_file(tmp_path / "a.keras", {**MODEL, "class_name": "MyResNet"}))
    assert "MyResNet" in message
    assert "model.export" in message


@pytest.mark.parametrize("config", ["", "{", "[]", "null", '{"config": 3}', b"\xff\xfe{", "[" * 200_000])
def test_a_config_that_is_none(tmp_path: Path, config: str | bytes) -> None:
    assert "config.json" in refusal(keras_file(tmp_path / "a.keras", config))


def test_deep_nesting_that_parses(tmp_path: Path) -> None:
    deep: Any = {"class_name": "Lambda", "config": {}}
    for _ in range(300):
        deep = [deep]
    assert "Lambda" in refusal(keras_file(tmp_path / "a.keras", with_layer(config={"deep": deep})))


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:\\evil"])
def test_an_entry_outside_the_archive(tmp_path: Path, name: str) -> None:
    assert "outside" in refusal(keras_file(tmp_path / "a.keras", **{name: b""}))


def test_a_symbolic_link(tmp_path: Path) -> None:
    path = keras_file(tmp_path / "a.keras")
    link = zipfile.ZipInfo("assets/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "symbolic link" in refusal(path)


def test_a_zip_bomb(tmp_path: Path) -> None:
    path = tmp_path / "a.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", json.dumps(MODEL))
        archive.writestr("model.weights.h5", bytes(2**26))
    assert "zip bomb" in refusal(path)


def test_too_many_entries(tmp_path: Path) -> None:
    path = keras_file(tmp_path / "a.keras", **{f"assets/{number}": b"" for number in range(1001)})
    assert "entries" in refusal(path)


def test_an_encrypted_entry(tmp_path: Path) -> None:
    content = bytearray(keras_file(tmp_path / "a.keras").read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 8] |= 1
    path = tmp_path / "b.keras"
    path.write_bytes(content)
    assert "encrypted" in refusal(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_missing_and_doubled_parts(tmp_path: Path) -> None:
    path = tmp_path / "a.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(MODEL))
    assert "model.weights.h5 is missing" in refusal(path)
    path = keras_file(tmp_path / "b.keras")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", json.dumps(MODEL))
    assert "config.json is missing or doubled" in refusal(path)


def test_no_zip_at_all_and_a_cut_one(tmp_path: Path) -> None:
    path = tmp_path / "a.keras"
    path.write_bytes(b"hello")
    assert "not a .keras file" in refusal(path)
    whole = keras_file(tmp_path / "b.keras").read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        refusal(path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    assert "there is no such" in refusal(tmp_path / "none.keras")
    assert "a Keras model is" in refusal(tmp_path / "model.pt")
    os.mkfifo(tmp_path / "pipe.keras")
    assert "pipe" in refusal(tmp_path / "pipe.keras")
    refusal(tmp_path / ("x" * 300 + ".keras"))


@needs_h5py
def test_weights_that_point_at_other_files(tmp_path: Path) -> None:
    def external_link(h5py: Any, file: Any) -> None:
        file["layers/other"] = h5py.ExternalLink("/etc/passwd", "/")

    def soft_link(h5py: Any, file: Any) -> None:
        file["layers/other"] = h5py.SoftLink("/layers")

    def external_data(h5py: Any, file: Any) -> None:
        file.create_dataset("layers/x", (8,), "u1", external=[("/etc/hostname", 0, 8)])

    def virtual_data(h5py: Any, file: Any) -> None:
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
        file.create_virtual_dataset("layers/x", layout)

    changes = {
        external_link: "another file",
        soft_link: "soft link",
        external_data: "another file",
        virtual_data: "other files",
    }
    for number, (change, said) in enumerate(changes.items()):
        assert said in refusal(h5_file(tmp_path / f"{number}.h5", change=change))
        inside = keras_file(tmp_path / f"{number}.keras", weights=weights_file(change))
        assert "model.weights.h5: " in refusal(inside)


@needs_h5py
def test_circles_and_bombs(tmp_path: Path) -> None:
    def circle(h5py: Any, file: Any) -> None:
        file["layers/stem/up"] = file["layers"]

    def bomb(h5py: Any, file: Any) -> None:
        file.create_dataset("layers/x", (2**30,), "f4", chunks=(2**20,), compression="gzip")

    check_keras_archive(h5_file(tmp_path / "circle.h5", change=circle))
    assert "GB" in refusal(h5_file(tmp_path / "bomb.h5", change=bomb))


@needs_h5py
def test_weights_only(tmp_path: Path) -> None:
    assert "weights only" in refusal(h5_file(tmp_path / "a.h5", config=None))
    assert "not valid JSON" in refusal(h5_file(tmp_path / "b.h5", config="{"))


@needs_h5py
def test_a_library_that_hangs_or_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = h5_file(tmp_path / "a.h5")
    with monkeypatch.context() as patch:
        patch.setattr(keras_hdf5, "_TIME_LIMIT", 1e-3)
        assert "took more than" in refusal(path)
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crashing))
    assert "was killed by SIGSEGV" in refusal(path)


def message(number: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(number: int) -> bytes:
    result = b""
    while number > 127:
        result += bytes([number & 127 | 128])
        number >>= 7
    return result + bytes([number])


def node(operator: str, name: str = "n", *, calls: str = "") -> bytes:
    attribute = (
        message(5, message(1, b"f"), message(2, message(10, message(1, calls.encode())))) if calls else b""
    )
    return message(1, name.encode()) + message(2, operator.encode()) + attribute


def function(name: str, *nodes: bytes) -> bytes:
    return message(1, message(1, message(1, name.encode())), *(message(3, entry) for entry in nodes))


def saved_model(
    folder: Path,
    *functions: bytes,
    main: tuple[bytes, ...] = (),
    objects: bytes | None = message(1, message(4, b"")),
) -> Path:
    (folder / "variables").mkdir(parents=True, exist_ok=True)
    (folder / "variables" / "variables.index").write_bytes(b"index")
    graph = message(2, *(message(1, entry) for entry in main), message(2, *functions))
    tail = message(7, objects) if objects is not None else b""
    (folder / "saved_model.pb").write_bytes(b"\x08\x01" + message(2, graph, tail))
    return folder


SAVE = "__inference__traced_save_1"


def test_a_saved_model_that_only_computes(tmp_path: Path) -> None:
    check_keras_archive(
        saved_model(
            tmp_path / "m",
            function("__inference_serve_1", node("Conv2D"), node("ReadVariableOp")),
            function(SAVE, node("SaveV2"), node("ShardedFilename")),
            main=(node("StatefulPartitionedCall", calls=SAVE),),
        )
    )


@pytest.mark.parametrize(
    "operator", ["ReadFile", "WriteFile", "PyFunc", "EagerPyFunc", "SaveV2", "Unknown", ""]
)
def test_an_operator_that_reaches_outside(tmp_path: Path, operator: str) -> None:
    text = refusal(saved_model(tmp_path / "m", function("__inference_serve_1", node(operator, "bad"))))
    assert f"operator {operator} (node 'bad'" in text


def test_saving_happens_nowhere_else(tmp_path: Path) -> None:
    serve = function("__inference_serve_1", node("PartitionedCall", calls=SAVE))
    text = refusal(saved_model(tmp_path / "m", serve, function(SAVE, node("SaveV2"))))
    assert "calls the function that saves" in text
    assert "ReadFile" in refusal(saved_model(tmp_path / "n", main=(node("ReadFile"),)))
    assert "ReadFile" in refusal(saved_model(tmp_path / "o", function(SAVE, node("ReadFile"))))


def test_saved_models_of_other_kinds(tmp_path: Path) -> None:
    assert "TensorFlow 1" in refusal(saved_model(tmp_path / "a", objects=None))
    assert "lookup table" in refusal(saved_model(tmp_path / "b", objects=message(1, message(10, b""))))
    (tmp_path / "c").mkdir()
    assert "without saved_model.pb" in refusal(tmp_path / "c")
    (tmp_path / "c" / "saved_model.pbtxt").write_text("x")
    assert "text form" in refusal(tmp_path / "c")
    (saved_model(tmp_path / "d") / "variables" / "variables.index").unlink()
    assert "variables" in refusal(tmp_path / "d")
    os.mkfifo(saved_model(tmp_path / "e") / "variables" / "variables.data-00000-of-00001")
    assert "pipe" in refusal(tmp_path / "e")


def test_any_bytes_of_a_saved_model_are_answered(tmp_path: Path) -> None:
    folder = saved_model(
        tmp_path / "m", function("__inference_serve_1", node("Conv2D", calls="f"), node("Relu"))
    )
    whole = (folder / "saved_model.pb").read_bytes()
    for seed in range(400):
        (folder / "saved_model.pb").write_bytes(mutated(whole, seed))
        answered(folder)


def test_any_bytes_of_a_keras_file_are_answered(tmp_path: Path) -> None:
    whole = keras_file(tmp_path / "a.keras").read_bytes()
    for seed in range(400):
        (tmp_path / "b.keras").write_bytes(mutated(whole, seed))
        answered(tmp_path / "b.keras")


@needs_h5py
@pytest.mark.slow
def test_any_bytes_of_an_h5_file_are_answered(tmp_path: Path) -> None:
    whole = h5_file(tmp_path / "a.h5").read_bytes()
    for seed in range(60):
        (tmp_path / "b.h5").write_bytes(mutated(whole, seed))
        answered(tmp_path / "b.h5")


def mutated(content: bytes, seed: int) -> bytes:
    """Some bytes changed, a piece cut out, or a number made huge."""
    dice = random.Random(seed)
    data = bytearray(content)
    for _ in range(dice.randint(1, 8)):
        at = dice.randrange(len(data))
        kind = dice.randrange(4)
        if kind == 0:
            data[at] = dice.randrange(256)
        elif kind == 1:
            data[at] ^= 1 << dice.randrange(8)
        elif kind == 2 and len(data) > 16:
            del data[at : at + dice.randrange(1, 16)]
        else:
            data[at : at + 4] = struct.pack("<I", dice.choice([0, 2**31 - 1, 2**32 - 1]))
    return bytes(data)


def answered(path: Path) -> None:
    """Silence or an InputError, nothing else."""
    with contextlib.suppress(InputError):
        check_keras_archive(path)
