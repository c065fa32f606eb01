"""What the user says about how a board is reached."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from urllib.parse import unquote

from edge_resnet.errors import InputError

__all__ = ["OPTIONS_VARIABLE", "Target", "parse_target", "user_options"]

OPTIONS_VARIABLE = "EDGE_RESNET_SSH_OPTIONS"
_FOLDER = "~/.cache/edge-resnet"

_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_.])?")
_IPV6 = re.compile(r"\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?)\]")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+\\-]*\$?")
_NAKED, _VALUED = ("-4", "-6"), ("-F", "-i", "-J", "-o")


@dataclass(frozen=True)
class Target:
    """What follows ssh://. `folder`: ours on the board; there, ~/ is the user's home."""

    uri: str
    host: str
    user: str | None
    port: int | None
    folder: str

    @property
    def login(self) -> str:
        """What the user types after `ssh`."""
        port = "" if self.port is None else f"-p {self.port} "
        return port + (f"{self.user}@" if self.user else "") + self.host

    @property
    def arguments(self) -> list[str]:
        user = [] if self.user is None else ["-l", self.user]
        port = [] if self.port is None else ["-p", str(self.port)]
        return [*user, *port, "--", self.host]


def parse_target(uri: str) -> Target:
    """ssh://[user@]host[:port][/folder]. Raises InputError."""

    def wrong(why: str) -> InputError:
        return InputError(f"--device {uri!r}: {why}; it is ssh://[user@]host[:port][/folder there]")

    scheme, separator, rest = uri.partition("://")
    if scheme != "ssh" or not separator:
        raise wrong("no such URI")
    place, slash, path = rest.partition("/")
    user, at, address = place.rpartition("@")
    if ":" in user:
        raise wrong("passwords are not taken, only keys")
    if at and not _USER.fullmatch(user):
        raise wrong(f"{user!r} is not the name of a user")
    found = re.fullmatch(r"(\[.*\]|[^:]*)(?::([^:]*))?", address, re.DOTALL)
    if found is None:
        raise wrong("an IPv6 address stands in brackets")
    host, port = found.groups()
    ipv6 = _IPV6.fullmatch(host)
    if ipv6 is None and not _HOST.fullmatch(host):
        raise wrong(f"{host!r} is not the name of a host")
    if port is not None and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        raise wrong(f"{port!r} is not a port")
    folder = unquote(slash + path).rstrip("/")
    if not folder.isprintable():
        raise wrong("its folder has unprintable characters")
    if folder.startswith("/~"):
        folder = folder[1:]
    return Target(
        uri,
        ipv6[1] if ipv6 else host,
        user if at else None,
        None if port is None else int(port),
        folder or _FOLDER,
    )


def user_options() -> list[str]:
    """What EDGE_RESNET_SSH_OPTIONS says. Raises InputError for what is none of the options above."""
    text = os.environ.get(OPTIONS_VARIABLE, "")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"{OPTIONS_VARIABLE}={text!r}: {error}") from error
    left = iter(words)
    for word in left:
        value = word in _NAKED or (len(word) > 2 and word[:2] in _VALUED)
        if not value and (word not in _VALUED or next(left, None) is None):
            known = ", ".join((*_VALUED, *_NAKED))
            raise InputError(
                f"{OPTIONS_VARIABLE}: {word!r} is not taken; these are, with their values: {known}"
            )
    return words
