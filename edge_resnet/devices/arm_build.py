"""Builds the ARM64 root of arm_root.py: Debian's packages by apt-get, PyPI's by pip, only unpacked.

Configuring would run every package's scripts under emulation, which takes minutes; a Python and a shell
need none of them.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_resnet.devices.arm_cpus import ARM_CPUS, ASK_FEATURES, features, write_cpu_files
from edge_resnet.devices.arm_root import (
    EMULATOR,
    MARKER,
    PACKAGES,
    PROGRAMS,
    PYTHON,
    arm_command,
    arm_emulator,
    installed_runtimes,
    marker_text,
)
from edge_resnet.errors import InputError, MissingToolError
from edge_resnet.files import replace_directory

__all__ = ["build_arm_root"]

_SUITE = "bookworm"  # its Python is 3.11
_MIRROR = "http://deb.debian.org/debian"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_DEBIAN = ("python3", "python3-venv", "libgomp1", "libstdc++6")
_TOOLS = ("dash", "coreutils", "tar", "gzip", "grep", "sed", "findutils")
# This machine's architecture: what the scripts of the root are interpreted by.
_STATIC_SHELL = "busybox-static:amd64"
# By that shell itself: procps cannot read /proc under qemu, and the others need packages to be configured.
_BY_SHELL = ("ps", "pgrep", "pkill", "free", "uptime", "which", "awk", "hostname")
_PLATFORMS = (
    "manylinux_2_28_aarch64",
    "manylinux_2_27_aarch64",
    "manylinux_2_17_aarch64",
    "manylinux2014_aarch64",
)
_DOWNLOAD_S = 900.0
_LOCAL_S = 300.0
_FOLDERS = ("bin", "sbin", "lib")
_TRY = "import numpy, onnxruntime, ai_edge_litert.interpreter as _; print(numpy.ones(3).sum())"
# $0 is the script's path, as the caller gave it: a virtual environment's python finds itself by it.
_WRAPPER = """#!{emulator}/sh
cpu="${{EDGE_RESNET_ARM_CPU:-cortex-a72}}"
read -r model < "/cpus/$cpu/model"
exec {emulator}/qemu -cpu "$model" -L "/cpus/$cpu" -0 "$0" {programs}/{name} "$@"
"""
_ENTER = """#!{emulator}/sh
cd /root && exec /bin/sh -c "$1"
"""


def build_arm_root(root: Path) -> Path:
    """Builds it beside `root` and gives it that name once it runs; what stood there is replaced.

    Says on standard error what it does. Raises MissingToolError for what this machine lacks (a tool, the
    network) with the command that adds it, InputError where the place cannot be written or is something
    else's.
    """
    if os.path.lexists(root) and not (root / MARKER).exists():
        raise InputError(
            f"{root}: is not an ARM64 root, and is not replaced; remove it, or set EDGE_RESNET_ARM_ROOT"
        )
    qemu, packages = _tools(), installed_runtimes()
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as name:
            new = Path(name) / "root"
            debian = _Build(Path(name), new, qemu).build(packages)
            (new / MARKER).write_text(marker_text(packages, debian), encoding="utf-8")
            replace_directory(new, root)
    except OSError as error:
        raise InputError(f"{root}: cannot be built there: {error.strerror or error}") from error
    return root


def _tools() -> str:
    """Path of a static qemu. Raises MissingToolError before anything is done."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise MissingToolError(
            "the ARM64 root is for emulation on x86-64 Linux; on ARM, `--device local` runs the same kernels"
        )
    for tool, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg"), ("tar", "tar")):
        if shutil.which(tool) is None:
            raise MissingToolError(
                f"{tool} (package {package}) is needed to build the ARM64 root: use a Debian or an Ubuntu "
                "(a container will do)"
            )
    if not _KEYRING.exists():
        raise MissingToolError(
            f"{_KEYRING}, which Debian's packages are checked with, is missing: "
            "apt-get install debian-archive-keyring"
        )
    return arm_emulator()


class _Build:
    def __init__(self, work: Path, root: Path, qemu: str) -> None:
        self._work, self._root, self._qemu = work, root, qemu
        self._begun = time.monotonic()

    def build(self, packages: Mapping[str, str]) -> dict[str, str]:
        """All of it; the Debian packages' versions."""
        self._say(f"Debian {_SUITE}'s packages for arm64, by apt-get")
        debs = self._download_debian()
        self._say(f"unpacking {len(debs)} packages")
        debian = self._unpack(debs)
        self._say(f"{', '.join(f'{name} {number}' for name, number in packages.items())} for arm64, by pip")
        self._install_packages(packages)
        self._say("making its programs run here")
        self._wrap_programs()
        self._say("asking the emulated CPUs what they have")
        self._describe_cpus()
        self._say("trying it")
        for cpu in ("cortex-a53", "armv9-i8mm"):
            if (self._root / "cpus" / cpu).is_dir():
                self._inside(cpu, _TRY)
        self._say("done")
        return debian

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._begun:5.0f} s  {text}", file=sys.stderr, flush=True)

    def _download_debian(self) -> list[Path]:
        """By apt-get with lists and a state of its own: it resolves, and checks Debian's signatures."""
        apt = self._work / "apt"
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (apt / folder).mkdir(parents=True)
        (apt / "status").touch()
        (apt / "sources.list").write_text(
            f"deb [arch=arm64,amd64 signed-by={_KEYRING}] {_MIRROR} {_SUITE} main\n"
        )
        # What the system sets for proxies stays: this file is read after its own.
        (apt / "apt.conf").write_text(
            f'Dir::State "{apt}/state"; Dir::State::status "{apt}/status"; Dir::Cache "{apt}/cache";\n'
            f'Dir::Etc::sourcelist "{apt}/sources.list"; Dir::Etc::sourceparts "/dev/null";\n'
            'Dir::Etc::preferences "/dev/null"; Dir::Etc::preferencesparts "/dev/null";\n'
            'APT::Architecture "arm64"; APT::Architectures { "arm64"; "amd64"; };\n'
            'APT::Install-Recommends "false"; APT::Sandbox::User ""; Acquire::Languages "none";\n'
            'Acquire::Retries "3"; Acquire::http::Timeout "60";\n'
            # Hooks of the system, which are meant for its own packages.
            "#clear DPkg::Post-Invoke; #clear APT::Update::Post-Invoke;\n"
            "#clear APT::Update::Post-Invoke-Success;\n"
        )
        options = ["-q", "-c", str(apt / "apt.conf")]
        network = f"the network, or {_MIRROR}, is not there, or a proxy is not set"
        _run(["apt-get", *options, "-o", "APT::Update::Error-Mode=any", "update"], _DOWNLOAD_S, network)
        wanted = [*_DEBIAN, *_TOOLS, _STATIC_SHELL]
        _run(["apt-get", *options, "-y", "--download-only", "install", *wanted], _DOWNLOAD_S, network)
        return sorted((apt / "cache" / "archives").glob("*.deb"))

    def _unpack(self, debs: Sequence[Path]) -> dict[str, str]:
        for name in _FOLDERS:
            (self._root / "usr" / name).mkdir(parents=True)
            (self._root / name).symlink_to(f"usr/{name}")
        for name in ("proc", "dev", "sys", "tmp", "root", "etc", EMULATOR[1:], PROGRAMS[1:], PACKAGES[1:]):
            (self._root / name).mkdir(parents=True)
        (self._root / "tmp").chmod(0o1777)
        versions = {}
        for deb in debs:
            name, number, architecture = deb.stem.split("_")
            foreign = architecture == "amd64"
            if foreign:
                place = self._work / "shell"
                place.mkdir()
            else:
                place = self._root
                versions[name] = number.replace("%3a", ":")
            _unpack_deb(deb, place)
        for folder in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var"):
            shutil.rmtree(self._root / folder, ignore_errors=True)
        (self._root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (self._root / "etc" / "group").write_text("root:x:0:\n")
        return versions

    def _install_packages(self, packages: Mapping[str, str]) -> None:
        platforms = [part for platform in _PLATFORMS for part in ("--platform", platform)]
        wanted = [f"{name}=={number}" for name, number in packages.items()]
        command = [
            sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile",
            "--target", str(self._root / PACKAGES[1:]), "--only-binary=:all:", "--implementation", "cp",
            "--python-version", "3.11", *platforms, *wanted,
        ]  # fmt: skip
        _run(
            command,
            _DOWNLOAD_S,
            "PyPI cannot be reached, or has no such wheels for Linux on ARM64 and Python 3.11",
        )

    def _wrap_programs(self) -> None:
        emulator = self._root / EMULATOR[1:]
        shutil.copyfile(self._qemu, emulator / "qemu")
        shutil.copyfile(self._work / "shell" / "bin" / "busybox", emulator / "busybox")
        for name in ("sh", "env"):
            (emulator / name).symlink_to("busybox")
        (emulator / "enter").write_text(_ENTER.format(emulator=EMULATOR))
        for name in ("qemu", "busybox", "enter"):
            (emulator / name).chmod(0o755)
        for name in _BY_SHELL:
            (self._root / "usr" / "bin" / name).unlink(missing_ok=True)
            (self._root / "usr" / "bin" / name).symlink_to(f"{EMULATOR}/busybox")
        for path in [path for name in ("bin", "sbin") for path in (self._root / "usr" / name).iterdir()]:
            if path.is_symlink() or not path.is_file() or not os.access(path, os.X_OK):
                continue
            with path.open("rb") as file:
                if file.read(4) != b"\x7fELF":
                    continue
            os.replace(path, self._root / PROGRAMS[1:] / path.name)
            path.write_text(_WRAPPER.format(emulator=EMULATOR, programs=PROGRAMS, name=path.name))
            path.chmod(0o755)

    def _describe_cpus(self) -> None:
        known = subprocess.run(
            [self._qemu, "-cpu", "help"], capture_output=True, text=True, timeout=60, check=False
        )
        models = known.stdout.split()
        for name, cpu in ARM_CPUS.items():
            if cpu.model.partition(",")[0] not in models:
                continue
            view = self._root / "cpus" / name
            view.mkdir(parents=True)
            (view / "model").write_text(f"{cpu.model}\n")
            for folder in ("usr", "etc", *_FOLDERS):
                (view / folder).symlink_to(f"../../{folder}")
            write_cpu_files(view, cpu.part, features(self._inside(name, ASK_FEATURES)))

    def _inside(self, cpu: str, program: str) -> str:
        """What a Python program prints on that CPU. Its compiled modules stay in the root."""
        written = {"PYTHONDONTWRITEBYTECODE": ""}
        command = arm_command(self._root, cpu, [PYTHON, "-c", program], written, [self._qemu])
        return _run(command, _LOCAL_S, f"the ARM64 root does not run on {cpu}")


def _unpack_deb(deb: Path, place: Path) -> None:
    """Not `dpkg-deb -x`, which puts a folder in the place of the link from /lib to usr/lib."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as content:
        command = ["tar", "--keep-directory-symlink", "--no-same-owner", "-C", str(place), "-xf", "-"]
        done = subprocess.run(
            command, stdin=content.stdout, capture_output=True, timeout=_LOCAL_S, check=False
        )
    if done.returncode or content.returncode:
        raise MissingToolError(
            f"{deb.name}: cannot be unpacked: {_last_line(done.stderr.decode(errors='replace'))}"
        )


def _run(command: Sequence[str], timeout: float, hint: str) -> str:
    """Standard output. Raises MissingToolError with what it said last, and `hint`."""
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
        raise MissingToolError(f"{hint}: {Path(command[0]).name} took longer than {timeout:.0f} s") from None
    if done.returncode:
        raise MissingToolError(f"{hint}: {_last_line(done.stderr + done.stdout)}")
    return done.stdout


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "ERROR"))]
    return (errors or lines or ["it says nothing"])[-1]
