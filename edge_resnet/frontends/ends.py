"""What is asked of the ends of a model file, whatever its format: one output, and images of its size."""

from __future__ import annotations

from collections.abc import Sequence

from edge_resnet.errors import InputError

__all__ = ["check_size", "chosen_output"]


def chosen_output(origin: str, names: Sequence[str], output: str | None) -> str:
    """The only output, or the one that the user named. Raises InputError that lists them."""
    if output is None and len(names) == 1:
        return names[0]
    if output is None or output not in names:
        wrong = f"no output {output!r}" if output is not None else f"{len(names)} outputs"
        raise InputError(f"{origin}: the model has {wrong}; choose one: --output {' | '.join(names)}")
    return output


def check_size(origin: str, own: tuple[int, int] | None, wanted: tuple[int, int]) -> None:
    """Raises InputError where the model takes images of one size (`own`), and that is not `wanted`."""
    if own is not None and own != wanted:
        raise InputError(
            f"{origin}: the model takes {own[0]}x{own[1]} images, not {wanted[0]}x{wanted[1]}; "
            f"--set preprocess.size=[{own[0]},{own[1]}]"
        )
