"""MODEL of the command line -> an opened model: its graph, its runtime, and what it says of its images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from edge_resnet.data.preprocess import Preprocess
from edge_resnet.errors import InputError
from edge_resnet.frontends.model_files import FORMATS, is_model_file, open_model_file
from edge_resnet.frontends.torch_models import open_torch_model
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.passes import reverse_channels, simplify
from edge_resnet.runners.base import Runner

__all__ = ["SourceModel", "import_graph", "open_model", "resolve_preprocess"]


class SourceModel(Protocol):
    """A trained model in the form in which it came.

    `preprocess_defaults` holds what its source declares (keys of Preprocess). `params` is None where the
    source does not say.
    """

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def weights_sha256(self) -> str | None: ...
    @property
    def preprocess_defaults(self) -> Mapping[str, Any]: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def params(self) -> int | None: ...

    def graph(self, preprocess: Preprocess) -> Graph:
        """The graph as imported: in floats, or in integers where the source is quantized already.

        Its image has the channels in the model's own order; `import_graph` gives the one that takes RGB.
        """
        ...

    def runner(self, preprocess: Preprocess) -> Runner:
        """The model for the uint8 images of an evaluation: on its own runtime, where that is fast enough."""
        ...

    def checker(self, preprocess: Preprocess) -> Runner:
        """The model on its own runtime, for the few images of the import check."""
        ...


def open_model(
    model: str,
    weights: Path | None,
    classes_of_data: int | None,
    seed: int,
    output: str | None = None,
    *,
    keep_integers: bool = True,
) -> SourceModel:
    """Open what MODEL names; `output` chooses one of several outputs of a file.

    `keep_integers=False` reads a model that is quantized already as the floats that it stands for.

    Raises InputError: an unknown name (the nearest are given), another architecture, a file that is damaged
    or of another kind, an error in the user's own code (its type and line are given).
    """
    if is_model_file(model):
        if weights is not None:
            raise InputError(f"{model}: holds its own weights; leave --weights out")
        return open_model_file(Path(model), output, keep_integers=keep_integers)
    if output is not None:
        raise InputError(
            f"--output chooses among the outputs of a file ({', '.join(FORMATS)}), not of {model}"
        )
    return open_torch_model(model, weights, classes_of_data, seed)


def import_graph(model: SourceModel, preprocess: Preprocess) -> Graph:
    """The model's graph, simplified, for RGB images."""
    graph = simplify(model.graph(preprocess.as_model_sees()))
    return reverse_channels(graph) if preprocess.channels == "bgr" else graph


def resolve_preprocess(defaults: Mapping[str, Any], overrides: Mapping[str, Any]) -> Preprocess:
    """The recipe's values over the model's. Raises InputError that asks for what nobody declares."""
    values = {**defaults, **overrides}
    examples = {"size": "224", "mean": "[0.485,0.456,0.406]", "std": "[0.229,0.224,0.225]"}
    missing = [key for key in examples if key not in values]
    if missing:
        asked = " ".join(f"--set preprocess.{key}={examples[key]}" for key in missing)
        raise InputError(
            f"the model does not declare its preprocessing; say what it was trained with: {asked}"
        )
    return Preprocess.from_json(values)
