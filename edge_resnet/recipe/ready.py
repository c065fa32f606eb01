"""The ready recipes that come with the program: `--recipe qat` is `recipes/qat.yaml`.

`ready/` is a link to the checkout's `recipes/`; a wheel holds the files themselves there.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["description_of", "ready_folder", "ready_recipes"]

_MODELINE = "# yaml-language-server:"


def ready_folder() -> Path:
    return (Path(__file__).parent / "ready").resolve()


def ready_recipes() -> dict[str, Path]:
    """Name -> file, sorted by name."""
    return {path.stem: path for path in sorted(ready_folder().glob("*.yaml"), key=lambda path: path.stem)}


def description_of(path: Path) -> str:
    """The first line of the comment at the top; empty where there is none."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith(_MODELINE):
            return line.removeprefix("#").strip()
    return ""
