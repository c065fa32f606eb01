"""A Python on a board that can import a runtime: its own, or a virtual environment in our folder there.

In this order, the version being the one of this machine:
1. the board's own Python, where it has the version;
2. an environment that an earlier session made;
3. a new one, by the board's pip;
4. the same with wheels sent from here, where the board has no internet;
5. as 3 and 4, with the newest version that has a wheel for the board, and a note;
6. the board's own Python with another version, and a note.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edge_resnet.devices.ssh_connection import Connection
from edge_resnet.devices.ssh_faults import full
from edge_resnet.errors import MissingToolError

__all__ = ["Environment", "download", "environment", "wheel_platforms"]

# The worker's name of the runtime: its package, and the module that must be importable.
_PACKAGES = {
    "litert": ("ai-edge-litert", "ai_edge_litert.interpreter"),
    "onnxruntime": ("onnxruntime", "onnxruntime"),
}
_IMPORT = (
    "import importlib, importlib.metadata, sys, numpy\n"
    "module = importlib.import_module(sys.argv[2])\n"
    "print('version', getattr(module, '__version__', None) or importlib.metadata.version(sys.argv[1]))"
)
# Seconds. A Raspberry Pi takes a minute or two to install a runtime.
_IMPORTING, _MAKING, _INSTALLING, _DOWNLOADING = 120, 300, 900, 600
_PIP = ["-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "1", "--timeout", "20"]
_NO_WHEEL = ("No matching distribution", "Could not find a version")
# pip says that there is no matching distribution in this case as well.
_NO_NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|ConnectionError|NameResolutionError|Max retries exceeded|ProxyError|"
    r"Temporary failure in name resolution|Network is unreachable|Could not fetch URL|Read timed out|"
    r"SSLError|TLS CA certificate"  # no certificates, or a board without a clock that lives in 1970
)
# Wheels for Linux name the oldest C library that they run with: 2.17 is the oldest of today's.
_OLDEST_GLIBC = 17


@dataclass(frozen=True)
class Environment:
    """`python`: its path there. `notes`: where it is not what this machine has."""

    python: str
    notes: tuple[str, ...] = ()


class _NoNetworkError(Exception):
    pass


class _NoWheelError(Exception):
    pass


def environment(connection: Connection, runtime: str) -> Environment:
    """Raises MissingToolError where the runtime cannot be had there; DeviceLostError as a connection does."""
    package, _ = _PACKAGES[runtime]
    wanted = version(package)
    own = str(connection.facts["executable"])
    there = _version(connection, own, runtime)
    if there == wanted:
        return Environment(own)
    name = f"environments/{package}-{wanted}-{connection.facts['tag']}"
    python = f"{connection.folder}/{name}/bin/python"
    installed = _version(connection, python, runtime)
    if installed is None:
        try:
            _make(connection, name, package, wanted)
            installed = _version(connection, python, runtime)
            if installed is None:
                raise MissingToolError(f"{package}: it was installed there and cannot be imported")
        except MissingToolError as error:
            if there is None or connection.lost() is not None:
                raise
            return Environment(own, (f"{package} {there} of the board, not {wanted} as here: {error}",))
    connection.ask("keep", {"name": name, "to": name})
    if installed == wanted:
        return Environment(python)
    return Environment(
        python, (f"{package} {installed}, not {wanted} as here, which has no wheel for the board",)
    )


def _version(connection: Connection, python: str, runtime: str) -> str | None:
    """Of the package there; None where that Python is not there or cannot import it."""
    code, output = connection.run([python, "-c", _IMPORT, *_PACKAGES[runtime]], _IMPORTING)
    found = re.search(r"^version (\S+)$", output, re.MULTILINE)
    return found[1] if code == 0 and found else None


def _make(connection: Connection, name: str, package: str, wanted: str) -> None:
    part = f"{name}.part-{connection.session}"
    python = f"{connection.folder}/{part}/bin/python"
    # In two steps: venv keeps to itself what ensurepip says.
    for command in (
        [str(connection.facts["executable"]), "-m", "venv", "--without-pip", f"{connection.folder}/{part}"],
        [python, "-m", "ensurepip"],
    ):
        code, output = connection.run(command, _MAKING)
        if code != 0:
            _check_space(connection, output)
            minor = ".".join(str(connection.facts["python"]).split(".")[:2])
            raise MissingToolError(
                f"{connection.target.uri}: its Python makes no virtual environment: install venv there "
                f"(Debian: apt install python{minor}-venv), or {package} {wanted} itself; "
                f"it said {_last(output)!r}"
            )
    try:
        _install(connection, python, f"{package}=={wanted}")
    except _NoWheelError:
        try:
            _install(connection, python, package)
        except _NoWheelError as error:
            raise MissingToolError(
                f"{connection.target.uri}: {package} has no wheel for its Python "
                f"{connection.facts['python']} on {connection.facts['machine']}: {error}"
            ) from None
    connection.ask("remove", {"name": name})
    connection.ask("keep", {"name": part, "to": name})


def _install(connection: Connection, python: str, requirement: str) -> None:
    """numpy's version is free: it carries arrays there, and decides no figure."""
    try:
        _pip(
            connection,
            [python, *_PIP, "install", "--no-cache-dir", "--only-binary=:all:", requirement, "numpy"],
        )
    except _NoNetworkError:
        with tempfile.TemporaryDirectory(prefix="edge-resnet-") as folder:
            download(connection.facts, connection.target.uri, requirement, Path(folder))
            sent = [
                connection.upload(path, f"wheels/{path.name}") for path in sorted(Path(folder).glob("*.whl"))
            ]
        _pip(connection, [python, *_PIP, "install", "--no-cache-dir", "--no-index", "--no-deps", *sent])
        connection.ask("remove", {"name": f"sessions/{connection.session}/wheels"})


def _pip(connection: Connection, command: list[str]) -> None:
    code, output = connection.run(command, _INSTALLING)
    if code == 0:
        return
    _check_space(connection, output)
    if _NO_NETWORK.search(output):
        raise _NoNetworkError
    if any(words in output for words in _NO_WHEEL):
        raise _NoWheelError(_last(output))
    why = f"not done after {_INSTALLING} s" if code is None else _last(output)
    raise MissingToolError(f"{connection.target.uri}: pip failed there: {why}")


def _check_space(connection: Connection, output: str) -> None:
    if "No space left" in output or "File too large" in output or "quota exceeded" in output:
        raise full(connection.target.uri, connection.folder)


def download(facts: Mapping[str, Any], uri: str, requirement: str, folder: Path) -> None:
    """Wheels for the board that board.py told `facts` of, fetched by this machine."""
    major, minor = str(facts["python"]).split(".")[:2]
    platforms = wheel_platforms(str(facts["platform"]), int(facts["bits"]), *facts["libc"])
    command = [
        sys.executable, *_PIP, "download", "--quiet", "--only-binary=:all:", "--implementation", "cp",
        "--python-version", f"{major}.{minor}", "--dest", str(folder),
        *(word for tag in (f"cp{major}{minor}", "abi3", "none") for word in ("--abi", tag)),
        *(word for tag in platforms for word in ("--platform", tag)), requirement, "numpy",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_DOWNLOADING, check=False
        )
    except subprocess.TimeoutExpired:
        raise MissingToolError(f"{requirement}: not downloaded within {_DOWNLOADING} s") from None
    output = done.stdout + done.stderr
    if done.returncode == 0:
        return
    if not _NO_NETWORK.search(output) and any(words in output for words in _NO_WHEEL):
        raise _NoWheelError(_last(output))
    raise MissingToolError(
        f"{uri}: it has no internet, and this machine cannot download {requirement} for it: {_last(output)}"
    )


def wheel_platforms(platform: str, bits: int, libc: str, newest: str) -> list[str]:
    """The wheels' platforms that a board takes, best first. `platform` as sysconfig says: linux-aarch64."""
    machine = platform.removeprefix("linux-").replace("-", "_").replace(".", "_")
    if bits == 32:  # a 32-bit system under a 64-bit kernel
        machine = {"aarch64": "armv7l", "x86_64": "i686"}.get(machine, machine)
    if not platform.startswith("linux-"):
        return [machine]
    if libc != "glibc":
        return [f"musllinux_1_{minor}_{machine}" for minor in (2, 1, 0)]
    minors = range(int(newest.split(".")[1]), _OLDEST_GLIBC - 1, -1)
    tags = [f"manylinux_2_{minor}_{machine}" for minor in minors]
    return [*tags, f"manylinux2014_{machine}", f"linux_{machine}"]


def _last(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or [""])[-1][:200]
