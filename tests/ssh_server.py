"""A real sshd on loopback, with keys of its own, whose sessions run what a test says."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["SshServer", "descendants", "ssh_server"]

_CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
ForceCommand {folder}/session
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
LogLevel ERROR
{more}
"""


class SshServer:
    """`home`: of the sessions. `session`: the shell script that each runs; the user's command line is in
    $SSH_ORIGINAL_COMMAND.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir(parents=True)
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = int(found.getsockname()[1])
        for key in ("host_key", "user_key", "other_key"):
            self._key(key)
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        self.trust()
        self.process: subprocess.Popen[bytes] | None = None

    def _key(self, name: str) -> None:
        for path in (self.folder / name, self.folder / f"{name}.pub"):
            path.unlink(missing_ok=True)
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(self.folder / name)]
        subprocess.run(command, check=True, timeout=30)

    def trust(self) -> None:
        """Makes the host key known to the client."""
        key = (self.folder / "host_key.pub").read_text()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {key}")

    def change_host_key(self) -> None:
        self.stop()
        self._key("host_key")
        self.start()

    def behave(self, script: str) -> None:
        """What sessions run from now on, in sh."""
        path = self.folder / "session"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run_here(self, path: str, before: str = "", shell: str = "/bin/sh") -> None:
        """Sessions run on this machine, with that PATH and a home of their own, in that login shell."""
        home = shlex.quote(str(self.home))
        self.behave(
            f'export HOME={home} PATH={shlex.quote(path)} OMP_NUM_THREADS=1; cd "$HOME"\n{before}\n'
            f'exec {shell} -c "$SSH_ORIGINAL_COMMAND"'
        )

    def start(self, more: str = "") -> None:
        config = self.folder / "sshd_config"
        config.write_text(_CONFIG.format(port=self.port, folder=self.folder, more=more))
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # its unprivileged half lives there
        log = self.folder / "sshd.log"
        self.process = subprocess.Popen([_sshd(), "-D", "-E", str(log), "-f", str(config)])
        end = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.drop_connections()
            self.process.terminate()
            self.process.wait(20)

    def drop_connections(self) -> None:
        """As a cable that is pulled, but that both ends notice at once."""
        assert self.process is not None
        for pid in descendants(self.process.pid):
            with contextlib.suppress(OSError):
                if b"sshd" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]:
                    os.kill(pid, signal.SIGKILL)

    def uri(self, folder: str = "") -> str:
        return f"ssh://127.0.0.1:{self.port}{folder}"

    def options(self, key: str = "user_key") -> str:
        """For EDGE_RESNET_SSH_OPTIONS: nothing of this user's own configuration."""
        return shlex.join(
            [
                "-F", "none", "-i", str(self.folder / key), "-o", "IdentitiesOnly=yes",
                "-o", "IdentityAgent=none", "-o", f"UserKnownHostsFile={self.folder / 'known_hosts'}",
                "-o", "GlobalKnownHostsFile=none",
            ]
        )  # fmt: skip


def _sshd() -> str:
    found = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None or shutil.which("ssh") is None:
        pytest.skip("no sshd: `apt-get install openssh-server`, or tests/install_tools.sh")
    return found


def descendants(pid: int) -> set[int]:
    """The processes that a process started, and those that they started."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    new = {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


@contextlib.contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """Runs until the block ends."""
    _sshd()
    server = SshServer(folder)
    server.run_here(os.environ["PATH"])
    try:
        server.start()
        yield server
    finally:
        server.stop()
