"""What ssh and a board complain of, in one clear line each."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

from edge_resnet.devices.device import DeviceLostError

__all__ = ["explained", "full", "no_hello", "refused"]

# In OpenSSH's words, which it does not translate; {login} is what the user types after `ssh`.
_FAULTS = (
    ("REMOTE HOST IDENTIFICATION HAS CHANGED",
     "its host key has changed: another machine answers, or it was installed anew; if you know why, "
     "`ssh-keygen -R {known}`, then `ssh {login}`"),
    ("Host key verification failed",
     "its host key is not known yet: connect once by hand, `ssh {login}`, and compare the fingerprint"),
    ("Permission denied",
     "login refused: only keys are tried, no passwords; `ssh-copy-id {login}`, or give the key by "
     "EDGE_RESNET_SSH_OPTIONS=\"-i FILE\""),
    ("Too many authentication failures",
     "login refused after too many keys; name the right one by "
     "EDGE_RESNET_SSH_OPTIONS=\"-i FILE -o IdentitiesOnly=yes\""),
    ("Could not resolve hostname", "no host of that name: {line}"),
    ("Connection refused", "unreachable: {line}; does sshd run there, on that port?"),
    ("timed out", "unreachable: {line}; is it switched on and in this network?"),
    ("No route to host", "unreachable: {line}; is it switched on and in this network?"),
    ("Network is unreachable", "unreachable: {line}"),
    ("Unable to negotiate", "its sshd is too old or too new for this ssh: {line}"),
    ("Bad configuration option", "the options of ssh are wrong: {line}"),
    ("Bad owner or permissions", "this machine's ssh refuses its configuration: {line}"),
)  # fmt: skip
_NO_PYTHON, _OLD_PYTHON, _SSH_FAILED = 127, 126, 255
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def explained(uri: str, login: str, code: int, said: str) -> str:
    """Why the first ssh ended with exit code `code`; `said`: its standard error."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit code {code}"
    for words, meaning in _FAULTS if code == _SSH_FAILED else ():
        line = next((line for line in reversed(lines) if words.lower() in line.lower()), None)
        if line is not None:
            return f"{uri}: " + meaning.format(login=login, line=line, known=_known_as(login))
    if code == _NO_PYTHON:
        return f"{uri}: there is no Python there: install Python 3.9 or newer (Debian: apt install python3)"
    if code == _OLD_PYTHON:
        return f"{uri}: its Python is too old ({last}): install Python 3.9 or newer beside it"
    return f"{uri}: the connection failed: {last}"


def _known_as(login: str) -> str:
    """As known_hosts names the host."""
    *port, place = login.removeprefix("-p ").split()
    host = place.rpartition("@")[2]
    return f"'[{host}]:{port[0]}'" if port and port[0] != "22" else host


def no_hello(uri: str, line: str) -> str:
    """Something else than board.py spoke first."""
    return (
        f"{uri}: its shell prints {line.strip()[:80]!r} before it runs a command: let its start files "
        "(.bashrc, .profile) print in interactive shells only"
    )


def refused(uri: str, folder: str, answer: Mapping[str, Any]) -> DeviceLostError:
    """What board.py said that the system there does not allow."""
    if answer.get("errno") in _FULL:
        return full(uri, folder, answer.get("free"))
    return DeviceLostError(
        f"{uri}: {folder} cannot be used there: {answer['error']}; another folder can be named behind the "
        "host: ssh://host/folder"
    )


def full(uri: str, folder: str, free: int | None = None) -> DeviceLostError:
    left = "" if free is None else f" ({free / 2**20:.1f} MiB free)"
    return DeviceLostError(
        f"{uri}: no space left there in {folder}{left}: make room, or name another folder behind the host: "
        "ssh://host/folder"
    )
