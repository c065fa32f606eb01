"""Where artifacts run and are measured: this machine, boards, phones, emulated CPUs, NPU compilers."""
