"""Command lines for a board's login shell, whichever that is."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["serving", "telling_signals"]

# Which Python: boards have an old `python3` beside a newer one. 127: none; 126: too old.
_FIND = (
    "for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python3.9; do "
    "if command -v $p >/dev/null 2>&1 && "
    '$p -c "import sys; sys.exit(sys.version_info < (3, 9))" >/dev/null 2>&1; '
    'then exec $p -c "$0" "$1" serve "$2" "$3" "$(command -v $p)"; fi; done; '
    "command -v python3 >/dev/null 2>&1 || exit 127; python3 --version 1>&2; exit 126"
)
# The program comes first on standard input: nothing has to be there before. Modules are not looked for in the
# home folder, where people have a random.py.
_LOAD = (
    "import sys; sys.path = [place for place in sys.path if place]; "
    'exec(compile(sys.stdin.buffer.read(int(sys.argv.pop(1))), "board.py", "exec"))'
)
# The status of a process that a signal killed does not cross ssh; its shell's does.
_TELL_SIGNAL = (
    '"$0" "$@"; c=$?; if [ $c -gt 128 ]; then '
    'echo "killed there by signal $((c - 128)) (9: the system does that when memory runs out)" 1>&2; fi; '
    "exit $c"
)
# Closed, escaped outside of quotes, and opened again: in sh, csh and fish alike. In fish, which shlex does
# not know, a backslash before a closing quote would take its meaning from it.
_ESCAPES = str.maketrans({"'": "'\"'\"'", "\\": "'\\\\'"})


def serving(size: int, folder: str, session: str) -> str:
    """Starts board.py, of which `size` bytes will come on standard input."""
    return _replacing(["sh", "-c", _FIND, _LOAD, str(size), folder, session])


def telling_signals(command: Sequence[str]) -> str:
    """Runs a command, and says on standard error which signal killed it."""
    return _replacing(["sh", "-c", _TELL_SIGNAL, *command])


def _replacing(words: Sequence[str]) -> str:
    return "exec " + " ".join(f"'{word.translate(_ESCAPES)}'" for word in words)
