"""Learning from a teacher: losses against formulas, training that repairs, kills that change nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edge_resnet.compression.calibrate import calibrate
from edge_resnet.compression.fine_tuning import FineTuningTask, normalized_module, trained_graph
from edge_resnet.compression.graph_module import GraphModule
from edge_resnet.compression.qat import QatTask
from edge_resnet.compression.qat_module import QatModule
from edge_resnet.compression.quantize import quantize
from edge_resnet.data.images import ImageSplit, open_images
from edge_resnet.data.preprocess import Preprocess
from edge_resnet.distillation import Distiller, Teacher, TeacherAnswers, check_teacher, stage_pairs
from edge_resnet.distillation import cache as answers_file
from edge_resnet.distillation.features import attention_distance, fitted_maps
from edge_resnet.errors import InputError
from edge_resnet.frontends.sources import import_graph, open_model, resolve_preprocess
from edge_resnet.graph.float_executor import FloatExecutor, input_values
from edge_resnet.graph.graph import Graph
from edge_resnet.graph.nodes import Conv, FloatWeights
from edge_resnet.graph.passes import lower_for_integers, simplify
from edge_resnet.graph.reference import ReferenceExecutor
from edge_resnet.progress import SilentProgress
from edge_resnet.recipe import Distillation, FineTuning, Qat, load_recipe
from edge_resnet.run import Run
from edge_resnet.stages.source import import_source, open_run
from edge_resnet.stages.training import fine_tune
from edge_resnet.targets import parse_targets
from edge_resnet.training import LiveMetrics, Portion, data, fit, loop
from tests.random_graphs import random_graph, random_pixels


@dataclass(frozen=True, eq=False)
class Demo:
    graph: Graph
    preprocess: Preprocess
    train: ImageSplit
    pixels: np.ndarray
    labels: np.ndarray

    def top1(self, graph: Graph) -> float:
        return float((FloatExecutor(graph).run(self.pixels).argmax(1) == self.labels).mean())


@pytest.fixture(scope="module")
def demo() -> Demo:
    model = open_model("demo", None, 10, 0)
    preprocess = resolve_preprocess(model.preprocess_defaults, {})
    splits = open_images("demo")
    val = splits.split("val")
    test = next(iter(val.batches(val.order(0), preprocess, len(val))))
    graph = import_graph(model, preprocess)
    return Demo(graph, preprocess, splits.split("train"), test.pixels, test.labels)


@pytest.fixture
def folder(image_folder: Path) -> ImageSplit:
    """24 images."""
    return open_images(str(image_folder)).split("train")


def portion_of(pixels: np.ndarray, labels: torch.Tensor) -> Portion:
    count = len(labels)
    return Portion(0, pixels, labels.numpy(), count, np.arange(count), np.zeros(count, np.bool_))


def bytes_of(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float()


class Answers:
    """A teacher that knows one batch."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.run = lambda images, wanted: (logits, {})


def loss_of(student: torch.Tensor, teacher: torch.Tensor, **distill: object) -> float:
    settings = FineTuning(label_smoothing=0.1, distill=Distillation(**distill))
    labels = torch.arange(len(student)) % student.shape[1]
    distiller = Distiller(settings, Answers(teacher))  # type: ignore[arg-type]
    portion = portion_of(np.zeros((len(labels), 1, 1, 3), np.uint8), labels)
    return float(distiller.loss(student, labels, portion, lambda: torch.zeros(0)))


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
    images = bytes_of(pixels)
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


def test_attention_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(3, 4, 5, 6, generator=generator),
        torch.randn(3, 7, 5, 6, generator=generator),
    )
    expected = 0.0
    for mine, theirs in zip(student.numpy(), teacher.numpy(), strict=True):
        a, b = (np.square(x).mean(0).ravel() for x in (mine, theirs))
        expected += float(np.square(a / np.linalg.norm(a) - b / np.linalg.norm(b)).sum()) / 3
    assert float(attention_distance(student, teacher)) == pytest.approx(expected, rel=1e-5)
    assert float(attention_distance(5 * teacher, teacher)) == pytest.approx(0, abs=1e-6)


@torch.no_grad()
def test_hints_begin_at_least_squares() -> None:
    """What is left of the teacher's variance is what numpy's least squares leave; a copy leaves nothing."""
    rng = np.random.default_rng(0)
    student = (rng.normal(size=(40, 4, 5, 6)) * np.array([1, 3, 0.5, 2])[:, None, None] + 2).astype(
        np.float32
    )
    mix = rng.normal(size=(7, 4))
    teacher = np.einsum("ij,njhw->nihw", mix, student) + 4 * rng.normal(size=(40, 7, 5, 6))
    teacher[:, 3] = 5.0  # constant: there is nothing to learn of it
    s, t = student.transpose(0, 2, 3, 1).reshape(-1, 4), teacher.transpose(0, 2, 3, 1).reshape(-1, 7)
    with_one = np.concatenate([s, np.ones((len(s), 1))], 1)
    residual = t - with_one @ np.linalg.lstsq(with_one, t, rcond=None)[0]
    left = np.divide(residual.var(0), t.var(0), out=np.zeros(7), where=t.var(0) > 1e-9)
    pair = torch.from_numpy(student), torch.from_numpy(teacher.astype(np.float32))
    halves = [[tuple(x[part] for x in pair)] for part in (slice(20), slice(20, 40))]
    (found,) = fitted_maps(halves)
    assert float(found(*pair)) == pytest.approx(float(left.mean()), rel=0.01)
    (copy,) = fitted_maps([[(pair[0], pair[0])]])
    assert float(copy(pair[0], pair[0])) < 1e-4
    assert float(copy(torch.zeros_like(pair[0]) + pair[0].mean((0, 2, 3), keepdim=True), pair[0])) > 0.9


def test_the_tensors_are_those_of_the_graph(demo: Demo) -> None:
    """Of the float module, and, as real values, of the integers."""
    wanted = tuple(pair.student for pair in stage_pairs(demo.graph, demo.graph))
    assert [demo.graph.shapes[name][1:] for name in wanted] == [(32, 32), (16, 16), (8, 8)]
    pixels, seen = demo.pixels[:8], {}
    FloatExecutor(demo.graph).run(pixels, lambda name, values: seen.update({name: values.clone()}))
    _, found = GraphModule(demo.graph).eval().run(input_values(demo.graph.input, pixels), wanted)
    assert found.keys() == set(wanted)
    assert all(torch.allclose(found[name], seen[name], atol=1e-4) for name in wanted)

    floating = lower_for_integers(demo.graph)
    integers = quantize(floating, calibrate(floating, [pixels]))
    wanted = tuple(pair.student for pair in stage_pairs(floating, demo.graph))
    module = QatModule(floating, integers, Qat(epochs=1)).eval()
    _, found = module.run(module.inputs(pixels), wanted)
    for name in wanted:
        quant = integers.by_name[name].quant
        expected = ReferenceExecutor(integers.until(name)).run(pixels).astype(np.float32)
        real = (expected - quant.zero_point) * np.float32(quant.scale)
        assert np.allclose(found[name].detach(), real)


def test_a_teacher_without_a_common_resolution_is_refused(demo: Demo) -> None:
    flat = random_graph(7)
    with pytest.raises(InputError, match="residual sums at 32x32, 16x16, 8x8, random at no size: hints"):
        stage_pairs(flat, demo.graph)


@pytest.mark.parametrize("distill", [{"hints": 1.0}, {"attention": 1.0}])
def test_integers_are_drawn_to_the_teacher(demo: Demo, distill: dict[str, float]) -> None:
    """The student is damaged, and only hints or attention teach it."""
    floating = lower_for_integers(damage(demo.graph))
    pixels = demo.pixels[:32]
    integers = quantize(floating, calibrate(floating, [pixels]))
    settings = Qat(epochs=1, precision="float32", distill=Distillation(**distill))
    module = QatModule(floating, integers, settings).eval()
    distiller = Distiller(settings, Teacher(demo.graph, "float32"), floating)
    distiller.start(module, [(module.inputs(pixels), bytes_of(pixels))])
    task = QatTask(module.train(), distiller)
    labels = torch.from_numpy(demo.labels[:32])
    optimizer = torch.optim.SGD(task.parameter_groups(settings), 0.01, momentum=0.9)
    inputs, portion, losses = task.inputs(pixels), portion_of(pixels, labels), []
    for _ in range(12):
        loss, logits = task.loss(task.module, inputs, labels, portion)
        loss = loss - F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]


def damage(graph: Graph) -> Graph:
    """Each channel of a convolution loses its weights with a chance of a third."""
    rng = np.random.default_rng(0)

    def damaged(conv: Conv) -> Conv:
        lost = rng.random(len(conv.weights.weight)) < 1 / 3
        weight = np.where(lost[:, None, None, None], 0, conv.weights.weight).astype(np.float32)
        return replace(conv, weights=FloatWeights(weight, conv.weights.bias))

    return graph.with_nodes(damaged(node) if isinstance(node, Conv) else node for node in graph.nodes)


class Counted(Teacher):
    """How often was it asked?"""

    asked = 0

    def run(
        self, images: torch.Tensor, wanted: tuple[str, ...]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        self.asked += 1
        return super().run(images, wanted)


def tuning(
    demo: Demo, folder: ImageSplit, settings: FineTuning, answers: TeacherAnswers | None = None
) -> tuple[FineTuningTask, Counted]:
    student, teacher = damage(demo.graph), Counted(demo.graph, "bfloat16")
    pixels = next(iter(folder.batches(np.arange(16), demo.preprocess, 16))).pixels
    inputs = input_values(student.input, pixels)
    module = normalized_module(student, [inputs])
    distiller = Distiller(settings, teacher, student, answers)
    distiller.start(module.eval(), [(inputs, bytes_of(pixels))])
    teacher.asked = 0
    return FineTuningTask(module, student, distiller, "finetune-step1"), teacher


class Interruption(Exception):
    pass


def interrupt_at(step: int) -> Callable[[LiveMetrics], None]:
    def report(live: LiveMetrics) -> None:
        if live.step == step:
            raise Interruption

    return report


STEPS = {"epochs": 3, "batch": 8, "crop_padding": 0, "learning_rate": 0.01}


@pytest.mark.parametrize("change", [{"hints": 0.5, "attention": 0.5}, {"loss": "dist"}])
def test_a_killed_fine_tuning_comes_to_the_same_bits(
    demo: Demo,
    folder: ImageSplit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
) -> None:
    """With learned maps; and with the teacher's answers from a file that was killed as well."""
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(answers_file, "_BATCH", 8)
    settings = FineTuning(**STEPS, distill=Distillation(weight=0.5, **change))
    kept = not settings.distill.compares_tensors

    def answers(name: str) -> TeacherAnswers | None:
        teacher = Teacher(demo.graph, settings.precision)
        arguments = (teacher, settings, len(folder), demo.preprocess, "24 images")
        return TeacherAnswers(tmp_path / name, *arguments) if kept else None

    def filled(name: str) -> TeacherAnswers | None:
        found = answers(name)
        if found is not None:
            found.fill(folder, "cpu", False, lambda images: None)
            assert not found.missing
        return found

    def killed(images: int) -> None:
        raise Interruption

    task, teacher = tuning(demo, folder, settings, filled("whole"))
    fit(task, folder, demo.preprocess, settings, 0)
    assert teacher.asked == (0 if kept else 9)
    assert any(name.startswith("hints.0.") for name in task.module.state_dict()) != kept
    other = answers("killed")
    if other is not None:
        with pytest.raises(Interruption):
            other.fill(folder, "cpu", False, killed)
        assert answers("killed").missing == 16  # type: ignore[union-attr]
    state = tmp_path / "state"
    for step in (2, 4):
        again, _ = tuning(demo, folder, settings, filled("killed"))
        with pytest.raises(Interruption):
            fit(again, folder, demo.preprocess, settings, 0, state=state, report=interrupt_at(step))
    again, _ = tuning(demo, folder, settings, filled("killed"))
    record = fit(again, folder, demo.preprocess, settings, 0, state=state)
    assert record.resumed_at == (1, 3)
    assert (state / "finetune-step1").is_dir()
    for name, value in task.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name]), name
    # The maps are dropped: what is trained on is a graph like the one before.
    assert trained_graph(task.graph, task.student).shapes == demo.graph.shapes


@pytest.mark.parametrize("memory", [0, 2**30])
def test_answers_are_those_of_the_images_that_are_shown(
    demo: Demo, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    """Mirrored or not, decoded once or again and again, and with an image that cannot be decoded."""
    monkeypatch.setattr(data, "MEMORY", memory)
    (image_folder / "train" / "green" / "3.png").write_bytes(b"no image")
    split = open_images(str(image_folder)).split("train")
    settings = FineTuning(**STEPS, precision="float32")
    teacher = Teacher(demo.graph, "float32")
    answers = TeacherAnswers(tmp_path, teacher, settings, len(split), demo.preprocess, "")
    with pytest.raises(InputError, match="corrupt image"):
        answers.fill(split, "cpu", False, lambda images: None)
    answers.fill(split, "cpu", True, lambda images: None)
    assert not answers.missing
    images = data.TrainingImages(split, demo.preprocess, settings, 0, True)
    shown = list(images.portions(0, 0, 0, 1))
    assert {bool(m) for portion in shown for m in portion.mirrored} == {True, False}
    for portion in shown:
        expected = teacher.logits(bytes_of(portion.pixels))
        assert torch.allclose(answers.of(portion.indices, portion.mirrored), expected, atol=1e-4)
    # A file that was cut short is made anew; another teacher has another file.
    answers.path.write_bytes(answers.path.read_bytes()[:-100])
    assert TeacherAnswers(tmp_path, teacher, settings, len(split), demo.preprocess, "").missing == 24
    other = Teacher(damage(demo.graph), "float32")
    assert TeacherAnswers(tmp_path, other, settings, len(split), demo.preprocess, "").path != answers.path


def demo_run(out: Path) -> Run:
    settings = ["finetune.epochs=2", "finetune.flip=false", "finetune.crop_padding=0", "finetune.batch=64"]
    recipe = load_recipe(None, [*settings, "prune.macs=0.5", "prune.images=256"])
    run = open_run(
        "demo", None, None, None, False, recipe, parse_targets(["tflite-int8"]), out, SilentProgress()
    )
    import_source(run)
    return run


def test_fine_tuning_repairs_a_damaged_model(demo: Demo, tmp_path: Path) -> None:
    """As a stage, again from its checkpoint, and a second time under another name."""
    run = demo_run(tmp_path)
    damaged = damage(demo.graph)
    before = demo.top1(damaged)
    assert before < 0.6
    tuned = fine_tune(run, damaged, run.recipe.finetune)
    assert demo.top1(tuned) > 0.9
    assert [stage.name for stage in run.stages[-2:]] == ["teacher", "finetune"]
    assert run.record.training[-1].name == "finetune"
    assert run.record.training[-1].teacher == "demo"
    again = demo_run(tmp_path)
    loaded = fine_tune(again, damaged, again.recipe.finetune)
    assert again.record.training[-1].resumed_at
    for one, other in zip(tuned.nodes, loaded.nodes, strict=True):
        if isinstance(one, Conv):
            assert np.array_equal(one.weights.weight, other.weights.weight)
    once = again.recipe.finetune.model_copy(update={"epochs": 1})
    assert demo.top1(fine_tune(again, damaged, once, "finetune-step1")) > before
    assert again.record.training[-1].name == "finetune-step1"
    assert "teacher" not in [stage.name for stage in again.stages]
