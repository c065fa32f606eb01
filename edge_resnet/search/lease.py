"""A worker shows that it is alive while it has a trial; a trial whose worker is gone is given to another.

The same for databases and journals: Optuna's own heartbeat exists for databases only.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

__all__ = ["Leases", "counts", "give_up", "held"]

_WORKER, _BEAT, _LOST = "worker", "beat", "lost"
_BEAT_SECONDS = 10.0
# Six beats: a machine may be short of breath, or its clock's network drive.
_GONE_SECONDS = 60.0
_MOST_RETRIES = 2


def counts(trial: FrozenTrial) -> bool:
    """Whether the trial is one of those that were asked for: not waiting, and not lost with its worker."""
    from optuna.trial import TrialState

    return trial.state != TrialState.WAITING and _LOST not in trial.user_attrs


def give_up(trial: Trial, reason: str) -> None:
    """Mark a trial as one that does not count; the caller tells its end."""
    trial.set_user_attr(_LOST, reason)


@contextmanager
def held(trial: Trial) -> Iterator[None]:
    """While the block runs, others see that this process is alive."""
    trial.set_user_attr(_WORKER, _this_worker())
    ended = threading.Event()

    def beat() -> None:
        number = 0
        while not ended.wait(_BEAT_SECONDS):
            number += 1
            # A beat that is missed is no reason to stop; so is a storage that is busy.
            with suppress(Exception):
                trial.set_user_attr(_BEAT, number)

    thread = threading.Thread(target=beat, daemon=True, name="edge-resnet-beat")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Leases:
    """What this process has seen of other workers' beats; by its own clock, since theirs may differ."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._seen: dict[int, tuple[Any, float]] = {}

    def take_back(self) -> int:
        """End the trials whose workers are gone, and enqueue the same values again. How many were taken."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        taken = 0
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for trial in running:
            if not self._gone(trial):
                continue
            storage, identifier = self._study._storage, trial._trial_id
            try:
                storage.set_trial_user_attr(identifier, _LOST, "its worker ended in the middle of it")
                storage.set_trial_state_values(identifier, state=TrialState.FAIL)
            except UpdateFinishedTrialError:  # another worker was faster, or it was not gone after all
                continue
            taken += 1
            retries = int(trial.user_attrs.get("retries", 0))
            values = trial.params or trial.system_attrs.get("fixed_params")
            if values and retries < _MOST_RETRIES:
                self._study.enqueue_trial(values, user_attrs={"retries": retries + 1})
        return taken

    def _gone(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get(_WORKER)
        if worker is not None and worker["machine"] == _machine():
            return not _alive(worker["pid"], worker["started"])
        beat, now = trial.user_attrs.get(_BEAT), time.monotonic()
        before, since = self._seen.setdefault(trial.number, (beat, now))
        if before != beat:
            self._seen[trial.number] = beat, now
            return False
        return now - since > _GONE_SECONDS


def _this_worker() -> dict[str, Any]:
    return {"machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def _machine() -> str:
    """This machine, and on Linux this container: process numbers mean something within it."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return f"{platform.node()} {space}".strip()


def _alive(pid: int, started: str | None) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return started is None or _started(pid) == started


def _started(pid: int) -> str | None:
    """When a process began, so that another with its number is not taken for it; None: not known here."""
    with suppress(OSError, IndexError):
        # The command's name, in parentheses, may hold anything; state and start follow it.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return "ended" if state == "Z" else fields[18]
    return None
