"""`edge-resnet`: the commands and what becomes of errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edge_resnet.errors import EdgeResnetError
from edge_resnet.targets import TARGETS
from edge_resnet.version import __version__

__all__ = ["app", "main"]

app = typer.Typer(
    name="edge-resnet",
    help="Compress a trained ResNet once; ship the same integers to TFLite, Core ML and ONNX.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]
WeightsOption = Annotated[Path | None, typer.Option(help="A .safetensors file or a .pt/.pth/.th state dict.")]
DataOption = Annotated[
    str | None,
    typer.Option(help="DIR/{train,val|test}/CLASS/*.jpg, a .zip of one, WebDataset shards, or demo."),
]
TeacherOption = Annotated[
    str | None,
    typer.Option(help="A model to learn from, named as MODEL is; default: the model as it came."),
]
TeacherWeightsOption = Annotated[Path | None, typer.Option(help="The teacher's weights.")]
OutputOption = Annotated[str | None, typer.Option(help="Which output, where a file has several.")]
RequantizeOption = Annotated[
    bool, typer.Option("--requantize", help="Choose the integers of a quantized model anew.")
]
DeviceOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Where to measure: local, ssh://user@host, adb://SERIAL, qemu://cortex-a76, "
        "vela://ethos-u55-128, qnn-htp://73, tflm://host, or a name from `edge-resnet devices` (repeatable)."
    ),
]
INTERRUPTED = 130
INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h: a defect of ours, not of the user's input


def main() -> None:
    """Entry point: run a command, turn errors into one line on standard error and an exit code."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        result = app([a for a in arguments if a != "--debug"], standalone_mode=False)
        if result == INTERRUPTED:  # typer turns Ctrl-C into this
            raise KeyboardInterrupt
        sys.exit(result if isinstance(result, int) else 0)
    except (EdgeResnetError, KeyboardInterrupt, OSError) as error:
        if debug:
            raise
        sys.exit(_explain(error))
    except Exception as error:
        usage = getattr(error, "format_message", None)
        if usage is not None:  # click's own: a wrong option, a missing argument
            print(f"edge-resnet: {usage()}\nSee `edge-resnet --help`.", file=sys.stderr)
            sys.exit(2)
        if debug:
            raise
        kind = type(error).__name__
        print(f"edge-resnet: internal error: {kind}: {error}", file=sys.stderr)
        print("This is a defect; please report it with the output of --debug.", file=sys.stderr)
        sys.exit(INTERNAL_ERROR)


def _explain(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        print("edge-resnet: interrupted; nothing was left half-written", file=sys.stderr)
        return INTERRUPTED
    print(f"edge-resnet: {error}", file=sys.stderr)
    return error.exit_code if isinstance(error, EdgeResnetError) else 2


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (anywhere in the line).")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def compress(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A name from `edge-resnet models`, torchvision:NAME, timm:NAME, a file (.onnx, .keras, .h5, "
            ".tflite, .pt2), path.py:callable or package.module:callable. Without it: edge-resnet.yaml here, "
            "else the bundled demo."
        ),
    ] = None,
    weights: WeightsOption = None,
    data: DataOption = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(TARGETS)} (repeatable)."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="A recipe (YAML), or the name of a ready one (`edge-resnet recipes`).")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of the recipe, e.g. calibration.images=256.")
    ] = None,
    io: Annotated[
        str | None,
        typer.Option(help="Ends of .tflite files: uint8 (image in, float logits out), int8, float32."),
    ] = None,
    quantizer: Annotated[
        str | None, typer.Option(help="Who chooses ranges, and trains: edge-resnet or nncf.")
    ] = None,
    teacher: TeacherOption = None,
    teacher_weights: TeacherWeightsOption = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0, help="Points of accuracy that int8 may lose; the fewest layers that need it stay float."
        ),
    ] = None,
    output: OutputOption = None,
    requantize: RequantizeOption = False,
    device: DeviceOption = None,
    devices: Annotated[
        int, typer.Option(min=1, help="Processes that train together on this machine (several: torchrun).")
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the run goes, and goes on when interrupted; default runs/MODEL-DATE."),
    ] = None,
    json_: JsonOption = False,
) -> int:
    """Quantize a trained model, write it for each target, and prove every file on its own runtime."""
    from edge_resnet.cli.compress import run

    options = {"export.tflite_io": io, "quantizer": quantizer}
    settings = [*(set_ or []), *(f"{key}={value}" for key, value in options.items() if value)]
    return run(
        model,
        weights,
        data,
        target or [],
        recipe,
        settings,
        max_drop,
        out,
        output,
        teacher,
        teacher_weights,
        requantize,
        device or [],
        devices,
        json_,
    )


@app.command()
def search(
    recipe: Annotated[
        Path, typer.Argument(help="A recipe with ranges ({low: 0.3, high: 0.9}), or `search`, the ready one.")
    ],
    model: Annotated[str, typer.Argument(help="As for compress.")] = "demo",
    weights: WeightsOption = None,
    data: DataOption = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE of the recipe, e.g. 'prune.latency={low: 0.3, high: 0.9}'."),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="How many trials the study is to have.")] = 30,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds after which no new trial begins.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Where the study is: a journal's FILE, or a database's URL (sqlite:///FILE, mysql://...); "
            "default OUT/study.journal. Machines that name the same one work together."
        ),
    ] = None,
    study: Annotated[str, typer.Option(help="The study's name in the storage.")] = "search",
    teacher: TeacherOption = None,
    teacher_weights: TeacherWeightsOption = None,
    output: OutputOption = None,
    requantize: RequantizeOption = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the result goes, and goes on; default runs/search-MODEL."),
    ] = None,
    json_: JsonOption = False,
) -> int:
    """Try out a recipe's ranges for accuracy and latency; the Pareto front, and a recipe for each point."""
    from edge_resnet.cli.search import run

    return run(
        recipe,
        model,
        weights,
        data,
        set_ or [],
        trials,
        timeout,
        jobs,
        storage,
        study,
        out,
        output,
        teacher,
        teacher_weights,
        requantize,
        json_,
    )


@app.command()
def verify(
    directory: Annotated[Path, typer.Argument(help="The --out of a run.")],
    data: Annotated[str | None, typer.Option(help="The data, if it has moved since.")] = None,
    json_: JsonOption = False,
) -> int:
    """Check every artifact against the graph's integers again, from the files alone."""
    from edge_resnet.cli.verify import run

    return run(directory, data, json_)


@app.command()
def benchmark(
    artifacts: Annotated[list[Path], typer.Argument(help="Artifacts, or folders that hold some.")],
    device: DeviceOption = None,
    data: Annotated[
        str | None,
        typer.Option(help="The run's data: accuracy on each device, and its delta against the baseline."),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Test images of --data; default: what each device can bear.")
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(
            min=0, help="Threads of the runtime, 0 for all cores (repeatable); default 1, 2 and all."
        ),
    ] = None,
    runs: Annotated[int, typer.Option(min=10, help="Timed inferences of each artifact.")] = 200,
    batch: Annotated[int, typer.Option(min=1, help="Throughput at so many images at once, too.")] = 1,
    json_: JsonOption = False,
) -> int:
    """Latency, memory, accuracy of artifacts on devices, each figure with its kind, into the run's report."""
    from edge_resnet.benchmark.result import BenchmarkSettings
    from edge_resnet.cli.benchmark import run
    from edge_resnet.devices.benchmark import ALL_THREADS

    settings = BenchmarkSettings(runs=runs, batch=batch)
    return run(artifacts, device or ["local"], data, images, threads or ALL_THREADS, settings, json_)


@app.command()
def inspect(
    what: Annotated[str, typer.Argument(help="A model (as for compress), an artifact, or a run's folder.")],
    weights: Annotated[Path | None, typer.Option(help="Weights of a model.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="preprocess.size=... of a model.")] = None,
    output: Annotated[str | None, typer.Option(help="Which output, where a file has several.")] = None,
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Read a quantized model as the floats it stands for.")
    ] = False,
    json_: JsonOption = False,
) -> int:
    """Family, layers, shapes, MACs, parameters, ranges; what int8 would lose, which target refuses what."""
    from edge_resnet.cli.inspect import run

    return run(what, weights, set_ or [], output, requantize, json_)


@app.command()
def models(json_: JsonOption = False) -> int:
    """The models that can be built by name."""
    from edge_resnet.cli.lists import print_models

    return print_models(json_)


@app.command()
def recipes(
    what: Annotated[
        str | None,
        typer.Argument(help="`defaults` prints every setting with its default, `schema` the JSON schema."),
    ] = None,
) -> int:
    """The ready recipes and where they are; every setting; the JSON schema."""
    from edge_resnet.cli.lists import print_recipes

    return print_recipes(what)


@app.command()
def devices(json_: JsonOption = False) -> int:
    """What --device takes: kinds of devices, and phones and boards with the source of their figures."""
    from edge_resnet.cli.devices import print_devices

    return print_devices(json_)


@app.command()
def doctor(json_: JsonOption = False) -> int:
    """What this machine can do, and the command that adds what it lacks."""
    from edge_resnet.cli.lists import run_doctor

    return run_doctor(json_)
