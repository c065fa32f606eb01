"""A small ARM64 Linux on this x86 machine, for emulated CPUs and as a stand-in for a board.

    python -m edge_resnet.devices.arm_root      (make arm-root)

unpacks Debian's python3, a shell and its tools, and PyPI's numpy, ai-edge-litert and onnxruntime in the
versions that are installed here (arm_build.py, half a minute) to EDGE_RESNET_ARM_ROOT, else `arm-root` in the
user's cache folder. Nothing is installed on this machine, and no rights are needed.

Two ways in:

* `arm_command`: one program of the root, by qemu-user on this machine's files. qemu looks for absolute paths
  in the root first (-L), so that the dynamic linker and libraries are ARM's; all other files are this
  machine's. Needs no rights. A child process that it starts is this machine's again.
* `arm_shell`: a whole shell session, with ARM's programs throughout. The kernel itself starts no ARM programs
  (but where binfmt_misc is set up, which takes root's rights and changes the machine), so each program in the
  root's /usr/bin is a short script whose interpreter is a static shell of this machine, and which runs qemu
  with the real program. In a namespace of its own with /proc and /dev, by chroot; users other than root take
  a user namespace, which some systems forbid. What a session starts is not ended with it: a board does not do
  that either. ARM programs that are copied in need such a script too.

What the emulated CPU has, qemu tells programs by the auxiliary vector. LiteRT and ONNX Runtime also read
/proc/cpuinfo and /sys/devices/system/cpu, which would be this machine's: `cpus/NAME` in the root has them as
they are on that CPU (written from what qemu says it has), beside links to the root. It is what -L names.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edge_resnet.devices.arm_cpus import arm_cpu
from edge_resnet.errors import EdgeResnetError, MissingToolError
from edge_resnet.files import cache_folder

__all__ = [
    "PACKAGES",
    "arm_command",
    "arm_emulator",
    "arm_environment",
    "arm_root",
    "arm_root_folder",
    "arm_shell",
    "main",
    "root_content",
]

MARKER = "edge-resnet-arm-root.json"
# Absolute in the root: PyPI's packages; the real programs; the emulator and the static shell.
PACKAGES = "/opt/edge-resnet/python"
PROGRAMS = "/opt/edge-resnet/programs"
EMULATOR = "/opt/edge-resnet/emulator"
PYTHON = "python3.11"
_FORMAT = 1
_RUNTIMES = ("numpy", "ai-edge-litert", "onnxruntime")
# Where chroot is, which is not on every user's path.
_ADMIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INSTALL = "apt-get install qemu-user-static (Debian, Ubuntu)"


def arm_root_folder() -> Path:
    """Where the root is, or will be."""
    own = os.environ.get("EDGE_RESNET_ARM_ROOT")
    return Path(own).absolute() if own else cache_folder().absolute() / "arm-root"


def arm_root() -> Path:
    """The complete root. Raises MissingToolError where there is none, or it has other runtimes than we."""
    root = arm_root_folder()
    if not root.is_dir():
        raise MissingToolError(
            f"{root}: there is no ARM64 root to emulate; `make arm-root` builds it (1 minute)"
        )
    content, wanted = root_content(root), installed_runtimes()
    if content is None:
        raise MissingToolError(
            f"{root}: not an ARM64 root of this version; `make arm-root` builds it (1 minute)"
        )
    for name, here in wanted.items():
        if content["packages"].get(name) != here:
            there = content["packages"].get(name, "none")
            raise MissingToolError(
                f"{root}: has {name} {there}, here is {here}; `make arm-root` builds it anew"
            )
    return root


def root_content(root: Path) -> dict[str, dict[str, str]] | None:
    """The versions in a complete root: "packages" of PyPI, "debian" packages. None: it is not one."""
    try:
        content = json.loads((root / MARKER).read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            return None
        return {part: dict(content[part]) for part in ("packages", "debian")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def marker_text(packages: Mapping[str, str], debian: Mapping[str, str]) -> str:
    content = {"format": _FORMAT, "packages": dict(packages), "debian": dict(debian)}
    return json.dumps(content, indent=1) + "\n"


def installed_runtimes() -> dict[str, str]:
    """What the root is to hold: versions by PyPI's names."""
    try:
        return {name: version(name) for name in _RUNTIMES}
    except PackageNotFoundError as error:
        raise MissingToolError(f"{error.name} is not installed: pip install {error.name}") from error


def arm_emulator() -> str:
    """The path of qemu's program for ARM64."""
    found = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if found is None:
        raise MissingToolError(f"qemu-aarch64 is not installed: {_INSTALL}")
    return found


def arm_environment(root: Path) -> dict[str, str]:
    """What the root's Python needs to find its library and packages."""
    return {
        "PYTHONHOME": f"{root}/usr",
        "PYTHONPATH": f"{root}{PACKAGES}",
        "PYTHONNOUSERSITE": "1",
        # The root is complete with its compiled modules; it is not to change.
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def arm_command(
    root: Path,
    cpu: str,
    argv: Sequence[str],
    environment: Mapping[str, str] | None = None,
    emulator: Sequence[str] = (),
) -> list[str]:
    """A command line on this machine that runs a program of the root (argv[0]: its name there).

    Its other arguments are paths of this machine. `environment`: beside ours (see arm_environment) and this
    process's.
    `emulator`: qemu's path and more options, where they are not the usual ones.
    Raises InputError for an unknown CPU, MissingToolError.
    """
    model = arm_cpu(cpu).model
    view = _view(root, cpu)
    variables = [f"{key}={value}" for key, value in {**arm_environment(root), **(environment or {})}.items()]
    program = f"{root}{PROGRAMS}/{argv[0]}"
    started = [*(emulator or [arm_emulator()]), "-cpu", model, "-L", str(view), program, *argv[1:]]
    return ["env", *variables, *started]


def arm_shell(
    root: Path,
    cpu: str,
    command_line: str,
    environment: Mapping[str, str] | None = None,
    home: Path | None = None,
) -> list[str]:
    """A command line on this machine that runs `sh -c command_line` in the root, as root, in /root.

    `environment`: all of it but PATH, HOME, USER and TMPDIR. `home`: a folder of this machine that is /root
    and (its `.tmp`) /tmp there, so that a board has files of its own. Without it both are the root's.
    Raises InputError for an unknown CPU, MissingToolError.
    """
    arm_cpu(cpu)
    _view(root, cpu)
    for tool in ("unshare", "chroot"):
        if shutil.which(tool, path=_ADMIN_PATH) is None:
            raise MissingToolError(f"{tool} is not installed: apt-get install util-linux coreutils")
    variables = {
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME": "/root",
        "USER": "root",
        "TMPDIR": "/tmp",
        **(environment or {}),
        "EDGE_RESNET_ARM_CPU": cpu,
    }
    binds = [("/proc", "/proc"), ("/dev", "/dev")]
    if home is not None:
        (home / ".tmp").mkdir(mode=0o1777, parents=True, exist_ok=True)
        binds += [(str(home.absolute()), "/root"), (str(home.absolute() / ".tmp"), "/tmp")]
    # Sources and places are arguments: no path is ever part of the script.
    mounts = " && ".join(f'mount --rbind "${2 * i + 1}" "${2 * i + 2}"' for i in range(len(binds)))
    script = f'{mounts} && shift {2 * len(binds)} && exec chroot "$@"'
    places = [text for source, place in binds for text in (source, f"{root}{place}")]
    own = [] if os.geteuid() == 0 else ["--map-root-user"]
    settings = [f"{key}={value}" for key, value in variables.items()]
    inside = [str(root), f"{EMULATOR}/env", "-i", *settings, f"{EMULATOR}/enter", command_line]
    return [
        "env", f"PATH={_ADMIN_PATH}", "unshare", "--mount", *own, "sh", "-c", script, "sh", *places, *inside,
    ]  # fmt: skip


def _view(root: Path, cpu: str) -> Path:
    view = root / "cpus" / cpu
    if not view.is_dir():
        raise MissingToolError(
            f"{root}: has no {cpu}, which this machine's qemu did not know when it was built; `make arm-root`"
        )
    return view


def main() -> int:
    from edge_resnet.devices.arm_build import build_arm_root

    if len(sys.argv) > 1:
        print("usage: python -m edge_resnet.devices.arm_root", file=sys.stderr)
        return 2
    try:
        try:
            print(f"{arm_root()}: is complete")
        except MissingToolError:
            print(f"{build_arm_root(arm_root_folder())}: built")
    except EdgeResnetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; nothing is left of it", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
