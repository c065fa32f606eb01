"""The sections of a recipe. Everything that decides numbers is here, with its default and its bounds."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from edge_resnet.recipe.combinations import refuse_conflicts

__all__ = [
    "BUDGETS",
    "Calibration",
    "Distillation",
    "Evaluation",
    "Export",
    "FineTuning",
    "LocalBenchmark",
    "Optimization",
    "Prune",
    "Qat",
    "Recipe",
    "Repair",
    "Rounding",
    "Search",
    "Sensitivity",
    "Train",
]


BUDGETS = ("latency", "macs", "params", "bytes")
"""What pruning can be limited by: the names of the section's keys."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_from_a_truth(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic would take `epochs: true` for one epoch."""
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, bool) and field.annotation is not bool:
            raise PydanticCustomError("truth", "true or false means nothing here")
        return value


class Optimization(_Section):
    """How a module is trained on the train split. `epochs: 0`: not at all.

    `optimizer` sgd has Nesterov momentum 0.9; muon turns a convolution's weights by `learning_rate` of
    their length in all directions alike, and does the rest as sgd. `learning_rate` is the one-cycle
    schedule's peak, reached after `warmup` of all steps. `weight_decay` spares biases and batch
    normalization. `flip`: mirrored images, wrong for digits and letters. `crop_padding`: pixels of random
    shift. `crop_area`: random crops of at least this part of the image, enlarged to its size; 1.0: none.
    `precision` is the arithmetic's; weights are float32. `batch` is the number of images of a step, over
    all devices. `average`: what comes out is the exponential moving average of the weights, over about
    this part of all steps; 0: the last step's weights.
    """

    epochs: int = Field(default=0, ge=0)
    batch: int = Field(default=128, ge=2)
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    learning_rate: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    warmup: float = Field(default=0.25, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0, allow_inf_nan=False)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    average: float = Field(default=0.0, ge=0, le=1)
    flip: bool = True
    crop_padding: int = Field(default=4, ge=0, le=256)
    crop_area: float = Field(default=1.0, gt=0, le=1)
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    device: Literal["cpu", "cuda"] = "cpu"


class Train(Optimization):
    """Training in float before anything else, from random or from given weights."""


class Distillation(_Section):
    """Learning from a teacher as well: the model as it came, or `--teacher`.

    The loss is (1 - weight) * cross entropy + weight * soft + hints * H + attention * A. `weight: 0`: no
    teacher's logits. `loss` is what soft means: kl, temperature**2 * KL(teacher || student), both at
    `temperature` (Hinton et al., 2015, 1503.02531), or dist, the correlations of DIST (Huang et al., 2022,
    2205.10536). `hints`: the teacher's tensors at the ends of its stages are imitated through learned 1x1
    maps (FitNets: Romero et al., 2014, 1412.6550). `attention`: where in the image they are large is
    imitated (attention transfer: Zagoruyko and Komodakis, 2016, 1612.03928).
    """

    weight: float = Field(default=0.0, ge=0, le=1)
    loss: Literal["kl", "dist"] = "kl"
    temperature: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    hints: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    attention: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @property
    def on(self) -> bool:
        """Whether anything is learned from a teacher."""
        return self.weight > 0 or self.compares_tensors

    @property
    def compares_tensors(self) -> bool:
        """Whether more of the teacher than its logits is imitated."""
        return self.hints > 0 or self.attention > 0


class Prune(_Section):
    """Structured pruning: channels and whole residual blocks go until the budget is met.

    The budget is what may be left of the original: of its int8 `latency` on `device`, of its multiply-
    accumulates, parameters or bytes of the int8 file; one of them, a part between 0 and 1. All null:
    nothing is pruned. `device`: local, or the file of a latency table that was measured elsewhere.
    `criterion`: what a channel is worth, see docs/pruning.md. `multiple`: numbers of channels that
    kernels like. `reconstruct`: after each step the weights that are left are fitted to what the
    original's layers computed of the images, by least squares (He et al., 2017, 1707.06168);
    `reconstruct_candidates`: a block is judged by what its removal costs after that, which takes a few
    minutes. `images` of the train split show what channels and blocks are worth. In `steps` the budget is
    approached evenly (linear) or faster at first (cubic: Zhu and Gupta, 2017, 1710.01878), and after each
    step but the last the model is trained for `step_epochs`, as the section finetune says. `keep`: layers
    that stay as they are, as names or patterns (layer1.*).
    """

    latency: float | None = Field(default=None, gt=0, le=1)
    macs: float | None = Field(default=None, gt=0, le=1)
    params: float | None = Field(default=None, gt=0, le=1)
    bytes: float | None = Field(default=None, gt=0, le=1)
    device: str = "local"
    criterion: Literal["l1", "l2", "batch-norm", "taylor", "distillation", "random"] = "distillation"
    channels: bool = True
    blocks: bool = True
    multiple: int = Field(default=8, ge=1)
    reconstruct: bool = False
    reconstruct_candidates: bool = False
    images: int = Field(default=512, ge=1)
    schedule: Literal["one-shot", "linear", "cubic"] = "one-shot"
    steps: int = Field(default=1, ge=1)
    step_epochs: int = Field(default=0, ge=0)
    keep: tuple[str, ...] = ()

    @property
    def budget(self) -> tuple[str, float] | None:
        """What is limited, and which part of it may be left."""
        return next(iter(self.budgets), None)

    @property
    def budgets(self) -> list[tuple[str, float]]:
        """All that are given; a recipe with more than one is refused."""
        parts = [(name, getattr(self, name)) for name in BUDGETS]
        return [(name, part) for name, part in parts if part is not None]


class FineTuning(Optimization):
    """Training in float after pruning. Batch normalization is put back behind convolutions, and folded."""

    learning_rate: float = Field(default=0.05, gt=0, allow_inf_nan=False)
    warmup: float = Field(default=0.15, ge=0, lt=1)
    distill: Distillation = Distillation(weight=0.9)


class Qat(Optimization):
    """Quantization-aware training, with the ranges of post-training quantization, after `equalize`.

    `scales` of activations: fixed at what calibration found; moving-average follows what training sees;
    learned trains them, and the weights' too (LSQ: Esser et al., 2020, 1902.08153). From `freeze_scales` of
    all steps on they stay as they are. `batch_norm`: folded into the weights before training, or trained and
    folded inside each step, with its statistics fixed from `freeze_batch_norm` of all steps on.
    """

    learning_rate: float = Field(default=1e-4, gt=0, allow_inf_nan=False)
    average: float = Field(default=1.0, ge=0, le=1)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    scales: Literal["fixed", "moving-average", "learned"] = "fixed"
    batch_norm: Literal["folded", "trained"] = "folded"
    freeze_scales: float = Field(default=0.5, ge=0, le=1)
    freeze_batch_norm: float = Field(default=0.5, ge=0, le=1)
    distill: Distillation = Distillation()


class Calibration(_Section):
    """Which images set the ranges of activations, the first `images` of the shuffled train split, and how.

    `estimator`: minmax; moving-average of the batches' extremes; percentile (`percentile` % of the values
    lie within); mse (least squared error); entropy (least divergence, KL).
    """

    images: int = Field(default=512, ge=0)
    batch: int = Field(default=32, ge=1)
    estimator: Literal["minmax", "moving-average", "percentile", "mse", "entropy"] = "mse"
    percentile: float = Field(default=99.99, gt=50, le=100)


class Rounding(_Section):
    """Learned rounding of weights, block by block, on the calibration images. `steps: 0`: to nearest.

    Block reconstruction (Li et al., BRECQ, 2021, 2102.05426) with the rectified sigmoid of AdaRound (Nagel et
    al., 2020, 2004.10568). `steps` for each block, of `batch` images. `regularization` is how strongly
    weights are pushed to integers; 1: as strongly as the error of rounding to nearest counts.
    """

    steps: int = Field(default=0, ge=0)
    batch: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    regularization: float = Field(default=0.1, ge=0, allow_inf_nan=False)


class Repair(_Section):
    """What is done to a float model or its integers without labels, before any training.

    `equalize`: cross-layer equalization; `correct_biases`: empirical bias correction (both Nagel et al.,
    2019, 1906.04721); `rounding`: learned rounding of weights.
    """

    equalize: bool = False
    correct_biases: bool = False
    rounding: Rounding = Rounding()


class Sensitivity(_Section):
    """What each layer costs when it alone is quantized, on `images` of the val split; 0: not measured.

    `max_drop` in points: the fewest layers are kept in float with which int8 loses at most this much of the
    float model's accuracy on those images. null: all layers are int8.
    """

    images: int = Field(default=0, ge=0)
    max_drop: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class Evaluation(_Section):
    """What is measured on the test split. `images: null` takes all of them.

    `step_images`: on so many the accuracy after each step of quantization is measured, by the integer
    reference, if there is more than one step.
    """

    images: int | None = Field(default=None, ge=1)
    step_images: int = Field(default=1000, ge=0)
    parity_images: int = Field(default=2000, ge=1)
    emulated_images: int = Field(default=2000, ge=1)
    batch: int = Field(default=50, ge=1)
    skip_corrupt: bool = False


class Export(_Section):
    """The ends and the precision of artifacts.

    `coreml_precision` is the float type of coreml-int8 programs: float32 answers as the integers say, on CPU
    and GPU; float16 also runs on the Neural Engine, and rounds every tensor to 11 bits on the way.
    `vela`: the Ethos-U that the target vela is compiled for; `qnn_htp`: the Hexagon architecture that
    qnn-context is.
    """

    tflite_io: Literal["uint8", "int8", "float32"] = "uint8"
    coreml_precision: Literal["float16", "float32"] = "float32"
    vela: str = Field(default="ethos-u55-128", pattern=r"^ethos-u\d+-\d+$")
    qnn_htp: Literal[68, 69, 73, 75, 79, 81] = 73


class LocalBenchmark(_Section):
    """Latency on this machine; `runs: 0` leaves it out."""

    runs: int = Field(default=200, ge=0)
    threads: int = Field(default=1, ge=1)


class Search(_Section):
    """What `edge-resnet search` measures accuracy on: `images` of the train split, a fifth of it at most.

    They are kept apart: no trial trains or calibrates on them.
    """

    images: int = Field(default=2000, ge=1)


class Recipe(_Section):
    """The whole recipe. `preprocess` overrides what the model's source declares.

    `quantizer`: who chooses ranges (and trains): this program, or NNCF. `portable_x86`: weights of 7 bits,
    which cannot saturate ONNX Runtime's 16-bit sums on x86 CPUs with AVX2 but without VNNI.
    """

    name: str = "ptq"
    seed: int = Field(default=0, ge=0)
    preprocess: dict[str, Any] = Field(default_factory=dict)
    train: Train = Train()
    prune: Prune = Prune()
    finetune: FineTuning = FineTuning()
    quantizer: Literal["edge-resnet", "nncf"] = "edge-resnet"
    portable_x86: bool = False
    calibration: Calibration = Calibration()
    repair: Repair = Repair()
    qat: Qat = Qat()
    sensitivity: Sensitivity = Sensitivity()
    evaluate: Evaluation = Evaluation()
    export: Export = Export()
    benchmark: LocalBenchmark = LocalBenchmark()
    search: Search = Search()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        refuse_conflicts(self)
        return self
