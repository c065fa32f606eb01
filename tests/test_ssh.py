"""Boards by ssh: the system's OpenSSH against a real sshd on loopback, faults produced for real."""

from __future__ import annotations

import ast
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from edge_resnet.benchmark.process import WORKER
from edge_resnet.benchmark.result import BenchmarkSettings
from edge_resnet.devices import board, ssh_connection, ssh_environment
from edge_resnet.devices.arm_root import PACKAGES, arm_shell
from edge_resnet.devices.device import DeviceLostError, Job, Measurement, Request
from edge_resnet.devices.local import LocalDevice
from edge_resnet.devices.registry import open_device
from edge_resnet.devices.ssh_connection import Connection
from edge_resnet.devices.ssh_environment import wheel_platforms
from edge_resnet.devices.ssh_target import OPTIONS_VARIABLE, parse_target
from edge_resnet.errors import InputError
from edge_resnet.export.onnx import onnx_bytes
from edge_resnet.export.tflite import tflite_bytes
from edge_resnet.graph.graph import Graph
from tests.random_graphs import random_pixels
from tests.ssh_server import SshServer, descendants, ssh_server

QUICK = BenchmarkSettings(runs=6, block=3, settle=0, warmup_blocks=1)
# Longer than any test, so that what happens meanwhile happens during the run.
LONG = BenchmarkSettings(runs=10_000_000, block=1000, settle=0, warmup_blocks=1)
# The Python that has the runtimes, as a board's `python3`.
PYTHON = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

# A package index that nobody serves.
NOWHERE = "http://127.0.0.1:9/simple"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshServer]:
    with ssh_server(tmp_path / "board") as running:
        running.run_here(PYTHON)
        monkeypatch.setenv(OPTIONS_VARIABLE, running.options())
        yield running


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, small_quantized: Graph) -> list[Job]:
    folder = tmp_path_factory.mktemp("artifacts")
    (folder / "a.tflite").write_bytes(tflite_bytes(small_quantized))
    (folder / "b.onnx").write_bytes(onnx_bytes(small_quantized))
    return [Job(path.name, path) for path in sorted(folder.iterdir())]


def measured(
    uri: str,
    jobs: list[Job],
    request: Request | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> dict[str, Measurement]:
    return open_device(uri).measure(jobs, request or Request(QUICK), advance)


def check_left(server: SshServer, kinds: list[str]) -> None:
    """The board cleans up by itself where the connection broke, a moment later."""
    end = time.monotonic() + 20
    while left_there(server) != kinds:
        assert time.monotonic() < end, left_there(server)
        time.sleep(0.05)


def left_there(server: SshServer, folder: str = ".cache/edge-resnet") -> list[str]:
    """Kinds of files that are still in the folder on the board."""
    there = server.home / folder
    return sorted({str(path.relative_to(there).parent / path.suffix) for path in there.glob("*/**/*")})


def check_nothing_runs(server: SshServer) -> None:
    assert server.process is not None
    end = time.monotonic() + 20
    while descendants(server.process.pid) or _strays(server):
        assert time.monotonic() < end, (descendants(server.process.pid), _strays(server))
        time.sleep(0.05)


def _strays(server: SshServer) -> list[str]:
    """Processes with a file of the board's in their command line, whoever is their parent now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if f"{server.home}/" in text and path.parent.name != str(os.getpid()):
                found.append(text)
    return found


KEPT = ["files/.onnx", "files/.py", "files/.tflite"]


def test_measures_and_answers_as_here(server: SshServer, jobs: list[Job], small_quantized: Graph) -> None:
    pixels = random_pixels(small_quantized, 60, 3)
    done: list[int] = []
    request = Request(QUICK, (1, 2), pixels)
    device = open_device(server.uri())
    found = device.measure(jobs, request, done.append)
    here = LocalDevice().measure(jobs, Request(QUICK, (), pixels), lambda n: None)
    assert sum(done) == device.steps(jobs, request) == 2 * (2 * QUICK.runs + len(pixels))
    for job in jobs:
        there, same = found[job.key].answers, here[job.key].answers
        assert there is not None
        assert same is not None
        np.testing.assert_array_equal(there.logits, same.logits)
        assert (there.kind, there.runtime_version) == ("measured", same.runtime_version)
        assert [result.threads for result in found[job.key].benchmarks] == [1, 2]
        for result in found[job.key].benchmarks:
            assert (result.device, result.kind, result.runs) == (server.uri(), "measured", QUICK.runs)
            assert result.latency_ms is not None
            assert result.conditions["host"]["python"] == sys.version.split()[0]
            assert "before" in result.conditions
            assert "cores" in result.notes[-1]
    # Images and all else of the session are gone; what may travel once stays.
    assert left_there(server) == KEPT
    check_nothing_runs(server)


def test_files_travel_once(server: SshServer, jobs: list[Job]) -> None:
    measured(server.uri(), jobs)
    files = server.home / ".cache/edge-resnet/files"
    first = {path.name: path.stat().st_ino for path in files.iterdir()}
    spoiled = next(path for path in files.iterdir() if path.suffix == ".onnx")
    spoiled.write_bytes(spoiled.read_bytes()[:-1] + b"?")  # a card that forgets
    old = files / "unused.tflite"
    old.write_bytes(b"x")
    os.utime(old, (0, 0))
    measured(server.uri(), jobs)
    second = {path.name: path.stat().st_ino for path in files.iterdir()}
    assert list(first) != []
    assert {name for name in first if first[name] != second.get(name)} == {spoiled.name}
    assert set(second) == set(first)


def test_another_folder_with_characters_that_shells_mind(server: SshServer, jobs: list[Job]) -> None:
    measured(server.uri("/~/my%20boards/it's"), jobs)
    assert left_there(server, "my boards/it's") == KEPT
    assert not (server.home / ".cache/edge-resnet").exists()


def test_more_sessions_than_the_server_allows_in_a_connection(server: SshServer, jobs: list[Job]) -> None:
    server.stop()
    server.start("MaxSessions 2")
    many = [Job(f"{index}", jobs[index % 2].path) for index in range(4)]
    found = measured(server.uri(), many)
    assert all(measurement.benchmarks[0].latency_ms is not None for measurement in found.values())
    check_nothing_runs(server)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("ssh://", "not the name of a host"),
        ("ssh://-oProxyCommand=touch", "not the name of a host"),
        ("ssh://-l@host", "not the name of a user"),
        ("ssh://@host", "not the name of a user"),
        ("ssh://host:ssh", "'ssh' is not a port"),
        ("ssh://host:", "'' is not a port"),
        ("ssh://host:0", "'0' is not a port"),
        ("ssh://host:99999999999999999999", "is not a port"),
        ("ssh://host:٢٢", "is not a port"),
        ("ssh://me:secret@host", "passwords are not taken"),
        ("ssh://a host", "not the name of a host"),
        ("ssh://host;reboot", "not the name of a host"),
        ("ssh://fe80::1", "brackets"),
        ("ssh://host/a%0Ab", "unprintable"),
        ("ssh:host", "no such device"),
    ],
)
def test_a_bad_uri_is_the_users_mistake(uri: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_device(uri)


def test_what_a_uri_says() -> None:
    target = parse_target("ssh://me@pi.local:2222/~/x%20y/")
    assert (target.host, target.user, target.port, target.folder) == ("pi.local", "me", 2222, "~/x y")
    assert target.login == "-p 2222 me@pi.local"
    assert target.arguments == ["-l", "me", "-p", "2222", "--", "pi.local"]
    plain = parse_target("ssh://[fe80::1%eth0]")
    assert (plain.host, plain.user, plain.port, plain.folder) == (
        "fe80::1%eth0", None, None, "~/.cache/edge-resnet",
    )  # fmt: skip
    assert parse_target("ssh://host/").folder == "~/.cache/edge-resnet"


@pytest.mark.parametrize("options", ["host reboot", "-o", "-N", "'-i", "-i a -- x"])
def test_options_that_are_not_taken(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPTIONS_VARIABLE, options)
    with pytest.raises(InputError, match=OPTIONS_VARIABLE):
        open_device("ssh://host")


def lost(uri: str, jobs: list[Job]) -> str:
    """The message, which is one line, names the device and has exit code 3."""
    with pytest.raises(DeviceLostError) as raised:
        measured(uri, jobs)
    message = str(raised.value)
    assert raised.value.exit_code == 3
    assert "\n" not in message
    assert message.startswith(uri + ":")
    return message


def test_nobody_there(server: SshServer, jobs: list[Job]) -> None:
    server.stop()
    assert "unreachable" in lost(server.uri(), jobs)
    assert "no host of that name" in lost("ssh://no-such-host.invalid", jobs)


def test_host_keys(server: SshServer, jobs: list[Job]) -> None:
    server.change_host_key()
    message = lost(server.uri(), jobs)
    assert "host key has changed" in message
    assert f"ssh-keygen -R '[127.0.0.1]:{server.port}'" in message
    (server.folder / "known_hosts").write_text("")
    message = lost(server.uri(), jobs)
    assert "not known yet" in message
    assert f"`ssh -p {server.port} 127.0.0.1`" in message
    server.trust()
    measured(server.uri(), jobs[:1])


def test_login_refused(server: SshServer, jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPTIONS_VARIABLE, server.options("other_key"))
    assert "login refused" in lost(server.uri(), jobs)


def test_no_python(server: SshServer, jobs: list[Job]) -> None:
    programs = server.folder / "bin"
    programs.mkdir()
    for name in ("sh", "cat"):
        (programs / name).symlink_to(shutil.which(name) or "")
    server.run_here(str(programs))
    assert "there is no Python there" in lost(server.uri(), jobs)
    (programs / "python3").write_text("#!/bin/sh\n[ $1 = --version ] && echo Python 3.8.10\nexit 1\n")
    (programs / "python3").chmod(0o755)
    assert "too old (Python 3.8.10)" in lost(server.uri(), jobs)
    # Beside an old one, a newer one is found.
    (programs / "python3.11").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (programs / "python3.11").chmod(0o755)
    measured(server.uri(), jobs[:1])


def test_a_shell_that_talks(server: SshServer, jobs: list[Job]) -> None:
    server.run_here(PYTHON, "echo Welcome to my board")
    assert "prints 'Welcome to my board'" in lost(server.uri(), jobs)
    server.behave("echo This account is closed >&2; exit 1")
    assert "the connection failed: This account is closed" in lost(server.uri(), jobs)
    check_nothing_runs(server)


def test_a_folder_that_cannot_be(server: SshServer, jobs: list[Job]) -> None:
    (server.home / "file").write_text("")
    assert "cannot be used there" in lost(server.uri("/~/file/x"), jobs)


def test_a_full_disk(server: SshServer, jobs: list[Job]) -> None:
    small = server.home / "small"
    small.mkdir()
    server.run_here(PYTHON, "ulimit -f 4")  # files of 2 or 4 KB at most, whatever file system it is
    message = lost(server.uri("/~/small"), jobs)
    assert "no space left there" in message
    assert not [path for path in small.rglob("*") if path.is_file()]
    check_nothing_runs(server)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root's rights")
def test_a_full_file_system(server: SshServer, jobs: list[Job]) -> None:
    small = server.home / "small"
    small.mkdir()
    server.behave(
        f"export HOME={server.home} PATH={PYTHON}\n"
        'exec unshare -m sh -c \'mount -t tmpfs -o size=24k none "$HOME/small" '
        '&& exec sh -c "$SSH_ORIGINAL_COMMAND"\''
    )
    message = lost(server.uri("/~/small"), jobs)
    assert "no space left there" in message
    assert "MiB free" in message


class Meanwhile:
    """Acts once the measurement is under way."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act, self._done = act, False

    def __call__(self, steps: int) -> None:
        if not self._done:
            self._done = True
            self._act()


def test_the_connection_breaks_in_a_run(server: SshServer, jobs: list[Job], small_quantized: Graph) -> None:
    device = open_device(server.uri())
    seen: list[int] = []

    def advance(steps: int) -> None:
        seen.append(steps)
        if sum(seen) > 2 * QUICK.runs:  # the timing is done, images are being answered
            server.drop_connections()

    request = Request(QUICK, (1,), random_pixels(small_quantized, 300, 3))
    with pytest.raises(DeviceLostError) as raised:
        device.measure(jobs, request, advance)
    message = str(raised.value)
    assert message.startswith(server.uri() + ": lost")
    assert "can be reached again and did not restart" in message
    for job in jobs:
        assert raised.value.partial[job.key].benchmarks[0].latency_ms is not None
        assert raised.value.partial[job.key].benchmarks[0].conditions["host"]
    check_nothing_runs(server)
    check_left(server, KEPT)


def test_the_host_goes_away_in_a_run(server: SshServer, jobs: list[Job]) -> None:
    with pytest.raises(DeviceLostError, match="it cannot be reached now"):
        measured(server.uri(), jobs, Request(LONG), Meanwhile(server.stop))
    end = time.monotonic() + 20
    while _strays(server):
        assert time.monotonic() < end, _strays(server)
        time.sleep(0.05)
    check_left(server, KEPT)


@pytest.mark.skipif(os.geteuid() != 0, reason="another boot's id takes root's rights")
def test_a_board_that_restarts_in_a_run(server: SshServer, jobs: list[Job]) -> None:
    boot = server.folder / "boot_id"
    boot.write_text("11111111-1111-1111-1111-111111111111\n")
    server.behave(
        f"export HOME={server.home} PATH={PYTHON} BOOT={boot}\nexec unshare -m sh -c "
        '\'mount --bind "$BOOT" /proc/sys/kernel/random/boot_id && exec sh -c "$SSH_ORIGINAL_COMMAND"\''
    )

    def restart() -> None:
        server.drop_connections()
        boot.write_text("22222222-2222-2222-2222-222222222222\n")

    with pytest.raises(DeviceLostError, match="it has restarted meanwhile"):
        measured(server.uri(), jobs, Request(LONG), Meanwhile(restart))


def test_a_silent_board(server: SshServer, jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither end notices: the board's processes are all stopped."""
    monkeypatch.setattr(ssh_connection, "_ALIVE", 1)
    monkeypatch.setattr(ssh_connection, "_CONNECT", 1)
    stopped: set[int] = set()

    def stop() -> None:
        assert server.process is not None
        stopped.update(descendants(server.process.pid) | {server.process.pid})
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)

    try:
        with pytest.raises(DeviceLostError, match=r"lost: .*it cannot be reached now"):
            measured(server.uri(), jobs, Request(LONG), Meanwhile(stop))
    finally:
        for pid in stopped:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)
    check_nothing_runs(server)


def test_one_artifact_fails_and_the_other_does_not(
    server: SshServer, jobs: list[Job], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"rubbish")
    found = measured(server.uri(), [Job("broken", broken), jobs[1]])
    assert found["broken"].benchmarks[0].latency_ms is None
    assert "broken.tflite" in found["broken"].benchmarks[0].notes[0]
    assert found[jobs[1].key].benchmarks[0].latency_ms is not None


def test_a_worker_that_is_killed_there(server: SshServer, jobs: list[Job]) -> None:
    def kill() -> None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if (
                    b"work" in words
                    and b"python" in words[0]
                    and str(server.home).encode() in b" ".join(words)
                ):
                    os.kill(int(path.parent.name), signal.SIGKILL)

    found = measured(server.uri(), jobs[:1], Request(LONG), Meanwhile(kill))
    assert "killed there by signal 9" in found[jobs[0].key].benchmarks[0].notes[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interruption_leaves_nothing(server: SshServer, jobs: list[Job], number: signal.Signals) -> None:
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
    with subprocess.Popen(
        [sys.executable, "-c", code, server.uri(), str(jobs[0].path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline(), child.stderr.read()
        # To the whole group, as a terminal does.
        os.killpg(child.pid, number)
        child.communicate(timeout=60)
    assert child.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    check_nothing_runs(server)
    check_left(server, ["files/.py", "files/.tflite"])


def test_a_hanging_program_ends_with_the_connection(server: SshServer) -> None:
    """Neither a worker that never reads again nor an installation outlives the session."""
    hang = server.home / "hang.py"
    hang.write_text("import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)\n")
    with Connection(parse_target(server.uri())) as connection:
        worker = subprocess.Popen(connection.worker(sys.executable, [str(hang)]), stdin=subprocess.PIPE)
        code, _ = connection.run([sys.executable, str(hang)], 0.5)
        assert code is None
        runs = threading.Thread(target=lambda: _ignored(connection, [sys.executable, str(hang)]))
        runs.start()
        end = time.monotonic() + 20
        while len(_strays(server)) < 3:
            assert time.monotonic() < end, _strays(server)
            time.sleep(0.05)
        server.drop_connections()
        runs.join(20)
        worker.wait(20)
    check_nothing_runs(server)


def _ignored(connection: Connection, command: list[str]) -> None:
    with contextlib.suppress(DeviceLostError):
        connection.run(command, 600)


@pytest.fixture
def bare(server: SshServer) -> SshServer:
    """A board whose Python has nothing installed, and no internet."""
    base = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    programs = server.folder / "bin"
    programs.mkdir()
    (programs / "python3").write_text(f'#!/bin/sh\nexec {base} -S "$@"\n')
    (programs / "python3").chmod(0o755)
    server.run_here(f"{programs}:/usr/bin:/bin", f"export PIP_INDEX_URL={NOWHERE} PIP_CONFIG_FILE=/dev/null")
    return server


def test_no_virtual_environment(bare: SshServer, jobs: list[Job]) -> None:
    python = bare.folder / "bin" / "python3"
    # What Debian's Python says without its package python3-venv.
    said = "The virtual environment was not created successfully because ensurepip is not available."
    python.write_text(python.read_text().replace("exec", f'[ "$2" = venv ] && echo "{said}" && exit 1\nexec'))
    message = lost(bare.uri(), jobs)
    assert f"apt install python3.{sys.version_info.minor}-venv" in message
    assert left_there(bare) == ["files/.py"]


@pytest.mark.slow
def test_one_runtime_that_cannot_be_had(
    bare: SshServer, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The board's own Python has it in another version; nothing can be installed, from here neither."""
    bare.run_here(PYTHON, f"export PIP_INDEX_URL={NOWHERE} PIP_CONFIG_FILE=/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", NOWHERE)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    versions = {"ai-edge-litert": "99.0"}
    monkeypatch.setattr(ssh_environment, "version", lambda name: versions.get(name) or version(name))
    found = measured(bare.uri(), jobs)
    tflite, onnx = (found[job.key].benchmarks[0] for job in jobs)
    assert f"{version('ai-edge-litert')} of the board, not 99.0 as here" in tflite.notes[-1]
    assert "no internet, and this machine cannot download ai-edge-litert==99.0" in tflite.notes[-1]
    assert tflite.latency_ms is not None
    assert "not 99.0" not in " ".join(onnx.notes)
    assert left_there(bare) == KEPT


@pytest.mark.slow
def test_wheels_are_sent_to_a_board_without_internet(
    bare: SshServer, jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(tmp_path),
        "tqdm",
    ]
    if subprocess.run(command, capture_output=True, timeout=120).returncode:
        pytest.skip("no package index can be reached from here")
    real = version("ai-edge-litert")
    found = measured(bare.uri(), jobs[:1])
    assert found[jobs[0].key].benchmarks[0].runtime_version == real
    environments = bare.home / ".cache/edge-resnet/environments"
    (made,) = environments.iterdir()
    assert made.name.startswith(f"ai-edge-litert-{real}-")
    first = made.stat().st_ino
    assert not list((bare.home / ".cache/edge-resnet/sessions").iterdir())
    measured(bare.uri(), jobs[:1])
    assert made.stat().st_ino == first
    # There is no such version: the newest that the board can have takes its place, and it is said.
    monkeypatch.setattr(ssh_environment, "version", lambda name: "99.0")
    result = measured(bare.uri(), jobs[:1])[jobs[0].key].benchmarks[0]
    assert result.latency_ms is not None
    assert "not 99.0 as here, which has no wheel for the board" in result.notes[-1]
    check_nothing_runs(bare)


@pytest.mark.slow
def test_an_arm_board(server: SshServer, arm_root: Path, jobs: list[Job], small_quantized: Graph) -> None:
    """The ARM builds of both runtimes answer as this machine's do, to the last bit."""
    words = arm_shell(arm_root, "cortex-a72", "COMMAND", {"PYTHONPATH": PACKAGES}, server.home)
    command = shlex.join(words).replace("COMMAND", '"$SSH_ORIGINAL_COMMAND"')
    server.behave(f"exec {command}")
    pixels = random_pixels(small_quantized, 40, 5)
    found = measured(server.uri(), jobs, Request(QUICK, (1,), pixels))
    here = LocalDevice().measure(jobs, Request(QUICK, (), pixels), lambda n: None)
    for job in jobs:
        there, same = found[job.key].answers, here[job.key].answers
        assert there is not None
        assert same is not None
        np.testing.assert_array_equal(there.logits, same.logits)
        result = found[job.key].benchmarks[0]
        assert result.latency_ms is not None
        assert result.conditions["host"]["machine"] == "aarch64"
        assert "Cortex-A72" in result.notes[-1]
    assert left_there(server) == KEPT
    check_nothing_runs(server)


def test_what_travels_needs_no_new_python() -> None:
    for program in (Path(board.__file__), WORKER):
        ast.parse(program.read_text(), feature_version=(3, 9))


def test_platforms_of_wheels() -> None:
    tags = wheel_platforms("linux-aarch64", 64, "glibc", "2.36")
    assert tags[0] == "manylinux_2_36_aarch64"
    assert tags[-2:] == ["manylinux2014_aarch64", "linux_aarch64"]
    assert "manylinux_2_28_aarch64" in tags
    assert wheel_platforms("linux-aarch64", 32, "glibc", "2.31")[0] == "manylinux_2_31_armv7l"
    assert wheel_platforms("linux-x86_64", 64, "", "")[0] == "musllinux_1_2_x86_64"
