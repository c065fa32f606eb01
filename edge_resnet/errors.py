"""Every error a user can meet, with the exit code that the command line gives it.

The message is one or two lines: what is wrong, where, and what to do.
"""

from __future__ import annotations

__all__ = [
    "EdgeResnetError",
    "GraphError",
    "InputError",
    "MissingToolError",
    "UnsupportedOperatorError",
    "VerificationError",
    "first_line",
]


class EdgeResnetError(Exception):
    """Base class: an error whose message is meant for the user."""

    exit_code = 2


class InputError(EdgeResnetError):
    """A file, an option or a data set that the user gave cannot be used."""


class UnsupportedOperatorError(InputError):
    """The model holds an operator that the graph does not know."""


class GraphError(EdgeResnetError):
    """A graph that means nothing; the message names the node."""


class VerificationError(EdgeResnetError):
    """An artifact does not say, or does not do, what its graph says."""

    exit_code = 1


class MissingToolError(EdgeResnetError):
    """A device, a package or a runtime is not there, or was lost."""

    exit_code = 3


def first_line(error: BaseException) -> str:
    """What a library's error says first, or its type where it says nothing: enough for one clear line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
