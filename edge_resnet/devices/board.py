"""What serves us on a board: a program that runs there and needs the standard library alone (Python 3.9).

    board.py serve FOLDER SESSION PYTHON       for as long as the connection stands
    board.py work SESSION WORKER.py ARGUMENTS  one worker, which ends when nobody is left to ask it

`serve` greets with a JSON line of what the machine is, then answers JSON lines with JSON lines:

    {"do": "have", "name", "sha256"}               {"have": bool}
    {"do": "put", "name", "sha256", "size"} and so many bytes   {}
    {"do": "run", "arguments": [...], "timeout": s}   {"code": number or null, "output": its end}
    {"do": "keep", "name", "to"} renames, and dates as used now; {"do": "remove", "name"}, {"do": "ping"}   {}
    what the system refuses     {"error": "...", "errno": n, "free": bytes left there}

Names are relative to FOLDER, which holds `files/` and `environments/`, kept for the next session until they
were not used for a month, and `sessions/SESSION`, removed at the end of the connection, however it ends, with
all that still runs. An empty line now and then lets the board find out that its other end is gone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import runpy
import select
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# A session's own files outlive it only where the power was cut.
_KEPT_DAYS, _ABANDONED_DAYS = 30, 1
_PART = r"(?P<part>\.part-[0-9a-f]{16})?"
_OURS = {
    "files": (re.compile(rf"[0-9a-f]{{64}}(\.[a-z]+)?{_PART}"), _KEPT_DAYS),
    "environments": (re.compile(rf"(ai-edge-litert|onnxruntime)-[0-9.]+-[a-z0-9-]+{_PART}"), _KEPT_DAYS),
    "sessions": (re.compile(rf"[0-9a-f]{{16}}{_PART}"), _ABANDONED_DAYS),
}
_HEARTBEAT_S = 60
# How long workers have to end by themselves.
_GRACE_S = 3.0
_CHUNK = 1 << 20
_OUTPUT = 20_000
_GONE = getattr(select, "POLLRDHUP", 0) | select.POLLHUP


def main() -> None:
    # ONNX Runtime reports on its use, from a database in the user's cache folder: nobody asked for that here.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    if sys.argv[1] == "serve":
        Server(Path(sys.argv[2]).expanduser(), *sys.argv[3:]).serve()
    else:
        _work(sys.argv[3:])


def _work(arguments: list[str]) -> None:
    # Not only at the next read: a long inference would still run when the next session measures.
    _when_gone(lambda: os._exit(4))
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")


def _when_gone(act: Any, beat: Any = lambda: None) -> None:
    """Calls `act` once the other end of standard input is closed, with or without something left to read."""

    def watch() -> None:
        poll = select.poll()
        poll.register(0, _GONE)
        while not poll.poll(_HEARTBEAT_S * 1000):
            beat()
        act()

    threading.Thread(target=watch, daemon=True).start()


class Server:
    """`folder`: ours. `session`: a name that no other session has. `python`: what the shell called to get
    here, which need not be sys.executable where a script starts it.
    """

    def __init__(self, folder: Path, session: str, python: str) -> None:
        self._folder, self._session, self._python = folder, session, python
        self._own = folder / "sessions" / session
        self._child: subprocess.Popen[bytes] | None = None
        self._writing, self._ending = threading.Lock(), threading.RLock()
        # What else writes to standard output, a library or a child, must not come between the answers.
        self._answers = os.dup(1)
        os.dup2(2, 1)

    def serve(self) -> None:
        os.umask(0o077)
        try:
            for folder in (self._own, self._folder / "files", self._folder / "environments"):
                folder.mkdir(parents=True, exist_ok=True)
            if self._folder.stat().st_uid not in (os.getuid(), 0):
                # Its owner could have us run anything.
                raise PermissionError(errno.EPERM, "it belongs to another user")
            self._tidy()
        except OSError as error:
            shutil.rmtree(self._own, ignore_errors=True)
            self._answer(self._refusal(error))
            return
        _when_gone(self._end, self._beat)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda *_: self._end())
        self._answer({"serving": str(self._folder.resolve()), "executable": self._python, **_facts()})
        for line in sys.stdin.buffer:
            request = json.loads(line)
            try:
                answer = getattr(self, "_do_" + request.pop("do"))(**request)
            except OSError as error:
                answer = self._refusal(error)
            self._answer(answer)
        self._end()

    def _answer(self, answer: dict[str, Any]) -> None:
        with self._writing:
            _write(self._answers, json.dumps(answer).encode() + b"\n")

    def _beat(self) -> None:
        with self._writing, contextlib.suppress(OSError):
            os.write(self._answers, b"\n")
            os.utime(self._own)  # not abandoned

    def _refusal(self, error: OSError) -> dict[str, Any]:
        try:
            left = os.statvfs(self._folder if self._folder.exists() else self._folder.anchor or ".")
            free = left.f_bavail * left.f_frsize
        except OSError:
            free = None
        return {"error": str(error), "errno": error.errno, "free": free}

    def _do_ping(self) -> dict[str, Any]:
        return {}

    def _do_have(self, name: str, sha256: str) -> dict[str, Any]:
        path = self._folder / name
        digest = hashlib.sha256()
        try:
            with path.open("rb") as file:
                for chunk in iter(lambda: file.read(_CHUNK), b""):
                    digest.update(chunk)
            os.utime(path)
        except FileNotFoundError:
            return {"have": False}
        return {"have": digest.hexdigest() == sha256}

    def _do_put(self, name: str, sha256: str, size: int) -> dict[str, Any]:
        path = self._folder / name
        part = path.with_name(path.name + ".part-" + self._session)
        digest, left, trouble = hashlib.sha256(), size, None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                while left:
                    chunk = self._received(left)
                    left -= len(chunk)
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            if digest.hexdigest() != sha256:
                raise OSError(None, "the file that arrived is not the one that was sent")
            os.replace(part, path)
        except OSError as error:
            trouble = self._refusal(error)
            with contextlib.suppress(OSError):
                part.unlink()
        while left:  # the rest is on its way, and what follows it is the next request
            left -= len(self._received(left))
        return trouble or {}

    def _received(self, most: int) -> bytes:
        chunk = sys.stdin.buffer.read(min(most, _CHUNK))
        if not chunk:
            self._end()
        return chunk

    def _do_run(self, arguments: list[str], timeout: float) -> dict[str, Any]:
        nothing, pipe, both = subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT
        try:
            with self._ending:  # the connection may break at any time, and nothing starts after the end
                child = self._child = subprocess.Popen(
                    arguments, stdin=nothing, stdout=pipe, stderr=both, start_new_session=True, cwd=self._own
                )
        except OSError as error:  # no such program, as a shell says it
            return {"code": 127, "output": str(error)}
        with child:
            try:
                output, code = child.communicate(timeout=timeout)[0], child.returncode
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                output, code = child.communicate()[0], None
            finally:
                self._child = None
        return {"code": code, "output": output.decode(errors="replace")[-_OUTPUT:]}

    def _do_keep(self, name: str, to: str) -> dict[str, Any]:
        if name != to:
            os.replace(self._folder / name, self._folder / to)
        os.utime(self._folder / to)
        return {}

    def _do_remove(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        return {}

    def _tidy(self) -> None:
        """What was not used for long goes: a board's card is small. The folder may be one of the user's."""
        for parent, (ours, days) in _OURS.items():
            for path in (self._folder / parent).iterdir():
                found = ours.fullmatch(path.name)
                with contextlib.suppress(OSError):
                    unused = time.time() - path.stat().st_mtime
                    if found and unused > (_ABANDONED_DAYS if found["part"] else days) * 86400:
                        self._do_remove(str(path))

    def _end(self) -> None:
        """Ends this process, and with it all that is the session's."""
        with (
            self._ending
        ):  # never left: whoever comes second has nothing to do (a signal may come in between)
            child = self._child
            if child is not None:
                with contextlib.suppress(OSError):
                    os.killpg(child.pid, signal.SIGKILL)
            give_up = time.monotonic() + _GRACE_S
            while any(self._workers()) and time.monotonic() < give_up:
                time.sleep(0.05)
            for pid in self._workers():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            shutil.rmtree(self._own, ignore_errors=True)
            for path in self._folder.glob("*/*.part-" + self._session):
                with contextlib.suppress(OSError):
                    self._do_remove(str(path))
            os._exit(0)

    def _workers(self) -> Iterator[int]:
        """Processes with this session's `work` in their command line."""
        mark = b"work\0" + self._session.encode()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes() and int(path.parent.name) != os.getpid():
                    yield int(path.parent.name)


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _facts() -> dict[str, Any]:
    """What we shall say of the machine, and what decides which packages it takes."""
    release = dict(line.split("=", 1) for line in _text("/etc/os-release").splitlines() if "=" in line)
    affinity = getattr(os, "sched_getaffinity", None)
    memory = [line.split()[1] for line in _text("/proc/meminfo").splitlines() if line.startswith("MemTotal:")]
    return {
        "python": platform.python_version(),
        "tag": sys.implementation.cache_tag,
        "platform": sysconfig.get_platform(),
        "bits": 8 * struct.calcsize("P"),
        "libc": platform.libc_ver(),
        "cores": len(affinity(0)) if affinity else os.cpu_count() or 1,
        "machine": platform.machine(),
        "cpuinfo": _text("/proc/cpuinfo"),
        "model": _text("/proc/device-tree/model"),
        "os": release.get("PRETTY_NAME", platform.system()).strip('"'),
        "kernel": platform.release(),
        "memory_bytes": int(memory[0]) * 1024 if memory else None,
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        "boot": _text("/proc/sys/kernel/random/boot_id"),
    }


if __name__ == "__main__":
    main()
