"""Run one artifact, with a mark before and after each inference that counts instructions.

    python marked_inferences.py WORKER.py ARTIFACT RUNTIME INFERENCES

A program for an emulated CPU: it needs the standard library, numpy and a runtime. A mark is a write to file
descriptor MARK, which instruction_counts.c sees; the first three have nothing between them, which is what a
mark itself costs. Prints a JSON line {"version"}, or {"error"} with exit code 3.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import sys

MARK = 199
# The first inferences allocate, and fill Python's own caches.
_WARM_UP = 3


def main() -> int:
    worker, artifact, runtime, inferences = sys.argv[1:]
    try:
        spec = importlib.util.spec_from_file_location("worker", worker)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        version, model = module.load(artifact, runtime, 1)
        infer = model.runner(1)
        for _ in range(_WARM_UP):
            infer()
    except Exception as error:  # whatever a runtime raises must reach the other side as a line
        print(json.dumps({"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}))
        return 3
    os.dup2(os.open(os.devnull, os.O_WRONLY), MARK)
    gc.disable()
    write, nothing = os.write, b""
    for _ in range(3):
        write(MARK, nothing)
    for _ in range(int(inferences)):
        infer()
        write(MARK, nothing)
    print(json.dumps({"version": version}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
