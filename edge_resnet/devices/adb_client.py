"""One Android phone through the real `adb`: which there are, commands there, files to and fro."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_resnet.devices.adb_tools import find_adb
from edge_resnet.devices.device import DeviceLostError
from edge_resnet.errors import MissingToolError

__all__ = ["Adb", "Attached", "Phone", "TimedOutError", "state_refusal"]

_READY = "device"
# Where adb says what it knows by itself, in seconds. Its server, which it starts, may take some.
_ASKING = 30.0
# Below 1 MB/s something is wrong; over Wi-Fi a phone takes several.
_SLOWEST_BYTES_PER_S = 1e6
# A phone that starts anew needs longer, but a cable that was moved is back by then.
_BACK_WITHIN = 6.0
# Shells of old Androids do not pass exit codes on, and a lost connection looks like an end: this line ends a
# command that did end.
_END = "edge-resnet-end"
_SETTLING = 5.0
_PASSING = ("authorizing", "connecting")
_FIELDS = ("usb:", "product:", "model:", "device:", "transport_id:")
_STATES = {
    "unauthorized": "it has not allowed this computer yet: unlock it and tap Allow at `Allow USB debugging?`",
    "authorizing": "it is still being asked for permission: unlock it and tap Allow",
    "offline": "it is attached but does not answer (offline): unlock it, plug it in anew, or `adb reconnect`",
    "connecting": "it is still connecting: try again",
    "no permissions": "this user may not open its USB device: install Android's udev rules "
    "(apt-get install android-sdk-platform-tools-common) and plug it in anew",
    "bootloader": "it is in its bootloader: start Android",
    "recovery": "it is in recovery mode: start Android",
    "rescue": "it is in rescue mode: start Android",
    "sideload": "it is in sideload mode: start Android",
}


class TimedOutError(MissingToolError):
    """A command there took too long, or adb did."""


@dataclass(frozen=True)
class Attached:
    """A line of `adb devices -l`."""

    serial: str
    state: str
    description: str


class Adb:
    """Raises MissingToolError where there is no adb, or its server cannot be started."""

    def __init__(self) -> None:
        program = find_adb()
        if program is None:
            raise MissingToolError(
                "adb is not installed: `apt-get install adb`, `brew install android-platform-tools`, or "
                "Android's SDK Platform-Tools"
            )
        self._program = program

    def run(self, arguments: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
        """Raises TimedOutError; adb is killed then."""
        try:
            return subprocess.run(
                [self._program, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            verb = arguments[2] if arguments[0] == "-s" else arguments[0]
            raise TimedOutError(f"adb {verb} gave no answer within {timeout:g} s") from error
        except OSError as error:
            raise MissingToolError(f"cannot start {self._program}: {error.strerror or error}") from error

    def devices(self) -> list[Attached]:
        done = self.run(["devices", "-l"], _ASKING)
        if done.returncode != 0:
            raise MissingToolError(f"adb cannot list its devices: {_said(done)}")
        lines = done.stdout.partition("List of devices attached")[2].splitlines()
        return [_attached(line) for line in lines if line.strip()]

    def choose(self, uri: str, serial: str) -> str:
        """The serial of the only phone there is, or of that name, ready to be used.

        Raises DeviceLostError that names the phones that there are.
        """
        found = self._settled()
        if not serial:
            if not found:
                raise DeviceLostError(
                    f"{uri}: no phone is attached: switch on USB debugging in its developer options and plug "
                    "it in; `adb devices` lists it then"
                )
            if len(found) > 1:
                raise DeviceLostError(f"{uri}: {len(found)} phones are attached ({_listed(found)}): name one")
            serial = found[0].serial
        named = [phone for phone in found if phone.serial == serial]
        if len(named) > 1:
            ports = "; ".join(phone.description for phone in named)
            raise DeviceLostError(
                f"{uri}: {len(named)} phones with one serial number ({ports}): unplug all but one"
            )
        if not named:
            there = f"there is {_listed(found)}" if found else "no phone is attached"
            raise DeviceLostError(f"{uri}: no phone of that serial number; {there}")
        refusal = state_refusal(named[0].state)
        if refusal is not None:
            raise DeviceLostError(f"{uri}: {refusal}")
        return serial

    def _settled(self) -> list[Attached]:
        """A phone that was just plugged in, or found by a server that was just started, needs a moment."""
        deadline = time.monotonic() + _SETTLING
        while True:
            found = self.devices()
            if not any(phone.state in _PASSING for phone in found) or time.monotonic() > deadline:
                return found
            time.sleep(0.2)


def state_refusal(state: str) -> str | None:
    """Why a phone in this state cannot be used, and what to do."""
    if state == _READY:
        return None
    return next((words for name, words in _STATES.items() if state.startswith(name)), f"it is {state!r}")


class Phone:
    """A phone that was ready. Its commands raise DeviceLostError, which names it, when it is gone."""

    def __init__(self, adb: Adb, uri: str, serial: str) -> None:
        self._adb, self._uri, self.serial = adb, uri, serial
        self._boot: str | None = None
        self._boot = self._boot_id()

    def shell(self, script: str, timeout: float) -> tuple[int, str]:
        """Exit code, and what it printed, errors among it, without control characters: it is another
        machine's, and some of it is shown. Raises TimedOutError.
        """
        wrapped = f"( {script}\n) 2>&1; echo {_END} $?"
        done = self._adb.run(["-s", self.serial, "shell", wrapped], timeout)
        text, found, code = done.stdout.replace("\r\n", "\n").rpartition(_END)
        if not found or not code.strip().isdigit():
            raise DeviceLostError(self.gone() or self._odd(done))
        return int(code), "".join(sign for sign in text if sign.isprintable() or sign in "\n\t")

    def push(self, local: Path, remote: str) -> None:
        """Raises DeviceLostError, also where there is no room for it there."""
        size = local.stat().st_size
        done = self._adb.run(
            ["-s", self.serial, "push", str(local), remote], _ASKING + size / _SLOWEST_BYTES_PER_S
        )
        if done.returncode != 0:
            said = _said(done)
            if "No space left" in said:
                raise DeviceLostError(
                    f"{self._uri}: no room left on the phone for {local.name} ({size / 1e6:.1f} MB): "
                    f"make room in {remote.rpartition('/')[0]}"
                )
            raise DeviceLostError(self.gone() or f"{self._uri}: cannot copy {local.name} there: {said}")

    def pull(self, remote: str, local: Path, size: int) -> None:
        """`size`: bytes to be expected, for the time that it may take."""
        timeout = _ASKING + size / _SLOWEST_BYTES_PER_S
        done = self._adb.run(["-s", self.serial, "pull", remote, str(local)], timeout)
        if done.returncode != 0:
            said = _said(done)
            raise DeviceLostError(self.gone() or f"{self._uri}: cannot fetch results: {said}")

    def gone(self) -> str | None:
        """Why the phone cannot be used any more, in a line that names it; None: it is as it was."""
        deadline = time.monotonic() + _BACK_WITHIN
        while True:
            try:
                reason = self._absence()
                if reason is None and self._boot_id() != self._boot:
                    return f"{self._uri}: it restarted during the run"
            except MissingToolError as error:
                return f"{self._uri}: {error}"
            if reason is None or time.monotonic() > deadline:
                return reason
            time.sleep(0.5)

    def _absence(self) -> str | None:
        """A cable that was moved is none: it may be back in a moment."""
        named = [phone for phone in self._adb.devices() if phone.serial == self.serial]
        if not named:
            return f"{self._uri}: lost during the run: it is not attached any more (cable, battery, restart?)"
        refusal = state_refusal(named[0].state)
        return None if refusal is None else f"{self._uri}: lost during the run: {refusal}"

    def _boot_id(self) -> str | None:
        """A new one at every start of the phone. Raises DeviceLostError at first, later None."""
        done = self._adb.run(["-s", self.serial, "shell", "cat /proc/sys/kernel/random/boot_id"], _ASKING)
        if done.returncode != 0 and self._boot is None:
            raise DeviceLostError(self._odd(done))
        return done.stdout.strip() or None

    def _odd(self, done: subprocess.CompletedProcess[str]) -> str:
        return f"{self._uri}: the connection to the phone broke off ({_said(done)})"


def _attached(line: str) -> Attached:
    """`SERIAL   STATE usb:1-2 product:… model:… device:… transport_id:1`; a state may be several words."""
    serial, *words = line.split()
    about = [word for word in words if word.startswith(_FIELDS)]
    return Attached(serial, " ".join(word for word in words if word not in about), " ".join(about))


def _listed(found: Sequence[Attached]) -> str:
    return ", ".join(
        phone.serial if phone.state == _READY else f"{phone.serial} ({phone.state})" for phone in found
    )


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """Its error, which may be followed by statistics, and stand in either output."""
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    # adb announces its server on standard error, which explains nothing.
    lines = [line for line in lines if not line.startswith("* daemon")]
    errors = [line for line in lines if "error" in line.partition(" ")[0] or line.startswith("adb: error")]
    said = (errors or lines[-1:] or [f"adb ended with code {done.returncode}"])[0]
    return said.removeprefix("adb: ").removeprefix("error: ")
