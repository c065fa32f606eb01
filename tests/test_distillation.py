"""Learning from a teacher: losses against formulas, training that repairs, kills that change nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edge_resnet.compression.fine_tuning import FineTuningTask, normalized_module, trained_graph
from edge_resnet.data.images import open_images
from edge_resnet.distillation import Distiller, Teacher, check_teacher
from edge_resnet.errors import InputError
from edge_resnet.frontends.sources import import_graph, open_model, resolve_preprocess
from edge_resnet.graph.float_executor import FloatExecutor, input_values
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, FloatWeights
from edge_resnet.graph.passes import lower_for_integers, simplify
from edge_resnet.recipe import Distillation, FineTuning
from edge_resnet.training import fit
from tests.random_graphs import random_graph, random_pixels


class Answers:
    """A teacher that knows one batch."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = lambda images: logits


def loss_of(student: torch.Tensor, teacher: torch.Tensor, **distill: object) -> float:
    settings = FineTuning(label_smoothing=0.1, distill=Distillation(**distill))
    labels = torch.arange(len(student)) % student.shape[1]
    distiller = Distiller(settings, Answers(teacher))  # type: ignore[arg-type]
    return float(distiller.loss(student, labels, lambda: torch.zeros(0)))


def random_logits(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_kl_is_the_formula() -> None:
    student, teacher = random_logits(8, 5)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    hard = F.cross_entropy(student, torch.arange(8) % 5, label_smoothing=0.1)
    expected = 0.75 * hard + 0.25 * 9 * divergence
    assert loss_of(student, teacher, weight=0.25, temperature=3) == pytest.approx(float(expected), rel=1e-5)


def test_dist_is_correlations() -> None:
    student, teacher = random_logits(8, 5)
    p, q = (student / 2).softmax(1).numpy(), (teacher / 2).softmax(1).numpy()
    inter = np.mean([np.corrcoef(p[i], q[i])[0, 1] for i in range(8)])
    intra = np.mean([np.corrcoef(p[:, c], q[:, c])[0, 1] for c in range(5)])
    found = loss_of(student, teacher, weight=1, loss="dist", temperature=2)
    assert found == pytest.approx(4 * (2 - inter - intra), rel=1e-4)
    assert loss_of(teacher, teacher, weight=1, loss="dist") == pytest.approx(0, abs=1e-4)
    assert np.isfinite(loss_of(student, torch.zeros(8, 5), weight=1, loss="dist"))  # no correlation at all


def test_a_teacher_answers_as_its_graph() -> None:
    graph = simplify(random_graph(7))
    pixels = random_pixels(graph, 5)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    answers = Teacher(graph, "float32").logits(images).numpy()
    assert np.allclose(answers, FloatExecutor(graph).run(pixels), atol=1e-4)
    # The lowered graph reads bytes as integers: the same answers, but for the border.
    assert Teacher(lower_for_integers(graph), "bfloat16").logits(images).shape == (5, 5)


def test_a_teacher_of_another_size_or_with_other_classes_is_refused() -> None:
    graph = simplify(random_graph(7))
    with pytest.raises(InputError, match="needs the same size"):
        check_teacher(simplify(random_graph(8)), graph)
    flat = Graph("other", graph.until(graph.output.inputs[0]).nodes)
    with pytest.raises(InputError, match="classes"):
        check_teacher(flat, graph)


def damage(graph: Graph) -> Graph:
    """Each channel of a convolution loses its weights with a chance of a third."""
    rng = np.random.default_rng(0)

    def damaged(conv: Conv) -> Conv:
        lost = rng.random(len(conv.weights.weight)) < 1 / 3
        weight = np.where(lost[:, None, None, None], 0, conv.weights.weight).astype(np.float32)
        return replace(conv, weights=FloatWeights(weight, conv.weights.bias))

    return graph.with_nodes(damaged(node) if isinstance(node, Conv) else node for node in graph.nodes)


def test_fine_tuning_repairs_a_damaged_model() -> None:
    """A third of the channels of the demo's convolutions are set to 0; one epoch of 1,000 images."""
    model = open_model("demo", None, 10, 0)
    preprocess = resolve_preprocess(model.preprocess_defaults, {})
    original = import_graph(model, preprocess)
    damaged = damage(original)
    splits = open_images("demo")
    train, val = splits.split("train"), splits.split("val")
    chosen = train.order(0)[:1000]
    part = replace(train, paths=[train.paths[i] for i in chosen], labels=train.labels[chosen])
    first = next(iter(part.batches(np.arange(256), preprocess, 256))).pixels
    test = next(iter(val.batches(val.order(0)[:500], preprocess, 500)))

    def top1(graph: Graph) -> float:
        return float((FloatExecutor(graph).run(test.pixels).argmax(1) == test.labels).mean())

    settings = FineTuning(epochs=1, flip=False, crop_padding=1, batch=32)
    module = normalized_module(damaged, [input_values(damaged.input, first)])
    found = module.eval()(input_values(damaged.input, test.pixels)).detach().numpy()
    assert np.allclose(found, FloatExecutor(damaged).run(test.pixels), atol=1e-3)  # nothing changed so far
    task = FineTuningTask(module, damaged, Distiller(settings, Teacher(original, "bfloat16")))
    record = fit(task, part, preprocess, settings, 0)
    assert record.name == "finetune"
    assert top1(damaged) < 0.6
    assert top1(trained_graph(damaged, module)) > 0.9
