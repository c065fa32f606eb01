"""What the user brings for a phone: adb, LiteRT's benchmark_model, and a vendor's delegate."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_resnet.errors import MissingToolError

__all__ = [
    "BENCHMARK_MODEL",
    "EXTERNAL_DELEGATE",
    "EXTERNAL_OPTIONS",
    "NIGHTLY",
    "PAGE",
    "BenchmarkModel",
    "benchmark_model",
    "check_architecture",
    "delegate_files",
    "find_adb",
]

BENCHMARK_MODEL = "EDGE_RESNET_BENCHMARK_MODEL"
EXTERNAL_DELEGATE = "EDGE_RESNET_EXTERNAL_DELEGATE"
EXTERNAL_OPTIONS = "EDGE_RESNET_EXTERNAL_DELEGATE_OPTIONS"
PAGE = "https://ai.google.dev/edge/litert/models/measurement"
NIGHTLY = (
    "https://storage.googleapis.com/tensorflow-nightly-public/prod/tensorflow/release/lite/tools/nightly/"
    "latest/android_aarch64_benchmark_model"
)
# e_machine of an ELF header, and Android's names of what it is for.
_MACHINES = {183: "arm64-v8a", 40: "armeabi-v7a", 62: "x86_64", 3: "x86", 243: "riscv64"}
_NAMES = {"arm64-v8a": "android_aarch64", "armeabi-v7a": "android_arm"}


@dataclass(frozen=True)
class BenchmarkModel:
    """`abi`: what it is compiled for, by Android's name; None: a script around it, which the phone judges."""

    path: Path
    abi: str | None


def find_adb() -> str | None:
    """In the path, else in the Android SDK that the environment names."""
    found = shutil.which("adb")
    for variable in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        if found is None and os.environ.get(variable):
            found = shutil.which("adb", path=str(Path(os.environ[variable]) / "platform-tools"))
    return found


def benchmark_model() -> BenchmarkModel:
    """The file that the environment names. Raises MissingToolError where that is none, or no program."""
    named = os.environ.get(BENCHMARK_MODEL)
    if not named:
        raise MissingToolError(
            f"a phone needs LiteRT's benchmark_model: download {NIGHTLY} and set {BENCHMARK_MODEL} to its "
            f"path (see {PAGE})"
        )
    path = Path(named).expanduser()
    if not path.is_file():
        raise MissingToolError(f"{BENCHMARK_MODEL}: there is no file {path}; get it from {NIGHTLY}")
    return BenchmarkModel(path, _abi(path))


def _abi(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            head = file.read(20)
    except OSError as error:
        raise MissingToolError(f"{BENCHMARK_MODEL}: {path} cannot be read: {error.strerror}") from error
    if head[:2] == b"#!":
        return None
    if head[:2] == b"PK":
        raise MissingToolError(
            f"{BENCHMARK_MODEL}: {path} is the benchmark app (.apk); take the program: {NIGHTLY}"
        )
    if head[:4] != b"\x7fELF" or len(head) < 20:
        raise MissingToolError(f"{BENCHMARK_MODEL}: {path} is no Android program; get one from {NIGHTLY}")
    machine = int.from_bytes(head[18:20], "little")
    return _MACHINES.get(machine, f"machine {machine}")


def check_architecture(tool: BenchmarkModel, uri: str, abis: Sequence[str]) -> None:
    """Raises MissingToolError where the phone does not run what the program is compiled for."""
    if tool.abi is None or not abis or tool.abi in abis:
        return
    right = next((name for abi, name in _NAMES.items() if abi in abis), abis[0])
    raise MissingToolError(
        f"{uri}: {tool.path} is compiled for {tool.abi}, the phone runs {', '.join(abis)}: take LiteRT's "
        f"{right}_benchmark_model"
    )


def delegate_files() -> tuple[list[Path], str] | None:
    """A vendor's delegate: its library first, then what it needs beside it; and its options.

    The environment names the library, or a folder with one `*elegate*.so` and the libraries that it loads.
    None where it names nothing. Raises MissingToolError.
    """
    named = os.environ.get(EXTERNAL_DELEGATE)
    if not named:
        return None
    options, path = os.environ.get(EXTERNAL_OPTIONS, ""), Path(named).expanduser()
    if path.is_file():
        return [path], options
    if not path.is_dir():
        raise MissingToolError(f"{EXTERNAL_DELEGATE}: there is no file or folder {path}")
    files = sorted(file for file in path.iterdir() if file.is_file())
    libraries = [file for file in files if "elegate" in file.name and file.suffix == ".so"]
    if len(libraries) != 1:
        raise MissingToolError(
            f"{EXTERNAL_DELEGATE}: {path} holds {len(libraries)} libraries named *elegate*.so, not one"
        )
    return [libraries[0], *(file for file in files if file != libraries[0])], options
