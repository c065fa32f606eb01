"""How many instructions an inference takes on an emulated CPU, by a plugin of qemu (instruction_counts.c)."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from edge_resnet.benchmark.process import WORKER
from edge_resnet.errors import InputError, MissingToolError
from edge_resnet.files import atomic_write, cache_folder

__all__ = ["ALL", "Counted", "count_instructions", "emulator_version", "plugin_emulator"]

ALL = "instructions"
# In the plugin's order: all; ARM's dot products and matrix products; x86's multiplication that saturates.
_KINDS = (ALL, "sdot", "udot", "usdot", "smmla", "ummla", "usmmla", "pmaddubsw")
_SOURCE = Path(__file__).with_suffix(".c")
_PROGRAM = Path(__file__).with_name("marked_inferences.py")
_MARK = 199  # as in marked_inferences.py
_INFERENCES = 8
_COMPILE_S = 60.0
_TELL_S = 30.0
_NO_COUNTS = "instructions are not counted"


@dataclass(frozen=True)
class Counted:
    """`figures`: of one inference, with its input copied in and its output copied out: "instructions" and,
    where there are any, "sdot_instructions" and so on. `spread`: how far the inferences were apart in all
    instructions, as a share.
    """

    figures: dict[str, int]
    spread: float
    version: str


def count_instructions(
    command: Callable[[Sequence[str], Sequence[str]], list[str]],
    architecture: str,
    artifact: Path,
    runtime: str,
    timeout: float,
) -> Counted:
    """Runs the artifact in one emulated process.

    `command(emulator, arguments)`: a command line that runs Python with `arguments` there. `architecture`: as
    qemu names it. `timeout` in seconds. The smallest of several counts is taken: now and then a runtime or
    Python allocates memory. Raises MissingToolError, with what to install, or why the artifact fails.
    """
    program, plugin = plugin_emulator(architecture), _plugin(architecture)
    with tempfile.TemporaryDirectory(prefix="edge-resnet-") as folder:
        out = Path(folder) / "counts"
        options = f"{_escaped(plugin)},out={_escaped(out)},mark={_MARK}"
        arguments = [str(_PROGRAM), str(WORKER), str(artifact), runtime, str(_INFERENCES)]
        started = command([program, "-plugin", options], arguments)
        said = _run(started, timeout, artifact.name)
        try:
            rows = [[int(word) for word in line.split()] for line in out.read_text().splitlines()]
        except OSError:
            rows = []
    if len(rows) != _INFERENCES + 3:
        raise MissingToolError(f"{_NO_COUNTS}: {program} ran without the plugin")
    steps = [[after - before for before, after in zip(*pair, strict=True)] for pair in pairwise(rows)]
    mark, inferences = steps[1], steps[2:]
    figures = {}
    for index, name in enumerate(_KINDS):
        count = min(step[index] for step in inferences) - mark[index]
        if index == 0 or count:
            figures[name if index == 0 else f"{name}_instructions"] = count
    totals = [step[0] for step in inferences]
    return Counted(figures, max(totals) / min(totals) - 1, str(said["version"]))


def plugin_emulator(architecture: str) -> str:
    """The path of a qemu that takes plugins, which statically linked ones do not."""
    for name in (f"qemu-{architecture}", f"qemu-{architecture}-static"):
        found = shutil.which(name)
        if found is not None and "-plugin" in _said(found, "-h"):
            return found
    raise MissingToolError(
        f"{_NO_COUNTS}: no qemu-{architecture} that takes plugins: apt-get install qemu-user (Debian, Ubuntu)"
    )


@cache
def emulator_version(program: str) -> tuple[int, ...]:
    """(7, 2, 22), for one. Raises MissingToolError where it does not say."""
    found = re.search(r"version (\d+(?:\.\d+)+)", _said(program, "--version"))
    if found is None:
        raise MissingToolError(f"{program}: does not say its version; is it qemu's?")
    return tuple(int(part) for part in found[1].split("."))


@cache
def _said(program: str, option: str) -> str:
    try:
        done = subprocess.run(
            [program, option], capture_output=True, text=True, errors="replace", timeout=_TELL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def _plugin(architecture: str) -> Path:
    """The compiled plugin, which is made once and kept in the user's cache folder."""
    source = _SOURCE.read_bytes()
    # Of the two versions of qemu's interface that the source knows; 9.0 ended support of the first.
    interface = "1" if emulator_version(plugin_emulator(architecture)) < (9,) else "2"
    digest = hashlib.sha256(source + interface.encode()).hexdigest()[:16]
    path = cache_folder().absolute() / "plugins" / f"instruction-counts-{digest}.so"
    if path.exists():
        return path
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise MissingToolError(f"{_NO_COUNTS}: no C compiler for the plugin: apt-get install gcc libc6-dev")
    with tempfile.TemporaryDirectory(prefix="edge-resnet-") as folder:
        built = Path(folder) / "plugin.so"
        options = ["-O2", "-fPIC", "-shared", "-fvisibility=hidden", f"-DQEMU_PLUGIN_VERSION={interface}"]
        try:
            done = subprocess.run(
                [compiler, *options, "-o", str(built), str(_SOURCE)],
                capture_output=True, text=True, errors="replace", timeout=_COMPILE_S, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MissingToolError(f"{_NO_COUNTS}: {compiler} cannot be run: {error}") from error
        if done.returncode:
            raise MissingToolError(
                f"{_NO_COUNTS}: {compiler} cannot build the plugin: {_last_line(done.stderr)}"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path.parent}: cannot be made: {error.strerror or error}") from error
        atomic_write(path, built.read_bytes())
    return path


def _run(command: Sequence[str], timeout: float, name: str) -> dict[str, object]:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise MissingToolError(f"{_NO_COUNTS}: {name} took longer than {timeout:g} s") from None
    try:
        said = dict(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        last = _last_line(done.stderr)
        raise MissingToolError(f"{_NO_COUNTS}: {name}: ended with code {done.returncode}: {last}") from None
    if "error" in said:
        raise MissingToolError(f"{_NO_COUNTS}: {name}: {said['error']}")
    return said


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it says nothing")
