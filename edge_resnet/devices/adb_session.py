"""Our folder on a phone: what is copied there, what runs there, and that nothing stays.

`/data/local/tmp` is where a phone lets adb put programs and start them. In it, `edge-resnet/tools` keeps
benchmark_model and a vendor's delegate for the next time, named by their content; `edge-resnet/run-…` is of
one run, and is removed at its end.
"""

from __future__ import annotations

import contextlib
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from edge_resnet.devices.adb_client import Phone, TimedOutError
from edge_resnet.devices.device import DeviceLostError
from edge_resnet.devices.phone_state import (
    CONDITIONS_SCRIPT,
    FACTS_SCRIPT,
    PhoneFacts,
    conditions_from,
    facts_from,
)
from edge_resnet.errors import MissingToolError
from edge_resnet.files import sha256_of

__all__ = ["AdbSession", "command_line", "open_session"]

FOLDER = "/data/local/tmp/edge-resnet"
# What takes a moment there, in seconds.
_SHORT = 60.0
_PROCESS, _CODE, _CLOCKS = "edge-resnet-process", "edge-resnet-code", "edge-resnet-clocks"
_DIGITS = 20
_FULL = "No space left on device"
# Runs whose computer was switched off are removed after a day, programs not used for a month.
_PREPARE = """\
mkdir -p {folder}/tools && mkdir {own} {own}/compiled || exit 1
find {folder} -maxdepth 1 -name 'run-*' -mtime +0 -exec rm -rf {{}} + 2>/dev/null
find {folder}/tools -mindepth 1 -maxdepth 1 -mtime +30 -exec rm -rf {{}} + 2>/dev/null
exit 0"""
# A number may meanwhile be another process's: only those that name our folder are ended.
# Of the shell that runs the script: $$ would be the number of the one around it.
_NUMBER = "sh -c 'echo $PPID'"
_END = """\
for file in shell tool shell tool; do
  pid=$(cat {own}/$file 2>/dev/null) && [ -n "$pid" ] &&
  tr '\\000' ' ' < /proc/$pid/cmdline 2>/dev/null | grep -q {name} && kill -9 $pid
done"""


class AdbSession:
    """`own`: the run's folder there. Raises DeviceLostError when the phone is gone, everywhere."""

    def __init__(self, phone: Phone, uri: str) -> None:
        self._phone, self._uri = phone, uri
        self._name = f"run-{secrets.token_hex(8)}"
        self.own = f"{FOLDER}/{self._name}"
        self._there: dict[str, str] = {}
        self.facts = PhoneFacts("", "", "", (), 1)

    def prepare(self) -> None:
        """Makes the folder; `facts` are known then."""
        code, said = self._phone.shell(_PREPARE.format(folder=FOLDER, own=self.own), _SHORT)
        if code != 0:
            raise DeviceLostError(f"{self._uri}: cannot make {self.own} on the phone: {_last(said)}")
        self.facts = facts_from(self._phone.shell(FACTS_SCRIPT, _SHORT)[1])

    def conditions(self) -> dict[str, object]:
        """See phone_state.conditions_from."""
        return conditions_from(self._phone.shell(CONDITIONS_SCRIPT, _SHORT)[1], self.facts.cores)

    def put(self, local: Path) -> str:
        """The path there of this run's copy of a file; the same content is copied once."""
        digest = sha256_of(local)[:_DIGITS]
        if digest not in self._there:
            remote = f"{self.own}/{digest}{local.suffix}"
            self._phone.push(local, remote)
            self._there[digest] = remote
        return self._there[digest]

    def send(self, local: Path, name: str) -> str:
        """Copies a file to a name of this run, over what was there."""
        self._phone.push(local, f"{self.own}/{name}")
        return f"{self.own}/{name}"

    def fetch(self, name: str, local: Path, size: int) -> None:
        self._phone.pull(f"{self.own}/{name}", local, size)

    def install(self, files: Sequence[Path]) -> str:
        """The folder there with programs or libraries that stay for the next run, named by their content."""
        digests = [sha256_of(file) for file in files]
        folder = f"{FOLDER}/tools/{'-'.join(digest[:_DIGITS] for digest in digests[:4])}"
        if len(files) > 4:
            folder += f"-{len(files)}"
        sizes = " ".join(f"{file.stat().st_size}" for file in files)
        names = " ".join(shlex.quote(file.name) for file in files)
        code, said = self._phone.shell(
            f"cd {folder} && touch . && for file in {names}; do wc -c < $file; done", _SHORT
        )
        if code == 0 and said.split() == sizes.split():
            return folder
        # Copied beside and renamed: what has the name is complete.
        part = f"{self.own}/tools"
        self._phone.shell(f"mkdir -p {part}", _SHORT)
        for file in files:
            self._phone.push(file, f"{part}/{file.name}")
        code, said = self._phone.shell(
            f"chmod 755 {part}/* && rm -rf {folder} && mv {part} {folder} && touch {folder}", _SHORT
        )
        if code != 0:
            raise DeviceLostError(f"{self._uri}: cannot install {files[0].name} on the phone: {_last(said)}")
        return folder

    def call(self, line: str, timeout: float) -> tuple[int, str]:
        """One command. Raises TimedOutError once it was ended there."""
        return self._watched(self._started(line), timeout)

    def turn(self, lines: Sequence[str], timeout: float) -> tuple[list[tuple[int, str]], int | None]:
        """Commands one after the other: exit code and output of each; the fastest core's MHz after them."""
        parts = [f"echo {_PROCESS}\n{self._started(line)}\necho {_CODE} $?" for line in lines]
        clocks = "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"
        parts.append(f"echo {_CLOCKS} $(cat {clocks} 2>/dev/null)")
        text = self._watched("\n".join(parts), timeout)[1]
        text, _, clock = text.rpartition(_CLOCKS)
        done = []
        for chunk in text.split(f"{_PROCESS}\n")[1:]:
            said, _, code = chunk.rpartition(_CODE)
            done.append((int(code) if code.strip().isdigit() else 1, said))
        return done, max((int(value) // 1000 for value in clock.split() if value.isdigit()), default=None)

    def loop(self, line: str, before: str, after: str, count: int, timeout: float) -> tuple[int, str]:
        """`line`, with `before` and `after` it, for $i from 0 up to `count`; ends at the first that fails,
        with its exit code and what it said."""
        script = f"""\
i=0
while [ $i -lt {count} ]; do
  {before}
  {self._started(line + " > said")}
  code=$?
  [ $code = 0 ] || {{ cat said; exit $code; }}
  {after}
  i=$((i + 1))
done
cat said"""
        return self._watched(script, timeout)

    def _started(self, line: str) -> str:
        """In the background, so that its number is known and it can be ended."""
        return f"{line} 2>&1 & echo $! > {self.own}/tool; wait $!"

    def _watched(self, script: str, timeout: float) -> tuple[int, str]:
        try:
            code, said = self._phone.shell(f"cd {self.own} || exit 1; {_NUMBER} > shell\n{script}", timeout)
        except TimedOutError:
            gone = self._phone.gone()
            if gone is not None:
                raise DeviceLostError(gone) from None
            self._phone.shell(_END.format(own=self.own, name=self._name), _SHORT)
            raise TimedOutError(f"no answer within {timeout:g} s; ended there") from None
        if _FULL in said:
            raise DeviceLostError(f"{self._uri}: no room left on the phone: make room in {FOLDER}")
        return code, said

    def close(self) -> None:
        """Ends what still runs and removes the run's files; of a phone that is gone, nothing can be asked."""
        with contextlib.suppress(MissingToolError):
            self._phone.shell(f"{_END.format(own=self.own, name=self._name)}\nrm -rf {self.own}", _SHORT)


@contextmanager
def open_session(phone: Phone, uri: str) -> Iterator[AdbSession]:
    session = AdbSession(phone, uri)
    try:
        session.prepare()
        yield session
    finally:
        session.close()


def command_line(program: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """For the shell there."""
    settings = [f"{name}={shlex.quote(value)}" for name, value in (environment or {}).items()]
    return " ".join([*settings, shlex.quote(program), *map(shlex.quote, arguments)])


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines or ["it did not say why"])[-1]
