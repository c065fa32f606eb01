"""Boards that are lost, and what is left on them: the faults are real."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_resnet.devices import ssh_connection
from edge_resnet.devices.device import DeviceLostError, Job, Request
from edge_resnet.devices.registry import open_device
from edge_resnet.devices.ssh_connection import Connection
from edge_resnet.devices.ssh_target import parse_target
from edge_resnet.graph.graph import Graph
from tests.random_graphs import random_pixels
from tests.ssh_board import (
    KEPT,
    LONG,
    PYTHON,
    QUICK,
    check_left,
    check_nothing_runs,
    measured,
    strays,
)
from tests.ssh_server import SshServer, descendants


class Meanwhile:
    """Acts once the measurement is under way."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act, self._done = act, False

    def __call__(self, steps: int) -> None:
        if not self._done:
            self._done = True
            self._act()


def test_the_connection_breaks_in_a_run(
    ssh_board: SshServer, ssh_jobs: list[Job], small_quantized: Graph
) -> None:
    device = open_device(ssh_board.uri())
    seen: list[int] = []

    def advance(steps: int) -> None:
        seen.append(steps)
        if sum(seen) > 2 * QUICK.runs:  # the timing is done, images are being answered
            ssh_board.drop_connections()

    request = Request(QUICK, (1,), random_pixels(small_quantized, 300, 3))
    with pytest.raises(DeviceLostError) as raised:
        device.measure(ssh_jobs, request, advance)
    message = str(raised.value)
    assert message.startswith(ssh_board.uri() + ": lost")
    assert "can be reached again and did not restart" in message
    for job in ssh_jobs:
        assert raised.value.partial[job.key].benchmarks[0].latency_ms is not None
        assert raised.value.partial[job.key].benchmarks[0].conditions["host"]
    check_nothing_runs(ssh_board)
    check_left(ssh_board, KEPT)


def test_the_host_goes_away_in_a_run(ssh_board: SshServer, ssh_jobs: list[Job]) -> None:
    with pytest.raises(DeviceLostError, match="it cannot be reached now"):
        measured(ssh_board.uri(), ssh_jobs, Request(LONG), Meanwhile(ssh_board.stop))
    end = time.monotonic() + 20
    while strays(ssh_board):
        assert time.monotonic() < end, strays(ssh_board)
        time.sleep(0.05)
    check_left(ssh_board, KEPT)


@pytest.mark.skipif(os.geteuid() != 0, reason="another boot's id takes root's rights")
def test_a_board_that_restarts_in_a_run(ssh_board: SshServer, ssh_jobs: list[Job]) -> None:
    boot = ssh_board.folder / "boot_id"
    boot.write_text("11111111-1111-1111-1111-111111111111\n")
    ssh_board.behave(
        f"export HOME={ssh_board.home} PATH={PYTHON} BOOT={boot}\nexec unshare -m sh -c "
        '\'mount --bind "$BOOT" /proc/sys/kernel/random/boot_id && exec sh -c "$SSH_ORIGINAL_COMMAND"\''
    )

    def restart() -> None:
        ssh_board.drop_connections()
        boot.write_text("22222222-2222-2222-2222-222222222222\n")

    with pytest.raises(DeviceLostError, match="it has restarted meanwhile"):
        measured(ssh_board.uri(), ssh_jobs, Request(LONG), Meanwhile(restart))


def test_a_silent_board(ssh_board: SshServer, ssh_jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither end notices: the board's processes are all stopped."""
    monkeypatch.setattr(ssh_connection, "_ALIVE", 1)
    monkeypatch.setattr(ssh_connection, "_CONNECT", 1)
    stopped: set[int] = set()

    def stop() -> None:
        assert ssh_board.process is not None
        stopped.update(descendants(ssh_board.process.pid) | {ssh_board.process.pid})
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)

    try:
        with pytest.raises(DeviceLostError, match=r"lost: .*it cannot be reached now"):
            measured(ssh_board.uri(), ssh_jobs, Request(LONG), Meanwhile(stop))
    finally:
        for pid in stopped:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)
    check_nothing_runs(ssh_board)


def test_one_artifact_fails_and_the_other_does_not(
    ssh_board: SshServer, ssh_jobs: list[Job], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"rubbish")
    found = measured(ssh_board.uri(), [Job("broken", broken), ssh_jobs[1]])
    assert found["broken"].benchmarks[0].latency_ms is None
    assert "broken.tflite" in found["broken"].benchmarks[0].notes[0]
    assert found[ssh_jobs[1].key].benchmarks[0].latency_ms is not None


def test_a_worker_that_is_killed_there(ssh_board: SshServer, ssh_jobs: list[Job]) -> None:
    def kill() -> None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if (
                    b"work" in words
                    and b"python" in words[0]
                    and str(ssh_board.home).encode() in b" ".join(words)
                ):
                    os.kill(int(path.parent.name), signal.SIGKILL)

    found = measured(ssh_board.uri(), ssh_jobs[:1], Request(LONG), Meanwhile(kill))
    assert "killed there by signal 9" in found[ssh_jobs[0].key].benchmarks[0].notes[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interruption_leaves_nothing(
    ssh_board: SshServer, ssh_jobs: list[Job], number: signal.Signals
) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from edge_resnet.benchmark.result import BenchmarkSettings\n"
        "from edge_resnet.devices.device import Job, Request\n"
        "from edge_resnet.devices.registry import open_device\n"
        "settings = BenchmarkSettings(runs=10_000_000, block=1000, settle=0, warmup_blocks=1)\n"
        "try:\n"
        "    open_device(sys.argv[1]).measure([Job('a', Path(sys.argv[2]))], Request(settings), "
        "lambda n: print(n, flush=True))\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    with (
        tempfile.TemporaryDirectory(prefix="t-") as own,  # for what a killed process cannot remove
        subprocess.Popen(
            [sys.executable, "-c", code, ssh_board.uri(), str(ssh_jobs[0].path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": own},
        ) as child,
    ):
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline(), child.stderr.read()
        # To the whole group, as a terminal does.
        os.killpg(child.pid, number)
        child.communicate(timeout=60)
    assert child.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    check_nothing_runs(ssh_board)
    check_left(ssh_board, ["files/.py", "files/.tflite"])


def test_a_hanging_program_ends_with_the_connection(ssh_board: SshServer) -> None:
    """Neither a worker that never reads again nor an installation outlives the session."""
    hang = ssh_board.home / "hang.py"
    hang.write_text("import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)\n")
    with Connection(parse_target(ssh_board.uri())) as connection:
        worker = subprocess.Popen(connection.worker(sys.executable, [str(hang)]), stdin=subprocess.PIPE)
        code, _ = connection.run([sys.executable, str(hang)], 0.5)
        assert code is None
        runs = threading.Thread(target=lambda: _ignored(connection, [sys.executable, str(hang)]))
        runs.start()
        end = time.monotonic() + 20
        while len(strays(ssh_board)) < 3:
            assert time.monotonic() < end, strays(ssh_board)
            time.sleep(0.05)
        ssh_board.drop_connections()
        runs.join(20)
        worker.wait(20)
    check_nothing_runs(ssh_board)


def _ignored(connection: Connection, command: list[str]) -> None:
    with contextlib.suppress(DeviceLostError):
        connection.run(command, 600)
