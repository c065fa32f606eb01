"""One connection to a board over the system's OpenSSH, with board.py at its other end.

The first `ssh` starts board.py and is the master of a control socket in a folder of our own: every worker is
a session inside it. Its standard input is ours, so that when this process ends, however it ends, board.py
notices and cleans up. No sftp and no scp: files go through the same pipe. Only keys and agents can log in
(BatchMode); ~/.ssh/config is honoured, and EDGE_RESNET_SSH_OPTIONS adds options of ssh to it
(-F, -i, -J, -o, -4, -6), for example `-i KEY -o UserKnownHostsFile=FILE`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from edge_resnet.devices.device import DeviceLostError
from edge_resnet.devices.ssh_faults import explained, no_hello, refused
from edge_resnet.devices.ssh_shell import serving, telling_signals
from edge_resnet.devices.ssh_target import Target, user_options
from edge_resnet.errors import MissingToolError

__all__ = ["Connection"]

_BOARD = Path(__file__).with_name("board.py")
# Seconds: until a connection stands; until ssh gives up a silent one (5 s, three times); for small answers.
_CONNECT, _START, _ALIVE, _ALIVE_COUNT, _ANSWER = 10, 90.0, 5, 3, 30.0
# Without a byte taken for so long, an upload is given up.
_STALLED = 60.0
_ENDING = 15.0
_CHUNK = 1 << 18


class Connection:
    """Open while the `with` block runs. `facts`: what board.py says of the machine at the start.

    Raises DeviceLostError, here and from every request, where the board cannot be reached or was lost, or
    where it has no space left.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.session = secrets.token_hex(8)
        if os.name != "posix":
            raise MissingToolError(
                f"{target.uri}: boards are reached from Linux and macOS (on Windows, from WSL)"
            )
        ssh = shutil.which("ssh")
        if ssh is None:
            raise MissingToolError(
                f"{target.uri}: needs the OpenSSH client, `ssh` (Debian: apt install openssh-client)"
            )
        self._ssh, self._options = ssh, user_options()
        self._unread = b""
        # Once set, an answer that comes late is not taken for the next one's.
        self._broken: str | None = None
        self._unwilling: DeviceLostError | None = None
        self._known: dict[tuple[str, int, int], str] = {}
        # A socket's name has a hundred characters at most, and macOS's own folder takes half of them.
        usual = tempfile.gettempdir()
        self._own = Path(tempfile.mkdtemp(prefix="er-", dir=usual if len(usual) < 40 else "/tmp"))
        self._complaints: IO[bytes] = (self._own / "stderr").open("w+b")
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.facts = self._begin()
            self.folder = str(self.facts["serving"])
            self._uploaded_program = self.upload(_BOARD)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _command(self, *options: str) -> list[str]:
        forced = [
            "BatchMode=yes", "RequestTTY=no", "RemoteCommand=none", "ClearAllForwardings=yes",
            "ForwardX11=no", "ForwardAgent=no", "PermitLocalCommand=no", "ControlPersist=no", *options,
        ]  # fmt: skip
        usual = [
            f"ConnectTimeout={_CONNECT}",
            f"ServerAliveInterval={_ALIVE}",
            f"ServerAliveCountMax={_ALIVE_COUNT}",
        ]
        # ssh takes the first value that it meets of each.
        return [
            self._ssh,
            *(word for option in forced for word in ("-o", option)),
            *self._options,
            *(word for option in usual for word in ("-o", option)),
            *self.target.arguments,
        ]

    def _begin(self) -> dict[str, Any]:
        program = _BOARD.read_bytes()
        there = serving(len(program), self.target.folder, self.session)
        control = self._own / "control"
        self._process = subprocess.Popen(
            [*self._command("ControlMaster=yes", f"ControlPath={control}"), there],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            bufsize=0,
            # Ctrl-C reaches the terminal's processes alike; this one is needed for cleaning up.
            start_new_session=True,
        )
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        try:
            self._send(program)
            line = self._line(_START)
        except DeviceLostError:
            raise DeviceLostError(self._why_it_ended()) from None
        try:
            hello: dict[str, Any] = json.loads(line)
            if "error" in hello:
                raise refused(self.target.uri, self.target.folder, hello)
            hello["serving"]
        except (ValueError, KeyError, TypeError):
            raise DeviceLostError(no_hello(self.target.uri, line.decode(errors="replace"))) from None
        return hello

    def _why_it_ended(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(_ANSWER)
        except subprocess.TimeoutExpired:
            return f"{self.target.uri}: it took the connection and then said nothing for {_START:g} s"
        return explained(self.target.uri, self.target.login, code, self._said())

    def _said(self) -> str:
        self._complaints.seek(0)
        return self._complaints.read().decode(errors="replace")

    def _send(self, data: bytes | memoryview) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        pipe, left = self._process.stdin.fileno(), memoryview(data)
        while left:
            if not select.select([], [pipe], [], _STALLED)[1]:
                raise self._lost("it takes nothing any more")
            try:
                left = left[os.write(pipe, left[:_CHUNK]) :]
            except OSError as error:
                raise self._lost(self._last_words()) from error

    def _line(self, timeout: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        pipe, end = self._process.stdout.fileno(), time.monotonic() + timeout
        while True:
            line, newline, rest = self._unread.partition(b"\n")
            if newline:
                self._unread = rest
                if line:  # an empty one is a heartbeat
                    return line
                continue
            if not select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
                raise self._lost(f"no answer within {timeout:g} s")
            chunk = os.read(pipe, 1 << 16)
            if not chunk:
                raise self._lost(self._last_words())
            self._unread += chunk

    def _last_words(self) -> str:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        lines = [line.strip() for line in self._said().splitlines() if line.strip()]
        return lines[-1] if lines else "the connection ended"

    def ask(self, do: str, request: Mapping[str, Any], timeout: float = _ANSWER, content: bytes = b"") -> Any:
        """The answer of board.py to a request (see there), in a dict."""
        if self._broken is not None:
            raise DeviceLostError(self._broken)
        self._send(json.dumps({"do": do, **request}).encode() + b"\n")
        self._send(content)
        line = self._line(timeout)
        try:
            answer = json.loads(line)
        except ValueError:
            raise self._lost(f"it said {line[:80]!r}") from None
        if "error" in answer:
            self._unwilling = refused(self.target.uri, self.folder, answer)
            raise self._unwilling
        return answer

    def run(self, arguments: Sequence[str], timeout: float) -> tuple[int | None, str]:
        """Exit code (None: it took longer than `timeout` seconds and was killed) and output there."""
        answer = self.ask("run", {"arguments": list(arguments), "timeout": timeout}, timeout + _ANSWER)
        return answer["code"], str(answer["output"])

    def upload(self, path: Path, to: str | None = None) -> str:
        """The path there of a file's copy, made only if it is not there yet.

        `to`: in this session's folder under that name, removed at its end; None: kept, named by its content.
        """
        status = path.stat()
        key = (f"{path.resolve()} {to}", status.st_size, status.st_mtime_ns)
        if key not in self._known:
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            name = f"files/{digest}{path.suffix}" if to is None else f"sessions/{self.session}/{to}"
            # Hashing a file or writing it on a slow card takes its time: 1 s for each 2 MB.
            timeout = _ANSWER + len(content) / 2e6
            named = {"name": name, "sha256": digest}
            if to is not None or not self.ask("have", named, timeout)["have"]:
                self.ask("put", {**named, "size": len(content)}, timeout, content)
            self._known[key] = f"{self.folder}/{name}"
        return self._known[key]

    def worker(self, python: str, arguments: Sequence[str]) -> list[str]:
        """The command line, run here, of a Python program there that ends with the connection."""
        there = [python, self._uploaded_program, "work", self.session, *arguments]
        # Where the server allows few sessions in a connection, ssh makes another by itself.
        command = self._command("ControlMaster=no", f"ControlPath={self._own / 'control'}")
        return [*command, telling_signals(there)]

    def lost(self) -> str | None:
        """Why the board is of no use any more, a line: gone, or without space; None: it works."""
        if self._unwilling is not None:
            return str(self._unwilling)
        try:
            self.ask("ping", {}, _ALIVE * (_ALIVE_COUNT + 1))
        except DeviceLostError as error:
            return f"{error}; {self._afterwards()}"
        return None

    def _lost(self, why: str) -> DeviceLostError:
        if self._broken is None:
            self._broken = f"{self.target.uri}: lost: {why}"
        return DeviceLostError(self._broken)

    def _afterwards(self) -> str:
        """What a second try to reach it finds."""
        command = self._command("ControlPath=none")
        try:
            done = subprocess.run(
                [*command, "cat /proc/sys/kernel/random/boot_id"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=2 * _CONNECT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "it cannot be reached now"
        if done.returncode != 0 or not self.facts["boot"]:
            return "it cannot be reached now" if done.returncode == 255 else "it can be reached again"
        if self.facts["boot"] in done.stdout:
            return "it can be reached again and did not restart: the connection broke"
        return "it has restarted meanwhile (power supply, heat or a watchdog?)"

    def close(self) -> None:
        """Ends the connection once board.py has cleaned up."""
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]  # Popen types its pipes as optional
            try:
                self._process.wait(_ENDING)
            except subprocess.TimeoutExpired:
                self._process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_ENDING)
        self._complaints.close()
        shutil.rmtree(self._own, ignore_errors=True)
