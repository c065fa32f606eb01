"""In place of LiteRT's benchmark_model, whose Android binary runs on no computer: its flags, its output.

A program of its own. It really runs the model with LiteRT, in Python, and times it; what it says of delegates
is made up, by FALLS: of "GPU" and "NNAPI", what share of the model each takes.
"""

import os
import resource
import sys
import time

FALLS: dict = {}
KNOWN = set(
    """graph num_threads num_runs min_secs max_secs warmup_runs warmup_min_secs report_peak_memory_footprint
    memory_footprint_check_interval_ms input_layer input_layer_shape input_layer_value_files output_filepath
    use_gpu use_nnapi external_delegate_path external_delegate_options
    delegate_serialize_dir delegate_serialize_token help""".split()  # noqa: SIM905
)


def log(text, level="INFO"):
    print(f"{level}: {text}", file=sys.stderr, flush=True)


def counted(times, new):
    if not times:
        return "count=0 curr=0"
    ordered = sorted(times)
    if len(times) == 1 or ordered[0] == ordered[-1]:
        text = f"count={len(times)} curr={times[-1]}" + ("(all same)" if len(times) > 1 else "")
    else:
        mean = sum(times) / len(times)
        deviation = int((sum((t - mean) ** 2 for t in times) / len(times)) ** 0.5)
        text = f"count={len(times)} first={times[0]} curr={times[-1]} min={ordered[0]} max={ordered[-1]} "
        text += f"avg={mean:.6g} std={deviation}"
    if new:
        p5, p50, p95 = (ordered[len(ordered) * share // 100] for share in (5, 50, 95))
        text += f" p5={p5} median={p50} p95={p95}"
    return text


def delegated(flags):
    for flag, tool, node in (
        ("use_gpu", "GPU", "TfLiteGpuDelegateV2"),
        ("use_nnapi", "NNAPI", "TfLiteNnapiDelegate"),
        ("external_delegate_path", "EXTERNAL", "VendorDelegate"),
    ):
        if not flags.get(flag) or flags[flag] == "false":
            continue
        share = FALLS.get(tool, "all")
        if share == "unsupported":
            log("NNAPI acceleration is unsupported on this platform.", "WARN")
        elif share == "none":
            log(
                f"Though {tool} delegate is explicitly applied, the model graph will not be executed by the "
                "delegate."
            )
        else:
            taken, pieces = (20, 1) if share == "all" else (12, 3)
            log(
                f"Replacing {taken} out of 20 node(s) with delegate ({node}) node, yielding {pieces} "
                "partitions for subgraph 0.",
                "VERBOSE",
            )
            how = (
                "completely executed by the delegate."
                if share == "all"
                else (f"partially executed by the delegate w/ {pieces} delegate kernels.")
            )
            log(f"Explicitly applied {tool} delegate, and the model graph will be {how}")


def compiled(flags):
    """As a GPU's delegate does, which finds its kernels or makes them."""
    if not FALLS.get("compiles") or flags.get("use_gpu") != "true":
        return
    folder = flags.get("delegate_serialize_dir")
    kept = folder and f"{folder}/{flags['delegate_serialize_token']}_kernels.bin"
    if kept and os.path.exists(kept):
        return
    time.sleep(FALLS["compiles"])
    if kept:
        log(f"File {kept} couldn't be opened for reading: No such file or directory", "ERROR")
        with open(kept, "w") as file:
            file.write("kernels")


def main():
    flags, unknown, known = {}, [], KNOWN - set(FALLS.get("unknown", "").split())
    for argument in sys.argv[1:]:
        name, _, value = argument.removeprefix("--").partition("=")
        if name in known:
            flags[name] = value
        else:
            unknown.append(argument)
    if "help" in flags:
        log("usage: benchmark_model\nFlags:\n" + "\n".join(f"\t--{name}" for name in sorted(known)), "ERROR")
        return 1
    if unknown:
        log("Unconsumed cmdline flags: " + " ".join(unknown), "WARN")
    log("STARTING!")
    log(f"Num threads: [{flags['num_threads']}]")
    log(f"Graph: [{flags['graph']}]")
    if FALLS.get("full"):
        log("write error: No space left on device", "ERROR")
        return 1
    if FALLS.get("hangs") == ("later" if float(flags["warmup_min_secs"]) else "at once"):
        time.sleep(600)
    begun = time.perf_counter_ns()
    try:
        from ai_edge_litert.interpreter import Interpreter

        begun = time.perf_counter_ns()
        compiled(flags)
        interpreter = Interpreter(model_path=flags["graph"], num_threads=int(flags["num_threads"]))
        log(f"Loaded model {flags['graph']}")
        delegated(flags)
        if flags.get("input_layer_shape"):
            shape = [int(size) for size in flags["input_layer_shape"].split(",")]
            interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], shape)
        interpreter.allocate_tensors()
    except ValueError as error:
        log(f"Failed to load model {flags['graph']}: {error}", "ERROR")
        log("Benchmarking failed.", "ERROR")
        return 1
    started = (time.perf_counter_ns() - begun) // 1000
    log(f"The input model file size (MB): {os.path.getsize(flags['graph']) / 1e6:.6g}")
    log(f"Initialized session in {started / 1000:.6g}ms.")
    return measured(interpreter, flags, started)


def measured(interpreter, flags, started):
    import numpy

    source, output = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    files = flags.get("input_layer_value_files")
    if files:
        image = numpy.fromfile(files.partition(":")[2], source["dtype"])
        if image.nbytes != numpy.zeros(source["shape"], source["dtype"]).nbytes:
            log("The size of the file is not that of the tensor", "FATAL")
            return 134
        image = image.reshape(source["shape"])
    else:
        image = numpy.random.default_rng().integers(0, 127, source["shape"]).astype(source["dtype"])

    def runs(count, seconds):
        log(
            f"Running benchmark for at least {count} iterations and at least {seconds} seconds but terminate "
            f"if exceeding {flags['max_secs']} seconds."
        )
        times, end = [], time.monotonic() + seconds
        while len(times) < count or time.monotonic() < end:
            interpreter.set_tensor(source["index"], image)
            first = time.perf_counter_ns()
            interpreter.invoke()
            times.append((time.perf_counter_ns() - first) // 1000)
        log(counted(times, FALLS.get("new", True)) + "\n")
        return times

    warm = runs(int(flags["warmup_runs"]), float(flags["warmup_min_secs"]))
    if FALLS.get("crashes"):
        os.abort()
    times = runs(int(flags["num_runs"]), float(flags["min_secs"]))
    averages = [f"{sum(some) / len(some):.6g}" if some else "-nan" for some in (warm, times)]
    log(
        f"Inference timings in us: Init: {started}, First inference: {warm[0] if warm else 0}, "
        f"Warmup (avg): {averages[0]}, Inference (avg): {averages[1]}"
    )
    log(
        "Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to "
        "the actual memory footprint of the model at runtime. Take the information at your discretion."
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    log(f"Memory footprint delta from the start of the tool (MB): init=1.5 overall={peak / 2:.6g}")
    if flags.get("report_peak_memory_footprint") == "true":
        log(f"Overall peak memory footprint (MB) via periodic monitoring: {peak:.6g}")
    if flags.get("output_filepath"):
        interpreter.get_tensor(output["index"]).tofile(flags["output_filepath"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
