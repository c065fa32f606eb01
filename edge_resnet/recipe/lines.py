"""YAML that remembers its lines, for errors that say where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edge_resnet.errors import InputError

__all__ = ["Document", "read_document", "yaml_problem"]


@dataclass(frozen=True)
class Document:
    """A YAML file: its `values`, and the tree of nodes that knows the line of each key."""

    path: Path
    values: Any
    root: yaml.Node | None

    def line(self, key: Sequence[str | int]) -> int | None:
        """The line, from 1, on which the key stands; None where the file does not have it."""
        node, line = self.root, None
        for part in key:
            found = _child(node, part)
            if found is None:
                return None
            line, node = found
        return line

    def place(self, key: Sequence[str | int]) -> str:
        """`FILE:LINE` of the key, or of the nearest section around it that the file has."""
        for length in range(len(key), 0, -1):
            line = self.line(key[:length])
            if line is not None:
                return f"{self.path}:{line}"
        return str(self.path)


def read_document(path: Path) -> Document:
    """Read a YAML file with the safe loader.

    Raises InputError with the line: unreadable, not YAML, or a key that a mapping holds twice, of which YAML
    would silently take the second.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the recipe: {error}") from error
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return Document(path, None, None)
        _refuse_duplicates(root, path)
        return Document(path, loader.construct_document(root), root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise InputError(f"{where}: not YAML: {yaml_problem(error)}") from error
    except ValueError as error:  # a date that is none, such as 2026-99-99
        raise InputError(f"{path}: not YAML: {error}") from error
    except RecursionError as error:
        raise InputError(f"{path}: not a recipe: nested too deeply") from error


def yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong, on one line, without the excerpt that PyYAML adds."""
    problem = getattr(error, "problem", None) or str(error)
    context = getattr(error, "context", None)
    return " ".join(f"{context + ': ' if context else ''}{problem}".split())


def _child(node: yaml.Node | None, part: str | int) -> tuple[int, yaml.Node] | None:
    """A mapping's value or a sequence's item, with its line. Merged keys (<<) stand before the own."""
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        item = node.value[part]
        return item.start_mark.line + 1, item
    if isinstance(node, yaml.MappingNode):
        for key, value in reversed(node.value):
            if key.value == str(part):
                return key.start_mark.line + 1, value
    return None


def _refuse_duplicates(root: yaml.Node, path: Path) -> None:
    """Each node is looked at once, however many aliases point at it."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                waiting += [key, value]
                if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                    continue
                line = key.start_mark.line + 1
                name = key.tag, key.value
                if name in lines:
                    raise InputError(
                        f"{path}:{line}: {key.value!r} is here a second time (first on line {lines[name]}); "
                        "keep one of them"
                    )
                lines[name] = line
