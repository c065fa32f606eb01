"""The device's end of adb, in Python: what the real `adb` client talks to where there is no phone.

Speaks adb's wire protocol over TCP (CNXN, AUTH, OPEN, OKAY, WRTE, CLSE), `shell,v2` with exit codes, `sync:`.
Commands run in a folder that stands for the phone: by this machine's shell, or by an ARM64 root's.
Faults are asked for: a full disk, a login that is refused, a connection that breaks when a command is seen.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_VERSION, _MOST = 0x01000001, 1 << 18
_STDOUT, _STDERR, _EXIT = 1, 2, 3
# Over the phone's own folders lie those of `home`.
_PLACES = {
    "/proc/sys/kernel/random/boot_id": "/boot_id",
    "/data/local/tmp": "/data/local/tmp",
    "/sys/": "/sys/",
}

Enter = Callable[[str, Mapping[str, str]], list[str]]


def local_shell(command: str, environment: Mapping[str, str]) -> list[str]:
    return ["env", *(f"{name}={value}" for name, value in environment.items()), "sh", "-c", command]


class AdbDevice:
    """Listens on 127.0.0.1:`port`. `home`: the phone's files here; `inside`: that folder as commands see it.

    `enter` makes the command line that runs a shell command there.
    """

    def __init__(self, home: Path, inside: str | None = None, enter: Enter = local_shell) -> None:
        self.home, self._inside, self._enter = home, inside or str(home), enter
        self.full = False  # no file can be written any more
        self.refuses = False  # never accepts the computer's key
        self.features = "shell_v2,cmd,stat_v2"
        self.breaks: Callable[[str], bool] = lambda command: False
        self.commands: list[str] = []
        self._connections: list[_Connection] = []
        (home / "data/local/tmp").mkdir(parents=True, exist_ok=True)
        self.boot("first")
        self.port = 0
        self.listen()
        self.serial = f"127.0.0.1:{self.port}"

    def boot(self, identity: str) -> None:
        (self.home / "boot_id").write_text(f"{identity}\n")

    def listen(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
        self._listener, self.port = listener, listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def vanish(self) -> None:
        """As if the cable was pulled: what runs there goes on running."""
        # Wakes the thread that waits in accept, which would keep the port.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def environment(self) -> dict[str, str]:
        return {"PATH": f"{self._inside}/bin:/usr/local/bin:/usr/bin:/bin"}

    def start(self, command: str) -> subprocess.Popen[bytes]:
        for place, here in _PLACES.items():
            command = command.replace(place, self._inside + here)
        # A session of its own: a phone's processes do not end with the computer's.
        return subprocess.Popen(
            self._enter(command, self.environment()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = _Connection(self, listener.accept()[0])
                self._connections.append(connection)
                threading.Thread(target=connection.serve, daemon=True).start()


class _Connection:
    def __init__(self, device: AdbDevice, link: socket.socket) -> None:
        self.device, self._link, self._sending = device, link, threading.Lock()
        self._streams: dict[int, _Stream] = {}

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._link.close()
        for stream in list(self._streams.values()):
            stream.end()

    def send(self, name: bytes, first: int, second: int, data: bytes = b"") -> None:
        code = int.from_bytes(name, "little")
        head = struct.pack("<6I", code, first, second, len(data), sum(data), code ^ 0xFFFFFFFF)
        with self._sending, contextlib.suppress(OSError):
            self._link.sendall(head + data)

    def serve(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                head = struct.unpack("<6I", self._exactly(24))
                data = self._exactly(head[3])
                self._obey(head[0].to_bytes(4, "little"), head[1], head[2], data)
        self.close()

    def _obey(self, name: bytes, first: int, second: int, data: bytes) -> None:
        if name in (b"CNXN", b"AUTH"):
            if self.device.refuses:
                self.send(b"AUTH", 1, 0, os.urandom(20))
                return
            about = "ro.product.name=standin;ro.product.model=Stand_In;ro.product.device=standin;"
            self.send(b"CNXN", _VERSION, _MOST, f"device::{about}features={self.device.features}".encode())
        elif name == b"OPEN":
            stream = self._streams[first] = _Stream(self, first)
            self.send(b"OKAY", first, first)
            threading.Thread(target=stream.serve, args=(data.rstrip(b"\0").decode(),), daemon=True).start()
        elif second in self._streams:
            stream = self._streams[second]
            if name == b"OKAY":
                stream.ready.release()
            elif name == b"WRTE":
                stream.take(data)
                self.send(b"OKAY", second, first)
            elif name == b"CLSE":
                del self._streams[second]
                stream.end()

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._link.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data


class _Stream:
    """One service. Our number of it is theirs: a connection has one numbering only."""

    def __init__(self, connection: _Connection, number: int) -> None:
        self._connection, self._number, self._device = connection, number, connection.device
        self.ready = threading.Semaphore(0)
        self._there = threading.Condition()
        self._taken, self._ended = bytearray(), False

    def take(self, data: bytes) -> None:
        with self._there:
            self._taken += data
            self._there.notify()

    def end(self) -> None:
        with self._there:
            self._ended = True
            self._there.notify()
        self.ready.release()

    def serve(self, service: str) -> None:
        kind, _, rest = service.partition(":")
        if kind.startswith("shell"):
            self._device.commands.append(rest)
            if self._device.breaks(rest):
                self._device.start(rest)
                self._device.vanish()
                return
            self._shell(rest, packets="v2" in kind)
        elif kind == "sync":
            with contextlib.suppress(EOFError):
                self._sync()
        self._connection.send(b"CLSE", self._number, self._number)

    def _write(self, data: bytes) -> None:
        for start in range(0, len(data), _MOST):
            if self._ended:
                raise EOFError
            self._connection.send(b"WRTE", self._number, self._number, data[start : start + _MOST])
            self.ready.acquire()

    def _read(self, count: int) -> bytes:
        with self._there:
            while len(self._taken) < count:
                if self._ended:
                    raise EOFError
                self._there.wait()
            data = bytes(self._taken[:count])
            del self._taken[:count]
        return data

    def _shell(self, command: str, packets: bool) -> None:
        """`packets`: as of Android 7. Before, a terminal's output, and no exit code."""
        child = self._device.start(command)
        writing = threading.Lock()

        def forward(pipe: Any, kind: int) -> None:
            # Closed when nobody listens any more: what still writes there is ended by that.
            with pipe, contextlib.suppress(EOFError):
                while data := pipe.read1(1 << 16):
                    with writing:
                        head = struct.pack("<BI", kind, len(data))
                        self._write(head + data if packets else data.replace(b"\n", b"\r\n"))

        threads = [
            threading.Thread(target=forward, args=pair, daemon=True)
            for pair in ((child.stdout, _STDOUT), (child.stderr, _STDERR))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        code = child.wait()
        if packets:
            with contextlib.suppress(EOFError):
                self._write(struct.pack("<BIB", _EXIT, 1, code & 255))

    def _sync(self) -> None:
        while True:
            name, length = struct.unpack("<4sI", self._read(8))
            if name == b"QUIT":
                return
            path = self._read(length).decode()
            if name in (b"STAT", b"STA2", b"LST2"):
                self._stat(name, self._path(path))
            elif name == b"SEND":
                self._receive(self._path(path.rpartition(",")[0]))
            elif name == b"RECV":
                self._send(self._path(path))
            else:
                self._refuse(f"unknown command {name!r}")

    def _path(self, name: str) -> Path:
        return self._device.home / name.lstrip("/")

    def _stat(self, name: bytes, path: Path) -> None:
        try:
            found: os.stat_result | None = path.stat()
        except OSError:
            found = None
        if name == b"STAT":
            values = (found.st_mode, found.st_size, int(found.st_mtime)) if found else (0, 0, 0)
            self._write(struct.pack("<4s3I", b"STAT", *values))
        elif found is None:
            self._write(struct.pack("<4sIQQIIIIQqqq", name, 2, *[0] * 10))
        else:
            owner = (found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_size)
            times = (int(found.st_atime), int(found.st_mtime), int(found.st_ctime))
            numbers = (found.st_dev, found.st_ino, *owner, *times)
            self._write(struct.pack("<4sIQQIIIIQqqq", name, 0, *numbers))

    def _receive(self, path: Path) -> None:
        data = bytearray()
        while True:
            name, length = struct.unpack("<4sI", self._read(8))
            if name == b"DONE":
                break
            data += self._read(length)
        if self._device.full:
            self._refuse("write failed: No space left on device")
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            self._refuse(f"couldn't create file: {error.strerror}")
            return
        self._write(struct.pack("<4sI", b"OKAY", 0))

    def _send(self, path: Path) -> None:
        try:
            data = path.read_bytes()
        except OSError as error:
            self._refuse(f"open failed: {error.strerror}")
            return
        for start in range(0, len(data), 1 << 16):
            part = data[start : start + (1 << 16)]
            self._write(struct.pack("<4sI", b"DATA", len(part)) + part)
        self._write(struct.pack("<4sI", b"DONE", 0))

    def _refuse(self, reason: str) -> None:
        self._write(struct.pack("<4sI", b"FAIL", len(reason)) + reason.encode())
